"""E-mails that are sent by themselves: reminders, after a failure, when a number is connected."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from email import message_from_string, policy
from typing import Any

import pytest
from django.core import mail as outbox_of
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from kapso_connect import outbox, sync
from kapso_connect.db import atomic
from kapso_connect.exceptions import CalledInTransaction, NoEmailAddress
from kapso_connect.models import (
    Connection,
    Customer,
    OnboardingStatus,
    SetupLink,
    Source,
    TimelineEvent,
    new_connect_key,
)
from kapso_connect.onboarding import automatic_emails, connect_urls, emails, numbers, send_reminder
from kapso_connect.onboarding.setup_links import record_failure, record_opened, record_sent
from kapso_connect.signals import whatsapp_connected
from kapso_connect.testing import Sandbox

from ..factories import (
    after_first_query,
    listening,
    make_connection,
    make_customer,
    make_link,
    queue_without_worker,
)
from ..smtp_server import SMTPServer, use_mail_server

pytestmark = pytest.mark.django_db

AWAY = {"match": ".*", "kind": "status", "status": 503}
Kind = TimelineEvent.Kind


def invited(days: float = 3, *, email: str = "ada@example.com", **fields: Any) -> SetupLink:
    """The link of a customer who was e-mailed it so many days ago."""
    customer = make_customer(email=email, connect_key=new_connect_key())
    link = make_link(customer, **fields)
    sent(link, days)
    return link


def sent(link: SetupLink, days: float, **given: Any) -> None:
    event = record_sent(link, given.pop("channel", "email"), to=link.customer.email, **given)
    moment = timezone.now() - timedelta(days=days)
    TimelineEvent.objects.filter(pk=event.pk).update(occurred_at=moment)


def failed(hours: float = 2, **fields: Any) -> SetupLink:
    """The link of a customer whose attempt failed so many hours ago."""
    customer = make_customer(
        **{"email": "ada@example.com", "connect_key": new_connect_key(), **fields}
    )
    link = make_link(customer)
    record_failure(link, "phone_verification_failed")
    moment = timezone.now() - timedelta(hours=hours)
    Customer.objects.filter(pk=customer.pk).update(status_changed_at=moment)
    return link


def send() -> list[str]:
    """Send what is due; return the subjects."""
    before = len(outbox_of.outbox)
    automatic_emails.send_due()
    return [str(message.subject) for message in outbox_of.outbox[before:]]


@pytest.fixture
def reminders(configure: Any) -> None:
    configure(EMAIL_REMINDER_DAYS=3, SITE_NAME="Crumb")


@pytest.fixture
def failures(configure: Any) -> None:
    configure(EMAIL_FAILED=True, SITE_NAME="Crumb")


REMINDER = "Reminder: connect your WhatsApp number to Crumb"
FAILURE = "Crumb: your WhatsApp number is not connected yet"


# Reminders


def test_without_the_settings_nothing_is_sent() -> None:
    invited()
    failed()
    assert send() == []
    assert automatic_emails.count_due() == 0


def test_reminder_is_sent_once_and_recorded(reminders: None) -> None:
    link = invited()
    assert automatic_emails.count_due() == 1
    assert send() == [REMINDER]
    assert connect_urls.connect_url(link.customer) in str(outbox_of.outbox[0].body)
    event = TimelineEvent.objects.latest("pk")
    assert (event.kind, event.source, event.actor, event.setup_link, event.data) == (
        "setup_link_sent",
        "sync",
        None,
        link,
        {"channel": "email", "to": "ada@example.com", "message": "reminder"},
    )
    link.refresh_from_db()
    assert link.reminded_at is not None
    assert send() == []
    assert automatic_emails.count_due() == 0


@pytest.mark.parametrize(
    ("days", "is_due"), [(2.9, False), (3.1, True), (9.9, True), (10.1, False)]
)
def test_reminder_is_sent_after_its_day_and_a_week_longer(
    reminders: None, days: float, is_due: bool
) -> None:
    invited(days)
    assert send() == [REMINDER] * is_due


def test_opened_invitation_is_reminded_of(reminders: None) -> None:
    assert invited(opened_at=timezone.now()).customer.status == OnboardingStatus.OPENED
    assert send() == [REMINDER]


def test_expired_invitation_is_reminded_of_since_its_url_works(reminders: None) -> None:
    invited(expires_at=timezone.now() - timedelta(hours=1))
    assert send() == [REMINDER]


def _connect(link: SetupLink) -> None:
    make_connection(link.customer, setup_link=link)


def _withdraw(link: SetupLink) -> None:
    Customer.objects.update(connect_key=None)


def _fail(link: SetupLink) -> None:
    record_failure(link, "link_expired")


def _invite_again(link: SetupLink) -> None:
    sent(link, 1)


def _remind(link: SetupLink) -> None:
    send_reminder(link.customer, link)
    outbox_of.outbox.clear()


def _replace_after_a_reminder(link: SetupLink) -> None:
    """A reminder was sent; then the link expired, and the customer's visit made a new one."""
    SetupLink.objects.update(reminded_at=timezone.now())
    TimelineEvent.objects.update(occurred_at=timezone.now() - timedelta(days=7))
    sent(link, 4, message=emails.REMINDER)
    make_link(link.customer, opened_at=timezone.now())


def _forget_address(link: SetupLink) -> None:
    Customer.objects.update(email="")


@pytest.mark.parametrize(
    "change",
    [
        _connect,
        _withdraw,
        _fail,
        _invite_again,
        _remind,
        _replace_after_a_reminder,
        _forget_address,
    ],
)
def test_no_reminder_after(reminders: None, change: Callable[[SetupLink], None]) -> None:
    change(invited())
    assert automatic_emails.count_due() == 0
    assert send() == []


def test_invitation_that_was_not_emailed_is_not_reminded_of(reminders: None) -> None:
    link = make_link(make_customer(email="ada@example.com", connect_key=new_connect_key()))
    sent(link, 4, channel="copy")
    assert send() == []


def test_new_link_at_the_same_url_is_reminded_of(reminders: None) -> None:
    old = invited(4, status=SetupLink.Status.EXPIRED)
    new = make_link(old.customer)
    assert send() == [REMINDER]
    new.refresh_from_db()
    assert new.reminded_at is not None


def test_new_invitation_after_a_reminder_is_reminded_of_anew(reminders: None) -> None:
    old = invited(9)
    sent(old, 6, message=emails.REMINDER)
    new = make_link(old.customer)
    sent(new, 4)
    assert send() == [REMINDER]


# After a failed attempt


def test_failure_is_explained_once_and_recorded(failures: None) -> None:
    link = failed()
    assert send() == [FAILURE]
    (message,) = outbox_of.outbox
    assert "WhatsApp sent a code to the number." in str(message.body)
    event = TimelineEvent.objects.latest("pk")
    assert (event.kind, event.source, event.setup_link, event.data) == (
        "email_sent",
        "sync",
        link,
        {"message": "failed", "to": "ada@example.com"},
    )
    assert send() == []


@pytest.mark.parametrize(
    ("hours", "is_due"), [(0.9, False), (1.1, True), (24 * 6.9, True), (24 * 7.1, False)]
)
def test_failure_is_explained_after_an_hour_and_not_after_a_week(
    failures: None, hours: float, is_due: bool
) -> None:
    failed(hours)
    assert send() == [FAILURE] * is_due


def test_customer_who_went_on_gets_no_email_about_the_failure(failures: None) -> None:
    for change in (_connect, _withdraw):
        change(failed())
    assert automatic_emails.count_due() == 0
    assert send() == []


# What goes wrong


@pytest.mark.parametrize("make", [invited, failed])
def test_customer_who_is_trying_just_now_gets_no_email(
    reminders: None, configure: Any, make: Callable[[], SetupLink]
) -> None:
    configure(EMAIL_REMINDER_DAYS=3, EMAIL_FAILED=True, SITE_NAME="Crumb")
    link = make()
    record_opened(link, source=Source.REDIRECT)
    assert send() == []
    long_ago = timezone.now() - timedelta(hours=2)
    SetupLink.objects.update(last_opened_at=long_ago)
    assert len(send()) == 1


def test_invalid_address_is_tried_once_and_reported(reminders: None) -> None:
    link = invited(email="nobody")
    errors: list[tuple[SetupLink, Exception]] = []
    for _ in range(2):
        automatic_emails.send_due(on_error=lambda link, error: errors.append((link, error)))
    ((about, error),) = errors
    assert about == link
    assert isinstance(error, NoEmailAddress)


def test_broken_template_costs_no_customer_the_email(
    reminders: None, settings: Any, tmp_path: Any
) -> None:
    folder = tmp_path / "kapso_connect" / "email"
    folder.mkdir(parents=True)
    (folder / "reminder.txt").write_text("{% no_such_tag %}")
    before, link = settings.TEMPLATES, invited()
    settings.TEMPLATES = [{**before[0], "DIRS": [tmp_path]}]
    assert send() == []
    settings.TEMPLATES = before
    link.refresh_from_db()
    assert link.reminded_at is None
    assert send() == [REMINDER]


def _refuse(command: str, response: str) -> Callable[[str, str], str]:
    return lambda given, _to: response * (given == command)


@pytest.mark.parametrize(
    ("answer", "is_due_again"),
    [
        (_refuse("RCPT", "450 Busy"), True),
        (_refuse("CONNECT", "421 Busy"), True),
        (_refuse("RCPT", "550 No such user"), False),
        (_refuse("END", "hang up"), False),
    ],
)
def test_only_what_was_surely_not_sent_is_sent_later(
    reminders: None, settings: Any, answer: Any, is_due_again: bool, caplog: Any
) -> None:
    invited()
    with SMTPServer(answer=answer) as server:
        use_mail_server(settings, server)
        errors: list[Exception] = []
        automatic_emails.send_due(on_error=lambda link, error: errors.append(error))
        assert len(errors) == 1
        assert automatic_emails.count_due() == is_due_again
        server.answer = lambda command, recipient: ""
        before = len(server.messages)
        automatic_emails.send_due()
        assert len(server.messages) - before == is_due_again
    events = [getattr(row, "kapso_event", "") for row in caplog.records]
    assert ("email.retry_scheduled" in events) == is_due_again
    assert ("email.failed" in events) != is_due_again


def test_address_that_is_refused_each_time_does_not_keep_others_waiting(
    reminders: None, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(automatic_emails, "MAX_EMAILS_PER_RUN", 1)
    for email in ("busy@example.com", "ada@example.com", "busy@example.com"):
        invited(email=email)

    def answer(command: str, recipient: str) -> str:
        return "450 Busy" * (command == "RCPT" and "busy" in recipient)

    with SMTPServer(answer=answer) as server:
        use_mail_server(settings, server)
        for _ in range(100):  # by chance it is not among the first hundred once in 10 ** 17
            automatic_emails.send_due()
            if server.messages:
                break
        assert len(server.messages) == 1


def test_address_that_is_refused_is_in_no_log(
    reminders: None, configure: Any, settings: Any, sandbox: Sandbox, on_commit: Any, caplog: Any
) -> None:
    sandbox.faults(api=[AWAY])
    with SMTPServer(answer=_refuse("RCPT", "450 Busy")) as server:
        use_mail_server(settings, server)
        invited(email="ada@example.com")
        invited(email="not an address of ada@example.com")
        sync.run()
        configure(EMAIL_CONNECTED=True)
        with on_commit():
            connect()
    events = {getattr(row, "kapso_event", "") for row in caplog.records}
    assert events >= {"sync.error", "signal.receiver_raised"}
    assert "ada@example.com" not in caplog.text
    assert "450" in TimelineEvent.objects.get(kind=Kind.CONNECTED).last_error


def test_mail_server_that_is_away_is_asked_once_a_run(reminders: None, settings: Any) -> None:
    for _ in range(3):
        invited()
    with SMTPServer(answer=_refuse("CONNECT", "421 Busy")) as server:
        use_mail_server(settings, server)
        automatic_emails.send_due()
        assert server.connections == 1
    assert automatic_emails.count_due() == 3


def test_run_sends_only_so_many(
    reminders: None, failures: None, configure: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(EMAIL_REMINDER_DAYS=3, EMAIL_FAILED=True)
    monkeypatch.setattr(automatic_emails, "MAX_EMAILS_PER_RUN", 3)
    for _ in range(2):
        failed()
        invited()
    assert automatic_emails.count_due() == 3
    assert send() == [FAILURE, FAILURE, REMINDER]
    assert send() == [REMINDER]


def test_run_ends_with_its_budget(reminders: None, monkeypatch: pytest.MonkeyPatch) -> None:
    invited()
    monkeypatch.setattr(automatic_emails, "SYNC_EMAILS_BUDGET", 0)
    assert send() == []
    assert automatic_emails.count_due() == 1


def test_reading_what_is_due_takes_a_constant_number_of_queries(
    reminders: None, failures: None, configure: Any
) -> None:
    configure(EMAIL_REMINDER_DAYS=3, EMAIL_FAILED=True, SHOW_INVITER=True)

    def count() -> int:
        with CaptureQueriesContext(
            connection,
        ) as queries:
            automatic_emails.send_due()
        return sum(query["sql"].startswith("SELECT") for query in queries)

    invited()
    one = count()
    for _ in range(4):
        invited()
    assert count() == one


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("sqlite_options")
def test_two_runs_at_once_send_one_email(reminders: None) -> None:
    invited()
    with after_first_query(automatic_emails.send_due):
        automatic_emails.send_due()
    assert [message.subject for message in outbox_of.outbox] == [REMINDER]


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("sqlite_options")
def test_customer_who_connects_during_the_run_is_not_reminded(reminders: None) -> None:
    link = invited()
    with after_first_query(lambda: _connect(link)):
        automatic_emails.send_due()
    assert outbox_of.outbox == []


@pytest.mark.django_db(transaction=True)
def test_nothing_is_sent_inside_a_transaction(reminders: None) -> None:
    invited()
    with atomic(), pytest.raises(CalledInTransaction):
        automatic_emails.send_due()
    assert outbox_of.outbox == []


# kapso_sync


def test_sync_sends_what_is_due_although_kapso_is_away(
    sandbox: Sandbox, configure: Any, settings: Any
) -> None:
    configure(EMAIL_REMINDER_DAYS=3, EMAIL_FAILED=True, EMAIL_REPLY_TO="crm@example.com")
    sandbox.faults(api=[AWAY])
    invited()
    failed()
    invited(email="nobody")
    assert sync.run(dry_run=True).emails == 3
    with SMTPServer() as server:
        use_mail_server(settings, server)
        report = sync.run()
        assert report.emails == 2
        assert any(error.startswith("E-mail about setup link") for error in report.errors)
        assert "emails 2" in report.summary()
        assert sync.run().emails == 0
        texts = [message_from_string(text, policy=policy.default) for _to, text in server.messages]
    assert [text["Reply-To"] for text in texts] == ["crm@example.com"] * 2
    assert {text["Auto-Submitted"] for text in texts} == {"auto-generated"}


def test_interrupted_sync_ends_after_the_email_that_it_sends(
    sandbox: Sandbox, reminders: None
) -> None:
    sandbox.faults(api=[AWAY])  # or it would say that these links are gone
    for _ in range(3):
        invited()
    report = sync.run(should_stop=lambda: bool(outbox_of.outbox))
    assert report.emails == len(outbox_of.outbox) == 1
    assert not any(error.startswith("E-mail") for error in report.errors)


# When a number is connected


def connect(**fields: Any) -> Connection:
    """Connect a number of an invited customer, as a webhook does."""
    customer = make_customer(
        email=fields.pop("email", "ada@example.com"), connect_key=new_connect_key()
    )
    link = make_link(customer)
    shown = {"display_phone_number": "+1 415-555-0123", "verified_name": "Ada's Bakery"}
    number = numbers.Number("100200300", **{**shown, **fields})
    return numbers.connect(customer, number, setup_link=link, source=Source.WEBHOOK)


@pytest.fixture
def on_commit(django_capture_on_commit_callbacks: Any) -> Any:
    return lambda: django_capture_on_commit_callbacks(execute=True)


def test_connected_customer_is_told_at_once(configure: Any, on_commit: Any) -> None:
    configure(EMAIL_CONNECTED=True, SITE_NAME="Crumb")
    with on_commit():
        number = connect()
        assert outbox_of.outbox == []
    (message,) = outbox_of.outbox
    assert message.subject == "Crumb: your WhatsApp number is connected"
    assert "+1 415-555-0123" in str(message.body)
    event = TimelineEvent.objects.get(kind=Kind.EMAIL_SENT)
    assert (event.connection, event.setup_link, event.source, event.data) == (
        number,
        number.setup_link,
        "webhook",
        {"message": "connected", "to": "ada@example.com"},
    )
    heard = TimelineEvent.objects.get(kind=Kind.CONNECTED)
    assert heard.receivers == [outbox.EMAIL_RECEIVER]
    assert heard.delivered_at is not None


@pytest.mark.parametrize(
    "fields",
    [{"display_phone_number": "+1 555-123-4567"}, {"email": ""}, {"email": "nobody"}],
)
def test_no_email_about(fields: dict[str, Any], configure: Any, on_commit: Any) -> None:
    configure(EMAIL_CONNECTED=True)
    with on_commit():
        connect(**fields)
    assert outbox_of.outbox == []
    assert TimelineEvent.objects.get(kind=Kind.CONNECTED).delivered_at is not None


def test_no_email_about_a_number_that_was_connected_elsewhere(configure: Any) -> None:
    """As kapso_sync finds them when a site is new."""
    configure(EMAIL_CONNECTED=True)
    with queue_without_worker():
        connect()
    Connection.objects.update(setup_link=None)
    assert outbox.deliver(TimelineEvent.objects.get(kind=Kind.CONNECTED).pk)
    assert outbox_of.outbox == []


def test_no_email_about_a_number_that_is_disconnected_again(configure: Any) -> None:
    configure(EMAIL_CONNECTED=True)
    with queue_without_worker():
        connect()
    Connection.objects.update(status=Connection.Status.DISCONNECTED)
    event = TimelineEvent.objects.get(kind=Kind.CONNECTED)
    assert outbox.deliver(event.pk)
    assert outbox_of.outbox == []


@pytest.mark.parametrize(
    ("answer", "is_repeated"),
    [
        (_refuse("RCPT", "450 Busy"), True),
        (_refuse("RCPT", "550 No such user"), False),
        (_refuse("END", "hang up"), False),
    ],
)
def test_connected_email_is_repeated_only_if_it_was_surely_not_sent(
    answer: Any, is_repeated: bool, configure: Any, settings: Any, on_commit: Any
) -> None:
    configure(EMAIL_CONNECTED=True)
    with SMTPServer(answer=answer) as server:
        use_mail_server(settings, server)
        with on_commit():
            connect()
        event = TimelineEvent.objects.get(kind=Kind.CONNECTED)
        assert (event.delivered_at is None) == is_repeated
        server.answer = lambda command, recipient: ""
        before = len(server.messages)
        with on_commit():
            outbox.resend(event)
        assert len(server.messages) - before == is_repeated


def test_repeated_connected_email_does_not_repeat_the_sites_receivers(
    configure: Any, settings: Any, on_commit: Any
) -> None:
    configure(EMAIL_CONNECTED=True)
    with SMTPServer(answer=_refuse("RCPT", "450 Busy")) as server, listening() as heard:
        use_mail_server(settings, server)
        with on_commit():
            connect()
        server.answer = lambda command, recipient: ""
        outbox.resend(TimelineEvent.objects.get(kind=Kind.CONNECTED))
        assert server.recipients == ["ada@example.com"]
    assert heard.names() == ["whatsapp_connected"]


def test_sites_receivers_do_not_wait_for_the_mail_server(configure: Any, on_commit: Any) -> None:
    configure(EMAIL_CONNECTED=True)
    sent_before: list[int] = []

    def receiver(**arguments: Any) -> None:
        sent_before.append(len(outbox_of.outbox))

    whatsapp_connected.connect(receiver)  # after this package's own
    try:
        with on_commit():
            connect()
    finally:
        whatsapp_connected.disconnect(receiver)
    assert sent_before == [0]
    assert len(outbox_of.outbox) == 1


def test_email_does_not_replace_the_sites_receivers_of_another_process(
    configure: Any, on_commit: Any
) -> None:
    """They may be connected where the number was recorded, and not where the signal is sent."""
    configure(EMAIL_CONNECTED=True)
    with queue_without_worker(), listening(), on_commit():
        connect()
    event = TimelineEvent.objects.get(kind=Kind.CONNECTED)
    assert not outbox.deliver(event.pk)
    assert len(outbox_of.outbox) == 1
    event.refresh_from_db()
    assert (event.delivered_at, event.last_error) == (None, outbox.NO_RECEIVER)
    assert event.next_attempt_at is not None
    with listening() as heard:
        outbox.resend(event)
    assert heard.names() == ["whatsapp_connected"]
    event.refresh_from_db()
    assert event.delivered_at is not None
    assert len(outbox_of.outbox) == 1


def test_setting_connects_and_disconnects_the_receiver(configure: Any) -> None:
    assert not outbox.has_receivers(Kind.CONNECTED)
    configure(EMAIL_CONNECTED=True)
    assert outbox.has_receivers(Kind.CONNECTED)
    assert not outbox.has_site_receivers(Kind.CONNECTED)
    with listening("whatsapp_connected"):
        assert outbox.has_site_receivers(Kind.CONNECTED)
    configure(EMAIL_CONNECTED=False)
    assert not outbox.has_receivers(Kind.CONNECTED)
    configure(EMAIL_CONNECTED="yes")  # a mistake, which a check reports
    assert not outbox.has_receivers(Kind.CONNECTED)


def test_email_does_not_hide_that_the_site_hears_of_nothing(
    configure: Any, on_commit: Any, caplog: Any
) -> None:
    configure(EMAIL_CONNECTED=True)
    with on_commit():
        connect()
    unheard = [row for row in caplog.records if row.kapso_event == "signal.unheard"]
    assert len(unheard) == 1
