from __future__ import annotations

import signal
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import pytest
from django.core.cache import cache
from django.core.management import CommandError, call_command
from django.db import DataError, OperationalError, models
from django.db.models.signals import pre_save
from django.utils import timezone

from kapso_connect import onboarding, outbox, signals, sync
from kapso_connect.exceptions import KapsoNotFound
from kapso_connect.kapso.client import KapsoClient
from kapso_connect.kapso.types import KapsoCustomer, KapsoPhoneNumber
from kapso_connect.models import Connection, Customer, SetupLink, TimelineEvent, WebhookEvent
from kapso_connect.onboarding import redirects, setup_links, status
from kapso_connect.onboarding.numbers import Number
from kapso_connect.testing import Sandbox
from kapso_connect.webhooks import inbox

from .factories import (
    failing_queries,
    listening,
    make_connection,
    make_customer,
    make_link,
    make_user,
    payload_for,
    post,
    queue_without_worker,
    read_only_database,
    remote_customer,
)
from .management.conftest import run_command

pytestmark = pytest.mark.django_db(transaction=True)

UNKNOWN_CUSTOMER = "crm-unknown"


def kapso_sync(*arguments: str) -> str:
    return run_command("kapso_sync", *arguments)


class InterruptedClient(KapsoClient):
    """Runs ``action``, as another process would, while sync asks about an unknown customer.

    At that moment sync has read the page of numbers and the local rows, and written nothing.
    """

    action: Callable[[], object]

    def get_customer(self, customer_id: str) -> KapsoCustomer:
        self.action()
        return super().get_customer(customer_id)


def sync_interrupted_by(sandbox: Sandbox, action: Callable[[], object]) -> sync.Report:
    """Sync while ``action`` happens. One more number is connected, of an unknown customer."""
    sandbox.add_number(external_customer_id=UNKNOWN_CUSTOMER)
    with InterruptedClient.from_settings() as client:
        client.action = action
        return sync.run(client=client)


@contextmanager
def failing_to_save(model: type[models.Model], error: Exception, **fields: Any) -> Iterator[None]:
    """Let the database refuse rows with these fields."""

    def refuse(instance: models.Model, **kwargs: Any) -> None:
        if all(getattr(instance, name) == value for name, value in fields.items()):
            raise error

    pre_save.connect(refuse, sender=model)
    try:
        yield
    finally:
        pre_save.disconnect(refuse, sender=model)


def numbers_at(sandbox: Sandbox) -> list[dict[str, Any]]:
    return list(sandbox.state()["phone_numbers"])


def connected(sandbox: Sandbox, **fields: Any) -> Connection:
    """A connection that the site and the sandbox agree on."""
    customer = remote_customer(sandbox)
    (number,) = [n for n in numbers_at(sandbox) if n["customer_id"] == customer.kapso_id]
    return make_connection(customer, phone_number_id=number["phone_number_id"], **fields)


def make_disconnection_older(connection: Connection) -> None:
    """Make the disconnection old enough that the API's answer counts."""
    Connection.objects.filter(pk=connection.pk).update(
        disconnected_at=timezone.now() - timedelta(minutes=5)
    )


def make_signal_due(connection: Connection) -> TimelineEvent:
    """An event whose signal has not been sent, as if its process had died."""
    return TimelineEvent.objects.create(
        kind="connected", source="webhook", customer=connection.customer, connection=connection
    )


# Interrupted work


def test_stored_events_are_processed(sandbox: Sandbox) -> None:
    customer = remote_customer(sandbox)
    WebhookEvent.objects.create(
        idempotency_key="k",
        event="whatsapp.phone_number.created",
        payload=payload_for(customer, "77"),
    )
    sandbox.add_number(customer_id=customer.kapso_id, phone_number_id="77")
    with listening("whatsapp_connected") as heard:
        assert "webhooks 1" in kapso_sync()
    assert "77" in [sent["connection"].phone_number_id for _, sent in heard]
    assert WebhookEvent.objects.get().status == "processed"


def test_signals_whose_process_died_are_delivered(sandbox: Sandbox) -> None:
    with listening("whatsapp_connected") as heard:
        with queue_without_worker():
            onboarding.connect(make_customer(), Number("1"), source="webhook")
        assert heard == []
        assert "signals 1" in kapso_sync()
    assert heard.only("whatsapp_connected")["connection"].phone_number_id == "1"


def test_signals_of_changes_found_by_a_run_are_sent_by_that_run(sandbox: Sandbox) -> None:
    remote_customer(sandbox)
    with queue_without_worker(), listening("whatsapp_connected") as heard:
        assert "signals 1" in kapso_sync()
    assert heard.names() == ["whatsapp_connected"]


def test_signals_do_not_wait_for_webhooks_that_wait_for_the_api(
    sandbox: Sandbox, configure: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = connected(sandbox, status="disconnected", disconnected_at=timezone.now())
    order: list[str] = []
    for number in range(8):
        # Whether an old event is repeated, or the number was connected anew, the API has to say.
        WebhookEvent.objects.create(
            idempotency_key=f"key-{number}",
            event="whatsapp.phone_number.created",
            payload=payload_for(connection.customer, connection.phone_number_id),
        )
    make_signal_due(connection)
    configure(REQUEST_BUDGET=0.1)
    monkeypatch.setattr(sync, "SYNC_WEBHOOKS_BUDGET", 0.25)
    monkeypatch.setattr(sync, "SYNC_BUDGET", 0.1)
    sandbox.faults(api=[{"match": ".*", "kind": "hang", "seconds": 20}])
    with listening() as heard:
        report = sync.run(progress=lambda step, done: order.append(f"{step} {len(heard)}"))
    assert order[0] == "signals 1"
    assert (report.signals, report.webhooks) == (1, 0)
    # The API was asked about some; the others are due as before, and the next run begins with them.
    left = WebhookEvent.objects.filter(attempts=0).count()
    assert 5 <= left <= 7
    sandbox.clear_faults()
    configure(REQUEST_BUDGET=5)
    monkeypatch.setattr(sync, "SYNC_WEBHOOKS_BUDGET", 30)
    assert sync.run().webhooks == left


def test_run_that_is_asked_to_stop_finishes_what_it_is_doing(sandbox: Sandbox) -> None:
    connection = connected(sandbox)
    events = [make_signal_due(connection) for _number in range(3)]
    stop: list[bool] = []
    with listening() as heard:
        signals.whatsapp_connected.connect(stop_soon := lambda **kwargs: stop.append(True))
        report = sync.run(should_stop=lambda: bool(stop))
        signals.whatsapp_connected.disconnect(stop_soon)
    assert (len(heard), report.signals, report.numbers) == (1, 1, 0)
    undelivered = TimelineEvent.objects.undelivered().due()
    assert list(undelivered.order_by("pk")) == events[1:], "the others are free for another process"


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_command_notes_what_a_receiver_has_done(
    sandbox: Sandbox, number: int, status: int
) -> None:
    connection = connected(sandbox)
    first, second = [make_signal_due(connection) for _number in range(2)]
    heard: list[int] = []
    handler = signal.getsignal(number)

    def receiver(event: TimelineEvent, **kwargs: Any) -> None:
        if not heard:
            signal.raise_signal(number)
        heard.append(event.pk)

    signals.whatsapp_connected.connect(receiver)
    try:
        with pytest.raises(CommandError, match="Interrupted") as caught:
            kapso_sync()
        assert (caught.value.returncode, heard) == (status, [first.pk])
        assert signal.getsignal(number) == handler
        assert "signals 1" in kapso_sync()
    finally:
        signals.whatsapp_connected.disconnect(receiver)
    assert heard == [first.pk, second.pk]


def test_failing_webhook_does_not_stop_the_others(sandbox: Sandbox) -> None:
    for key in ("a", "b"):
        WebhookEvent.objects.create(idempotency_key=key, event="x.y", payload={})
    with (
        failing_to_save(WebhookEvent, RuntimeError("no luck"), idempotency_key="a"),
        pytest.raises(CommandError, match=r"Webhook event \d+: no luck") as error,
    ):
        kapso_sync()
    assert error.value.returncode == 1
    assert WebhookEvent.objects.get(idempotency_key="a").status == "pending"
    assert WebhookEvent.objects.get(idempotency_key="b").status == "ignored"


def test_error_of_many_rows_is_logged_once_and_counted(
    sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "kapso_connect.sync")
    connection = connected(sandbox)
    for _event in range(5):
        make_signal_due(connection)
    with listening("whatsapp_connected"), read_only_database():
        report = sync.run()
    records = [row for row in caplog.records if getattr(row, "step", "") == "signals"]
    assert [row.kapso_event for row in records] == ["sync.error", "sync.more_errors"]
    assert records[1].count == 3 * 5 - 1  # signals are sent at three times in a run
    assert [text for text in report.errors if "14 more signals" in text]


def test_failed_receiver_is_called_again_when_due(sandbox: Sandbox) -> None:
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


def test_unconfirmed_redirects_are_confirmed(sandbox: Sandbox) -> None:
    customer = remote_customer(sandbox)
    link = make_link(customer)
    number = sandbox.add_number(customer_id=customer.kapso_id)
    sandbox.faults(api=[{"match": ".*", "kind": "status", "status": 401, "times": 1}])
    assert (
        redirects.confirm_redirect(link, Number(number["phone_number_id"])) == redirects.Pending()
    )
    make_link(customer)  # must not get the number that the older link led to
    with listening("whatsapp_connected") as heard:
        kapso_sync()
    sent = [t for _, t in heard if t["connection"].phone_number_id == number["phone_number_id"]]
    assert [t["setup_link"] for t in sent] == [link]
    link.refresh_from_db()
    assert link.unconfirmed_since is None


def test_redirect_to_an_already_connected_number_is_confirmed(sandbox: Sandbox) -> None:
    known = connected(sandbox)
    link = onboarding.create_setup_link(known.customer)
    SetupLink.objects.update(
        unconfirmed_phone_number_id=known.phone_number_id, unconfirmed_since=timezone.now()
    )
    sandbox.patch_setup_link(link.kapso_id, status="used", whatsapp_setup_status="completed")
    with listening() as heard:
        assert "redirects 1" in kapso_sync()
    assert heard == []
    link.refresh_from_db()
    assert (link.unconfirmed_since, link.setup_status) == (None, "completed")


def test_failing_redirect_does_not_stop_the_others(sandbox: Sandbox) -> None:
    failing, other = (
        make_link(
            customer,
            created_at=timezone.now() - timedelta(hours=1),
            unconfirmed_phone_number_id=number["phone_number_id"],
            unconfirmed_since=timezone.now(),
        )
        for customer in (remote_customer(sandbox), remote_customer(sandbox))
        for number in numbers_at(sandbox)
        if number["customer_id"] == customer.kapso_id
    )
    number = failing.unconfirmed_phone_number_id
    with (
        failing_to_save(Connection, DataError("too long"), phone_number_id=number),
        pytest.raises(CommandError, match=f"Redirect of setup link {failing.pk}: too long"),
    ):
        kapso_sync()
    assert list(SetupLink.objects.filter(unconfirmed_since__isnull=False)) == [failing]
    assert Connection.objects.get().setup_link == other


def test_rejected_redirect_is_forgotten(sandbox: Sandbox) -> None:
    link = make_link(
        remote_customer(sandbox), unconfirmed_phone_number_id="1", unconfirmed_since=timezone.now()
    )
    kapso_sync()
    link.refresh_from_db()
    assert link.unconfirmed_since is None
    assert not Connection.objects.filter(phone_number_id="1").exists()


# Changes without a webhook


def test_numbers_connected_without_a_webhook_are_found(sandbox: Sandbox) -> None:
    customer = remote_customer(sandbox)
    with listening() as heard:
        assert "connected 1" in kapso_sync()
    sent = heard.only("whatsapp_connected")
    assert (sent["customer"], sent["source"]) == (customer, "sync")
    assert sent["connection"].display_phone_number
    with listening() as heard:
        assert "connected 0, disconnected 0, updated 0" in kapso_sync()
    assert heard == []


def test_number_older_than_an_invitation_does_not_use_it(sandbox: Sandbox) -> None:
    customer = remote_customer(sandbox)
    (number,) = sandbox.state()["phone_numbers"]
    sandbox.patch_number(number["phone_number_id"], created_at="2026-01-01T00:00:00Z")
    link = onboarding.create_setup_link(customer)
    with listening() as heard:
        kapso_sync()
    assert heard.only("whatsapp_connected")["setup_link"] is None
    link.refresh_from_db()
    assert link.is_usable


def test_customers_of_unknown_numbers_are_added(sandbox: Sandbox) -> None:
    sandbox.add_number(external_customer_id="crm-1")
    ours = make_customer(kapso_id=None, external_customer_id="crm-1")
    kapso_sync()
    assert Connection.objects.get().customer == ours
    ours.refresh_from_db()
    assert ours.kapso_id


def test_failing_customer_does_not_stop_the_others(sandbox: Sandbox) -> None:
    for external_id in ("crm-0", "crm-1"):
        sandbox.add_number(external_customer_id=external_id)
    with (
        failing_to_save(Customer, DataError("value too long"), external_customer_id="crm-0"),
        pytest.raises(CommandError, match="value too long"),
    ):
        kapso_sync()
    assert Connection.objects.get().customer.external_customer_id == "crm-1"


def test_numbers_without_a_customer_are_ignored(sandbox: Sandbox) -> None:
    sandbox.add_number()
    assert "connected 0" in kapso_sync()
    assert not Connection.objects.exists()


@pytest.mark.parametrize("is_listed", [True, False])
def test_paused_numbers_that_were_deleted_are_found(sandbox: Sandbox, is_listed: bool) -> None:
    customer = remote_customer(sandbox)
    (number,) = sandbox.state()["phone_numbers"]
    if is_listed:
        sandbox.patch_number(number["phone_number_id"], status="DISCONNECTED")
    make_connection(
        customer,
        phone_number_id=number["phone_number_id"] if is_listed else "100000000000001",
        status="disconnected",
        disconnect_reason="offboarded",
        disconnected_at=timezone.now() - timedelta(hours=1),
    )
    with listening("whatsapp_disconnected") as heard:
        for _ in range(2):
            sync.run()
    paused = Connection.objects.paused().exists()
    assert (paused, len(heard)) == ((True, 0) if is_listed else (False, 1))


def test_numbers_deleted_without_a_webhook_are_found(sandbox: Sandbox) -> None:
    gone = make_connection(connected_at=timezone.now() - timedelta(minutes=1))
    with listening() as heard:
        assert "disconnected 1" in kapso_sync()
    sent = heard.only("whatsapp_disconnected")
    assert sent["connection"] == gone
    assert sent["event"].data == {"reason": "not_found"}


def test_number_that_the_api_does_not_show_yet_stays_connected(sandbox: Sandbox) -> None:
    new = make_connection(connected_at=timezone.now() - timedelta(seconds=5))
    with listening() as heard:
        kapso_sync()
    assert heard == []
    new.refresh_from_db()
    assert new.is_connected


def test_number_disconnected_at_kapso_is_found(sandbox: Sandbox) -> None:
    known = connected(sandbox)
    sandbox.patch_number(known.phone_number_id, status="DISCONNECTED")
    with listening() as heard:
        assert "disconnected 1" in kapso_sync()
    assert heard.only("whatsapp_disconnected")["event"].data == {"reason": "disconnected"}


def test_reconnected_number_is_found(sandbox: Sandbox) -> None:
    known = connected(sandbox)
    sandbox.patch_number(known.phone_number_id, created_at="2026-01-01T00:00:00Z")
    onboarding.disconnect(known.phone_number_id, source="webhook")
    with listening() as heard:
        kapso_sync()
        assert heard == []  # it may be in teardown: the API cannot tell yet
        make_disconnection_older(known)
        assert "connected 1" in kapso_sync()
    assert heard.names() == ["whatsapp_reconnected"]


def test_moved_number_is_announced_to_both_customers(sandbox: Sandbox) -> None:
    known = connected(sandbox)
    other = remote_customer(sandbox)
    sandbox.patch_number(known.phone_number_id, customer_id=other.kapso_id)
    with listening() as heard:
        kapso_sync()
    by_customer = {(name, sent["customer"]) for name, sent in heard}
    assert ("whatsapp_disconnected", known.customer) in by_customer
    assert ("whatsapp_connected", other) in by_customer


@pytest.mark.parametrize("is_kapsos_clock_ahead", [False, True])
def test_number_disconnected_during_the_run_stays_disconnected(
    sandbox: Sandbox, is_kapsos_clock_ahead: bool
) -> None:
    known = connected(sandbox)
    if is_kapsos_clock_ahead:
        created_at = timezone.now() + timedelta(hours=1)
        sandbox.patch_number(known.phone_number_id, created_at=created_at.isoformat())
    with listening() as heard:
        sync_interrupted_by(
            sandbox, lambda: onboarding.disconnect(known.phone_number_id, source="webhook")
        )
    assert [name for name, sent in heard if sent["connection"] == known] == [
        "whatsapp_disconnected"
    ]


def test_number_that_moves_after_its_page_was_read_does_not_move_back(sandbox: Sandbox) -> None:
    known = connected(sandbox)
    other = remote_customer(sandbox)

    def move() -> None:
        sandbox.patch_number(known.phone_number_id, customer_id=other.kapso_id)
        post(payload_for(other, known.phone_number_id))

    with listening() as heard:
        sync_interrupted_by(sandbox, move)
    assert [(name, sent["customer"]) for name, sent in heard if sent["connection"] == known] == [
        ("whatsapp_disconnected", known.customer),
        ("whatsapp_connected", other),
    ]


@pytest.mark.parametrize("is_found", [True, False])
def test_missing_number_that_changes_during_the_run_is_left_to_the_next_run(
    sandbox: Sandbox, is_found: bool
) -> None:
    known = connected(sandbox, connected_at=timezone.now() - timedelta(minutes=1))

    class OutdatedClient(KapsoClient):
        """Lists no numbers, and answers late whether the one asked for exists."""

        def list_phone_numbers(self, **filters: Any) -> Iterator[KapsoPhoneNumber]:
            return iter(())

        def get_phone_number(self, phone_number_id: str) -> KapsoPhoneNumber:
            remote = super().get_phone_number(phone_number_id)
            onboarding.disconnect(phone_number_id, source="webhook")
            if is_found:
                return remote
            number, asked_at = Number(phone_number_id), timezone.now()
            onboarding.connect(known.customer, number, source="webhook", asked_at=asked_at)
            raise KapsoNotFound("gone")

    with OutdatedClient.from_settings() as client, listening() as heard:
        sync.run(client=client)
    expected = ["whatsapp_disconnected"] + ["whatsapp_connected"] * (not is_found)
    assert heard.names() == expected


@pytest.mark.parametrize("is_open", [True, False])
def test_restrictions_of_a_former_account_are_cleared(sandbox: Sandbox, is_open: bool) -> None:
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


def test_display_data_is_kept_up_to_date(sandbox: Sandbox) -> None:
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


def test_expired_revoked_and_deleted_links_are_found(sandbox: Sandbox) -> None:
    customers = [make_customer(kapso_id=None) for _ in range(4)]
    active, expired, revoked, deleted = (onboarding.create_setup_link(c) for c in customers)
    SetupLink.objects.filter(pk=expired.pk).update(expires_at=timezone.now())
    sandbox.patch_setup_link(revoked.kapso_id, status="revoked")
    Customer.objects.filter(pk=deleted.customer_id).update(kapso_id=str(uuid.uuid4()))
    assert "links 3" in kapso_sync()
    statuses = {link.pk: link.status for link in SetupLink.objects.all()}
    assert statuses == {
        active.pk: "active",
        expired.pk: "expired",
        revoked.pk: "revoked",
        deleted.pk: "revoked",
    }
    assert "links 0" in kapso_sync()
    assert TimelineEvent.objects.filter(kind="setup_link_expired").count() == 1


def test_link_in_use_is_recorded_as_opened(sandbox: Sandbox) -> None:
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
    ("error", "code"),
    [
        ("waba_limit_reached", "waba_limit_reached"),
        (None, "unknown"),
        ("<script> too many\n", "unknown"),
        ("x" * 65, "unknown"),
    ],
    ids=["code", "nothing", "text", "long"],
)
def test_failure_without_a_redirect_is_recorded_once(
    sandbox: Sandbox, error: str | None, code: str
) -> None:
    link = onboarding.create_setup_link(make_customer(kapso_id=None))
    sandbox.patch_setup_link(
        link.kapso_id, whatsapp_setup_status="failed", whatsapp_setup_error=error
    )
    with listening() as heard:
        for _ in range(2):
            kapso_sync()
    link.refresh_from_db()
    assert (link.setup_status, link.last_error_code) == ("failed", code)
    assert heard.only("whatsapp_setup_failed")["error_code"] == code
    assert heard.only("whatsapp_setup_failed")["source"] == "sync"


def test_all_links_are_checked_in_several_runs(sandbox: Sandbox, monkeypatch) -> None:
    monkeypatch.setattr(sync, "MAX_LINKS_PER_RUN", 2)
    for _ in range(3):
        onboarding.create_setup_link(make_customer(kapso_id=None))
    kapso_sync()
    assert SetupLink.objects.filter(checked_at=None).count() == 1
    kapso_sync()
    assert not SetupLink.objects.filter(checked_at=None).exists()


def test_run_leaves_a_part_of_the_rate_limit_to_others(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(12):
        ended = connected(sandbox, status="disconnected", disconnected_at=timezone.now())
        WebhookEvent.objects.create(
            idempotency_key=f"key-{number}",
            event="whatsapp.phone_number.created",
            payload=payload_for(ended.customer, ended.phone_number_id),
        )
        link = onboarding.create_setup_link(make_customer(kapso_id=None))
        link.unconfirmed_phone_number_id, link.unconfirmed_since = str(number), timezone.now()
        link.save()
    before = len(sandbox.requests())
    sandbox.set_rate_limit(10)
    monkeypatch.setattr(sync, "SYNC_BUDGET", 5)
    report = sync.run()
    statuses = [row["status"] for row in sandbox.requests()[before:]]
    assert 429 not in statuses
    assert len(statuses) == 9
    assert "kept for webhooks and customers" in report.errors[-1]


@pytest.mark.parametrize("mode", ["partner_managed", "customer_managed"])
def test_whether_kapso_pays_meta_is_asked_where_it_shall(sandbox: Sandbox, mode: str) -> None:
    number = connected(sandbox)
    (remote,) = numbers_at(sandbox)
    account = number.business_account_id = remote["business_account_id"]
    number.setup_link = make_link(number.customer, options={"meta_billing_mode": mode})
    number.save()

    def funding() -> tuple[str, bool]:
        kapso_sync()
        number.refresh_from_db()
        return number.funding_status, number.funding_checked_at is not None

    sandbox.set_funding(account, "pending")
    assert sync.run(dry_run=True).updated == 0
    assert not any(row["path"].endswith("/funding") for row in sandbox.requests())
    is_asked = mode == "partner_managed"
    assert funding() == ("pending" if is_asked else "", is_asked)
    sandbox.set_funding(account, "not_funded")
    funding()  # it was asked a moment ago
    requests = [row["path"] for row in sandbox.requests()]
    assert sum(path.endswith("/funding") for path in requests) == is_asked
    Connection.objects.update(funding_checked_at=timezone.now() - timedelta(hours=2))
    sandbox.faults(api=[{"match": "/funding", "kind": "status", "status": 404, "times": 1}])
    assert funding()[0] == ("pending" if is_asked else "")  # unknown breaks nothing
    sandbox.clear_faults()
    Connection.objects.update(funding_checked_at=timezone.now() - timedelta(hours=2))
    assert funding()[0] == ("not_funded" if is_asked else "")


def test_failing_link_does_not_stop_the_others(sandbox: Sandbox) -> None:
    broken, revoked = (onboarding.create_setup_link(make_customer(kapso_id=None)) for _ in "ab")
    sandbox.patch_setup_link(revoked.kapso_id, status="revoked")
    its_links = f"/customers/{broken.customer.kapso_id}/setup_links"
    sandbox.faults(api=[{"match": its_links, "kind": "garbage"}])
    for _ in range(2):
        with suppress(CommandError):
            kapso_sync()
    revoked.refresh_from_db()
    assert revoked.status == "revoked"


def test_link_extended_at_kapso(sandbox: Sandbox) -> None:
    link = onboarding.create_setup_link(make_customer(kapso_id=None))
    later = timezone.now() + timedelta(days=60)
    sandbox.patch_setup_link(link.kapso_id, expires_at=later.isoformat())
    kapso_sync()
    link.refresh_from_db()
    assert link.expires_at == later


def test_failing_number_does_not_stop_the_others(sandbox: Sandbox) -> None:
    sandbox.seed(3, 1)
    number = numbers_at(sandbox)[1]["phone_number_id"]
    with (
        failing_to_save(Connection, LookupError("no luck"), phone_number_id=number),
        pytest.raises(CommandError, match="no luck") as error,
    ):
        kapso_sync()
    assert error.value.returncode == 1
    assert Connection.objects.filter(status="connected").count() == 2


@pytest.mark.parametrize("change", ["connected", "disconnected"])
def test_new_number_whose_webhook_arrives_during_the_run_is_announced_once(
    sandbox: Sandbox, change: str
) -> None:
    customers = [remote_customer(sandbox) for _ in range(3)]
    numbers = {row["customer_id"]: row["phone_number_id"] for row in numbers_at(sandbox)}
    customer = customers[1]
    number = numbers[customer.kapso_id]

    def receive_webhook() -> None:
        if change == "connected":
            onboarding.connect(customer, Number(number), source="webhook")
        else:
            onboarding.disconnect(number, customer=customer, source="webhook")

    with listening() as heard:
        report = sync_interrupted_by(sandbox, receive_webhook)
    assert report.connected == (4 if change == "connected" else 3)
    assert heard.names() == ["whatsapp_connected"] * report.connected
    assert Connection.objects.filter(status="connected").count() == report.connected
    assert Connection.objects.count() == 4


def test_number_found_by_sync_completes_its_link(sandbox: Sandbox) -> None:
    customer, other = remote_customer(sandbox), remote_customer(sandbox)
    link = make_link(customer, created_at=timezone.now() - timedelta(hours=1))
    with listening() as heard:
        kapso_sync()
    assert {sent["customer"]: sent["setup_link"] for _, sent in heard} == {
        customer: link,
        other: None,
    }
    link.refresh_from_db()
    assert (link.status, link.setup_status) == ("used", "completed")


# Stored statuses


def change_status_past_onboarding(customer: Customer, status: str) -> None:
    Customer.objects.filter(pk=customer.pk).update(status=status)


def status_reports(caplog: Any) -> list[Any]:
    return [row for row in caplog.records if vars(row).get("kapso_event") == "status.repaired"]


def test_wrong_stored_status_is_repaired_loudly(sandbox: Sandbox, caplog: Any) -> None:
    wrong, right = make_customer(), make_customer()
    before = timezone.now()
    change_status_past_onboarding(wrong, "connected")
    assert sync.run().repaired == 1
    repaired, untouched = Customer.objects.get(pk=wrong.pk), Customer.objects.get(pk=right.pk)
    assert (repaired.status, repaired.status_changed_at > before) == ("not_invited", True)
    assert untouched.status_changed_at == right.status_changed_at
    (record,) = status_reports(caplog)
    assert (record.levelname, record.customer_id) == ("ERROR", wrong.pk)
    assert (record.was, record.now) == ("connected", "not_invited")
    assert "repaired 0" in kapso_sync()


def test_wrong_stored_status_is_repaired_without_the_api(sandbox: Sandbox) -> None:
    customer = make_customer()
    change_status_past_onboarding(customer, "failed")
    sandbox.faults(api=[{"match": ".*", "kind": "status", "status": 401}])
    with pytest.raises(CommandError):
        kapso_sync()
    assert Customer.objects.get().status == "not_invited"


def test_dry_run_only_counts_wrong_stored_statuses(sandbox: Sandbox, caplog: Any) -> None:
    customer = make_customer()
    change_status_past_onboarding(customer, "opened")
    assert "repaired 1" in kapso_sync("--dry-run")
    assert Customer.objects.get().status == "opened"
    assert status_reports(caplog) == []


def test_statuses_are_compared_in_pages(
    sandbox: Sandbox, monkeypatch: Any, django_assert_max_num_queries: Any
) -> None:
    monkeypatch.setattr(status, "PAGE_SIZE", 10)
    customers = [make_customer() for _ in range(25)]
    wrong = [customer.pk for customer in customers[::3]]
    Customer.objects.filter(pk__in=wrong).update(status="connected")
    with django_assert_max_num_queries(4):
        assert list(status.find_wrong_statuses()) == wrong
    assert f"repaired {len(wrong)}" in kapso_sync()
    assert list(status.find_wrong_statuses()) == []


# Cost


def test_number_of_queries_for_a_page_of_known_numbers(
    sandbox: Sandbox, django_assert_max_num_queries
) -> None:
    sandbox.seed(201, 1)
    kapso_sync()
    assert Connection.objects.filter(status="connected").count() == 201
    before = len(sandbox.requests())
    with django_assert_max_num_queries(25):
        kapso_sync()
    paths = [row["path"] for row in sandbox.requests()[before:]]
    assert paths == ["/platform/v1/whatsapp/phone_numbers"] * 3


def test_number_of_queries_for_new_numbers(sandbox: Sandbox, django_assert_max_num_queries) -> None:
    sandbox.seed(100, 1)
    kapso_sync()
    assert Connection.objects.all().delete()
    with django_assert_max_num_queries(40):
        kapso_sync()
    assert Connection.objects.filter(status="connected").count() == 100


def test_many_unknown_customers_are_listed_together(sandbox: Sandbox) -> None:
    sandbox.seed(150, 1)
    kapso_sync()
    paths = [row["path"] for row in sandbox.requests()]
    assert len(paths) <= 6
    assert Customer.objects.count() == 150


# Errors


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
def test_unavailable_api_delays_nothing_else(sandbox: Sandbox, rule) -> None:
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


def test_outage_of_the_api_is_logged_as_an_error_once(
    sandbox: Sandbox,
    caplog: pytest.LogCaptureFixture,
    configure: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("kapso_connect.kapso.http.BACKOFF_FACTOR", 0.01)
    caplog.set_level("INFO", "kapso_connect.sync")
    cache.clear()
    configure(API_BASE_URL="http://127.0.0.1:9")
    for _run in range(3):
        assert sync.run().errors
    configure(API_BASE_URL=sandbox.url)
    sync.run()
    configure(API_BASE_URL="http://127.0.0.1:9")
    sync.run()
    names = [record.kapso_event for record in caplog.records]
    still = "sync.still_stopped"
    stopped = [name for name in names if name != "sync.finished"]
    assert stopped == ["sync.stopped", still, still, "sync.stopped"]


def test_outage_of_the_database_is_one_line(sandbox: Sandbox) -> None:
    error = OperationalError("connection refused\nIs the server running?")
    with (
        failing_queries(error, "SELECT", TimelineEvent),
        pytest.raises(CommandError) as caught,
    ):
        kapso_sync()
    assert caught.value.returncode == 1
    assert str(caught.value).endswith("is not available: OperationalError: connection refused")


def test_incomplete_list_disconnects_no_number(sandbox: Sandbox) -> None:
    sandbox.seed(101, 1)
    kapso_sync()
    Connection.objects.update(connected_at=timezone.now() - timedelta(minutes=1))
    sandbox.faults(api=[{"match": "phone_numbers", "kind": "status", "status": 503, "after": 1}])
    with pytest.raises(CommandError):
        kapso_sync()
    assert Connection.objects.filter(status="connected").count() == 101


@pytest.mark.parametrize(("lost", "kept"), [(2, 0), (21, 20)])
def test_key_of_another_project_disconnects_no_number(
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


def test_only_number_may_be_gone(sandbox: Sandbox) -> None:
    make_connection(connected_at=timezone.now() - timedelta(minutes=1))
    assert "disconnected 1" in kapso_sync()


def test_permanent_failures_end_with_status_2(sandbox: Sandbox) -> None:
    post({"phone_number_id": 5})
    with pytest.raises(CommandError, match="failed permanently") as error:
        kapso_sync()
    assert error.value.returncode == 2


def test_what_was_dismissed_does_not_count_as_failed(sandbox: Sandbox) -> None:
    post({"phone_number_id": 5})
    signal = TimelineEvent.objects.create(kind="connected", source="sync", next_attempt_at=None)
    staff = make_user()
    assert inbox.dismiss(WebhookEvent.objects.get(), by=staff, because="A test.")
    with pytest.raises(CommandError, match="1 webhook or signal failed permanently"):
        kapso_sync()
    assert outbox.dismiss(signal, by=staff, because="A test.")
    assert "waiting 0, failed 0" in kapso_sync()


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
    assert "(dry run) webhooks 1, signals 0, redirects 1, connected 1, disconnected 2" in summary
    assert "links 1" in summary


def test_verbosity_0_prints_nothing(sandbox: Sandbox) -> None:
    assert kapso_sync("--verbosity", "0") == ""


def test_progress_bar_on_a_terminal(sandbox: Sandbox, monkeypatch, capsys) -> None:
    sandbox.seed(3, 1)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    call_command("kapso_sync")
    assert "numbers: 3" in capsys.readouterr().err
