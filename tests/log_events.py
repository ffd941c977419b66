"""An observer of the whole test run: every log event must be in the table, with its fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kapso_connect import log

undocumented: list[str] = []


def check(name: str, fields: Mapping[str, Any]) -> None:
    """Remember an event that is not in ``log.EVENTS``, or that has other fields there."""
    if name not in log.EVENTS or set(fields) != set(log.EVENTS[name].fields):
        undocumented.append(f"{name}: {', '.join(sorted(fields))}")
