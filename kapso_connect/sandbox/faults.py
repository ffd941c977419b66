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
    """One API fault: what happens to the requests whose ``METHOD /path`` matches."""

    match: str
    kind: str
    status: int = 0  # 0: what is usual for the kind
    retry_after: int | float | str | None = None
    seconds: float = 0.0  # 0: hang for good, drip for ten seconds
    location: str = ""  # of a redirect; empty: /elsewhere in the sandbox
    after: int = 0  # let so many pass first
    times: int | None = None  # None: always

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
    """What is turned on; a fresh one is a world in which all goes well."""

    duplicate: int = 0  # extra copies of every delivery
    delay: float = 0.0  # seconds before a delivery is sent
    reorder: int = 0  # hold until so many are there, then send them in reverse
    batch: int = 0  # collect so many of one event into one delivery
    envelope: bool | str = False  # True: {"event", "data"}; "type": {"type", "data"}
    drop: bool = False  # deliveries are noted and never sent
    webhook_first: bool = False  # the redirect waits until the webhook was answered
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
