"""Work that alternates between this site's rows and Kapso's API, one step after the other."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from ..kapso.client import KapsoClient

ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class BulkWrite:
    """A ``row`` to be written, and the function that writes those of many generators in one
    transaction and returns one result for each, in the same order."""

    row: Any
    write: Callable[[Sequence[Any]], Sequence[Any]]


Steps = Generator[Callable[[KapsoClient], Any] | BulkWrite, Any, ResultT]
"""A generator that yields API requests and rows to be written, is sent their results (or thrown
their errors), and returns its own result.

A request touches no row, so any thread may make it. Everything else belongs to the thread, and the
database connection, that advances the generator. So many generators can be in progress without a
database connection for each. A BulkWrite may wait for those of other generators, so that all are
written together."""


def run(steps: Steps[ResultT], client: KapsoClient) -> ResultT:
    """Carry out ``steps`` one after the other in this thread, and return their result."""
    try:
        step = next(steps)
        while True:
            try:
                result = step.write([step.row])[0] if isinstance(step, BulkWrite) else step(client)
            except Exception as error:
                step = steps.throw(error)
            else:
                step = steps.send(result)
    except StopIteration as end:
        returned: ResultT = end.value
        return returned
