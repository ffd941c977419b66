from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.core.cache import cache
from django.test import override_settings
from playwright.sync_api import Browser
from pytest_django.live_server_helper import LiveServer

from kapso_connect.testing import Sandbox

from .browser.support import Visitor, running_chromium
from .proofs.support import KINDS, new_database

THOROUGH = os.environ.get("KAPSO_TEST_THOROUGH") == "1"
WEBHOOK_SECRET = "test-webhook-secret"
API_KEY = "test-api-key"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """In a browser, every language and look is tried where there is time."""
    if THOROUGH:
        return
    for item in items:
        given = getattr(item, "callspec", None)
        if "test_browser" not in item.nodeid or given is None:
            continue
        if given.params.get("language") not in {None, "en", "ar"}:
            item.add_marker(pytest.mark.skip(reason="other languages: KAPSO_TEST_THOROUGH=1"))
        if "dark" in given.params.values():
            item.add_marker(pytest.mark.skip(reason="in the dark: KAPSO_TEST_THOROUGH=1"))
        if "code" in given.params and given.params.get("scripts") is False:
            item.add_marker(pytest.mark.skip(reason="without scripts: KAPSO_TEST_THOROUGH=1"))


@pytest.fixture(scope="session")
def sandbox_process() -> Iterator[Sandbox]:
    """One sandbox process for the whole run; tests take it through ``sandbox``."""
    with Sandbox(api_key=API_KEY, webhook_secret=WEBHOOK_SECRET, retry_scale=0.01) as sandbox:
        yield sandbox


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


@pytest.fixture(scope="session", params=KINDS)
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
