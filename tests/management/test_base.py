"""Commands whose standard streams are closed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command, load_command_class

from kapso_connect import log
from kapso_connect.management.progress import Progress
from kapso_connect.testing import Sandbox

from ..factories import make_customer
from ..proofs.support import environment, new_database


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_command_works_where_a_stream_is_closed(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, stream: str
) -> None:
    make_customer(kapso_id=None)
    monkeypatch.setattr(sys, stream, None)
    call_command("kapso_invite", "--all-missing")
    call_command("kapso_sync")
    call_command("kapso_webhook", "--yes")
    assert len(sandbox.state()["setup_links"]) == 1
    assert len(sandbox.state()["webhooks"]) == 1


def test_exit_status_is_right_where_the_error_stream_is_closed(monkeypatch: Any) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    monkeypatch.setattr(log, "is_short_lived", False)  # restored: the tests are no command
    command = load_command_class("kapso_connect", "kapso_invite")
    with pytest.raises(SystemExit) as caught:
        command.run_from_argv(["manage.py", "kapso_invite", "--skip-checks"])
    assert caught.value.code == 1
    assert Progress(on=True).tqdm is None


@pytest.mark.slow
def test_processes_with_closed_streams(sandbox: Sandbox, tmp_path: Path) -> None:
    with new_database("sqlite", tmp_path) as url:

        def manage(redirection: str, *arguments: str) -> int:
            command = [sys.executable, "-m", "django", *arguments]
            return subprocess.run(
                ["sh", "-c", f'exec "$@" {redirection}', "sh", *command],
                env=environment(url, KAPSO_PROOF_API_URL=sandbox.url),
                timeout=60,
            ).returncode

        shell = "from kapso_connect.models import Customer; Customer.objects.create(name='A')"
        assert manage("", "shell", "-v0", "-c", shell) == 0
        assert manage("2>&-", "kapso_invite", "--all-missing") == 0
        assert len(sandbox.state()["setup_links"]) == 1
        assert manage("2>&-", "kapso_sync") == 0
        assert manage("0<&-", "kapso_webhook", "--yes") == 0
        assert len(sandbox.state()["webhooks"]) == 1
        assert manage("2>&-", "kapso_webhook", "--dry-run", "--new-secret") == 0


def test_program_that_calls_a_command_goes_on(configure: Any) -> None:
    with pytest.raises(CommandError):
        call_command("kapso_webhook", dry_run=True)
