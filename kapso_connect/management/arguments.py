"""What several commands take."""

from __future__ import annotations

import re
from argparse import ArgumentTypeError
from collections.abc import Callable


def seconds(most: int) -> Callable[[str], float]:
    """Return a reader of a whole number of seconds, 1 to ``most``."""

    def read(text: str) -> float:
        if not re.fullmatch("[0-9]{1,6}", text) or not 1 <= int(text) <= most:
            raise ArgumentTypeError(f"must be a whole number of seconds, 1 to {most}")
        return float(text)

    return read
