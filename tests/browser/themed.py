"""Run under ``tests.sites.theme_settings`` by ``tests.browser.test_theme``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect
from pytest_django.live_server_helper import LiveServer

from kapso_connect.testing import Sandbox
from tests.browser.staff_pages import PAGES, make_staff_world
from tests.browser.support import PHONE, Visitor

WIDE = {"width": 1440, "height": 900}
TOO_WIDE = {
    # The theme's breadcrumbs do not break a word that is longer than a phone is wide.
    ("customer-awkward", 360),
    ("event", 360),
}

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(scope="module")
def server(browser: Browser, django_db_setup: None) -> Iterator[LiveServer]:
    """Without a Content-Security-Policy: the theme has scripts and styles in its pages."""
    server = LiveServer("127.0.0.1")
    yield server
    server.stop()


def test_every_page_is_whole(site: str, sandbox: Sandbox, visitor: Visitor) -> None:
    world = make_staff_world(sandbox)
    page = visitor.window(WIDE)
    world.log_in(page, site)
    wide = set()
    for name, address in PAGES.items():
        response = page.goto(site + address(world))
        assert response is not None
        assert response.status == 200
        expect(page.get_by_text("Jazzmin version")).to_be_attached()
        for size in (WIDE, PHONE):
            page.set_viewport_size(size)
            visitor.shoot(page, f"themed-{name}-{size['width']}")
            if page.evaluate("document.documentElement.scrollWidth > innerWidth"):
                wide.add((name, size["width"]))
    assert wide <= TOO_WIDE
