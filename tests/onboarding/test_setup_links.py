"""Setup links: created, extended, revoked, sent, opened and failed, each once."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import AnonymousUser, User
from django.core.exceptions import ImproperlyConfigured
from django.db import connection as database
from django.db import transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from kapso_connect import onboarding, sync
from kapso_connect.exceptions import (
    CalledInTransaction,
    InvalidOptions,
    KapsoCredentialsError,
    KapsoError,
    KapsoUnavailable,
    KapsoValidationError,
)
from kapso_connect.kapso.client import KapsoClient
from kapso_connect.kapso.error_codes import SETUP_ERRORS
from kapso_connect.models import Customer, SetupLink, TimelineEvent
from kapso_connect.onboarding import invitations, redirects, renewal, setup_links
from kapso_connect.onboarding.numbers import Number
from kapso_connect.onboarding.remote_numbers import refresh_number
from kapso_connect.phone_numbers import only_digits
from kapso_connect.testing import Sandbox

from ..factories import listening, make_connection, make_customer, make_link, remote_customer
from .support import during_request, events, links_at_kapso

pytestmark = pytest.mark.django_db(transaction=True)


LATER = timedelta(days=60)


def unregistered() -> Customer:
    return make_customer(kapso_id=None, external_customer_id=str(uuid.uuid4()))


def api_posts(sandbox: Sandbox) -> list[str]:
    return [row["path"] for row in sandbox.requests() if row["method"] == "POST"]


# Creating


def test_created_link_is_recorded_and_announced(sandbox: Sandbox) -> None:
    customer = unregistered()
    staff = User.objects.create(username="staff")
    with listening() as heard:
        link = onboarding.create_setup_link(customer, created_by=staff)

    (remote,) = sandbox.state()["setup_links"]
    assert link.kapso_id == remote["id"]
    assert link.url == remote["url"]
    assert remote["success_redirect_url"] == "https://site.example/whatsapp/success/"
    assert remote["failure_redirect_url"].startswith("https://site.example/whatsapp/failed/")
    assert link.is_usable
    assert link.created_by == staff
    assert link.expires_at is not None
    assert link.expires_at > timezone.now() + timedelta(days=29)

    (registered,) = sandbox.state()["customers"]
    customer.refresh_from_db()
    assert customer.kapso_id == registered["id"]
    assert registered["external_customer_id"] == customer.external_customer_id
    assert registered["name"] == customer.name

    sent = heard.only("setup_link_created")
    assert sent["sender"] is SetupLink
    assert (sent["setup_link"], sent["customer"]) == (link, customer)


@pytest.mark.skipif(database.vendor != "postgresql", reason="others have no such lock")
def test_recording_a_link_does_not_block_writes_to_the_timeline(sandbox: Sandbox) -> None:
    # A process that holds a link's row and needs the customer's would cause a deadlock.
    with CaptureQueriesContext(database) as queries:
        onboarding.create_setup_link(make_customer(kapso_id=None))
    locks = [query["sql"] for query in queries if "FOR " in query["sql"]]
    assert len(locks) == 1
    assert "FOR NO KEY UPDATE" in locks[0]


def test_new_link_revokes_the_one_before(sandbox: Sandbox) -> None:
    customer = unregistered()
    first = onboarding.create_setup_link(customer)
    second = onboarding.create_setup_link(customer)
    first.refresh_from_db()
    assert (first.status, second.status) == ("revoked", "active")
    kinds = list(TimelineEvent.objects.order_by("pk").values_list("kind", flat=True))
    assert kinds == ["setup_link_created", "setup_link_revoked", "setup_link_created"]


def test_of_two_links_recorded_out_of_order_the_later_one_stays_active(sandbox: Sandbox) -> None:
    # Two members of staff: Kapso answers the first request last.
    customer = remote_customer(sandbox)
    first = during_request(
        sandbox,
        "^POST .*/setup_links$",
        lambda: onboarding.create_setup_link(Customer.objects.get()),
        lambda: onboarding.create_setup_link(customer),
    )
    (active,) = SetupLink.objects.filter(status="active")
    assert first.status == "revoked"
    remote = {row["id"]: row["status"] for row in links_at_kapso(sandbox)}
    assert remote == {active.kapso_id: "active", first.kapso_id: "revoked"}


def test_options_override_the_customer_and_the_settings(sandbox: Sandbox, settings) -> None:
    settings.KAPSO_CONNECT = {
        **settings.KAPSO_CONNECT,
        "SETUP_LINK_DEFAULTS": {"language": "es", "allowed_connection_types": ["dedicated"]},
    }
    customer = make_customer(kapso_id=None, language="pt")
    assert onboarding.create_setup_link(customer).options["language"] == "pt"
    link = onboarding.create_setup_link(customer, options={"language": "hi"})
    remote = sandbox.state()["setup_links"][-1]
    assert remote["id"] == link.kapso_id
    assert (remote["language"], remote["allowed_connection_types"]) == ("hi", ["dedicated"])


@pytest.mark.parametrize(
    ("known", "asked"),
    [
        ("+1 415-555-0123", "+14155550123"),
        ("+52 1 55 1234 5678", "+52 55 1234 5678"),
        ("+52 55 1234 5678", "+5215512345678"),
        ("+54 9 11 2345-6789", "+541123456789"),
        ("+99 912 345 678", "+99912345678"),
    ],
)
def test_number_is_reconnected_as_kapso_wrote_it(sandbox: Sandbox, known: str, asked: str) -> None:
    digits = f"+{only_digits(known)}"
    row = sandbox.add_number(external_customer_id="acme", phone_number=digits)
    customer = make_customer(kapso_id=row["customer_id"], external_customer_id="acme")
    make_connection(customer, display_phone_number="+1 202-555-0100")
    number = make_connection(
        customer,
        phone_number_id=row["phone_number_id"],
        display_phone_number=known,
        connection_type="dedicated",
    )
    sandbox.patch_number(number.phone_number_id, is_coexistence=False)
    for types in ({}, {"allowed_connection_types": ["dedicated"]}):
        options = {"reconnect_phone_number": asked, **types}
        link = onboarding.create_setup_link(customer, options=options)
        assert link.options["reconnect_phone_number"] == digits
    before = len(sandbox.requests())
    for changes, wrong in (
        ({"allowed_connection_types": ["coexistence"]}, "allowed_connection_types"),
        ({"provision_phone_number": True}, "provision_phone_number"),
        ({"reconnect_phone_number": "+14155550199"}, "reconnect_phone_number"),
    ):
        options = {"reconnect_phone_number": asked, **changes}
        with pytest.raises(InvalidOptions) as caught:
            onboarding.create_setup_link(customer, options=options)
        assert list(caught.value.errors) == [wrong]
    assert len(sandbox.requests()) == before


def test_kapso_decides_about_a_number_that_is_not_known_here(sandbox: Sandbox) -> None:
    row = sandbox.add_number(external_customer_id="acme", phone_number="+14155550123")
    customer = make_customer(kapso_id=row["customer_id"], external_customer_id="acme")
    options = {"reconnect_phone_number": "+14155550123"}
    assert onboarding.create_setup_link(customer, options=options)
    before = len(sandbox.requests())
    elsewhere = make_connection(display_phone_number="+1 415-555-0123")
    with pytest.raises(InvalidOptions, match="one of this customer's"):
        onboarding.create_setup_link(customer, options=options)
    elsewhere.delete()
    make_connection(customer, display_phone_number="+1 202-555-0100")
    with pytest.raises(InvalidOptions, match="one of this customer's"):
        onboarding.create_setup_link(customer, options=options)
    assert len(sandbox.requests()) == before
    # Connected by a webhook, which does not say the number.
    make_connection(customer, phone_number_id=row["phone_number_id"])
    link = onboarding.create_setup_link(customer, options=options)
    assert link.options["reconnect_phone_number"] == "+14155550123"


def test_invalid_options_are_rejected_before_any_request(sandbox: Sandbox) -> None:
    with pytest.raises(InvalidOptions):
        onboarding.create_setup_link(unregistered(), options={"language": "xx"})
    assert sandbox.requests() == []


def test_without_a_public_url_the_error_says_what_to_set(sandbox: Sandbox, configure: Any) -> None:
    configure(PUBLIC_URL="")
    with pytest.raises(ImproperlyConfigured, match="PUBLIC_URL"):
        onboarding.create_setup_link(unregistered())
    assert sandbox.requests() == []


def test_anonymous_creator_is_not_recorded(sandbox: Sandbox) -> None:
    assert (
        onboarding.create_setup_link(unregistered(), created_by=AnonymousUser()).created_by is None
    )


@pytest.mark.parametrize("kind", ["apply_then_500", "apply_then_close"])
def test_lost_response_creates_no_second_customer_or_link(sandbox: Sandbox, kind: str) -> None:
    sandbox.faults(
        api=[
            {"match": "POST .*/customers$", "kind": kind, "times": 1},
            {"match": "POST .*/setup_links", "kind": kind, "times": 1},
        ]
    )
    link = onboarding.create_setup_link(unregistered())
    state = sandbox.state()
    assert [row["id"] for row in state["setup_links"]] == [link.kapso_id]
    assert len(state["customers"]) == 1
    assert len(api_posts(sandbox)) == 2


@pytest.mark.parametrize(
    ("rule", "error"),
    [
        ({"kind": "status", "status": 401}, KapsoCredentialsError),
        ({"kind": "status", "status": 500}, KapsoUnavailable),
        ({"kind": "close"}, KapsoUnavailable),
        ({"kind": "html"}, KapsoError),
        ({"kind": "garbage"}, KapsoError),
    ],
)
def test_failed_request_records_nothing(sandbox: Sandbox, rule, error) -> None:
    sandbox.faults(api=[{"match": "setup_links", **rule}])
    customer = unregistered()
    with listening() as heard, pytest.raises(error) as caught:
        onboarding.create_setup_link(customer)
    assert "setup link" in str(caught.value)
    assert not SetupLink.objects.exists()
    assert heard == []
    sandbox.clear_faults()
    assert onboarding.create_setup_link(customer).is_usable


def test_no_request_is_made_inside_a_transaction(
    sandbox: Sandbox, requests_in_transaction: list[bool]
) -> None:
    customer = unregistered()
    link = onboarding.create_setup_link(customer)
    number = sandbox.add_number(customer_id=customer.kapso_id)
    redirects.confirm_redirect(link, Number(number["phone_number_id"]))
    onboarding.revoke_setup_link(onboarding.create_setup_link(customer))
    assert len(requests_in_transaction) >= 5
    assert not any(requests_in_transaction)


def test_whatever_asks_kapso_is_refused_inside_a_transaction(sandbox: Sandbox) -> None:
    customer = unregistered()
    link = onboarding.create_setup_link(customer)
    remote = sandbox.add_number(customer_id=customer.kapso_id)
    number = Number(remote["phone_number_id"])
    connection = onboarding.connect(customer, number, source="webhook")
    asked, client = len(sandbox.requests()), KapsoClient.from_settings()
    batch = invitations.make_batch([customer.pk])
    invitations.start(batch)
    calls: list[Callable[[], object]] = [
        lambda: onboarding.create_setup_link(customer),
        lambda: onboarding.create_setup_link(customer, client=client),
        lambda: onboarding.create_setup_link(customer, options={"nonsense": 1}),
        lambda: onboarding.extend_setup_link(link, timezone.now() + LATER),
        lambda: onboarding.revoke_setup_link(link),
        lambda: onboarding.disconnect_number(connection),
        lambda: onboarding.check_health(connection),
        lambda: renewal.usable_setup_link(customer),
        lambda: redirects.confirm_redirect(link, number),
        lambda: refresh_number(number.phone_number_id, source="sync", client=client),
        lambda: invitations.work(batch.pk),
        sync.run,
    ]
    for call in calls:
        with (
            pytest.raises(CalledInTransaction, match="non_atomic_requests"),
            transaction.atomic(),
        ):
            call()
    assert len(sandbox.requests()) == asked
    assert list(SetupLink.objects.all()) == [link]


def test_after_an_unknown_outcome_the_link_is_looked_for(sandbox: Sandbox) -> None:
    customer = unregistered()
    sandbox.faults(api=[{"match": "POST .*setup_links", "kind": "status", "status": 500}])
    with pytest.raises(KapsoUnavailable, match="create setup link"):
        onboarding.create_setup_link(customer)
    assert [row["method"] for row in sandbox.requests()][-2:] == ["POST", "GET"]


def test_after_a_rejection_no_link_is_looked_for(sandbox: Sandbox) -> None:
    customer = unregistered()
    sandbox.faults(api=[{"match": "POST .*setup_links", "kind": "status", "status": 422}])
    with pytest.raises(KapsoValidationError):
        onboarding.create_setup_link(customer)
    assert sandbox.requests()[-1]["method"] == "POST"


# Extending


def test_extending_changes_the_end_at_kapso_and_here(
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


def test_link_is_not_extended_into_the_past(sandbox: Sandbox, link: SetupLink) -> None:
    asked = len(sandbox.requests())
    with pytest.raises(ValueError, match="future"):
        onboarding.extend_setup_link(link, timezone.now())
    assert len(sandbox.requests()) == asked


@pytest.mark.parametrize("status", ["used", "revoked"])
def test_link_that_ended_at_kapso_is_not_extended_but_updated(
    sandbox: Sandbox, link: SetupLink, status: str
) -> None:
    sandbox.patch_setup_link(link.kapso_id, status=status)
    assert not onboarding.extend_setup_link(link, timezone.now() + LATER)
    link.refresh_from_db()
    assert link.status == status
    assert events("setup_link_extended") == []


@pytest.mark.parametrize("status", ["used", "revoked", "expired"])
def test_extending_a_link_that_ended_makes_no_request(
    sandbox: Sandbox, link: SetupLink, status: str
) -> None:
    link.status = status
    asked = len(sandbox.requests())
    assert not onboarding.extend_setup_link(link, timezone.now() + LATER)
    assert len(sandbox.requests()) == asked


def test_while_kapso_is_away_the_link_is_unchanged(
    sandbox: Sandbox, link: SetupLink, configure: Any
) -> None:
    configure(API_BUDGET=1.0)
    sandbox.faults(api=[{"kind": "status", "status": 503}])
    with pytest.raises(KapsoUnavailable):
        onboarding.extend_setup_link(link, timezone.now() + LATER)
    with pytest.raises(KapsoUnavailable):
        onboarding.revoke_setup_link(link)
    fresh = SetupLink.objects.select_related("customer").get()
    assert (fresh.status, fresh.expires_at) == ("active", link.expires_at)
    assert fresh.customer.connect_key
    assert not TimelineEvent.objects.exclude(kind="setup_link_created").exists()


# Revoking


def test_revoking_twice_is_recorded_once(sandbox: Sandbox) -> None:
    link = onboarding.create_setup_link(unregistered())
    onboarding.revoke_setup_link(link)
    link.refresh_from_db()
    assert link.status == "revoked"
    assert sandbox.state()["setup_links"][0]["status"] == "revoked"
    onboarding.revoke_setup_link(link)
    assert TimelineEvent.objects.filter(kind="setup_link_revoked").count() == 1


def test_revoking_a_link_of_an_unknown_customer(sandbox: Sandbox) -> None:
    link = make_link()
    onboarding.revoke_setup_link(link)
    link.refresh_from_db()
    assert link.status == "revoked"


def test_link_that_kapso_does_not_revoke_is_unchanged(sandbox: Sandbox) -> None:
    link = onboarding.create_setup_link(unregistered())
    sandbox.faults(api=[{"match": "PATCH", "kind": "status", "status": 401}])
    with pytest.raises(KapsoCredentialsError):
        onboarding.revoke_setup_link(link)
    link.refresh_from_db()
    assert link.is_usable


def test_revoking_ends_the_link_and_the_connect_url_and_records_who_did(
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
def test_link_that_expired_or_failed_can_be_revoked(
    sandbox: Sandbox, link: SetupLink, end: dict[str, str]
) -> None:
    SetupLink.objects.update(**end)
    link.refresh_from_db()
    asked = len(sandbox.requests())
    assert onboarding.revoke_setup_link(link)
    assert len(sandbox.requests()) == asked
    assert SetupLink.objects.get().status == "revoked"
    assert Customer.objects.get().connect_key is None


def test_link_that_connected_a_number_is_not_revoked(link: SetupLink) -> None:
    SetupLink.objects.update(status="used", setup_status="completed")
    link.refresh_from_db()
    assert not onboarding.revoke_setup_link(link)
    assert Customer.objects.get().connect_key


def test_link_completed_during_the_request_stays_completed(
    sandbox: Sandbox, link: SetupLink
) -> None:
    revoked = during_request(
        sandbox,
        "^PATCH",
        lambda: SetupLink.objects.update(status="used", setup_status="completed"),
        lambda: onboarding.revoke_setup_link(link),
    )
    assert not revoked
    assert SetupLink.objects.get().status == "used"
    assert Customer.objects.get().connect_key


def test_revoking_an_old_link_keeps_the_connect_url_of_the_latest(
    sandbox: Sandbox, link: SetupLink
) -> None:
    SetupLink.objects.update(status="expired")
    link.refresh_from_db()
    onboarding.create_setup_link(link.customer)
    assert onboarding.revoke_setup_link(link)
    assert Customer.objects.get().connect_key
    assert Customer.objects.get().latest_setup_link.status == "active"


def test_link_that_was_used_at_kapso_is_updated_instead_of_revoked(
    sandbox: Sandbox, link: SetupLink
) -> None:
    sandbox.patch_setup_link(link.kapso_id, status="used")
    assert not onboarding.revoke_setup_link(link)
    assert SetupLink.objects.get().status == "used"
    assert events("setup_link_revoked") == []
    assert Customer.objects.get().connect_key


def test_link_that_kapso_no_longer_has_is_revoked(sandbox: Sandbox, link: SetupLink) -> None:
    sandbox.reset()
    assert onboarding.revoke_setup_link(link)
    assert SetupLink.objects.get().status == "revoked"


# Sent, opened, failed


@pytest.mark.parametrize(
    ("channel", "to", "data"),
    [
        ("email", "a@example.com", {"channel": "email", "to": "a@example.com"}),
        ("qr", "", {"channel": "qr"}),
    ],
)
def test_sending_is_recorded(actor: User, channel: str, to: str, data: dict[str, str]) -> None:
    link = make_link()
    event = setup_links.record_sent(link, channel, actor=actor, to=to)
    event.refresh_from_db()
    assert (event.kind, event.data, event.actor) == ("setup_link_sent", data, actor)
    assert (event.customer, event.setup_link) == (link.customer, link)


def test_first_opening_is_recorded() -> None:
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
def test_setup_status_shows_that_a_link_was_opened(
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


def test_failure_is_recorded_and_announced_once() -> None:
    link = make_link()
    with listening() as heard:
        assert setup_links.record_failure(link, "facebook_auth_failed")
        assert not setup_links.record_failure(link, "facebook_auth_failed")
    link.refresh_from_db()
    assert (link.setup_status, link.last_error_code) == ("failed", "facebook_auth_failed")
    sent = heard.only("whatsapp_setup_failed")
    assert sent["sender"] is SetupLink
    assert sent["error_code"] == "facebook_auth_failed"
    assert (sent["setup_link"], sent["customer"]) == (link, link.customer)


def test_failure_with_another_code_is_announced() -> None:
    link = make_link()
    with listening() as heard:
        setup_links.record_failure(link, "facebook_auth_failed")
        setup_links.record_failure(link, "phone_verification_failed")
    assert [sent["error_code"] for _, sent in heard] == [
        "facebook_auth_failed",
        "phone_verification_failed",
    ]


def test_failure_does_not_undo_a_success() -> None:
    link = make_link(status="used", setup_status="completed")
    with listening() as heard:
        assert not setup_links.record_failure(link, "already_used")
    assert heard == []
    link.refresh_from_db()
    assert link.setup_status == "completed"


def codes_of(link: SetupLink) -> list[str]:
    events = TimelineEvent.objects.filter(setup_link=link, kind="setup_failed").order_by("pk")
    return [event.data["error_code"] for event in events]


def test_made_up_codes_neither_use_up_nor_hide_the_true_failure() -> None:
    link = make_link()
    for number in range(30):
        setup_links.record_failure(link, f"made_up_{number}")
    assert codes_of(link) == ["made_up_0"]
    for code in SETUP_ERRORS:
        setup_links.record_failure(link, code)
    assert codes_of(link) == ["made_up_0", *SETUP_ERRORS]
    setup_links.record_failure(link, "waba_limit_reached")
    setup_links.record_failure(link, "made_up_again")
    link.refresh_from_db()
    assert link.last_error_code == "waba_limit_reached"
    assert len(codes_of(link)) == 1 + len(SETUP_ERRORS)


def test_report_of_another_browser_does_not_hide_that_of_the_customers() -> None:
    link = make_link()
    setup_links.record_failure(link, "waba_limit_reached", by_visitor=True)
    setup_links.record_failure(link, "link_expired")
    link.refresh_from_db()
    assert link.last_error_code == "waba_limit_reached"
    setup_links.record_failure(link, "facebook_auth_failed", by_visitor=True)
    link.refresh_from_db()
    assert link.last_error_code == "facebook_auth_failed"
    setup_links.record_failure(link, "phone_verification_failed", source="sync")
    link.refresh_from_db()
    assert link.last_error_code == "phone_verification_failed"


@pytest.mark.parametrize("by_visitor", [True, False])
def test_failure_that_kapso_does_not_know_is_forgotten_unless_the_customers_browser_reported_it(
    sandbox: Sandbox, by_visitor: bool
) -> None:
    link = onboarding.create_setup_link(make_customer(kapso_id=None))
    setup_links.record_failure(link, "waba_limit_reached", by_visitor=by_visitor)
    assert Customer.objects.get().status == "failed"
    link.refresh_from_db()
    with KapsoClient.from_settings() as client:
        assert not setup_links.apply_remote_link(link, setup_links.find_remote_link(link, client))
    assert Customer.objects.get().status == ("failed" if by_visitor else "invited")
    link.refresh_from_db()
    assert link.last_error_code == ("waba_limit_reached" if by_visitor else "")


def test_success_clears_an_earlier_failure() -> None:
    link = make_link()
    setup_links.record_failure(link, "facebook_auth_failed")
    onboarding.connect(link.customer, Number("1"), source="webhook")
    link.refresh_from_db()
    assert (link.setup_status, link.last_error_code) == ("completed", "")
