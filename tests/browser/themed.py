"""Run under ``tests.sites.theme_settings`` by ``tests.browser.test_theme``."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect
from pytest_django.live_server_helper import LiveServer

from kapso_connect.models import Customer
from kapso_connect.testing import Sandbox
from tests.browser.staff_pages import PAGES, StaffWorld, make_staff_world
from tests.browser.support import PHONE, Visitor, settle

WIDE = {"width": 1440, "height": 900}
THEME = os.environ["KAPSO_TEST_THEME"]
MARK = {"jazzmin": "text=Jazzmin version"}.get(THEME, "#header-inner")
TOO_WIDE = {
    "jazzmin": {
        # Its breadcrumbs do not break a word that is longer than a phone is wide.
        ("customer-awkward", 360),
        ("event", 360),
        # Its filters are as wide as their longest choice.
        ("connections", 360),
    },
}.get(THEME, set())
OURS = [".kapso-page #content-main", ".kapso-panel", ".kapso-tool"]
BLANK = """() => [...document.querySelectorAll(`
        :is(.kapso-page #content-main, .kapso-panel) :is(
            button, input, select, textarea, .button, .closelink
        ),
        .kapso-tool :is(a, button)`)]
    .filter((element) => element.checkVisibility())
    .filter((element) => !element.matches("[type=checkbox], [type=radio]"))
    .filter((element) => {
        const style = getComputedStyle(element);
        const box = element.getBoundingClientRect();
        const isSeen = (color) => !/^rgba\\(.*, 0\\)$|^transparent$/.test(color);
        const hasEdge = parseFloat(style.borderTopWidth) > 0 && isSeen(style.borderTopColor);
        return box.height < 24 || box.width < 24 || !(hasEdge || isSeen(style.backgroundColor));
    })
    .map((element) => element.outerHTML.slice(0, 200))"""

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(scope="module")
def server(browser: Browser, django_db_setup: None) -> Iterator[LiveServer]:
    """Without a Content-Security-Policy: the themes have scripts and styles in their pages."""
    server = LiveServer("127.0.0.1")
    yield server
    server.stop()


@pytest.fixture
def world(site: str, sandbox: Sandbox) -> StaffWorld:
    return make_staff_world(sandbox)


NOT_OURS = [
    # Django's object tools are list items; these themes put them into no list.
    ("listitem", "kapso-tool"),
    # The colour of every link of jazzmin, on the colour of its pages.
    ("color-contrast", "foreground color: #0d6efd, background color: #f8f9fa"),
]


def faults(page: Page) -> list[str]:
    """Return what axe-core finds in what is ours."""
    settle(page)
    ours = [[selector] for selector in OURS if page.locator(selector).count()]
    if not ours:
        return []
    found = Axe().run(page, {"include": ours}).response["violations"]
    return [
        f"{rule['id']}: {node['html'][:300]} {node['any'][:1]}"
        for rule in found
        for node in rule["nodes"]
        if rule["impact"] in {"serious", "critical"}
        and not any(rule["id"] == name and part in str(node) for name, part in NOT_OURS)
    ]


def test_every_page_is_whole(site: str, world: StaffWorld, visitor: Visitor) -> None:
    page = visitor.window(WIDE)
    world.log_in(page, site)
    wide, problems = set(), {}
    for name, address in PAGES.items():
        response = page.goto(site + address(world))
        assert response is not None
        assert response.status == 200, name
        expect(page.locator(MARK)).to_be_attached()
        if page.locator(".kapso-page").count():
            title = page.title().split(" | ")[0].strip()
            expect(page.get_by_role("heading", name=title, exact=True).first).to_be_visible()
        if found := [*page.evaluate(BLANK), *faults(page)]:
            problems[name] = found
        for size in (WIDE, PHONE):
            page.set_viewport_size(size)
            visitor.shoot(page, f"{THEME}-{name}-{size['width']}")
            if page.evaluate("document.documentElement.scrollWidth > innerWidth"):
                wide.add((name, size["width"]))
        page.set_viewport_size(WIDE)
    # Looking for problems, axe-core sets styles itself.
    assert problems == {}
    assert wide <= TOO_WIDE


def test_the_colours_open(site: str, world: StaffWorld, visitor: Visitor) -> None:
    page = visitor.window(WIDE)
    world.log_in(page, site)
    page.goto(site + world.batch())
    page.locator("summary", has_text="Options").click()
    page.locator("summary", has_text="Colours of the page").click()
    expect(page.get_by_label("Colour: Button", exact=True)).to_be_visible()


def test_tools_do_what_they_say(site: str, world: StaffWorld, visitor: Visitor) -> None:
    """Themes put them into the form of the page."""
    page = visitor.window(WIDE)
    world.log_in(page, site)
    page.goto(site + PAGES["connection"](world))
    page.get_by_role("button", name="Check health now").click()
    expect(page).to_have_url(site + world.url(Customer, "change", world.customer.pk))
