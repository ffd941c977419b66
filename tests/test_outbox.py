from __future__ import annotations

import inspect
import logging
import pydoc
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.db import OperationalError, transaction
from django.db import connection as database
from django.dispatch import Signal
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from kapso_connect import onboarding, outbox, signals
from kapso_connect.models import Connection, TimelineEvent
from kapso_connect.onboarding import numbers

from .factories import (
    broken_queue,
    listening,
    make_customer,
    make_link,
    new_number_id,
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
    onboarding.connect(make_customer(), numbers.Number(new_number_id()), source="webhook")
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


def test_of_two_receivers_with_one_name_both_must_return() -> None:
    def make(broken: bool) -> Any:
        def receiver(**kwargs: Any) -> None:
            if broken:
                raise RuntimeError

        return receiver

    good, bad = make(False), make(True)
    for receiver in (good, bad):
        signals.whatsapp_connected.connect(receiver)
    try:
        event = connect()
    finally:
        for receiver in (good, bad):
            signals.whatsapp_connected.disconnect(receiver)
    assert event.receivers == []
    assert event.delivered_at is None


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
        "health_checked",
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


def test_a_signal_that_is_sent_immediately_costs_one_further_query(receiver: Receiver) -> None:
    customer = make_customer()
    with CaptureQueriesContext(database) as captured:
        onboarding.connect(customer, numbers.Number("1"), source="webhook")
    assert receiver.calls
    assert len([q for q in captured if "connect_timelineevent" in q["sql"]]) <= 2


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
    assert TimelineEvent.objects.get().attempts == 2


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
