"""Creation that is asked for twice and done once: the ``Idempotency-Key`` header."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from django.core.exceptions import ImproperlyConfigured, ObjectDoesNotExist, PermissionDenied
from django.db.models import Q
from django.urls import NoReverseMatch
from django.utils import timezone
from rest_framework.exceptions import APIException
from rest_framework.request import Request

from ..conf import get_conf
from ..db import retry_on_conflict, sqlite_write_lock
from ..exceptions import InvalidOptions, KapsoError
from ..models import Customer, IdempotentRequest, SetupLink
from .errors import ApiError, invalid_value

HEADER = "Idempotency-Key"
REPLAYED = "Idempotent-Replayed"
MAX_LENGTH = 255

CHANGED_NOTHING = (
    APIException,
    ImproperlyConfigured,
    InvalidOptions,
    KapsoError,
    NoReverseMatch,
    ObjectDoesNotExist,
    PermissionDenied,
)
"""What ends an attempt before it has changed anything; of the rest nobody knows."""


@dataclass(frozen=True)
class Attempt:
    """One request to create something. ``row`` is None where it came without a key.

    ``since`` is when an earlier attempt began whose end is not known; ``answer`` is what an earlier
    one was answered, to be answered again.
    """

    row: IdempotentRequest | None = None
    since: datetime | None = None
    leased_until: datetime | None = None

    @property
    def answer(self) -> Mapping[str, Any] | None:
        return self.row.answer if self.row is not None else None

    @property
    def customer_id(self) -> int:
        """Whom the earlier attempt made; 0 where there is none."""
        return (self.row.customer_id if self.row is not None else None) or 0

    @property
    def setup_link(self) -> SetupLink | None:
        """What the earlier attempt made."""
        return self.row.setup_link if self.row is not None else None

    def settle(
        self,
        answer: Mapping[str, Any],
        *,
        customer: Customer | None = None,
        setup_link: SetupLink | None = None,
    ) -> None:
        """Remember ``answer``; call it in the transaction that makes what was asked for."""
        if self.row is not None:
            IdempotentRequest.objects.filter(pk=self.row.pk).update(
                answer=answer, customer=customer, setup_link=setup_link
            )


@contextmanager
def attempt(request: Request, owner: Callable[[Request], str]) -> Iterator[Attempt]:
    """Hold the request's key, if it has one, while what it asks for is made.

    ``owner`` says whose key it is. A failure that changed nothing frees the key; after one of which
    that is not known, and after the lease of a process that died, the next request goes on.
    Raises ApiError: ``invalid_idempotency_key`` (400), ``idempotency_key_in_use`` (409),
    ``idempotency_key_reused`` (422).
    """
    key = request.headers.get(HEADER)
    if key is None:
        yield Attempt()
        return
    if not 1 <= len(key) <= MAX_LENGTH or not (key.isascii() and key.isprintable()):
        raise invalid_value(
            HEADER,
            f"Must be 1 to {MAX_LENGTH} printable ASCII characters.",
            code="invalid_idempotency_key",
        )
    digest = _hash([owner(request), request.path, key])
    tried = _take(digest, _hash(request.data))
    if tried.answer is not None:
        yield tried
        return
    # Not where another process took over because this one was slow.
    row = IdempotentRequest.objects.filter(
        Q(leased_until=tried.leased_until), digest=digest, answer__isnull=True
    )
    try:
        yield tried
    except Exception as error:
        is_free = isinstance(error, CHANGED_NOTHING) and tried.since is None
        if is_free and not getattr(error, "outcome_unknown", False):
            retry_on_conflict(row.delete, within=sqlite_write_lock)
        else:
            retry_on_conflict(
                partial(row.update, leased_until=timezone.now()), within=sqlite_write_lock
            )
        raise


def _take(digest: str, fingerprint: str) -> Attempt:
    now = timezone.now()
    until = now + timedelta(seconds=get_conf().lease_seconds)
    new = {"fingerprint": fingerprint, "created_at": now, "leased_until": until}
    row, made = retry_on_conflict(
        lambda: IdempotentRequest.objects.get_or_create(digest=digest, defaults=new)
    )
    if made:
        return Attempt(row, leased_until=until)
    if row.fingerprint != fingerprint:
        raise ApiError(
            422, "idempotency_key_reused", "This key was used with another body. Take a new one."
        )
    if row.answer is not None:
        return Attempt(row)
    mine = IdempotentRequest.objects.filter(
        pk=row.pk, leased_until=row.leased_until, leased_until__lte=now, answer__isnull=True
    )
    if not retry_on_conflict(partial(mine.update, leased_until=until), within=sqlite_write_lock):
        raise ApiError(
            409,
            "idempotency_key_in_use",
            "A request with this key is under way. Send it again in a moment.",
            wait=1,
        )
    return Attempt(row, since=row.created_at, leased_until=until)


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
