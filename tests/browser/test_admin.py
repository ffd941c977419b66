"""Staff in the admin, as they would use it, in Chromium."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.utils import timezone
from playwright.sync_api import Page, expect

from kapso_connect.models import Customer
from kapso_connect.onboarding import setup_links
from kapso_connect.onboarding.connect_urls import connect_url

from ..factories import make_connection, make_link
from ..sites.host_site.models import Bakery
from .support import Visitor

pytestmark = pytest.mark.django_db(transaction=True)

NAMES = {
    "Ada's Bakery": "ada@example.com",
    "مخبز السعادة": "sa@example.com",
    "🥐 Croissant & Søn 🥖": "",
    "Long " + "Straßenbäckerei" * 33: "long@example.com",
}


def log_in(visitor: Visitor, site: str, **options: Any) -> Page:
    page = visitor.window(**options)
    page.goto(f"{site}/admin/")
    page.get_by_label("Username").fill("staff")
    page.get_by_label("Password").fill("correct horse")
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("heading", name="Site administration")).to_be_visible()
    return page


def look(visitor: Visitor, page: Page, name: str) -> None:
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        visitor.look(page, f"{name}-{scheme}")
    page.emulate_media(color_scheme="light")


@pytest.fixture
def bakeries() -> list[Bakery]:
    made = [Bakery.objects.create(title=name, contact=email) for name, email in NAMES.items()]
    day = timedelta(days=1)
    now = timezone.now()
    for bakery in made[1:]:
        customer = Customer.objects.for_owner(
            bakery,
            name=bakery.title[:255],
            email=bakery.contact,
            connect_key=f"key-{bakery.pk}",
        )
        link = make_link(customer, is_latest=True, expires_at=now + 20 * day)
        setup_links.record_opened(link, source="redirect")
    setup_links.record_failure(link, "waba_limit_reached")
    lost = Customer.objects.get(name=made[1].title)
    make_connection(
        lost,
        display_phone_number="+52 55 1234 5678",
        verified_name="مخبز",
        status="disconnected",
        connected_at=now - 9 * day,
        disconnected_at=now + day,
        disconnect_reason="partner_removed",
    )
    connected = Customer.objects.get(name=made[2].title)
    for number in ("+49 30 123456", "+1 555-123-4567"):
        make_connection(
            connected,
            display_phone_number=number,
            verified_name="Croissant & Søn",
            name_status="PENDING_REVIEW",
            quality_rating="GREEN",
            health_status="degraded",
            health_error="webhook: no answer",
            health_checked_at=now,
            account_status="restricted" if number.startswith("+1") else "active",
            connection_type="coexistence",
        )
    return made


def test_staff_see_the_status_of_every_customer(
    site: str,
    visitor: Visitor,
    bakeries: list[Bakery],
) -> None:
    User.objects.create_superuser("staff", password="correct horse")
    page = log_in(visitor, site)
    page.goto(f"{site}/admin/host_site/bakery/")
    look(visitor, page, "admin-1-list")
    for bakery, text in zip(
        bakeries, ["Not invited", "Disconnected", "+1 more", "Failed"], strict=True
    ):
        row = page.get_by_role("row", name=bakery.title[:20])
        expect(row.locator(".field-whatsapp_status")).to_contain_text(text)
    page.get_by_role("link", name="Failed", exact=True).click()
    expect(page.locator("#result_list tbody tr")).to_have_count(1)
    for number, bakery in enumerate(bakeries):
        page.goto(f"{site}/admin/host_site/bakery/{bakery.pk}/change/")
        page.locator("summary", has_text="Timeline").click() if number else None
        look(visitor, page, f"admin-2-panel-{number}")


def test_staff_copy_the_customers_url(
    site: str,
    visitor: Visitor,
    bakeries: list[Bakery],
) -> None:
    User.objects.create_superuser("staff", password="correct horse")
    page = log_in(visitor, site)
    failed = bakeries[3]
    customer = Customer.objects.for_owner(failed)
    page.goto(f"{site}/admin/host_site/bakery/{failed.pk}/change/")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    with page.expect_response("**/copied/"):
        page.get_by_role("button", name="Copy").click()
    expect(page.get_by_text("Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == connect_url(customer)
    with page.expect_response("**/qr/"):
        page.locator("summary", has_text="QR code").click()
    expect(page.get_by_role("img", name="QR code with the personal link")).to_be_visible()
    look(visitor, page, "admin-3-qr")
    page.reload()
    page.locator("summary", has_text="Timeline").click()
    expect(page.get_by_text("Personal link sent · copied")).to_be_visible()
    expect(page.get_by_text("Personal link sent · as a QR code")).to_be_visible()
    page.get_by_role("button", name="Create a new setup link").click()
    expect(page.get_by_role("heading", name="Create WhatsApp setup link").first).to_be_visible()
