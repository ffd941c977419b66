"""What Kapso puts around a webhook's body: its signature and its headers."""

from __future__ import annotations

import hashlib
import hmac


def sign(body: bytes, secret: str) -> str:
    """Return the ``X-Webhook-Signature`` of ``body``: hex HMAC-SHA256, keyed with ``secret``."""
    return hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def headers(
    body: bytes,
    secret: str | None,
    *,
    event: str,
    idempotency_key: str,
    payload_version: str = "v2",
    batch_size: int = 0,
) -> dict[str, str]:
    """Return every header of a delivery. ``batch_size`` 0 means that it is not a batch."""
    values = {
        "Content-Type": "application/json",
        "X-Webhook-Event": event,
        "X-Idempotency-Key": idempotency_key,
        "X-Webhook-Payload-Version": payload_version,
    }
    if secret:
        values["X-Webhook-Signature"] = sign(body, secret)
    if batch_size:
        values |= {"X-Webhook-Batch": "true", "X-Batch-Size": str(batch_size)}
    return values
