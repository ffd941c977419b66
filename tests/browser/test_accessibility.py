"""Every page for staff, for everybody: what axe-core finds, the keyboard, small screens, CSP."""

from __future__ import annotations

from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from kapso_connect.models import Customer
from kapso_connect.testing import Sandbox

from ..conftest import THOROUGH
from .staff_pages import PAGES, StaffWorld, make_staff_world
from .support import PHONE, Visitor, settle

DJANGOS_OWN = [
    "#changelist-search",  # its label is a picture; its link looks like the text beside it
    "div.breadcrumbs",  # links in it are told from the text by their place alone
]
WIDE = {"width": 1440, "height": 900}
# With --all each page is seen in both colour schemes at both widths.
LOOKS = (
    {"light": (WIDE, PHONE), "dark": (WIDE, PHONE)}
    if THOROUGH
    else {"light": (WIDE,), "dark": (PHONE,)}
)

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def world(site: str, sandbox: Sandbox) -> StaffWorld:
    return make_staff_world(sandbox)


def too_wide(page: Page) -> list[str]:
    """What makes a page wider than the screen."""
    found: list[str] = page.evaluate(
        """() => document.documentElement.scrollWidth <= innerWidth ? [] :
        [...document.querySelectorAll("body *")]
        .filter((element) => element.getBoundingClientRect().right > innerWidth
            && !element.closest(".kapso-scroll"))
        .map((element) => element.outerHTML.slice(0, 200))"""
    )
    return found


def serious(page: Page) -> list[str]:
    """What axe-core finds serious or critical, less what Django's own parts are the reason of."""
    settle(page)
    found = Axe().run(page, {"exclude": DJANGOS_OWN}).response["violations"]
    return [
        f"{rule['id']} ({rule['impact']}): {node['html'][:300]} {node['any'][:1]}"
        for rule in found
        if rule["impact"] in {"serious", "critical"}
        for node in rule["nodes"]
    ]


@pytest.mark.parametrize("name", PAGES)
def test_axe_finds_nothing_serious(
    site: str, world: StaffWorld, visitor: Visitor, name: str
) -> None:
    page = visitor.window(WIDE)
    world.log_in(page, site)
    response = page.goto(site + PAGES[name](world))
    assert response is not None
    assert response.status == 200
    noted = list(visitor.complaints)
    problems: dict[str, Any] = {}
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        for size in LOOKS[scheme]:
            page.set_viewport_size(size)
            visitor.shoot(page, f"{name}-{scheme}-{size['width']}")
            if found := serious(page):
                problems[f"{scheme} {size['width']}"] = found
            if wide := too_wide(page):
                problems[f"width {size['width']}"] = wide
    # Looking for problems, axe-core sets styles itself.
    visitor.complaints = noted
    assert problems == {}


def tab_to(page: Page, name: str) -> None:
    """Press Tab until what is called ``name`` has the focus."""
    for _ in range(120):
        page.keyboard.press("Tab")
        focused = page.locator(":focus")
        if not focused.count():
            continue
        words = focused.evaluate(
            "(e) => [e.value, e.textContent, e.ariaLabel, e.labels?.[0]?.textContent].join(' ')"
        )
        if name in words:
            return
    raise AssertionError(f"Tab does not lead to {name!r}")


def test_customers_are_invited_with_the_keyboard_alone(
    site: str, world: StaffWorld, visitor: Visitor
) -> None:
    page = visitor.window(WIDE)
    world.log_in(page, site)
    page.goto(site + world.url(Customer))
    tab_to(page, "WhatsApp overview")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="WhatsApp overview")).to_be_visible()
    tab_to(page, "7 days")
    page.keyboard.press("Enter")
    expect(page.get_by_role("link", name="7 days")).to_have_attribute("aria-current", "true")
    page.goto(site + world.url(Customer, "change", world.customer.pk))
    tab_to(page, "Create a new setup link")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="For 1 customer")).to_be_visible()
    tab_to(page, "Create the link and e-mail it")
    page.keyboard.press("Enter")
    expect(page.get_by_text("1 done")).to_be_visible()
    assert world.customer.setup_links.count() == 2


@pytest.mark.parametrize(
    ("name", "button", "field", "value"),
    [
        ("revoke", "Revoke", "status", "revoked"),
        ("disconnect", "Disconnect the number", "number", "disconnected"),
    ],
)
def test_what_asks_first_is_confirmed_with_the_keyboard_alone(
    site: str, world: StaffWorld, visitor: Visitor, name: str, button: str, field: str, value: str
) -> None:
    page = visitor.window(WIDE)
    world.log_in(page, site)
    page.goto(site + PAGES[name](world))
    tab_to(page, button)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="What will happen")).to_have_count(0)
    world.number.refresh_from_db()
    states = {
        "status": world.customer.setup_links.latest("pk").status,
        "number": world.number.status,
    }
    assert states[field] == value
