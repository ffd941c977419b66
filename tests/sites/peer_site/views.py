"""The floor: views written by hand that do the same durable work, and nothing else."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Callable
from typing import Any

from django.db import IntegrityError, transaction
from django.http import HttpRequest, JsonResponse
from django.utils import timezone
from django.views.decorators.csrf import csrf_exempt

from . import WEBHOOK_SECRET
from .models import Delivery, Number


def take(request: HttpRequest, connect: Callable[[str, dict[str, Any]], object]) -> JsonResponse:
    secret = WEBHOOK_SECRET.encode()
    signature = hmac.new(secret, request.body, hashlib.sha256).hexdigest()
    if not hmac.compare_digest(signature, request.headers.get("X-Webhook-Signature", "")):
        return JsonResponse({"error": "signature"}, status=401)
    payload, event = json.loads(request.body), request.headers["X-Webhook-Event"]
    try:
        with transaction.atomic():
            Delivery.objects.create(
                idempotency_key=request.headers["X-Idempotency-Key"], event=event, payload=payload
            )
            if event == "whatsapp.phone_number.created":
                customer_id = payload["customer"]["id"]
                state = {
                    "customer_id": customer_id,
                    "status": "connected",
                    "connected_at": timezone.now(),
                }
                connect(payload["phone_number_id"], state)
    except IntegrityError:
        return JsonResponse({"duplicates": 1})
    return JsonResponse({"received": 1})


@csrf_exempt
def shortest(request: HttpRequest) -> JsonResponse:
    def connect(phone_number_id: str, state: dict[str, Any]) -> None:
        Number.objects.update_or_create(phone_number_id=phone_number_id, defaults=state)

    return take(request, connect)


@csrf_exempt
def fewest_statements(request: HttpRequest) -> JsonResponse:
    def connect(phone_number_id: str, state: dict[str, Any]) -> None:
        Number.objects.bulk_create(
            [Number(phone_number_id=phone_number_id, **state)],
            update_conflicts=True,
            unique_fields=["phone_number_id"],
            update_fields=list(state),
        )

    return take(request, connect)
