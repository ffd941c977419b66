from __future__ import annotations

from io import StringIO

from django.core.management import call_command
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import include, path
from django.utils import timezone
from django.views.decorators.csrf import csrf_exempt

from kapso_connect.models import Connection, ConnectionEvent, WebhookEvent


def rows(request: HttpRequest, number: str) -> JsonResponse:
    """What the database holds of one number; times in seconds from now."""
    now = timezone.now()
    return JsonResponse(
        {
            "status": Connection.objects.get(phone_number_id=number).status,
            "inbox": list(
                WebhookEvent.objects.filter(payload__phone_number_id=number)
                .order_by("pk")
                .values_list("status", flat=True)
            ),
            "outbox": [
                {
                    "kind": event.kind,
                    "delivered": event.delivered_at is not None,
                    "attempts": event.attempts,
                    "last_error": event.last_error,
                    "due_in": event.next_attempt_at
                    and (event.next_attempt_at - now).total_seconds(),
                }
                for event in ConnectionEvent.objects.filter(
                    connection__phone_number_id=number
                ).order_by("pk")
            ],
        }
    )


@csrf_exempt
def make_due(request: HttpRequest, number: str) -> JsonResponse:
    """Let the wait before the next attempt be over."""
    waiting = ConnectionEvent.objects.filter(
        connection__phone_number_id=number, delivered_at=None, next_attempt_at__isnull=False
    )
    return JsonResponse({"made_due": waiting.update(next_attempt_at=timezone.now())})


@csrf_exempt
def kapso_sync(request: HttpRequest) -> HttpResponse:
    out = StringIO()
    call_command("kapso_sync", stdout=out)
    return HttpResponse(out.getvalue())


urlpatterns = [
    path("whatsapp/", include("kapso_connect.urls")),
    path("rows/<number>/", rows),
    path("make_due/<number>/", make_due),
    path("kapso_sync/", kapso_sync),
]
