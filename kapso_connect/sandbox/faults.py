"""Faults of a network service that the sandbox imitates on request."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from inspect import getdoc

from . import fields
from .fields import Invalid

RULE_KINDS = (
    "status",
    "html",
    "meta_error",
    "cloudflare",
    "cloudflare_1010",
    "hang",
    "slow",
    "close",
    "garbage",
    "apply_then_500",
    "apply_then_close",
    "redirect",
    "empty",
)


@dataclass(eq=False)  # two rules with the same values are still two
class Rule:
    """One fault of the API, for the requests that ``match``.

    ``match``
        A regular expression, searched for in ``METHOD /path`` (default: all requests).
    ``kind``
        ``status`` answers with an error (500), ``html`` with a proxy's error page (502),
        ``meta_error`` with an error of Meta's (400), ``cloudflare`` and ``cloudflare_1010`` with
        the refusal of what stands in front of Kapso (403, as a page or as the text ``error code:
        1010``), ``garbage`` with invalid JSON, ``empty`` with an empty body, ``redirect`` with a
        redirect. ``hang`` never answers, ``slow`` sends a few bytes at a time, ``close`` breaks
        the connection. ``apply_then_500`` and ``apply_then_close`` execute the request first.
    ``status``
        The HTTP status, if not the default one.
    ``retry_after``
        The header ``Retry-After``: seconds, or any text.
    ``seconds``
        How long ``hang`` (default: until the fault is cleared) or ``slow`` (default: 10) take.
    ``location``
        Where a redirect leads (default: a page of the sandbox).
    ``after``
        How many matching requests are answered normally first.
    ``times``
        How many requests are affected; None means all.
    """

    kind: str
    match: str = ""
    status: int = 0
    retry_after: str | None = None
    seconds: float = 0.0
    location: str = ""
    after: int = 0
    times: int | None = None

    def affects(self, request_line: str) -> bool:
        """Return whether the request is affected, and count it."""
        if self.times == 0 or not re.search(self.match, request_line):
            return False
        if self.after:
            self.after -= 1
            return False
        if self.times is not None:
            self.times -= 1
        return True


@dataclass
class Faults:
    """The faults that are turned on; none by default.

    ``duplicate``
        How many extra copies of every delivery are sent.
    ``delay``
        Seconds before a delivery is sent.
    ``reorder``
        Deliveries are held until there are this many, and then sent in reverse order.
    ``batch``
        This many deliveries of one event are collected into one.
    ``envelope``
        True wraps payloads as ``{"event", "data"}``, ``"type"`` as ``{"type", "data"}``.
    ``drop``
        True records deliveries and never sends them.
    ``webhook_first``
        True delays the customer's redirect until the webhook was answered.
    ``lag``
        Seconds for which the API does not know a new number yet, although ``.created`` was sent.
        For a number of requests instead of seconds, use a rule with the status 404.
    ``api``
        A list of rules for requests to the API; the first that matches a request is applied.
    """

    duplicate: int = 0
    delay: float = 0.0
    reorder: int = 0
    batch: int = 0
    envelope: bool | str = False
    drop: bool = False
    webhook_first: bool = False
    lag: float = 0.0
    api: list[Rule] = field(default_factory=list)


def descriptions(described: type) -> dict[str, str]:
    """Return what the docstring of Rule or Faults says about each field."""
    found = re.findall(r"^``(\w+)``\n((?: {4}.*\n?)+)", getdoc(described) or "", re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in found}


def _pattern(name: str, value: object) -> str:
    regex = fields.text(name, value)
    try:
        re.compile(regex)
    except (re.error, RecursionError, OverflowError) as error:
        raise Invalid(f"{name} is not a regular expression: {error}") from None
    return regex


def _retry_after(name: str, value: object) -> object:
    return fields.printable(name, str(value))


def _envelope(name: str, value: object) -> bool | str:
    if value is True or value is False or value == "type":
        return value
    raise Invalid(f'{name} must be true, false or "type"')


def read_rule(name: str, value: object) -> Rule:
    item = fields.mapping(name, value)
    try:
        return Rule(**fields.read_strictly(RULE_SPEC, item, required="kind"))
    except Invalid as error:
        raise Invalid(f"{name}: {error.text}") from None


RULE_SPEC: fields.Spec = {
    "match": _pattern,
    "kind": fields.choice(*RULE_KINDS),
    "status": fields.number(200, 599, fields.instance_of(int, "an HTTP status")),
    "retry_after": fields.nullable(_retry_after),
    "seconds": fields.seconds,
    "location": fields.url,
    "after": fields.count,
    "times": fields.nullable(fields.count),
}
FAULTS_SPEC: fields.Spec = {
    "duplicate": fields.count,
    "delay": fields.seconds,
    "reorder": fields.count,
    "batch": fields.count,
    "envelope": _envelope,
    "drop": fields.boolean,
    "webhook_first": fields.boolean,
    "lag": fields.seconds,
    "api": fields.list_of(read_rule),
}
