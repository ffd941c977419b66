"""Progress bars for commands."""

from __future__ import annotations

import sys
from typing import Any


def is_terminal(stream: Any) -> bool:
    """Return whether ``stream`` is a terminal. It is None if it was closed before Python began."""
    return stream is not None and not stream.closed and stream.isatty()


class Progress:
    """Shows a progress bar for each step, if ``on``, on a terminal, and if tqdm is installed."""

    def __init__(self, *, on: bool) -> None:
        self.bars: dict[str, Any] = {}
        self.tqdm: Any = None
        if on and is_terminal(sys.stderr):
            try:
                from tqdm import tqdm
            except ImportError:
                return
            self.tqdm = tqdm

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exc: object) -> None:
        for bar in self.bars.values():
            bar.close()

    def __call__(self, step: str, done: int, total: int | None = None) -> None:
        if self.tqdm is not None:
            bar = self.bars.get(step) or self.tqdm(desc=step, unit="", total=total)
            self.bars[step] = bar
            bar.update(done - bar.n)
