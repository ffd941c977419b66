"""Whatever colours a site chooses, its pages can be read."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import pytest
from django.contrib.staticfiles import finders
from hypothesis import example, given
from hypothesis import strategies as st

from kapso_connect import theme
from kapso_connect.kapso.setup_link_options import THEME_COLORS
from kapso_connect.theme import (
    DARK_COLORS,
    DEFAULT_COLORS,
    FILLS,
    MIN_CONTRAST,
    MIN_CONTROL_CONTRAST,
    SURFACES,
    TEXT_PAIRS,
    contrast_of,
)

COLORS = st.one_of(
    st.integers(0, 0xFFFFFF).map("#{:06x}".format),
    st.integers(0, 0xFF).map(lambda part: f"#{part:02x}{part:02x}{part:02x}"),
    st.sampled_from(["#000000", "#ffffff", "#FFD400", *DEFAULT_COLORS.values()]),
)
THEMES = st.fixed_dictionaries({}, optional=dict.fromkeys(THEME_COLORS, COLORS))
MODES = pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])


def texts(surface: str) -> tuple[str, str]:
    where = "" if surface == "card" else f"_on_{surface}"
    return f"text{where}_color", f"muted_text{where}_color"


def leaves_an_edge(one: str, other: str) -> bool:
    """Return whether a grey can be told from both surfaces."""
    greys = (f"#{part:02x}{part:02x}{part:02x}" for part in range(256))
    return any(
        min(contrast_of(grey, one), contrast_of(grey, other)) >= MIN_CONTROL_CONTRAST * 1.02
        for grey in greys
    )


@MODES
@given(colors=THEMES)
@example(colors={})
@example(colors={"card_color": "#000000"})
@example(colors={"card_color": "#ffffff", "background_color": "#000000"})
@example(colors={"card_color": "#3f3f3f", "background_color": "#a0a0a0"})
@example(colors={"text_color": "#ffffff", "card_color": "#ffffff"})
@example(colors={"primary_color": "#FFD400", "primary_foreground_color": "#ffffff"})
@example(colors=dict.fromkeys(THEME_COLORS, "#777777"))
def test_every_text_and_every_button_can_be_read(colors: dict[str, str], dark: bool) -> None:
    page = theme.resolve(colors, dark=dark)
    for surface in SURFACES:
        for text in texts(surface):
            contrast = contrast_of(page[text], page[f"{surface}_color"])
            assert contrast >= MIN_CONTRAST, (text, surface)
    card, background = page["card_color"], page["background_color"]
    for fill in FILLS:
        fill_color, edge = page[f"{fill}_color"], page[f"{fill}_border_color"]
        assert contrast_of(page[f"{fill}_foreground_color"], fill_color) >= MIN_CONTRAST
        assert contrast_of(edge, card) >= MIN_CONTROL_CONTRAST
        if leaves_an_edge(card, background):
            assert contrast_of(edge, background) >= MIN_CONTROL_CONTRAST
        if all(contrast_of(fill_color, one) >= MIN_CONTROL_CONTRAST for one in (card, background)):
            assert edge == fill_color


@MODES
@given(colors=THEMES)
def test_what_a_site_chose_is_kept(colors: dict[str, str], dark: bool) -> None:
    page = theme.resolve(colors, dark=dark)
    kept = {name: color.lower() for name, color in colors.items()}
    for fill in FILLS:
        name = f"{fill}_color"
        assert page[name] == kept.get(name, page[name])
    if not dark:
        for name in (*(f"{surface}_color" for surface in SURFACES), "border_color"):
            assert page[name] == kept.get(name, page[name])


@MODES
@given(colors=THEMES)
@example(colors={"text_color": "#7f7f7f"})
@example(colors={"text_color": "#757575", "card_color": "#ffffff"})
@example(colors={"primary_foreground_color": "#000000"})
def test_a_given_text_that_is_changed_is_a_problem(colors: dict[str, str], dark: bool) -> None:
    if theme.problems(colors):
        return
    page = theme.resolve(colors, dark=dark)
    shown = {f"{fill}_foreground_color": [f"{fill}_foreground_color"] for fill in FILLS}
    if page == theme.resolve(colors, dark=not dark) or not dark:
        shown |= {
            name: [texts(surface)[i] for surface in SURFACES]
            for i, name in enumerate(("text_color", "muted_text_color"))
        }
    for name, variants in shown.items():
        if name in colors:
            assert {page[variant] for variant in variants} == {colors[name].lower()}


@given(colors=THEMES)
def test_stylesheet_has_these_colours_in_both_modes(colors: dict[str, str]) -> None:
    light, _, dark = theme.stylesheet(colors).partition("@media (prefers-color-scheme:dark)")
    assert variables(light) == names_in_css(theme.resolve(colors, dark=False))
    assert variables(dark or light) == names_in_css(theme.resolve(colors, dark=True))
    assert ("color-scheme:dark;" in light) == (not dark)


def variables(css: str) -> dict[str, str]:
    return dict(re.findall(r"--kapso-([a-z-]+): ?(#[0-9a-f]{6});", css))


def names_in_css(colors: dict[str, str]) -> dict[str, str]:
    return {name.removesuffix("_color").replace("_", "-"): color for name, color in colors.items()}


# Without a theme


def test_the_stylesheet_of_the_pages_has_the_default_colours() -> None:
    path = finders.find("kapso_connect/pages.css")
    assert path
    css = Path(path).read_text(encoding="utf-8")
    light, dark = re.findall(r":root \{(.*?)\}", css, re.DOTALL)
    assert variables(light) == names_in_css(theme.resolve({}, dark=False))
    assert variables(dark) == names_in_css(theme.resolve({}, dark=True))


@pytest.mark.parametrize(
    ("defaults", "dark"), [(DEFAULT_COLORS, False), (DARK_COLORS, True)], ids=["light", "dark"]
)
def test_default_colours_stay_as_they_are(defaults: dict[str, str], dark: bool) -> None:
    assert set(defaults) == set(THEME_COLORS)
    page = theme.resolve({}, dark=dark)
    assert {name: page[name] for name in defaults} == defaults
    assert theme.resolve(defaults, dark=dark) == page
    for surface in SURFACES:
        assert [page[name] for name in texts(surface)] == [
            defaults["text_color"],
            defaults["muted_text_color"],
        ]
    assert not theme.problems(DEFAULT_COLORS)


# What is missing


@pytest.mark.parametrize(
    ("colors", "expected"),
    [
        # The other surfaces are as near as the defaults are to each other.
        ({"card_color": "#ffffff"}, {"background_color": "#f4f6f5", "muted_color": "#eef2f0"}),
        (
            {"card_color": "#000000"},
            {
                "background_color": "#000000",
                "muted_color": "#090b0a",
                "border_color": "#191d1b",
            },
        ),
        ({"card_color": "#fff3e0"}, {"background_color": "#f4ead6", "muted_color": "#eee6d1"}),
        ({"background_color": "#000000"}, {"card_color": "#0a0d0c", "text_color": "#e9efec"}),
        ({"background_color": "#fff3e0"}, {"card_color": "#fffcea", "text_color": "#17211d"}),
        ({"muted_color": "#202040"}, {"card_color": "#171536", "primary_color": "#5fd3b2"}),
        # The card says whether a theme is dark.
        (
            {"card_color": "#ffffff", "background_color": "#000000"},
            {"text_color": "#17211d", "text_on_background_color": "#e9efec"},
        ),
        # A light text makes a theme dark.
        ({"text_color": "#eeeeee"}, {"card_color": "#1a2320", "text_on_muted_color": "#eeeeee"}),
        # Muted text has the hue of the text.
        ({"text_color": "#000080"}, {"muted_text_color": "#4040a0"}),
        # Buttons
        ({"primary_color": "#ffd400"}, {"primary_foreground_color": "#000000"}),
        ({"primary_color": "#5b2a86"}, {"primary_foreground_color": "#ffffff"}),
        ({"secondary_color": "#dddddd"}, {"secondary_foreground_color": "#17211d"}),
        ({"primary_foreground_color": "#000000"}, {"primary_foreground_color": "#000000"}),
    ],
    ids=str,
)
def test_missing_colours_follow_from_the_given_ones(
    colors: dict[str, str], expected: dict[str, str]
) -> None:
    page = theme.resolve(colors, dark=False)
    assert {name: page[name] for name in expected} == expected


def test_a_missing_surface_does_not_make_a_given_text_unreadable() -> None:
    colors = {"card_color": "#e6e6e6", "text_color": "#646464"}
    page = theme.resolve(colors, dark=False)
    assert page["background_color"] == page["muted_color"] == "#e6e6e6"
    assert {page[text] for surface in SURFACES for text in texts(surface)[:1]} == {"#646464"}


# What cannot be read


@pytest.mark.parametrize(
    ("colors", "expected"),
    [
        # A hue is kept: the text is only as much darker as it has to be.
        ({"text_color": "#ff69b4", "card_color": "#ffffff"}, {"text_color": "#be4e86"}),
        ({"text_color": "#0000ff", "card_color": "#000000"}, {"text_color": "#5e5eff"}),
        # On the wrong side of its surface, or no different from it: what a page has without it.
        ({"text_color": "#ffffff", "card_color": "#ffffff"}, {"text_color": "#17211d"}),
        (
            {"primary_color": "#ffd400", "primary_foreground_color": "#ffffff"},
            {
                "primary_color": "#ffd400",
                "primary_foreground_color": "#000000",
                "primary_border_color": "#a88c00",
            },
        ),
    ],
    ids=str,
)
def test_an_unreadable_colour_is_moved(colors: dict[str, str], expected: dict[str, str]) -> None:
    page = theme.resolve(colors, dark=False)
    assert {name: page[name] for name in expected} == expected


def test_light_theme_gives_dark_mode_its_fills_only() -> None:
    colors = {"primary_color": "#5b2a86", "card_color": "#fff3e0", "text_color": "#400000"}
    page, default = theme.resolve(colors, dark=True), theme.resolve({}, dark=True)
    assert page["primary_color"] == "#5b2a86"
    assert page["primary_border_color"] != default["primary_border_color"]
    same = [name for name in default if not name.startswith("primary")]
    assert {name: page[name] for name in same} == {name: default[name] for name in same}


def test_a_given_foreground_has_the_same_fill_in_both_modes() -> None:
    colors = {"primary_foreground_color": "#ffffff"}
    for dark in (False, True):
        page = theme.resolve(colors, dark=dark)
        assert page["primary_color"] == DEFAULT_COLORS["primary_color"]
        assert page["primary_foreground_color"] == "#ffffff"


def test_where_no_edge_suits_card_and_background_it_suits_the_card() -> None:
    colors = {"card_color": "#1e40af", "background_color": "#ffffff"}
    page = theme.resolve(colors, dark=False)
    assert page["primary_border_color"] == page["primary_color"] == DARK_COLORS["primary_color"]


@pytest.mark.parametrize("colors", [{"card_color": "#101020"}, {"text_color": "#f0f0f0"}], ids=str)
def test_dark_theme_applies_to_both_modes(colors: dict[str, str]) -> None:
    page = theme.resolve(colors, dark=False)
    assert page == theme.resolve(colors, dark=True)
    assert contrast_of(page["card_color"], "#ffffff") > 10


# Problems


@pytest.mark.parametrize(
    ("colors", "expected"),
    [
        ({}, []),
        # What is not given is chosen to be readable.
        ({"card_color": "#000000"}, []),
        ({"primary_color": "#ffd400"}, []),
        (
            {"text_color": "#EEEEEE", "background_color": "#000000", "muted_color": "#000000"},
            ["text_color #eeeeee on the default card_color #ffffff has a contrast of 1.1"],
        ),
        (
            {"primary_color": "#ffd400", "primary_foreground_color": "#ffffff"},
            ["primary_foreground_color #ffffff on primary_color #ffd400 has a contrast of 1.4"],
        ),
        (
            {"destructive_foreground_color": "#000000"},
            [
                "destructive_foreground_color #000000 on the default destructive_color #a32020 has "
                "a contrast of 2.7"
            ],
        ),
        # Never rounded up to what is needed.
        (
            {"primary_color": "#777777", "primary_foreground_color": "#ffffff"},
            ["primary_foreground_color #ffffff on primary_color #777777 has a contrast of 4.4"],
        ),
    ],
    ids=str,
)
def test_problems(colors: dict[str, str], expected: list[str]) -> None:
    assert [str(problem) for problem in theme.problems(colors)] == expected


def test_every_text_can_be_a_problem() -> None:
    found = theme.problems(dict.fromkeys(THEME_COLORS, "#ABCDEF"))
    assert {(problem.text, problem.behind) for problem in found} == set(TEXT_PAIRS)
    assert len(TEXT_PAIRS) == 9


def test_warning_says_what_follows() -> None:
    [problem] = theme.problems({"muted_text_color": "#747474", "card_color": "#ffffff"})[1:]
    assert problem.warning() == (
        "muted_text_color #747474 on the default muted_color #eef2f0 has a contrast of 4.1, below "
        "4.5. Kapso's page may be hard to read. The pages of this site use other colours where "
        "they have to."
    )


@pytest.mark.parametrize(
    "colors",
    [
        None,
        "#ffffff",
        [],
        7,
        {"text_color": "#fff"},
        {"text_color": None, "card_color": 1, 7: "#ffffff"},
        {"card": "#000000"},
    ],
    ids=str,
)
def test_invalid_colours_are_left_out(colors: Any) -> None:
    assert theme.problems(colors) == []
    assert theme.stylesheet(colors) == theme.stylesheet({})
    assert theme.to_path(colors) == "-" * 11


@given(colors=THEMES)
def test_a_theme_is_the_same_after_its_way_through_the_url(colors: dict[str, str]) -> None:
    again = theme.from_path(theme.to_path(colors))
    assert again == {name: color.lower() for name, color in colors.items()}


def test_other_colours_of_the_same_theme_get_another_url() -> None:
    themes = [
        {},
        {"primary_color": "#ffb300"},
        {"card_color": "#101020"},
        {"text_color": "#777777"},
    ]
    sheets = "".join(theme.stylesheet(colors) for colors in themes)
    digests = {1: "a2d6bc28e605db00"}
    digest = hashlib.sha256(sheets.encode()).hexdigest()[:16]
    assert digest == digests[theme.VERSION], "raise theme.VERSION: browsers keep stylesheets"
