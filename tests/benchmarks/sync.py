"""What kapso_sync costs for 100, 1,000 and 10,000 numbers: python -m tests.benchmarks.sync

"All new": this site knows none of the numbers, and their customers or not even those. "All known":
the run after it, which finds nothing to do. Peak memory is what Python allocates above what was
there before (tracemalloc), in a run that is not timed. Nobody listens to the signals: what
receivers do is the site's.
"""

from __future__ import annotations

import gc
import math
import sys
import time
import tracemalloc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

from kapso_connect.testing import Sandbox

from .measuring import OURS, Row, finish, in_turn, parser
from .routing import Router, counted_queries, site_with_sandbox

PAGE = 100
Forget = Sequence[str]
"""The models whose rows go before a run."""

STATES: dict[str, Forget] = {
    "all new, customers too": ("TimelineEvent", "Connection", "Customer"),
    "all new": ("TimelineEvent", "Connection"),
    "all known": (),
}


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    options = parser("sync").parse_args(arguments)
    with site_with_sandbox(options.database_url, "kapso_bench_sync") as sandbox:
        sizes = (20, 40) if options.quick else (100, 1_000, 10_000)
        with nobody_listening():
            rows = [row for size in sizes for row in measure(sandbox, size, options.quick)]
            rows.sort(key=lambda row: row.case)  # each state with its growth
    return finish(rows, options.json)


@contextmanager
def nobody_listening() -> Iterator[None]:
    """Keep the example's receivers from being called."""
    from kapso_connect.signals import whatsapp_connected

    kept, whatsapp_connected.receivers = whatsapp_connected.receivers, []
    whatsapp_connected.sender_receivers_cache.clear()
    try:
        yield
    finally:
        whatsapp_connected.receivers = kept
        whatsapp_connected.sender_receivers_cache.clear()


def measure(sandbox: Sandbox, size: int, quick: bool) -> Iterator[Row]:
    """Return the rows of one size; the last state is what the one before it leads to."""
    sandbox.reset()
    sandbox.seed(size, 1)
    for state, forget in STATES.items():
        case, who = f"kapso_sync, {state}", f"{OURS}, {size:,} numbers"
        figures = costs(sandbox, size, forget)
        # Half a minute a run is long enough to be distinguished from noise.
        rounds = 1 if quick or (forget and size > 5_000) else 3 if forget else 5
        subject = partial(timed, size, forget)
        [row] = in_turn(case, {who: subject}, rounds=rounds, warm_up=0, facts={who: figures})
        pages = math.ceil(size / PAGE)
        each = f"{1000 * row.seconds / size:.2f} ms a number, {row.queries / pages:.0f} queries"
        yield replace(row, remark=f"{each} a page")


def timed(size: int, forget: Forget) -> float:
    forget_rows(forget)
    started = time.perf_counter()
    run(size, is_new=bool(forget))
    return time.perf_counter() - started


def run(size: int, *, is_new: bool) -> None:
    from kapso_connect import sync

    report = sync.run()
    assert (report.numbers, report.errors) == (size, []), report
    assert report.connected == (size if is_new else 0), report


def costs(sandbox: Sandbox, size: int, forget: Forget) -> dict[str, int]:
    """Return what one run asks of the database and of Kapso, and its memory."""
    forget_rows(forget)
    before = len(sandbox.requests())
    gc.collect()
    tracemalloc.start()
    try:
        with counted_queries() as queries:
            run(size, is_new=bool(forget))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    requests = len(sandbox.requests()) - before
    return {"queries": queries.count, "requests": requests, "peak_bytes": peak}


def forget_rows(forget: Forget) -> None:
    from kapso_connect import models

    for name in forget:
        getattr(models, name).objects.all()._raw_delete(Router.chosen)


if __name__ == "__main__":
    main(sys.argv[1:])
