"""Named steps at which a test may kill the process: ``on_step`` is called with each."""

from __future__ import annotations

from collections.abc import Callable


def _ignore(name: str) -> None:
    """Do nothing, by default."""


on_step: Callable[[str], None] = _ignore


def reached(name: str) -> None:
    on_step(name)
