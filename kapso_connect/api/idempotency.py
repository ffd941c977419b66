"""The ``Idempotency-Key`` header: a repeated request creates its object, or sends its e-mail, only
once."""

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
from django.urls import NoReverseMatch
from rest_framework.exceptions import APIException
from rest_framework.request import Request

from ..conf import get_conf
from ..db import retry_on_conflict
from ..exceptions import CannotInvite, InvalidOptions, KapsoError
from ..models import Customer, IdempotentRequest, SetupLink
from ..utils import utc_now
from .errors import ApiError, invalid_value

IDEMPOTENCY_KEY_HEADER = "Idempotency-Key"
REPLAYED_HEADER = "Idempotent-Replayed"
MAX_IDEMPOTENCY_KEY_LENGTH = 255

LEASE_MARGIN = 10.0
"""Seconds after ``API_BUDGET`` in which a request is still expected to end: its database may be
slow. After that, its process has died."""

ERRORS_WITHOUT_EFFECT = (
    APIException,
    CannotInvite,
    ImproperlyConfigured,
    InvalidOptions,
    KapsoError,
    NoReverseMatch,
    ObjectDoesNotExist,
    PermissionDenied,
)
"""Errors that are raised before anything was created or sent, unless their ``outcome_unknown`` is
True. After any other error, that is unknown."""


@dataclass(frozen=True)
class Attempt:
    """A request to create an object, or to send an e-mail. ``row`` has what an earlier successful
    attempt created, and the body of its response; it is not stored if the request has no key.

    ``since`` is when an earlier attempt with an unknown outcome began.
    """

    row: IdempotentRequest
    since: datetime | None = None
    leased_until: datetime | None = None

    def finish(
        self,
        response: Mapping[str, Any],
        *,
        customer: Customer | None = None,
        setup_link: SetupLink | None = None,
    ) -> None:
        """Store ``response``. Call it in the transaction that records what was done."""
        IdempotentRequest.objects.filter(pk=self.row.pk).update(
            response=response, customer=customer, setup_link=setup_link
        )


@contextmanager
def attempt(request: Request, owner: Callable[[Request], str]) -> Iterator[Attempt]:
    """Lease the request's key, if it has one, while the request is carried out.

    ``owner`` returns whose key it is. An error without effect frees the key. After an error with an
    unknown outcome, or once the lease of a process that died has ended, the next request continues.
    Raise ApiError: ``invalid_idempotency_key`` (400), ``idempotency_key_in_use`` (409),
    ``idempotency_key_reused`` (422).
    """
    key = request.headers.get(IDEMPOTENCY_KEY_HEADER)
    if key is None:
        yield Attempt(IdempotentRequest())
        return
    if not 1 <= len(key) <= MAX_IDEMPOTENCY_KEY_LENGTH or not (key.isascii() and key.isprintable()):
        raise invalid_value(
            IDEMPOTENCY_KEY_HEADER,
            f"Must be 1 to {MAX_IDEMPOTENCY_KEY_LENGTH} printable ASCII characters.",
            code="invalid_idempotency_key",
        )
    digest = _hash([owner(request), request.path, key])
    current = _acquire(digest, _hash(request.data))
    if current.row.response is not None:
        yield current
        return
    # Empty if another process has taken over because this one was slow.
    own_row = IdempotentRequest.objects.filter(
        leased_until=current.leased_until, digest=digest, response__isnull=True
    )
    try:
        yield current
    except Exception as error:
        had_no_effect = isinstance(error, ERRORS_WITHOUT_EFFECT) and not getattr(
            error, "outcome_unknown", False
        )
        if had_no_effect and current.since is None:
            retry_on_conflict(own_row.delete)
        else:
            retry_on_conflict(own_row.release_lease)
        raise


def _acquire(digest: str, fingerprint: str) -> Attempt:
    seconds = get_conf().api_budget + LEASE_MARGIN
    now = utc_now()
    # Leased from the start: another request would take a row without a lease for one that was given
    # up with an unknown outcome.
    new = {
        "fingerprint": fingerprint,
        "leased_at": now,
        "leased_until": now + timedelta(seconds=seconds),
    }
    row, is_new = retry_on_conflict(
        lambda: IdempotentRequest.objects.get_or_create(digest=digest, defaults=new)
    )
    if is_new:
        return Attempt(row, leased_until=row.leased_until)
    if row.fingerprint != fingerprint:
        raise ApiError("idempotency_key_reused")
    if row.response is not None:
        return Attempt(row)
    free = IdempotentRequest.objects.filter(pk=row.pk, response__isnull=True)
    leased_until = retry_on_conflict(partial(free.acquire_lease, seconds))
    if leased_until is None:
        raise ApiError("idempotency_key_in_use", retry_after=1)
    return Attempt(row, since=row.created_at, leased_until=leased_until)


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
