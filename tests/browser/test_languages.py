"""The switch of the customers' pages in a browser without scripts, which keeps no cookies."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from kapso_connect import onboarding
from kapso_connect.models import Customer, SetupLink
from kapso_connect.onboarding.connect_urls import connect_url
from kapso_connect.sandbox.hosted import HEADINGS_BY_LANGUAGE
from kapso_connect.testing import Sandbox

from .support import PHONE, Visitor, assert_accessible

pytestmark = pytest.mark.django_db(transaction=True)


def test_choice_of_a_language_leads_through_all_pages(
    site: str, visitor: Visitor, sandbox: Sandbox
) -> None:
    customer = Customer.objects.create(name="Ada's Bakery", language="en")
    onboarding.create_setup_link(customer)
    page = visitor.window(PHONE, java_script_enabled=False)
    page.goto(connect_url(customer))
    for name, language in (("العربية", "ar"), ("Português (Brasil)", "pt-BR"), ("Español", "es")):
        page.context.clear_cookies()
        page.locator(".kapso-languages").get_by_role("link", name=name, exact=True).click()
        expect(page.locator("html")).to_have_attribute("lang", language)
        current = page.locator(".kapso-languages [aria-current=true]")
        expect(current).to_have_text(name)
    customer.refresh_from_db()
    assert customer.language == "en"
    page.context.clear_cookies()
    page.locator("form button").click()
    expect(page.get_by_role("heading", level=1)).to_have_text(HEADINGS_BY_LANGUAGE["es"])
    customer.refresh_from_db()
    assert (customer.language, SetupLink.objects.get().options["language"]) == ("es", "es")
    page.context.clear_cookies()
    page.get_by_label("Phone number").fill("+1 415-555-0123")
    page.get_by_role("button", name="Connect", exact=True).click()
    page.wait_for_url("**/whatsapp/success/**")
    expect(page.locator("html")).to_have_attribute("lang", "es")
    page.locator(".kapso-languages").get_by_role("link", name="हिन्दी").click()
    expect(page.locator("html")).to_have_attribute("lang", "hi")
    expect(page.locator(".kapso-number")).to_have_count(1)


def test_switch_is_accessible(site: str, visitor: Visitor) -> None:
    page = visitor.window(PHONE)
    page.goto(f"{site}/whatsapp/connect/x/?language=ar")
    assert_accessible(page)
    visitor.complaints.clear()  # of the status 404
