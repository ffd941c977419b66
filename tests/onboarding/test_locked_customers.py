"""What a process reads of a customer that another process is changing at this moment."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from django.db import connections, transaction
from django.utils import timezone

from kapso_connect import onboarding
from kapso_connect.kapso.types import KapsoSetupLink
from kapso_connect.models import Customer, SetupLink
from kapso_connect.onboarding import setup_links
from kapso_connect.onboarding.numbers import Number
from kapso_connect.onboarding.status import find_wrong_statuses

from ..factories import make_customer, make_link, new_number_id

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("sqlite_options"),
]


def while_locked(
    customer: Customer, change: Callable[[], object], action: Callable[[], object]
) -> None:
    """Run ``action`` while another process has locked ``customer``, and has not yet committed
    ``change``."""
    is_locked = threading.Event()

    def lock_and_change() -> None:
        try:
            with transaction.atomic():
                Customer.objects.locked().get(pk=customer.pk)
                change()
                is_locked.set()
                time.sleep(0.5)
        finally:
            connections.close_all()

    with ThreadPoolExecutor(1) as executor:
        changed = executor.submit(lock_and_change)
        assert is_locked.wait(timeout=10)
        action()
        changed.result()


def answer(*, seconds_ago: float) -> KapsoSetupLink:
    """What Kapso answers when it has created a link."""
    return KapsoSetupLink(
        id=str(uuid.uuid4()),
        status="active",
        created_at=timezone.now() - timedelta(seconds=seconds_ago),
        url="https://setup.example/secret-token",
    )


def record(customer: Customer, link: KapsoSetupLink) -> SetupLink | None:
    [recorded] = setup_links.record([(setup_links.prepare(customer), link)])
    return recorded


@pytest.mark.parametrize("has_link", [False, True])
def test_number_completes_the_link_that_was_recorded_at_the_same_time(has_link: bool) -> None:
    customer = make_customer()
    if has_link:
        make_link(customer, created_at=timezone.now() - timedelta(days=1))
    new = answer(seconds_ago=1)
    while_locked(
        customer,
        lambda: record(customer, new),
        lambda: onboarding.connect(customer, Number(new_number_id()), source="webhook"),
    )
    link = SetupLink.objects.get(kapso_id=new.id)
    assert link.setup_status == SetupLink.SetupStatus.COMPLETED
    assert link.connections.count() == 1


@pytest.mark.parametrize("has_link", [False, True])
def test_link_that_kapso_created_first_does_not_become_the_latest(has_link: bool) -> None:
    customer = make_customer()
    if has_link:
        make_link(customer, created_at=timezone.now() - timedelta(days=1))
    first, second = answer(seconds_ago=2), answer(seconds_ago=1)
    while_locked(
        customer,
        lambda: record(customer, second),
        lambda: record(Customer.objects.get(pk=customer.pk), first),
    )
    latest = Customer.objects.get(pk=customer.pk).latest_setup_link
    assert latest is not None
    assert latest.kapso_id == second.id
    assert Customer.objects.get(pk=customer.pk).status == "invited"
    assert list(find_wrong_statuses()) == []
