from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from example_project.demo.processes import HOST, free_port, stop, wait_for_port

from .proofs.support import missing


class Redis:
    """A Redis server that can go away, hang and come back. It keeps nothing."""

    USUAL_URL = "redis://127.0.0.1:6379/0"

    def __init__(self, folder: Path) -> None:
        program = shutil.which("redis-server")
        if program is None:
            missing("redis-server is not installed.")
        self.port = free_port(0)
        self.url = f"redis://{HOST}:{self.port}/0"
        self.log = folder / "redis.log"
        self.command = [
            *(program, "--port", str(self.port), "--bind", HOST, "--dir", str(folder)),
            *("--save", "", "--appendonly", "no"),
        ]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        wait_for_port(self.process, self.port, self.log)

    def stop(self) -> None:
        if self.process is not None:
            stop(self.process)
            self.process = None

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """It takes connections, and answers nothing, until the block ends."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)
