"""The view that receives Kapso's webhooks."""

from __future__ import annotations

import time

from django.contrib.auth.decorators import login_not_required
from django.core.exceptions import RequestDataTooBig
from django.db import Error
from django.http import HttpRequest, JsonResponse, RawPostDataException
from django.views.decorators.csrf import csrf_exempt

from ..conf import get_conf
from ..db import non_atomic
from ..exceptions import MalformedBody
from ..log import OutageEvent, log_event
from ..utils import describe
from .inbox import AlreadyStored, ReceiverRaised, RepeatedTooOften, receive
from .payloads import SIGNATURE_CHECK_BODY, parse
from .signature import find_signature, is_valid

NOT_STORED = OutageEvent("webhook.not_stored")
MAX_LOGGED_ERROR = 200

WRONG_SIGNATURE = "The signature is missing or wrong."
REPEATED_TOO_OFTEN = "The same body was delivered too often in 24 hours."
REPEAT_DELAY = 60
"""Seconds after which such a body may be sent again."""


# The signature replaces the CSRF token and the login. ATOMIC_REQUESTS would commit after the answer
# was made, and hold a transaction open while signals are sent.
@non_atomic
@login_not_required
@csrf_exempt
def webhook(request: HttpRequest) -> JsonResponse:
    """Verify, store and process one delivery from Kapso.

    Answers 200 once it is stored (also for a duplicate, an unknown event, and an event that cannot
    be processed, which the admin shows with the reason) or, if it is about messages, which are not
    stored, once all receivers of ``webhook_received`` have returned; 401 without a valid signature;
    400 for a signed body that is not a JSON object; 405 for methods other than POST; 411 for a body
    without a length, where the web server cannot read one; 413 for a body that is too large; 429
    for one that was sent again and again under other idempotency keys; 503 if the database is
    unavailable, or a receiver raised for an event about messages, so that Kapso sends it again.
    """
    started = time.monotonic()
    response = _respond(request)
    response.headers["Cache-Control"] = "no-store"
    log_event("webhook.answered", status=response.status_code, seconds=time.monotonic() - started)
    return response


def _respond(request: HttpRequest) -> JsonResponse:
    if request.method != "POST":
        return _refusal(405, "Only POST is allowed here.", Allow="POST")
    conf = get_conf()
    try:
        body = read_body(request, conf.max_webhook_bytes)
    except Unreadable as error:
        return _refusal(error.status, str(error))
    if not conf.webhook_secret:
        log_event("webhook.no_secret")
    if not is_valid(body, find_signature(request.headers), conf.webhook_secret):
        return _refusal(401, WRONG_SIGNATURE)
    try:
        messages = parse(body, request.headers)
    except MalformedBody as error:
        if body == SIGNATURE_CHECK_BODY:
            return _error(400, str(error))
        return _refusal(400, str(error))
    try:
        received = receive(messages)
    except RepeatedTooOften:
        return _refusal(429, REPEATED_TOO_OFTEN, **{"Retry-After": str(REPEAT_DELAY)})
    except (Error, AlreadyStored) as error:
        NOT_STORED.log(error=describe(error).partition("\n")[0][:MAX_LOGGED_ERROR])
        return _error(
            503, "The delivery could not be stored. Send it again.", **{"Retry-After": "10"}
        )
    except ReceiverRaised:
        return _error(
            503, "A receiver of this site raised. Send it again.", **{"Retry-After": "10"}
        )
    return JsonResponse(
        {
            "received": received.stored + received.announced,
            "duplicates": received.duplicates,
        }
    )


class Unreadable(Exception):
    """The body cannot be read. Answer ``status``, with the message."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def read_body(request: HttpRequest, limit: int) -> bytes:
    """Return the body. Raise Unreadable, also for one that is longer than ``limit`` bytes."""
    too_large = Unreadable(413, f"The body is larger than {limit} bytes.")
    length = _content_length(request)
    if length is not None and length > limit:
        raise too_large  # without reading any of it
    try:
        # Middleware may have read ``request.body`` before, or may want to afterwards.
        body = _read_without_length(request, limit + 1) if length is None else request.body
    except RequestDataTooBig:
        raise Unreadable(
            413,
            "The body is larger than this site's DATA_UPLOAD_MAX_MEMORY_SIZE. Make that as large "
            "as KAPSO_CONNECT['MAX_WEBHOOK_BYTES'].",
        ) from None
    except (OSError, RawPostDataException):
        raise Unreadable(400, "The body could not be read.") from None
    if len(body) > limit:
        raise too_large
    return body


def _read_without_length(request: HttpRequest, size: int) -> bytes:
    """Return at most ``size`` bytes of a body whose length is not declared ("chunked")."""
    stream = request.META.get("wsgi.input")
    if stream is None:  # ASGI
        return request.read(size)
    if not request.META.get("wsgi.input_terminated"):
        # Reading on after the end of the body would wait for ever.
        if "chunked" in request.headers.get("Transfer-Encoding", "").lower():
            raise Unreadable(411, "This web server cannot read a body without Content-Length.")
        return b""
    # Django gives its views nothing of it.
    body = bytearray()
    while piece := stream.read(size - len(body)):
        body += piece
    return bytes(body)


def _content_length(request: HttpRequest) -> int | None:
    """Return the declared length of the body, or None."""
    try:
        return int(request.META["CONTENT_LENGTH"])
    except (KeyError, ValueError):
        return None


def _refusal(status: int, reason: str, **headers: str) -> JsonResponse:
    log_event("webhook.refused", status=status, reason=reason)
    return _error(status, reason, **headers)


def _error(status: int, text: str, **headers: str) -> JsonResponse:
    return JsonResponse({"error": text}, status=status, headers=headers)
