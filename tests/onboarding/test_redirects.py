"""What a returning browser reports: confirmed, rejected, or unconfirmed while the API is away."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from kapso_connect import onboarding, sync
from kapso_connect.models import Connection, Customer, SetupLink
from kapso_connect.onboarding import redirects, setup_links
from kapso_connect.onboarding.numbers import Number
from kapso_connect.onboarding.redirects import Connected, Pending, Rejected
from kapso_connect.testing import Sandbox

from ..factories import (
    listening,
    make_connection,
    make_customer,
    make_link,
    new_number_id,
    remote_customer,
)
from .support import during_request, reload

pytestmark = pytest.mark.django_db(transaction=True)


def link_and_number(sandbox: Sandbox, **fields: Any) -> tuple[SetupLink, Number]:
    """A link, and a number that was added to Kapso since the link was created."""
    link = make_link(remote_customer(sandbox))
    number = sandbox.add_number(customer_id=link.customer.kapso_id, **fields)
    return link, Number(number["phone_number_id"], provisioned_phone_number_id="p-1")


def confirmed(link: SetupLink, number: Number) -> Connection:
    """Confirm a redirect, and return the number that is connected then."""
    outcome = redirects.confirm_redirect(link, number)
    assert isinstance(outcome, Connected)
    return outcome.connection


def test_confirmed_redirect_connects_the_number(sandbox: Sandbox) -> None:
    link, number = link_and_number(sandbox, phone_number="+14155552671", is_coexistence=True)
    with listening() as heard:
        connection = confirmed(link, number)
    assert connection.is_connected
    assert connection.setup_link == link
    assert connection.display_phone_number == "+1 415-555-2671"
    assert connection.connection_type == "coexistence"
    assert connection.provisioned_phone_number_id == "p-1"
    sent = heard.only("whatsapp_connected")
    assert (sent["source"], sent["setup_link"]) == ("redirect", link)


def test_redirect_after_the_webhook_only_adds_details(sandbox: Sandbox) -> None:
    link, number = link_and_number(sandbox)
    onboarding.connect(link.customer, Number(number.phone_number_id), source="webhook")
    with listening() as heard:
        connection = confirmed(link, number)
    assert heard == []
    assert connection.setup_link == link
    assert connection.display_phone_number
    link.refresh_from_db()
    asked = len(sandbox.requests())
    assert confirmed(link, number) == connection
    assert len(sandbox.requests()) == asked  # no detail is missing, so no request is made


def test_redirect_of_a_used_link_adds_it_to_a_connection_without_one(sandbox: Sandbox) -> None:
    """The webhook came when the link had expired on this site, so it did not find it."""
    link = onboarding.create_setup_link(make_customer(kapso_id=None))
    sandbox.complete(link.url)
    SetupLink.objects.update(status="expired")
    (row,) = sandbox.state()["phone_numbers"]
    number = Number(row["phone_number_id"])
    assert onboarding.connect(link.customer, number, source="webhook").setup_link is None
    with listening() as heard:
        assert confirmed(SetupLink.objects.get(), number).setup_link == link
    assert heard == []
    link.refresh_from_db()
    assert (link.status, link.setup_status) == ("used", "completed")


def old_number(sandbox: Sandbox) -> tuple[Connection, SetupLink]:
    """A number that is connected, and an invitation to connect another one."""
    customer = make_customer(kapso_id=None)
    first = onboarding.create_setup_link(customer)
    sandbox.complete(first.url)
    (row,) = sandbox.state()["phone_numbers"]
    connection = confirmed(first, Number(row["phone_number_id"]))
    return connection, onboarding.create_setup_link(customer)


def test_an_old_number_does_not_complete_a_new_invitation(sandbox: Sandbox) -> None:
    connection, link = old_number(sandbox)
    number = Number(connection.phone_number_id)
    assert confirmed(link, number) == connection
    link.refresh_from_db()
    assert (link.status, link.setup_status) == ("active", "pending")
    assert link.unconfirmed_since is None
    assert connection.setup_link != link

    # Until Kapso says that it was used.
    sandbox.patch_setup_link(link.kapso_id, status="used", whatsapp_setup_status="completed")
    assert confirmed(link, number) == connection
    link.refresh_from_db()
    assert (link.status, link.setup_status) == ("used", "completed")


def test_an_old_number_shows_success_while_the_api_is_away_and_sync_settles_the_link(
    sandbox: Sandbox,
) -> None:
    connection, link = old_number(sandbox)
    sandbox.faults(api=[{"match": ".*", "kind": "status", "status": 503}])
    assert confirmed(link, Number(connection.phone_number_id)) == connection
    link.refresh_from_db()
    assert (link.setup_status, link.unconfirmed_phone_number_id) == (
        "pending",
        connection.phone_number_id,
    )
    sandbox.clear_faults()
    sync.run()
    link.refresh_from_db()
    assert (link.status, link.setup_status, link.unconfirmed_since) == ("active", "pending", None)


@pytest.mark.parametrize("status", ["revoked", "expired"])
def test_an_ended_link_becomes_used_only_if_the_api_says_so(sandbox: Sandbox, status: str) -> None:
    link = onboarding.create_setup_link(make_customer(kapso_id=None))
    SetupLink.objects.update(status=status)
    link.refresh_from_db()
    row = sandbox.add_number(customer_id=link.customer.kapso_id)
    number = Number(row["phone_number_id"])
    assert confirmed(link, number).setup_link is None
    link.refresh_from_db()
    assert (link.status, link.setup_status) == (status, "pending")
    sandbox.patch_setup_link(link.kapso_id, status="used", whatsapp_setup_status="completed")
    assert confirmed(link, number).setup_link == link
    link.refresh_from_db()
    assert (link.status, link.setup_status) == ("used", "completed")


def test_redirect_of_a_link_that_was_replaced_does_not_complete_it(sandbox: Sandbox) -> None:
    customer = make_customer(kapso_id=None)
    older = onboarding.create_setup_link(customer)
    SetupLink.objects.update(status="used", setup_status="failed")
    latest = onboarding.create_setup_link(customer)
    number = Number(sandbox.add_number(customer_id=customer.kapso_id)["phone_number_id"])
    older.refresh_from_db()
    assert confirmed(older, number).setup_link == latest
    older.refresh_from_db()
    assert older.setup_status == "failed"


def test_redirect_after_the_webhook_succeeds_while_the_api_is_away(sandbox: Sandbox) -> None:
    link, number = link_and_number(sandbox)
    onboarding.connect(link.customer, Number(number.phone_number_id), source="webhook")
    sandbox.faults(api=[{"match": ".*", "kind": "status", "status": 500}])
    assert confirmed(link, number).is_connected


@pytest.mark.parametrize("whose", ["another customer", "the project", "nobody"])
def test_redirect_with_a_number_of_someone_else_is_rejected(sandbox: Sandbox, whose: str) -> None:
    link, _number = link_and_number(sandbox)
    numbers = {
        "another customer": lambda: sandbox.add_number(external_customer_id="other"),
        "the project": sandbox.add_number,
        "nobody": lambda: {"phone_number_id": new_number_id()},
    }
    with listening() as heard:
        outcome = redirects.confirm_redirect(link, Number(numbers[whose]()["phone_number_id"]))
    assert isinstance(outcome, Rejected)
    assert heard == []
    assert not Connection.objects.exists()
    link.refresh_from_db()
    assert link.unconfirmed_phone_number_id == ""


@pytest.mark.parametrize(
    "rule",
    [
        {"kind": "status", "status": 500},
        {"kind": "status", "status": 401},
        {"kind": "status", "status": 429, "retry_after": 60},
        {"kind": "html"},
        {"kind": "garbage"},
        {"kind": "hang", "seconds": 20},
        {"kind": "close"},
    ],
    ids=lambda rule: f"{rule['kind']} {rule.get('status', '')}",
)
def test_while_the_api_is_away_the_number_stays_unconfirmed(
    sandbox: Sandbox, configure: Any, rule
) -> None:
    configure(REQUEST_BUDGET=0.5)
    link, number = link_and_number(sandbox)
    sandbox.faults(api=[{"match": ".*", **rule}])
    started = timezone.now()
    assert redirects.confirm_redirect(link, number) == Pending()
    assert timezone.now() - started < timedelta(seconds=2)
    link.refresh_from_db()
    assert link.unconfirmed_phone_number_id == number.phone_number_id
    unconfirmed_since = link.unconfirmed_since
    assert unconfirmed_since is not None
    assert redirects.confirm_redirect(link, number) == Pending()
    link.refresh_from_db()
    assert link.unconfirmed_since == unconfirmed_since

    sandbox.clear_faults()
    assert confirmed(link, number)
    link.refresh_from_db()
    assert (link.unconfirmed_phone_number_id, link.unconfirmed_since) == ("", None)


NOT_SHOWN = {"match": "phone_numbers/", "kind": "status", "status": 404}


@pytest.mark.parametrize(
    "at_kapso",
    [
        None,
        {"status": "used", "whatsapp_setup_status": "completed"},
        {"status": "active", "whatsapp_setup_status": "processing"},
        {"status": "used", "whatsapp_setup_status": "pending"},
    ],
)
def test_number_that_the_api_does_not_show_yet_is_waited_for(
    sandbox: Sandbox, at_kapso: dict[str, str] | None
) -> None:
    link, number = link_and_number(sandbox)
    if at_kapso:  # Not by the visitor: then Kapso has to say that the link was used.
        link = onboarding.create_setup_link(link.customer)
        sandbox.patch_setup_link(link.kapso_id, **at_kapso)
    sandbox.faults(api=[{**NOT_SHOWN, "times": 1}])
    assert redirects.confirm_redirect(link, number, by_visitor=at_kapso is None) == Pending()
    assert confirmed(link, number).is_connected


def test_sync_keeps_a_visitors_report_that_the_api_does_not_show_yet(sandbox: Sandbox) -> None:
    link, number = link_and_number(sandbox)
    sandbox.faults(api=[NOT_SHOWN])
    assert redirects.confirm_redirect(link, number, by_visitor=True) == Pending()
    link.refresh_from_db()
    assert redirects.confirm_redirect(link, number, source="sync") == Pending()
    link.refresh_from_db()
    assert link.unconfirmed_phone_number_id == number.phone_number_id


def test_details_of_a_known_number_are_filled_in_when_the_api_answers(sandbox: Sandbox) -> None:
    link, number = link_and_number(sandbox, phone_number="+14155552671")
    onboarding.connect(link.customer, Number(number.phone_number_id), source="webhook")
    sandbox.faults(api=[{"match": "phone_numbers", "kind": "status", "status": 403}])
    assert confirmed(link, number).display_phone_number == ""
    sandbox.clear_faults()
    assert confirmed(link, number).display_phone_number == "+1 415-555-2671"


# Without a number


def test_report_without_a_number_is_settled_by_sync(sandbox: Sandbox) -> None:
    link, number = link_and_number(sandbox)
    sandbox.faults(api=[{"match": ".*", "kind": "status", "status": 503}])
    for _ in range(2):
        assert redirects.confirm_redirect(link, Number(""), by_visitor=True) == Pending()
        link.refresh_from_db()
    assert (link.unconfirmed_phone_number_id, link.unconfirmed_since is not None) == ("", True)
    assert Customer.objects.get(pk=link.customer_id).status == "confirming"
    sandbox.clear_faults()
    assert redirects.confirm_redirect(link, Number(""), source="sync") == Connected(
        Connection.objects.get(phone_number_id=number.phone_number_id)
    )
    link.refresh_from_db()
    assert (link.setup_status, link.unconfirmed_since) == ("completed", None)


def test_report_without_a_number_keeps_no_webhook_from_finding_the_link(sandbox: Sandbox) -> None:
    link, number = link_and_number(sandbox)
    sandbox.add_number(customer_id=link.customer.kapso_id)
    assert redirects.confirm_redirect(link, Number(""), by_visitor=True) == Pending()
    connection = onboarding.connect(link.customer, number, source="webhook")
    assert connection.setup_link == link


def test_report_without_a_number_is_forgotten_where_no_number_is_new(sandbox: Sandbox) -> None:
    link, _number = link_and_number(sandbox)
    sandbox.add_number(customer_id=link.customer.kapso_id)
    assert redirects.confirm_redirect(link, Number("")) == Pending()
    link.refresh_from_db()
    assert isinstance(redirects.confirm_redirect(link, Number(""), source="sync"), Rejected)
    link.refresh_from_db()
    assert link.unconfirmed_since is None
    assert not Connection.objects.exists()


def test_number_that_follows_a_report_without_one_is_waited_for(sandbox: Sandbox) -> None:
    link, number = link_and_number(sandbox)
    sandbox.faults(api=[{"match": ".*", "kind": "status", "status": 503}])
    assert redirects.confirm_redirect(link, Number("")) == Pending()
    assert redirects.confirm_redirect(link, number) == Pending()
    link.refresh_from_db()
    assert link.unconfirmed_phone_number_id == number.phone_number_id


def test_number_that_the_webhook_connected_before_the_api_shows_it(sandbox: Sandbox) -> None:
    link, number = link_and_number(sandbox)
    onboarding.connect(link.customer, Number(number.phone_number_id), source="webhook")
    sandbox.faults(api=[NOT_SHOWN])
    link.refresh_from_db()
    assert confirmed(link, number).is_connected


def test_number_that_does_not_appear_is_not_waited_for_again(sandbox: Sandbox) -> None:
    link = onboarding.create_setup_link(make_customer(kapso_id=None))
    number = Number(new_number_id())
    assert redirects.confirm_redirect(link, number, by_visitor=True) == Pending()
    SetupLink.objects.update(unconfirmed_since=timezone.now() - timedelta(minutes=1))
    for _ in range(2):
        link.refresh_from_db()
        outcome = redirects.confirm_redirect(link, number, by_visitor=True)
        assert isinstance(outcome, Rejected)
    assert sync.run().redirects == 1
    link.refresh_from_db()
    assert link.unconfirmed_phone_number_id == ""
    assert Customer.objects.get(pk=link.customer_id).status == "invited"


def test_only_a_visitor_replaces_an_unconfirmed_number(sandbox: Sandbox) -> None:
    link, number = link_and_number(sandbox)
    sandbox.faults(api=[{"match": ".*", "kind": "status", "status": 503}])

    def report(number_id: str, *, by_visitor: bool) -> str:
        outcome = redirects.confirm_redirect(link, Number(number_id), by_visitor=by_visitor)
        assert outcome == Pending()
        link.refresh_from_db()
        return link.unconfirmed_phone_number_id

    assert report("111", by_visitor=False) == "111"
    since = link.unconfirmed_since
    assert report("222", by_visitor=False) == "111"
    assert link.unconfirmed_since == since
    assert report(number.phone_number_id, by_visitor=True) == number.phone_number_id
    assert report("333", by_visitor=False) == number.phone_number_id
    assert report("444", by_visitor=True) == number.phone_number_id

    sandbox.clear_faults()
    assert isinstance(redirects.confirm_redirect(link, Number("333")), Rejected)
    assert confirmed(link, number).setup_link == link


def test_report_of_a_foreign_number_stops_nobody(sandbox: Sandbox) -> None:
    """It neither keeps the customer's own number from being confirmed, nor the webhook from finding
    the link, nor the customer's status from being right after kapso_sync."""
    link, number = link_and_number(sandbox)
    sandbox.faults(api=[{"match": ".*", "kind": "status", "status": 503}])
    assert redirects.confirm_redirect(link, Number("666")) == Pending()
    assert redirects.confirm_redirect(link, number) == Pending()
    assert Customer.objects.get(pk=link.customer_id).status == "confirming"
    connection = onboarding.connect(link.customer, Number(number.phone_number_id), source="webhook")
    assert connection.setup_link == link

    other = make_link(remote_customer(sandbox))
    assert redirects.confirm_redirect(other, Number("666")) == Pending()
    sandbox.clear_faults()
    other.refresh_from_db()
    redirects.confirm_redirect(other, Number("666"), source="sync")
    assert Customer.objects.get(pk=other.customer_id).status == "invited"


def test_link_connects_a_number_once(sandbox: Sandbox) -> None:
    link, number = link_and_number(sandbox)
    connection = confirmed(link, number)
    onboarding.disconnect(number.phone_number_id, source="webhook")
    assert isinstance(redirects.confirm_redirect(link, number), Rejected)
    connection.refresh_from_db()
    assert not connection.is_connected


def test_redirect_with_a_number_that_was_just_disconnected_stays_unconfirmed(
    sandbox: Sandbox,
) -> None:
    link, number = link_and_number(sandbox)
    make_connection(
        link.customer,
        phone_number_id=number.phone_number_id,
        status="disconnected",
        disconnected_at=timezone.now(),
    )
    with listening() as heard:
        assert redirects.confirm_redirect(link, number) == Pending()
    assert heard == []


def test_number_disconnected_during_the_request_stays_disconnected(sandbox: Sandbox) -> None:
    link, number = link_and_number(sandbox)
    connection = make_connection(link.customer, phone_number_id=number.phone_number_id)
    with listening() as heard:
        found = during_request(
            sandbox,
            "^GET .*/phone_numbers/",
            lambda: onboarding.disconnect(number.phone_number_id, source="webhook"),
            lambda: redirects.confirm_redirect(link, number),
        )
    assert found == Pending()
    assert heard.names() == ["whatsapp_disconnected"]
    assert not reload(connection).is_connected


def test_number_disconnected_while_the_api_is_away_stays_unconfirmed(
    sandbox: Sandbox, configure: Any
) -> None:
    configure(REQUEST_BUDGET=1.0)
    link, number = link_and_number(sandbox)
    make_connection(link.customer, phone_number_id=number.phone_number_id)
    found = during_request(
        sandbox,
        "^GET .*/phone_numbers/",
        lambda: onboarding.disconnect(number.phone_number_id, source="webhook"),
        lambda: redirects.confirm_redirect(link, number),
        kind="hang",
        rules_afterwards=({"kind": "status", "status": 503},),
    )
    assert found == Pending()
    link.refresh_from_db()
    assert link.unconfirmed_phone_number_id == number.phone_number_id


def test_redirect_with_a_disconnected_number_is_rejected(sandbox: Sandbox) -> None:
    link, number = link_and_number(sandbox, status="DISCONNECTED")
    assert isinstance(redirects.confirm_redirect(link, number), Rejected)
    assert not Connection.objects.filter(status="connected").exists()


@pytest.mark.parametrize("zone", ["America/New_York", "Asia/Kolkata"])
def test_site_without_time_zones(sandbox: Sandbox, settings: Any, zone: str) -> None:
    settings.USE_TZ = False
    settings.TIME_ZONE = zone
    customer = make_customer(kapso_id=None)
    first = onboarding.create_setup_link(customer)
    assert first.expires_at is not None
    days = first.expires_at - timezone.now()
    assert timedelta(days=29) < days <= timedelta(days=30, minutes=1)
    second = onboarding.create_setup_link(customer)
    assert {link.pk: link.is_usable for link in SetupLink.objects.all()} == {
        first.pk: False,
        second.pk: True,
    }
    number = sandbox.add_number(customer_id=customer.kapso_id)
    link, reported = SetupLink.objects.get(pk=second.pk), Number(number["phone_number_id"])
    assert confirmed(link, reported)
    assert not setup_links.expire_links()
