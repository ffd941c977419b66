"""Faults of a network service that the sandbox imitates on request."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from . import fields
from .fields import Invalid

RULE_KINDS = (
    "status",
    "html",
    "meta_error",
    "hang",
    "slow",
    "close",
    "garbage",
    "apply_then_500",
    "apply_then_close",
    "redirect",
    "empty",
)


@dataclass
class Rule:
    """One fault of the API, for the requests that ``match``.

    ``match``
        A regular expression, searched for in ``METHOD /path``.
    ``kind``
        ``status`` answers with an error (500), ``html`` with a proxy's error page (502),
        ``meta_error`` with an error of Meta's (400), ``garbage`` with invalid JSON, ``empty`` with
        an empty body, ``redirect`` with a redirect. ``hang`` never answers, ``slow`` sends a few
        bytes at a time, ``close`` breaks the connection. ``apply_then_500`` and
        ``apply_then_close`` execute the request first.
    ``status``
        The HTTP status, if not the default one.
    ``retry_after``
        The header ``Retry-After`` of an error: seconds, or any text.
    ``seconds``
        How long ``hang`` (default: until the fault is cleared) or ``slow`` (default: 10) take.
    ``location``
        Where a redirect leads (default: a page of the sandbox).
    ``after``
        How many matching requests are answered normally first.
    ``times``
        How many requests are affected; None means all.
    """

    match: str
    kind: str
    status: int = 0
    retry_after: int | float | str | None = None
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
    api: list[Rule] = field(default_factory=list)
    # Set when the API faults are replaced, so that requests which hang or are slow go on.
    ended: threading.Event = field(default_factory=threading.Event, repr=False)

    def as_json(self) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in FAULTS_SPEC if name != "api"}
        return {**values, "api": [asdict(rule) for rule in self.api]}

    def rule_for(self, request_line: str) -> Rule | None:
        return next((rule for rule in self.api if rule.affects(request_line)), None)

    def changed(self, changes: Mapping[str, Any]) -> Faults:
        """Return a copy with ``changes``; what they do not name stays as it is."""
        current = {name: getattr(self, name) for name in FAULTS_SPEC}
        if "api" not in changes:
            current["ended"] = self.ended
        return Faults(**{**current, **fields.read_strictly(FAULTS_SPEC, changes)})


def _pattern(name: str, value: object) -> str:
    try:
        re.compile(fields.text(name, value))
    except (re.error, RecursionError, OverflowError) as error:
        raise Invalid(f"{name} is not a regular expression: {error}") from None
    return fields.text(name, value)


def _status(name: str, value: object) -> int:
    if not 200 <= fields.integer(name, value) <= 599:
        raise Invalid(f"{name} must be an HTTP status between 200 and 599")
    return fields.integer(name, value)


def _retry_after(name: str, value: object) -> int | float | str:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise Invalid(f"{name} must be a number of seconds or a string")
    if not re.fullmatch(r"[ -~]*", str(value)):
        raise Invalid(f"{name} must be printable ASCII")
    return value


def _envelope(name: str, value: object) -> bool | str:
    if value is True or value is False or value == "type":
        return value
    raise Invalid(f'{name} must be true, false or "type"')


def _rules(name: str, value: object) -> list[Rule]:
    rules = []
    for index, item in enumerate(fields.list_of(fields.mapping)(name, value)):
        try:
            checked = fields.read_strictly(RULE_SPEC, item)
        except Invalid as error:
            raise Invalid(f"{name}[{index}]: {error}") from None
        if "kind" not in checked:
            raise Invalid(f"{name}[{index}]: kind is missing; one of: {', '.join(RULE_KINDS)}")
        rules.append(Rule(**{"match": "", **checked}))
    return rules


RULE_SPEC: fields.Spec = {
    "match": _pattern,
    "kind": fields.choice(*RULE_KINDS),
    "status": _status,
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
    "api": _rules,
}
