"""Kapso's signature: HMAC-SHA256 of the raw body, in hex, in ``X-Webhook-Signature``.

Proxies and older code write it otherwise: with ``sha256=`` in front, or in ``X-Kapso-Signature``.
That is accepted, too, since what is compared stays the same.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping

from django.views.decorators.debug import sensitive_variables

PREFIX = "sha256="

# Without names, sensitive_variables() keeps all locals out of error reports, also those of the
# functions that are called.


@sensitive_variables()
def sign(body: bytes, secret: str) -> str:
    """Return the signature Kapso sends with ``body``: 64 lower-case hex digits."""
    # An environment variable that is not UTF-8 is read with surrogates; these are its bytes again.
    key = secret.encode("utf-8", "surrogateescape")
    return hmac.new(key, body, hashlib.sha256).hexdigest()


def find_signature(headers: Mapping[str, str]) -> str:
    """Return the signature in the headers of a request, or ""."""
    return headers.get("X-Webhook-Signature") or headers.get("X-Kapso-Signature") or ""


@sensitive_variables()
def is_valid(body: bytes, signature: str, secrets: Iterable[str]) -> bool:
    """Return True if ``signature`` was made with one of ``secrets``; upper-case hex counts, too,
    and so does ``sha256=`` in front of it.

    While a secret is being rotated, there are several valid ones.
    """
    digits = signature.strip().lower().removeprefix(PREFIX)
    given = digits.encode("utf-8", "replace")
    valid = False
    for secret in secrets:
        # In constant time, and with every secret: the time it takes reveals nothing about them.
        valid |= hmac.compare_digest(sign(body, secret).encode(), given)
    return valid
