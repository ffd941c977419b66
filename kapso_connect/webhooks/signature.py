"""Is a delivery from Kapso? HMAC-SHA256 of the raw body, in hex, in ``X-Webhook-Signature``."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable


def sign(body: bytes, secret: str) -> str:
    """Return the signature Kapso sends with ``body``: 64 lower-case hex digits."""
    return hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def is_valid(body: bytes, signature: str, secrets: Iterable[str]) -> bool:
    """True where ``signature`` was made with one of ``secrets``; upper-case hex counts too.

    Several secrets are several valid ones while a secret is being rotated.
    """
    given = signature.strip().lower().encode("utf-8", "replace")
    valid = False
    for secret in secrets:
        # Constant time, and every secret is tried: the time tells nothing about which one is near.
        valid |= hmac.compare_digest(sign(body, secret).encode(), given)
    return valid
