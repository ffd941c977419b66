from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import logging
import pydoc
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.core.asgi import get_asgi_application
from django.db import OperationalError, connections, transaction
from django.db import connection as database
from django.dispatch import Signal
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from kapso_connect import onboarding, outbox, signals, sync
from kapso_connect.models import Connection, TimelineEvent, WebhookEvent
from kapso_connect.onboarding import numbers
from kapso_connect.testing import Sandbox, webhook_headers
from kapso_connect.utils import time_since

from .clock import FakeClock
from .factories import (
    CREATED,
    SECRET,
    WEBHOOK,
    broken_queue,
    listening,
    make_customer,
    make_link,
    new_number_id,
    payload_for,
    post,
    queue_without_worker,
)

pytestmark = pytest.mark.django_db(transaction=True)


class Receiver:
    """A receiver that raises while it is ``broken``."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.broken = False

    def __call__(self, event: TimelineEvent, **kwargs: Any) -> None:
        self.calls.append(event.pk)
        if self.broken:
            raise RuntimeError("receiver is broken")


class OtherReceiver(Receiver):
    pass


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    signals.whatsapp_connected.connect(receiver)
    yield receiver
    signals.whatsapp_connected.disconnect(receiver)


@pytest.fixture
def other() -> Iterator[Receiver]:
    receiver = OtherReceiver()
    signals.whatsapp_connected.connect(receiver)
    yield receiver
    signals.whatsapp_connected.disconnect(receiver)


def connect() -> TimelineEvent:
    number = numbers.Number(new_number_id(), display_phone_number="+1 415-555-0100")
    onboarding.connect(make_customer(), number, source="webhook")
    return TimelineEvent.objects.latest("pk")


def make_due(event: TimelineEvent) -> None:
    TimelineEvent.objects.filter(pk=event.pk).update(
        next_attempt_at=timezone.now(), leased_at=None, leased_until=None
    )


def test_a_signal_is_sent_once(receiver: Receiver) -> None:
    event = connect()
    assert receiver.calls == [event.pk]
    assert outbox.deliver(event.pk)
    assert receiver.calls == [event.pk]
    event.refresh_from_db()
    assert event.delivered_at is not None
    assert event.attempts == 1


def test_an_event_without_receivers_counts_as_delivered() -> None:
    event = connect()
    assert event.delivered_at is not None
    assert event.next_attempt_at is None


def test_only_the_receiver_that_raised_is_called_again(receiver: Receiver, other: Receiver) -> None:
    receiver.broken = True
    event = connect()
    assert (len(receiver.calls), len(other.calls)) == (1, 1)
    assert event.delivered_at is None
    assert "Receiver: RuntimeError: receiver is broken" in event.last_error
    assert event.receivers == ["tests.test_outbox.OtherReceiver"]

    receiver.broken = False
    make_due(event)
    assert outbox.deliver(event.pk)
    assert (len(receiver.calls), len(other.calls)) == (2, 1)
    event.refresh_from_db()
    assert event.delivered_at is not None
    assert event.last_error == ""


class MuteError(Exception):
    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize("error", [ValueError("\ud800"), ValueError("a\0b"), MuteError()])
def test_an_error_that_no_database_can_store_does_not_repeat_the_signal(
    receiver: Receiver, error: Exception
) -> None:
    def broken(**kwargs: Any) -> None:
        raise error

    signals.whatsapp_connected.connect(broken)
    logging.disable()  # pytest could not show the text, either
    try:
        event = connect()
        make_due(event)
        assert not outbox.deliver(event.pk)
    finally:
        logging.disable(logging.NOTSET)
        signals.whatsapp_connected.disconnect(broken)
    event.refresh_from_db()
    assert len(receiver.calls) == 1
    assert type(error).__name__ in event.last_error
    assert "\0" not in event.last_error


def test_a_receiver_that_raised_is_not_called_before_the_retry_is_due(receiver: Receiver) -> None:
    receiver.broken = True
    event = connect()
    outbox.deliver(event.pk)
    assert len(receiver.calls) == 1
    assert event.next_attempt_at is not None
    assert timedelta(seconds=10) < event.next_attempt_at - timezone.now() < timedelta(seconds=16)


def test_retries_are_delayed_longer_each_time_and_limited(
    receiver: Receiver, configure: Any
) -> None:
    configure(RETRY_LIMIT=4)
    receiver.broken = True
    event = connect()
    delays = []
    while event.next_attempt_at is not None:
        delays.append(round((event.next_attempt_at - timezone.now()).total_seconds()))
        make_due(event)
        assert not outbox.deliver(event.pk)
        event.refresh_from_db()
    assert delays == [15, 30, 60]
    assert event.attempts == 4
    assert event.delivered_at is None
    assert len(receiver.calls) == 4
    assert not outbox.deliver(event.pk)
    assert len(receiver.calls) == 4


def test_only_one_process_acquires_the_lease(receiver: Receiver) -> None:
    receiver.broken = True
    event = connect()
    make_due(event)
    mine = TimelineEvent.objects.get(pk=event.pk)
    theirs = TimelineEvent.objects.get(pk=event.pk)
    assert mine.acquire_lease()
    assert not theirs.acquire_lease()
    assert not TimelineEvent.objects.get(pk=event.pk).acquire_lease()


def test_a_lease_that_could_not_be_committed_is_acquired_again(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    with queue_without_worker():
        event = connect()
    commit, errors = database.commit, [OperationalError("database is locked")]

    def fail_once() -> None:
        if errors:
            raise errors.pop()
        commit()

    monkeypatch.setattr(database, "commit", fail_once)
    assert outbox.deliver(event.pk)
    assert receiver.calls == [event.pk]


def test_the_lease_of_a_process_that_died_expires(receiver: Receiver, configure: Any) -> None:
    receiver.broken = True
    event = connect()
    make_due(event)
    event.refresh_from_db()
    configure(LEASE_SECONDS=0.01)
    assert event.acquire_lease()  # … and the process dies here
    receiver.broken = False
    time.sleep(0.02)
    assert outbox.deliver(event.pk)


def test_an_event_whose_workers_stop_is_abandoned(receiver: Receiver, configure: Any) -> None:
    configure(RETRY_LIMIT=2)
    receiver.broken = True
    event = connect()
    make_due(event)
    event.refresh_from_db()
    configure(LEASE_SECONDS=0.01)
    assert event.acquire_lease()  # … and the process dies here
    time.sleep(0.02)
    assert not outbox.deliver(event.pk)
    assert len(receiver.calls) == 1
    event.refresh_from_db()
    assert event.next_attempt_at is None
    assert event.last_error == (
        "Gave up after 2 attempts: each worker stopped while processing it."
    )
    receiver.broken = False
    assert outbox.resend(event)


def test_a_waiting_event_can_be_resent(receiver: Receiver) -> None:
    receiver.broken = True
    event = connect()
    receiver.broken = False
    assert outbox.resend(event)
    assert len(receiver.calls) == 2


def test_an_event_in_progress_is_not_resent(receiver: Receiver) -> None:
    receiver.broken = True
    event = connect()
    make_due(event)
    event.refresh_from_db()
    assert event.acquire_lease()
    assert outbox.resend(event) is None
    assert len(receiver.calls) == 1


def test_a_slow_process_does_not_overwrite_the_outcome_of_another(receiver: Receiver) -> None:
    delivered = timezone.now()

    def overtaken(event: TimelineEvent, **kwargs: Any) -> None:
        TimelineEvent.objects.filter(pk=event.pk).update(delivered_at=delivered)
        raise RuntimeError("too late")

    signals.whatsapp_connected.connect(overtaken)
    try:
        event = connect()
    finally:
        signals.whatsapp_connected.disconnect(overtaken)
    event.refresh_from_db()
    assert event.delivered_at == delivered
    assert event.last_error == ""


def test_a_deleted_event_is_not_delivered() -> None:
    assert not outbox.deliver(0)


def test_a_retry_sends_the_current_rows(receiver: Receiver) -> None:
    receiver.broken = True
    event = connect()
    assert event.connection is not None
    onboarding.disconnect(event.connection.phone_number_id, source="webhook")
    make_due(event)
    with listening("whatsapp_connected") as heard:
        outbox.deliver(event.pk)
    assert not heard.only("whatsapp_connected")["connection"].is_connected


def test_without_a_queue_the_event_stays_due(receiver: Receiver, caplog) -> None:
    with broken_queue():
        event = connect()
    assert receiver.calls == []
    assert "kapso_sync will do it" in caplog.text
    assert outbox.deliver(event.pk)
    assert receiver.calls == [event.pk]


def test_of_two_receivers_with_one_name_only_the_one_that_raised_is_called_again() -> None:
    calls: list[str] = []

    def make(name: str) -> Any:
        def receiver(**kwargs: Any) -> None:
            calls.append(name)
            if name == "bad":
                raise RuntimeError

        return receiver

    good, bad = make("good"), make("bad")
    for receiver in (bad, good):
        signals.whatsapp_connected.connect(receiver)
    try:
        event = connect()
        make_due(event)
        assert not outbox.deliver(event.pk)
    finally:
        for receiver in (good, bad):
            signals.whatsapp_connected.disconnect(receiver)
    assert calls == ["bad", "good", "bad"]
    assert [name.rpartition(".")[2] for name in event.receivers] == ["receiver#2"]


def concurrent_sync(sandbox: Sandbox) -> None:
    """Run kapso_sync in another thread, with a database connection of its own."""

    def run() -> None:
        try:
            sync.run()
        finally:
            connections.close_all()

    with ThreadPoolExecutor(1) as executor:
        executor.submit(run).result()


def test_signals_of_one_transaction_are_sent_once_however_long_the_receivers_take(
    configure: Any, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(LEASE_SECONDS=3)
    clock = FakeClock(monkeypatch)
    calls: list[int] = []
    customers = [make_customer(kapso_id=None) for _ in range(6)]

    def slow(event: TimelineEvent, **kwargs: Any) -> None:
        calls.append(event.pk)
        if threading.current_thread() is threading.main_thread():
            clock.advance(1.25)
            concurrent_sync(sandbox)

    signals.whatsapp_connected.connect(slow)
    try:
        with transaction.atomic():
            for customer in customers:
                onboarding.connect(customer, numbers.Number(new_number_id()), source="webhook")
    finally:
        signals.whatsapp_connected.disconnect(slow)
    events = TimelineEvent.objects.filter(kind="connected")
    assert sorted(calls) == sorted(events.values_list("pk", flat=True))
    assert not events.undelivered()


def test_several_slow_receivers_of_one_event_are_called_once_each(
    configure: Any, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(LEASE_SECONDS=3)
    clock = FakeClock(monkeypatch)
    calls: list[int] = []

    def make(number: int) -> Any:
        def slow(event: TimelineEvent, **kwargs: Any) -> None:
            calls.append(number)
            if threading.current_thread() is threading.main_thread():
                clock.advance(1.25)
                concurrent_sync(sandbox)

        return slow

    receivers = [make(number) for number in range(4)]
    for receiver in receivers:
        signals.whatsapp_connected.connect(receiver)
    try:
        connect()
    finally:
        for receiver in receivers:
            signals.whatsapp_connected.disconnect(receiver)
    assert calls == [0, 1, 2, 3]


def test_a_receiver_that_returned_is_noted_before_the_next_one_is_called(
    receiver: Receiver,
) -> None:
    """If the process dies in the second receiver, the first one is not called again."""
    noted = []

    def look(event: TimelineEvent, **kwargs: Any) -> None:
        noted.append(TimelineEvent.objects.get(pk=event.pk).receivers)

    signals.whatsapp_connected.connect(look)
    try:
        connect()
    finally:
        signals.whatsapp_connected.disconnect(look)
    assert noted == [["tests.test_outbox.Receiver"]]


def test_signal_that_another_process_has_taken_over_is_not_sent(receiver: Receiver) -> None:
    with transaction.atomic():
        event = connect()
        other = {"attempts": 2, "leased_at": timezone.now() + timedelta(minutes=5)}
        TimelineEvent.objects.filter(pk=event.pk).update(**other)
    assert receiver.calls == []


class GreenThreadTimeout(BaseException):
    """As the timeouts of green-thread libraries are: no Exception."""


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt, SystemExit, GreenThreadTimeout, asyncio.CancelledError]
)
def test_receiver_that_ends_in_no_exception_is_called_again_and_those_that_returned_are_not(
    receiver: Receiver, error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    def interrupted(**kwargs: Any) -> None:
        raise error

    later = OtherReceiver()
    signals.whatsapp_connected.connect(interrupted)
    signals.whatsapp_connected.connect(later)
    customer = make_customer()
    try:
        with pytest.raises(error):
            post(payload_for(customer, new_number_id()))
        assert WebhookEvent.objects.get().status == "processed"
        event = TimelineEvent.objects.get()
        assert (len(receiver.calls), len(later.calls)) == (1, 0)
        assert (event.delivered_at, event.leased_until, event.attempts) == (None, None, 1)
        assert event.next_attempt_at is not None
        assert error.__name__ in event.last_error
        assert f"raised {error.__name__}" in caplog.text
        make_due(event)
        with pytest.raises(error):
            outbox.deliver(event.pk)
    finally:
        signals.whatsapp_connected.disconnect(interrupted)
    make_due(event)
    assert outbox.deliver(event.pk)
    signals.whatsapp_connected.disconnect(later)
    assert (len(receiver.calls), len(later.calls)) == (1, 1)


def test_client_that_hangs_up_under_asgi_while_an_async_receiver_runs(receiver: Receiver) -> None:
    calls: list[str] = []
    customer = make_customer()
    body = json.dumps(payload_for(customer, new_number_id())).encode()
    headers = webhook_headers(body, SECRET, event=CREATED)
    scope = {
        "type": "http",
        "method": "POST",
        "path": WEBHOOK,
        "query_string": b"",
        "headers": [
            (b"host", b"site.example"),
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            *((name.lower().encode(), value.encode()) for name, value in headers.items()),
        ],
    }

    async def request() -> None:
        begun = asyncio.Event()
        loop = asyncio.get_running_loop()

        async def waiting(**kwargs: Any) -> None:
            calls.append("begins")
            loop.call_soon_threadsafe(begun.set)
            await asyncio.sleep(20)
            calls.append("ends")

        signals.whatsapp_connected.connect(waiting)
        try:
            messages = [{"type": "http.request", "body": body, "more_body": False}]

            async def receive() -> dict[str, Any]:
                if messages:
                    return messages.pop()
                await begun.wait()
                return {"type": "http.disconnect"}

            async def send(message: Any) -> None:
                raise AssertionError(message)

            with contextlib.suppress(asyncio.CancelledError):
                await get_asgi_application()(scope, receive, send)
        finally:
            signals.whatsapp_connected.disconnect(waiting)

    async_to_sync(request)()
    assert calls == ["begins"]
    assert WebhookEvent.objects.get().status == "processed"
    event = TimelineEvent.objects.get()
    assert len(receiver.calls) == 1
    assert (event.delivered_at, event.leased_until) == (None, None)
    assert "CancelledError" in event.last_error
    assert event.receivers == ["tests.test_outbox.Receiver"]


def test_number_that_no_receiver_hears_of_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    connect()
    unheard = [row for row in caplog.records if row.kapso_event == "signal.unheard"]
    assert [row.levelname for row in unheard] == ["WARNING"]


def test_process_without_receivers_leaves_the_signal_to_one_that_has_them(
    receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    with queue_without_worker():
        event = connect()
    signals.whatsapp_connected.disconnect(receiver)
    assert not outbox.deliver(event.pk)
    event.refresh_from_db()
    assert event.delivered_at is None
    assert event.next_attempt_at is not None
    assert "AppConfig.ready()" in event.last_error
    assert "signal.unheard" in [row.kapso_event for row in caplog.records]

    signals.whatsapp_connected.connect(receiver)
    make_due(event)
    assert outbox.deliver(event.pk)
    assert receiver.calls == [event.pk]


def test_process_with_only_our_email_leaves_the_signal_to_one_that_has_the_sites_receiver(
    receiver: Receiver, configure: Any
) -> None:
    configure(EMAIL_CONNECTED=True)
    with queue_without_worker():
        event = connect()
    signals.whatsapp_connected.disconnect(receiver)
    assert not outbox.deliver(event.pk)
    event.refresh_from_db()
    assert event.receivers == [outbox.EMAIL_RECEIVER]
    assert "AppConfig.ready()" in event.last_error
    signals.whatsapp_connected.connect(receiver)
    TimelineEvent.objects.undelivered().filter(pk=event.pk).retry_now()
    assert outbox.deliver(event.pk)
    assert len(receiver.calls) == 1


def test_our_email_alone_is_enough_where_the_site_has_no_receiver(configure: Any) -> None:
    configure(EMAIL_CONNECTED=True)
    with queue_without_worker():
        event = connect()
    assert outbox.deliver(event.pk)


def test_event_whose_receiver_was_removed_is_done_when_staff_send_it_again(
    receiver: Receiver,
) -> None:
    receiver.broken = True
    event = connect()
    signals.whatsapp_connected.disconnect(receiver)
    assert outbox.resend(event)
    event.refresh_from_db()
    assert event.delivered_at is not None


@pytest.mark.parametrize("use_tz", [True, False])
def test_queue_that_can_defer_calls_the_receiver_again(
    receiver: Receiver, settings: Any, use_tz: bool
) -> None:
    settings.USE_TZ = use_tz
    receiver.broken = True
    with queue_without_worker():
        event = connect()
        queue = outbox.deliver_event.get_backend()
        (first,) = queue.results
        first.task.call(*first.args)
        event.refresh_from_db()
        assert event.next_attempt_at is not None
        _, second = queue.results
        wait = time_since(event.next_attempt_at) - time_since(second.task.run_after)
        assert timedelta(seconds=0.9) < wait <= timedelta(seconds=1)
        assert timezone.is_aware(second.task.run_after) == use_tz

        receiver.broken = False
        second.task.call(*second.args)  # too early, as by a clock that is ahead
        assert len(receiver.calls) == 1
        make_due(event)
        second.task.call(*second.args)
        second.task.call(*second.args)
        assert len(receiver.calls) == 2
        assert len(queue.results) == 2
    event.refresh_from_db()
    assert event.delivered_at is not None


def test_async_receivers_are_called_once_too() -> None:
    calls: list[str] = []

    async def async_receiver(**kwargs: Any) -> None:
        calls.append("async")

    def broken(**kwargs: Any) -> None:
        calls.append("broken")
        raise RuntimeError

    for receiver in (async_receiver, broken):
        signals.whatsapp_connected.connect(receiver)
    try:
        event = connect()
        make_due(event)
        outbox.deliver(event.pk)
    finally:
        for receiver in (async_receiver, broken):
            signals.whatsapp_connected.disconnect(receiver)
    assert sorted(calls) == ["async", "broken", "broken"]


def test_help_shows_what_each_signal_is_sent_with() -> None:
    module = pydoc.render_doc(signals)
    for name, signal in vars(signals).items():
        if isinstance(signal, Signal):
            doc = inspect.getdoc(signal)
            assert "Arguments: " in doc
            assert "sender=" in doc
            shown = " ".join(pydoc.plain(pydoc.render_doc(signal)).split())
            assert " ".join(doc.split()) in shown
            assert " ".join(doc.split()) in " ".join(pydoc.plain(module).split()), name


def test_every_kind_of_event_but_some_has_a_public_signal() -> None:
    without_signal = {
        "details_received",
        "email_sent",
        "health_checked",
        "number_webhook_created",
        "number_webhook_deleted",
        "number_webhook_updated",
        "owner_assigned",
        "setup_link_expired",
        "setup_link_extended",
        "setup_link_opened",
        "setup_link_revoked",
        "setup_link_sent",
    }
    assert set(TimelineEvent.Kind.values) - without_signal == set(outbox.SIGNALS)
    sent = {id(signal) for signal, _sender in outbox.SIGNALS.values()}
    public = [value for value in vars(signals).values() if isinstance(value, Signal)]
    assert {id(signal) for signal in public} == sent


def test_a_signal_that_is_sent_immediately_costs_two_further_queries(receiver: Receiver) -> None:
    customer = make_customer()
    with CaptureQueriesContext(database) as captured:
        number = numbers.Number("1", display_phone_number="+1 415-555-0100")
        onboarding.connect(customer, number, source="webhook")
    assert receiver.calls
    assert len([q for q in captured if "connect_timelineevent" in q["sql"]]) <= 3


class Killed(BaseException):
    """The process ends here."""


def test_another_process_sends_the_signal_of_one_that_died_before_sending(
    receiver: Receiver,
) -> None:
    def die() -> None:
        raise Killed

    @transaction.atomic
    def connect_and_die_after_the_commit() -> None:
        transaction.on_commit(die)
        connect()

    with pytest.raises(Killed):
        connect_and_die_after_the_commit()
    event = TimelineEvent.objects.get()
    assert receiver.calls == []
    assert not outbox.deliver(event.pk), "it may still be sending"
    make_due(event)  # the lease ends
    assert outbox.deliver(event.pk)
    assert receiver.calls == [event.pk]


def test_a_transaction_longer_than_the_lease_sends_the_signal_once(
    receiver: Receiver, configure: Any
) -> None:
    configure(LEASE_SECONDS=0.01)
    with transaction.atomic():
        connect()
        time.sleep(0.02)
    assert len(receiver.calls) == 1
    assert TimelineEvent.objects.get().attempts == 1


def test_receivers_get_the_rows_of_the_database(receiver: Receiver) -> None:
    customer = make_customer(email="old@example.com")
    type(customer).objects.update(email="new@example.com")
    with listening("whatsapp_connected") as heard:
        onboarding.connect(customer, numbers.Number("1"), source="webhook")
    given = heard.only("whatsapp_connected")["customer"]
    assert given.email == "new@example.com"
    assert customer.email == "old@example.com"


def test_signals_of_a_moved_number_share_the_connection() -> None:
    """Sending them does not change the connection, which is the same row in both signals."""
    old, new = make_customer(), make_customer()
    link = make_link(old)
    number = numbers.Number("1")
    onboarding.connect(old, number, source="webhook", setup_link=link)
    customers_when_sent = []

    def remember(connection: Connection, **kwargs: Any) -> None:
        customers_when_sent.append(connection.customer_id)

    signals.whatsapp_disconnected.connect(remember)
    try:
        with listening("whatsapp_connected", "whatsapp_disconnected") as heard:
            moved = onboarding.connect(new, number, source="sync", asked_at=timezone.now())
    finally:
        signals.whatsapp_disconnected.disconnect(remember)
    assert customers_when_sent == [new.pk]
    assert heard.names() == ["whatsapp_disconnected", "whatsapp_connected"]
    lost, won = heard.only("whatsapp_disconnected"), heard.only("whatsapp_connected")
    assert (lost["customer"], lost["setup_link"]) == (old, link)
    assert (won["customer"], won["setup_link"]) == (new, None)
    for connection in (moved, lost["connection"], won["connection"]):
        assert (connection.customer, connection.setup_link) == (new, None)


def test_a_number_that_is_reconnected_keeps_its_link() -> None:
    link = make_link()
    number = numbers.Number("1")
    onboarding.connect(link.customer, number, source="webhook", setup_link=link)
    onboarding.disconnect("1", source="webhook")
    with listening("whatsapp_connected") as heard:
        again = onboarding.connect(
            link.customer, number, source="sync", asked_at=timezone.now() + timedelta(seconds=1)
        )
    arguments = heard.only("whatsapp_connected")
    assert arguments["setup_link"] is None
    assert arguments["connection"].setup_link == again.setup_link == link
    again.save()
    again.refresh_from_db()
    assert again.setup_link == link
