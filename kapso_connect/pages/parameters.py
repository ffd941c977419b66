"""The query parameters of a redirect, as Kapso, mail programs and people write them."""

from __future__ import annotations

import re

from django.core.exceptions import SuspiciousOperation
from django.http import HttpRequest

from ..kapso.error_codes import SETUP_ERRORS

ID = CODE = re.compile(r"[0-9A-Za-z_-]{1,64}")
DIGITS = re.compile(r"[0-9]{1,64}")

ABSENT = {"", "null", "none", "undefined"}
"""What a parameter without a value may be written as, in any case."""

NO_ERROR_CODE = "unknown"
"""What is recorded for a failure without an error code."""

_not_in_a_code = re.compile(r"[^0-9A-Za-z_-]")


def parameter(
    request: HttpRequest, name: str, pattern: re.Pattern[str], *, required: bool = True
) -> str:
    """Return a query parameter; raise SuspiciousOperation if it is malformed, missing, or repeated
    with another value."""
    values = _values(request, name)
    value = values[0] if values else ""
    if len(set(values)) > 1 or ((value or required) and not pattern.fullmatch(value)):
        raise SuspiciousOperation
    return value


def optional_parameter(request: HttpRequest, name: str, pattern: re.Pattern[str]) -> str:
    """Return a query parameter, or "" if it is malformed or missing."""
    return next((value for value in _values(request, name) if pattern.fullmatch(value)), "")


def error_code(request: HttpRequest) -> str:
    """Return Kapso's error code without the characters that no code contains, or
    ``NO_ERROR_CODE``."""
    codes = [_not_in_a_code.sub("", value)[:64] for value in _values(request, "error_code")]
    codes = [code.lower() if code.lower() in SETUP_ERRORS else code for code in codes if code]
    return codes[0] if codes else NO_ERROR_CODE


def _values(request: HttpRequest, name: str) -> list[str]:
    """Return the values of a query parameter, without the blanks around them."""
    values = [value.strip(" ") for value in request.GET.getlist(name)]
    return [value for value in values if value.lower() not in ABSENT]
