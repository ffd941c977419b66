"""Views for the tests, which run in another process."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import Any

from django.contrib.auth.decorators import login_not_required
from django.http import HttpRequest, JsonResponse
from django.views.decorators.csrf import csrf_exempt

from kapso_connect import onboarding
from kapso_connect import sync as kapso_sync
from kapso_connect.exceptions import KapsoError
from kapso_connect.models import (
    Connection,
    Customer,
    IdempotentRequest,
    SetupLink,
    TimelineEvent,
    WebhookEvent,
)
from kapso_connect.onboarding.connect_urls import connect_path
from kapso_connect.onboarding.status import find_wrong_statuses

from .models import ReceivedSignal


def all_rows() -> dict[str, Any]:
    events = TimelineEvent.objects.order_by("pk")
    return {
        "customers": list(Customer.objects.values_list("kapso_id", flat=True)),
        "connections": dict(Connection.objects.values_list("phone_number_id", "status")),
        "links": list(SetupLink.objects.order_by("pk").values("kapso_id", "status", "url")),
        "wrong_statuses": list(find_wrong_statuses()),
        "inbox": dict(Counter(WebhookEvent.objects.values_list("status", flat=True))),
        "inbox_errors": list(
            WebhookEvent.objects.exclude(last_error="").values_list("last_error", flat=True)
        ),
        "timeline": list(events.values_list("pk", "kind", "source", "connection__phone_number_id")),
        "undelivered": list(events.filter(delivered_at=None).values_list("kind", "last_error")),
        "keys": IdempotentRequest.objects.count(),
        "received": list(
            ReceivedSignal.objects.order_by("pk").values_list("signal", "event", "number")
        ),
    }


def delete_all() -> None:
    Customer.objects.update(latest_setup_link=None)
    dependent = (ReceivedSignal, IdempotentRequest, TimelineEvent, WebhookEvent, Connection)
    for model in (*dependent, SetupLink, Customer):
        model._base_manager.all()._raw_delete(using="default")  # without collecting related rows


def add_customer(request: dict[str, Any]) -> Customer:
    found, _created = Customer.objects.get_or_create(
        external_customer_id=request["external_customer_id"], defaults={"name": "Bäckerei Süß"}
    )
    return found


@csrf_exempt
@login_not_required
def rows(request: HttpRequest) -> JsonResponse:
    return JsonResponse(all_rows())


@csrf_exempt
@login_not_required
def reset(request: HttpRequest) -> JsonResponse:
    delete_all()
    return JsonResponse({})


@csrf_exempt
@login_not_required
def invite(request: HttpRequest) -> JsonResponse:
    try:
        customer = add_customer(request.POST.dict())
        link = onboarding.create_setup_link(customer)
    except KapsoError as error:
        return JsonResponse({"error": str(error)})
    return JsonResponse(
        {
            "url": link.url,
            "kapso_id": link.kapso_id,
            "status": link.status,
            "connect_path": connect_path(customer),
        }
    )


@csrf_exempt
@login_not_required
def sync(request: HttpRequest) -> JsonResponse:
    return JsonResponse(asdict(kapso_sync.run()))
