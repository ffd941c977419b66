"""Each event is logged under its name with its fields, and observers get it."""

from __future__ import annotations

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
from django.core.cache.backends.dummy import DummyCache
from django.core.management import call_command
from django.db import OperationalError
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from pythonjsonlogger.json import JsonFormatter

from kapso_connect import log, onboarding, outbox, signals
from kapso_connect.db import atomic
from kapso_connect.models import Connection, SetupLink, TimelineEvent, WebhookEvent
from kapso_connect.onboarding import accounts, invitations, numbers, setup_links
from kapso_connect.onboarding.connect_urls import connect_path
from kapso_connect.testing import Sandbox
from kapso_connect.webhooks import inbox, views

from . import log_events
from .factories import (
    CREATED,
    DELETED,
    allow_questions,
    broken_queue,
    failing_queries,
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

observed: list[tuple[str, dict[str, Any]]] = []
"""The events that the observer of these tests got."""


def observe(name: str, fields: Mapping[str, Any]) -> None:
    observed.append((name, dict(fields)))


def broken_observer(name: str, fields: Mapping[str, Any]) -> None:
    fields.clear()  # type: ignore[attr-defined]
    raise ZeroDivisionError


@pytest.fixture(autouse=True)
def _observed(configure: Any) -> None:
    caches["default"].clear()
    observed.clear()
    configure(OBSERVERS=["tests.log_events.check", "tests.test_log.observe"])


def names() -> list[str]:
    return [name for name, _ in observed if name != "api.called"]


def only(name: str) -> dict[str, Any]:
    """Return the fields of the only event with this name."""
    (fields,) = [fields for one, fields in observed if one == name]
    return fields


def connect(customer: Any = None) -> Connection:
    number = numbers.Number(new_number_id(), display_phone_number="+1 415-555-0100")
    return onboarding.connect(customer or make_customer(), number, source="webhook")


@pytest.fixture
def broken() -> Iterator[None]:
    """A receiver that raises."""

    def broken_receiver(**kwargs: Any) -> None:
        raise RuntimeError("broken")

    signals.whatsapp_connected.connect(broken_receiver)
    yield
    signals.whatsapp_connected.disconnect(broken_receiver)


# Webhooks


def test_a_delivery_is_logged_until_its_signal_was_sent() -> None:
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
        "number.details_missing",  # no API answers here
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


def test_a_duplicate() -> None:
    for _ in range(2):
        post({"phone_number_id": "1"}, event="workflow.execution.failed", key="twice")
    assert only("webhook.stored")["outcome"] == "ignored"
    assert only("webhook.duplicate") == {
        "event_name": "workflow.execution.failed",
        "idempotency_key": "twice",
        "count": 1,
    }


def test_refused_requests_are_logged_with_the_reason(client: Client) -> None:
    post({}, secret="wrong")
    post(b"[]")
    client.get("/whatsapp/webhook/")
    refused = [fields for name, fields in observed if name == "webhook.refused"]
    assert [(fields["status"], fields["reason"]) for fields in refused] == [
        (401, "The signature is missing or wrong."),
        (400, "The body must be a JSON object."),
        (405, "Only POST is allowed here."),
    ]
    assert [fields["status"] for name, fields in observed if name == "webhook.answered"] == [
        401,
        400,
        405,
    ]


def test_a_missing_secret(configure: Any) -> None:
    configure(WEBHOOK_SECRET="")
    post({})
    assert names() == ["webhook.no_secret", "webhook.refused", "webhook.answered"]


def test_a_database_that_is_not_available(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    monkeypatch.setattr(views, "NOT_STORED", log.OutageEvent("webhook.not_stored"))
    with failing_queries(OperationalError("no answer\nfrom the server"), "SELECT", WebhookEvent):
        for _attempt in range(3):
            assert post({}).status_code == 503
        assert only("webhook.not_stored") == {
            "error": "OperationalError: no answer",
            "suppressed": 0,
        }
        monkeypatch.setattr(log, "MIN_SECONDS_BETWEEN_REPEATS", 0.0)  # a minute later
        post({})
    records = [record for record in caplog.records if record.name == "kapso_connect.webhook"]
    outage = [record for record in records if record.kapso_event == "webhook.not_stored"]
    assert [record.suppressed for record in outage] == [0, 2]
    assert not any(record.exc_info for record in outage)


def test_an_error_while_processing() -> None:
    with failing_queries(RuntimeError, "INSERT", Connection):
        post(payload_for(make_customer(), "1"))
    assert only("webhook.stored")["outcome"] == "failed"
    error = only("webhook.error")
    assert error["webhook_event_id"] == WebhookEvent.objects.get().pk
    assert error["error"] == "RuntimeError"


def test_a_database_error_while_processing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kapso_connect.db.CONFLICT_RETRY_SECONDS", 0)
    with failing_queries(OperationalError, "INSERT", Connection):
        post(payload_for(make_customer(), "1"))
        assert only("webhook.error")["error"] == "OperationalError"
        assert only("webhook.stored")["outcome"] == "pending"
        inbox.process(WebhookEvent.objects.get().pk)
    assert [name for name in names() if name == "webhook.error"] == ["webhook.error"] * 2
    retried = only("webhook.retried")
    assert (retried["outcome"], retried["attempts"]) == ("pending", 1)
    assert retried["seconds"] >= 0


def test_a_delivery_that_the_api_has_to_confirm(sandbox: Sandbox) -> None:
    customer = remote_customer(sandbox)
    number = sandbox.state()["phone_numbers"][0]["phone_number_id"]
    make_connection(customer, phone_number_id=number, status="disconnected")
    post(payload_for(customer, number))
    assert only("webhook.stored")["outcome"] == "pending"
    assert only("webhook.retried")["outcome"] == "processed"


# The timeline


def test_every_kind_of_timeline_event_is_in_the_table() -> None:
    kinds = set(TimelineEvent.Kind) - {TimelineEvent.Kind.WEBHOOK_RECEIVED}
    assert {f"timeline.{kind}" for kind in kinds} == {
        name for name in log.EVENTS if name.startswith("timeline.")
    }


def test_the_life_of_a_setup_link(sandbox: Sandbox, admin_user: Any) -> None:
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
    assert observed[-1][1]["source"] == "sync"
    assert only("timeline.setup_link_sent")["actor_id"] == admin_user.pk
    assert only("timeline.setup_link_sent")["setup_link_id"] == first.pk
    assert only("timeline.setup_link_sent")["channel"] == "email"
    assert only("timeline.setup_failed")["error_code"] == "facebook_auth_failed"
    assert only("timeline.setup_link_revoked")["reason"] == "replaced"
    assert "ada@example.com" not in repr(observed)
    assert first.url not in repr(observed)


def test_the_life_of_a_number(sandbox: Sandbox) -> None:
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


def test_what_is_rolled_back_is_not_logged() -> None:
    customer = make_customer()
    with pytest.raises(RuntimeError), atomic():  # noqa: PT012
        connect(customer)
        raise RuntimeError
    assert observed == []


# Signals


def test_a_receiver_that_raises_until_the_last_attempt(broken: None, configure: Any) -> None:
    configure(RETRY_LIMIT=2)
    connect()
    event = TimelineEvent.objects.get()
    name = "tests.test_log.broken.<locals>.broken_receiver"
    assert only("signal.retry_scheduled")["receivers"] == [name]
    assert only("signal.retry_scheduled")["attempts"] == 1
    assert only("signal.receiver_raised") == {"receiver": name, "error": "RuntimeError"}
    TimelineEvent.objects.update(next_attempt_at=timezone.now())
    observed.clear()
    outbox.deliver(event.pk)
    assert names() == ["signal.receiver_raised", "signal.failed"]
    assert only("signal.failed")["event_id"] == event.pk
    assert only("signal.failed")["attempts"] == 2


def test_abandoned_work(broken: None) -> None:
    connect()
    event = TimelineEvent.objects.get()
    TimelineEvent.objects.update(next_attempt_at=timezone.now(), attempts=10)
    observed.clear()
    outbox.deliver(event.pk)
    assert observed == [
        ("work.abandoned", {"kind": "timelineevent", "row_id": event.pk, "attempts": 10})
    ]


def test_a_queue_that_is_not_available(broken: None) -> None:
    with broken_queue():
        connect()
    failed = only("task.not_enqueued")
    assert failed["row_id"] == TimelineEvent.objects.get().pk
    assert (failed["task"], failed["error"]) == ("deliver_event", "ConnectionError")


# Pages

AWAY = {"match": ".*", "kind": "status", "status": 503}


def test_an_unconfirmed_redirect_is_logged_once(
    client: Client, sandbox: Sandbox, configure: Any
) -> None:
    configure(REQUEST_BUDGET=0.3)
    link = onboarding.create_setup_link(make_customer(kapso_id=None))
    sandbox.faults(api=[AWAY])
    for _ in range(2):
        assert client.get(success(link, "123")).status_code == 202
        allow_questions()
    assert only("redirect.unconfirmed") == {
        "setup_link_id": link.pk,
        "customer_id": link.customer_id,
    }


def test_a_rejected_redirect(client: Client, sandbox: Sandbox) -> None:
    link = onboarding.create_setup_link(make_customer(kapso_id=None))
    assert client.get(success(link, "123")).status_code == 404
    assert only("redirect.rejected")["reason"] == "Kapso has no such number."
    allow_questions()
    number = sandbox.add_number()["phone_number_id"]
    assert client.get(success(link, number)).status_code == 404
    assert observed[-1][1] == {
        "setup_link_id": link.pk,
        "customer_id": link.customer_id,
        "reason": "This number does not belong to the customer of this link.",
    }


def test_colours_that_are_hard_to_read(sandbox: Sandbox) -> None:
    colors = {"primary_color": "#ffd400"}
    onboarding.create_setup_link(make_customer(kapso_id=None), options={"theme_config": colors})
    assert "setup_link.hard_to_read" not in names()
    colors["primary_foreground_color"] = "#ffffff"
    link = onboarding.create_setup_link(
        make_customer(kapso_id=None), options={"theme_config": colors}
    )
    assert only("setup_link.hard_to_read") == {
        "setup_link_id": link.pk,
        "customer_id": link.customer_id,
        "problems": "primary_foreground_color #ffffff on primary_color #ffd400 has a contrast of "
        "1.4",
    }


def test_a_customer_who_has_to_wait(client: Client, sandbox: Sandbox, configure: Any) -> None:
    configure(REQUEST_BUDGET=0.3)
    link = onboarding.create_setup_link(make_customer(kapso_id=None))
    sandbox.faults(api=[AWAY])
    address = connect_path(link.customer)
    assert client.post(address).status_code == 200
    assert only("setup_link.unchecked")["setup_link_id"] == link.pk
    assert only("setup_link.unchecked")["error"].startswith("Could not list setup links: ")
    SetupLink.objects.update(status="expired")
    assert client.post(address).status_code == 503
    try_again = only("page.try_again_later")
    assert try_again["customer_id"] == link.customer_id
    assert try_again["error"].startswith("Could not create setup link: ")
    # Otherwise the page would wait for the previous attempt, whose outcome is not known.
    SetupLink.objects.update(leased_at=None, leased_until=None)
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


def test_an_error_of_the_rest_api(client: Client, sandbox: Sandbox, configure: Any) -> None:
    configure(API_BUDGET=0.3)
    client.force_login(get_user_model().objects.create_superuser("staff", password="x"))
    customer = make_customer()
    sandbox.faults(api=[{**AWAY, "status": 401}])
    body = {"customer": customer.pk}
    answer = client.post("/api/whatsapp/v1/setup-links/", body, content_type="application/json")
    assert answer.status_code == 502
    failed = only("rest.failed")
    assert (failed["status"], failed["code"]) == (502, "kapso_credentials")
    assert "KapsoCredentialsError" in failed["error"]


class BrokenCache(DummyCache):
    def add(self, *args: Any, **kwargs: Any) -> bool:
        raise ConnectionError


def test_a_broken_cache(client: Client, sandbox: Sandbox, settings: Any) -> None:
    link = onboarding.create_setup_link(make_customer(kapso_id=None))
    settings.CACHES = {"default": {"BACKEND": "tests.test_log.BrokenCache"}}
    client.post(connect_path(link.customer))
    assert only("page.rate_limit_failed") == {"error": "ConnectionError"}


@pytest.mark.parametrize(
    ("answer", "name"),
    [("https://elsewhere.example/", "page.next_url_refused"), (KeyError, "page.next_url_error")],
)
def test_an_invalid_next_page(
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


def test_a_batch_of_invitations(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise smtplib.SMTPRecipientsRefused({"ada@example.com": (550, b"no")})

    backend = "django.core.mail.backends.locmem.EmailBackend"
    monkeypatch.setattr(f"{backend}.send_messages", refuse)
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


def test_a_failed_e_mail_is_logged_without_the_address(
    sandbox: Sandbox, admin_client: Client, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise smtplib.SMTPRecipientsRefused({"ada@example.com": (550, b"no")})

    monkeypatch.setattr("django.core.mail.message.EmailMessage.send", refuse)
    link = onboarding.create_setup_link(make_customer(kapso_id=None, email="ada@example.com"))
    page = reverse("admin:kapso_connect_customer_whatsapp_email", args=[link.customer_id])
    hidden = r'<input type="hidden" name="(\w+)" value="([^"]*)"'
    form = re.findall(hidden, admin_client.get(page).content.decode())
    admin_client.post(page, dict(form))
    assert only("email.failed")["customer_id"] == link.customer_id
    assert "ada@example.com" not in caplog.text


def test_a_batch_that_stops(sandbox: Sandbox, configure: Any) -> None:
    configure(API_KEY="wrong")
    batch = start()
    invitations.work(batch.pk)
    stopped = only("batch.stopped")
    assert stopped["batch_id"] == batch.pk
    assert "401" in stopped["error"]


@pytest.mark.parametrize(
    ("status", "limit", "name"),
    [
        (422, 10, "invitation.failed"),
        (503, 10, "invitation.retry_scheduled"),
        (503, 1, "invitation.failed"),
    ],
)
def test_an_invitation_that_fails(
    sandbox: Sandbox, configure: Any, status: int, limit: int, name: str
) -> None:
    configure(RETRY_LIMIT=limit, API_BUDGET=0.3)
    sandbox.faults(api=[{"match": "^POST .*/setup_links$", "kind": "status", "status": status}])
    batch = start()
    invitations.work(batch.pk)
    assert names() == ["batch.started", name]
    assert only(name)["customer_id"] == batch.invitations.get().customer_id


# API calls and commands


def test_calls_of_the_api(sandbox: Sandbox, configure: Any) -> None:
    from kapso_connect.kapso.client import KapsoClient

    with KapsoClient.from_settings() as client:
        client.find_customer("nobody")
    configure(API_KEY="")
    with KapsoClient.from_settings() as client, pytest.raises(Exception, match="no API key"):
        client.create_customer(name="Ada")
    asked = [fields for name, fields in observed if name == "api.called"]
    assert [(a["operation"], a["method"], a["outcome"], a["status"]) for a in asked] == [
        ("find customer", "GET", "ok", 200),
        ("create customer", "POST", "KapsoCredentialsError", None),
    ]
    assert 0 < asked[0]["seconds"] < 10


def test_a_run_of_kapso_sync(sandbox: Sandbox) -> None:
    customer = remote_customer(sandbox)
    call_command("kapso_sync", verbosity=0)
    finished = only("sync.finished")
    assert (finished["connected"], finished["errors"]) == (1, 0)
    assert finished["seconds"] > 0
    assert only("timeline.connected")["customer_id"] == customer.pk
    observed.clear()
    call_command("kapso_sync", dry_run=True, verbosity=0)
    assert names() == []


def test_errors_of_kapso_sync(sandbox: Sandbox, configure: Any) -> None:
    customer = remote_customer(sandbox)
    link = make_link(customer, unconfirmed_since=timezone.now(), unconfirmed_phone_number_id="1")
    stored = WebhookEvent.objects.create(event=CREATED, payload={}, idempotency_key="k")
    number = sandbox.state()["phone_numbers"][0]["phone_number_id"]
    with (
        failing_queries(RuntimeError, "UPDATE", WebhookEvent),
        failing_queries(RuntimeError, "INSERT", Connection),
        failing_queries(RuntimeError, "UPDATE", SetupLink, "unconfirmed_since"),
        pytest.raises(Exception, match=r"Number \d+: "),
    ):
        call_command("kapso_sync", verbosity=0)
    assert [fields for name, fields in observed if name == "sync.error"] == [
        {"step": "webhooks", "row_id": stored.pk, "error": "RuntimeError"},
        {"step": "numbers", "row_id": number, "error": "RuntimeError"},
        {"step": "redirects", "row_id": link.pk, "error": "RuntimeError"},
    ]
    configure(API_KEY="wrong")
    with pytest.raises(Exception, match="401"):
        call_command("kapso_sync", verbosity=0)
    assert "401" in only("sync.stopped")["error"]


def test_a_run_of_kapso_prune() -> None:
    long_ago = timezone.now() - timedelta(days=1000)
    WebhookEvent.objects.create(
        event=DELETED, payload={}, idempotency_key="k", status="ignored", received_at=long_ago
    )
    call_command("kapso_prune", verbosity=0)
    finished = only("prune.finished")
    assert (finished["webhooks"], finished["events"], finished["batches"]) == (1, 0, 0)
    assert finished["seconds"] > 0
    observed.clear()
    call_command("kapso_prune", dry_run=True, verbosity=0)
    assert observed == []


# Observers and records


def test_an_observer_that_raises_breaks_nothing(configure: Any, settings: Any, caplog: Any) -> None:
    path = "tests.test_log.broken_observer"
    configure(OBSERVERS=[path, *settings.KAPSO_CONNECT["OBSERVERS"]])
    assert post(payload_for(make_customer(), new_number_id())).status_code == 200
    assert Connection.objects.get().is_connected
    assert names() == [
        "webhook.stored",
        "timeline.connected",
        "signal.unheard",
        "number.details_missing",
        "webhook.answered",
    ]
    records = [r for r in caplog.records if vars(r).get("kapso_event") == "observer.failed"]
    assert [(r.observer, r.during, r.error) for r in records] == [
        (path, name, "ZeroDivisionError") for name, _ in observed
    ]
    assert records[0].exc_info is not None


def test_an_observer_that_cannot_be_imported_is_logged_once(
    configure: Any, settings: Any, caplog: Any
) -> None:
    configure(OBSERVERS=["nowhere.at_all", *settings.KAPSO_CONNECT["OBSERVERS"]])
    log.log_event("page.rate_limited", customer_id=1)
    log.log_event("page.rate_limited", customer_id=2)
    records = [r for r in caplog.records if vars(r).get("kapso_event") == "observer.failed"]
    assert [(r.observer, r.during, r.error) for r in records] == [
        ("nowhere.at_all", "import", "ModuleNotFoundError")
    ]
    assert names() == ["page.rate_limited", "page.rate_limited"]


def test_invalid_settings_do_not_keep_events_from_the_log(settings: Any, caplog: Any) -> None:
    settings.KAPSO_CONNECT = {"OBSERVERS": "not.a.list"}
    with caplog.at_level(logging.INFO, "kapso_connect"):
        log.log_event("page.rate_limited", customer_id=1)
    assert caplog.messages == ["Too many requests from customer 1"]


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


def test_lines_of_a_text_log_cannot_be_forged(caplog: Any) -> None:
    with caplog.at_level(logging.INFO, "kapso_connect"):
        post({"event": "a.b\nERROR forged", "data": {}}, key="once")
    assert "forged" in caplog.text
    assert "\nERROR forged" not in caplog.text


def test_observers_need_no_query(configure: Any, django_assert_max_num_queries: Any) -> None:
    counts = []
    for observers in ([], ["tests.test_log.observe"]):
        configure(OBSERVERS=observers)
        payload = payload_for(make_customer(), new_number_id())
        with django_assert_max_num_queries(50) as queries:
            post(payload)
        counts.append(len(queries))
    assert counts[0] == counts[1]


def test_an_event_that_is_not_in_the_table_is_logged_all_the_same(
    settings: Any, caplog: Any
) -> None:
    settings.KAPSO_CONNECT = {"OBSERVERS": ["tests.test_log.observe"]}
    log.log_event("page.unheard_of", customer_id=1)
    (record,) = caplog.records
    assert (record.kapso_event, record.customer_id) == ("page.unheard_of", 1)
    assert observed == [("page.unheard_of", {"customer_id": 1})]


def test_the_tests_find_events_and_fields_that_are_not_in_the_table() -> None:
    log.log_event("page.unheard_of", customer_id=1)
    log.log_event("page.rate_limited", customer_id=1, colour="red")
    log.log_event("page.rate_limited", customer_id=1)
    assert log_events.undocumented == [
        "page.unheard_of: customer_id",
        "page.rate_limited: colour, customer_id",
    ]
    log_events.undocumented.clear()


# The table


def test_fields_and_messages_fit_a_log_record() -> None:
    reserved = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "kapso_event"}
    for name, (_level, message) in log.EVENTS.items():
        fields = log_events.DOCUMENTED[name]
        assert not reserved & fields, name
        assert "%(" not in (message % dict.fromkeys(fields, 1) if fields else message)


def test_the_page_lists_every_event_with_its_level() -> None:
    rows = re.findall(r"^\| `([\w.]+)` \| ([A-Z]+) \|", log_events.PAGE.read_text(), re.MULTILINE)
    assert rows == [(name, logging.getLevelName(level)) for name, (level, _) in log.EVENTS.items()]
