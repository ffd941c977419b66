"""The pages for the person at the sandbox: what there is, and what was delivered."""

from __future__ import annotations

import json
from pathlib import Path

from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import render

from . import fields, shapes
from .fields import ApiError
from .state import world
from .web import json_response
from .webhooks import sender

STYLESHEET = Path(__file__).parent / "static" / "sandbox.css"
SHOWN = 200


def index(request: HttpRequest) -> HttpResponse:
    numbers = list(world.numbers().values())
    context = {
        "options": world.options,
        "customers": list(world.customers.values())[: -SHOWN - 1 : -1],
        "links": [
            (link, world.customers[link.customer_id])
            for link in list(world.links.values())[: -SHOWN - 1 : -1]
        ],
        "numbers": [
            (number, world.customers.get(number.customer_id or ""))
            for number in numbers[: -SHOWN - 1 : -1]
        ],
        "webhooks": list(world.webhooks.values()),
        "deliveries": len(world.deliveries),
        "faults": json.dumps(world.faults.as_json(), indent=2),
    }
    return render(request, "kapso_sandbox/index.html", context)


def deliveries(request: HttpRequest) -> HttpResponse:
    latest = list(world.deliveries.values())[: -SHOWN - 1 : -1]
    rows = [(delivery, shapes.delivery(delivery)) for delivery in latest]
    return render(request, "kapso_sandbox/deliveries.html", {"rows": rows})


def resend(request: HttpRequest, delivery_id: str) -> object:
    delivery = world.deliveries.get(delivery_id)
    if delivery is None:
        raise ApiError(404, "Delivery not found")
    if delivery.webhook_id not in world.webhooks:
        raise ApiError(409, "The webhook of this delivery was removed")
    new_key = fields.choice("", "0", "1")("new_key", request.POST.get("new_key", "")) == "1"
    again = sender.resend(delivery, new_key=new_key)
    if "application/json" in request.headers.get("Accept", ""):
        return json_response({"data": shapes.delivery(again)}, 202)
    return HttpResponseRedirect("/deliveries")


def elsewhere(request: HttpRequest) -> HttpResponse:
    """Where the ``redirect`` fault leads: the request log shows who followed, and with what."""
    return HttpResponse("This is not the API.", content_type="text/plain")


def stylesheet(request: HttpRequest) -> HttpResponse:
    return HttpResponse(STYLESHEET.read_text(encoding="utf-8"), content_type="text/css")


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    return json_response({"error": f"Not found: {request.path}"}, 404)
