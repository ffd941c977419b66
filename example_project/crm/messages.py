"""The messages that people write to companies' numbers, which Kapso delivers to this site."""

from __future__ import annotations

from typing import Any

from django.contrib.auth.decorators import login_not_required
from django.http import HttpRequest, JsonResponse
from django.views.decorators.csrf import csrf_exempt

from kapso_connect.exceptions import DeliveryRefused
from kapso_connect.webhooks.messages import NumberEvent, read_messages

from .models import ReceivedMessage


# The signature replaces the CSRF token and the login.
@csrf_exempt
@login_not_required
def receive_messages(request: HttpRequest) -> JsonResponse:
    """Store each message once, and answer at once: Kapso waits 10 seconds."""
    try:
        events = read_messages(request)
    except DeliveryRefused as refused:
        return JsonResponse({"error": str(refused)}, status=refused.status)
    for event in events:
        if event.name == "whatsapp.message.received" and not event.is_test:
            store_message(event)
    return JsonResponse({"received": len(events)})


def store_message(event: NumberEvent) -> None:
    message = as_dict(event.payload.get("message"))
    if not message.get("id"):
        return
    # The same message can come twice: its id is unique.
    ReceivedMessage.objects.get_or_create(
        message_id=str(message["id"])[:255],
        defaults={
            "phone_number_id": str(event.payload.get("phone_number_id", ""))[:64],
            # People who hide their number have an id of the business's own.
            "sender": str(message.get("from") or message.get("from_user_id") or "")[:255],
            "kind": str(message.get("type", ""))[:32],
            "text": str(as_dict(message.get("text")).get("body", "")),
        },
    )


def as_dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
