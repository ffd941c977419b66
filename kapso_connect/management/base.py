"""The base of all commands of this package."""

from __future__ import annotations

import sys
from io import StringIO
from typing import Any

from django.core.management.base import BaseCommand

from kapso_connect import log


class KapsoCommand(BaseCommand):
    """A command that also works where standard output or the error stream was closed, as some
    schedulers and scripts do (``2>&-``). Python has None for them then, which Django writes to."""

    def __init__(self, stdout: Any = None, stderr: Any = None, **options: Any) -> None:
        super().__init__(
            stdout or sys.stdout or StringIO(), stderr or sys.stderr or StringIO(), **options
        )

    def run_from_argv(self, argv: list[str]) -> None:
        log.is_short_lived = True
        super().run_from_argv(argv)
