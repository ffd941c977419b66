"""Customers' pages with colours that a site should not have chosen: all of it can be read."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import Page

from kapso_connect.models import new_connect_key
from kapso_connect.onboarding.connect_urls import connect_path
from kapso_connect.theme import MIN_CONTRAST, MIN_CONTROL_CONTRAST, contrast_of

from ..factories import make_customer, make_link
from ..pages.test_views import failed
from .support import PHONE, Visitor, assert_accessible

CRUEL_THEMES = {
    "black-card": {"card_color": "#000000"},
    "white-card-on-black": {"background_color": "#000000", "card_color": "#ffffff"},
    "black-card-on-white": {"background_color": "#ffffff", "card_color": "#000000"},
    "three-surfaces": {
        "background_color": "#ffffff",
        "card_color": "#000000",
        "muted_color": "#777777",
    },
    "white-on-white": {"text_color": "#ffffff", "card_color": "#ffffff"},
    "light-text": {"text_color": "#eeeeee"},
    "white-on-yellow": {"primary_color": "#ffd400", "primary_foreground_color": "#ffffff"},
    "button-like-the-card": {"primary_color": "#ffffff", "secondary_color": "#ffffff"},
    "one-colour": dict.fromkeys(
        [
            *("primary_color", "primary_foreground_color", "background_color", "text_color"),
            *("muted_text_color", "card_color", "muted_color", "border_color"),
            *("secondary_color", "secondary_foreground_color"),
            *("destructive_color", "destructive_foreground_color"),
        ],
        "#808080",
    ),
}

COLOURS_ON_THE_PAGE = """() => {
    const parts = (color) => color.match(/[\\d.]+/g).map(Number);
    const hex = (color) =>
        "#" + parts(color).slice(0, 3).map((part) => part.toString(16).padStart(2, "0")).join("");
    const isOpaque = (color) => (parts(color)[3] ?? 1) === 1;
    const behind = (element) => {
        for (; element; element = element.parentElement) {
            const color = getComputedStyle(element).backgroundColor;
            if (isOpaque(color)) return hex(color);
        }
        return "#ffffff";
    };
    const shown = [...document.querySelectorAll("body *")].filter((one) => one.checkVisibility());
    const hasText = (one) =>
        [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    const texts = shown.filter(hasText).map((one) => [
        one.textContent.trim().slice(0, 40), hex(getComputedStyle(one).color), behind(one)]);
    const edges = shown.filter((one) => one.matches("button, .kapso-button")).map((one) => {
        const style = getComputedStyle(one);
        const hasBorder = parseFloat(style.borderTopWidth) > 0 && isOpaque(style.borderTopColor);
        return [
            one.textContent.trim().slice(0, 40),
            hasBorder ? hex(style.borderTopColor) : behind(one),
            behind(one.parentElement),
        ];
    });
    return {texts, edges};
}"""

pytestmark = pytest.mark.django_db(transaction=True)


def assert_readable(page: Page) -> None:
    found = page.evaluate(COLOURS_ON_THE_PAGE)
    assert len(found["texts"]) > 5
    unreadable = [text for text in found["texts"] if contrast_of(*text[1:]) < MIN_CONTRAST]
    assert unreadable == []
    invisible = [edge for edge in found["edges"] if contrast_of(*edge[1:]) < MIN_CONTROL_CONTRAST]
    assert invisible == []
    assert_accessible(page)


@pytest.mark.parametrize("appearance", ["light", "dark"])
@pytest.mark.parametrize("name", CRUEL_THEMES)
def test_pages_are_readable_in_every_theme(
    site: str, visitor: Visitor, configure: Any, name: str, appearance: Any
) -> None:
    configure(SITE_NAME="Crumb & Co.", CONTACT_URL="mailto:help@example.com")
    link = make_link(
        make_customer(connect_key=new_connect_key()),
        options={"theme_config": CRUEL_THEMES[name]},
        setup_status="failed",
        last_error_code="phone_verification_failed",
    )
    page = visitor.window(PHONE, color_scheme=appearance)
    page.goto(site + connect_path(link.customer))
    assert page.get_by_role("button").count() >= 1
    visitor.shoot(page, f"colours-{name}-{appearance}-invitation")
    assert_readable(page)
    page.goto(site + failed(link, "phone_verification_failed"))
    visitor.shoot(page, f"colours-{name}-{appearance}-failed")
    assert_readable(page)
