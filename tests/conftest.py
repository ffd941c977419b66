from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from django.core.cache import cache
from django.core.management.commands import flush
from django.db import DEFAULT_DB_ALIAS, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from pytest_django.live_server_helper import LiveServer

from kapso_connect.kapso import http
from kapso_connect.pages import questions
from kapso_connect.testing import Sandbox

from . import ROOT, log_events

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
    hypothesis.settings.register_profile(
        "kapso_connect",
        max_examples=200 if THOROUGH else 25,
        deadline=None,  # a busy machine is no error
        suppress_health_check=[
            hypothesis.HealthCheck.too_slow,
            hypothesis.HealthCheck.function_scoped_fixture,
        ],
    )
    hypothesis.settings.load_profile("kapso_connect")


def pytest_xdist_auto_num_workers() -> int:
    """One more worker than there are cores: many tests wait for the sandbox, or for a timeout."""
    return (os.cpu_count() or 1) + 1


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the slow kinds, unless ``--all`` or ``-m`` is given, or their file or folder."""
    for item in items:
        folder = item.path.relative_to(ROOT / "tests").parts[0]
        if folder in SLOW_FOLDERS:
            item.add_marker(SLOW_FOLDERS[folder])
    if not is_for_all(config):
        slow = [item for item in items if is_slow(item) and not is_named(item.path, config)]
        if slow:
            config.hook.pytest_deselected(items=slow)
            items[:] = [item for item in items if item not in set(slow)]


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not even import the slow folders: they need packages of the extra "all-tests"."""
    folder = collection_path.relative_to(ROOT / "tests").parts[:1]
    if folder and folder[0] in SLOW_FOLDERS and not is_for_all(config):
        return not is_named(collection_path, config) or None
    return None


def is_for_all(config: pytest.Config) -> bool:
    return bool(config.getoption("--all") or config.getoption("-m"))


def is_slow(item: pytest.Item) -> bool:
    return any(item.get_closest_marker(kind) for kind in SLOW_KINDS)


def is_named(path: Path, config: pytest.Config) -> bool:
    """Return True where the command names the file, or a folder of slow tests that it is in."""
    for argument in config.args:
        named = (config.invocation_params.dir / argument.partition("::")[0]).resolve()
        if path == named or path in named.parents:
            return True
        if named in path.parents and named.name in SLOW_FOLDERS:
            return True
    return False


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if not is_for_all(config):
        terminalreporter.write_line(
            "The slow kinds (browser, docs, proof, slow) are run by: python -m pytest --all"
        )


@pytest.fixture(scope="session")
def live_server(django_db_setup: None, live_server: LiveServer) -> LiveServer:
    """pytest-django's own, once the test database is there: before that, it takes SQLite for one in
    memory, and all threads would share one connection, which each request closes."""
    return live_server


@pytest.fixture(scope="session")
def django_db_setup(django_db_setup: None) -> Iterator[None]:
    """Empty the tables after a test without a rollback, but keep the content types and permissions,
    which no test changes: making them anew took a quarter of the time of such tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flush, "sql_flush", _delete_rows)
        patch.setattr(flush, "emit_post_migrate_signal", lambda *args, **kwargs: None)
        yield


def _delete_rows(
    style: Any,
    connection: BaseDatabaseWrapper,
    reset_sequences: bool = False,
    allow_cascade: bool = False,
) -> list[str]:
    names = connection.introspection.django_table_names(only_existing=True, include_views=False)
    tables = [name for name in names if name not in {"auth_permission", "django_content_type"}]
    if connection.vendor == "postgresql":  # whose TRUNCATE takes 0.15 s for 21 empty tables
        return [f"DELETE FROM {connection.ops.quote_name(table)}" for table in tables]
    return connection.ops.sql_flush(
        style, tables, reset_sequences=reset_sequences, allow_cascade=allow_cascade
    )


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


@pytest.fixture(autouse=True)
def _kapso_was_never_slow() -> None:
    cache.delete(questions.SLOW_KEY)


@pytest.fixture(autouse=True)
def _pauses_are_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Repeat a failed request to Kapso after milliseconds, where the pause is not what is tested:
    the three pauses take 1.75 seconds otherwise. No test waits because another used up a limit."""
    monkeypatch.setattr(http, "BACKOFF_FACTOR", 0.002)
    monkeypatch.setattr(http, "_rate_limits", {})


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


@pytest.fixture
def sqlite_options(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the database is SQLite, connect to it with the options that a check asks for."""
    database = connections[DEFAULT_DB_ALIAS]
    if database.vendor == "sqlite":
        for name, value in {"transaction_mode": "IMMEDIATE", "timeout": 20}.items():
            monkeypatch.setitem(database.settings_dict["OPTIONS"], name, value)


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Let SIGINT have its usual effect, here and in processes that the test starts. Where the run
    was started in the background (``nohup … &``), the shell has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def unthrottled() -> None:
    """Nobody has asked the REST API anything yet."""
    cache.clear()
