"""A site's own page with the look of ours, and the QR code for those who go on with a phone."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import expect

from kapso_connect.models import new_connect_key
from kapso_connect.onboarding.connect_urls import connect_path

from ..factories import make_customer, make_link
from .support import DESKTOP, Visitor, assert_accessible

PHONE = {"width": 320, "height": 640}
SCHEMES = pytest.mark.parametrize("scheme", ["light", "dark"])

pytestmark = pytest.mark.django_db(transaction=True)


@SCHEMES
def test_page_of_the_guide_has_our_look(
    site: str, visitor: Visitor, settings: Any, configure: Any, scheme: Any
) -> None:
    settings.ROOT_URLCONF = "tests.sites.own_page_urls"
    configure(SITE_NAME="Crumb & Co.")
    page = visitor.window(PHONE, color_scheme=scheme)
    page.goto(f"{site}/welcome/")
    expect(page.get_by_role("heading", name="Welcome, Ada's Bakery")).to_be_visible()
    expect(page.get_by_text("Crumb & Co.", exact=True)).to_be_visible()
    visitor.look(page, f"own-page-{scheme}")
    assert_accessible(page)
    page.get_by_label("Opening hours").fill(" ")
    page.get_by_label("Opening hours").press("Enter")
    expect(page.get_by_text("This field is required.")).to_be_visible()
    visitor.look(page, f"own-page-error-{scheme}")
    assert_accessible(page)


@SCHEMES
def test_qr_code_is_shown_on_a_wide_screen(site: str, visitor: Visitor, scheme: Any) -> None:
    link = make_link(make_customer(connect_key=new_connect_key()))
    page = visitor.window(DESKTOP, color_scheme=scheme)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(site + connect_path(link.customer))
    page.wait_for_load_state("networkidle")
    assert [url for url in asked if url.endswith("qr.svg")] == [], "only whoever wants it loads it"
    page.get_by_text("Continue on your phone").click()
    picture = page.get_by_alt_text("QR code of this page")
    expect(picture).to_be_visible()
    picture.scroll_into_view_if_needed()
    page.wait_for_function("document.querySelector('.kapso-qr').naturalWidth > 0")
    box = picture.bounding_box()
    assert box
    assert abs(box["width"] - box["height"]) < 1
    assert box["width"] >= 150
    visitor.look(page, f"qr-{scheme}")
    page.set_viewport_size(PHONE)
    expect(picture).to_be_hidden()
