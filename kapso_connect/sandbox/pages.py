"""Pages that show what the sandbox holds and what it delivered."""

from __future__ import annotations

import json
from dataclasses import asdict

from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import render

from .control import resend
from .state import store
from .web import SandboxView

ROWS_SHOWN = 200


class IndexView(SandboxView):
    def get(self, request: HttpRequest) -> HttpResponse:
        links = list(store.links.values())[: -ROWS_SHOWN - 1 : -1]
        numbers = list(store.numbers().values())[: -ROWS_SHOWN - 1 : -1]
        context = {
            "options": store.options,
            "customers": list(store.customers.values())[: -ROWS_SHOWN - 1 : -1],
            "links": [(link, store.customers[link.customer_id]) for link in links],
            "numbers": [(n, store.customers.get(n.customer_id or "")) for n in numbers],
            "webhooks": list(store.webhooks.values()),
            "deliveries": len(store.deliveries),
            "faults": json.dumps(asdict(store.faults), indent=2),
        }
        return render(request, "kapso_sandbox/index.html", context)


class DeliveriesView(SandboxView):
    def get(self, request: HttpRequest) -> HttpResponse:
        latest = list(store.deliveries.values())[: -ROWS_SHOWN - 1 : -1]
        rows = [delivery.as_json() for delivery in latest]
        return render(request, "kapso_sandbox/deliveries.html", {"rows": rows})


class ResendView(SandboxView):
    def post(self, request: HttpRequest, delivery_id: str) -> HttpResponse:
        resend(delivery_id, new_key="new_key" in request.POST)
        return HttpResponseRedirect("/deliveries")


def elsewhere(request: HttpRequest) -> HttpResponse:
    """The target of the ``redirect`` fault; the request log shows whether a client followed it."""
    return HttpResponse("This is not the API.", content_type="text/plain")
