"""The floor: the shortest view that does the same durable work, with the fewest statements."""

from __future__ import annotations

import hashlib
import hmac
import json

from django.conf import settings
from django.db import IntegrityError, transaction
from django.http import HttpRequest, JsonResponse
from django.utils import timezone
from django.views.decorators.csrf import csrf_exempt

from .models import Delivery, Number


@csrf_exempt
def webhook(request: HttpRequest) -> JsonResponse:
    secret = settings.WEBHOOK_SECRET.encode()
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
                number = Number(
                    phone_number_id=payload["phone_number_id"],
                    customer_id=payload["customer"]["id"],
                    status="connected",
                    connected_at=timezone.now(),
                )
                Number.objects.bulk_create(
                    [number],
                    update_conflicts=True,
                    unique_fields=["phone_number_id"],
                    update_fields=["customer_id", "status", "connected_at"],
                )
    except IntegrityError:
        return JsonResponse({"duplicates": 1})
    return JsonResponse({"received": 1})
