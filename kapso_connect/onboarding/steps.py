"""Work that alternates between this site's rows and Kapso's API, one step after the other."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, TypeVar

from ..client import KapsoClient

T = TypeVar("T")

Steps = Generator[Callable[[KapsoClient], Any], Any, T]
"""Yields what is to be asked of the API, is sent the answer (or thrown the error), and returns the
result. What is yielded touches no row, so any thread may run it; all the rest belongs to the
thread, and to the database connection, that advances the generator. So many can be under way at
once without a database connection for each."""


def run(steps: Steps[T], client: KapsoClient) -> T:
    """Take ``steps`` one after the other in this thread; return the result."""
    try:
        ask = next(steps)
        while True:
            try:
                answer = ask(client)
            except Exception as error:
                ask = steps.throw(error)
            else:
                ask = steps.send(answer)
    except StopIteration as end:
        result: T = end.value
        return result
