"""What members of staff do about failures, and in how few clicks."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from django.test import Client
from django.utils import timezone
from playwright.sync_api import Page, expect
from pytest_django.live_server_helper import LiveServer

from kapso_connect.models import TimelineEvent, WebhookEvent
from kapso_connect.onboarding import setup_links

from ..admin.test_overview import DAY
from ..admin.test_run_again import failed_delivery, failed_signal
from ..factories import make_customer, make_link
from .clicks import Clicks
from .support import Visitor, assert_accessible, select_all

INDEX = "/admin/kapso_connect/"
WIDE = {"width": 1440, "height": 900}

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def page(server: LiveServer, visitor: Visitor, admin_client: Client) -> Page:
    page = visitor.window(WIDE)
    value = admin_client.cookies["sessionid"].value
    page.context.add_cookies([{"name": "sessionid", "value": value, "url": server.url}])
    return page


def fail(name: str, code: str, **event: Any) -> None:
    setup_links.record_failure(make_link(make_customer(name=name)), code)
    TimelineEvent.objects.filter(customer__name=name).update(**event)


def test_see_why_the_failures_of_this_week_failed(
    server: LiveServer, visitor: Visitor, page: Page
) -> None:
    fail("Expired Ltd", "link_expired")
    fail("Longer ago Ltd", "link_expired", occurred_at=timezone.now() - 10 * DAY)
    fail("Facebook Ltd", "facebook_auth_failed")
    clicks = Clicks(page)
    page.goto(server.url + INDEX)
    page.get_by_role("link", name="WhatsApp overview").click()
    page.get_by_role("link", name="7 days").click()
    failures = page.get_by_role("table", name="Why connecting failed")
    expect(failures.get_by_role("row", name="This link has expired")).to_contain_text("1")
    assert clicks.count <= 2
    visitor.look(page, "failures-overview")
    assert_accessible(page)
    failures.get_by_role("link", name="This link has expired").click()
    expect(page.get_by_role("link", name="Expired Ltd")).to_be_visible()
    expect(page.get_by_role("link", name="Longer ago Ltd")).to_have_count(0)
    expect(page.get_by_role("link", name="Facebook Ltd")).to_have_count(0)
    visitor.shoot(page, "failures-customers")
    filters = page.locator("#changelist-filter")
    filters.get_by_text("figure of the overview").locator("..").get_by_role(
        "link", name="All"
    ).click()
    expect(page.get_by_role("link", name="Facebook Ltd")).to_be_visible()


def test_retry_a_failed_webhook(server: LiveServer, visitor: Visitor, page: Page) -> None:
    row = failed_delivery()
    failed_delivery(event="whatsapp.phone_number.deleted", payload={})
    clicks = Clicks(page)
    page.goto(server.url + "/admin/")
    page.get_by_role("link", name="WhatsApp connections", exact=True).first.click()
    page.get_by_role("link", name="2 webhooks failed and need attention.").click()
    page.get_by_role("link", name=row.event).click()
    visitor.look(page, "failed-webhook")
    page.get_by_role("button", name="Run again").click()
    expect(page.get_by_text("1 succeeded.")).to_be_visible()
    assert clicks.count <= 4
    assert parse_qs(urlsplit(page.url).query) == {"status": ["failed"]}
    expect(page.get_by_role("link", name="1 webhook failed and needs attention.")).to_be_visible()
    row.refresh_from_db()
    assert row.status == WebhookEvent.Status.PROCESSED


def test_dismiss_what_needs_no_attention(server: LiveServer, visitor: Visitor, page: Page) -> None:
    failed_signal(), failed_signal()
    page.goto(server.url + INDEX)
    visitor.shoot(page, "failures-index")
    page.get_by_role("link", name="2 signals failed and need attention.").click()
    select_all(page)
    page.get_by_label("Action:").select_option(label="Dismiss")
    page.get_by_role("button", name="Go").or_(page.get_by_role("button", name="Run")).click()
    page.get_by_role("button", name="Dismiss").click()
    expect(page.get_by_text("This field is required.")).to_be_visible()
    visitor.look(page, "dismiss")
    assert_accessible(page)
    page.get_by_label("Why").fill("The receiver has been removed.")
    page.get_by_role("button", name="Dismiss").click()
    expect(page.get_by_text("2 were dismissed.")).to_be_visible()
    expect(page.get_by_text("failed and need attention.")).to_have_count(0)
    page.goto(f"{server.url}{INDEX}timelineevent/?signal=dismissed")
    expect(page.get_by_text("The receiver has been removed.").first).to_be_visible()
    visitor.look(page, "dismissed")
