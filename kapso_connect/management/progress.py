"""How far a command is, for whoever watches it."""

from __future__ import annotations

from typing import Any


class Progress:
    """A bar for each step on a terminal, by tqdm where it is installed."""

    def __init__(self, *, on: bool) -> None:
        self.bars: dict[str, Any] = {}
        self.bar: Any = None
        if on:
            try:
                from tqdm import tqdm
            except ImportError:
                return
            self.bar = tqdm

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exc: object) -> None:
        for bar in self.bars.values():
            bar.close()

    def __call__(self, step: str, done: int, total: int | None = None) -> None:
        if self.bar is not None:
            bar = self.bars.get(step) or self.bar(desc=step, unit="", total=total)
            self.bars[step] = bar
            bar.update(done - bar.n)
