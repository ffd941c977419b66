"""E-mails that a real mail server refuses, now or for good, or of which nothing is known."""

from __future__ import annotations

import smtplib
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import requests
from django.core.mail import EmailMessage

from kapso_connect import onboarding, sync
from kapso_connect.exceptions import NoEmailAddress
from kapso_connect.models import Customer, InvitationBatch, SetupLink, TimelineEvent
from kapso_connect.onboarding import invitations, numbers
from kapso_connect.onboarding.mailer import Mailer, SendFailure, classify_error
from kapso_connect.testing import Sandbox

from ..smtp_server import Answer, SMTPServer, use_mail_server
from .test_invitations import make_due, started

pytestmark = pytest.mark.django_db


@contextmanager
def mail_server(settings: Any, **options: Any) -> Iterator[SMTPServer]:
    with SMTPServer(**options) as server:
        use_mail_server(settings, server)
        yield server


def first_attempts(refusal: str, at: str = "RCPT") -> Answer:
    """Refuse the first attempt of each recipient."""
    seen: Counter[str] = Counter()

    def answer(command: str, recipient: str) -> str:
        if command != at:
            return ""
        seen[recipient] += 1
        return refusal if seen[recipient] == 1 else ""

    return answer


def work_until_done(batch: InvitationBatch) -> int:
    """Work on ``batch`` as often as something is left, and return how often."""
    for run in range(1, 10):
        invitations.work(batch.pk)
        if not invitations.progress(batch).left:
            return run
        make_due(batch)
    raise AssertionError(invitations.progress(batch))


def addresses(count: int) -> list[str]:
    return sorted(f"c{n}@example.com" for n in range(count))


# A batch, and a mail server with limits


def test_all_are_sent_once_in_spite_of_every_temporary_refusal(
    sandbox: Sandbox, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kapso_connect.retries.FIRST_RETRY_DELAY", 3600)  # no matter how slow it is
    options = {"max_connections": 3, "max_messages": 7, "answer": first_attempts("450 Not yet")}
    with mail_server(settings, **options) as server:
        batch = started(16, send_email=True)
        invitations.work(batch.pk)
        assert server.messages == []
        reached = invitations.progress(batch)
        assert (reached.left, reached.emails_waiting, reached.emails_failed) == (16, 16, 0)
        assert "450" in batch.invitations.earliest("pk").email_error
        make_due(batch)
        invitations.work(batch.pk)
    assert sorted(server.recipients) == addresses(16)
    assert server.most_open_connections <= 2  # one may still be closing
    reached = invitations.progress(batch)
    assert (reached.done, reached.emails_sent, reached.emails_waiting) == (16, 16, 0)
    assert TimelineEvent.objects.filter(kind="setup_link_sent").count() == 16
    assert len(sandbox.state()["setup_links"]) == 16
    assert not batch.invitations.exclude(email_error="").exists()


def test_connections_are_few(sandbox: Sandbox, settings: Any) -> None:
    with mail_server(settings) as server:
        invitations.work(started(30, send_email=True).pk)
    assert len(server.messages) == 30
    assert server.connections == 2


def test_messages_beyond_a_connections_limit_are_sent_over_a_new_one(
    sandbox: Sandbox, settings: Any
) -> None:
    with mail_server(settings, max_messages=5) as server:
        batch = started(16, send_email=True)
        assert work_until_done(batch) == 1
    assert sorted(server.recipients) == addresses(16)
    assert server.connections == 4


@pytest.mark.parametrize("at", ["MAIL", "RCPT"])
def test_connection_that_breaks_before_the_message_loses_and_doubles_nothing(
    at: str, sandbox: Sandbox, settings: Any
) -> None:
    steps: Counter[str] = Counter()

    def answer(command: str, recipient: str) -> str:
        steps[command] += 1
        return "hang up" if command == at and steps[command] in (1, 3, 4) else ""

    with mail_server(settings, answer=answer) as server:
        batch = started(6, send_email=True)
        work_until_done(batch)
    assert sorted(server.recipients) == addresses(6)
    assert invitations.progress(batch).emails_sent == 6


def test_connection_that_breaks_after_the_message_is_not_followed_by_a_second_one(
    sandbox: Sandbox, settings: Any
) -> None:
    with mail_server(settings, answer=first_attempts("hang up", at="END")) as server:
        batch = started(3, send_email=True)
        work_until_done(batch)
        invitations.resume(batch)
        work_until_done(batch)
    assert sorted(server.recipients) == addresses(3)
    reached = invitations.progress(batch)
    assert (reached.done, reached.emails_unknown, reached.emails_failed) == (3, 3, 0)
    for invitation in batch.invitations.all():
        assert "not known" in invitation.email_error


def test_mail_server_that_is_away_is_tried_once_a_wave(sandbox: Sandbox, settings: Any) -> None:
    with mail_server(settings, answer=lambda command, _to: "421 Come back later") as server:
        batch = started(10, send_email=True)
        invitations.work(batch.pk)
        assert server.connections == 1
        assert invitations.progress(batch).emails_waiting == 10
        server.answer = lambda command, recipient: ""
        make_due(batch)
        sync.run()
    assert sorted(server.recipients) == addresses(10)


def test_permanent_refusal_is_final_until_someone_tries_again(
    sandbox: Sandbox, settings: Any
) -> None:
    def answer(command: str, recipient: str) -> str:
        refused = command == "RCPT" and recipient == "c1@example.com"
        return "550 No such user" if refused else ""

    with mail_server(settings, answer=answer) as server:
        batch = started(3, send_email=True)
        assert work_until_done(batch) == 1
        refused = batch.invitations.get(email_status="failed")
        assert "No such user" in refused.email_error
        Customer.objects.filter(pk=refused.customer_id).update(email="ada@example.com")
        invitations.resume(batch)
        work_until_done(batch)
    assert sorted(server.recipients) == ["ada@example.com", "c0@example.com", "c2@example.com"]
    assert len(sandbox.state()["setup_links"]) == 3
    assert invitations.progress(batch).emails_failed == 0


def test_mail_server_that_never_accepts_anything_ends_the_attempts(
    sandbox: Sandbox, settings: Any
) -> None:
    with mail_server(settings, answer=lambda command, _to: "554 No service") as server:
        batch = started(3, send_email=True)
        assert work_until_done(batch) == 1
    assert server.connections == 1
    assert invitations.progress(batch).emails_failed == 3


def test_temporary_refusals_become_final_after_the_last_attempt(
    sandbox: Sandbox, settings: Any, configure: Callable[..., None]
) -> None:
    configure(RETRY_LIMIT=2)
    with mail_server(settings, answer=lambda command, _to: "451 Full" * (command == "MAIL")):
        batch = started(1, send_email=True)
        assert work_until_done(batch) == 2
    invitation = batch.invitations.get()
    assert (invitation.status, invitation.email_status) == ("done", "failed")
    assert "Full" in invitation.email_error


def test_customer_whose_link_was_revoked_meanwhile_gets_neither_link_nor_email(
    sandbox: Sandbox, settings: Any
) -> None:
    with mail_server(settings, answer=first_attempts("450 Not yet")) as server:
        batch = started(1, send_email=True)
        invitations.work(batch.pk)
        onboarding.revoke_setup_link(SetupLink.objects.get())
        make_due(batch)
        invitations.work(batch.pk)
    assert server.messages == []
    assert len(sandbox.state()["setup_links"]) == 1
    assert batch.invitations.get().email_status == "failed"


def test_customer_who_connected_meanwhile_gets_no_email(sandbox: Sandbox, settings: Any) -> None:
    with mail_server(settings, answer=first_attempts("450 Not yet")) as server:
        batch = started(1, send_email=True)
        invitations.work(batch.pk)
        customer = Customer.objects.get()
        onboarding.connect(customer, numbers.Number("1"), source="webhook")
        make_due(batch)
        invitations.work(batch.pk)
    assert server.messages == []
    assert invitations.progress(batch).done == 1


def test_no_email_is_begun_after_the_time_is_up(
    sandbox: Sandbox, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(invitations, "time", SimpleNamespace(monotonic=lambda: clock.now))

    def answer(command: str, recipient: str) -> str:
        clock.now += 3 * (command == "END")
        return ""

    with mail_server(settings, answer=answer) as server:
        batch = started(3, send_email=True)
        assert invitations.work(batch.pk, seconds=4)
        assert len(server.messages) == 2
        row = batch.invitations.get(status="pending")
        assert (row.email_status, row.attempts, row.is_leased) == ("", 0, False)
        assert not invitations.work(batch.pk, seconds=4)
    assert sorted(server.recipients) == addresses(3)
    assert len(sandbox.state()["setup_links"]) == 3


def test_no_email_is_begun_by_a_process_that_is_asked_to_stop(
    sandbox: Sandbox, settings: Any
) -> None:
    with mail_server(settings) as server:
        batch = started(3, send_email=True)
        assert invitations.work(batch.pk, should_stop=lambda: len(server.messages) == 1)
        assert len(server.messages) == 1
        assert {row.is_leased for row in batch.invitations.all()} == {False}
        assert not invitations.work(batch.pk)
    assert sorted(server.recipients) == addresses(3)
    assert len(sandbox.state()["setup_links"]) == 3


# What is known after an error


def raised(error: Exception) -> Exception:
    try:
        raise error
    except Exception as caught:
        return caught


def http_error(status: int) -> requests.HTTPError:
    response = requests.Response()
    response.status_code = status
    return requests.HTTPError(response=response)


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (smtplib.SMTPConnectError(421, "Too many connections"), SendFailure.TEMPORARY),
        (smtplib.SMTPConnectError(554, "No service"), SendFailure.PERMANENT),
        (smtplib.SMTPAuthenticationError(535, "Wrong password"), SendFailure.PERMANENT),
        (smtplib.SMTPAuthenticationError(454, "Not now"), SendFailure.TEMPORARY),
        (smtplib.SMTPSenderRefused(452, b"Full", "me"), SendFailure.TEMPORARY),
        (smtplib.SMTPDataError(451, "Error in processing"), SendFailure.TEMPORARY),
        (smtplib.SMTPDataError(552, "Too large"), SendFailure.PERMANENT),
        (smtplib.SMTPDataError(-1, "<html>"), SendFailure.UNKNOWN),
        (smtplib.SMTPDataError(252, "Perhaps"), SendFailure.UNKNOWN),
        (smtplib.SMTPConnectError(-1, "<html>"), SendFailure.PERMANENT),
        (smtplib.SMTPRecipientsRefused({"a": (450, b"Later")}), SendFailure.TEMPORARY),
        (smtplib.SMTPRecipientsRefused({"a": (550, b"Unknown")}), SendFailure.PERMANENT),
        (smtplib.SMTPNotSupportedError("No STARTTLS"), SendFailure.PERMANENT),
        (smtplib.SMTPServerDisconnected("please run connect() first"), SendFailure.TEMPORARY),
        (ConnectionRefusedError(), SendFailure.TEMPORARY),
        (socket.gaierror(-3, "Temporary failure in name resolution"), SendFailure.TEMPORARY),
        (ssl.SSLCertVerificationError("expired"), SendFailure.PERMANENT),
        # A mail service with an API over HTTP, and backends that are not known.
        (http_error(429), SendFailure.TEMPORARY),
        (http_error(503), SendFailure.TEMPORARY),
        (http_error(500), SendFailure.UNKNOWN),
        (http_error(400), SendFailure.PERMANENT),
        (requests.ReadTimeout(), SendFailure.UNKNOWN),
        (TimeoutError(), SendFailure.UNKNOWN),
        (ValueError("Invalid address"), SendFailure.PERMANENT),
        (NoEmailAddress("none"), SendFailure.PERMANENT),
    ],
    ids=repr,
)
def test_errors_are_told_apart(error: Exception, failure: SendFailure) -> None:
    assert classify_error(raised(error)) is failure


@pytest.mark.parametrize(
    ("at", "failure"),
    [
        ("CONNECT", SendFailure.TEMPORARY),
        ("MAIL", SendFailure.TEMPORARY),
        ("RCPT", SendFailure.TEMPORARY),
        ("END", SendFailure.UNKNOWN),
    ],
)
def test_the_step_at_which_a_connection_broke_tells_what_is_known(
    at: str, failure: SendFailure, settings: Any
) -> None:
    with mail_server(settings, answer=lambda command, _to: "hang up" * (command == at)):
        with Mailer() as mailer, pytest.raises(smtplib.SMTPServerDisconnected) as caught:
            mailer.send(EmailMessage("Subject", "Text", to=["ada@example.com"]))
        assert mailer.outage is caught.value
    assert classify_error(caught.value) is failure
