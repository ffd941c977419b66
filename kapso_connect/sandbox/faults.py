"""What reality does to a network service, on request."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from . import fields
from .fields import Invalid

KINDS = (
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
    """One API fault: what happens to the requests that ``match``.

    ``match``
        A regular expression that is searched for in ``METHOD /path``.
    ``kind``
        ``status`` answers an error (500), ``html`` a proxy's page (502), ``meta_error`` what Meta
        would (400), ``garbage`` what is no JSON, ``empty`` nothing at all, ``redirect`` another
        address. ``hang`` never answers, ``slow`` a few bytes at a time, ``close`` breaks the
        connection. ``apply_then_500`` and ``apply_then_close`` do first what was asked.
    ``status``
        The HTTP status, where another one than the usual is wanted.
    ``retry_after``
        The header ``Retry-After`` of an error: seconds, or any text.
    ``seconds``
        How long it hangs (for good unless given) or drips (10).
    ``location``
        Where a redirect leads; an address of the sandbox unless given.
    ``after``
        How many requests pass first.
    ``times``
        How many requests are hit; None means all.
    """

    match: str
    kind: str
    status: int = 0
    retry_after: int | float | str | None = None
    seconds: float = 0.0
    location: str = ""
    after: int = 0
    times: int | None = None

    def takes(self, line: str) -> bool:
        """Say whether the request ``line`` is hit, and count it."""
        if self.times == 0 or not re.search(self.match, line):
            return False
        if self.after:
            self.after -= 1
            return False
        if self.times is not None:
            self.times -= 1
        return True


@dataclass
class Faults:
    """What is turned on; a fresh one is a world in which all goes well.

    ``duplicate``
        How many extra copies there are of every delivery.
    ``delay``
        Seconds before a delivery is sent.
    ``reorder``
        Deliveries are held until so many are there, and then sent in reverse.
    ``batch``
        So many deliveries of one event are collected into one.
    ``envelope``
        True wraps payloads as ``{"event", "data"}``, ``"type"`` as ``{"type", "data"}``.
    ``drop``
        True notes deliveries and never sends them.
    ``webhook_first``
        True keeps the customer's redirect until the webhook was answered.
    ``api``
        A list of rules for requests to the API; the first that matches takes a request.
    """

    duplicate: int = 0
    delay: float = 0.0
    reorder: int = 0
    batch: int = 0
    envelope: bool | str = False
    drop: bool = False
    webhook_first: bool = False
    api: list[Rule] = field(default_factory=list)
    # Set when the API faults are over, so that no request hangs on for a fault of yesterday.
    over: threading.Event = field(default_factory=threading.Event, repr=False)

    def as_json(self) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in SPEC if name != "api"}
        return {**values, "api": [asdict(rule) for rule in self.api]}

    def rule_for(self, line: str) -> Rule | None:
        return next((rule for rule in self.api if rule.takes(line)), None)

    def changed(self, given: Mapping[str, Any]) -> Faults:
        """Return these faults with the ``given`` ones in place; what is not named stays."""
        current = {name: getattr(self, name) for name in SPEC}
        if "api" not in given:
            current["over"] = self.over
        return Faults(**{**current, **fields.read_strictly(SPEC, given)})


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
    for index, given in enumerate(fields.items(fields.mapping)(name, value)):
        try:
            checked = fields.read_strictly(RULE_SPEC, given)
        except Invalid as error:
            raise Invalid(f"{name}[{index}]: {error}") from None
        if "kind" not in checked:
            raise Invalid(f"{name}[{index}]: kind is missing; one of: {', '.join(KINDS)}")
        rules.append(Rule(**{"match": "", **checked}))
    return rules


RULE_SPEC: fields.Spec = {
    "match": _pattern,
    "kind": fields.choice(*KINDS),
    "status": _status,
    "retry_after": fields.nullable(_retry_after),
    "seconds": fields.seconds,
    "location": fields.url,
    "after": fields.count,
    "times": fields.nullable(fields.count),
}

SPEC: fields.Spec = {
    "duplicate": fields.count,
    "delay": fields.seconds,
    "reorder": fields.count,
    "batch": fields.count,
    "envelope": _envelope,
    "drop": fields.boolean,
    "webhook_first": fields.boolean,
    "api": _rules,
}
