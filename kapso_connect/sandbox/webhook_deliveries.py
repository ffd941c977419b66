"""``GET /webhook_deliveries``: what was sent to which webhook, and what it answered."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

from django.http import HttpRequest

from . import fields
from .fields import Invalid
from .state import Delivery, now, store
from .web import SandboxView, flag, page_size, query

DELIVERY_STATUSES = ("pending", "delivered", "failed")
DELIVERY_PERIODS = {"24h": timedelta(days=1), "7d": timedelta(days=7), "30d": timedelta(days=30)}
STATUS_BY_STATE = {
    "pending": "pending",
    "held": "pending",
    "delivered": "delivered",
    "failed": "failed",
    "dropped": "failed",
}


class WebhookDeliveriesView(SandboxView):
    def get(self, request: HttpRequest) -> object:
        """List them, the newest first; the cursors are ids of deliveries."""
        rows = list(reversed(_filtered(request)))
        limit = int(query(request, "limit", page_size) or 20)
        ids = [row.id for row in rows]
        start = 0
        if after := query(request, "after"):
            start = _position(ids, "after", after) + 1
        elif before := query(request, "before"):
            end = _position(ids, "before", before)
            start = max(end - limit, 0)
            limit = min(limit, end)
        shown = rows[start : start + limit]
        first, last = (shown[0].id, shown[-1].id) if shown else (None, None)
        paging = {
            "cursors": {"before": first, "after": last},
            "next": _url(request, "after", last if start + limit < len(rows) else None),
            "previous": _url(request, "before", first if start > 0 else None),
        }
        return {"data": [_as_json(row) for row in shown], "paging": paging}


def _filtered(request: HttpRequest) -> list[Delivery]:
    """Return the deliveries that the query asks for, the oldest first."""
    status = query(request, "status", fields.choice(*DELIVERY_STATUSES))
    event, webhook_id = query(request, "event"), query(request, "webhook_id", fields.uuid)
    errors_only = flag(request, "errors_only")
    period = query(request, "period", fields.choice(*DELIVERY_PERIODS)) or "24h"
    since = now() - DELIVERY_PERIODS[period]
    return [
        row
        for row in store.deliveries.values()
        if row.created_at >= since
        and (not status or STATUS_BY_STATE[row.state] == status)
        and (not event or row.event == event)
        and (not webhook_id or row.webhook_id == webhook_id)
        and (not errors_only or _has_error(row))
    ]


def _has_error(delivery: Delivery) -> bool:
    """Return whether it failed, for good or so far."""
    status = STATUS_BY_STATE[delivery.state]
    return status == "failed" or (status == "pending" and bool(delivery.attempts))


def _position(ids: list[str], name: str, cursor: str) -> int:
    if cursor not in ids:
        raise Invalid(f"{name} is not a cursor of this list")
    return ids.index(cursor)


def _url(request: HttpRequest, name: str, cursor: str | None) -> str | None:
    """Return the URL of another page, or None without a ``cursor``."""
    if cursor is None:
        return None
    parameters = request.GET.copy()
    parameters.pop("after", None)
    parameters.pop("before", None)
    parameters[name] = cursor
    return f"{store.options.base_url}{request.path}?{parameters.urlencode()}"


def _as_json(delivery: Delivery) -> dict[str, Any]:
    webhook = store.webhooks.get(delivery.webhook_id)
    last = delivery.attempts[-1] if delivery.attempts else None
    status = STATUS_BY_STATE[delivery.state]
    payload = _first_payload(delivery)
    phone_number_id = webhook.phone_number_id if webhook else None
    phone_number_id = phone_number_id or _text_in(payload, "phone_number_id")
    number = store.numbers().get(phone_number_id or "")
    return {
        "id": delivery.id,
        "event": delivery.event,
        "status": status,
        "response_status": last["status"] if last else None,
        "delivered_at": delivery.finished_at if status == "delivered" else None,
        "failed_at": delivery.finished_at if status == "failed" else None,
        "last_attempt_at": last["at"] if last else None,
        "attempt_count": len(delivery.attempts),
        "created_at": delivery.created_at,
        "webhook_id": webhook.id if webhook else None,
        "webhook_url": webhook.url if webhook else None,
        "whatsapp_config_id": number.internal_id if number else None,
        "phone_number_id": phone_number_id,
        "conversation_phone_number": _text_in(payload.get("conversation"), "phone_number"),
    }


def _text_in(data: object, name: str) -> str | None:
    value = data.get(name) if isinstance(data, dict) else None
    return value if isinstance(value, str) else None


def _first_payload(delivery: Delivery) -> dict[str, Any]:
    """Return the payload, or the first one of a batch; {} if that is no object."""
    payload: Any = json.loads(delivery.body)
    if "data" in payload:
        payload = payload["data"]
    if isinstance(payload, list) and payload:
        payload = payload[0]
    return payload if isinstance(payload, dict) else {}
