"""The signature and the headers that Kapso sends with a webhook's body."""

from __future__ import annotations

import hashlib
import hmac
import uuid


def sign(body: bytes, secret: str) -> str:
    """Return the ``X-Webhook-Signature`` of ``body``: hex HMAC-SHA256, keyed with ``secret``."""
    return hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def webhook_headers(
    body: bytes,
    secret: str | None,
    *,
    event: str,
    idempotency_key: str | None = None,
    payload_version: str = "v2",
    batch_size: int = 0,
) -> dict[str, str]:
    """Return the headers with which Kapso would send ``body``.

    Without ``secret`` it is not signed. ``idempotency_key`` is random when None. A ``batch_size``
    above 0 adds the headers of a batch.
    """
    values = {
        "Content-Type": "application/json",
        "X-Webhook-Event": event,
        "X-Idempotency-Key": str(uuid.uuid4()) if idempotency_key is None else idempotency_key,
        "X-Webhook-Payload-Version": payload_version,
    }
    if secret:
        values["X-Webhook-Signature"] = sign(body, secret)
    if batch_size:
        values |= {"X-Webhook-Batch": "true", "X-Batch-Size": str(batch_size)}
    return values
