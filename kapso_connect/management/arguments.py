"""Argument types that several commands share."""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Callable


def whole_number(unit: str, maximum: int) -> Callable[[str], int]:
    """Return an argument type: a whole number of a unit, such as days, from 1 to ``maximum``."""

    def parse(text: str) -> int:
        if not text.isdecimal() or not 1 <= int(text) <= maximum:
            raise ArgumentTypeError(f"must be a whole number of {unit}, 1 to {maximum}")
        return int(text)

    return parse
