from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.core.cache import cache
from django.db import DEFAULT_DB_ALIAS, connections
from django.test import override_settings
from playwright.sync_api import Browser
from pytest_django.live_server_helper import LiveServer

from kapso_connect.testing import Sandbox

from . import ROOT, log_events
from .browser.support import Visitor, running_chromium
from .proofs.support import DATABASES, new_database

THOROUGH = False
"""True with ``--all``: every language, width and look of each page, and more of what is random."""

WEBHOOK_SECRET = "test-webhook-secret"
API_KEY = "test-api-key"


SLOW_FOLDERS = {
    "benchmarks": "slow",
    "browser": "browser",
    "docs": "docs",
    "example": "slow",
    "proofs": "proof",
}
SLOW_KINDS = {"browser", "docs", "proof", "slow"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="run the slow kinds of tests, too")


def pytest_configure(config: pytest.Config) -> None:
    global THOROUGH
    THOROUGH = config.getoption("--all")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the slow kinds, unless ``--all``, ``-m`` or a folder or file of theirs is given."""
    for item in items:
        folder = item.path.relative_to(ROOT / "tests").parts[0]
        if folder in SLOW_FOLDERS:
            item.add_marker(SLOW_FOLDERS[folder])
    if not (config.getoption("--all") or config.getoption("-m")):
        slow = [item for item in items if is_slow(item) and not is_named(item, config)]
        if slow:
            config.hook.pytest_deselected(items=slow)
            items[:] = [item for item in items if item not in set(slow)]
    if not THOROUGH:
        leave_out_looks(items)


def is_slow(item: pytest.Item) -> bool:
    return any(item.get_closest_marker(kind) for kind in SLOW_KINDS)


def is_named(item: pytest.Item, config: pytest.Config) -> bool:
    """Return True where the command names the item's file, or a folder of slow tests it is in."""
    for argument in config.args:
        named = (config.invocation_params.dir / argument.partition("::")[0]).resolve()
        if named == item.path or (named.name in SLOW_FOLDERS and named in item.path.parents):
            return True
    return False


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if not (config.getoption("--all") or config.getoption("-m")):
        terminalreporter.write_line(
            "The slow kinds (browser, docs, proof, slow) are run by: python -m pytest --all"
        )


def leave_out_looks(items: list[pytest.Item]) -> None:
    """Skip what only shows the pages in further languages and looks."""
    for item in items:
        given = getattr(item, "callspec", None)
        if item.get_closest_marker("browser") is None or given is None:
            continue
        if given.params.get("language") not in {None, "en", "ar"}:
            item.add_marker(pytest.mark.skip(reason="other languages: --all"))
        if "dark" in given.params.values():
            item.add_marker(pytest.mark.skip(reason="dark: --all"))
        if "code" in given.params and given.params.get("scripts") is False:
            item.add_marker(pytest.mark.skip(reason="without scripts: --all"))


@pytest.fixture(scope="session")
def sandbox_process() -> Iterator[Sandbox]:
    """One sandbox process for the whole run; tests take it through ``sandbox``."""
    with Sandbox(api_key=API_KEY, webhook_secret=WEBHOOK_SECRET, retry_scale=0.01) as sandbox:
        yield sandbox


@pytest.fixture(autouse=True)
def _log_events_are_documented() -> Iterator[None]:
    log_events.undocumented.clear()
    yield
    assert log_events.undocumented == []


@pytest.fixture
def configure(settings: Any) -> Callable[..., None]:
    """Change keys of ``KAPSO_CONNECT`` for one test: ``configure(API_KEY="")``."""

    def change(**changes: Any) -> None:
        settings.KAPSO_CONNECT = {**settings.KAPSO_CONNECT, **changes}

    return change


@pytest.fixture
def sandbox(sandbox_process: Sandbox, configure: Any) -> Sandbox:
    """A sandbox that knows nothing yet, and the site's settings pointing at it."""
    sandbox_process.reset()
    configure(API_BASE_URL=sandbox_process.url)
    return sandbox_process


@pytest.fixture
def requests_in_transaction(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each request sent to Kapso's API from now on, by any thread: whether the thread of the
    test was in a transaction then."""
    database, putrequest = connections[DEFAULT_DB_ALIAS], HTTPConnection.putrequest
    in_transaction: list[bool] = []

    def record(http: HTTPConnection, method: str, url: str, *args: Any, **kwargs: Any) -> None:
        if url.startswith("/platform/"):
            in_transaction.append(database.in_atomic_block)
        putrequest(http, method, url, *args, **kwargs)

    monkeypatch.setattr(HTTPConnection, "putrequest", record)
    return in_transaction


@pytest.fixture(scope="session", params=DATABASES)
def proof_database(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Iterator[str]:
    """The URL of a database with the proof site's tables, one of each kind that is reachable."""
    with new_database(request.param, tmp_path_factory.mktemp(request.param)) as url:
        yield url


@pytest.fixture
def unthrottled() -> None:
    """Nobody has asked the REST API anything yet."""
    cache.clear()


# Browsers


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running_chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def server(browser: Browser, django_db_setup: None) -> Iterator[LiveServer]:
    """The site, under a strict Content-Security-Policy."""
    policy = "tests.browser.support.StrictPolicy"
    with override_settings(MIDDLEWARE=[policy, *django_settings.MIDDLEWARE]):
        server = LiveServer("127.0.0.1")
    yield server
    server.stop()


@pytest.fixture
def site(server: LiveServer, sandbox: Sandbox, settings: Any, configure: Any) -> str:
    """The site's address; it and the sandbox know each other."""
    configure(PUBLIC_URL=server.url)
    settings.LOGIN_URL = "/admin/login/"
    sandbox.set_webhook(f"{server.url}/whatsapp/webhook/")
    # Webhook and page write one after the other, whichever database it is.
    sandbox.faults(webhook_first=True)
    return server.url


@pytest.fixture
def visitor(browser: Browser) -> Iterator[Visitor]:
    folder = os.environ.get("KAPSO_TEST_SCREENSHOTS")
    visitor = Visitor(browser, Path(folder) if folder else None)
    yield visitor
    visitor.close()
    assert visitor.complaints == []
