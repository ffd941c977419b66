from __future__ import annotations

import io
import json
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit

import pytest
from django.db import (
    DataError,
    IntegrityError,
    InterfaceError,
    InternalError,
    OperationalError,
    connection,
    transaction,
)
from django.db.models import Model
from django.db.models.signals import post_save
from django.http import HttpRequest, HttpResponse
from django.test import AsyncClient, Client, RequestFactory
from django.utils import timezone
from hypothesis import given
from hypothesis import strategies as st

from kapso_connect import onboarding
from kapso_connect.kapso.types import EARLIEST, LATEST
from kapso_connect.models import Connection, Customer, SetupLink, TimelineEvent, WebhookEvent
from kapso_connect.onboarding import numbers
from kapso_connect.testing import Sandbox, webhook_headers
from kapso_connect.webhooks import inbox
from kapso_connect.webhooks.views import webhook

from ..factories import (
    CREATED,
    DELETED,
    SECRET,
    WEBHOOK,
    listening,
    make_connection,
    make_customer,
    make_link,
    new_number_id,
    payload_for,
    post,
    queue_without_worker,
    read_only_database,
    remote_customer,
)
from ..faults import ProcessKilled, around_api_requests, kill_process

pytestmark = pytest.mark.django_db(transaction=True)


def stored() -> WebhookEvent:
    return WebhookEvent.objects.get()


# Authentication


@pytest.mark.parametrize("method", ["get", "put", "patch", "delete", "head", "options"])
def test_only_post_is_allowed(client: Client, method: str) -> None:
    response = getattr(client, method)(WEBHOOK)
    assert response.status_code == 405
    assert response["Allow"] == "POST"


@pytest.mark.parametrize(
    "headers",
    [{}, {"X-Webhook-Signature": ""}, {"X-Webhook-Signature": "0" * 64}],
)
def test_without_a_valid_signature_nothing_is_stored(client: Client, headers) -> None:
    response = client.post(WEBHOOK, b"{}", content_type="application/json", headers=headers)
    assert response.status_code == 401
    assert response.json() == {"error": "The signature is missing or wrong."}
    assert not WebhookEvent.objects.exists()


def test_a_signature_with_another_secret_is_refused() -> None:
    assert post({}, secret="other").status_code == 401


def test_without_a_secret_everything_is_refused_and_logged(configure: Any, caplog) -> None:
    configure(WEBHOOK_SECRET="")
    assert post({}, secret="").status_code == 401
    assert "WEBHOOK_SECRET" in caplog.text


def test_while_rotating_both_secrets_are_valid(configure: Any) -> None:
    configure(WEBHOOK_SECRET=["new", SECRET])
    assert post({"n": 1}, secret="new").status_code == 200
    assert post({"n": 2}, secret=SECRET).status_code == 200


def test_no_csrf_token_and_no_login_is_asked_for() -> None:
    # The test settings have LoginRequiredMiddleware.
    assert post({}, client=Client(enforce_csrf_checks=True)).status_code == 200


def test_no_answer_is_kept_by_a_cache() -> None:
    assert post({})["Cache-Control"] == "no-store"
    assert Client().get(WEBHOOK)["Cache-Control"] == "no-store"


def test_exempt_from_atomic_requests(monkeypatch) -> None:
    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", True)
    in_transaction: list[bool] = []

    def observe(execute, sql, params, many, context):
        in_transaction.append(connection.in_atomic_block)
        return execute(sql, params, many, context)

    with connection.execute_wrapper(observe):
        assert post({}).status_code == 200
    # The first query looks for a duplicate, and needs no transaction.
    assert in_transaction[0] is False


# Sizes and forms


def test_body_declared_too_large_is_not_read(configure: Any) -> None:
    configure(MAX_WEBHOOK_BYTES=100)
    request = RequestFactory().post(WEBHOOK, b"x" * 101, content_type="application/json")
    read = []
    request._stream = type("Stream", (), {"read": lambda *args: read.append(args)})()
    assert webhook(request).status_code == 413
    assert read == []


def post_chunked(body: bytes, *, is_terminated: bool, **headers: str) -> HttpResponse:
    """Deliver ``body`` as a web server hands on a body whose length was not declared."""
    given = {f"HTTP_{name.upper().replace('-', '_')}": value for name, value in headers.items()}
    return Client().generic(
        "POST",
        WEBHOOK,
        CONTENT_LENGTH="",
        HTTP_TRANSFER_ENCODING="chunked",
        **given,
        **{"wsgi.input": io.BytesIO(body), "wsgi.input_terminated": is_terminated},
    )


def test_chunked_body_is_read(configure: Any) -> None:
    body = json.dumps(payload_for(make_customer(), new_number_id())).encode()
    signed = webhook_headers(body, SECRET, event=CREATED)
    configure(MAX_WEBHOOK_BYTES=len(body))
    assert post_chunked(body, is_terminated=True, **signed).status_code == 200
    assert Connection.objects.get().is_connected


def test_chunked_body_is_read_up_to_the_limit(configure: Any) -> None:
    configure(MAX_WEBHOOK_BYTES=100)
    body = io.BytesIO(b"x" * 1000)
    request = RequestFactory().post(WEBHOOK)
    request.META.update({"CONTENT_LENGTH": "", "wsgi.input_terminated": True, "wsgi.input": body})
    assert webhook(request).status_code == 413
    assert body.tell() == 101


def test_chunked_body_that_the_server_cannot_read_is_a_411(live_server: Any, caplog: Any) -> None:
    # Django's development server hands on the raw connection, and no end of the body.
    site = HTTPConnection(urlsplit(live_server.url).netloc, timeout=10)
    body = b"{}"
    headers = webhook_headers(body, SECRET, event=CREATED)
    site.request("POST", WEBHOOK, iter([body]), headers, encode_chunked=True)
    response = site.getresponse()
    assert response.status == 411
    assert "Content-Length" in json.loads(response.read())["error"]
    site.close()
    assert "refused with 411" in caplog.text
    assert not WebhookEvent.objects.exists()


def test_middleware_may_read_the_body_after_the_view(settings: Any) -> None:
    settings.MIDDLEWARE = [f"{__name__}.reading_middleware", *settings.MIDDLEWARE]
    for body, status in ((b"{}", 200), (b"[]", 400)):
        response = post(body)
        assert response.status_code == status
        assert response["X-Body"] == body.decode()


def reading_middleware(get_response: Any) -> Any:
    def middleware(request: HttpRequest) -> HttpResponse:
        response = get_response(request)
        response["X-Body"] = request.body.decode()
        return response

    return middleware


def test_body_that_a_middleware_consumed_is_a_400() -> None:
    request = RequestFactory().post(WEBHOOK, b"{}", content_type="application/json")
    request.read()
    assert webhook(request).status_code == 400


def test_body_beyond_djangos_own_limit_is_a_413_that_names_it(settings: Any) -> None:
    settings.DATA_UPLOAD_MAX_MEMORY_SIZE = 10
    response = post({"much": "longer"})
    assert response.status_code == 413
    assert "DATA_UPLOAD_MAX_MEMORY_SIZE" in response.json()["error"]


def test_body_of_the_maximum_size_is_accepted(configure: Any) -> None:
    body = json.dumps({"a": "b"}).encode()
    configure(MAX_WEBHOOK_BYTES=len(body))
    assert post(body).status_code == 200


@pytest.mark.parametrize("length", ["5", ""])
def test_interrupted_request_is_a_400(length: str) -> None:
    class Broken:
        def read(self, size: int) -> bytes:
            raise OSError

        readline = read

    environ = {"wsgi.input": Broken(), "wsgi.input_terminated": True}
    response = Client().generic("POST", WEBHOOK, CONTENT_LENGTH=length, **environ)
    assert response.status_code == 400


@pytest.mark.parametrize("body", [b"", b"[]", b"no json", b"\xff\xfe", b"7"])
def test_signed_but_no_json_object_is_a_400(body: bytes) -> None:
    response = post(body)
    assert response.status_code == 400
    assert "JSON" in response.json()["error"]
    assert not WebhookEvent.objects.exists()


def test_a_body_that_middleware_read_before_is_understood() -> None:
    customer, number = make_customer(), new_number_id()
    body = json.dumps(payload_for(customer, number)).encode()
    request = RequestFactory().post(
        WEBHOOK,
        body,
        content_type="application/json",
        headers=webhook_headers(body, SECRET, event=CREATED),
    )
    assert request.body == body
    assert webhook(request).status_code == 200
    assert Connection.objects.get().phone_number_id == number


async def _post_async(body: bytes, headers: dict[str, str]) -> int:
    response = await AsyncClient().post(
        WEBHOOK, body, content_type="application/json", headers=headers
    )
    return response.status_code


def test_under_asgi() -> None:
    from asgiref.sync import async_to_sync

    body = b'{"a": 1}'
    assert async_to_sync(_post_async)(body, webhook_headers(body, SECRET, event="x.y")) == 200
    assert stored().payload == {"a": 1}


@pytest.mark.parametrize(
    "body",
    [
        lambda p: p,
        lambda p: {"event": CREATED, "data": p},
        lambda p: {"type": CREATED, "data": p},
        lambda p: {"type": CREATED, "batch": True, "data": [p], "batch_info": {"size": 1}},
    ],
    ids=["flat", "envelope", "envelope by type", "batch"],
)
def test_every_form_connects(body) -> None:
    customer, number = make_customer(), new_number_id()
    with listening() as heard:
        assert post(body(payload_for(customer, number))).status_code == 200
    assert heard.names() == ["whatsapp_connected"]
    assert Connection.objects.get().phone_number_id == number
    assert stored().status == "processed"


def test_wrong_item_of_a_batch_does_not_affect_the_others() -> None:
    customer = make_customer()
    good = [payload_for(customer, new_number_id()) for _ in range(3)]
    batch = {"type": CREATED, "batch": True, "data": [good[0], {"phone_number_id": 5}, *good[1:]]}
    response = post(batch, key="batch-1", **{"X-Webhook-Batch": "true", "X-Batch-Size": "4"})
    assert response.json() == {"received": 4, "duplicates": 0}
    assert Connection.objects.count() == 3
    assert WebhookEvent.objects.filter(status="failed").count() == 1
    assert post(batch, key="batch-1").json() == {"received": 0, "duplicates": 4}


# Effects


def test_created_connects_and_sends_the_signal() -> None:
    link = make_link()
    number = new_number_id()
    with listening() as heard:
        response = post(payload_for(link.customer, number, business_account_id="waba-1"))
    assert response.json() == {"received": 1, "duplicates": 0}

    connected = Connection.objects.get(phone_number_id=number)
    assert connected.is_connected
    assert connected.customer == link.customer
    assert connected.setup_link == link
    assert connected.business_account_id == "waba-1"
    assert connected.connected_at is not None
    link.refresh_from_db()
    assert (link.status, link.setup_status) == ("used", "completed")

    sent = heard.only("whatsapp_connected")
    event = TimelineEvent.objects.get(kind="connected")
    assert sent["sender"] is Connection
    assert sent["connection"] == connected
    assert sent["customer"] == link.customer
    assert sent["setup_link"] == link
    assert sent["source"] == "webhook"
    assert sent["event"] == event
    assert event.webhook_event == stored()
    assert event.delivered_at is not None


def test_second_delivery_changes_nothing() -> None:
    payload = payload_for(make_customer(), new_number_id())
    post(payload, key="k-1")
    before = list(WebhookEvent.objects.values()), list(Connection.objects.values())
    with listening("whatsapp_connected", "webhook_received") as heard:
        response = post(payload, key="k-1")
    assert response.status_code == 200
    assert response.json() == {"received": 0, "duplicates": 1}
    assert heard == []
    assert before == (list(WebhookEvent.objects.values()), list(Connection.objects.values()))


def test_the_same_event_under_another_key_is_announced_once() -> None:
    payload = payload_for(make_customer(), new_number_id())
    with listening() as heard:
        post(payload, key="k-1")
        post(payload, key="k-2")
    assert heard.names() == ["whatsapp_connected"]
    assert TimelineEvent.objects.count() == 1


# What is the same delivery


@pytest.mark.parametrize(
    ("body", "event"),
    [
        ({"any": "thing"}, CREATED),
        (None, "whatsapp.phone_number.reconnected"),
        (None, "whatsapp.phone_number.Created"),
        (None, "whatsapp.phone_number.cr\u00e9ated"),
        (None, "made.up"),
        ({"phone_number_id": "1"}, "made.up"),
    ],
)
def test_another_delivery_under_the_same_key_keeps_none_from_being_acted_on(
    body: Any, event: str
) -> None:
    payload = payload_for(make_customer(), new_number_id())
    # A header is not signed; as bytes it may be in any encoding.
    post(body or payload, event=event, key="k-1")
    with listening() as heard:
        assert post(payload, key="k-1").json() == {"received": 1, "duplicates": 0}
        assert post(payload, key="k-1").json() == {"received": 0, "duplicates": 1}
    assert heard.names() == ["whatsapp_connected"]


def test_batch_sent_as_one_event_keeps_none_of_its_events_from_being_acted_on() -> None:
    customer = make_customer()
    payloads = [payload_for(customer, new_number_id()) for _ in range(2)]
    batch = {"data": payloads, "more": 1}  # which only the header tells from a payload
    assert post(batch, key="k").json() == {"received": 1, "duplicates": 0}
    assert post(batch, key="k:0").json() == {"received": 1, "duplicates": 0}
    answer = post(batch, key="k", **{"X-Webhook-Batch": "true"})
    assert answer.json() == {"received": 2, "duplicates": 0}
    assert customer.connections.count() == 2


def test_stored_deliveries_are_found_by_their_key() -> None:
    post({}, key="k-1")
    assert WebhookEvent.objects.get(idempotency_key="k-1")


# Repeats


@pytest.mark.parametrize("event", ["whatsapp.phone_number.offboarded", "made.up"])
def test_signed_event_is_a_duplicate_under_any_key(event: str) -> None:
    payload = payload_for(make_customer(), "1", id="evt_1", event=event)
    with listening("webhook_received") as heard:
        answers = [post(payload, event=event).json() for _ in range(3)]
    assert [answer["duplicates"] for answer in answers] == [0, 1, 1]
    assert heard.names() == ["webhook_received"]
    stored()


def test_body_without_an_id_of_its_own_is_stored_a_limited_number_of_times() -> None:
    payload = payload_for(make_customer(), new_number_id())
    with listening("webhook_received") as heard:
        answers = [post(payload).json()["duplicates"] for _ in range(12)]
        assert answers == [0] * 10 + [1] * 2
        assert len(heard) == WebhookEvent.objects.count() == 10
        # Another name is another event: the number may have been deleted meanwhile.
        assert post(payload, event="whatsapp.phone_number.reconnected").json()["duplicates"] == 0
    WebhookEvent.objects.update(received_at=timezone.now() - timedelta(hours=25))
    assert post(payload).json() == {"received": 1, "duplicates": 0}


@pytest.mark.parametrize("pause", [timedelta(0), inbox.MAX_SHARED_WAIT])
def test_queue_processes_the_stored_event_after_that(pause: timedelta) -> None:
    customer = make_customer()
    payload = payload_for(customer, new_number_id())
    for _ in range(inbox.MAX_REPEATS):
        post(payload, event=CREATED)
    now = timezone.now()
    WebhookEvent.objects.update(
        processed_at=now + pause - inbox.MAX_SHARED_WAIT,
        dismissed_at=now,
        dismissed_because="It had failed",
    )
    # What says that it is connected has to be confirmed now.
    Connection.objects.update(status="disconnected", disconnected_at=now - timedelta(hours=1))
    with queue_without_worker():
        assert post(payload, event=CREATED).status_code == 200
        (enqueued,) = inbox.process_webhook_event.get_backend().results
    latest = WebhookEvent.objects.latest("pk")
    assert enqueued.args == [latest.pk]
    assert (latest.dismissed_at, latest.dismissed_because) == (None, "")
    run_after = enqueued.task.run_after
    assert bool(run_after) == bool(pause)
    if run_after:
        assert timedelta(0) < run_after - now - pause < timedelta(seconds=5)


def test_what_this_app_does_not_handle_is_refused_after_that(caplog: Any) -> None:
    statuses = [post({"a": 1}).status_code for _ in range(12)]
    assert statuses == [200] * 10 + [429] * 2
    assert "refused with 429" in caplog.text
    assert int(post({"a": 1})["Retry-After"]) > 0
    WebhookEvent.objects.update(received_at=timezone.now() - timedelta(hours=25))
    assert post({"a": 1}).status_code == 200


def test_made_up_names_are_limited_together() -> None:
    statuses = [post({"a": 1}, event=f"made.up{number}").status_code for number in range(12)]
    assert statuses == [200] * 10 + [429] * 2


def test_duplicate_is_no_repeat_that_is_refused() -> None:
    keys = [f"k-{number}" for number in range(10)]
    for key in keys:
        post({"a": 1}, key=key)
    assert post({"a": 1}, key=keys[0]).json() == {"received": 0, "duplicates": 1}
    assert post({"a": 1}).status_code == 429


def test_captured_batch_under_fresh_keys_costs_one_query(
    django_assert_num_queries: Any,
) -> None:
    events = [{"id": f"evt_{number}"} for number in range(200)]
    batch = {"type": "project.event", "batch": True, "data": events}
    assert post(batch).json() == {"received": 200, "duplicates": 0}
    with listening("webhook_received") as heard, django_assert_num_queries(1):
        assert post(batch).json() == {"received": 0, "duplicates": 200}
    assert heard == []


def test_batch_without_ids_is_limited_as_a_whole() -> None:
    batch = {"type": "made.up", "batch": True, "data": [{"a": 1}, {"a": 2}]}
    assert [post(batch).status_code for _ in range(11)] == [200] * 10 + [429]
    assert WebhookEvent.objects.count() == 20


def test_rest_of_a_batch_that_was_stored_in_part_is_stored(monkeypatch: Any) -> None:
    monkeypatch.setattr("kapso_connect.db.CONFLICT_RETRY_SECONDS", 0.05)
    events = [{"id": f"evt_{number}"} for number in range(3)]
    batch = {"type": "project.event", "batch": True, "data": events}
    broken = failing_statements(OperationalError("gone"), INSERT_WEBHOOK_EVENT)

    def break_after_the_first(**kwargs: Any) -> None:
        broken.__enter__()

    post_save.connect(break_after_the_first, sender=WebhookEvent)
    try:
        assert post(batch, key="k").status_code == 503
    finally:
        post_save.disconnect(break_after_the_first, sender=WebhookEvent)
        broken.__exit__(None, None, None)
    assert post(batch, key="k").json() == {"received": 2, "duplicates": 1}


def test_event_shares_the_answer_that_an_equal_one_waits_for(sandbox: Sandbox) -> None:
    connected = make_connection()
    payload = payload_for(connected.customer, connected.phone_number_id)
    sandbox.faults(api=[{"match": ".*", "kind": "status", "status": 401}])
    assert post(payload, event=DELETED).json() == {"received": 1, "duplicates": 0}
    assert post(payload, event=DELETED).json() == {"received": 0, "duplicates": 1}
    # Not one that is asking at this moment: its answer may be older than the second event.
    rows = WebhookEvent.objects.all()
    rows.update(leased_until=timezone.now() + timedelta(minutes=1))
    assert post(payload, event=DELETED).json() == {"received": 1, "duplicates": 0}
    # And not one that has waited so long that the API's answer to it may come too early.
    rows.update(leased_until=None, received_at=timezone.now() - timedelta(seconds=70))
    assert post(payload, event=DELETED).json() == {"received": 1, "duplicates": 0}


@pytest.mark.parametrize("first", [True, False])
def test_number_of_statements(first: bool, django_assert_max_num_queries: Any) -> None:
    payload = payload_for(make_customer(), new_number_id())
    if not first:
        post(payload, key="k")
    with django_assert_max_num_queries(9 if first else 1):
        post(payload, key="k")


# Times


@pytest.mark.parametrize("zone", ["Pacific/Kiritimati", "America/Los_Angeles"])
def test_pages_show_the_times_at_both_ends(settings: Any, admin_client: Client, zone: str) -> None:
    settings.TIME_ZONE = zone
    connected = make_connection(connected_at=EARLIEST)
    link = make_link(connected.customer, expires_at=LATEST)
    payload = payload_for(connected.customer, connected.phone_number_id)
    event = "whatsapp.phone_number.disconnected"
    for moment in ("0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-12:00", EARLIEST.isoformat()):
        assert post({**payload, "event": event, "occurred_at": moment}).status_code == 200
    failed = WebhookEvent.objects.filter(status="failed")
    assert ["occurred_at" in row.last_error for row in failed] == [True, True]
    deleted_at = (EARLIEST + timedelta(seconds=1)).isoformat()
    post({**payload, "event": event, "occurred_at": deleted_at})
    assert not Connection.objects.get().is_connected
    for row in (connected, link, connected.customer, *WebhookEvent.objects.all()):
        kind = row._meta.model_name
        for page in (f"{row.pk}/change/", ""):
            url = f"/admin/kapso_connect/{kind}/{page}"
            assert admin_client.get(url).status_code == 200


# The sample of the documentation


SAMPLE = {
    "phone_number_id": "123456789012345",
    "project": {"id": "990e8400-e29b-41d4-a716-446655440004"},
}


def test_sample_of_the_documentation_connects_a_known_customer() -> None:
    by_kapso, by_us = make_customer(), make_customer(kapso_id=None)
    with listening() as heard:
        post({**SAMPLE, "customer": {"id": by_kapso.kapso_id}})
    assert heard.names() == ["whatsapp_connected"]
    assert stored().status == "processed"
    assert Connection.objects.get().customer == by_kapso
    Connection.objects.all().delete()
    post({**SAMPLE, "customer": {"id": "new", "external_id": by_us.external_customer_id}})
    assert Connection.objects.get().customer == by_us


@pytest.mark.parametrize("customer", [{"id": "880e8400-e29b-41d4-a716-446655440003"}, None])
@pytest.mark.parametrize("event", [CREATED, DELETED, "whatsapp.phone_number.reconnected"])
def test_sample_of_the_documentation_is_a_test_for_an_unknown_customer(
    customer: Any, event: str
) -> None:
    with listening() as heard:
        post({**SAMPLE, "customer": customer}, event=event)
    assert heard == []
    assert (stored().status, stored().last_error[:15]) == ("ignored", "A test delivery")
    assert not Customer.objects.exists()


def test_test_delivery_may_be_repeated() -> None:
    body = {"event": "whatsapp.phone_number.reconnected", "test": True, "data": {"id": "evt"}}
    for _ in range(12):
        assert post(body).json() == {"received": 1, "duplicates": 0}


# Customers


def test_unknown_customer_of_kapso_becomes_a_customer() -> None:
    post({"phone_number_id": "1", "customer": {"id": "k-9", "external_id": "crm-9"}})
    customer = Customer.objects.get()
    assert (customer.kapso_id, customer.external_customer_id) == ("k-9", "crm-9")
    assert Connection.objects.get().customer == customer


def test_unknown_customer_without_an_external_id() -> None:
    post({"phone_number_id": "1", "customer": {"id": "k-9"}})
    customer = Customer.objects.get()
    assert customer.external_customer_id is None
    assert "k-9" in customer.name


def test_our_customer_is_known_by_its_external_id() -> None:
    ours = make_customer(kapso_id=None, external_customer_id="crm-9")
    post({"phone_number_id": "1", "customer": {"id": "k-9", "external_id": "crm-9"}})
    ours.refresh_from_db()
    assert ours.kapso_id == "k-9"
    assert Connection.objects.get().customer == ours


@pytest.mark.skipif(
    connection.vendor != "mysql", reason="Only MySQL and MariaDB compare without regard to case."
)
def test_external_id_that_differs_in_case_connects_no_customer() -> None:
    make_customer(kapso_id=None, external_customer_id="Crm-9")
    post({"phone_number_id": "1", "customer": {"id": "k-9", "external_id": "crm-9"}})
    assert stored().status == "failed"
    assert "'Crm-9'" in stored().last_error
    assert not Connection.objects.exists()


def test_our_customer_under_a_new_id_at_kapso_stays_ours() -> None:
    ours = make_customer(kapso_id="k-old", external_customer_id="crm-9")
    post({"phone_number_id": "1", "customer": {"id": "k-new", "external_id": "crm-9"}})
    assert Connection.objects.get().customer == ours
    assert Customer.objects.count() == 1


@pytest.mark.parametrize("event", [CREATED, DELETED, "whatsapp.phone_number.reconnected"])
def test_a_number_of_the_project_itself_is_recorded_and_ignored(event: str) -> None:
    with listening() as heard:
        assert (
            post({"phone_number_id": "1", "project": {"id": "p"}}, event=event).status_code == 200
        )
    assert heard == []
    assert stored().status == "ignored"
    assert "project itself" in stored().last_error
    assert not Connection.objects.exists()


def test_unknown_events_are_stored_and_announced() -> None:
    with listening("webhook_received") as heard:
        response = post({"any": ["thing"]}, event="workflow.execution.finished")
    assert response.status_code == 200
    sent = heard.only("webhook_received")
    assert sent["sender"] is WebhookEvent
    assert sent["webhook_event"] == stored()
    assert sent["event_name"] == "workflow.execution.finished"
    assert sent["payload"] == {"any": ["thing"]}
    assert stored().status == "ignored"


def test_known_events_are_announced_by_webhook_received_too() -> None:
    with listening("webhook_received", "whatsapp_connected") as heard:
        post(payload_for(make_customer(), "1"))
    assert sorted(heard.names()) == ["webhook_received", "whatsapp_connected"]


def test_deleted_disconnects_and_sends_the_signal(sandbox: Sandbox) -> None:
    connected = make_connection(connected_at=timezone.now() - timedelta(hours=1))
    with listening() as heard:
        post(payload_for(connected.customer, connected.phone_number_id), event=DELETED)
    connected.refresh_from_db()
    assert not connected.is_connected
    assert connected.disconnected_at is not None
    sent = heard.only("whatsapp_disconnected")
    assert sent["connection"] == connected
    assert sent["customer"] == connected.customer
    assert sent["event"].data["reason"] == "deleted"


def test_deleted_without_its_customer_still_disconnects_what_is_known(sandbox: Sandbox) -> None:
    connected = make_connection(connected_at=timezone.now() - timedelta(hours=1))
    post({"phone_number_id": connected.phone_number_id}, event=DELETED)
    connected.refresh_from_db()
    assert not connected.is_connected


def test_deleted_twice_sends_one_signal(sandbox: Sandbox) -> None:
    connected = make_connection(connected_at=timezone.now() - timedelta(hours=1))
    with listening() as heard:
        for _ in range(2):
            post(payload_for(connected.customer, connected.phone_number_id), event=DELETED)
    assert heard.names() == ["whatsapp_disconnected"]


def test_connecting_takes_the_newest_open_link() -> None:
    customer = make_customer()
    make_link(customer, status=SetupLink.Status.REVOKED)
    done = make_link(customer, status="used", setup_status="completed")
    newest = make_link(customer)
    post(payload_for(customer, "1"))
    assert Connection.objects.get().setup_link == newest
    done.refresh_from_db()
    assert not done.connections.exists()


# Errors


@pytest.mark.parametrize(
    "payload",
    [
        {},
        {"phone_number_id": 123, "customer": {"id": "c"}},
        {"phone_number_id": "1" * 10_000, "customer": {"id": "c"}},
        {"phone_number_id": "1", "customer": "c"},
        {"phone_number_id": "1", "customer": {"id": "c", "external_id": ["e"]}},
    ],
)
@pytest.mark.parametrize("event", [CREATED, DELETED])
def test_signed_but_wrong_is_stored_as_failed_with_the_reason(payload, event) -> None:
    assert post(payload, event=event).status_code == 200
    assert stored().status == "failed"
    assert stored().last_error
    assert stored().next_attempt_at is None
    assert not Customer.objects.exists()


@contextmanager
def failing_to_save(model: type[Model], error: Exception) -> Iterator[None]:
    """Raise ``error`` when a row of ``model`` is saved, as a receiver of the site may."""

    def receiver(**kwargs: Any) -> None:
        raise error

    post_save.connect(receiver, sender=model)
    try:
        yield
    finally:
        post_save.disconnect(receiver, sender=model)


def failing_statements(error: Exception, start: str = "") -> Any:
    """Let the database refuse statements that start with ``start``."""

    def execute(execute, sql, params, many, context):
        if sql.replace('"', "").replace("`", "").startswith(start):
            raise error
        return execute(sql, params, many, context)

    return connection.execute_wrapper(execute)


INSERT_CONNECTION = f"INSERT INTO {Connection._meta.db_table}"
INSERT_WEBHOOK_EVENT = f"INSERT INTO {WebhookEvent._meta.db_table}"


def test_error_while_processing_keeps_the_delivery_and_rolls_back_the_rest() -> None:
    with failing_to_save(Connection, LookupError("out of luck")):
        post({"phone_number_id": "1", "customer": {"id": "new"}})
    assert stored().status == "failed"
    assert stored().last_error == "LookupError: out of luck"
    # The customer was made before the error, in the transaction that was rolled back.
    assert not Customer.objects.exists()


def test_a_failed_event_can_be_run_again() -> None:
    with failing_to_save(Connection, ZeroDivisionError()):
        post(payload_for(make_customer(), "1"))
        assert stored().status == "failed"
        assert inbox.process_again(stored()) is False
    assert inbox.process_again(stored()) is True
    assert stored().status == "processed"
    assert Connection.objects.get().is_connected


@pytest.mark.parametrize(
    "error",
    [
        OperationalError("database is locked"),
        InterfaceError("connection already closed"),
        InternalError("cannot execute INSERT in a read-only transaction"),
    ],
)
def test_delivery_waits_in_the_inbox_after_conflicts_and_outages(
    monkeypatch, error: Exception
) -> None:
    monkeypatch.setattr("kapso_connect.db.CONFLICT_RETRY_SECONDS", 0.05)
    with failing_statements(error, INSERT_CONNECTION):
        assert post(payload_for(make_customer(), "1")).status_code == 200
        assert stored().status == "pending"
        assert str(error) in stored().last_error
        WebhookEvent.objects.update(next_attempt_at=stored().received_at)
        assert not inbox.process(stored().pk)
        assert stored().status == "pending"
    WebhookEvent.objects.update(next_attempt_at=stored().received_at)
    assert inbox.process(stored().pk)
    assert Connection.objects.get().is_connected


def test_error_while_confirming_is_recorded_and_retried(sandbox: Sandbox) -> None:
    customer = remote_customer(sandbox)
    [number] = [row["phone_number_id"] for row in sandbox.state()["phone_numbers"]]
    make_connection(customer, phone_number_id=number, status="disconnected")
    with failing_to_save(Connection, DataError("value too long")):
        assert post(payload_for(customer, number)).status_code == 200
        assert stored().status == "pending"
        assert "value too long" in stored().last_error
        assert inbox.process_again(stored()) is False
    assert inbox.process_again(stored()) is True
    assert Connection.objects.get().is_connected


def test_queue_that_can_defer_makes_the_next_attempts(sandbox: Sandbox) -> None:
    customer = remote_customer(sandbox)
    [number] = [row["phone_number_id"] for row in sandbox.state()["phone_numbers"]]
    make_connection(customer, phone_number_id=number, status="disconnected")
    sandbox.faults(api=[{"kind": "status", "status": 503}])
    with queue_without_worker():
        assert post(payload_for(customer, number)).status_code == 200
        queue = inbox.process_webhook_event.get_backend()
        (first,) = queue.results
        assert first.task.run_after is None
        first.task.call(*first.args)
        assert stored().status == "pending"
        _, second = queue.results
        wait = second.task.run_after - stored().next_attempt_at
        assert wait == timedelta(seconds=1)
        sandbox.clear_faults()
        WebhookEvent.objects.update(next_attempt_at=stored().received_at)
        for _ in range(2):
            second.task.call(*second.args)
        assert len(queue.results) == 2
    assert (stored().status, stored().attempts) == ("processed", 2)
    assert Connection.objects.get().is_connected


def test_delivery_that_waits_after_conflicts_is_processed_by_a_queue_that_can_defer(
    monkeypatch,
) -> None:
    monkeypatch.setattr("kapso_connect.db.CONFLICT_RETRY_SECONDS", 0.05)
    with queue_without_worker():
        with failing_statements(OperationalError("database is locked"), INSERT_CONNECTION):
            assert post(payload_for(make_customer(), "1")).status_code == 200
        (later,) = inbox.process_webhook_event.get_backend().results
        assert later.task.run_after - stored().next_attempt_at == timedelta(seconds=1)
        WebhookEvent.objects.update(next_attempt_at=stored().received_at)
        later.task.call(*later.args)
    assert Connection.objects.get().is_connected


def test_processing_that_ends_in_no_exception_is_put_off(sandbox: Sandbox) -> None:
    customer = remote_customer(sandbox)
    [number] = [row["phone_number_id"] for row in sandbox.state()["phone_numbers"]]
    make_connection(customer, phone_number_id=number, status="disconnected")
    with queue_without_worker():
        post(payload_for(customer, number))
    with around_api_requests(before=kill_process), pytest.raises(ProcessKilled):
        inbox.process(stored().pk)
    assert (stored().status, stored().leased_until) == ("pending", None)
    assert "ProcessKilled" in stored().last_error
    WebhookEvent.objects.update(next_attempt_at=stored().received_at)
    assert inbox.process(stored().pk)
    assert Connection.objects.get().is_connected


def test_without_a_database_the_answer_is_a_503(monkeypatch) -> None:
    monkeypatch.setattr("kapso_connect.db.CONFLICT_RETRY_SECONDS", 0.05)
    for start in ("", INSERT_WEBHOOK_EVENT):
        with failing_statements(OperationalError("connection refused"), start):
            response = post({})
        assert response.status_code == 503
        assert response["Retry-After"]
        assert "refused" not in response.content.decode()


def test_read_only_database_is_a_503_at_once() -> None:
    payload = payload_for(make_customer(), "1")
    with read_only_database():
        started = time.monotonic()
        response = post(payload)
        assert time.monotonic() - started < 0.5
    assert (response.status_code, response["Retry-After"]) == (503, "10")
    assert post(payload).json() == {"received": 1, "duplicates": 0}


@pytest.mark.skipif(connection.vendor != "sqlite", reason="only SQLite can be limited so easily")
def test_full_disk_is_a_503_at_once() -> None:
    payload = payload_for(make_customer(), "1", note="x" * 900_000)  # more than what is free in it
    with connection.cursor() as cursor:
        cursor.execute("PRAGMA max_page_count = 1")  # no fewer than there are
        started = time.monotonic()
        response = post(payload)
        assert time.monotonic() - started < 0.5
        cursor.execute("PRAGMA max_page_count = 1073741823")
    assert response.status_code == 503
    assert post(payload).json() == {"received": 1, "duplicates": 0}


def test_delivery_stored_by_another_process_first_is_a_duplicate() -> None:
    payload = payload_for(make_customer(), "1")
    both_have_looked = threading.Barrier(2, timeout=10)
    answers: list[dict[str, int]] = []

    def deliver() -> None:
        waiting = [both_have_looked]

        def wait_after_looking(execute, sql, params, many, context):
            result = execute(sql, params, many, context)
            if sql.startswith("SELECT") and WebhookEvent._meta.db_table in sql and waiting:
                waiting.pop().wait()
            return result

        try:
            with connection.execute_wrapper(wait_after_looking):
                answers.append(post(payload, key="same").json())
        finally:
            connection.close()

    threads = [threading.Thread(target=deliver) for _ in range(2)]
    with listening() as heard:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(answer["duplicates"] for answer in answers) == [0, 1]
    assert stored().status == "processed"
    assert heard.names() == ["whatsapp_connected"]


def test_conflict_without_a_stored_delivery_is_a_503(monkeypatch) -> None:
    monkeypatch.setattr("kapso_connect.db.CONFLICT_RETRY_SECONDS", 0.05)
    with failing_statements(IntegrityError("duplicate key"), INSERT_WEBHOOK_EVENT):
        assert post({}).status_code == 503
    assert not WebhookEvent.objects.exists()
    assert post({}).status_code == 200


def test_receiver_that_raises_does_not_change_the_answer() -> None:
    def bad_receiver(**kwargs: Any) -> None:
        raise RuntimeError("no")

    from kapso_connect.signals import whatsapp_connected

    whatsapp_connected.connect(bad_receiver)
    try:
        assert post(payload_for(make_customer(), "1")).status_code == 200
    finally:
        whatsapp_connected.disconnect(bad_receiver)
    event = TimelineEvent.objects.get()
    assert event.delivered_at is None
    assert "RuntimeError: no" in event.last_error


def test_signal_is_sent_after_the_commit_of_the_callers_transaction() -> None:
    with listening() as heard:
        with transaction.atomic():
            onboarding.connect(make_customer(), numbers.Number("1"), source="manual")
            assert heard == []
        assert heard.names() == ["whatsapp_connected"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
EVENT_NAMES = [
    *(f"whatsapp.phone_number.{name}" for name in ("created", "deleted", "offboarded")),
    *(f"whatsapp.phone_number.{name}" for name in ("disconnected", "reconnected", "other")),
    *(f"whatsapp.account.{name}" for name in ("disabled", "restricted", "violation")),
]
FIELDS = ["phone_number_id", "customer", "customer_id", "data", "event", "type", "batch", "source"]
FIELDS += ["occurred_at", "business_account_id", "phone_numbers", "restrictions", "disconnection"]


@given(
    body=st.dictionaries(
        st.sampled_from(FIELDS), json_values | st.sampled_from(["1", "77", {"id": "c"}, True])
    ),
    event=st.sampled_from(EVENT_NAMES),
)
def test_no_signed_object_is_ever_an_error(body, event) -> None:
    key = str(uuid.uuid4())
    response = post(body, event=event, key=key)
    assert response.status_code == 200
    stored = WebhookEvent.objects.filter(idempotency_key__startswith=key)
    assert stored.count() == response.json()["received"]
    assert all(row.last_error for row in stored if row.status in {"failed", "ignored", "pending"})


@given(body=st.binary(max_size=200), signature=st.text(max_size=80), signed=st.booleans())
def test_no_bytes_are_ever_an_error(body, signature, signed) -> None:
    if signed:
        assert post(body).status_code in {200, 400}
    else:
        header = signature.encode("ascii", "replace").decode()
        response = Client().post(
            WEBHOOK,
            body,
            content_type="application/json",
            headers={"X-Webhook-Signature": header},
        )
        assert response.status_code == 401
