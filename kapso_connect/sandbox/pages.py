"""Pages that show what the sandbox holds and what it delivered."""

from __future__ import annotations

import json
from pathlib import Path

from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import render

from . import fields, serializers
from .fields import ApiError
from .state import store
from .web import json_response
from .webhooks import sender

STYLESHEET = Path(__file__).parent / "static" / "sandbox.css"
ROWS_SHOWN = 200


def index(request: HttpRequest) -> HttpResponse:
    numbers = list(store.numbers().values())
    context = {
        "options": store.options,
        "customers": list(store.customers.values())[: -ROWS_SHOWN - 1 : -1],
        "links": [
            (link, store.customers[link.customer_id])
            for link in list(store.links.values())[: -ROWS_SHOWN - 1 : -1]
        ],
        "numbers": [
            (number, store.customers.get(number.customer_id or ""))
            for number in numbers[: -ROWS_SHOWN - 1 : -1]
        ],
        "webhooks": list(store.webhooks.values()),
        "deliveries": len(store.deliveries),
        "faults": json.dumps(store.faults.as_json(), indent=2),
    }
    return render(request, "kapso_sandbox/index.html", context)


def deliveries(request: HttpRequest) -> HttpResponse:
    latest = list(store.deliveries.values())[: -ROWS_SHOWN - 1 : -1]
    rows = [(delivery, serializers.delivery(delivery)) for delivery in latest]
    return render(request, "kapso_sandbox/deliveries.html", {"rows": rows})


def resend(request: HttpRequest, delivery_id: str) -> object:
    delivery = store.deliveries.get(delivery_id)
    if delivery is None:
        raise ApiError(404, "Delivery not found")
    if delivery.webhook_id not in store.webhooks:
        raise ApiError(409, "The webhook of this delivery was removed")
    new_key = fields.choice("", "0", "1")("new_key", request.POST.get("new_key", "")) == "1"
    again = sender.resend(delivery, new_key=new_key)
    if "application/json" in request.headers.get("Accept", ""):
        return json_response({"data": serializers.delivery(again)}, 202)
    return HttpResponseRedirect("/deliveries")


def elsewhere(request: HttpRequest) -> HttpResponse:
    """The target of the ``redirect`` fault; the request log shows whether a client followed it."""
    return HttpResponse("This is not the API.", content_type="text/plain")


def stylesheet(request: HttpRequest) -> HttpResponse:
    return HttpResponse(STYLESHEET.read_text(encoding="utf-8"), content_type="text/css")


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    return json_response({"error": f"Not found: {request.path}"}, 404)
