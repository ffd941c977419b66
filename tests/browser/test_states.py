"""Every state of the customers' pages, in every language, size and colour scheme."""

from __future__ import annotations

import re
from typing import Any

import polib
import pytest
from playwright.sync_api import Page, expect

from kapso_connect.kapso.languages import Language
from kapso_connect.testing import Sandbox

from .. import ROOT
from ..conftest import THOROUGH
from .customer_pages import SETTINGS, STATES, World, open_state
from .support import Visitor, assert_accessible, refuse_cookies

SMALL, PHONE, DESKTOP = (
    {"width": 320, "height": 640},
    {"width": 390, "height": 844},
    {"width": 1280, "height": 800},
)
SIZES = (SMALL, PHONE, DESKTOP)

pytestmark = pytest.mark.django_db(transaction=True)

TOO_WIDE = """() => [...document.querySelectorAll("body *")]
    .filter((element) => element.getBoundingClientRect().right > innerWidth + 0.5
        || element.getBoundingClientRect().left < -0.5)
    .map((element) => element.outerHTML.slice(0, 200))"""

BROKEN_WORDS = r"""() => {
    const broken = [];
    const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    for (let node; (node = texts.nextNode()); ) {
        if (!node.parentElement.checkVisibility()) continue;
        for (const word of node.data.matchAll(/[^\s\u2010\u2011\u00ad-]+/g)) {
            const range = document.createRange();
            range.setStart(node, word.index);
            range.setEnd(node, word.index + word[0].length);
            const lines = new Set([...range.getClientRects()].map((rect) => Math.round(rect.top)));
            if (lines.size > 1) broken.push(word[0]);
        }
    }
    return broken;
}"""


@pytest.fixture
def world(site: str, sandbox: Sandbox, configure: Any, monkeypatch: pytest.MonkeyPatch) -> World:
    configure(**SETTINGS)
    return World(site, sandbox, monkeypatch)


LONG = 20
"""Characters of a text that occurs by chance in no other language."""


def long_texts(language: str) -> dict[str, str]:
    """The longer texts of the catalog by their English ones, without those that have fields."""
    path = ROOT / "kapso_connect" / "locale" / language / "LC_MESSAGES" / "django.po"
    found = {}
    for entry in polib.pofile(str(path)):
        if len(entry.msgid) >= LONG and not re.search("[%<{]", entry.msgid):
            found[entry.msgid] = entry.msgstr
    return found


TEXTS = {language: long_texts(language) for language in Language.values if language != "en"}
TEXTS["en"] = {text: text for text in TEXTS["es"]}


def languages_of(text: str, declared: str) -> set[str]:
    """The languages whose catalogs have what is written there; a part of what the ``declared`` one
    has for the same text tells nothing."""
    text = " ".join(text.split())
    return {
        language
        for language, texts in TEXTS.items()
        if any(
            len(translated) >= LONG
            and translated in text
            and (language == declared or translated not in TEXTS[declared][english])
            for english, translated in texts.items()
        )
    }


def expected_tags(language: str) -> dict[str, str]:
    return {
        "lang": {"pt": "pt-BR"}.get(language, language),
        "dir": "rtl" if language == "ar" else "ltr",
    }


@pytest.mark.parametrize("language", Language.values)
@pytest.mark.parametrize("name", STATES)
def test_every_state_is_whole_and_accessible(
    world: World, visitor: Visitor, name: str, language: str
) -> None:
    world.language = language
    page = visitor.window(PHONE, locale=language)
    open_state(page, world, name)
    expect(page.get_by_role("heading", level=1)).to_have_count(1)
    for attribute, value in expected_tags(language).items():
        expect(page.locator("html")).to_have_attribute(attribute, value)
    unfold(page)
    words = page.locator("main").inner_text()
    assert languages_of(words, language) == {language}, words
    schemes = ("light", "dark") if THOROUGH or language == "en" else ("light",)
    for scheme in schemes:
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        for size in SIZES:
            page.set_viewport_size(size)  # type: ignore[arg-type]
            visitor.shoot(page, f"state-{name}-{language}-{scheme}-{size['width']}")
            assert page.evaluate(TOO_WIDE) == []
            assert page.evaluate(BROKEN_WORDS) == []
        page.set_viewport_size(PHONE)  # type: ignore[arg-type]
        assert_accessible(page)
    forget_statuses(visitor)


@pytest.mark.parametrize("name", STATES)
def test_every_state_without_scripts_and_cookies(world: World, visitor: Visitor, name: str) -> None:
    page = visitor.window(PHONE, java_script_enabled=False)
    page.context.route("**/whatsapp/**", refuse_cookies)
    open_state(page, world, name)
    expect(page.get_by_role("heading", level=1)).to_have_count(1)
    visitor.shoot(page, f"state-{name}-no-scripts")
    summaries = page.locator("summary:visible")
    for index in range(summaries.count()):
        summaries.nth(index).click()
        expect(page.locator("details[open]")).to_have_count(index + 1)
    forget_statuses(visitor)


@pytest.mark.parametrize("name", STATES)
def test_text_of_double_size_breaks_no_word(world: World, visitor: Visitor, name: str) -> None:
    page = visitor.window(SMALL)
    open_state(page, world, name)
    page.evaluate("document.documentElement.style.fontSize = '200%'")
    unfold(page)
    visitor.shoot(page, f"state-{name}-double")
    assert page.evaluate(BROKEN_WORDS) == []
    assert page.evaluate(TOO_WIDE) == []
    forget_statuses(visitor)


@pytest.mark.parametrize("name", [name for name in STATES if name.startswith("connect")])
def test_button_is_on_the_first_screen_of_a_phone(
    world: World, visitor: Visitor, name: str
) -> None:
    page = visitor.window(PHONE)
    open_state(page, world, name)
    box = page.locator("form button").bounding_box()
    assert box is not None
    assert box["y"] + box["height"] <= PHONE["height"]


def test_logo_has_rounded_corners_only_on_its_plate(
    world: World, visitor: Visitor, configure: Any
) -> None:
    configure(**SETTINGS, LOGO_URL="kapso_connect/share.png")
    page = visitor.window(PHONE)
    open_state(page, world, "success")
    for scheme, radius in (("light", "0px"), ("dark", "6px")):
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        expect(page.locator(".kapso-logo img")).to_have_css("border-radius", radius)


@pytest.mark.parametrize(
    ("language", "turn"), [("en", "none"), ("ar", "matrix(-1, 0, 0, 1, 0, 0)")]
)
def test_icon_that_points_to_the_side_follows_the_text(
    world: World, visitor: Visitor, language: str, turn: str
) -> None:
    world.language = language
    page = visitor.window(PHONE)
    open_state(page, world, "connect-leave")
    expect(page.locator(".kapso-options .kapso-icon")).to_have_css("transform", turn)


def unfold(page: Page) -> None:
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")


def forget_statuses(visitor: Visitor) -> None:
    """The browser itself notes the status of each page that is not a usual one."""
    visitor.complaints[:] = [text for text in visitor.complaints if "status of" not in text]
