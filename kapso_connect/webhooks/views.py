"""The view that receives Kapso's webhooks."""

from __future__ import annotations

import time

from django.contrib.auth.decorators import login_not_required
from django.db import Error
from django.http import HttpRequest, JsonResponse
from django.views.decorators.csrf import csrf_exempt

from ..conf import get_conf
from ..db import non_atomic
from ..exceptions import MalformedBody
from ..log import OutageEvent, log_event
from ..utils import describe
from .inbox import AlreadyStored, receive
from .payloads import SIGNATURE_CHECK_BODY, parse
from .signature import is_valid

NOT_STORED = OutageEvent("webhook.not_stored")
MAX_LOGGED_ERROR = 200

WRONG_SIGNATURE = "The signature is missing or wrong."


# The signature replaces the CSRF token and the login. ATOMIC_REQUESTS would commit after the answer
# was made, and hold a transaction open while signals are sent.
@non_atomic
@login_not_required
@csrf_exempt
def webhook(request: HttpRequest) -> JsonResponse:
    """Verify, store and process one delivery from Kapso.

    Answers 200 once it is stored (also for a duplicate, an unknown event, and an event that cannot
    be processed, which the admin shows with the reason); 401 without a valid signature; 400 for a
    signed body that is not a JSON object; 405 for methods other than POST; 413 for a body that is
    too large; 503 if the database is unavailable, so that Kapso sends it again.
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
    too_large = f"The body is larger than {conf.max_webhook_bytes} bytes."
    # The header is checked first, so that a body that is declared too large is never read. One
    # without a length (chunked) is read up to the limit under ASGI; WSGI gives Django none of it.
    if _content_length(request) > conf.max_webhook_bytes:
        return _refusal(413, too_large)
    try:
        body = request.read(conf.max_webhook_bytes + 1)
    except OSError:
        return _refusal(400, "The body could not be read.")
    if len(body) > conf.max_webhook_bytes:
        return _refusal(413, too_large)
    if not conf.webhook_secret:
        log_event("webhook.no_secret")
    if not is_valid(body, request.headers.get("X-Webhook-Signature", ""), conf.webhook_secret):
        return _refusal(401, WRONG_SIGNATURE)
    try:
        messages = parse(body, request.headers)
    except MalformedBody as error:
        if body == SIGNATURE_CHECK_BODY:
            return _error(400, str(error))
        return _refusal(400, str(error))
    try:
        stored = [receive(message) for message in messages]
    except (Error, AlreadyStored) as error:
        NOT_STORED.log(error=describe(error).partition("\n")[0][:MAX_LOGGED_ERROR])
        return _error(
            503, "The delivery could not be stored. Send it again.", **{"Retry-After": "10"}
        )
    duplicates = stored.count(None)
    return JsonResponse({"received": len(stored) - duplicates, "duplicates": duplicates})


def _content_length(request: HttpRequest) -> int:
    try:
        return int(request.META.get("CONTENT_LENGTH") or 0)
    except ValueError:
        return 0


def _refusal(status: int, reason: str, **headers: str) -> JsonResponse:
    log_event("webhook.refused", status=status, reason=reason)
    return _error(status, reason, **headers)


def _error(status: int, text: str, **headers: str) -> JsonResponse:
    return JsonResponse({"error": text}, status=status, headers=headers)
