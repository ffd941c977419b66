"""Every event is told under its name with its fields, and nothing else is told."""

from __future__ import annotations

import ast
import io
import json
import logging
import re
import smtplib
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.core.cache import caches
from django.core.management import call_command
from django.db import OperationalError
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from pythonjsonlogger.json import JsonFormatter

from kapso_connect import db, log, onboarding, outbox, signals
from kapso_connect.db import atomic
from kapso_connect.exceptions import KapsoUnavailable, KapsoValidationError
from kapso_connect.models import Connection, SetupLink, TimelineEvent, WebhookEvent
from kapso_connect.onboarding import accounts, invitations, numbers, setup_links
from kapso_connect.onboarding.connect_urls import connect_path
from kapso_connect.testing import Sandbox
from kapso_connect.webhooks import handlers, inbox
from tests import ROOT

from .factories import (
    CREATED,
    DELETED,
    make_connection,
    make_customer,
    make_link,
    new_number_id,
    payload_for,
    post,
    remote_customer,
)
from .pages.test_views import success
from .sites.host_site.models import Bakery

pytestmark = pytest.mark.django_db(transaction=True)

PAGE = ROOT / "docs" / "how-to" / "monitoring.md"
Told = list[tuple[str, dict[str, Any]]]
told: Told = []
"""What the observer of these tests was told."""


covered: set[str] = set()
unlike: list[str] = []
"""Events whose fields were not those of the table."""


def remember(name: str, fields: Mapping[str, Any]) -> None:
    told.append((name, dict(fields)))
    covered.add(name)
    if set(fields) != set(log.EVENTS[name].fields):
        unlike.append(f"{name}: {sorted(fields)}")


def fall_over(name: str, fields: Mapping[str, Any]) -> None:
    fields.clear()  # type: ignore[attr-defined]
    raise ZeroDivisionError


@pytest.fixture(autouse=True)
def _watched(configure: Any) -> Iterator[None]:
    caches["default"].clear()
    told.clear()
    observers = ["tests.test_log.remember"]
    configure(OBSERVERS=observers)
    yield
    assert unlike == []


def names() -> list[str]:
    return [name for name, _ in told if name != "api.called"]


def only(name: str) -> dict[str, Any]:
    (fields,) = [fields for one, fields in told if one == name]
    return fields


def connect(customer: Any = None) -> Connection:
    number = numbers.Number(new_number_id())
    return onboarding.connect(customer or make_customer(), number, source="webhook")


@pytest.fixture
def broken(settings: Any) -> Iterator[None]:
    """A receiver that raises."""

    def broken_receiver(**kwargs: Any) -> None:
        raise RuntimeError("broken")

    signals.whatsapp_connected.connect(broken_receiver)
    yield
    signals.whatsapp_connected.disconnect(broken_receiver)


def change(settings: Any, **changes: Any) -> None:
    settings.KAPSO_CONNECT = {**settings.KAPSO_CONNECT, **changes}


# Webhooks


def test_a_delivery_tells_its_whole_story() -> None:
    number = new_number_id()

    def receiver(**kwargs: Any) -> None:
        pass

    signals.whatsapp_connected.connect(receiver)
    try:
        post(payload_for(make_customer(), number), key="once")
    finally:
        signals.whatsapp_connected.disconnect(receiver)
    assert names() == [
        "webhook.stored",
        "timeline.connected",
        "signal.sent",
        "webhook.answered",
    ]
    inbox, connection = WebhookEvent.objects.get(), Connection.objects.get()
    event = TimelineEvent.objects.get()
    assert only("webhook.stored") == {
        "webhook_event_id": inbox.pk,
        "event_name": CREATED,
        "idempotency_key": "once",
        "outcome": "processed",
    }
    assert only("timeline.connected") == {
        "event_id": event.pk,
        "source": "webhook",
        "customer_id": connection.customer_id,
        "connection_id": connection.pk,
        "setup_link_id": None,
        "webhook_event_id": inbox.pk,
        "actor_id": None,
    }
    sent = only("signal.sent")
    assert (sent["event_id"], sent["kind"], sent["attempts"]) == (event.pk, "connected", 1)
    assert 0 <= sent["seconds"] < 10
    answered = only("webhook.answered")
    assert answered["status"] == 200
    assert sent["seconds"] <= answered["seconds"] < 10


def test_a_repeated_delivery_is_told_as_one() -> None:
    for _ in range(2):
        post({"phone_number_id": "1"}, event="workflow.execution.failed", key="twice")
    assert only("webhook.stored")["outcome"] == "ignored"
    assert only("webhook.duplicate") == {
        "event_name": "workflow.execution.failed",
        "idempotency_key": "twice",
    }


def test_what_is_refused_is_told_with_why(client: Client) -> None:
    post({}, secret="wrong")
    post(b"[]")
    client.get("/whatsapp/webhook/")
    refused = [fields for name, fields in told if name == "webhook.refused"]
    assert [(fields["status"], fields["reason"]) for fields in refused] == [
        (401, "The signature is missing or wrong."),
        (400, "The body must be a JSON object."),
        (405, "Only POST is allowed here."),
    ]
    assert [fields["status"] for name, fields in told if name == "webhook.answered"] == [
        401,
        400,
        405,
    ]


def test_a_secret_that_is_missing_is_told(settings: Any) -> None:
    change(settings, WEBHOOK_SECRET="")
    post({})
    assert names() == ["webhook.no_secret", "webhook.refused", "webhook.answered"]


def test_a_database_that_is_away_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def away(message: Any) -> None:
        raise OperationalError("away")

    monkeypatch.setattr("kapso_connect.webhooks.views.receive", away)
    assert post({}).status_code == 503
    assert only("webhook.not_stored") == {"error": "OperationalError"}
    assert only("webhook.answered")["status"] == 503


def test_a_handler_that_raises_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(inbox: WebhookEvent, seen: inbox.Existing) -> None:
        raise RuntimeError

    monkeypatch.setitem(handlers.HANDLERS, CREATED, broken)
    post(payload_for(make_customer(), "1"))
    assert only("webhook.stored")["outcome"] == "failed"
    error = only("webhook.error")
    assert error["webhook_event_id"] == WebhookEvent.objects.get().pk
    assert error["error"] == "RuntimeError"


def test_a_delivery_that_the_database_refuses_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def locked(inbox: WebhookEvent, seen: inbox.Existing) -> None:
        raise OperationalError

    monkeypatch.setattr("kapso_connect.db.PATIENCE", 0)
    monkeypatch.setitem(handlers.HANDLERS, CREATED, locked)
    post(payload_for(make_customer(), "1"))
    assert only("webhook.error")["error"] == "OperationalError"
    assert only("webhook.stored")["outcome"] == "pending"
    inbox.process(WebhookEvent.objects.get().pk)
    assert [name for name in names() if name == "webhook.error"] == ["webhook.error"] * 2
    settled = only("webhook.retried")
    assert (settled["outcome"], settled["attempts"]) == ("pending", 1)
    assert settled["seconds"] >= 0


def test_a_delivery_that_waits_for_the_api_is_told_when_it_is_settled(sandbox: Sandbox) -> None:
    customer = remote_customer(sandbox)
    number = sandbox.state()["phone_numbers"][0]["phone_number_id"]
    make_connection(customer, phone_number_id=number, status="disconnected")
    post(payload_for(customer, number))
    assert only("webhook.stored")["outcome"] == "pending"
    assert only("webhook.retried")["outcome"] == "processed"


# The timeline


def test_every_kind_of_the_timeline_has_a_name() -> None:
    kinds = set(TimelineEvent.Kind) - {TimelineEvent.Kind.WEBHOOK_RECEIVED}
    assert {f"timeline.{kind}" for kind in kinds} == {
        name for name in log.EVENTS if name.startswith("timeline.")
    }


def test_the_life_of_a_setup_link_is_told(sandbox: Sandbox, admin_user: Any) -> None:
    customer = make_customer(kapso_id=None)
    first = onboarding.create_setup_link(customer, created_by=admin_user)
    setup_links.record_sent(first, "email", actor=admin_user, to="ada@example.com")
    setup_links.record_opened(first, source="redirect")
    onboarding.extend_setup_link(first, timezone.now() + timedelta(days=60))
    setup_links.record_failure(first, "facebook_auth_failed")
    onboarding.create_setup_link(customer)
    SetupLink.objects.update(expires_at=timezone.now())
    setup_links.expire_links()
    assert names() == [
        "timeline.setup_link_created",
        "timeline.setup_link_sent",
        "timeline.setup_link_opened",
        "timeline.setup_link_extended",
        "timeline.setup_failed",
        "timeline.setup_link_revoked",
        "timeline.setup_link_created",
        "timeline.setup_link_expired",
    ]
    assert told[-1][1]["source"] == "sync"
    assert only("timeline.setup_link_sent")["actor_id"] == admin_user.pk
    assert only("timeline.setup_link_sent")["setup_link_id"] == first.pk
    assert only("timeline.setup_link_sent")["channel"] == "email"
    assert only("timeline.setup_failed")["error_code"] == "facebook_auth_failed"
    assert only("timeline.setup_link_revoked")["reason"] == "replaced"
    assert "ada@example.com" not in repr(told)
    assert first.url not in repr(told)


def test_the_life_of_a_number_is_told(sandbox: Sandbox) -> None:
    customer = remote_customer(sandbox)
    connection = make_connection(
        customer, phone_number_id=sandbox.state()["phone_numbers"][0]["phone_number_id"]
    )
    onboarding.check_health(connection)
    accounts.update_account(
        "restricted",
        business_account_id="9",
        phone_number_ids=[connection.phone_number_id],
        source="webhook",
    )
    later = timezone.now() + timedelta(seconds=1)
    number = connection.phone_number_id
    onboarding.disconnect(number, source="sync", asked_at=later, data={"reason": "gone"})
    onboarding.connect(
        customer,
        numbers.Number(number),
        source="sync",
        asked_at=later,
        kind=TimelineEvent.Kind.RECONNECTED,
    )
    assert names() == [
        "timeline.health_checked",
        "timeline.account_updated",
        "timeline.disconnected",
        "timeline.reconnected",
    ]
    assert only("timeline.health_checked")["health"] == "healthy"
    assert only("timeline.account_updated")["decision"] == "restricted"
    assert only("timeline.disconnected")["reason"] == "gone"


def test_what_is_rolled_back_is_not_told() -> None:
    customer = make_customer()
    with pytest.raises(RuntimeError), atomic():  # noqa: PT012
        connect(customer)
        raise RuntimeError
    assert told == []


# Signals


def test_a_receiver_that_raises_is_told_until_it_is_given_up(broken: None, settings: Any) -> None:
    change(settings, RETRY_LIMIT=2)
    connect()
    event = TimelineEvent.objects.get()
    name = "tests.test_log.broken.<locals>.broken_receiver"
    assert only("signal.retry_scheduled")["receivers"] == [name]
    assert only("signal.retry_scheduled")["attempts"] == 1
    assert only("signal.receiver_raised") == {"receiver": name, "error": "RuntimeError"}
    TimelineEvent.objects.update(next_attempt_at=timezone.now())
    told.clear()
    outbox.deliver(event.pk)
    assert names() == ["signal.receiver_raised", "signal.failed"]
    assert only("signal.failed")["event_id"] == event.pk
    assert only("signal.failed")["attempts"] == 2


def test_work_that_processes_died_of_is_told(broken: None, settings: Any) -> None:
    connect()
    event = TimelineEvent.objects.get()
    TimelineEvent.objects.update(next_attempt_at=timezone.now(), attempts=10)
    told.clear()
    outbox.deliver(event.pk)
    assert told == [
        ("work.abandoned", {"kind": "timelineevent", "row_id": event.pk, "attempts": 10})
    ]


def test_a_queue_that_is_away_is_told(broken: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*args: Any) -> None:
        raise ConnectionError

    monkeypatch.setattr(db, "runs_here", lambda task: False)
    monkeypatch.setattr(type(outbox.deliver_event), "enqueue", away)
    connect()
    told_of = only("task.not_enqueued")
    assert told_of["row_id"] == TimelineEvent.objects.get().pk
    assert (told_of["task"], told_of["error"]) == ("deliver_event", "ConnectionError")


# Pages

AWAY = {"match": ".*", "kind": "status", "status": 503}


def test_a_claim_that_waits_is_told_once(client: Client, sandbox: Sandbox, settings: Any) -> None:
    change(settings, REQUEST_BUDGET=0.3)
    link = onboarding.create_setup_link(make_customer(kapso_id=None))
    sandbox.faults(api=[AWAY])
    for _ in range(2):
        assert client.get(success(link, "123")).status_code == 202
    assert only("redirect.unconfirmed") == {
        "setup_link_id": link.pk,
        "customer_id": link.customer_id,
    }


def test_a_claim_that_is_not_true_is_told(client: Client, sandbox: Sandbox) -> None:
    link = onboarding.create_setup_link(make_customer(kapso_id=None))
    assert client.get(success(link, "123")).status_code == 404
    assert only("redirect.rejected")["reason"] == "Kapso does not know this number."
    number = sandbox.add_number()["phone_number_id"]
    assert client.get(success(link, number)).status_code == 404
    assert told[-1][1] == {
        "setup_link_id": link.pk,
        "customer_id": link.customer_id,
        "reason": "This number does not belong to the customer of this link.",
    }


def test_a_customer_who_has_to_wait_is_told(
    client: Client, sandbox: Sandbox, settings: Any
) -> None:
    change(settings, REQUEST_BUDGET=0.3)
    link = onboarding.create_setup_link(make_customer(kapso_id=None))
    sandbox.faults(api=[AWAY])
    address = connect_path(link.customer)
    assert client.post(address).status_code == 303
    assert only("setup_link.unchecked")["setup_link_id"] == link.pk
    assert only("setup_link.unchecked")["error"].startswith("Could not list setup links: ")
    SetupLink.objects.update(status="expired")
    assert client.post(address).status_code == 503
    schedule_retry = only("page.try_again_later")
    assert schedule_retry["customer_id"] == link.customer_id
    assert schedule_retry["error"].startswith("Could not create setup link: ")
    # The attempt before, whose end is not known, would be waited for.
    SetupLink.objects.update(renewing_at=None)
    sandbox.faults(api=[{**AWAY, "status": 401}])
    assert client.post(address).status_code == 503
    assert only("page.unavailable") == {
        "customer_id": link.customer_id,
        "error": "KapsoCredentialsError",
    }
    for _ in range(8):
        response = client.post(address)
    assert response.status_code == 429
    assert only("page.rate_limited") == {"customer_id": link.customer_id}


def test_what_the_rest_api_cannot_do_is_told(
    client: Client, sandbox: Sandbox, settings: Any
) -> None:
    change(settings, API_BUDGET=0.3)
    client.force_login(get_user_model().objects.create_superuser("staff", password="x"))
    customer = make_customer()
    sandbox.faults(api=[{**AWAY, "status": 401}])
    body = {"customer": customer.pk}
    answer = client.post("/api/whatsapp/setup-links/", body, content_type="application/json")
    assert answer.status_code == 502
    failed = only("rest.failed")
    assert (failed["status"], failed["code"]) == (502, "kapso_credentials")
    assert "KapsoCredentialsError" in failed["error"]


def test_a_cache_that_is_out_of_order_is_told(
    client: Client, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = onboarding.create_setup_link(make_customer(kapso_id=None))

    def away(*args: Any) -> None:
        raise ConnectionError

    monkeypatch.setattr("kapso_connect.pages.views.cache.add", away)
    client.post(connect_path(link.customer))
    assert only("page.rate_limit_failed") == {"error": "ConnectionError"}


@pytest.mark.parametrize(
    ("answer", "name"),
    [("https://elsewhere.example/", "page.next_url_refused"), (KeyError, "page.next_url_error")],
)
def test_a_next_page_that_cannot_be_is_told(
    client: Client, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, answer: Any, name: str
) -> None:
    def get_whatsapp_next_url(self: Any, connection: Connection) -> str:
        if answer is KeyError:
            raise KeyError
        return str(answer)

    monkeypatch.setattr(Bakery, "get_whatsapp_next_url", get_whatsapp_next_url, raising=False)
    link = onboarding.create_setup_link(
        make_customer(kapso_id=None, owner=Bakery.objects.create(title="Süß"))
    )
    number = sandbox.add_number(customer_id=link.customer.kapso_id)["phone_number_id"]
    assert client.get(success(link, number)).status_code == 200
    assert only(name)["customer_id"] == link.customer_id


# Invitations


def start(count: int = 1, **choices: Any) -> Any:
    customers = [make_customer(kapso_id=None, email="ada@example.com") for _ in range(count)]
    batch = invitations.make_batch([customer.pk for customer in customers])
    assert invitations.start(batch, **choices)
    return batch


def test_a_batch_is_told(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise smtplib.SMTPRecipientsRefused({"ada@example.com": (550, b"no")})

    monkeypatch.setattr("django.core.mail.message.EmailMessage.send", refuse)
    batch = start(send_email=True)
    invitations.work(batch.pk)
    link = SetupLink.objects.get()
    assert only("batch.started") == {"batch_id": batch.pk, "actor_id": None}
    assert only("invitation.done") == {
        "invitation_id": batch.invitations.get().pk,
        "batch_id": batch.pk,
        "customer_id": link.customer_id,
        "setup_link_id": link.pk,
    }
    assert only("email.failed") == {
        "customer_id": link.customer_id,
        "error": "SMTPRecipientsRefused",
    }


def test_the_e_mail_of_staff_that_fails_is_told_without_the_address(
    sandbox: Sandbox, admin_client: Client, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise smtplib.SMTPRecipientsRefused({"ada@example.com": (550, b"no")})

    monkeypatch.setattr("django.core.mail.message.EmailMessage.send", refuse)
    link = onboarding.create_setup_link(make_customer(kapso_id=None, email="ada@example.com"))
    page = reverse("admin:kapso_connect_customer_whatsapp_email", args=[link.customer_id])
    seen = re.search(r'name="seen" value="([^"]*)"', admin_client.get(page).content.decode())
    assert seen is not None
    admin_client.post(page, {"seen": seen[1]})
    assert only("email.failed")["customer_id"] == link.customer_id
    assert "ada@example.com" not in caplog.text


def test_a_batch_that_stops_is_told(sandbox: Sandbox, settings: Any) -> None:
    change(settings, API_KEY="wrong")
    batch = start()
    invitations.work(batch.pk)
    stopped = only("batch.stopped")
    assert stopped["batch_id"] == batch.pk
    assert "401" in stopped["error"]


@pytest.mark.parametrize(
    ("error", "limit", "name"),
    [
        (KapsoValidationError("no"), 10, "invitation.failed"),
        (KapsoUnavailable("away"), 10, "invitation.retry_scheduled"),
        (KapsoUnavailable("away"), 1, "invitation.failed"),
    ],
)
def test_an_invitation_that_fails_is_told(
    sandbox: Sandbox, settings: Any, monkeypatch: Any, error: Exception, limit: int, name: str
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise error
        yield

    change(settings, RETRY_LIMIT=limit)
    monkeypatch.setattr(onboarding, "setup_link_steps", refuse)
    batch = start()
    invitations.work(batch.pk)
    assert names() == ["batch.started", name]
    assert only(name)["customer_id"] == batch.invitations.get().customer_id


# Behind the scenes


def test_what_is_asked_of_the_api_is_told(sandbox: Sandbox, settings: Any) -> None:
    from kapso_connect.kapso.client import KapsoClient

    with KapsoClient.from_settings() as client:
        client.find_customer("nobody")
    change(settings, API_KEY="")
    with KapsoClient.from_settings() as client, pytest.raises(Exception, match="no API key"):
        client.create_customer(name="Ada")
    asked = [fields for name, fields in told if name == "api.called"]
    assert [(a["operation"], a["method"], a["outcome"], a["status"]) for a in asked] == [
        ("find customer", "GET", "ok", 200),
        ("create customer", "POST", "KapsoCredentialsError", None),
    ]
    assert 0 < asked[0]["seconds"] < 10


def test_a_run_of_kapso_sync_is_told(sandbox: Sandbox) -> None:
    customer = remote_customer(sandbox)
    call_command("kapso_sync", verbosity=0)
    finished = only("sync.finished")
    assert (finished["connected"], finished["errors"]) == (1, 0)
    assert finished["seconds"] > 0
    assert only("timeline.connected")["customer_id"] == customer.pk
    told.clear()
    call_command("kapso_sync", dry_run=True, verbosity=0)
    assert names() == []


def test_what_kapso_sync_cannot_do_is_told(
    sandbox: Sandbox, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError

    customer = remote_customer(sandbox)
    link = make_link(customer, unconfirmed_since=timezone.now(), unconfirmed_phone_number_id="1")
    inbox = WebhookEvent.objects.create(event=CREATED, payload={}, idempotency_key="k")
    number = sandbox.state()["phone_numbers"][0]["phone_number_id"]
    monkeypatch.setattr(handlers, "process", broken)
    monkeypatch.setattr(onboarding, "follow", broken)
    monkeypatch.setattr(onboarding, "claim", broken)
    with pytest.raises(Exception, match=r"Number \d+: "):
        call_command("kapso_sync", verbosity=0)
    assert [fields for name, fields in told if name == "sync.error"] == [
        {"step": "events", "row_id": inbox.pk, "error": "RuntimeError"},
        {"step": "numbers", "row_id": number, "error": "RuntimeError"},
        {"step": "claims", "row_id": link.pk, "error": "RuntimeError"},
    ]
    change(settings, API_KEY="wrong")
    with pytest.raises(Exception, match="401"):
        call_command("kapso_sync", verbosity=0)
    assert "401" in only("sync.stopped")["error"]


def test_what_kapso_prune_deleted_is_told() -> None:
    long_ago = timezone.now() - timedelta(days=1000)
    WebhookEvent.objects.create(
        event=DELETED, payload={}, idempotency_key="k", status="ignored", received_at=long_ago
    )
    call_command("kapso_prune", verbosity=0)
    finished = only("prune.finished")
    assert (finished["webhooks"], finished["events"], finished["batches"]) == (1, 0, 0)
    assert finished["seconds"] > 0
    told.clear()
    call_command("kapso_prune", dry_run=True, verbosity=0)
    assert told == []


# Observers and records


def test_an_observer_that_raises_costs_nobody_anything(settings: Any, caplog: Any) -> None:
    path = "tests.test_log.fall_over"
    change(settings, OBSERVERS=[path, *settings.KAPSO_CONNECT["OBSERVERS"]])
    assert post(payload_for(make_customer(), new_number_id())).status_code == 200
    assert Connection.objects.get().is_connected
    assert names() == ["webhook.stored", "timeline.connected", "webhook.answered"]
    records = [r for r in caplog.records if vars(r).get("kapso_event") == "observer.failed"]
    assert [(r.observer, r.noted, r.error) for r in records] == [
        (path, name, "ZeroDivisionError") for name in names()
    ]
    assert records[0].exc_info is not None


def test_an_observer_that_cannot_be_imported_is_told_once(settings: Any, caplog: Any) -> None:
    change(settings, OBSERVERS=["nowhere.at_all", *settings.KAPSO_CONNECT["OBSERVERS"]])
    log.log_event("page.rate_limited", customer_id=1)
    log.log_event("page.rate_limited", customer_id=2)
    records = [r for r in caplog.records if vars(r).get("kapso_event") == "observer.failed"]
    assert [(r.observer, r.noted, r.error) for r in records] == [
        ("nowhere.at_all", "import", "ModuleNotFoundError")
    ]
    assert names() == ["page.rate_limited", "page.rate_limited"]


def test_settings_that_cannot_be_read_keep_nothing_from_the_log(settings: Any, caplog: Any) -> None:
    settings.KAPSO_CONNECT = {"OBSERVERS": "not.a.list"}
    with caplog.at_level(logging.INFO, "kapso_connect"):
        log.log_event("page.rate_limited", customer_id=1)
    assert caplog.messages == ["Customer 1 asked too often"]


def test_a_json_formatter_shows_the_fields() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter("%(levelname)s %(name)s %(message)s"))
    logger = logging.getLogger("kapso_connect")
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        post(payload_for(make_customer(), new_number_id()), key="once")
        log.log_event("webhook.no_secret")
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
    records = [json.loads(line) for line in stream.getvalue().splitlines()]
    stored = next(r for r in records if r["kapso_event"] == "webhook.stored")
    pk = WebhookEvent.objects.get().pk
    assert stored == {
        "levelname": "INFO",
        "name": "kapso_connect.webhook",
        "message": f"Webhook event {pk} ('{CREATED}') was stored: processed",
        "kapso_event": "webhook.stored",
        "webhook_event_id": pk,
        "event_name": CREATED,
        "idempotency_key": "once",
        "outcome": "processed",
    }
    assert records[-1]["message"].endswith("'WEBHOOK_SECRET'] is not set.")
    assert records[-1]["levelname"] == "ERROR"


def test_the_lines_of_a_text_log_cannot_be_forged(caplog: Any) -> None:
    with caplog.at_level(logging.INFO, "kapso_connect"):
        post({"event": "a.b\nERROR forged", "data": {}}, key="once")
    assert "forged" in caplog.text
    assert "\nERROR forged" not in caplog.text


def test_a_delivery_that_nobody_watches_costs_no_query(
    settings: Any, django_assert_max_num_queries: Any
) -> None:
    counts = []
    for observers in ([], ["tests.test_log.remember"]):
        change(settings, OBSERVERS=observers)
        payload = payload_for(make_customer(), new_number_id())
        with django_assert_max_num_queries(50) as queries:
            post(payload)
        counts.append(len(queries))
    assert counts[0] == counts[1]


# The table


def test_fields_and_messages_fit_a_log_record() -> None:
    taken = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "kapso_event"}
    for name, event in log.EVENTS.items():
        assert not taken & set(event.fields), name
        filled = event.message % dict.fromkeys(event.fields, 1) if event.fields else event.message
        assert "%(" not in filled


def told_in_the_code() -> dict[str, set[str]]:
    """The names in calls of ``note``, with the keywords they are called with."""
    calls: dict[str, set[str]] = {}
    for path in (ROOT / "kapso_connect").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id == "note"
                and isinstance(node.args[0], ast.Constant)
            ):
                keywords = {k.arg for k in node.keywords if k.arg and k.arg != "exc_info"}
                calls.setdefault(str(node.args[0].value), set()).update(keywords)
    return calls


def test_the_code_tells_what_the_table_says() -> None:
    calls = told_in_the_code()
    assert {*calls, *outbox.NAMES.values(), "observer.failed"} == set(log.EVENTS)
    for name, keywords in calls.items():
        assert keywords <= set(log.EVENTS[name].fields), name


def test_nothing_is_logged_past_the_table() -> None:
    loggers = [
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "kapso_connect").rglob("*.py")
        if "getLogger" in path.read_text() and "sandbox" not in path.parts
    ]
    assert loggers == ["kapso_connect/log.py"]


def table() -> str:
    rows = ["| Event | Level | Fields | When |", "| --- | --- | --- | --- |"]
    for name, event in log.EVENTS.items():
        fields = ", ".join(f"`{field}`" for field in event.fields)
        level = logging.getLevelName(event.level)
        rows.append(f"| `{name}` | {level} | {fields} | {event.meaning} |")
    return "\n".join(rows)


def test_the_page_has_the_table() -> None:
    assert table() in PAGE.read_text(), f"docs/how-to/monitoring.md needs:\n{table()}"


def test_every_event_was_told_here(request: pytest.FixtureRequest) -> None:
    """The last of this module; it says nothing where only some of the tests are run."""
    here = {item.name for item in request.session.items if item.path == request.path}
    if not {name for name in globals() if name.startswith("test_")} <= {
        name.partition("[")[0] for name in here
    }:
        pytest.skip("only with the whole module")
    # It is about the observers themselves, so none is told.
    assert covered == set(log.EVENTS) - {"observer.failed"}
