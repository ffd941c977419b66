"""The setup link that can be used now: the latest, or a new one; one however many requests ask."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from kapso_connect import exceptions, onboarding
from kapso_connect.exceptions import KapsoError, KapsoUnavailable
from kapso_connect.kapso.error_codes import SETUP_ERRORS
from kapso_connect.models import Connection, Customer, SetupLink
from kapso_connect.onboarding import renewal, setup_links
from kapso_connect.testing import Sandbox

from ..cases import slow_after
from ..factories import make_connection, make_customer, make_link
from .support import during_request, links_at_kapso

pytestmark = pytest.mark.django_db(transaction=True)

AWAY = {"match": ".*", "kind": "status", "status": 503}


def past() -> Any:
    return timezone.now() - timedelta(seconds=1)


@pytest.fixture
def link(sandbox: Sandbox) -> SetupLink:
    return onboarding.create_setup_link(
        make_customer(kapso_id=None), options={"language": "pt"}, next_url="/welcome/"
    )


def expire(link: SetupLink, sandbox: Sandbox) -> None:
    sandbox.patch_setup_link(link.kapso_id, expires_at="2020-01-01T00:00:00Z")
    SetupLink.objects.filter(pk=link.pk).update(expires_at=past())


def statuses_at_kapso(sandbox: Sandbox) -> list[str]:
    return [row["status"] for row in links_at_kapso(sandbox)]


def test_usable_link_is_returned(link: SetupLink) -> None:
    for _ in range(3):
        assert renewal.usable_setup_link(link.customer) == link
    assert SetupLink.objects.count() == 1


@pytest.mark.parametrize("known_here", [True, False])
def test_expired_link_is_renewed_with_its_options(
    link: SetupLink, sandbox: Sandbox, known_here: bool
) -> None:
    expire(link, sandbox)
    if not known_here:
        SetupLink.objects.update(expires_at=timezone.now() + timedelta(days=1))
    fresh = renewal.usable_setup_link(link.customer)
    assert fresh != link
    assert (fresh.is_latest, fresh.is_usable) == (True, True)
    assert (fresh.options, fresh.next_url) == (link.options, "/welcome/")
    assert fresh.created_by is None
    assert renewal.usable_setup_link(link.customer) == fresh


def test_renewed_link_has_the_current_urls_of_the_site(
    link: SetupLink, sandbox: Sandbox, configure: Any
) -> None:
    configure(PUBLIC_URL="https://moved.example")
    expire(link, sandbox)
    fresh = renewal.usable_setup_link(link.customer)
    assert fresh.options["success_redirect_url"] == "https://moved.example/whatsapp/success/"


@pytest.mark.parametrize("code", slow_after(2, SETUP_ERRORS))
def test_link_that_a_redirect_reported_as_ended_is_used_until_the_api_agrees(
    link: SetupLink, sandbox: Sandbox, code: str
) -> None:
    setup_links.record_failure(link, code, by_visitor=True)
    sandbox.faults(api=[AWAY])
    assert renewal.usable_setup_link(link.customer) == link
    sandbox.faults(api=[])
    assert renewal.usable_setup_link(link.customer) == link
    sandbox.patch_setup_link(link.kapso_id, status="used", whatsapp_setup_status="failed")
    assert renewal.usable_setup_link(link.customer) != link


def test_link_used_at_kapso_is_renewed(link: SetupLink, sandbox: Sandbox) -> None:
    sandbox.patch_setup_link(link.kapso_id, status="used", whatsapp_setup_status="failed")
    assert renewal.usable_setup_link(link.customer) != link
    link.refresh_from_db()
    assert link.status == "used"


def test_link_replaced_in_kapsos_dashboard_is_renewed(link: SetupLink, sandbox: Sandbox) -> None:
    newer = onboarding.create_setup_link(link.customer)
    newer.delete()
    SetupLink.objects.update(status="active")
    Customer.objects.update(latest_setup_link=link)
    fresh = renewal.usable_setup_link(link.customer)
    assert fresh.is_usable
    assert fresh != link


@pytest.mark.parametrize("recorded", [True, False])
def test_link_revoked_at_kapso_is_not_renewed(
    link: SetupLink, sandbox: Sandbox, recorded: bool
) -> None:
    sandbox.patch_setup_link(link.kapso_id, status="revoked")
    if recorded:
        SetupLink.objects.update(status="revoked")
    for _ in range(2):
        with pytest.raises(exceptions.InvitationWithdrawn):
            renewal.usable_setup_link(link.customer)
    assert statuses_at_kapso(sandbox) == ["revoked"]


def test_customer_who_was_not_invited_gets_no_link(sandbox: Sandbox) -> None:
    with pytest.raises(exceptions.InvitationWithdrawn):
        renewal.usable_setup_link(make_customer())


def test_connected_customer_gets_no_link(link: SetupLink, sandbox: Sandbox) -> None:
    sandbox.complete(link.url)
    # There was neither a webhook nor a redirect: checking the link finds the number.
    with pytest.raises(exceptions.AlreadyConnected):
        renewal.usable_setup_link(link.customer)
    connection = Connection.objects.get()
    assert (connection.is_connected, connection.setup_link) == (True, link)
    with pytest.raises(exceptions.AlreadyConnected):
        renewal.usable_setup_link(link.customer)
    assert len(statuses_at_kapso(sandbox)) == 1


def test_link_that_reconnected_a_known_number_is_not_renewed(sandbox: Sandbox) -> None:
    customer = make_customer(kapso_id=None)
    first = onboarding.create_setup_link(customer)
    sandbox.complete(first.url, phone_number="+442071838750")
    with pytest.raises(exceptions.AlreadyConnected):
        renewal.usable_setup_link(customer)
    again = onboarding.create_setup_link(
        customer, options={"reconnect_phone_number": "+442071838750"}
    )
    sandbox.complete(again.url)
    with pytest.raises(exceptions.AlreadyConnected):
        renewal.usable_setup_link(customer)
    again.refresh_from_db()
    assert (again.status, again.setup_status) == ("used", "completed")
    assert len(statuses_at_kapso(sandbox)) == 2


def test_restricted_number_that_was_reconnected_can_be_replaced_by_another(
    sandbox: Sandbox,
) -> None:
    customer = make_customer(kapso_id=None)
    first = onboarding.create_setup_link(customer)
    sandbox.complete(first.url, phone_number="+442071838750")
    with pytest.raises(exceptions.AlreadyConnected):
        renewal.usable_setup_link(customer)
    again = onboarding.create_setup_link(
        customer, options={"reconnect_phone_number": "+442071838750"}, next_url="/welcome/"
    )
    sandbox.complete(again.url)
    Connection.objects.update(account_status="restricted")
    fresh = renewal.usable_setup_link(customer)
    assert fresh != again
    assert "reconnect_phone_number" not in fresh.options
    assert fresh.next_url == "/welcome/"
    assert renewal.usable_setup_link(customer) == fresh, "one link, however often it is asked for"


def test_restricted_number_that_was_provided_is_not_replaced_at_the_sites_cost(
    sandbox: Sandbox, configure: Any
) -> None:
    configure(SETUP_LINK_DEFAULTS={"provision_phone_number": True, "phone_number_area_code": "415"})
    link = onboarding.create_setup_link(make_customer(kapso_id=None))
    sandbox.complete(link.url)
    with pytest.raises(exceptions.AlreadyConnected):
        renewal.usable_setup_link(link.customer)
    Connection.objects.update(account_status="restricted")
    fresh = renewal.usable_setup_link(link.customer)
    assert fresh != link
    assert not fresh.options.get("provision_phone_number")
    assert "phone_number_area_code" not in fresh.options


def test_link_that_reconnects_a_number_is_renewed_as_such(sandbox: Sandbox) -> None:
    customer = make_customer(kapso_id=None)
    sandbox.complete(onboarding.create_setup_link(customer).url, phone_number="+442071838750")
    with pytest.raises(exceptions.AlreadyConnected):
        renewal.usable_setup_link(customer)
    again = onboarding.create_setup_link(
        customer, options={"reconnect_phone_number": "+442071838750"}
    )
    expire(again, sandbox)
    fresh = renewal.usable_setup_link(customer)
    assert fresh != again
    assert fresh.options["reconnect_phone_number"] == "+442071838750"


def test_connected_customer_who_is_invited_again_gets_the_new_link(
    link: SetupLink, sandbox: Sandbox
) -> None:
    sandbox.complete(link.url)
    with pytest.raises(exceptions.AlreadyConnected):
        renewal.usable_setup_link(link.customer)
    second = onboarding.create_setup_link(link.customer)
    assert renewal.usable_setup_link(link.customer) == second
    expire(second, sandbox)
    assert renewal.usable_setup_link(link.customer).is_usable


def test_customer_whose_number_was_disconnected_gets_a_new_link(
    link: SetupLink, sandbox: Sandbox
) -> None:
    sandbox.complete(link.url)
    with pytest.raises(exceptions.AlreadyConnected):
        renewal.usable_setup_link(link.customer)
    number = Connection.objects.get().phone_number_id
    sandbox.patch_number(number, status="DISCONNECTED")
    onboarding.disconnect(number, source="sync", asked_at=timezone.now())
    assert renewal.usable_setup_link(link.customer).is_usable


def test_while_kapso_is_away_a_usable_link_is_returned_unchecked(
    link: SetupLink, sandbox: Sandbox, configure: Any
) -> None:
    configure(REQUEST_BUDGET=0.5)
    assert renewal.usable_setup_link(link.customer, may_ask=False) == link
    sandbox.faults(api=[AWAY])
    assert renewal.usable_setup_link(link.customer) == link
    SetupLink.objects.update(expires_at=past())
    with pytest.raises(KapsoUnavailable):
        renewal.usable_setup_link(link.customer)
    sandbox.faults(api=[])
    assert renewal.usable_setup_link(link.customer).is_usable


def test_customer_deleted_at_kapso_gets_a_new_link(link: SetupLink, sandbox: Sandbox) -> None:
    sandbox.reset()
    fresh = renewal.usable_setup_link(link.customer)
    assert fresh.is_usable
    assert Customer.objects.get().kapso_id == sandbox.state()["customers"][0]["id"]


# Several requests at the same time


def test_failed_renewal_can_be_tried_again(link: SetupLink, sandbox: Sandbox) -> None:
    expire(link, sandbox)
    sandbox.faults(api=[{"match": "POST .*setup_links", "kind": "status", "status": 422}])
    with pytest.raises(KapsoError):
        renewal.usable_setup_link(link.customer)
    sandbox.faults(api=[])
    assert renewal.usable_setup_link(link.customer).is_usable


def test_two_requests_do_not_renew_a_link_at_once(
    link: SetupLink, sandbox: Sandbox, configure: Any
) -> None:
    configure(REQUEST_BUDGET=0.3)
    expire(link, sandbox)
    assert SetupLink.objects.acquire_lease(60)
    with pytest.raises(exceptions.RenewalInProgress):
        renewal.usable_setup_link(link.customer)
    assert len(statuses_at_kapso(sandbox)) == 1


def test_renewal_uses_the_link_created_by_a_process_that_died(
    link: SetupLink, sandbox: Sandbox
) -> None:
    expire(link, sandbox)
    orphan = onboarding.create_setup_link(link.customer)
    orphan.delete()
    SetupLink.objects.update(
        leased_at=timezone.now() - timedelta(seconds=30),
        leased_until=timezone.now() - timedelta(seconds=1),
        status="active",
    )
    Customer.objects.update(latest_setup_link=link)
    assert renewal.usable_setup_link(link.customer).kapso_id == orphan.kapso_id
    assert len(statuses_at_kapso(sandbox)) == 2


def test_invitation_withdrawn_during_the_renewal_stays_withdrawn(
    link: SetupLink, sandbox: Sandbox
) -> None:
    expire(link, sandbox)
    customer = Customer.objects.get()
    with pytest.raises(exceptions.InvitationWithdrawn):
        during_request(
            sandbox,
            "^POST .*/setup_links$",
            lambda: Customer.objects.update(connect_key=None),
            lambda: renewal.usable_setup_link(customer),
        )
    assert Customer.objects.get().connect_key is None
    assert "active" not in statuses_at_kapso(sandbox)[1:]


COMPLETED = {"status": "used", "setup_status": "completed"}


@pytest.mark.parametrize(
    ("of_link", "of_number", "leads"),
    [
        ({}, None, True),
        ({}, {}, True),  # an invitation to connect another number
        ({"status": "expired"}, None, True),
        ({"status": "used", "setup_status": "failed"}, None, True),
        (COMPLETED, {"status": "disconnected"}, True),
        (COMPLETED, {"account_status": "disabled"}, True),
        (COMPLETED, {}, False),
        ({"status": "revoked"}, None, False),
    ],
)
def test_personal_link_leads_to_setup_while_there_is_something_to_connect(
    of_link: dict[str, str], of_number: dict[str, str] | None, leads: bool
) -> None:
    link = make_link(make_customer(connect_key="key"), **of_link)
    if of_number is not None:
        make_connection(link.customer, setup_link=link, **of_number)
    assert renewal.leads_to_setup(link.customer, link) == leads
    link.customer.connect_key = None
    assert not renewal.leads_to_setup(link.customer, link)


def test_customer_without_a_setup_link_has_nowhere_to_go() -> None:
    assert not renewal.leads_to_setup(make_customer(connect_key="key"), None)
