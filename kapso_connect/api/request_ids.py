"""The id of a request, by which its response and its log events are found."""

from __future__ import annotations

import re
import uuid

from django.http import HttpRequest

REQUEST_ID_HEADER = "X-Request-ID"
ACCEPTED = re.compile("[A-Za-z0-9._-]{1,128}")


def request_id_of(request: HttpRequest) -> str:
    """Return the id that the client, or a proxy, gave the request; a new one if there is none, or
    if it has other characters or is too long."""
    given = request.headers.get(REQUEST_ID_HEADER, "")
    return given if ACCEPTED.fullmatch(given) else uuid.uuid4().hex
