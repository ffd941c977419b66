"""What all benchmarks share: rounds, medians, ratios, tables, and the command line."""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

OURS = "kapso_connect"

Subject = Callable[[], float | None]
"""Does one round of the work. It returns its seconds, or None to be timed."""


@dataclass(frozen=True)
class Row:
    """One line of the table. Times in seconds; ``spread`` and ``ratio_spread`` are quartiles.

    ``ratio`` is the median, over the rounds, of the time of this one to the time of the ``base`` in
    the same round: what slows the machine down slows both.
    """

    case: str
    who: str
    seconds: float
    spread: tuple[float, float]
    ratio: float | None = None
    ratio_spread: tuple[float, float] | None = None
    base: str = ""
    queries: int | None = None
    requests: int | None = None
    peak_bytes: int | None = None
    remark: str = ""


def in_turn(
    case: str,
    subjects: Mapping[str, Subject],
    *,
    rounds: int,
    base: str = "",
    warm_up: int = 1,
    facts: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Row]:
    """Run ``rounds`` rounds of every subject, in an order that changes from round to round.

    ``facts`` are further fields of the rows, by subject.
    """
    for _ in range(warm_up):
        for subject in subjects.values():
            subject()
    times: dict[str, list[float]] = {who: [] for who in subjects}
    order = random.Random(1)
    for _ in range(rounds):
        for who in order.sample(list(subjects), len(subjects)):
            started = time.perf_counter()
            took = subjects[who]()
            times[who].append(time.perf_counter() - started if took is None else took)
    return [
        Row(
            case,
            who,
            statistics.median(seconds_taken),
            quartiles(seconds_taken),
            **_ratio(seconds_taken, times.get(base)),
            base=base,
            **(facts or {}).get(who, {}),
        )
        for who, seconds_taken in times.items()
    ]


def _ratio(seconds_taken: Sequence[float], base: Sequence[float] | None) -> dict[str, Any]:
    if base is None:
        return {}
    ratios = [one / other for one, other in zip(seconds_taken, base, strict=True)]
    return {"ratio": statistics.median(ratios), "ratio_spread": quartiles(ratios)}


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    if len(values) < 2:
        return (values[0], values[0])
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return (first, third)


def is_installed(module: str) -> bool:
    """Return whether a peer is installed; the extra "benchmarks" has them."""
    return importlib.util.find_spec(module) is not None


# The command line of each benchmark


def parser(module: str, *, databases: bool = True) -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(prog=f"python -m tests.benchmarks.{module}")
    if databases:
        result.add_argument(
            "--database-url",
            default="postgres://postgres@127.0.0.1:5432/postgres",
            help="A PostgreSQL server on which databases may be created, or sqlite://.",
        )
    result.add_argument("--quick", action="store_true", help="Small sizes, to check that it runs.")
    result.add_argument("--json", type=Path, help="A file to write the figures to.")
    return result


def finish(rows: Iterable[Row], path: Path | None) -> list[Row]:
    """Print the rows as a table, and write them to ``path`` if there is one."""
    listed = list(rows)
    print(f"\n{table(listed)}\n", flush=True)
    if path:
        path.write_text(json.dumps([asdict(row) for row in listed], indent=2) + "\n")
    return listed


# The table


def table(rows: Sequence[Row]) -> str:
    """Return the rows as a table in Markdown, grouped by case."""
    cells = {
        "": lambda row: row.who,
        "median (quartiles)": lambda row: (
            f"{duration(row.seconds)} ({duration(row.spread[0])} to {duration(row.spread[1])})"
        ),
        "ratio": _ratio_cell,
        "queries": lambda row: "" if row.queries is None else f"{row.queries:,}",
        "requests": lambda row: "" if row.requests is None else f"{row.requests:,}",
        "peak memory": lambda row: (
            "" if row.peak_bytes is None else f"{row.peak_bytes / 2**20:.1f} MiB"
        ),
        "remarks": lambda row: row.remark,
    }
    # Columns without values are left out.
    shown = {name: cell for name, cell in cells.items() if any(map(cell, rows))}
    marks = {"": "---", "remarks": "---"}
    lines = [_line(shown), _line(marks.get(name, "---:") for name in shown)]
    case = None
    for row in rows:
        if row.case != case:
            case = row.case
            lines.append(_line([f"**{case}**", *[""] * (len(shown) - 1)]))
        lines.append(_line(cell(row) for cell in shown.values()))
    return "\n".join(lines)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _ratio_cell(row: Row) -> str:
    if row.ratio is None or row.ratio_spread is None:
        return ""
    if row.who == row.base:
        return "1"
    return f"{row.ratio:.2f} ({row.ratio_spread[0]:.2f} to {row.ratio_spread[1]:.2f})"


def duration(seconds: float) -> str:
    if seconds < 0.0995:
        return f"{seconds * 1000:.3g} ms"
    return f"{seconds:.3g} s"
