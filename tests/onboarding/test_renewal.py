"""The setup link of the day: found, or made where the last one ended; one however many ask."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from kapso_connect import exceptions, onboarding
from kapso_connect.exceptions import KapsoError, KapsoUnavailable
from kapso_connect.models import Connection, Customer, SetupLink
from kapso_connect.onboarding import renewal, setup_links, steps
from kapso_connect.testing import Sandbox

from ..factories import make_customer

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


def made_at_kapso(sandbox: Sandbox) -> list[str]:
    return [row["status"] for row in sandbox.state()["setup_links"]]


def test_a_link_that_works_is_the_one(link: SetupLink) -> None:
    for _ in range(3):
        assert renewal.usable_setup_link(link.customer) == link
    assert SetupLink.objects.count() == 1


@pytest.mark.parametrize("known_here", [True, False])
def test_an_expired_link_is_renewed_as_it_was(
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


def test_the_addresses_of_this_site_are_those_of_today(
    link: SetupLink, sandbox: Sandbox, configure: Any
) -> None:
    configure(PUBLIC_URL="https://moved.example")
    expire(link, sandbox)
    fresh = renewal.usable_setup_link(link.customer)
    assert fresh.options["success_redirect_url"] == "https://moved.example/whatsapp/success/"


@pytest.mark.parametrize("code", sorted(renewal.ENDING_CODES))
def test_a_link_used_up_by_a_failure_is_renewed(link: SetupLink, code: str) -> None:
    setup_links.record_failure(link, code)
    assert renewal.usable_setup_link(link.customer) != link


def test_a_link_that_failed_in_passing_is_followed_again(link: SetupLink) -> None:
    setup_links.record_failure(link, "facebook_auth_failed")
    assert renewal.usable_setup_link(link.customer) == link


def test_a_link_used_up_at_kapso_is_renewed(link: SetupLink, sandbox: Sandbox) -> None:
    sandbox.patch_setup_link(link.kapso_id, status="used", whatsapp_setup_status="failed")
    assert renewal.usable_setup_link(link.customer) != link
    link.refresh_from_db()
    assert link.status == "used"


def test_a_link_replaced_in_kapsos_own_pages_is_renewed(link: SetupLink, sandbox: Sandbox) -> None:
    """Nobody here knows of the newer one."""
    newer = onboarding.create_setup_link(link.customer)
    newer.delete()
    SetupLink.objects.update(is_latest=True, status="active")
    fresh = renewal.usable_setup_link(link.customer)
    assert fresh.is_usable
    assert fresh != link


@pytest.mark.parametrize("recorded", [True, False])
def test_a_link_withdrawn_at_kapso_is_not_renewed(
    link: SetupLink, sandbox: Sandbox, recorded: bool
) -> None:
    sandbox.patch_setup_link(link.kapso_id, status="revoked")
    if recorded:
        SetupLink.objects.update(status="revoked")
    for _ in range(2):
        with pytest.raises(exceptions.InvitationWithdrawn):
            renewal.usable_setup_link(link.customer)
    assert made_at_kapso(sandbox) == ["revoked"]


def test_nobody_was_invited(sandbox: Sandbox) -> None:
    with pytest.raises(exceptions.InvitationWithdrawn):
        renewal.usable_setup_link(make_customer())


def test_who_connected_needs_no_link(link: SetupLink, sandbox: Sandbox) -> None:
    sandbox.complete(link.url)
    # No webhook came and no browser: the question about the link finds the number.
    with pytest.raises(exceptions.AlreadyConnected):
        renewal.usable_setup_link(link.customer)
    connection = Connection.objects.get()
    assert (connection.is_connected, connection.setup_link) == (True, link)
    with pytest.raises(exceptions.AlreadyConnected):
        renewal.usable_setup_link(link.customer)
    assert len(made_at_kapso(sandbox)) == 1


def test_who_connected_and_is_invited_again_gets_the_new_link(
    link: SetupLink, sandbox: Sandbox
) -> None:
    sandbox.complete(link.url)
    with pytest.raises(exceptions.AlreadyConnected):
        renewal.usable_setup_link(link.customer)
    second = onboarding.create_setup_link(link.customer)
    assert renewal.usable_setup_link(link.customer) == second
    expire(second, sandbox)
    assert renewal.usable_setup_link(link.customer).is_usable


def test_who_lost_the_number_may_connect_again(link: SetupLink, sandbox: Sandbox) -> None:
    sandbox.complete(link.url)
    with pytest.raises(exceptions.AlreadyConnected):
        renewal.usable_setup_link(link.customer)
    number = Connection.objects.get().phone_number_id
    sandbox.patch_number(number, status="DISCONNECTED")
    onboarding.disconnect(number, source="sync", asked_at=timezone.now())
    assert renewal.usable_setup_link(link.customer).is_usable


def test_while_kapso_is_away_a_link_that_works_is_given_unasked(
    link: SetupLink, sandbox: Sandbox, configure: Any
) -> None:
    configure(REQUEST_BUDGET=0.5)
    sandbox.faults(api=[AWAY])
    assert renewal.usable_setup_link(link.customer) == link
    SetupLink.objects.update(expires_at=past())
    with pytest.raises(KapsoUnavailable):
        renewal.usable_setup_link(link.customer)
    sandbox.faults(api=[])
    assert renewal.usable_setup_link(link.customer).is_usable


def test_kapso_forgot_the_customer(link: SetupLink, sandbox: Sandbox) -> None:
    sandbox.reset()
    fresh = renewal.usable_setup_link(link.customer)
    assert fresh.is_usable
    assert Customer.objects.get().kapso_id == sandbox.state()["customers"][0]["id"]


# Many at the same moment


def test_a_refused_renewal_lets_the_next_one_try(link: SetupLink, sandbox: Sandbox) -> None:
    expire(link, sandbox)
    sandbox.faults(api=[{"match": "POST .*setup_links", "kind": "status", "status": 422}])
    with pytest.raises(KapsoError):
        renewal.usable_setup_link(link.customer)
    sandbox.faults(api=[])
    assert renewal.usable_setup_link(link.customer).is_usable


def test_while_another_request_makes_the_link_nobody_else_does(
    link: SetupLink, sandbox: Sandbox, configure: Any
) -> None:
    configure(REQUEST_BUDGET=0.3)
    expire(link, sandbox)
    SetupLink.objects.update(renewing_at=timezone.now())
    with pytest.raises(exceptions.RenewalInProgress):
        renewal.usable_setup_link(link.customer)
    assert len(made_at_kapso(sandbox)) == 1


def test_the_link_of_a_process_that_died_is_taken(link: SetupLink, sandbox: Sandbox) -> None:
    expire(link, sandbox)
    orphan = onboarding.create_setup_link(link.customer)
    orphan.delete()
    SetupLink.objects.update(
        renewing_at=timezone.now() - timedelta(seconds=30), is_latest=True, status="active"
    )
    assert renewal.usable_setup_link(link.customer).kapso_id == orphan.kapso_id
    assert len(made_at_kapso(sandbox)) == 2


def test_an_invitation_withdrawn_meanwhile_stays_withdrawn(
    link: SetupLink, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    expire(link, sandbox)
    customer = Customer.objects.get()
    real = steps.run

    def withdrawn_first(*args: Any) -> Any:
        Customer.objects.update(connect_key=None)
        return real(*args)

    monkeypatch.setattr(renewal, "run", withdrawn_first)
    with pytest.raises(exceptions.InvitationWithdrawn):
        renewal.usable_setup_link(customer)
    assert Customer.objects.get().connect_key is None
    assert "active" not in made_at_kapso(sandbox)[1:]
