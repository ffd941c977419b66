"""A user of ``tests.sites.self_service_urls``, and what the user does."""

from __future__ import annotations

from typing import Any

from django.test import Client
from playwright.sync_api import BrowserContext, Page

from kapso_connect.testing import Sandbox

NUMBER = "+442071838750"


def log_in(context: BrowserContext, site: str, user: Any) -> None:
    client = Client()
    client.force_login(user)
    value = client.cookies["sessionid"].value
    context.add_cookies([{"name": "sessionid", "value": value, "url": site}])


def state(page: Page) -> Any:
    return page.locator(".kapso-connection-state")


def finish(kapso: Page, sandbox: Sandbox, outcome: str = "connect", number: str = NUMBER) -> None:
    """Fill in Kapso's page, and submit it."""
    kapso.wait_for_url(f"{sandbox.url}/**")
    kapso.locator("[name=phone_number]").fill(number)
    kapso.locator(f"button[name=outcome][value={outcome}]").click(no_wait_after=True)


def open_window(opener: Page, name: str = "Connect WhatsApp") -> Page:
    with opener.expect_popup() as opened:
        opener.get_by_role("button", name=name).click()
    return opened.value
