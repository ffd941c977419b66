"""An observer of the whole test run: every log event must be documented, with its fields."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from . import ROOT

PAGE = ROOT / "docs" / "how-to" / "monitoring.md"

DOCUMENTED = {
    name: set(re.findall(r"`(\w+)`", fields))
    for name, fields in re.findall(
        r"^\| `([\w.]+)` \| [A-Z]+ \| (.*?) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE
    )
}
"""The fields of each log event, from the table in the documentation."""

undocumented: list[str] = []


def check(name: str, fields: Mapping[str, Any]) -> None:
    """Remember an event that is not in the table, or that has other fields there. During requests
    to the REST API, each has a ``request_id``, too."""
    if DOCUMENTED.get(name) != set(fields) - {"request_id"}:
        undocumented.append(f"{name}: {', '.join(sorted(fields))}")
