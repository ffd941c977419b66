"""Checks for what a client sends: each takes (name, value) and returns the value to store.

The fields of Django's forms and of DRF are not used: they take 7 for a text, "yes" for a boolean,
and no URL of a host without a dot. Kapso's JSON is typed, and sandboxes run in containers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from typing import Any
from urllib.parse import urlsplit

from django.utils.dateparse import parse_datetime

Check = Callable[[str, object], Any]
Spec = Mapping[str, Check]

MAX_TEXT_LENGTH = 2048


class ApiError(Exception):
    """An error response: an HTTP status and a text for the client, and a reason in ``message``."""

    def __init__(
        self,
        status: int,
        text: str,
        headers: Mapping[str, str] | None = None,
        *,
        message: str | None = None,
    ) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.headers = headers
        self.message = message


class Invalid(ApiError):
    """422: a value that is not valid."""

    def __init__(self, text: str) -> None:
        super().__init__(422, text)


def text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise Invalid(f"{name} must be a string")
    if len(value) > MAX_TEXT_LENGTH:
        raise Invalid(f"{name} is too long (maximum is {MAX_TEXT_LENGTH} characters)")
    return value


def non_blank(name: str, value: object) -> str:
    result = text(name, value)
    if not result.strip():
        raise Invalid(f"{name} can't be blank")
    return result


def non_empty(name: str, value: object) -> str:
    result = text(name, value)
    if not result:
        raise Invalid(f"{name} can't be empty")
    return result


def url(name: str, value: object) -> str:
    result = text(name, value)
    try:
        parts = urlsplit(result)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid or re.search(r"[\s\x00-\x1f\x7f<>\"]", result):
        raise Invalid(f"{name} is not a valid URL")
    return result


def origin(name: str, value: object) -> str:
    result = url(name, value)
    if not re.fullmatch(r"https://[^/?#@\s]+", result):
        raise Invalid(f"{name} must be an https origin such as https://app.example.com")
    return result


def date_time(name: str, value: object) -> datetime:
    try:
        parsed = parse_datetime(text(name, value))
        if parsed is None:
            raise ValueError
        if parsed.tzinfo is None:
            parsed = parsed.replace(tzinfo=timezone.utc)
        return parsed.astimezone(timezone.utc)
    except (ValueError, OverflowError):
        raise Invalid(f"{name} must be a date and time in ISO 8601") from None


def instance_of(kind: type | tuple[type, ...], meaning: str) -> Check:
    def check(name: str, value: object) -> object:
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise Invalid(f"{name} must be {meaning}")
        return value

    return check


def number(lowest: int, highest: int, check_type: Check) -> Check:
    def check(name: str, value: object) -> object:
        if not lowest <= check_type(name, value) <= highest:
            raise Invalid(f"{name} must be between {lowest} and {highest}")
        return value

    return check


def pattern(regex: str, meaning: str) -> Check:
    def check(name: str, value: object) -> str:
        result = text(name, value)
        if not re.fullmatch(regex, result):
            raise Invalid(f"{name} must be {meaning}")
        return result

    return check


def choice(*values: str) -> Check:
    def check(name: str, value: object) -> object:
        if value not in values:
            raise Invalid(f"{name} is not included in the list: {', '.join(values)}")
        return value

    return check


def list_of(check_item: Check) -> Check:
    def check(name: str, value: object) -> list[Any]:
        if not isinstance(value, list) or len(value) > 1000:
            raise Invalid(f"{name} must be a list")
        return [check_item(f"{name}[{index}]", item) for index, item in enumerate(value)]

    return check


def nullable(check_value: Check) -> Check:
    return lambda name, value: None if value is None else check_value(name, value)


def phone_digits(name: str, value: object) -> str:
    """Return the digits of an E.164 phone number, which may lack its ``+``."""
    result = text(name, value)
    if not re.fullmatch(r"\+?[1-9][0-9]{6,14}", result):
        raise Invalid(f"{name} must be an E.164 phone number such as +14155550100")
    return result.lstrip("+")


boolean = instance_of(bool, "true or false")
mapping = instance_of(dict, "an object")
whole = instance_of(int, "a whole number")
count = number(0, 1_000_000, whole)
seconds = number(0, 86_400, instance_of((int, float), "a number of seconds"))
hex_colour = pattern(r"#[0-9A-Fa-f]{6}", "a hex colour such as #1A2B3C")
e164 = pattern(r"\+[1-9][0-9]{6,14}", "an E.164 phone number such as +14155550100")
digits = pattern(r"[0-9]{1,32}", "a string of digits")
meta_id = pattern(r"[0-9]{1,32}|sandbox", "a string of digits")  # a sandbox number says "sandbox"
uuid = pattern(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", "a UUID")
printable = pattern(r"[ -~]*", "printable ASCII")


def read(spec: Spec, data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the known fields of ``data``, checked; unknown ones are ignored, as by Kapso."""
    return {name: check(name, data[name]) for name, check in spec.items() if name in data}


def read_strictly(spec: Spec, data: Mapping[str, Any], required: str = "") -> dict[str, Any]:
    """Like ``read``, but refuse unknown fields: for the sandbox's own controls."""
    if required and required not in data:
        raise Invalid(f"{required} is missing")
    unknown = sorted(set(data) - set(spec))
    if unknown:
        raise Invalid(f"unknown: {', '.join(unknown)}. Known are: {', '.join(spec)}")
    return read(spec, data)
