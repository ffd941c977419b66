from __future__ import annotations

from io import StringIO

from django.core.management import call_command


def run_command(name: str, *arguments: object) -> str:
    """Run a management command in this process; return what it writes to stdout and stderr."""
    output = StringIO()
    call_command(name, *map(str, arguments), stdout=output, stderr=output)
    return output.getvalue()
