from __future__ import annotations

import uuid
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import AnonymousUser, User
from django.contrib.contenttypes.models import ContentType
from django.core.exceptions import ImproperlyConfigured
from django.db import connection as database
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from kapso_connect import exceptions, onboarding
from kapso_connect.exceptions import (
    InvalidOptions,
    KapsoConflict,
    KapsoCredentialsError,
    KapsoError,
    KapsoUnavailable,
    KapsoValidationError,
)
from kapso_connect.kapso.client import KapsoClient
from kapso_connect.models import Connection, Customer, SetupLink, TimelineEvent
from kapso_connect.onboarding import redirects, setup_links
from kapso_connect.onboarding.numbers import Number
from kapso_connect.testing import Sandbox

from ..factories import (
    listening,
    make_connection,
    make_customer,
    make_link,
    new_number_id,
    remote_customer,
)
from ..sites.host_site.models import Branch

pytestmark = pytest.mark.django_db(transaction=True)


def unregistered() -> Customer:
    return make_customer(kapso_id=None, external_customer_id=str(uuid.uuid4()))


def api_posts(sandbox: Sandbox) -> list[str]:
    return [row["path"] for row in sandbox.requests() if row["method"] == "POST"]


# Inviting


def test_a_link_is_created_recorded_and_told(sandbox: Sandbox) -> None:
    customer = unregistered()
    staff = User.objects.create(username="staff")
    with listening() as heard:
        link = onboarding.create_setup_link(customer, created_by=staff)

    (remote,) = sandbox.state()["setup_links"]
    assert link.kapso_id == remote["id"]
    assert link.url == remote["url"]
    assert remote["success_redirect_url"] == "https://site.example/whatsapp/success/"
    assert remote["failure_redirect_url"] == "https://site.example/whatsapp/failed/"
    assert link.is_usable
    assert link.created_by == staff
    assert link.expires_at is not None
    assert link.expires_at > timezone.now() + timedelta(days=29)

    (registered,) = sandbox.state()["customers"]
    customer.refresh_from_db()
    assert customer.kapso_id == registered["id"]
    assert registered["external_customer_id"] == customer.external_customer_id
    assert registered["name"] == customer.name

    told = heard.only("setup_link_created")
    assert told["sender"] is SetupLink
    assert (told["setup_link"], told["customer"]) == (link, customer)


def test_a_customer_is_registered_once(sandbox: Sandbox) -> None:
    customer = unregistered()
    onboarding.create_setup_link(customer)
    onboarding.create_setup_link(Customer.objects.get())
    assert len(sandbox.state()["customers"]) == 1


def test_a_customer_kapso_knows_already_is_found(sandbox: Sandbox) -> None:
    customer = remote_customer(sandbox)
    kapso_id, customer.kapso_id = customer.kapso_id, None
    customer.save()
    onboarding.create_setup_link(customer)
    assert customer.kapso_id == kapso_id


def test_a_customer_without_an_external_id_gets_one(sandbox: Sandbox) -> None:
    customer = make_customer(kapso_id=None, external_customer_id=None)
    onboarding.create_setup_link(customer)
    customer.refresh_from_db()
    assert customer.external_customer_id
    assert sandbox.state()["customers"][0]["external_customer_id"] == customer.external_customer_id


def test_a_customer_of_kapsos_who_is_another_one_here_is_a_clear_error(sandbox: Sandbox) -> None:
    # A webhook told of the customer without our external id, so there are two of it here.
    theirs = remote_customer(sandbox, name="Known by webhook")
    external_id, theirs.external_customer_id = theirs.external_customer_id, None
    theirs.save()
    with pytest.raises(KapsoConflict, match="Known by webhook"):
        onboarding.create_setup_link(make_customer(kapso_id=None, external_customer_id=external_id))


@pytest.mark.skipif(database.vendor != "postgresql", reason="others have no such lock")
def test_recording_a_link_keeps_nobody_from_writing_the_timeline(sandbox: Sandbox) -> None:
    # Who holds a link's row and waits for the customer's would be waited for in turn.
    with CaptureQueriesContext(database) as queries:
        onboarding.create_setup_link(make_customer(kapso_id=None))
    locks = [query["sql"] for query in queries if "FOR " in query["sql"]]
    assert len(locks) == 1
    assert locks[0].endswith("FOR NO KEY UPDATE")


def test_a_new_link_ends_the_one_before(sandbox: Sandbox) -> None:
    customer = unregistered()
    first = onboarding.create_setup_link(customer)
    second = onboarding.create_setup_link(customer)
    first.refresh_from_db()
    assert (first.status, second.status) == ("revoked", "active")
    kinds = list(TimelineEvent.objects.order_by("pk").values_list("kind", flat=True))
    assert kinds == ["setup_link_created", "setup_link_revoked", "setup_link_created"]


def test_recording_links_out_of_order_follows_kapsos_times(sandbox: Sandbox, monkeypatch) -> None:
    # Two members of staff: the first asked Kapso first but records last.
    customer = unregistered()
    real = setup_links.record_links

    def slow(*args: Any) -> Any:
        monkeypatch.setattr(setup_links, "record_links", real)
        onboarding.create_setup_link(customer)
        return real(*args)

    monkeypatch.setattr(setup_links, "record_links", slow)
    first = onboarding.create_setup_link(customer)
    (active,) = SetupLink.objects.filter(status="active")
    assert first.status == "revoked"
    remote = {row["id"]: row["status"] for row in sandbox.state()["setup_links"]}
    assert remote[active.kapso_id] == "active"
    assert remote[first.kapso_id] == "revoked"


def test_options_win_over_the_customer_over_the_settings(sandbox: Sandbox, settings) -> None:
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


def test_wrong_options_are_refused_before_anything_is_asked(sandbox: Sandbox) -> None:
    with pytest.raises(InvalidOptions):
        onboarding.create_setup_link(unregistered(), options={"language": "xx"})
    assert sandbox.requests() == []


def test_without_a_public_url_the_message_says_what_to_set(
    sandbox: Sandbox, configure: Any
) -> None:
    configure(PUBLIC_URL="")
    with pytest.raises(ImproperlyConfigured, match="PUBLIC_URL"):
        onboarding.create_setup_link(unregistered())
    assert sandbox.requests() == []


def test_an_anonymous_creator_is_nobody(sandbox: Sandbox) -> None:
    assert (
        onboarding.create_setup_link(unregistered(), created_by=AnonymousUser()).created_by is None
    )


def test_a_customer_deleted_at_kapso_is_registered_anew(sandbox: Sandbox) -> None:
    customer = make_customer(kapso_id=str(uuid.uuid4()))
    link = onboarding.create_setup_link(customer)
    assert link.is_usable
    customer.refresh_from_db()
    assert customer.kapso_id == sandbox.state()["customers"][0]["id"]


@pytest.mark.parametrize("kind", ["apply_then_500", "apply_then_close"])
def test_a_lost_answer_makes_no_second_customer_or_link(sandbox: Sandbox, kind: str) -> None:
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
def test_an_api_that_fails_leaves_nothing_behind(sandbox: Sandbox, rule, error) -> None:
    sandbox.faults(api=[{"match": "setup_links", **rule}])
    customer = unregistered()
    with listening() as heard, pytest.raises(error) as caught:
        onboarding.create_setup_link(customer)
    assert "setup link" in str(caught.value)
    assert not SetupLink.objects.exists()
    assert heard == []
    sandbox.clear_faults()
    assert onboarding.create_setup_link(customer).is_usable


def test_the_api_is_never_asked_inside_a_transaction(sandbox: Sandbox, monkeypatch) -> None:
    inside = []
    real = KapsoClient._call

    def spy(self: KapsoClient, *args: Any, **kwargs: Any) -> Any:
        inside.append(database.in_atomic_block)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(KapsoClient, "_call", spy)
    customer = unregistered()
    link = onboarding.create_setup_link(customer)
    number = sandbox.add_number(customer_id=customer.kapso_id)
    redirects.confirm_redirect(link, Number(number["phone_number_id"]))
    onboarding.revoke_setup_link(onboarding.create_setup_link(customer))
    assert len(inside) >= 5
    assert not any(inside)


def test_a_link_that_was_not_made_is_not_made_up(sandbox: Sandbox) -> None:
    customer = unregistered()
    sandbox.faults(api=[{"match": "POST .*setup_links", "kind": "status", "status": 500}])
    with pytest.raises(KapsoUnavailable, match="create setup link"):
        onboarding.create_setup_link(customer)
    assert [row["method"] for row in sandbox.requests()][-2:] == ["POST", "GET"]


def test_a_refusal_needs_no_second_look(sandbox: Sandbox) -> None:
    customer = unregistered()
    sandbox.faults(api=[{"match": "POST .*setup_links", "kind": "status", "status": 422}])
    with pytest.raises(KapsoValidationError):
        onboarding.create_setup_link(customer)
    assert sandbox.requests()[-1]["method"] == "POST"


def test_revoking(sandbox: Sandbox) -> None:
    link = onboarding.create_setup_link(unregistered())
    onboarding.revoke_setup_link(link)
    link.refresh_from_db()
    assert link.status == "revoked"
    assert sandbox.state()["setup_links"][0]["status"] == "revoked"
    onboarding.revoke_setup_link(link)
    assert TimelineEvent.objects.filter(kind="setup_link_revoked").count() == 1


def test_revoking_a_link_that_is_gone(sandbox: Sandbox) -> None:
    link = make_link()
    onboarding.revoke_setup_link(link)
    link.refresh_from_db()
    assert link.status == "revoked"


def test_a_link_that_cannot_be_revoked_stays_as_it_is(sandbox: Sandbox) -> None:
    link = onboarding.create_setup_link(unregistered())
    sandbox.faults(api=[{"match": "PATCH", "kind": "status", "status": 401}])
    with pytest.raises(KapsoCredentialsError):
        onboarding.revoke_setup_link(link)
    link.refresh_from_db()
    assert link.is_usable


# Claiming


def claimable(sandbox: Sandbox, **fields: Any) -> tuple[SetupLink, Number]:
    customer = remote_customer(sandbox)
    number = sandbox.add_number(customer_id=customer.kapso_id, **fields)
    return make_link(customer), Number(number["phone_number_id"], provisioned_phone_number_id="p-1")


def test_a_confirmed_claim_connects(sandbox: Sandbox) -> None:
    link, number = claimable(sandbox, phone_number="+14155552671", is_coexistence=True)
    with listening() as heard:
        connection = redirects.confirm_redirect(link, number)
    assert connection is not None
    assert connection.is_connected
    assert connection.setup_link == link
    assert connection.display_phone_number == "+1 415-555-2671"
    assert connection.connection_type == "coexistence"
    assert connection.provisioned_phone_number_id == "p-1"
    told = heard.only("whatsapp_connected")
    assert (told["source"], told["setup_link"]) == ("redirect", link)


def test_a_claim_on_what_the_webhook_connected_only_fills_in(sandbox: Sandbox) -> None:
    link, number = claimable(sandbox)
    onboarding.connect(link.customer, Number(number.phone_number_id), source="webhook")
    with listening() as heard:
        connection = redirects.confirm_redirect(link, number)
    assert heard == []
    assert connection is not None
    assert connection.setup_link == link
    assert connection.display_phone_number
    asked = len(sandbox.requests())
    assert redirects.confirm_redirect(link, number) == connection
    assert len(sandbox.requests()) == asked  # nothing is missing: nobody is asked again


def test_a_claim_names_the_link_of_what_was_connected_without_one(sandbox: Sandbox) -> None:
    customer = remote_customer(sandbox)
    number = Number(sandbox.add_number(customer_id=customer.kapso_id)["phone_number_id"])
    onboarding.connect(customer, number, source="webhook")
    link, later = make_link(customer), make_link(customer)
    assert redirects.confirm_redirect(link, number).setup_link == link
    link.refresh_from_db()
    assert link.setup_status == "completed"
    # The link a connection came by stays what it was.
    assert redirects.confirm_redirect(later, number).setup_link == link


def test_what_the_webhook_connected_needs_no_api(sandbox: Sandbox) -> None:
    link, number = claimable(sandbox)
    onboarding.connect(link.customer, Number(number.phone_number_id), source="webhook")
    sandbox.faults(api=[{"match": ".*", "kind": "status", "status": 500}])
    connection = redirects.confirm_redirect(link, number)
    assert connection is not None
    assert connection.is_connected


@pytest.mark.parametrize("whose", ["another customer", "the project", "nobody"])
def test_a_claim_on_what_is_not_the_customers_is_refused(sandbox: Sandbox, whose: str) -> None:
    link, _number = claimable(sandbox)
    numbers = {
        "another customer": lambda: sandbox.add_number(external_customer_id="other"),
        "the project": sandbox.add_number,
        "nobody": lambda: {"phone_number_id": new_number_id()},
    }
    with listening() as heard, pytest.raises(exceptions.Rejected):
        redirects.confirm_redirect(link, Number(numbers[whose]()["phone_number_id"]))
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
def test_while_the_api_is_away_the_claim_waits(sandbox: Sandbox, configure: Any, rule) -> None:
    configure(REQUEST_BUDGET=0.5)
    link, number = claimable(sandbox)
    sandbox.faults(api=[{"match": ".*", **rule}])
    started = timezone.now()
    assert redirects.confirm_redirect(link, number) is None
    assert timezone.now() - started < timedelta(seconds=2)
    link.refresh_from_db()
    assert link.unconfirmed_phone_number_id == number.phone_number_id
    unconfirmed_since = link.unconfirmed_since
    assert unconfirmed_since is not None
    assert redirects.confirm_redirect(link, number) is None
    link.refresh_from_db()
    assert link.unconfirmed_since == unconfirmed_since

    sandbox.clear_faults()
    assert redirects.confirm_redirect(link, number) is not None
    link.refresh_from_db()
    assert (link.unconfirmed_phone_number_id, link.unconfirmed_since) == ("", None)


def test_a_link_connects_once(sandbox: Sandbox) -> None:
    link, number = claimable(sandbox)
    connection = redirects.confirm_redirect(link, number)
    assert connection is not None
    onboarding.disconnect(number.phone_number_id, source="webhook")
    with pytest.raises(exceptions.Rejected):
        redirects.confirm_redirect(link, number)
    connection.refresh_from_db()
    assert not connection.is_connected


def test_a_claim_on_a_number_that_is_being_taken_down_waits(sandbox: Sandbox) -> None:
    link, number = claimable(sandbox)
    make_connection(
        link.customer,
        phone_number_id=number.phone_number_id,
        status="disconnected",
        disconnected_at=timezone.now(),
    )
    with listening() as heard:
        assert redirects.confirm_redirect(link, number) is None
    assert heard == []


def test_a_number_that_is_closed_while_the_api_is_asked_stays_closed(
    sandbox: Sandbox, monkeypatch
) -> None:
    link, number = claimable(sandbox)
    known = make_connection(link.customer, phone_number_id=number.phone_number_id)
    ask = KapsoClient.get_phone_number

    def ask_slowly(client: KapsoClient, phone_number_id: str) -> Any:
        remote = ask(client, phone_number_id)
        onboarding.disconnect(phone_number_id, source="webhook")
        return remote

    monkeypatch.setattr(KapsoClient, "get_phone_number", ask_slowly)
    with listening() as heard:
        assert redirects.confirm_redirect(link, number) is None
    assert heard.names() == ["whatsapp_disconnected"]
    known.refresh_from_db()
    assert not known.is_connected


def test_a_number_that_is_closed_while_the_api_is_away_waits(sandbox: Sandbox, monkeypatch) -> None:
    link, number = claimable(sandbox)
    make_connection(link.customer, phone_number_id=number.phone_number_id)

    def ask_in_vain(client: KapsoClient, phone_number_id: str) -> Any:
        onboarding.disconnect(phone_number_id, source="webhook")
        raise KapsoUnavailable("away")

    monkeypatch.setattr(KapsoClient, "get_phone_number", ask_in_vain)
    assert redirects.confirm_redirect(link, number) is None
    link.refresh_from_db()
    assert link.unconfirmed_phone_number_id == number.phone_number_id


def test_a_claim_on_a_disconnected_number_is_refused(sandbox: Sandbox) -> None:
    link, number = claimable(sandbox, status="DISCONNECTED")
    with pytest.raises(exceptions.Rejected):
        redirects.confirm_redirect(link, number)
    assert not Connection.objects.filter(status="connected").exists()


@pytest.mark.parametrize("zone", ["America/New_York", "Asia/Kolkata"])
def test_a_site_without_time_zones(sandbox: Sandbox, settings: Any, zone: str) -> None:
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
    link, claimed = SetupLink.objects.get(pk=second.pk), Number(number["phone_number_id"])
    assert redirects.confirm_redirect(link, claimed) is not None
    assert not setup_links.expire_links()


# Connecting


def test_connecting_again_changes_nothing() -> None:
    customer = make_customer()
    first = onboarding.connect(customer, Number("1"), source="webhook")
    with listening() as heard:
        again = onboarding.connect(customer, Number("1", verified_name="Shop"), source="redirect")
    assert heard == []
    assert again.pk == first.pk
    assert again.verified_name == "Shop"
    assert TimelineEvent.objects.count() == 1


def test_what_is_known_is_not_overwritten_by_the_unconfirmed() -> None:
    customer = make_customer()
    onboarding.connect(customer, Number("1", verified_name="Shop"), source="webhook")
    onboarding.connect(customer, Number("1", verified_name="Other"), source="redirect")
    assert Connection.objects.get().verified_name == "Shop"


@pytest.mark.parametrize("state", ["closed", "another customer's"])
def test_reopening_and_moving_need_confirmation(state: str) -> None:
    known = make_connection()
    customer = known.customer if state == "closed" else make_customer()
    if state == "closed":
        onboarding.disconnect(known.phone_number_id, source="webhook")
    number = Number(known.phone_number_id)
    with listening() as heard:
        with pytest.raises(exceptions.NeedsConfirmation):
            onboarding.connect(customer, number, source="webhook")
        assert heard == []
        onboarding.connect(customer, number, source="sync", asked_at=timezone.now())
    assert "whatsapp_connected" in heard.names()


def test_a_number_that_moves_tells_both_customers() -> None:
    known = make_connection(setup_link=None)
    old, new = known.customer, make_customer()
    looked_at = {
        "health_status": "error",
        "health_error": "no",
        "health_checked_at": timezone.now(),
    }
    Connection.objects.update(**looked_at)
    with listening() as heard:
        onboarding.connect(
            new, Number(known.phone_number_id), source="sync", asked_at=timezone.now()
        )
    assert heard.names() == ["whatsapp_disconnected", "whatsapp_connected"]
    assert heard[0][1]["customer"] == old
    assert heard[0][1]["event"].data == {"reason": "moved"}
    assert heard[1][1]["customer"] == new
    moved = Connection.objects.get()
    assert moved.customer == new
    # What the old customer was told of its health is none of the new one's business.
    assert (moved.health_status, moved.health_error, moved.health_checked_at) == ("", "", None)


def test_a_disconnection_before_its_connection_is_remembered() -> None:
    customer = make_customer()
    with listening() as heard:
        onboarding.disconnect("1", source="webhook", customer=customer)
        with pytest.raises(exceptions.NeedsConfirmation):
            onboarding.connect(customer, Number("1"), source="webhook")
    assert heard == []


def test_a_disconnection_of_what_nobody_knows() -> None:
    assert onboarding.disconnect("1", source="webhook") is None
    assert not Connection.objects.exists()


def test_a_word_about_an_earlier_time_needs_confirmation() -> None:
    known = make_connection()
    before = known.connected_at - timedelta(seconds=1)
    after = known.connected_at + timedelta(seconds=1)
    number = known.phone_number_id
    with pytest.raises(exceptions.NeedsConfirmation):
        onboarding.disconnect(number, source="webhook", occurred_at=before)
    with pytest.raises(exceptions.NeedsConfirmation):
        onboarding.disconnect(number, source="webhook", customer=make_customer())
    closed = onboarding.disconnect(number, source="webhook", occurred_at=after)
    assert closed is not None
    assert closed.disconnected_at == after


# Failing


def test_a_failure_is_recorded_and_told_once() -> None:
    link = make_link()
    with listening() as heard:
        assert setup_links.record_failure(link, "facebook_auth_failed")
        assert not setup_links.record_failure(link, "facebook_auth_failed")
    link.refresh_from_db()
    assert (link.setup_status, link.last_error_code) == ("failed", "facebook_auth_failed")
    told = heard.only("whatsapp_setup_failed")
    assert told["sender"] is SetupLink
    assert told["error_code"] == "facebook_auth_failed"
    assert (told["setup_link"], told["customer"]) == (link, link.customer)


def test_another_failure_is_news() -> None:
    link = make_link()
    with listening() as heard:
        setup_links.record_failure(link, "facebook_auth_failed")
        setup_links.record_failure(link, "phone_verification_failed")
    assert [told["error_code"] for _, told in heard] == [
        "facebook_auth_failed",
        "phone_verification_failed",
    ]


def test_a_failure_does_not_undo_a_success() -> None:
    link = make_link(status="used", setup_status="completed")
    with listening() as heard:
        assert not setup_links.record_failure(link, "already_used")
    assert heard == []
    link.refresh_from_db()
    assert link.setup_status == "completed"


def test_failures_without_end_are_cut_off() -> None:
    link = make_link()
    for number in range(setup_links.MAX_FAILURES + 5):
        setup_links.record_failure(link, f"code_{number}")
    assert TimelineEvent.objects.filter(setup_link=link).count() == setup_links.MAX_FAILURES


def test_success_after_failure_clears_it() -> None:
    link = make_link()
    setup_links.record_failure(link, "facebook_auth_failed")
    onboarding.connect(link.customer, Number("1"), source="webhook")
    link.refresh_from_db()
    assert (link.setup_status, link.last_error_code) == ("completed", "")


# The models


def test_for_owner_links_the_hosts_own_object() -> None:
    owner = User.objects.create(username="Ana's Bakery")
    customer = Customer.objects.for_owner(owner, email="a@example.com")
    assert (customer.name, customer.email) == ("Ana's Bakery", "a@example.com")
    assert customer.owner == owner
    assert Customer.objects.for_owner(owner) == customer
    with pytest.raises(ValueError, match="Save the owner"):
        Customer.objects.for_owner(User(username="unsaved"))


def test_an_owners_key_may_be_a_long_text() -> None:
    owner = Branch.objects.create(code="b" * 255)
    customer = Customer.objects.for_owner(owner)
    customer.full_clean(exclude=["name"])
    assert Customer.objects.for_owner(owner) == customer
    assert customer.owner == owner


def test_for_owners_finds_their_customers_and_makes_none() -> None:
    owners = [User.objects.create(username=name) for name in "abc"]
    mine = [Customer.objects.for_owner(owner) for owner in owners[:2]]
    other = make_customer(owner_type=ContentType.objects.get_for_model(Customer))
    Customer.objects.filter(pk=other.pk).update(owner_id=str(owners[0].pk))
    found = Customer.objects.for_owners(User.objects.filter(username__in="ac"))
    assert list(found) == mine[:1]
    assert list(Customer.objects.for_owners(User.objects.none())) == []
    assert Customer.objects.count() == 3


def test_strings_tell_whom_but_no_secret() -> None:
    link = make_link()
    connection = make_connection(link.customer, display_phone_number="+1 415-555-2671")
    event = TimelineEvent.objects.create(
        kind="connected", source="webhook", customer=link.customer, connection=connection
    )
    assert str(link) == "Setup link for Bäckerei Süß"
    assert "secret-token" not in f"{link} {link!r}"
    assert str(connection) == "+1 415-555-2671"
    assert str(event) == "Connected: +1 415-555-2671"
    assert str(make_connection(phone_number_id="77")) == "77"
