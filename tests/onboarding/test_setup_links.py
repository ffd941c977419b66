"""What staff do with links and numbers, below the admin: each once, in the order Kapso decides."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.utils import timezone

from kapso_connect import exceptions, onboarding
from kapso_connect.exceptions import KapsoError, KapsoRateLimited, KapsoUnavailable
from kapso_connect.kapso.client import KapsoClient
from kapso_connect.kapso.types import KapsoHealth, KapsoSetupLink
from kapso_connect.models import Connection, Customer, SetupLink, TimelineEvent
from kapso_connect.onboarding import customers, setup_links
from kapso_connect.testing import Sandbox

from ..factories import (
    DELETED,
    listening,
    make_connection,
    make_customer,
    make_link,
    payload_for,
    post,
    remote_customer,
)

pytestmark = pytest.mark.django_db(transaction=True)

LATER = timedelta(days=60)


@pytest.fixture
def actor() -> User:
    return User.objects.create_user("ada")


@pytest.fixture
def link(sandbox: Sandbox) -> SetupLink:
    return onboarding.create_setup_link(make_customer(kapso_id=None))


@pytest.fixture
def number(sandbox: Sandbox) -> Connection:
    customer = remote_customer(sandbox)
    remote = sandbox.add_number(customer_id=customer.kapso_id)
    return make_connection(customer, phone_number_id=remote["phone_number_id"])


def events(kind: str) -> list[TimelineEvent]:
    return list(TimelineEvent.objects.filter(kind=kind))


def away(sandbox: Sandbox) -> None:
    sandbox.faults(api=[{"kind": "status", "status": 503}])


@pytest.fixture(autouse=True)
def _short_budget(configure: Any) -> None:
    configure(API_BUDGET=1.0)


# Extending


def test_extending_moves_the_end_at_kapso_and_here(
    sandbox: Sandbox, link: SetupLink, actor: User
) -> None:
    until = (timezone.now() + LATER).replace(microsecond=0)
    assert onboarding.extend_setup_link(link, until, actor=actor)
    link.refresh_from_db()
    assert link.expires_at == until
    (event,) = events("setup_link_extended")
    assert (event.actor, event.setup_link) == (actor, link)
    (remote,) = sandbox.state()["setup_links"]
    with KapsoClient.from_settings() as client:
        (seen,) = client.list_setup_links(link.customer.kapso_id or "")
    assert (seen.id, seen.expires_at) == (remote["id"], until)


def test_nothing_is_extended_into_the_past(sandbox: Sandbox, link: SetupLink) -> None:
    asked = len(sandbox.requests())
    with pytest.raises(ValueError, match="future"):
        onboarding.extend_setup_link(link, timezone.now())
    assert len(sandbox.requests()) == asked


@pytest.mark.parametrize("status", ["used", "revoked"])
def test_what_ended_at_kapso_meanwhile_is_not_extended_but_followed(
    sandbox: Sandbox, link: SetupLink, status: str
) -> None:
    sandbox.patch_setup_link(link.kapso_id, status=status)
    assert not onboarding.extend_setup_link(link, timezone.now() + LATER)
    link.refresh_from_db()
    assert link.status == status
    assert events("setup_link_extended") == []


@pytest.mark.parametrize("status", ["used", "revoked", "expired"])
def test_what_ended_here_is_not_asked_about(sandbox: Sandbox, link: SetupLink, status: str) -> None:
    link.status = status
    asked = len(sandbox.requests())
    assert not onboarding.extend_setup_link(link, timezone.now() + LATER)
    assert len(sandbox.requests()) == asked


def test_while_kapso_is_away_the_link_stays_as_it_was(sandbox: Sandbox, link: SetupLink) -> None:
    away(sandbox)
    with pytest.raises(KapsoUnavailable):
        onboarding.extend_setup_link(link, timezone.now() + LATER)
    with pytest.raises(KapsoUnavailable):
        onboarding.revoke_setup_link(link)
    fresh = SetupLink.objects.select_related("customer").get()
    assert (fresh.status, fresh.expires_at) == ("active", link.expires_at)
    assert fresh.customer.connect_key
    assert not TimelineEvent.objects.exclude(kind="setup_link_created").exists()


# Revoking


def test_revoking_ends_the_link_and_the_address_and_says_who_did(
    sandbox: Sandbox, link: SetupLink, actor: User
) -> None:
    assert onboarding.revoke_setup_link(link, actor=actor)
    assert not onboarding.revoke_setup_link(link, actor=actor)
    assert [row["status"] for row in sandbox.state()["setup_links"]] == ["revoked"]
    (event,) = events("setup_link_revoked")
    assert event.actor == actor
    assert Customer.objects.get().connect_key is None


@pytest.mark.parametrize(
    "end",
    [{"status": "expired"}, {"status": "used", "setup_status": "failed"}],
    ids=["expired", "failed"],
)
def test_an_invitation_is_withdrawn_though_its_link_has_ended(
    sandbox: Sandbox, link: SetupLink, end: dict[str, str]
) -> None:
    SetupLink.objects.update(**end)
    link.refresh_from_db()
    asked = len(sandbox.requests())
    assert onboarding.revoke_setup_link(link)
    assert len(sandbox.requests()) == asked
    assert SetupLink.objects.get().status == "revoked"
    assert Customer.objects.get().connect_key is None


def test_what_connected_a_number_is_not_revoked(link: SetupLink) -> None:
    SetupLink.objects.update(status="used", setup_status="completed")
    link.refresh_from_db()
    assert not onboarding.revoke_setup_link(link)
    assert Customer.objects.get().connect_key


def test_what_completes_while_kapso_is_asked_stays_completed(
    link: SetupLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = KapsoClient.update_setup_link

    def answered_late(*args: Any) -> KapsoSetupLink:
        SetupLink.objects.update(status="used", setup_status="completed")
        return ask(*args)

    monkeypatch.setattr(KapsoClient, "update_setup_link", answered_late)
    assert not onboarding.revoke_setup_link(link)
    assert SetupLink.objects.get().status == "used"
    assert Customer.objects.get().connect_key


def test_revoking_an_old_link_leaves_the_newest_ones_address(
    sandbox: Sandbox, link: SetupLink
) -> None:
    SetupLink.objects.update(status="expired")
    link.refresh_from_db()
    onboarding.create_setup_link(link.customer)
    assert onboarding.revoke_setup_link(link)
    assert Customer.objects.get().connect_key
    assert SetupLink.objects.get(is_latest=True).status == "active"


def test_a_link_that_was_used_at_kapso_is_followed_instead(
    sandbox: Sandbox, link: SetupLink
) -> None:
    sandbox.patch_setup_link(link.kapso_id, status="used")
    assert not onboarding.revoke_setup_link(link)
    assert SetupLink.objects.get().status == "used"
    assert events("setup_link_revoked") == []
    assert Customer.objects.get().connect_key


def test_a_link_that_is_gone_at_kapso_is_revoked(sandbox: Sandbox, link: SetupLink) -> None:
    sandbox.reset()
    assert onboarding.revoke_setup_link(link)
    assert SetupLink.objects.get().status == "revoked"


# Sent and opened


@pytest.mark.parametrize(
    ("channel", "to", "data"),
    [
        ("email", "a@example.com", {"channel": "email", "to": "a@example.com"}),
        ("qr", "", {"channel": "qr"}),
    ],
)
def test_what_is_sent_is_noted(actor: User, channel: str, to: str, data: dict[str, str]) -> None:
    link = make_link()
    event = setup_links.record_sent(link, channel, actor=actor, to=to)
    event.refresh_from_db()
    assert (event.kind, event.data, event.actor) == ("setup_link_sent", data, actor)
    assert (event.customer, event.setup_link) == (link.customer, link)


def test_a_link_is_opened_once() -> None:
    link = make_link()
    assert setup_links.record_opened(link, source="redirect")
    opened_at = SetupLink.objects.get().opened_at
    assert opened_at
    assert not setup_links.record_opened(link, source="sync")
    assert SetupLink.objects.get().opened_at == opened_at
    (event,) = events("setup_link_opened")
    assert event.source == "redirect"


@pytest.mark.parametrize(
    ("status", "opened"),
    [(None, False), ("pending", False), ("processing", True), ("failed", True)],
)
def test_the_api_tells_that_a_link_was_opened(
    sandbox: Sandbox, link: SetupLink, status: str | None, opened: bool
) -> None:
    if status:
        sandbox.patch_setup_link(link.kapso_id, whatsapp_setup_status=status)
    with KapsoClient.from_settings() as client:
        (remote,) = client.list_setup_links(link.customer.kapso_id or "")
    for _ in range(2):
        setup_links.apply_remote_link(link, remote)
    assert bool(SetupLink.objects.get().opened_at) == opened
    assert len(events("setup_link_opened")) == opened


# Health


def test_health_is_recorded_with_what_is_wrong_and_who_asked(
    sandbox: Sandbox, number: Connection, actor: User
) -> None:
    sandbox.patch_number(number.phone_number_id, quality_rating="RED")
    onboarding.check_health(number, actor=actor)
    number.refresh_from_db()
    assert number.health_status == "degraded"
    assert "quality_rating" in number.health_error
    assert number.health_checked_at
    (event,) = events("health_checked")
    assert (event.actor, event.data["status"]) == (actor, "degraded")


def test_what_kapso_says_and_nobody_knows_is_an_error(
    number: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = KapsoHealth(status="purple", timestamp=timezone.now(), error="x" * 5000)
    monkeypatch.setattr(KapsoClient, "get_phone_number_health", lambda *args: odd)
    onboarding.check_health(number)
    number.refresh_from_db()
    assert (number.health_status, len(number.health_error)) == ("error", 2000)


def test_asking_too_often_records_nothing(sandbox: Sandbox, number: Connection) -> None:
    sandbox.faults(api=[{"kind": "status", "status": 429, "retry_after": 60}])
    with pytest.raises(KapsoRateLimited):
        onboarding.check_health(number)
    number.refresh_from_db()
    assert (number.health_status, events("health_checked")) == ("", [])


# Disconnecting


def test_disconnecting_removes_the_number_and_ends_the_address(
    sandbox: Sandbox, number: Connection, actor: User
) -> None:
    Customer.objects.update(connect_key="key")
    with listening() as heard:
        assert not onboarding.disconnect_number(number, actor=actor).is_connected
    assert heard.names() == ["whatsapp_disconnected"]
    (event,) = events("disconnected")
    assert (event.actor, event.source, event.data) == (actor, "manual", {"reason": "staff"})
    assert Customer.objects.get(pk=number.customer_id).connect_key is None
    (request,) = (row for row in sandbox.requests() if row["method"] == "DELETE")
    assert request["path"].endswith(number.phone_number_id)


def test_disconnecting_ends_the_links_first(
    sandbox: Sandbox, number: Connection, actor: User
) -> None:
    link = onboarding.create_setup_link(number.customer)
    sandbox.faults(api=[{"match": "^PATCH", "kind": "status", "status": 422}])
    with pytest.raises(KapsoError):
        onboarding.disconnect_number(number, actor=actor)
    number.refresh_from_db()
    assert number.is_connected, "a link that cannot be ended could connect it again"
    sandbox.clear_faults()
    onboarding.disconnect_number(number, actor=actor)
    link.refresh_from_db()
    assert link.status == "revoked"
    (event,) = events("setup_link_revoked")
    assert event.actor == actor


@pytest.mark.parametrize("late", [False, True])
def test_kapsos_own_word_of_it_is_the_same_disconnection(
    sandbox: Sandbox,
    number: Connection,
    actor: User,
    monkeypatch: pytest.MonkeyPatch,
    late: bool,
) -> None:
    """The webhook can be here before the API's answer, or after it."""
    ask = KapsoClient.delete_phone_number

    def tell() -> None:
        payload = payload_for(number.customer, number.phone_number_id)
        assert post(payload, event=DELETED).status_code == 200

    def delete(client: KapsoClient, phone_number_id: str) -> None:
        ask(client, phone_number_id)
        if not late:
            tell()

    monkeypatch.setattr(KapsoClient, "delete_phone_number", delete)
    with listening("whatsapp_disconnected") as heard:
        onboarding.disconnect_number(number, actor=actor)
        if late:
            tell()
    assert len(heard) == 1
    (event,) = events("disconnected")
    assert event.actor == actor
    number.refresh_from_db()
    assert (number.status, number.disconnect_reason) == ("disconnected", "staff")


def test_a_number_that_kapso_no_longer_has_is_disconnected_as_asked(
    sandbox: Sandbox, actor: User
) -> None:
    connection = make_connection(phone_number_id="404404")
    assert not onboarding.disconnect_number(connection, actor=actor).is_connected
    assert len(events("disconnected")) == 1


def test_while_kapso_is_away_the_number_stays_connected(
    sandbox: Sandbox, number: Connection
) -> None:
    Customer.objects.update(connect_key="key")
    away(sandbox)
    with pytest.raises(KapsoUnavailable):
        onboarding.disconnect_number(number)
    number.refresh_from_db()
    assert number.is_connected
    assert Customer.objects.get(pk=number.customer_id).connect_key == "key"


def test_a_disconnected_number_is_left_alone(sandbox: Sandbox) -> None:
    connection = make_connection(status="disconnected")
    onboarding.disconnect_number(connection)
    assert sandbox.requests() == []


def test_a_number_that_connected_anew_meanwhile_stays_connected(
    number: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    def connect_anew(*args: Any) -> None:
        Connection.objects.update(connected_at=timezone.now())

    monkeypatch.setattr(KapsoClient, "delete_phone_number", connect_anew)
    with pytest.raises(exceptions.TryLater):
        onboarding.disconnect_number(number)
    number.refresh_from_db()
    assert number.is_connected


# Turns


def test_of_all_who_read_the_same_one_takes_the_turn() -> None:
    pk = make_customer().pk
    first, second = (Customer.objects.get(pk=pk) for _ in range(2))
    assert customers.touch_if_unchanged(first)
    assert not customers.touch_if_unchanged(second)
    assert customers.touch_if_unchanged(Customer.objects.get(pk=pk))


def test_nobody_takes_a_turn_about_a_customer_who_is_gone() -> None:
    customer = make_customer()
    Customer.objects.all().delete()
    assert not customers.touch_if_unchanged(customer)
