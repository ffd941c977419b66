"""Kapso's signature: HMAC-SHA256 of the raw body, in hex, in ``X-Webhook-Signature``."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable


def sign(body: bytes, secret: str) -> str:
    """Return the signature Kapso sends with ``body``: 64 lower-case hex digits."""
    return hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def is_valid(body: bytes, signature: str, secrets: Iterable[str]) -> bool:
    """Return True if ``signature`` was made with one of ``secrets``; upper-case hex counts, too.

    While a secret is being rotated, there are several valid ones.
    """
    given = signature.strip().lower().encode("utf-8", "replace")
    valid = False
    for secret in secrets:
        # In constant time, and with every secret: the time it takes reveals nothing about them.
        valid |= hmac.compare_digest(sign(body, secret).encode(), given)
    return valid
