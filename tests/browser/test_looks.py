"""How staff's pages look: nothing lies over anything else, and what belongs together is alike."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.utils import timezone
from playwright.sync_api import Page, expect

from kapso_connect import outbox
from kapso_connect.models import (
    Connection,
    Customer,
    Health,
    InvitationBatch,
    SetupLink,
    Source,
    TimelineEvent,
    WebhookEvent,
)
from kapso_connect.testing import Sandbox

from ..factories import make_connection, make_customer, make_link
from .staff_pages import PAGES, StaffWorld, make_staff_world
from .support import PHONE, Visitor

WIDE = {"width": 1440, "height": 900}
LISTS = {
    "customers": Customer,
    "links": SetupLink,
    "connections": Connection,
    "timeline": TimelineEvent,
    "inbox": WebhookEvent,
    "batches": InvitationBatch,
}
OVER_THE_EDGE = """() => [...document.querySelectorAll("#result_list :is(th, td)")]
    .filter((cell) => {
        const text = document.createRange();
        text.selectNodeContents(cell);
        const [outer, inner] = [cell.getBoundingClientRect(), text.getBoundingClientRect()];
        return inner.width && (inner.left < outer.left - 1 || inner.right > outer.right + 1);
    })
    .map((cell) => cell.outerHTML.slice(0, 200))"""
"""The cells whose content is printed over their neighbours."""

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def world(site: str, sandbox: Sandbox) -> StaffWorld:
    world = make_staff_world(sandbox)
    make_ordinary_rows(world)
    return world


def make_ordinary_rows(world: StaffWorld) -> None:
    """What a list of a site shows on most days, with something in each column."""
    now = timezone.now()
    for name, number in {
        "Bäckerei Sonnenschein": "+49 30 5432134",
        "Panadería La Esperanza": "+52 55 1234 5678",
        "Adaeze Okonkwo": "+234 803 123 4567",
    }.items():
        email = "info@baeckerei-sonnenschein.example"
        customer = make_customer(name=name, email=email, language="pt-BR")
        link = make_link(
            customer, created_by=world.staff, opened_at=now, expires_at=now + timedelta(days=30)
        )
        connection = make_connection(
            customer,
            setup_link=link,
            display_phone_number=number,
            verified_name=name,
            connection_type="coexistence",
            account_status="restricted",
            health_status=Health.UNHEALTHY,
            health_checked_at=now,
            connected_at=now - timedelta(days=30),
            disconnected_at=now - timedelta(days=20),
        )
        outbox.record(
            TimelineEvent.Kind.DETAILS_RECEIVED,
            source=Source.SYNC,
            customer=customer,
            connection=connection,
            actor=world.staff,
            data={"display_phone_number": number},
        )
        WebhookEvent.objects.create(
            idempotency_key=number,
            event="whatsapp.phone_number.deleted",
            payload={},
            status=WebhookEvent.Status.FAILED,
            last_error="The database was locked.",
            attempts=12,
            next_attempt_at=now,
        )
    world.finished_batch()


@pytest.mark.parametrize("name", LISTS)
def test_lists_wrap_and_fit(site: str, world: StaffWorld, visitor: Visitor, name: str) -> None:
    page = visitor.window(WIDE)
    world.log_in(page, site)
    page.goto(site + world.url(LISTS[name]))
    visitor.shoot(page, f"list-{name}")
    expect(page.locator("#result_list tbody tr").first).to_be_visible()
    expect(page.locator("#nav-sidebar")).to_be_visible()
    expect(page.locator("#changelist-filter")).to_be_visible()
    assert page.evaluate(OVER_THE_EDGE) == []
    beyond = "(results) => results.scrollWidth - results.clientWidth"
    assert page.locator(".results").evaluate(beyond) <= 0
    for number in page.locator("#result_list .kapso-phone").all():
        assert number.evaluate("(number) => number.getClientRects().length") == 1
    page.set_viewport_size(PHONE)
    assert page.evaluate(OVER_THE_EDGE) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


def looks(page: Page, row: str) -> list[list[str]]:
    """Return the heights and cases of the buttons in each such row."""
    found: list[list[str]] = page.evaluate(
        """(row) => [...document.querySelectorAll(row)].map((one) => [...new Set(
            [...one.querySelectorAll("a, button, input[type=submit]")]
            .filter((button) => button.checkVisibility())
            .map((button) => Math.round(button.getBoundingClientRect().height)
                + "px " + getComputedStyle(button).textTransform)
        )])""",
        row,
    )
    return [one for one in found if one]


def test_buttons_in_a_row_are_alike(site: str, world: StaffWorld, visitor: Visitor) -> None:
    page = visitor.window(WIDE)
    world.log_in(page, site)
    different, seen = {}, set()
    for name in ("customer", "customer-paused", "connection", "link", "webhook", "customers"):
        page.goto(site + PAGES[name](world))
        for row in (".object-tools", ".kapso-panel .kapso-actions"):
            for buttons in looks(page, row):
                seen.add(row)
                if len(buttons) > 1:
                    different[name, row] = buttons
    for name in ("invite", "email", "share", "revoke", "extend", "reconnect", "disconnect"):
        page.goto(site + PAGES[name](world))
        for buttons in looks(page, ".submit-row"):
            seen.add(name)
            if buttons != ["36px none"]:
                different[name, "submit-row"] = buttons
    assert different == {}
    assert len(seen) == 9


def test_disabled_fields_look_disabled(site: str, world: StaffWorld, visitor: Visitor) -> None:
    page = visitor.window(WIDE)
    world.log_in(page, site)
    page.goto(site + PAGES["invite"](world))
    field = page.locator("#id_phone_number_area_code")
    expect(field).to_be_disabled()
    expect(field).to_have_css("cursor", "not-allowed")
    expect(field).to_have_css("opacity", "0.6")
    page.evaluate("document.getElementById('id_phone_number_area_code').disabled = false")
    expect(field).to_have_css("opacity", "1")


def test_the_overview_fills_the_page(site: str, world: StaffWorld, visitor: Visitor) -> None:
    page = visitor.window(WIDE)
    world.log_in(page, site)
    page.goto(site + PAGES["overview"](world))
    filled = page.evaluate(
        """() => [...document.querySelectorAll(".kapso-balanced, .kapso-cards")].map((cards) => {
            const area = (element) => element.offsetWidth * element.offsetHeight;
            return [...cards.children].map(area).reduce((a, b) => a + b) / area(cards);
        })"""
    )
    assert len(filled) == 2
    assert min(filled) > 0.85
