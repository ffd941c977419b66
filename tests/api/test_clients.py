"""Clients that others' generators make from the schema compile strictly, and play the whole
onboarding against a running site and the sandbox; linters of schemas find nothing.

What they play is in ``clients``. The node packages are installed once for each lock file, into the
user's cache folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from base64 import b64encode
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from django.core.cache import cache
from django.core.management import call_command
from django.core.servers.basehttp import WSGIRequestHandler
from pytest_django.live_server_helper import LiveServer

from kapso_connect.testing import Sandbox

from ..factories import WEBHOOK, make_user
from .support import API

pytestmark = [pytest.mark.slow, pytest.mark.django_db(transaction=True)]

CLIENTS = Path(__file__).parent / "clients"
PACKAGES = ("package.json", "package-lock.json")


def run(*command: str, cwd: Path, **environment: str) -> str:
    """Run a command, which has to succeed, and return what it prints."""
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
    return done.stdout


def lacks(what: str) -> None:
    """Skip the test, or fail it where Node and the generators are required."""
    if os.environ.get("KAPSO_TEST_REQUIRE_NODE") == "1":
        pytest.fail(what)
    pytest.skip(what)


@pytest.fixture(scope="session")
def node_modules() -> Path:
    """The installed packages."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        lacks("Node and npm are not installed.")
    version = run("node", "--version", cwd=CLIENTS).strip()
    if [int(part) for part in version.removeprefix("v").split(".")] < [20, 19]:
        lacks(f"Node is {version}, and the generators need 20.19.")
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kapso-connect"
    digest = hashlib.sha256(b"".join((CLIENTS / name).read_bytes() for name in PACKAGES))
    folder = caches / f"node-{digest.hexdigest()[:16]}"
    if not folder.exists():
        caches.mkdir(parents=True, exist_ok=True)
        # Another run may install them, too: what has its name is complete.
        with tempfile.TemporaryDirectory(dir=caches) as temporary:
            unfinished = Path(temporary) / "node"
            unfinished.mkdir()
            for name in PACKAGES:
                shutil.copy(CLIENTS / name, unfinished)
            run("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", cwd=unfinished)
            if not folder.exists():
                unfinished.rename(folder)
    return folder / "node_modules"


@pytest.fixture
def workshop(tmp_path: Path) -> Path:
    """A folder with the schema and what is done with it."""
    shutil.copytree(CLIENTS, tmp_path, dirs_exist_ok=True)
    call_command("kapso_openapi", format="json", file=tmp_path / "schema.json")
    return tmp_path


@pytest.fixture
def node(workshop: Path, node_modules: Path) -> Any:
    """Run a command of the installed packages in the workshop: ``node("tsc")``."""
    (workshop / "node_modules").symlink_to(node_modules, target_is_directory=True)

    def run_command(command: str, *arguments: str, **environment: str) -> str:
        return run(str(node_modules / ".bin" / command), *arguments, cwd=workshop, **environment)

    return run_command


@pytest.fixture
def site(
    live_server: LiveServer, sandbox: Sandbox, configure: Any, monkeypatch: Any
) -> dict[str, str]:
    """A running site and a member of its staff, as environment variables of a story."""
    # On a connection that is kept, each answer would come 40 ms late.
    monkeypatch.setattr(WSGIRequestHandler, "disable_nagle_algorithm", True)
    configure(PUBLIC_URL=live_server.url)
    cache.clear()
    sandbox.set_webhook(f"{live_server.url}{WEBHOOK}")
    make_user("staff", "superuser")
    authorization = f"Basic {b64encode(b'staff:x').decode()}"
    return {"API_URL": live_server.url + API.rstrip("/"), "API_AUTHORIZATION": authorization}


def test_redocly_finds_nothing_in_the_schema(node: Any) -> None:
    found = node("redocly", "lint", "schema.json", "--config=redocly.yaml", "--format=json")
    totals = json.loads(found)["totals"]
    assert (totals["errors"], totals["warnings"]) == (0, 0), found


def test_spectral_finds_nothing_in_the_schema(node: Any) -> None:
    node("spectral", "lint", "schema.json", "--ruleset=spectral.yaml", "--fail-severity=hint")


def test_a_client_of_openapi_typescript_plays_the_onboarding(
    node: Any, workshop: Path, site: dict[str, str]
) -> None:
    node("openapi-typescript", "schema.json", "--output=openapi_fetch/schema.ts")
    node("tsc", "--project", "openapi_fetch")
    run("node", "compiled/openapi_fetch/story.js", cwd=workshop, **site)


def test_a_client_of_orval_plays_the_onboarding(
    node: Any, workshop: Path, site: dict[str, str]
) -> None:
    node("orval", "--config=orval/orval.config.cjs")
    node("tsc", "--project", "orval")
    run("node", "compiled/orval/story.js", cwd=workshop, **site)


def test_a_client_of_openapi_python_client_plays_the_onboarding(
    workshop: Path, site: dict[str, str]
) -> None:
    if find_spec("openapi_python_client") is None:
        lacks("openapi-python-client is not installed.")
    folder = workshop / "python"
    python = (sys.executable, "-m")
    options = ("--path=../schema.json", "--meta=none", "--output-path=kapso_client")
    run(*python, "openapi_python_client", "generate", *options, "--fail-on-warning", cwd=folder)
    run(*python, "mypy", "kapso_client", "story.py", cwd=folder)
    run(sys.executable, "-W", "error", "story.py", cwd=folder, **site)
