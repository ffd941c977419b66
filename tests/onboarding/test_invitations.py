"""Inviting many customers: several at a time, resumed after a crash, no link created twice."""

from __future__ import annotations

import smtplib
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.core import mail as outbox
from django.core.exceptions import ImproperlyConfigured
from django.db import OperationalError, connection, connections
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from kapso_connect import db, onboarding, sync
from kapso_connect.exceptions import InvalidOptions
from kapso_connect.kapso import http
from kapso_connect.kapso.client import KapsoClient
from kapso_connect.models import (
    Customer,
    InvitationBatch,
    SetupLink,
    TimelineEvent,
    new_connect_key,
)
from kapso_connect.onboarding import (
    automatic_emails,
    emails,
    invitations,
    numbers,
    reminders,
    setup_links,
)
from kapso_connect.onboarding.connect_urls import connect_url
from kapso_connect.signals import setup_link_created
from kapso_connect.testing import Sandbox
from kapso_connect.utils import time_since, utc_now

from ..clock import FakeClock
from ..conftest import THOROUGH
from ..factories import (
    after_first_query,
    failing_queries,
    make_connection,
    make_link,
    queue_without_worker,
)
from ..faults import around_api_requests
from ..smtp_server import SMTPServer, use_mail_server
from .support import check_no_transaction_during, during_request, links_at_kapso

pytestmark = pytest.mark.django_db

CREATE_LINK = "^POST .*/setup_links$"


def customers(count: int, **fields: Any) -> list[Customer]:
    return Customer.objects.bulk_create(
        Customer(name=f"Customer {n}", email=f"c{n}@example.com", **fields) for n in range(count)
    )


def started(count: int = 3, **choices: Any) -> InvitationBatch:
    batch = invitations.make_batch([customer.pk for customer in customers(count)])
    assert invitations.start(batch, **choices)
    return batch


def make_due(batch: InvitationBatch) -> None:
    """Let the delays and leases of all invitations end."""
    batch.invitations.filter(status="pending").update(
        next_attempt_at=timezone.now(), leased_at=None, leased_until=None
    )


def test_each_customer_gets_one_link(sandbox: Sandbox) -> None:
    staff = get_user_model().objects.create(username="staff")
    invited = customers(25)
    batch = invitations.make_batch(Customer.objects.all(), created_by=staff)
    assert invitations.start(batch, options={"language": "es"}, next_url="/welcome/")
    calls: list[None] = []
    assert not invitations.work(batch.pk, on_progress=lambda: calls.append(None))
    assert len(calls) == 25
    reached = invitations.progress(batch)
    assert (reached.total, reached.done, reached.failed, reached.left) == (25, 25, 0, 0)
    assert reached.left == 0
    for customer in invited:
        (link,) = customer.setup_links.all()
        assert (link.status, link.created_by, link.next_url) == ("active", staff, "/welcome/")
        assert link.options["language"] == "es"
        (event,) = customer.events.all()
        assert (event.kind, event.actor) == ("setup_link_created", staff)
    assert len(links_at_kapso(sandbox)) == 25


def test_draft_creates_no_links(sandbox: Sandbox) -> None:
    batch = invitations.make_batch([customer.pk for customer in customers(2)])
    assert not invitations.work(batch.pk)
    sync.run()
    assert not links_at_kapso(sandbox)


def test_customer_listed_twice_is_invited_once() -> None:
    (customer,) = customers(1)
    batch = invitations.make_batch([customer.pk, customer.pk])
    assert batch.invitations.count() == 1


def test_batch_is_started_once(sandbox: Sandbox) -> None:
    batch = started(2, options={"language": "es"})
    assert not invitations.start(batch, options={"language": "hi"}, send_email=True)
    batch.refresh_from_db()
    assert (batch.options, batch.send_email) == ({"language": "es"}, False)


@pytest.mark.parametrize(
    "choices",
    [
        {"options": {"language": "tlh"}},
        {"options": {"no_such_option": 1}},
        {"next_url": "https://elsewhere.example/"},
        {"next_url": "//elsewhere.example/"},
        {"next_url": "/\\elsewhere.example/"},
        {"next_url": "javascript:alert(1)"},
        {"next_url": "/" + "x" * 2000},
    ],
    ids=["language", "option", "other-site", "slashes", "backslash", "script", "long"],
)
def test_invalid_options_start_nothing(sandbox: Sandbox, choices: dict[str, Any]) -> None:
    batch = invitations.make_batch([customer.pk for customer in customers(1)])
    with pytest.raises(InvalidOptions):
        invitations.start(batch, **choices)
    batch.refresh_from_db()
    assert batch.started_at is None
    assert not sandbox.requests()


def test_without_a_public_url_nothing_starts(sandbox: Sandbox, configure: Any) -> None:
    configure(PUBLIC_URL="")
    batch = invitations.make_batch([customer.pk for customer in customers(1)])
    with pytest.raises(ImproperlyConfigured):
        invitations.start(batch)


def test_requests_are_made_concurrently(sandbox: Sandbox) -> None:
    sandbox.faults(api=[{"kind": "slow", "seconds": 0.3}])
    batch = started(8)
    begun = timezone.now()
    invitations.work(batch.pk)
    # Three requests each, one after the other, would take more than seven seconds.
    assert timezone.now() - begun < timedelta(seconds=4)
    assert invitations.progress(batch).done == 8


@pytest.mark.django_db(transaction=True)
def test_number_of_concurrent_requests_is_limited(sandbox: Sandbox) -> None:
    batch = started(invitations.MAX_CONCURRENT_REQUESTS + 4)
    sandbox.faults(api=[{"match": CREATE_LINK, "kind": "hang", "seconds": 30}])

    def open_requests() -> int:
        return sum(row["fault"] == "hang" for row in sandbox.requests())

    def work() -> None:
        try:
            invitations.work(batch.pk)
        finally:
            connections.close_all()

    with ThreadPoolExecutor(1) as executor:
        working = executor.submit(work)
        try:
            deadline = time.monotonic() + 20
            while open_requests() < invitations.MAX_CONCURRENT_REQUESTS:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            time.sleep(0.2)
            assert open_requests() == invitations.MAX_CONCURRENT_REQUESTS
        finally:
            sandbox.clear_faults()
        working.result()


@pytest.mark.django_db(transaction=True)
def test_no_transaction_is_open_while_kapso_is_asked(sandbox: Sandbox) -> None:
    batch = started(2)
    check_no_transaction_during(sandbox, CREATE_LINK, lambda: invitations.work(batch.pk))
    assert invitations.progress(batch).done == 2


def test_work_ends_in_time_and_returns_that_something_is_left(sandbox: Sandbox) -> None:
    batch = started(20)
    assert invitations.work(batch.pk, seconds=0)
    assert invitations.progress(batch).done == 0
    assert not invitations.work(batch.pk, seconds=60)
    assert invitations.progress(batch).done == 20


def test_work_within_a_request_shares_one_budget(sandbox: Sandbox) -> None:
    batch = started(3 * invitations.MAX_CONCURRENT_REQUESTS)
    sandbox.faults(api=[{"match": ".*", "kind": "hang", "seconds": 20}])
    begun = time.monotonic()
    invitations.work(batch.pk, seconds=0.3, budget=0.5)
    assert time.monotonic() - begun < 3
    assert invitations.progress(batch).left == 3 * invitations.MAX_CONCURRENT_REQUESTS


def test_failed_requests_are_retried(sandbox: Sandbox) -> None:
    sandbox.faults(api=[{"match": CREATE_LINK, "kind": "status", "status": 500, "times": 3}])
    batch = started(30)
    invitations.work(batch.pk)
    reached = invitations.progress(batch)
    assert (reached.done, reached.failed, reached.left) == (27, 0, 3)
    assert reached.due_at is not None
    assert reached.due_at > timezone.now()
    for invitation in batch.invitations.filter(status="pending"):
        assert "Kapso did not respond" in invitation.last_error
    make_due(batch)
    assert not invitations.work(batch.pk)
    assert invitations.progress(batch).done == 30
    assert len(links_at_kapso(sandbox)) == 30


@pytest.mark.django_db(transaction=True)
def test_batch_waits_before_it_reaches_the_rate_limit(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox.set_rate_limit(60)
    batch = started(30)
    assert not invitations.work(batch.pk)
    made = sandbox.requests()
    assert 0 < len(made) <= 54
    assert 429 not in {row["status"] for row in made}
    reached = invitations.progress(batch)
    assert (reached.failed, reached.left) == (0, 30 - reached.done)
    assert reached.done
    assert reached.due_at is not None
    assert timedelta(seconds=30) < reached.due_at - utc_now() < timedelta(seconds=61)
    assert set(batch.invitations.pending().values_list("attempts", flat=True)) == {0}
    assert batch.invitations.filter(last_error__startswith="Kapso allows only so many").exists()
    # A new minute begins.
    sandbox.set_rate_limit(200)
    monkeypatch.setattr(http, "_rate_limits", {})
    make_due(batch)
    invitations.work(batch.pk)
    assert invitations.progress(batch).done == 30
    assert len(links_at_kapso(sandbox)) == 30


def test_request_that_is_blocked_on_its_way_is_tried_again_later(sandbox: Sandbox) -> None:
    sandbox.faults(api=[{"match": CREATE_LINK, "kind": "html", "status": 403}])
    batch = started(3)
    invitations.work(batch.pk)
    batch.refresh_from_db()
    reached = invitations.progress(batch)
    assert (batch.stopped, reached.failed, reached.left) == ("", 0, 3)
    for invitation in batch.invitations.all():
        assert invitation.last_error.startswith("Something in front of Kapso refused")
        assert "API_KEY" not in invitation.last_error
    sandbox.clear_faults()
    make_due(batch)
    invitations.work(batch.pk)
    assert invitations.progress(batch).done == 3


def test_permanent_failure_is_retried_only_on_request(sandbox: Sandbox) -> None:
    sandbox.faults(api=[{"match": CREATE_LINK, "kind": "status", "status": 422, "times": 1}])
    batch = started(3)
    calls: list[None] = []
    invitations.work(batch.pk, on_progress=lambda: calls.append(None))
    assert len(calls) == 3
    make_due(batch)
    invitations.work(batch.pk)
    reached = invitations.progress(batch)
    assert (reached.done, reached.failed, reached.left) == (2, 1, 0)
    failed = batch.invitations.get(status="failed")
    assert failed.last_error.startswith("The request was rejected")
    invitations.resume(batch)
    invitations.work(batch.pk)
    assert invitations.progress(batch).done == 3
    assert len(links_at_kapso(sandbox)) == 3


def test_wrong_key_stops_the_batch_until_it_is_resumed(sandbox: Sandbox, settings: Any) -> None:
    right = settings.KAPSO_CONNECT
    batch = started(30)
    settings.KAPSO_CONNECT = {**right, "API_KEY": "wrong"}
    assert not invitations.work(batch.pk)
    batch.refresh_from_db()
    assert "API key" in batch.stopped
    assert invitations.progress(batch).left == 30
    assert len(sandbox.requests()) <= invitations.MAX_CONCURRENT_REQUESTS
    settings.KAPSO_CONNECT = right
    assert not invitations.work(batch.pk), "stopped is stopped"
    invitations.resume(batch)
    invitations.work(batch.pk)
    assert invitations.progress(batch).done == 30


def test_rate_limit_makes_the_whole_batch_wait(sandbox: Sandbox) -> None:
    sandbox.faults(api=[{"kind": "status", "status": 429, "retry_after": 3600}])
    batch = started(30)
    assert not invitations.work(batch.pk)
    assert len(sandbox.requests()) <= invitations.MAX_CONCURRENT_REQUESTS * 2
    reached = invitations.progress(batch)
    assert reached.left == 30
    in_half_an_hour = timezone.now() + timedelta(minutes=30)
    assert not batch.invitations.filter(next_attempt_at__lt=in_half_an_hour).exists()
    assert not batch.invitations.filter(attempts__gt=0).exists(), (
        "a rate limit does not count as an attempt"
    )
    assert batch.invitations.filter(last_error__contains="Too many requests").exists()


@pytest.mark.parametrize("recorded", [False, True], ids=["not-recorded", "recorded"])
def test_link_created_by_a_process_that_died_is_found(sandbox: Sandbox, recorded: bool) -> None:
    batch = started(1)
    invitation = batch.invitations.get()
    assert invitation.acquire_lease()
    customer = invitation.customer
    if recorded:
        onboarding.create_setup_link(customer)
    else:
        with KapsoClient.from_settings() as client:
            remote = client.create_customer(
                name=customer.name, external_customer_id=customer.external_customer_id
            )
            client.create_setup_link(remote.id, setup_links.build_options(customer, None).payload())
    (made,) = links_at_kapso(sandbox)
    assert not invitations.work(batch.pk), "another process may still be at it"
    assert invitations.progress(batch).left == 1
    make_due(batch)
    invitations.work(batch.pk)
    assert [link["id"] for link in links_at_kapso(sandbox)] == [made["id"]]
    assert SetupLink.objects.get().kapso_id == made["id"]
    assert invitations.progress(batch).done == 1


def test_two_batches_for_the_same_customer_create_one_link(sandbox: Sandbox) -> None:
    (customer,) = customers(1)
    both = [invitations.make_batch([customer.pk]) for _ in range(2)]
    for batch in both:
        invitations.start(batch, send_email=True)
    for batch in both:
        invitations.work(batch.pk)
    assert len(links_at_kapso(sandbox)) == 1
    assert [invitations.progress(batch).done for batch in both] == [1, 1]
    assert len(outbox.outbox) == 1
    assert [invitations.progress(batch).emails_sent for batch in both] == [1, 1]


def test_while_one_batch_sends_the_link_another_one_waits(sandbox: Sandbox) -> None:
    (customer,) = customers(1)
    first, second = [invitations.make_batch([customer.pk]) for _ in range(2)]
    for batch in (first, second):
        invitations.start(batch, send_email=True)
    assert first.invitations.get().acquire_lease()
    onboarding.create_setup_link(customer)
    assert not invitations.work(second.pk)
    assert not outbox.outbox
    assert invitations.progress(second).left == 1


@pytest.mark.django_db(transaction=True)
def test_link_created_while_the_batch_is_read_is_found_and_sent(sandbox: Sandbox) -> None:
    batch = started(1, send_email=True)
    with after_first_query(lambda: onboarding.create_setup_link(Customer.objects.get())):
        invitations.work(batch.pk)
    assert batch.invitations.get().email_error == ""
    (message,) = outbox.outbox
    assert connect_url(Customer.objects.get()) in message.body
    assert len(links_at_kapso(sandbox)) == 1


def test_link_used_before_it_was_recorded_is_not_replaced(sandbox: Sandbox) -> None:
    batch = started(1, send_email=True)
    invitation = batch.invitations.get()
    assert invitation.acquire_lease()
    onboarding.create_setup_link(invitation.customer)
    onboarding.connect(invitation.customer, numbers.Number("1"), source="webhook")
    make_due(batch)
    invitations.work(batch.pk)
    assert len(links_at_kapso(sandbox)) == 1
    assert invitations.progress(batch).done == 1
    assert not outbox.outbox


def test_of_two_batches_for_one_customer_the_later_one_waits(sandbox: Sandbox) -> None:
    (customer,) = customers(1)
    first, second = [invitations.make_batch([customer.pk]) for _ in range(2)]
    for batch in (first, second):
        invitations.start(batch)
    assert first.invitations.get().acquire_lease()
    assert not invitations.work(second.pk)
    waiting = second.invitations.get()
    assert (waiting.status, waiting.attempts, waiting.leased_at) == ("pending", 0, None)
    assert not links_at_kapso(sandbox)


def test_later_batch_creates_a_new_link(sandbox: Sandbox) -> None:
    (customer,) = customers(1)
    for language in ("es", "hi"):
        batch = invitations.make_batch([customer.pk])
        invitations.start(batch, options={"language": language})
        invitations.work(batch.pk)
    active = customer.setup_links.get(status="active")
    assert active.options["language"] == "hi"
    assert len(links_at_kapso(sandbox)) == 2


def test_deleted_customer_is_skipped(sandbox: Sandbox) -> None:
    batch = started(3)
    Customer.objects.order_by("pk")[0].delete()
    invitations.work(batch.pk)
    reached = invitations.progress(batch)
    assert (reached.total, reached.done) == (2, 2)


class Died(BaseException):
    """The process is killed: nothing catches this."""


@pytest.mark.django_db(transaction=True)
def test_process_killed_before_any_statement_causes_no_duplicates(sandbox: Sandbox) -> None:
    steps_left = 0

    def dying(execute: Any, sql: str, *args: Any) -> Any:
        nonlocal steps_left
        steps_left -= 1
        if steps_left < 0:
            raise Died
        return execute(sql, *args)

    # In the default run, before every fifth statement.
    for die_at in range(0, 100, 1 if THOROUGH else 5):
        batch = started(1, send_email=True)
        outbox.outbox.clear()
        steps_left = die_at
        try:
            with connections[db.alias()].execute_wrapper(dying):
                invitations.work(batch.pk)
        except Died:
            died = True
        else:
            died = False
        make_due(batch)
        invitations.work(batch.pk)
        invitation = batch.invitations.get()
        at = f"died at statement {die_at}: {invitation.last_error}"
        assert invitation.status == "done", at
        customer = invitation.customer
        made = [
            link for link in links_at_kapso(sandbox) if link["customer_id"] == customer.kapso_id
        ]
        assert [link["id"] for link in made] == [customer.setup_links.get().kapso_id], at
        assert len(outbox.outbox) <= 1, at
        # Where it is not known whether the e-mail was sent, it is not sent again.
        assert bool(outbox.outbox) or invitation.email_error, at
        if not died:
            break
    assert die_at > 10, "the statements are not seen"
    assert not died


# E-mail


def test_each_customer_is_sent_the_link_once(sandbox: Sandbox) -> None:
    batch = started(3, send_email=True)
    invitations.work(batch.pk)
    invitations.resume(batch)
    invitations.work(batch.pk)
    assert sorted(message.to[0] for message in outbox.outbox) == [
        f"c{n}@example.com" for n in range(3)
    ]
    assert invitations.progress(batch).emails_sent == 3
    sent = TimelineEvent.objects.filter(kind="setup_link_sent")
    assert sorted(event.data["to"] for event in sent) == [f"c{n}@example.com" for n in range(3)]
    assert {event.data["channel"] for event in sent} == {"email"}


@pytest.mark.django_db(transaction=True)
def test_email_that_another_process_began_to_send_is_not_sent_again(sandbox: Sandbox) -> None:
    batch = started(1, send_email=True)
    during_request(
        sandbox,
        "^POST .*/setup_links$",
        # The lease has ended meanwhile, and another process works on the invitation.
        lambda: batch.invitations.update(email_status="sending"),
        lambda: invitations.work(batch.pk),
    )
    invitation = batch.invitations.get()
    assert not outbox.outbox
    assert (invitation.status, invitation.email_status) == ("done", "unknown")
    assert "not known" in invitation.email_error


def test_customer_without_an_email_address_still_gets_a_link(sandbox: Sandbox) -> None:
    Customer.objects.create(name="No address")
    batch = invitations.make_batch(Customer.objects.all())
    invitations.start(batch, send_email=True)
    invitations.work(batch.pk)
    invitation = batch.invitations.get()
    assert (invitation.status, invitation.email_status) == ("done", "no_address")
    reached = invitations.progress(batch)
    assert (reached.done, reached.no_address, reached.emails_failed) == (1, 1, 0)
    assert not reached.has_problems
    assert SetupLink.objects.get().status == "active"


def stopped(count: int, **fields: Any) -> InvitationBatch:
    """A batch that an error stopped."""
    batch = started(count, **fields)
    InvitationBatch.objects.filter(pk=batch.pk).update(stopped="The API key is wrong.")
    batch.refresh_from_db()
    return batch


def test_rest_of_a_stopped_batch_is_given_up_and_what_happened_stays(sandbox: Sandbox) -> None:
    batch = stopped(6, send_email=True)
    new, linked, sending, sent, done, other = batch.invitations.order_by("pk")
    for row, email_status in ((linked, ""), (sending, "sending"), (sent, "sent"), (done, "sent")):
        link = make_link(row.customer)
        batch.invitations.filter(pk=row.pk).update(setup_link=link, email_status=email_status)
    batch.invitations.filter(pk=done.pk).update(status="done", next_attempt_at=None)
    batch.invitations.filter(pk=other.pk).update(
        status="failed", next_attempt_at=None, last_error="No such customer."
    )
    assert invitations.give_up(batch) == 4
    assert batch.stopped == ""
    rows = {row.pk: row for row in batch.invitations.all()}
    assert {
        row.pk: (row.status, row.email_status, row.last_error, row.email_error)
        for row in rows.values()
    } == {
        new.pk: ("failed", "", "The API key is wrong.", ""),
        linked.pk: ("done", "failed", "", "The API key is wrong."),
        sending.pk: ("done", "unknown", "", emails.unknown_outcome_message()),
        sent.pk: ("done", "sent", "", ""),
        done.pk: ("done", "sent", "", ""),
        other.pk: ("failed", "", "No such customer.", ""),
    }
    assert {row.next_attempt_at for row in rows.values()} == {None}
    assert not invitations.work(batch.pk)
    assert not sandbox.requests()
    assert not outbox.outbox
    assert invitations.give_up(batch) == 0


def test_what_another_process_works_on_is_not_given_up(sandbox: Sandbox) -> None:
    batch = stopped(2)
    first = batch.invitations.first()
    assert first is not None
    assert first.acquire_lease()
    assert invitations.give_up(batch) == 1
    assert (batch.stopped, invitations.progress(batch).left) == ("The API key is wrong.", 1)
    batch.invitations.update(leased_until=None)
    assert invitations.give_up(batch) == 1
    assert batch.stopped == ""


def test_batch_that_runs_is_not_given_up(sandbox: Sandbox) -> None:
    batch = started(2)
    assert invitations.give_up(batch) == 0
    assert invitations.progress(batch).left == 2


def test_customers_who_were_given_up_are_invited_by_another_attempt(sandbox: Sandbox) -> None:
    batch = stopped(2)
    invitations.give_up(batch)
    invitations.resume(batch)
    invitations.work(batch.pk)
    assert invitations.progress(batch).done == 2


def test_link_is_created_although_the_mail_server_is_away(
    sandbox: Sandbox, monkeypatch: Any
) -> None:
    def refuse(self: object, *args: Any) -> None:
        raise smtplib.SMTPServerDisconnected("Connection unexpectedly closed")

    monkeypatch.setattr("django.core.mail.backends.locmem.EmailBackend.send_messages", refuse)
    batch = started(1, send_email=True)
    invitations.work(batch.pk)
    invitation = batch.invitations.get()
    assert (invitation.status, invitation.email_status) == ("pending", "waiting")
    assert SetupLink.objects.get() == invitation.setup_link
    assert "unexpectedly closed" in invitation.email_error


def test_email_that_may_have_been_sent_is_not_sent_again(sandbox: Sandbox) -> None:
    batch = started(1, send_email=True)
    # A process died while the mail server had the message.
    batch.invitations.update(email_status="sending", attempts=1)
    invitations.work(batch.pk)
    invitation = batch.invitations.get()
    assert not outbox.outbox
    assert (invitation.status, invitation.email_status) == ("done", "unknown")
    assert invitation.email_error.startswith("It is not known")


@pytest.mark.django_db(transaction=True)
def test_leases_are_renewed_before_the_links_are_recorded_and_sent(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = FakeClock(monkeypatch)
    batch = started(1, send_email=True)
    left: list[timedelta] = []

    def look(**kwargs: Any) -> None:
        left.append(batch.invitations.get().leased_until - clock.now)

    setup_link_created.connect(look)
    try:
        with around_api_requests(CREATE_LINK, after=lambda: clock.advance(200)):
            invitations.work(batch.pk)
    finally:
        setup_link_created.disconnect(look)
    assert left == [timedelta(seconds=300)]
    assert invitations.progress(batch).emails_sent == 1


@pytest.mark.django_db(transaction=True)
def test_invitation_that_another_process_has_taken_over_is_left_to_it(sandbox: Sandbox) -> None:
    batch = started(2, send_email=True)
    taken = batch.invitations.order_by("pk")[0]
    theirs = {"attempts": 2, "leased_at": timezone.now() + timedelta(minutes=6)}
    during_request(
        sandbox,
        CREATE_LINK,
        lambda: batch.invitations.filter(pk=taken.pk).update(**theirs),
        lambda: invitations.work(batch.pk),
    )
    before = (taken.leased_until, taken.status, taken.email_status)
    taken.refresh_from_db()
    assert (taken.attempts, taken.status, taken.email_status) == (2, "pending", "")
    assert before[0] is None
    assert len(outbox.outbox) == 1
    assert SetupLink.objects.count() == 1
    # The other process finds the link that was created at Kapso.
    make_due(batch)
    invitations.work(batch.pk)
    assert invitations.progress(batch).emails_sent == len(outbox.outbox) == 2
    assert len(links_at_kapso(sandbox)) == 2


# Where the work runs


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("use_tz", [True, False])
def test_queue_that_can_defer_continues_after_a_rate_limit(
    sandbox: Sandbox, settings: Any, use_tz: bool
) -> None:
    settings.USE_TZ = use_tz
    sandbox.faults(api=[{"kind": "status", "status": 429, "retry_after": 3600}])
    with queue_without_worker():
        batch = started(3)
        queue = invitations.work_invitations.get_backend()
        (first,) = queue.results
        first.task.call(*first.args)
        _, second = queue.results
        wait = -time_since(second.task.run_after)
        assert timedelta(minutes=59) < wait <= timedelta(seconds=3601)
        assert timezone.is_aware(second.task.run_after) == use_tz
        sandbox.clear_faults()
        make_due(batch)
        for _ in range(2):
            second.task.call(*second.args)
        assert len(queue.results) == 2
    assert invitations.progress(batch).done == 3
    assert len(links_at_kapso(sandbox)) == 3


def test_sync_continues_a_batch(sandbox: Sandbox) -> None:
    batch = started(3)
    assert sync.run(dry_run=True).invitations == 3
    assert sync.run().invitations == 3
    assert invitations.progress(batch).left == 0
    assert sync.run().invitations == 0


def test_immediate_task_backend_does_not_work_on_the_batch(sandbox: Sandbox) -> None:
    assert not invitations.is_background()
    batch = started(2)
    invitations.work_invitations.enqueue(batch.pk)
    assert invitations.progress(batch).left == 2


def test_registration_that_cannot_be_stored_is_retried_and_stops_no_other(sandbox: Sandbox) -> None:
    registered = Customer.objects.create(name="Registered")
    onboarding.create_setup_link(registered)
    batch = started(2)
    batch.invitations.create(customer=registered)
    with failing_queries(OperationalError, "UPDATE", Customer, "kapso_id"):
        assert not invitations.work(batch.pk)
    reached = invitations.progress(batch)
    assert (reached.done, reached.failed, reached.left) == (1, 0, 2)
    make_due(batch)
    assert not invitations.work(batch.pk)
    assert invitations.progress(batch).done == 3
    assert len(links_at_kapso(sandbox)) == 4


def test_next_invitations_are_found_by_an_index() -> None:
    if connection.vendor == "mysql":
        pytest.skip("MariaDB's planner is not asked: its answer depends on the rows of all tests")
    batch = started(2000)
    batch.invitations.filter(pk__lte=batch.invitations.all()[1600].pk).update(status="done")
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE kapso_connect_invitation")
    rows = batch.invitations.pending().due().order_by("pk")[: invitations.MAX_CONCURRENT_REQUESTS]
    plan = rows.explain()
    assert "kapso_connect_invite_batch" in plan
    # Nor are all that are left sorted, to find the first.
    assert not any(word in plan for word in ("Sort", "TEMP B-TREE")), plan


# Reminders


def waiting(count: int, **fields: Any) -> list[Customer]:
    """Customers who were invited two days ago and did nothing."""
    rows = customers(count, **fields)
    for row in rows:
        row.connect_key = new_connect_key()
        row.save(update_fields=["connect_key"])
        make_link(row, created_at=timezone.now() - timedelta(days=2))
    return rows


def reminders_of(customer: Customer) -> list[TimelineEvent]:
    events = customer.events.filter(kind="setup_link_sent", data__message="reminder")
    return list(events.order_by("pk"))


def reminding(rows: list[Customer], **fields: Any) -> InvitationBatch:
    batch = invitations.make_reminders([row.pk for row in rows], **fields)
    assert invitations.start(batch)
    return batch


def left_out(batch: InvitationBatch) -> dict[str, str]:
    rows = batch.invitations.filter(status="done", email_status="").select_related("customer")
    return {row.customer.name: row.last_error for row in rows}


def test_waiting_customers_are_reminded_without_new_links(sandbox: Sandbox) -> None:
    staff = get_user_model().objects.create(username="staff")
    rows = waiting(20)
    batch = reminding(rows, created_by=staff)
    calls: list[None] = []
    assert not invitations.work(batch.pk, on_progress=lambda: calls.append(None))
    assert len(calls) == 20
    assert sorted(to for message in outbox.outbox for to in message.to) == sorted(
        row.email for row in rows
    )
    assert all(message.subject.startswith("Reminder") for message in outbox.outbox)
    assert not sandbox.requests()
    for row in rows:
        row.refresh_from_db()
        link = row.setup_links.get()
        assert connect_url(row) in str(outbox.outbox[rows.index(row)].body)
        (event,) = reminders_of(row)
        assert (event.actor, event.setup_link, event.data["to"]) == (staff, link, row.email)
        assert link.reminded_at is not None
    reached = invitations.progress(batch)
    assert (reached.done, reached.emails_sent, reached.left_out) == (20, 20, 0)


def test_link_that_has_expired_is_no_obstacle(sandbox: Sandbox) -> None:
    (row,) = waiting(1)
    SetupLink.objects.update(expires_at=timezone.now() - timedelta(days=1), status="expired")
    invitations.work(reminding([row]).pk)
    assert len(outbox.outbox) == 1


def test_customers_who_cannot_be_reminded_are_left_out_with_the_reason(sandbox: Sandbox) -> None:
    connected, failed, no_address, reminded, invited_today, waits = waiting(6)
    (never_invited,) = Customer.objects.bulk_create([Customer(name="New", email="n@example.com")])
    make_connection(connected)
    setup_links.record_failure(failed.setup_links.get(), "link_expired")
    Customer.objects.filter(pk=no_address.pk).update(email="")
    reminded.setup_links.update(reminded_at=timezone.now() - timedelta(hours=23))
    setup_links.record_sent(invited_today.setup_links.get(), "email", to="x@example.com")
    waits.setup_links.update(reminded_at=timezone.now() - timedelta(hours=25))
    for row in (waits, connected):
        setup_links.record_sent(row.setup_links.get(), "copy")
    batch = reminding([*Customer.objects.all()])
    expected = {
        connected.name: "has connected a number",
        failed.name: "is neither “Invited” nor “Opened”",
        no_address.name: "has no e-mail address",
        reminded.name: "was e-mailed the link less than a day ago",
        invited_today.name: "was e-mailed the link less than a day ago",
        never_invited.name: "has no personal link",
    }
    # Those are not worked on at all.
    assert left_out(batch) == expected
    invitations.work(batch.pk)
    assert left_out(batch) == expected
    assert [message.to for message in outbox.outbox] == [[waits.email]]
    assert invitations.progress(batch).left_out == 6


def test_customer_who_connects_before_the_reminder_is_sent_gets_none(sandbox: Sandbox) -> None:
    row, other = waiting(2)
    batch = reminding([row, other])
    make_connection(row)
    invitations.work(batch.pk)
    assert [message.to for message in outbox.outbox] == [[other.email]]
    assert left_out(batch) == {row.name: "has connected a number"}


def test_customer_who_connects_while_others_are_reminded_gets_no_reminder(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = waiting(2)
    batch = reminding([first, second])

    def send(backend: Any, messages: list[Any]) -> None:
        outbox.outbox.extend(messages)
        make_connection(second)

    monkeypatch.setattr("django.core.mail.backends.locmem.EmailBackend.send_messages", send)
    invitations.work(batch.pk)
    assert [message.to for message in outbox.outbox] == [[first.email]]
    assert left_out(batch) == {second.name: "has connected a number"}


def test_two_members_of_staff_remind_a_customer_once(sandbox: Sandbox) -> None:
    rows = waiting(3)
    batches = [reminding(rows), reminding(rows)]
    for batch in batches:
        invitations.work(batch.pk)
    assert len(outbox.outbox) == 3
    assert invitations.progress(batches[1]).left_out == 3
    assert set(left_out(batches[1]).values()) == {"was e-mailed the link less than a day ago"}


def test_reminder_that_another_process_sends_at_this_moment_is_not_sent_again(
    sandbox: Sandbox,
) -> None:
    (row,) = waiting(1)
    link = row.setup_links.get()
    one, other = SetupLink.objects.get(pk=link.pk), SetupLink.objects.get(pk=link.pk)
    assert reminders.claim(one)
    assert not reminders.claim(other)
    reminders.take_back(one)
    assert reminders.claim(other)


def test_reminder_is_sent_later_if_the_mail_server_does_not_accept_it_yet(
    sandbox: Sandbox, settings: Any
) -> None:
    (row,) = waiting(1)
    batch = reminding([row])
    answers = iter(["450 Try later"])
    with SMTPServer(
        answer=lambda command, to: next(answers, "") if command == "RCPT" else ""
    ) as server:
        use_mail_server(settings, server)
        invitations.work(batch.pk)
        assert invitations.progress(batch).emails_waiting == 1
        assert row.setup_links.get().reminded_at is None
        make_due(batch)
        invitations.work(batch.pk)
        assert server.recipients == [row.email]
    assert len(reminders_of(row)) == 1


def test_reminder_that_was_refused_can_be_sent_again(sandbox: Sandbox, settings: Any) -> None:
    rows = waiting(2)
    batch = reminding(rows)
    answers = iter(["550 No such user"])
    with SMTPServer(
        answer=lambda command, to: next(answers, "") if command == "RCPT" else ""
    ) as server:
        use_mail_server(settings, server)
        invitations.work(batch.pk)
        assert invitations.progress(batch).emails_failed == 1
        invitations.send_failed_emails_again(batch)
        invitations.work(batch.pk)
        assert sorted(server.recipients) == [row.email for row in rows]
    assert invitations.progress(batch).emails_sent == 2


@pytest.mark.parametrize("dies", ["sent", "not sent"])
def test_reminder_that_may_have_been_sent_is_not_sent_again(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, dies: str
) -> None:
    (row,) = waiting(1)
    batch = reminding([row])

    def send(*args: Any) -> None:
        if dies == "sent":
            outbox.outbox.append(args[1][0])
        raise Died

    with monkeypatch.context() as patch:
        patch.setattr("django.core.mail.backends.locmem.EmailBackend.send_messages", send)
        with pytest.raises(Died):
            invitations.work(batch.pk)
    sent = len(outbox.outbox)
    make_due(batch)
    invitations.work(batch.pk)
    assert invitations.progress(batch).emails_unknown == 1
    # Nor by another batch, or when the failed e-mails are sent again.
    invitations.resume(batch)
    invitations.work(batch.pk)
    invitations.work(reminding([row]).pk)
    assert len(outbox.outbox) == sent


def test_no_automatic_reminder_follows_at_once(sandbox: Sandbox, configure: Any) -> None:
    configure(EMAIL_REMINDER_DAYS=1)
    (row,) = waiting(1)
    event = setup_links.record_sent(row.setup_links.get(), "email", to=row.email)
    TimelineEvent.objects.filter(pk=event.pk).update(occurred_at=timezone.now() - timedelta(days=2))
    assert automatic_emails.count_due() == 1
    invitations.work(reminding([row]).pk)
    assert automatic_emails.count_due() == 0
    automatic_emails.send_due()
    assert len(outbox.outbox) == 1


def test_sync_continues_a_batch_of_reminders(sandbox: Sandbox) -> None:
    rows = waiting(2)
    reminding(rows)
    sync.run()
    assert len(outbox.outbox) == 2


def test_failed_emails_are_sent_again_without_new_links(sandbox: Sandbox, settings: Any) -> None:
    batch = started(2, send_email=True)
    answers = iter(["550 No such user"])
    with SMTPServer(
        answer=lambda command, to: next(answers, "") if command == "RCPT" else ""
    ) as server:
        use_mail_server(settings, server)
        invitations.work(batch.pk)
        assert len(server.recipients) == 1
        asked = len(sandbox.requests())
        invitations.send_failed_emails_again(batch)
        invitations.work(batch.pk)
        assert len(server.recipients) == 2
    assert len(sandbox.requests()) == asked
    assert SetupLink.objects.count() == 2


def test_progress_of_many_is_that_of_each(sandbox: Sandbox) -> None:
    batches = [started(3), started(1, send_email=True), invitations.make_batch([])]
    invitations.work(batches[0].pk)
    with CaptureQueriesContext(connection) as queries:
        found = invitations.progress_of_many(batches)
    assert len(queries) == 1
    assert found == {batch.pk: invitations.progress(batch) for batch in batches}
