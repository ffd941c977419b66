from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.test import override_settings
from playwright.sync_api import Browser, Page
from pytest_django.live_server_helper import LiveServer

from kapso_connect.testing import Sandbox

from .. import conftest
from ..factories import make_user
from .self_service import log_in
from .support import PHONE, Visitor, running_chromium


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what only shows the pages in further languages and looks, without ``--all``."""
    if conftest.THOROUGH:
        return
    for item in items:
        given = getattr(item, "callspec", None)
        if given is None or Path(__file__).parent not in item.path.parents:
            continue
        if given.params.get("language") not in {None, "en", "ar"}:
            item.add_marker(pytest.mark.skip(reason="other languages: --all"))
        if "dark" in given.params.values():
            item.add_marker(pytest.mark.skip(reason="dark: --all"))
        if "code" in given.params and given.params.get("scripts") is False:
            item.add_marker(pytest.mark.skip(reason="without scripts: --all"))


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


@pytest.fixture
def member(site: str, settings: Any) -> Any:
    """A user of a site with pages of its own, ``tests.sites.self_service_urls``."""
    settings.ROOT_URLCONF = "tests.sites.self_service_urls"
    return make_user("ada", is_staff=False)


@pytest.fixture
def settings_page(visitor: Visitor, site: str, member: Any) -> Page:
    """The page on which this user connects WhatsApp."""
    page = visitor.window(PHONE)
    log_in(page.context, site, member)
    page.goto(f"{site}/settings/")
    return page
