from __future__ import annotations

from datetime import timedelta
from io import StringIO
from pathlib import Path

from django.conf import settings
from django.core.management import call_command
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import include, path
from django.utils import timezone
from django.views.decorators.csrf import csrf_exempt

from kapso_connect.db import task
from kapso_connect.models import (
    Connection,
    Customer,
    Invitation,
    InvitationBatch,
    TimelineEvent,
    WebhookEvent,
)
from kapso_connect.onboarding import invitations


def rows(request: HttpRequest, number: str) -> JsonResponse:
    """Return the rows of one number, with times in seconds from now."""
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
                    and (
                        max(event.next_attempt_at, event.leased_until or now) - now
                    ).total_seconds(),
                }
                for event in TimelineEvent.objects.filter(
                    connection__phone_number_id=number
                ).order_by("pk")
            ],
        }
    )


@csrf_exempt
def make_due(request: HttpRequest, number: str) -> JsonResponse:
    """Make the next attempt due now."""
    waiting = TimelineEvent.objects.filter(
        connection__phone_number_id=number, delivered_at=None, next_attempt_at__isnull=False
    )
    made_due = waiting.update(next_attempt_at=timezone.now(), leased_at=None, leased_until=None)
    return JsonResponse({"made_due": made_due})


@csrf_exempt
def kapso_sync(request: HttpRequest) -> HttpResponse:
    out = StringIO()
    call_command("kapso_sync", stdout=out)
    return HttpResponse(out.getvalue())


@csrf_exempt
def invite(request: HttpRequest, count: int) -> JsonResponse:
    """Invite ``count`` new customers in the background."""
    customers = Customer.objects.bulk_create(
        Customer(name=f"Customer {n}", email=f"c{n}@example.com") for n in range(count)
    )
    batch = invitations.make_batch([customer.pk for customer in customers])
    invitations.start(batch, send_email=True)
    return JsonResponse({"batch": batch.pk})


def batch(request: HttpRequest, pk: int) -> JsonResponse:
    """Return the progress of a batch, and Kapso's ids of its links."""
    progress = invitations.progress(InvitationBatch.objects.get(pk=pk))
    links = Invitation.objects.filter(batch=pk).values_list("setup_link__kapso_id", flat=True)
    return JsonResponse(
        {
            "done": progress.done,
            "left": progress.left,
            "emails_sent": progress.emails_sent,
            "emails_unknown": progress.emails_unknown,
            "links": list(links),
        }
    )


@task()
def write_file() -> None:
    Path(settings.FOLDER, "deferred").touch()


def defer(request: HttpRequest, seconds: int) -> HttpResponse:
    """Enqueue a task that is due in ``seconds``."""
    write_file.using(run_after=timezone.now() + timedelta(seconds=seconds)).enqueue()
    return HttpResponse()


urlpatterns = [
    path("defer/<int:seconds>/", defer),
    path("invite/<int:count>/", invite),
    path("batch/<int:pk>/", batch),
    path("whatsapp/", include("kapso_connect.urls")),
    path("rows/<number>/", rows),
    path("make_due/<number>/", make_due),
    path("kapso_sync/", kapso_sync),
]
