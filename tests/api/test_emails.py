"""E-mailing one customer the personal link, or a reminder of it, through the REST API."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.core import mail as outbox
from django.core.mail.backends.locmem import EmailBackend
from django.db import OperationalError, connection
from django.test import override_settings
from django.utils import timezone
from django.utils.dateparse import parse_datetime

from kapso_connect.models import (
    Customer,
    IdempotentRequest,
    SetupLink,
    TimelineEvent,
)
from kapso_connect.onboarding.connect_urls import connect_url
from kapso_connect.utils import utc_now

from ..factories import make_connection, make_user
from ..faults import ProcessKilled, failing_statement, kill_process
from ..smtp_server import SMTPServer, use_mail_server
from .support import Caller, code, make_invited

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("unthrottled")]

KEY = {"Idempotency-Key": "8e03978e-40d5-43e8-bc93-6894a57f9324"}
BOTH = pytest.mark.parametrize("action", ["send-invitation", "send-reminder"])


def send(caller: Caller, link: SetupLink, action: str = "send-invitation", **options: Any) -> Any:
    return caller.post(f"customers/{link.customer_id}/{action}/", **options)


def sent_events() -> list[TimelineEvent]:
    return list(TimelineEvent.objects.filter(kind="setup_link_sent"))


@BOTH
def test_customer_is_sent_the_personal_link(caller: Caller, action: str) -> None:
    link = make_invited()
    answer = send(caller, link, action)
    assert answer.status_code == 200, answer.content
    (message,) = outbox.outbox
    assert message.to == ["ada@example.com"]
    assert connect_url(link.customer) in message.body
    (event,) = sent_events()
    assert (event.customer, event.setup_link, event.actor) == (link.customer, link, caller.user)
    assert event.data.get("message", "invitation") == action.removeprefix("send-")
    body = answer.json()
    sent_at = parse_datetime(body.pop("sent_at"))
    assert sent_at == event.occurred_at
    assert body == {"customer": link.customer_id, "setup_link": link.pk, "to": "ada@example.com"}
    link.refresh_from_db()
    assert bool(link.reminded_at) == (action == "send-reminder")


def test_link_that_has_expired_is_sent(caller: Caller) -> None:
    """The personal link leads to a new one."""
    link = make_invited()
    SetupLink.objects.update(status="expired")
    assert send(caller, link).status_code == 200
    assert len(outbox.outbox) == 1


@BOTH
def test_unknown_fields_are_rejected(caller: Caller, action: str) -> None:
    answer = send(caller, make_invited(), action, body={"to": "else@example.com"})
    assert code(answer, 400) == "invalid"
    assert list(answer.json()["fields"]) == ["to"]
    assert not outbox.outbox


def erase(link: SetupLink) -> None:
    Customer.objects.update(erased_at=timezone.now(), connect_key=None, email="")


def connect(link: SetupLink) -> None:
    SetupLink.objects.update(status="used", setup_status="completed")
    make_connection(link.customer, setup_link=link)


def remove_link(link: SetupLink) -> None:
    Customer.objects.update(latest_setup_link=None)


@BOTH
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (erase, "customer_erased"),
        (connect, "already_connected"),
        (remove_link, "no_personal_link"),
        (lambda link: Customer.objects.update(connect_key=None), "no_personal_link"),
        (lambda link: Customer.objects.update(email=""), "no_email_address"),
        (lambda link: Customer.objects.update(email="nobody"), "no_email_address"),
    ],
)
def test_what_cannot_be_sent_is_refused(
    caller: Caller, action: str, change: Any, expected: str
) -> None:
    link = make_invited()
    change(link)
    answer = send(caller, link, action, headers=KEY)
    assert code(answer, 409) == expected
    assert not outbox.outbox
    assert not sent_events()
    assert not IdempotentRequest.objects.exists(), "The key is free again."


def test_revoked_link_is_not_sent(caller: Caller) -> None:
    link = make_invited()
    SetupLink.objects.update(status="revoked")
    assert code(send(caller, link), 409) == "no_personal_link"


def test_customer_who_failed_is_not_reminded(caller: Caller) -> None:
    link = make_invited()
    Customer.objects.update(status="failed")
    assert code(send(caller, link, "send-reminder"), 409) == "not_waiting"
    assert send(caller, link).status_code == 200


def test_customer_is_reminded_once_a_day(caller: Caller) -> None:
    link = make_invited()
    assert send(caller, link, "send-reminder").status_code == 200
    assert code(send(caller, link, "send-reminder"), 409) == "emailed_recently"
    SetupLink.objects.update(reminded_at=timezone.now() - timedelta(days=2))
    TimelineEvent.objects.update(occurred_at=timezone.now() - timedelta(days=2))
    assert send(caller, link, "send-reminder").status_code == 200
    assert len(outbox.outbox) == 2


def test_customer_who_was_just_invited_is_not_reminded(caller: Caller) -> None:
    link = make_invited()
    assert send(caller, link).status_code == 200
    assert code(send(caller, link, "send-reminder"), 409) == "emailed_recently"


@pytest.mark.django_db(transaction=True)
def test_customer_whom_another_process_reminds_is_not_reminded_again(
    caller: Caller,
) -> None:
    link = make_invited()
    others = SetupLink.objects.filter(pk=link.pk)
    seen: list[None] = []

    def remind_elsewhere(execute: Any, sql: str, *args: Any) -> Any:
        if "reminded_at" in sql and sql.startswith("UPDATE") and not seen:
            seen.append(None)
            others.update(reminded_at=utc_now())
        return execute(sql, *args)

    with connection.execute_wrapper(remind_elsewhere):
        answer = send(caller, link, "send-reminder")
    assert code(answer, 409) == "emailed_recently"
    assert not outbox.outbox


# The mail server


def refuses(command: str, response: str) -> Any:
    return lambda given, recipient: response if given == command else ""


MAIL_ERRORS = [
    ("RCPT", "550 No such user ada@example.com", 502, "email_refused"),
    ("RCPT", "451 Greylisted, ada@example.com", 503, "email_not_accepted_yet"),
    ("CONNECT", "421 Too many connections", 503, "email_not_accepted_yet"),
    ("END", "hang up", 503, "email_outcome_unknown"),
]


@BOTH
@pytest.mark.parametrize(("command", "response", "status", "expected"), MAIL_ERRORS)
def test_error_of_the_mail_server_has_a_code_of_its_own(
    caller: Caller,
    settings: Any,
    caplog: pytest.LogCaptureFixture,
    action: str,
    command: str,
    response: str,
    status: int,
    expected: str,
) -> None:
    link = make_invited()
    caplog.set_level(logging.INFO)
    with SMTPServer(answer=refuses(command, response)) as server:
        use_mail_server(settings, server)
        answer = send(caller, link, action)
    assert code(answer, status) == expected
    assert ("Retry-After" in answer.headers) == (status == 503)
    assert not sent_events()
    link.refresh_from_db()
    is_claimed = action == "send-reminder" and expected == "email_outcome_unknown"
    assert bool(link.reminded_at) == is_claimed
    assert f"No e-mail for customer {link.customer_id}" in caplog.text
    for secret in ("ada@example.com", link.customer.connect_key):
        assert secret not in caplog.text
        assert secret not in answer.content.decode()


@BOTH
@pytest.mark.parametrize(("command", "response", "status", "expected"), MAIL_ERRORS[:3])
def test_key_is_free_after_an_email_that_was_not_sent(
    caller: Caller,
    settings: Any,
    action: str,
    command: str,
    response: str,
    status: int,
    expected: str,
) -> None:
    link = make_invited()
    answers = iter([response])
    with SMTPServer(
        answer=lambda given, recipient: next(answers, "") if given == command else ""
    ) as server:
        use_mail_server(settings, server)
        assert code(send(caller, link, action, headers=KEY), status) == expected
        assert send(caller, link, action, headers=KEY).status_code == 200
        assert len(server.messages) == 1


@BOTH
def test_email_that_may_have_been_sent_is_not_sent_again(
    caller: Caller, settings: Any, action: str
) -> None:
    link = make_invited()
    with SMTPServer(answer=refuses("END", "hang up")) as server:
        use_mail_server(settings, server)
        for _ in range(3):
            answer = send(caller, link, action, headers=KEY)
            assert code(answer, 503) == "email_outcome_unknown"
        assert len(server.messages) == 1


# The same again


@BOTH
def test_repeated_request_sends_no_second_email(caller: Caller, action: str) -> None:
    link = make_invited()
    first, again = (send(caller, link, action, headers=KEY) for _ in range(2))
    assert first.status_code == again.status_code == 200
    assert first.json() == again.json()
    assert again.headers["Idempotent-Replayed"] == "true"
    assert "Idempotent-Replayed" not in first.headers
    assert len(outbox.outbox) == len(sent_events()) == 1


@BOTH
def test_same_request_at_the_same_moment_is_told_that_the_key_is_in_use(
    caller: Caller, action: str
) -> None:
    """It does not take the other request for one that died after it may have sent the e-mail."""
    link = make_invited()
    others: list[Any] = []

    def send_once_the_key_is_stored(execute: Any, sql: str, *args: Any) -> Any:
        result = execute(sql, *args)
        if sql.startswith("INSERT") and "kapso_connect_idempotentrequest" in sql and not others:
            others.append(None)
            others.append(send(caller, link, action, headers=KEY))
        return result

    with connection.execute_wrapper(send_once_the_key_is_stored):
        answer = send(caller, link, action, headers=KEY)
    assert answer.status_code == 200
    assert code(others[1], 409) == "idempotency_key_in_use"
    assert len(outbox.outbox) == 1


def test_another_key_sends_another_email(caller: Caller) -> None:
    link = make_invited()
    for key in ("a", "b"):
        answer = send(caller, link, headers={"Idempotency-Key": key})
        assert "Idempotent-Replayed" not in answer.headers
    assert len(outbox.outbox) == 2


def test_key_belongs_to_one_customer_and_one_action(caller: Caller) -> None:
    one, other = make_invited(), make_invited(email="bob@example.com")
    assert send(caller, one, "send-reminder", headers=KEY).status_code == 200
    assert send(caller, other, "send-reminder", headers=KEY).status_code == 200
    assert send(caller, one, headers=KEY).status_code == 200
    assert [message.to for message in outbox.outbox] == [
        ["ada@example.com"],
        ["bob@example.com"],
        ["ada@example.com"],
    ]


@BOTH
@pytest.mark.parametrize("at", ["before", "after"])
def test_process_that_died_while_it_sent(
    caller: Caller, action: str, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it had sent the e-mail is unknown, so it is not sent again with this key."""
    link = make_invited()
    recording = failing_statement("INSERT", "kapso_connect_timelineevent", ProcessKilled())
    with monkeypatch.context() as patch:
        if at == "before":
            patch.setattr(EmailBackend, "send_messages", lambda *args: kill_process())
        with recording, pytest.raises(ProcessKilled):
            send(caller, link, action, headers=KEY)
    sent = len(outbox.outbox)
    assert sent == (at == "after")
    assert code(send(caller, link, action, headers=KEY), 409) == "idempotency_key_in_use"
    IdempotentRequest.objects.update(leased_until=utc_now())
    for _ in range(2):
        answer = send(caller, link, action, headers=KEY)
        assert code(answer, 503) == "email_outcome_unknown"
    assert len(outbox.outbox) == sent


@pytest.mark.django_db(transaction=True)
@BOTH
def test_email_recorded_by_a_killed_process_is_returned(caller: Caller, action: str) -> None:
    link = make_invited()
    killing = [*django_settings.MIDDLEWARE, "tests.faults.killing_middleware"]
    with override_settings(MIDDLEWARE=killing), pytest.raises(ProcessKilled):
        send(Caller(caller.user), link, action, headers=KEY)
    answer = send(caller, link, action, headers=KEY)
    assert answer.status_code == 200
    assert answer.headers["Idempotent-Replayed"] == "true"
    assert len(outbox.outbox) == len(sent_events()) == 1


@pytest.mark.django_db(transaction=True)
@BOTH
@pytest.mark.parametrize("table", ["timelineevent", "idempotentrequest"])
def test_email_and_key_are_recorded_together(caller: Caller, action: str, table: str) -> None:
    link = make_invited()
    verb = "INSERT" if table == "timelineevent" else "UPDATE"
    away = OperationalError("server closed the connection unexpectedly")
    sent: list[int] = []

    def fail_after_sending(execute: Any, sql: str, *args: Any) -> Any:
        if outbox.outbox and sql.startswith(verb) and f"kapso_connect_{table}" in sql and not sent:
            sent.append(len(outbox.outbox))
            raise away
        return execute(sql, *args)

    with connection.execute_wrapper(fail_after_sending):
        assert code(send(caller, link, action, headers=KEY), 503) == "unavailable"
    assert sent == [1]
    assert not sent_events()
    assert code(send(caller, link, action, headers=KEY), 503) == "email_outcome_unknown"
    assert len(outbox.outbox) == 1
    link.refresh_from_db()
    assert bool(link.reminded_at) == (action == "send-reminder"), "It may have been sent."


def test_erased_customers_address_is_not_kept_with_the_key(caller: Caller) -> None:
    link = make_invited()
    send(caller, link, headers=KEY)
    assert "ada@example.com" in str(IdempotentRequest.objects.values().get())
    Customer.objects.filter(pk=link.customer_id).delete()
    assert not IdempotentRequest.objects.exists()


def test_emails_are_limited_as_what_writes(caller: Caller, configure: Any) -> None:
    configure(API_THROTTLE_RATES={"write": "1/min"})
    link = make_invited()
    assert send(caller, link).status_code == 200
    assert code(send(caller, link, "send-reminder"), 429) == "throttled"


def test_user_needs_to_view_customers_and_to_send(db: None) -> None:
    link = make_invited()
    for permissions in (["send_setup_link"], ["view_customer", "create_setup_link"]):
        user = make_user("-".join(permissions), *permissions)
        for action in ("send-invitation", "send-reminder"):
            assert code(send(Caller(user), link, action), 403) == "permission_denied"
    user = make_user("sender", "view_customer", "send_setup_link")
    assert send(Caller(user), link).status_code == 200
