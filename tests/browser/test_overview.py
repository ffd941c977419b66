"""The overview in a browser."""

from __future__ import annotations

import re

import pytest
from django.test import Client
from django.utils import timezone
from playwright.sync_api import expect
from pytest_django.live_server_helper import LiveServer

from ..admin.test_overview import DAY, URL, populate
from .support import Visitor

WIDE = {"width": 1440, "height": 900}


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_overview_is_readable_at_every_width_without_javascript(
    server: LiveServer, visitor: Visitor, admin_client: Client, scheme: str
) -> None:
    populate()
    session = {
        "name": "sessionid",
        "value": admin_client.cookies["sessionid"].value,
        "url": server.url,
    }
    page = visitor.window(WIDE, color_scheme=scheme, java_script_enabled=False)
    page.context.add_cookies([session])
    page.goto(server.url + URL)
    expect(page.get_by_role("heading", name="WhatsApp overview")).to_be_visible()
    visitor.look(page, f"overview-{scheme}")
    visitor.shoot(page, f"overview-{scheme}-wide")
    page.get_by_role("link", name="7 days").click()
    expect(page.get_by_role("link", name="7 days")).to_have_attribute("aria-current", "true")
    page.get_by_label("From", exact=True).fill(f"{timezone.localdate() - 3 * DAY}")
    page.get_by_role("button", name="Show").click()
    expect(page.get_by_role("row", name=re.compile("^Invited"))).to_contain_text("100 %")
