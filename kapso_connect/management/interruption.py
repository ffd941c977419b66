"""Commands that finish what they are doing when they are asked to stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOPPING_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
"""SIGHUP, which Windows does not have, is what a process gets whose terminal is closed."""


class Interrupted(KeyboardInterrupt):
    """This process was asked to stop, and what it was doing is finished."""

    def __init__(self, exit_status: int) -> None:
        super().__init__()
        self.exit_status = exit_status


def exit_status(interrupt: KeyboardInterrupt) -> int:
    """Return the exit status of a command that ended with ``interrupt``."""
    return interrupt.exit_status if isinstance(interrupt, Interrupted) else 128 + signal.SIGINT


class Interruption:
    """Whether this process was asked to stop, by one of ``STOPPING_SIGNALS``."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._event = threading.Event()

    def set(self, number: int) -> None:
        self.number = number
        self._event.set()

    def is_set(self) -> bool:
        return self._event.is_set()

    def wait(self, seconds: float) -> None:
        """Wait for ``seconds``, or until this process is asked to stop."""
        self._event.wait(seconds)

    @property
    def exit_status(self) -> int:
        """The exit status that shells use: 130 after Ctrl-C, 143 after SIGTERM, 129 after
        SIGHUP."""
        return 128 + (self.number or 0)

    def raise_if_set(self) -> None:
        """Raise Interrupted if this process was asked to stop."""
        if self.is_set():
            raise Interrupted(self.exit_status)


@contextmanager
def interruption() -> Iterator[Interruption]:
    """Yield what says that this process was asked to stop, so that work in progress is finished.

    The second signal has the effect that it had before; so has every signal after this block.
    Outside of the main thread, which alone can handle signals, nothing is changed.
    """
    interrupted = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interrupted
        return
    # None: a handler that was not installed by Python, and could not be restored.
    before = {
        number: handler
        for number in STOPPING_SIGNALS
        if (handler := signal.getsignal(number)) not in {None, signal.SIG_IGN}
    }

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def stop(number: int, frame: FrameType | None) -> None:
        interrupted.set(number)
        restore()

    for number in before:
        signal.signal(number, stop)
    try:
        yield interrupted
    finally:
        restore()
