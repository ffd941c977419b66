"""Kapso's signature: HMAC-SHA256 of the raw body, in hex, in ``X-Webhook-Signature``."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable

from django.views.decorators.debug import sensitive_variables

# Without names, sensitive_variables() keeps all locals out of error reports, also those of the
# functions that are called.


@sensitive_variables()
def sign(body: bytes, secret: str) -> str:
    """Return the signature Kapso sends with ``body``: 64 lower-case hex digits."""
    # An environment variable that is not UTF-8 is read with surrogates; these are its bytes again.
    key = secret.encode("utf-8", "surrogateescape")
    return hmac.new(key, body, hashlib.sha256).hexdigest()


@sensitive_variables()
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
