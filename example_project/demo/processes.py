"""The site and the sandbox as two processes, each configured with the other's URL."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from kapso_connect.testing import Sandbox

MANAGE = Path(__file__).parents[2] / "manage.py"
HOST = "127.0.0.1"
START_TIMEOUT = 30


class DemoError(Exception):
    """The demo could not be started, or its site stopped."""


@dataclass(frozen=True)
class Demo:
    """The running site, its staff user's password, and the running sandbox."""

    site_url: str
    site: subprocess.Popen[bytes]
    password: str
    sandbox: Sandbox


@contextmanager
def running(
    *,
    log: Path | None = None,
    retry_scale: float = 1.0,
    port: int | None = None,
    sandbox_port: int | None = None,
) -> Iterator[Demo]:
    """Run the sandbox and the site with a new database, and remove everything at the end.

    The site prints to ``log``, or to the terminal. ``retry_scale`` shortens Kapso's delays.
    ``port`` is the site's; without it, it is 8000 or another that is free, and so is the sandbox's.
    Raise DemoError or SandboxError if one of them does not start, or a given port is in use.
    """
    # Use the usual ports only for a person at the terminal.
    port = free_port(0 if log else 8000) if port is None else unused_port(port, "--port")
    if sandbox_port is None:
        sandbox_port = free_port(0 if log else 8900)
    else:
        sandbox_port = unused_port(sandbox_port, "--sandbox-port")
    if port == sandbox_port:
        raise DemoError(f"--port and --sandbox-port are both {port}. Choose two ports.")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kapso-demo-")))
        site_url = f"http://{HOST}:{port}"
        sandbox = stack.enter_context(
            Sandbox(
                webhook_url=f"{site_url}/whatsapp/webhook/",
                webhook_secret=secrets.token_hex(),
                api_key=secrets.token_hex(),
                port=sandbox_port,
                retry_scale=retry_scale,
            )
        )
        password = secrets.token_urlsafe(9)
        environment = {
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "example_project.settings",
            "PYTHONUNBUFFERED": "1",
            "DEBUG": "True",
            "SECRET_KEY": secrets.token_urlsafe(50),
            "ALLOWED_HOSTS": HOST,
            "DATABASE_URL": f"sqlite:///{quote(str(folder / 'demo.sqlite3'))}",
            "EMAIL_URL": "consolemail://",
            "KAPSO_API_KEY": sandbox.api_key,
            "KAPSO_API_BASE_URL": sandbox.url,
            "KAPSO_WEBHOOK_SECRET": sandbox.webhook_secret,
            "KAPSO_MESSAGE_WEBHOOK_SECRET": secrets.token_hex(),
            "KAPSO_PUBLIC_URL": site_url,
            "DEMO_PASSWORD": password,
        }
        manage(environment, "demo_data")
        runserver = command("runserver", "--noreload", f"{HOST}:{port}")
        site = stack.enter_context(serving(runserver, environment, port, log))
        yield Demo(site_url, site, password, sandbox)


def free_port(wanted: int) -> int:
    """Return ``wanted``, or another port if it is in use."""
    for port in (wanted, 0):
        with suppress(OSError):
            return bind(port)
    raise DemoError("No port is free.")


def unused_port(port: int, option: str) -> int:
    """Return ``port``. Raise DemoError, with the name of the option, if it cannot be used."""
    try:
        return bind(port)
    except (OSError, OverflowError) as error:
        raise DemoError(
            f"Port {port} cannot be used ({error}). Choose another one with {option}, or leave it "
            "out to use the next that is free."
        ) from error


def bind(port: int) -> int:
    """Return ``port``, or any that is free for 0. Raise OSError if it is in use."""
    with socket.socket() as probe:
        if os.name != "nt":
            # A port whose last connections are still closing counts as free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((HOST, port))
        return int(probe.getsockname()[1])


def manage(environment: Mapping[str, str], *arguments: str) -> None:
    """Run a management command of the demo's site."""
    done = subprocess.run(  # noqa: S603
        command(*arguments), env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if done.returncode:
        raise DemoError(f"manage.py {arguments[0]} failed:\n{done.stdout.decode()}")


def command(*arguments: str) -> list[str]:
    return [sys.executable, str(MANAGE), *arguments]


@contextmanager
def serving(
    arguments: Sequence[str | Path],
    environment: Mapping[str, str],
    port: int,
    log: Path | None,
    cwd: Path | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server during the block; it accepts connections on ``port`` when the block starts."""
    with ExitStack() as stack:
        output = stack.enter_context(log.open("wb")) if log else None
        process = subprocess.Popen(  # noqa: S603
            arguments,
            env=environment,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT if output else None,
        )
        stack.callback(stop, process)
        wait_for_port(process, port, log)
        yield process


def wait_for_port(process: subprocess.Popen[bytes], port: int, log: Path | None) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(OSError), socket.create_connection((HOST, port), timeout=1):
            return
        time.sleep(0.05)
    output = f":\n{log.read_text(errors='replace')}" if log else "."
    raise DemoError(f"{process.args} did not start{output}")


def stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
