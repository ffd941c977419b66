from __future__ import annotations

import uuid
from contextlib import suppress
from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import DataError
from django.db.models.signals import pre_save
from django.utils import timezone

from kapso_connect import onboarding, signals, sync
from kapso_connect.exceptions import KapsoNotFound
from kapso_connect.kapso.client import KapsoClient
from kapso_connect.models import Connection, Customer, SetupLink, TimelineEvent, WebhookEvent
from kapso_connect.onboarding import customers, redirects, setup_links
from kapso_connect.onboarding.numbers import Number
from kapso_connect.testing import Sandbox

from .factories import (
    listening,
    make_connection,
    make_customer,
    make_link,
    payload_for,
    post,
    queue_without_worker,
    remote_customer,
)

pytestmark = pytest.mark.django_db(transaction=True)


def kapso_sync(*arguments: str) -> str:
    out = StringIO()
    call_command("kapso_sync", *arguments, stdout=out, stderr=out)
    return out.getvalue()


def numbers_at(sandbox: Sandbox) -> list[dict[str, Any]]:
    return list(sandbox.state()["phone_numbers"])


def connected(sandbox: Sandbox, **fields: Any) -> Connection:
    """A connection that the site and the sandbox agree on."""
    customer = remote_customer(sandbox)
    (number,) = [n for n in numbers_at(sandbox) if n["customer_id"] == customer.kapso_id]
    return make_connection(customer, phone_number_id=number["phone_number_id"], **fields)


def age(connection: Connection) -> None:
    """Let the teardown moment of a disconnected number be over."""
    Connection.objects.filter(pk=connection.pk).update(
        disconnected_at=timezone.now() - timedelta(minutes=5)
    )


# What was left behind


def test_stored_events_are_processed(sandbox: Sandbox) -> None:
    customer = remote_customer(sandbox)
    WebhookEvent.objects.create(
        idempotency_key="k",
        event="whatsapp.phone_number.created",
        payload=payload_for(customer, "77"),
    )
    sandbox.add_number(customer_id=customer.kapso_id, phone_number_id="77")
    with listening("whatsapp_connected") as heard:
        assert "events 1" in kapso_sync()
    assert "77" in [told["connection"].phone_number_id for _, told in heard]
    assert WebhookEvent.objects.get().status == "processed"


def test_signals_whose_process_died_are_delivered(sandbox: Sandbox) -> None:
    with listening("whatsapp_connected") as heard:
        with queue_without_worker():
            onboarding.connect(make_customer(), Number("1"), source="webhook")
        assert heard == []
        assert "signals 1" in kapso_sync()
    assert heard.only("whatsapp_connected")["connection"].phone_number_id == "1"


def test_signals_of_what_a_run_finds_are_sent_by_that_run(sandbox: Sandbox) -> None:
    remote_customer(sandbox)
    with queue_without_worker(), listening("whatsapp_connected") as heard:
        assert "signals 1" in kapso_sync()
    assert heard.names() == ["whatsapp_connected"]


def test_one_row_that_fails_does_not_keep_the_others(sandbox: Sandbox, monkeypatch) -> None:
    customer = make_customer()
    for key in ("a", "b"):
        WebhookEvent.objects.create(idempotency_key=key, event="x.y", payload={})
    real = sync.handlers.process

    def broken(pk: int) -> bool:
        if pk == WebhookEvent.objects.get(idempotency_key="a").pk:
            raise RuntimeError
        return real(pk)

    monkeypatch.setattr(sync.handlers, "process", broken)
    assert "events 1" in kapso_sync()
    assert WebhookEvent.objects.get(idempotency_key="b").status == "ignored"
    assert customer.connections.count() == 0


def test_a_failed_receiver_is_called_again_when_it_is_due(sandbox: Sandbox) -> None:
    calls = []

    def receiver(event: TimelineEvent, **kwargs: Any) -> None:
        calls.append(event.pk)
        if len(calls) == 1:
            raise RuntimeError

    signals.whatsapp_setup_failed.connect(receiver)
    try:
        setup_links.record_failure(make_link(), "already_used")
        kapso_sync()
        assert len(calls) == 1
        TimelineEvent.objects.update(next_attempt_at=timezone.now())
        assert "signals 1" in kapso_sync()
        assert len(calls) == 2
        kapso_sync()
        assert len(calls) == 2
    finally:
        signals.whatsapp_setup_failed.disconnect(receiver)


def test_waiting_claims_are_settled(sandbox: Sandbox) -> None:
    customer = remote_customer(sandbox)
    number = sandbox.add_number(customer_id=customer.kapso_id)
    link = make_link(customer)
    sandbox.faults(api=[{"match": ".*", "kind": "status", "status": 401, "times": 1}])
    assert redirects.confirm_redirect(link, Number(number["phone_number_id"])) is None
    make_link(customer)  # a newer one must not get what was claimed for the older
    with listening("whatsapp_connected") as heard:
        kapso_sync()
    told = [t for _, t in heard if t["connection"].phone_number_id == number["phone_number_id"]]
    assert [t["setup_link"] for t in told] == [link]
    link.refresh_from_db()
    assert link.unconfirmed_since is None


def test_a_claim_on_what_is_connected_already_is_settled(sandbox: Sandbox) -> None:
    known = connected(sandbox)
    link = make_link(
        known.customer,
        unconfirmed_phone_number_id=known.phone_number_id,
        unconfirmed_since=timezone.now(),
    )
    with listening() as heard:
        assert "claims 1" in kapso_sync()
    assert heard == []
    link.refresh_from_db()
    assert (link.unconfirmed_since, link.setup_status) == (None, "completed")


def test_a_claim_that_fails_does_not_keep_the_others(sandbox: Sandbox, monkeypatch) -> None:
    customer = remote_customer(sandbox)
    for number in ("1", "2"):
        make_link(customer, unconfirmed_phone_number_id=number, unconfirmed_since=timezone.now())
    confirm_redirect = redirects.confirm_redirect

    def broken(link: SetupLink, number: Number, **kwargs: Any) -> Connection | None:
        if number.phone_number_id == "1":
            raise DataError("too long")
        return confirm_redirect(link, number, **kwargs)

    monkeypatch.setattr(onboarding, "claim", broken)
    with pytest.raises(CommandError, match="too long"):
        kapso_sync()
    claimed = SetupLink.objects.filter(unconfirmed_since__isnull=False)
    assert [link.unconfirmed_phone_number_id for link in claimed] == ["1"]


def test_a_claim_that_was_not_true_is_forgotten(sandbox: Sandbox) -> None:
    link = make_link(
        remote_customer(sandbox), unconfirmed_phone_number_id="1", unconfirmed_since=timezone.now()
    )
    kapso_sync()
    link.refresh_from_db()
    assert link.unconfirmed_since is None
    assert not Connection.objects.filter(phone_number_id="1").exists()


# What no webhook told


def test_numbers_connected_meanwhile_are_found(sandbox: Sandbox) -> None:
    customer = remote_customer(sandbox)
    with listening() as heard:
        assert "connected 1" in kapso_sync()
    told = heard.only("whatsapp_connected")
    assert (told["customer"], told["source"]) == (customer, "sync")
    assert told["connection"].display_phone_number
    with listening() as heard:
        assert "connected 0, disconnected 0, updated 0" in kapso_sync()
    assert heard == []


def test_a_number_from_before_an_invitation_does_not_use_it_up(sandbox: Sandbox) -> None:
    customer = remote_customer(sandbox)
    (number,) = sandbox.state()["phone_numbers"]
    sandbox.patch_number(number["phone_number_id"], created_at="2026-01-01T00:00:00Z")
    link = onboarding.create_setup_link(customer)
    with listening() as heard:
        kapso_sync()
    assert heard.only("whatsapp_connected")["setup_link"] is None
    link.refresh_from_db()
    assert link.is_usable


def test_numbers_of_unknown_customers_bring_the_customer(sandbox: Sandbox) -> None:
    sandbox.add_number(external_customer_id="crm-1")
    ours = make_customer(kapso_id=None, external_customer_id="crm-1")
    kapso_sync()
    assert Connection.objects.get().customer == ours
    ours.refresh_from_db()
    assert ours.kapso_id


def test_a_customer_that_cannot_be_recorded_does_not_keep_the_others(
    sandbox: Sandbox, monkeypatch
) -> None:
    for external_id in ("x" * 300, "crm-1"):
        sandbox.add_number(external_customer_id=external_id)
    add = customers.find_or_add_customer

    def strict(kapso_id: str, external_id: str, name: str = "") -> Customer:
        if len(external_id) > 255:  # as PostgreSQL and MariaDB do
            raise DataError("value too long")
        return add(kapso_id, external_id, name)

    monkeypatch.setattr(onboarding.customers, "find_or_add_customer", strict)
    with pytest.raises(CommandError, match="value too long"):
        kapso_sync()
    assert Connection.objects.get().customer.external_customer_id == "crm-1"


def test_numbers_of_the_project_itself_are_left_alone(sandbox: Sandbox) -> None:
    sandbox.add_number()
    assert "connected 0" in kapso_sync()
    assert not Connection.objects.exists()


def test_numbers_gone_meanwhile_are_found(sandbox: Sandbox) -> None:
    gone = make_connection(connected_at=timezone.now() - timedelta(minutes=1))
    with listening() as heard:
        assert "disconnected 1" in kapso_sync()
    told = heard.only("whatsapp_disconnected")
    assert told["connection"] == gone
    assert told["event"].data == {"reason": "not_found"}


def test_a_number_that_was_disconnected_is_found(sandbox: Sandbox) -> None:
    known = connected(sandbox)
    sandbox.patch_number(known.phone_number_id, status="DISCONNECTED")
    with listening() as heard:
        assert "disconnected 1" in kapso_sync()
    assert heard.only("whatsapp_disconnected")["event"].data == {"reason": "disconnected"}


def test_a_number_that_works_again_is_found(sandbox: Sandbox) -> None:
    known = connected(sandbox)
    sandbox.patch_number(known.phone_number_id, created_at="2026-01-01T00:00:00Z")
    onboarding.disconnect(known.phone_number_id, source="webhook")
    with listening() as heard:
        kapso_sync()
        assert heard == []  # it may be in teardown: the API cannot tell yet
        age(known)
        assert "connected 1" in kapso_sync()
    assert heard.names() == ["whatsapp_reconnected"]


def test_a_number_that_moved_tells_both(sandbox: Sandbox) -> None:
    known = connected(sandbox)
    other = remote_customer(sandbox)
    sandbox.patch_number(known.phone_number_id, customer_id=other.kapso_id)
    with listening() as heard:
        kapso_sync()
    by_customer = {(name, told["customer"]) for name, told in heard}
    assert ("whatsapp_disconnected", known.customer) in by_customer
    assert ("whatsapp_connected", other) in by_customer


def test_a_number_that_is_closed_while_it_is_followed_stays_closed(
    sandbox: Sandbox, monkeypatch
) -> None:
    known = connected(sandbox)
    connect = onboarding.connect

    def too_late(*args: Any, **kwargs: Any) -> Connection:
        onboarding.disconnect(known.phone_number_id, source="webhook")
        return connect(*args, **kwargs)

    monkeypatch.setattr(onboarding.numbers, "connect", too_late)
    with listening() as heard:
        kapso_sync()
    assert heard.names() == ["whatsapp_disconnected"]


def test_a_number_that_moves_after_its_page_was_read_does_not_move_back(
    sandbox: Sandbox, monkeypatch
) -> None:
    known = connected(sandbox)
    other = remote_customer(sandbox)
    load = sync._Customers.load

    def slowly(customers: Any, kapso_ids: Any) -> None:
        sandbox.patch_number(known.phone_number_id, customer_id=other.kapso_id)
        post(payload_for(other, known.phone_number_id))
        load(customers, kapso_ids)

    monkeypatch.setattr(sync._Customers, "load", slowly)
    with listening() as heard:
        kapso_sync()
    assert [(name, told["customer"]) for name, told in heard if told["connection"] == known] == [
        ("whatsapp_disconnected", known.customer),
        ("whatsapp_connected", other),
    ]


@pytest.mark.parametrize("is_readable", [True, False])
def test_a_number_that_changes_while_it_is_looked_for_is_left_to_the_next_run(
    sandbox: Sandbox, monkeypatch, is_readable: bool
) -> None:
    known = connected(sandbox, connected_at=timezone.now() - timedelta(minutes=1))
    monkeypatch.setattr(KapsoClient, "list_phone_numbers", lambda *args, **kwargs: iter(()))
    ask = KapsoClient.get_phone_number

    def ask_slowly(client: KapsoClient, number: str) -> Any:
        remote = ask(client, number)
        onboarding.disconnect(number, source="webhook")
        if is_readable:
            return remote
        asked_at = timezone.now()
        onboarding.connect(known.customer, Number(number), source="webhook", asked_at=asked_at)
        raise KapsoNotFound("gone")

    monkeypatch.setattr(KapsoClient, "get_phone_number", ask_slowly)
    with listening() as heard:
        kapso_sync()
    expected = ["whatsapp_disconnected"] + ["whatsapp_connected"] * (not is_readable)
    assert heard.names() == expected


@pytest.mark.parametrize("is_open", [True, False])
def test_under_another_account_the_former_ones_restrictions_do_not_hold(
    sandbox: Sandbox, is_open: bool
) -> None:
    known = connected(
        sandbox,
        business_account_id="former",
        account_status="restricted",
        restrictions=[{"type": "RESTRICTED_BIZ_INITIATED_MESSAGING"}],
        account_updated_at=timezone.now(),
    )
    if not is_open:
        onboarding.disconnect(known.phone_number_id, source="webhook")
        sandbox.patch_number(known.phone_number_id, created_at=timezone.now().isoformat())
    sandbox.patch_number(known.phone_number_id, business_account_id="999")
    kapso_sync()
    known.refresh_from_db()
    assert (known.is_connected, known.business_account_id) == (True, "999")
    assert (known.account_status, known.restrictions) == ("active", [])
    assert known.account_updated_at is None


def test_display_data_is_filled_in_and_kept_up_to_date(sandbox: Sandbox) -> None:
    known = connected(sandbox)
    sandbox.patch_number(known.phone_number_id, verified_name="Süß & Co")
    with listening() as heard:
        assert "updated 1" in kapso_sync()
    known.refresh_from_db()
    assert known.verified_name == "Süß & Co"
    assert known.display_phone_number
    sandbox.patch_number(known.phone_number_id, verified_name="Süßer")
    assert "updated 1" in kapso_sync()
    known.refresh_from_db()
    assert known.verified_name == "Süßer"
    assert "updated 0" in kapso_sync()
    assert heard == []


def test_links_that_expired_were_revoked_or_used_are_found(sandbox: Sandbox) -> None:
    customers = [make_customer(kapso_id=None) for _ in range(4)]
    alive, expired, revoked, gone = (onboarding.create_setup_link(c) for c in customers)
    SetupLink.objects.filter(pk=expired.pk).update(expires_at=timezone.now())
    sandbox.patch_setup_link(revoked.kapso_id, status="revoked")
    Customer.objects.filter(pk=gone.customer_id).update(kapso_id=str(uuid.uuid4()))
    assert "links 3" in kapso_sync()
    statuses = {link.pk: link.status for link in SetupLink.objects.all()}
    assert statuses == {
        alive.pk: "active",
        expired.pk: "expired",
        revoked.pk: "revoked",
        gone.pk: "revoked",
    }
    assert "links 0" in kapso_sync()
    assert TimelineEvent.objects.filter(kind="setup_link_expired").count() == 1


def test_a_link_whose_page_is_being_used_was_opened(sandbox: Sandbox) -> None:
    link = onboarding.create_setup_link(make_customer(kapso_id=None))
    kapso_sync()
    link.refresh_from_db()
    assert link.opened_at is None
    sandbox.patch_setup_link(link.kapso_id, whatsapp_setup_status="processing")
    for _ in range(2):
        kapso_sync()
    link.refresh_from_db()
    assert link.opened_at is not None
    assert TimelineEvent.objects.filter(kind="setup_link_opened").count() == 1


@pytest.mark.parametrize(
    ("told", "code"),
    [
        ("waba_limit_reached", "waba_limit_reached"),
        (None, "unknown"),
        ("<script> too many\n", "unknown"),
        ("x" * 65, "unknown"),
    ],
    ids=["code", "nothing", "text", "long"],
)
def test_a_failure_that_no_browser_told_is_heard_of_once(
    sandbox: Sandbox, told: str | None, code: str
) -> None:
    link = onboarding.create_setup_link(make_customer(kapso_id=None))
    sandbox.patch_setup_link(
        link.kapso_id, whatsapp_setup_status="failed", whatsapp_setup_error=told
    )
    with listening() as heard:
        for _ in range(2):
            kapso_sync()
    link.refresh_from_db()
    assert (link.setup_status, link.last_error_code) == ("failed", code)
    assert heard.only("whatsapp_setup_failed")["error_code"] == code
    assert heard.only("whatsapp_setup_failed")["source"] == "sync"


def test_links_are_checked_in_turn(sandbox: Sandbox, monkeypatch) -> None:
    monkeypatch.setattr(sync, "LINKS_A_RUN", 2)
    for _ in range(3):
        onboarding.create_setup_link(make_customer(kapso_id=None))
    kapso_sync()
    assert SetupLink.objects.filter(checked_at=None).count() == 1
    kapso_sync()
    assert not SetupLink.objects.filter(checked_at=None).exists()


def test_a_link_that_cannot_be_checked_does_not_keep_the_others(sandbox: Sandbox) -> None:
    broken, revoked = (onboarding.create_setup_link(make_customer(kapso_id=None)) for _ in "ab")
    sandbox.patch_setup_link(revoked.kapso_id, status="revoked")
    its_links = f"/customers/{broken.customer.kapso_id}/setup_links"
    sandbox.faults(api=[{"match": its_links, "kind": "garbage"}])
    for _ in range(2):
        with suppress(CommandError):
            kapso_sync()
    revoked.refresh_from_db()
    assert revoked.status == "revoked"


def test_a_link_extended_at_kapso(sandbox: Sandbox) -> None:
    link = onboarding.create_setup_link(make_customer(kapso_id=None))
    later = timezone.now() + timedelta(days=60)
    sandbox.patch_setup_link(link.kapso_id, expires_at=later.isoformat())
    kapso_sync()
    link.refresh_from_db()
    assert link.expires_at == later


def test_one_number_that_fails_does_not_keep_the_others(sandbox: Sandbox) -> None:
    sandbox.seed(3, 1)
    unlucky = numbers_at(sandbox)[1]["phone_number_id"]

    def broken(instance: Connection, **kwargs: Any) -> None:
        if instance.phone_number_id == unlucky:
            raise LookupError("out of luck")

    pre_save.connect(broken, sender=Connection)
    try:
        with pytest.raises(CommandError, match="out of luck") as error:
            kapso_sync()
    finally:
        pre_save.disconnect(broken, sender=Connection)
    assert error.value.returncode == 1
    assert Connection.objects.filter(status="connected").count() == 2


@pytest.mark.parametrize("told", ["connected", "disconnected"])
def test_a_number_that_is_told_of_while_its_page_is_worked_on_is_announced_once(
    sandbox: Sandbox, monkeypatch, told: str
) -> None:
    customers = [remote_customer(sandbox) for _ in range(3)]
    numbers = {row["customer_id"]: row["phone_number_id"] for row in numbers_at(sandbox)}
    add = sync._Customers.add

    def slowly(*args: Any) -> None:
        number = numbers[customers[1].kapso_id]
        if told == "connected":
            onboarding.connect(customers[1], Number(number), source="webhook")
        else:
            onboarding.disconnect(number, customer=customers[1], source="webhook")
        add(*args)

    monkeypatch.setattr(sync._Customers, "add", slowly)
    with listening() as heard:
        expected = "connected 3" if told == "connected" else "connected 2"
        assert expected in kapso_sync()
    assert heard.names() == ["whatsapp_connected"] * int(expected[-1])
    assert Connection.objects.filter(status="connected").count() == len(heard)
    assert Connection.objects.count() == 3


def test_a_number_that_no_webhook_told_completes_the_link_it_came_by(sandbox: Sandbox) -> None:
    customer, other = remote_customer(sandbox), remote_customer(sandbox)
    link = make_link(customer, created_at=timezone.now() - timedelta(hours=1))
    with listening() as heard:
        kapso_sync()
    assert {told["customer"]: told["setup_link"] for _, told in heard} == {
        customer: link,
        other: None,
    }
    link.refresh_from_db()
    assert (link.status, link.setup_status) == ("used", "completed")


# Cost


def test_a_page_of_numbers_costs_a_constant_number_of_queries(
    sandbox: Sandbox, django_assert_max_num_queries
) -> None:
    sandbox.seed(300, 1)
    kapso_sync()
    assert Connection.objects.filter(status="connected").count() == 300
    before = len(sandbox.requests())
    with django_assert_max_num_queries(22):
        kapso_sync()
    paths = [row["path"] for row in sandbox.requests()[before:]]
    assert paths == ["/platform/v1/whatsapp/phone_numbers"] * 3


def test_a_new_number_costs_two_statements(sandbox: Sandbox, django_assert_max_num_queries) -> None:
    sandbox.seed(100, 1)
    kapso_sync()
    assert Connection.objects.all().delete()
    with django_assert_max_num_queries(100 * 2 + 100 // sync.AT_ONCE * 2 + 20):
        kapso_sync()
    assert Connection.objects.filter(status="connected").count() == 100


def test_many_unknown_customers_are_listed_not_asked_one_by_one(sandbox: Sandbox) -> None:
    sandbox.seed(150, 1)
    kapso_sync()
    paths = [row["path"] for row in sandbox.requests()]
    assert len(paths) <= 6
    assert Customer.objects.count() == 150


# Bad times


@pytest.mark.parametrize(
    "rule",
    [
        {"kind": "status", "status": 500},
        {"kind": "status", "status": 401},
        {"kind": "html"},
        {"kind": "garbage"},
        {"kind": "close"},
    ],
    ids=lambda rule: f"{rule['kind']} {rule.get('status', '')}",
)
def test_an_api_that_is_away_delays_nothing_else(sandbox: Sandbox, rule, monkeypatch) -> None:
    monkeypatch.setattr("kapso_connect.kapso.http.FIRST_RETRY_DELAY", 0.01)
    known = make_connection(connected_at=timezone.now() - timedelta(minutes=1))
    with listening() as heard:
        with queue_without_worker():
            setup_links.record_failure(make_link(), "already_used")
        sandbox.faults(api=[{"match": ".*", **rule}])
        with pytest.raises(CommandError) as error:
            kapso_sync()
    assert error.value.returncode == 1
    assert "list phone numbers" in str(error.value)
    assert heard.names() == ["whatsapp_setup_failed"]
    known.refresh_from_db()
    assert known.is_connected


def test_an_api_that_breaks_off_half_way_disconnects_nobody(sandbox: Sandbox, monkeypatch) -> None:
    monkeypatch.setattr("kapso_connect.kapso.http.FIRST_RETRY_DELAY", 0.01)
    sandbox.seed(250, 1)
    kapso_sync()
    Connection.objects.update(connected_at=timezone.now() - timedelta(minutes=1))
    sandbox.faults(api=[{"match": "phone_numbers", "kind": "status", "status": 503, "after": 1}])
    with pytest.raises(CommandError):
        kapso_sync()
    assert Connection.objects.filter(status="connected").count() == 250


@pytest.mark.parametrize(("lost", "kept"), [(2, 0), (21, 20)])
def test_the_key_of_another_project_disconnects_nobody(
    sandbox: Sandbox, lost: int, kept: int
) -> None:
    sandbox.seed(kept, 1)
    kapso_sync()
    customer = make_customer()
    for _ in range(lost):
        make_connection(customer, connected_at=timezone.now() - timedelta(minutes=1))
    with pytest.raises(CommandError, match="another project") as error:
        kapso_sync()
    assert error.value.returncode == 1
    assert Connection.objects.filter(status="connected").count() == lost + kept
    assert f"disconnected {lost}" in kapso_sync("--accept-mass-loss")


def test_one_number_of_one_may_be_gone(sandbox: Sandbox) -> None:
    make_connection(connected_at=timezone.now() - timedelta(minutes=1))
    assert "disconnected 1" in kapso_sync()


def test_what_failed_for_good_ends_with_status_2(sandbox: Sandbox) -> None:
    post({"phone_number_id": 5})
    with pytest.raises(CommandError, match="failed for good") as error:
        kapso_sync()
    assert error.value.returncode == 2


def test_dry_run_counts_and_changes_nothing(sandbox: Sandbox) -> None:
    make_connection(connected_at=timezone.now() - timedelta(minutes=1))
    remote_customer(sandbox)
    known = connected(sandbox)
    sandbox.patch_number(known.phone_number_id, status="DISCONNECTED")
    make_link(expires_at=timezone.now())
    WebhookEvent.objects.create(idempotency_key="k", event="x.y", payload={})
    make_link(unconfirmed_phone_number_id="1", unconfirmed_since=timezone.now())
    tables = (Customer, SetupLink, Connection, WebhookEvent, TimelineEvent)

    def rows() -> list[Any]:
        return [list(model.objects.order_by("pk").values()) for model in tables]

    before = rows()
    summary = kapso_sync("--dry-run")
    assert rows() == before
    assert "would be: events 1, signals 0, claims 1, connected 1, disconnected 2" in summary
    assert "links 1" in summary


def test_quiet_when_asked(sandbox: Sandbox) -> None:
    assert kapso_sync("--verbosity", "0") == ""


def test_a_bar_on_a_terminal(sandbox: Sandbox, monkeypatch, capsys) -> None:
    sandbox.seed(3, 1)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    call_command("kapso_sync")
    assert "numbers: 3" in capsys.readouterr().err
