"""For the site's own webhook: what Kapso delivers to the URL of ``NUMBER_WEBHOOK``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from django.http import HttpRequest
from django.views.decorators.debug import sensitive_variables

from ..conf import get_conf
from ..exceptions import DeliveryRefused, MalformedBody
from .payloads import UNNAMED_EVENT, parse
from .signature import find_signature, is_valid
from .views import WRONG_SIGNATURE, Unreadable, read_body


@dataclass(frozen=True)
class NumberEvent:
    """One event of a number.

    ``name`` is Kapso's, such as "whatsapp.message.received". It may be from a header, which is not
    signed. It is "" in a delivery of kind "meta", whose ``payload`` is Meta's own body.
    ``is_test`` is True for a test delivery that says so.
    """

    name: str
    payload: dict[str, Any] = field(repr=False)
    is_test: bool = False


@sensitive_variables()
def read_messages(
    request: HttpRequest, *, secrets: Iterable[str] | None = None, max_bytes: int | None = None
) -> list[NumberEvent]:
    """Return the events in a request of Kapso to the URL of ``NUMBER_WEBHOOK``, in any of Kapso's
    forms: one event, one in an envelope, or a batch.

    The signature must have been made with one of ``secrets``, a string or several, by default those
    of ``NUMBER_WEBHOOK``; ``max_bytes`` is ``MAX_WEBHOOK_BYTES`` if it is left out. Characters that
    a database cannot store are replaced by U+FFFD.

    Raise DeliveryRefused for everything else, with the ``status`` to answer: 405 for a method other
    than POST, 413 for a body that is too large, 401 without a valid signature, 400 for a signed
    body that has no events.
    """
    if request.method != "POST":
        raise DeliveryRefused(405, "Only POST is allowed here.")
    conf = get_conf()
    if isinstance(secrets, str):
        secrets = [secrets]  # not each of its characters
    elif secrets is None:
        secrets = conf.number_webhook.secrets if conf.number_webhook else ()
    try:
        body = read_body(request, conf.max_webhook_bytes if max_bytes is None else max_bytes)
    except Unreadable as error:
        raise DeliveryRefused(error.status, str(error)) from None
    # An empty secret is nobody's: anybody could sign with it.
    if not is_valid(body, find_signature(request.headers), filter(None, secrets)):
        raise DeliveryRefused(401, WRONG_SIGNATURE)
    try:
        found = parse(body, request.headers, for_inbox=False)
    except MalformedBody as error:
        raise DeliveryRefused(400, str(error)) from None
    for message in found:
        if message.error:
            raise DeliveryRefused(400, message.error)
    return [
        NumberEvent(
            name="" if message.name == UNNAMED_EVENT else message.name,
            payload=message.payload,
            is_test=message.payload.get("test") is True,
        )
        for message in found
    ]
