"""The list of webhook deliveries, as Kapso's API shows it."""

from __future__ import annotations

import json
from argparse import Namespace
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import pytest
from django.test import RequestFactory

from kapso_connect.testing import Sandbox

if TYPE_CHECKING:
    from tests.sandbox.support import Api, Receiver

pytest_plugins = ("tests.sandbox.support",)

CREATED = "whatsapp.phone_number.created"


def deliveries(api: Api, query: str = "") -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = api("GET", f"/webhook_deliveries?{query}").json()["data"]
    return rows


def test_a_delivery_shows_what_was_tried(
    box: Sandbox, box_api: Api, box_receiver: Receiver
) -> None:
    box_receiver.answers = [500]
    number = box.add_number(webhook=True)
    box.wait_for_deliveries(1)
    [row] = deliveries(box_api)
    webhook = box.state()["webhooks"][0]
    assert row["attempt_count"] == 2
    assert row["created_at"] < row["last_attempt_at"] <= row["delivered_at"]
    shown = {name: row[name] for name in ("event", "status", "response_status", "failed_at")}
    assert shown == {
        "event": CREATED,
        "status": "delivered",
        "response_status": 200,
        "failed_at": None,
    }
    assert (row["webhook_id"], row["webhook_url"]) == (webhook["id"], box_receiver.url)
    assert row["phone_number_id"] == number["phone_number_id"]
    assert row["whatsapp_config_id"] == number["internal_id"]
    box.set_webhook(None)
    assert deliveries(box_api)[0]["webhook_id"] is None


def test_deliveries_are_filtered(box: Sandbox, box_api: Api, box_receiver: Receiver) -> None:
    box.send_event("whatsapp.config.created", payload={"data": [1]})
    box.wait_for_deliveries(1)
    box_receiver.answer = 503
    number = box.add_number(webhook=True)["phone_number_id"]
    box.wait_for_deliveries(2)
    box.set_webhook("http://127.0.0.1:1/hook")
    box.faults(reorder=9)
    box.send_event(CREATED, phone_number_id=number)
    pending, failed, delivered = deliveries(box_api)
    assert failed["failed_at"]
    assert failed["attempt_count"] == 4
    webhook_id = box.state()["webhooks"][0]["id"]
    for query, found in [
        ("status=pending", [pending]),
        ("status=failed", [failed]),
        ("status=delivered", [delivered]),
        ("event=whatsapp.config.created", [delivered]),
        ("errors_only=true", [failed]),
        ("errors_only=false&period=7d", [pending, failed, delivered]),
        (f"webhook_id={webhook_id}", [pending]),
    ]:
        assert deliveries(box_api, query) == found


@pytest.mark.parametrize(
    ("query", "days"),
    [({}, 1), ({"period": "24h"}, 1), ({"period": "7d"}, 7), ({"period": "30d"}, 30)],
)
def test_a_period_is_that_long(
    monkeypatch: pytest.MonkeyPatch, query: dict[str, str], days: int
) -> None:
    from kapso_connect.sandbox.state import Delivery, store
    from kapso_connect.sandbox.webhook_deliveries import WebhookDeliveriesView

    for hours in (24 * days - 1, 24 * days + 1):
        created_at = datetime.now(timezone.utc) - timedelta(hours=hours)
        delivery = Delivery("1", f"{hours}", b"{}", "key", created_at=created_at)
        monkeypatch.setitem(store.deliveries, delivery.id, delivery)
    monkeypatch.setattr(store, "options", Namespace(base_url=""))
    request = RequestFactory().get("/", query)
    rows = json.loads(WebhookDeliveriesView.as_view()(request).content)["data"]
    assert [row["event"] for row in rows] == [f"{24 * days - 1}"]


def test_a_message_shows_the_person_it_is_about(
    box: Sandbox, box_api: Api, box_receiver: Receiver
) -> None:
    pk = box.add_number()["phone_number_id"]
    buffer = {"buffer_enabled": True, "max_buffer_size": 1}
    events = ["whatsapp.message.received"]
    box_api.number_webhook(pk, url=box_receiver.url, events=events, **buffer)
    box.receive_message(pk, sender="15551234567")
    box.wait_for_deliveries(1)
    [row] = deliveries(box_api)
    assert row["conversation_phone_number"] == "+15551234567"
    assert row["phone_number_id"] == pk


def test_cursors_lead_through_the_list(box: Sandbox, box_api: Api, box_receiver: Receiver) -> None:
    box.seed(5, 1, webhooks=True)
    box.wait_for_deliveries(5)
    everything = [row["id"] for row in deliveries(box_api)]
    assert len(everything) == 5

    def page(query: str) -> tuple[list[str], dict[str, Any]]:
        answer = box_api("GET", f"/webhook_deliveries?limit=2&{query}").json()
        return [row["id"] for row in answer["data"]], answer["paging"]

    ids, paging = page("event=" + CREATED)
    assert ids == everything[:2]
    assert paging["previous"] is None
    assert paging["cursors"] == {"before": ids[0], "after": ids[1]}
    following = box_api.http.get(paging["next"], timeout=10).json()
    assert [row["id"] for row in following["data"]] == everything[2:4]
    before = following["paging"]["cursors"]["before"]
    assert page(f"before={before}")[0] == everything[:2]
    ids, paging = page(f"after={following['paging']['cursors']['after']}")
    assert (ids, paging["next"]) == (everything[4:], None)
    assert paging["previous"]
    assert page(f"before={everything[1]}")[0] == everything[:1]
    nothing = box_api("GET", "/webhook_deliveries?event=none").json()
    assert nothing["paging"]["cursors"] == {"before": None, "after": None}


@pytest.mark.parametrize(
    "query",
    [
        *("status=sent", "errors_only=yes", "period=1y", "limit=0", "limit=101", "limit=x"),
        *("after=x", "before=x", "webhook_id=7"),
    ],
)
def test_an_invalid_query_is_422(box_api: Api, query: str) -> None:
    assert box_api("GET", f"/webhook_deliveries?{query}").status_code == 422
