"""Work that alternates between this site's rows and Kapso's API, one step after the other."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from ..kapso.client import KapsoClient

T = TypeVar("T")


@dataclass(frozen=True)
class Writing:
    """Rows to be written, and what writes those of many in one transaction, in the same order."""

    rows: Any
    write: Callable[[Sequence[Any]], Sequence[Any]]


Steps = Generator[Callable[[KapsoClient], Any] | Writing, Any, T]
"""Yields what is to be asked of the API, is sent the answer (or thrown the error), and returns the
result. What is asked touches no row, so any thread may run it; all the rest belongs to the
thread, and to the database connection, that advances the generator. So many can be under way at
once without a database connection for each. What it yields as Writing may wait for that of others,
so that all are written together."""


def run(steps: Steps[T], client: KapsoClient) -> T:
    """Take ``steps`` one after the other in this thread; return the result."""
    try:
        ask = next(steps)
        while True:
            try:
                answer = ask.write([ask.rows])[0] if isinstance(ask, Writing) else ask(client)
            except Exception as error:
                ask = steps.throw(error)
            else:
                ask = steps.send(answer)
    except StopIteration as end:
        result: T = end.value
        return result
