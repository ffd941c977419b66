"""Argument types that several commands share."""

from __future__ import annotations

import re
from argparse import ArgumentTypeError
from collections.abc import Callable


def seconds(maximum: int) -> Callable[[str], float]:
    """Return an argument type: a whole number of seconds, 1 to ``maximum``."""

    def parse(text: str) -> float:
        if not re.fullmatch("[0-9]{1,6}", text) or not 1 <= int(text) <= maximum:
            raise ArgumentTypeError(f"must be a whole number of seconds, 1 to {maximum}")
        return float(text)

    return parse
