"""The colours of the customers' pages and e-mails: those of a ``theme_config``, made readable.

A theme may have any of the twelve colours of Kapso's ``theme_config``. Missing colours follow from
those that are given. A given text that cannot be read is moved away from its surface: pages of this
site are always readable. Kapso's hosted page uses a theme as it is; see ``problems``.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping
from functools import lru_cache, partial
from typing import NamedTuple

from .kapso.setup_link_options import THEME_COLORS, is_color
from .translation import gettext as _

DEFAULT_COLORS = {
    "primary_color": "#12715b",
    "primary_foreground_color": "#ffffff",
    "background_color": "#f4f6f5",
    "text_color": "#17211d",
    "muted_text_color": "#51605a",
    "card_color": "#ffffff",
    "muted_color": "#eef2f0",
    "border_color": "#d5ddd9",
    "secondary_color": "#e3ebe7",
    "secondary_foreground_color": "#17211d",
    "destructive_color": "#a32020",
    "destructive_foreground_color": "#ffffff",
}
"""The colours of pages without a theme. ``pages.css`` has the same ones."""

DARK_COLORS = {
    "primary_color": "#5fd3b2",
    "primary_foreground_color": "#06231b",
    "background_color": "#101614",
    "text_color": "#e9efec",
    "muted_text_color": "#a9b7b1",
    "card_color": "#1a2320",
    "muted_color": "#232e2a",
    "border_color": "#33403b",
    "secondary_color": "#2f3d38",
    "secondary_foreground_color": "#e9efec",
    "destructive_color": "#ff9c9c",
    "destructive_foreground_color": "#3b0a0a",
}
"""The colours of pages without a theme in dark mode. ``pages.css`` has the same ones."""

SURFACES = ("card", "background", "muted")
"""What texts stand on. The first one that a theme gives is the one that the others follow."""

FILLS = ("primary", "secondary", "destructive")
"""What buttons and marks are filled with, each with a foreground of its own."""

TEXT_PAIRS = (
    *(
        (text, f"{surface}_color")
        for surface in SURFACES
        for text in ("text_color", "muted_text_color")
    ),
    *((f"{fill}_foreground_color", f"{fill}_color") for fill in FILLS),
)
"""The colour of each text, and that of what it stands on."""

VERSION = 1
"""Part of the URL of a theme's stylesheet: another one when the same theme gets other colours."""

LOGO_PLATE = "--kapso-plate:#fff;--kapso-plate-padding:.375rem;"
"""The variables of the plate behind a logo on a dark page; ``pages.css`` has the same ones."""

MIN_CONTRAST = 4.5
"""The contrast ratio of text that WCAG 2 requires at level AA."""

MIN_CONTROL_CONTRAST = 3.0
"""The contrast ratio of a control's edge that WCAG 2 requires at level AA."""

BLACK, WHITE = "#000000", "#ffffff"


class Problem(NamedTuple):
    """A text that a theme makes hard to read: the names of the two colours, such as ``text_color``
    and ``card_color``, the colours, and their contrast ratio, rounded down to one decimal.

    ``is_default`` says that the theme does not set the colour behind the text.
    """

    text: str
    behind: str
    text_color: str
    behind_color: str
    contrast: float
    is_default: bool

    def __str__(self) -> str:
        default = "the default " if self.is_default else ""
        return (
            f"{self.text} {self.text_color} on {default}{self.behind} {self.behind_color} has a "
            f"contrast of {self.contrast}"
        )

    def warning(self) -> str:
        """Return the problem, and what follows from it, for those who chose the colours."""
        message = (
            _("%(text)s on the default %(behind)s has a contrast of %(contrast)s, below 4.5.")
            if self.is_default
            else _("%(text)s on %(behind)s has a contrast of %(contrast)s, below 4.5.")
        )
        problem = message % {
            "text": f"{self.text} {self.text_color}",
            "behind": f"{self.behind} {self.behind_color}",
            "contrast": self.contrast,
        }
        effect = _(
            "Kapso's page may be hard to read. The pages of this site use other colours where they "
            "have to."
        )
        return f"{problem} {effect}"


def problems(theme: object) -> list[Problem]:
    """Return the texts that ``theme``, a ``theme_config``, makes hard to read.

    Only texts whose colour is given count: a missing one is chosen to be readable. Behind them is
    the given colour, or else the one of ``DEFAULT_COLORS``. Invalid values are ignored.
    """
    given = _valid_colors(theme)
    found = []
    for text, behind in TEXT_PAIRS:
        if text in given:
            behind_color = given.get(behind, DEFAULT_COLORS[behind])
            contrast = contrast_of(given[text], behind_color)
            if contrast < MIN_CONTRAST:
                is_default = behind not in given
                rounded = math.floor(contrast * 10) / 10
                found.append(Problem(text, behind, given[text], behind_color, rounded, is_default))
    return found


def resolve(theme: object, *, dark: bool) -> dict[str, str]:
    """Return all colours of a page with ``theme``, a ``theme_config``, in light or dark mode.

    The keys are the names of ``THEME_COLORS``, and for each fill ``primary_border_color`` (of a
    button), for the other surfaces ``text_on_background_color``,
    ``muted_text_on_background_color``, ``text_on_muted_color`` and ``muted_text_on_muted_color``;
    ``text_color`` and ``muted_text_color`` are for the card. The values are as ``#1a2b3c``.

    Surfaces and fills are as given. Every text has a contrast of at least 4.5, and a button's
    border one of at least 3 to the card, and to the background as well unless the two leave no such
    colour. A dark theme is the same in both modes; a light one gives dark mode its fills only.
    Invalid values are ignored.
    """
    given = _valid_colors(theme)
    is_dark_theme = is_dark(given)
    base = DARK_COLORS if is_dark_theme else DEFAULT_COLORS
    if dark and not is_dark_theme:
        given = {
            name: color
            for fill in FILLS
            if given.keys() & {f"{fill}_color", f"{fill}_foreground_color"}
            for name, color in _fill_colors(fill, given, base).items()
        }
        base = DARK_COLORS
    surfaces = _surface_colors(given, base)
    card = surfaces["card_color"]
    border = _shifted(card, base["card_color"], base["border_color"])
    colors = {**surfaces, "border_color": given.get("border_color", border)}
    for surface in SURFACES:
        colors |= _text_colors(surface, given, surfaces[f"{surface}_color"])
    for fill in FILLS:
        colors |= _fill_colors(fill, given, base)
        edge = _edge(colors[f"{fill}_color"], card, surfaces["background_color"])
        colors[f"{fill}_border_color"] = edge
    return colors


def stylesheet(theme: object) -> str:
    """Return the colours of ``theme`` as CSS variables, for light and dark mode."""
    light = _variables(resolve(theme, dark=False))
    if is_dark(theme):
        return f":root{{color-scheme:dark;{light}{LOGO_PLATE}}}\n"
    dark = _variables(resolve(theme, dark=True))
    return f":root{{{light}}}\n@media (prefers-color-scheme:dark){{:root{{{dark}}}}}\n"


def contrast_of(one: str, other: str) -> float:
    """Return the contrast ratio of two colours by WCAG 2, from 1 to 21."""
    darker, lighter = sorted((_luminance(one), _luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def to_path(theme: object) -> str:
    """Return ``theme`` as a part of the URL of its stylesheet. Invalid colours are left out: a
    mistake in the settings does not break the page."""
    colors = _valid_colors(theme)
    return "-".join(colors.get(name, "").removeprefix("#") for name in THEME_COLORS)


def from_path(colors: str) -> dict[str, str]:
    """Return the theme that ``to_path`` turned into ``colors``."""
    pairs = zip(THEME_COLORS, colors.split("-"), strict=True)
    return {name: f"#{color}" for name, color in pairs if color}


def _valid_colors(theme: object) -> dict[str, str]:
    colors = theme if isinstance(theme, Mapping) else {}
    return {name: colors[name].lower() for name in THEME_COLORS if is_color(colors.get(name))}


def is_dark(theme: object) -> bool:
    """Return whether a theme is dark: by its surfaces, or without any by a light text colour."""
    given = _valid_colors(theme)
    surface = next((given[f"{s}_color"] for s in SURFACES if f"{s}_color" in given), None)
    if surface:
        return _black_or_white_on(surface) == WHITE
    text = given.get("text_color")
    return text is not None and contrast_of(text, DARK_COLORS["card_color"]) > contrast_of(
        text, DEFAULT_COLORS["card_color"]
    )


def _surface_colors(given: Mapping[str, str], base: Mapping[str, str]) -> dict[str, str]:
    """Return the colours of the surfaces. A missing one is as far from the first one that is given
    as the defaults are from each other, if given texts that can be read there can be read on it."""
    names = [f"{surface}_color" for surface in SURFACES]
    first = next((name for name in names if name in given), "card_color")
    color = given.get(first, base[first])
    texts = [given[name] for name in ("text_color", "muted_text_color") if name in given]
    texts = [text for text in texts if contrast_of(text, color) >= MIN_CONTRAST]
    derived = {name: _shifted(color, base[first], base[name]) for name in names}
    for name, candidate in derived.items():
        if any(contrast_of(text, candidate) < MIN_CONTRAST for text in texts):
            derived[name] = color
    return {name: given.get(name, derived[name]) for name in names}


def _text_colors(surface: str, given: Mapping[str, str], behind: str) -> dict[str, str]:
    """Return the two colours of text on ``surface``, which has the colour ``behind``."""
    ink = _black_or_white_on(behind)
    defaults = DARK_COLORS if ink == WHITE else DEFAULT_COLORS
    text, muted = (
        _readable(defaults[name], behind, otherwise=ink)
        for name in ("text_color", "muted_text_color")
    )
    if "text_color" in given:
        text = _readable(given["text_color"], behind, otherwise=text)
        muted = _readable(_mixed(text, behind, 0.25), behind, otherwise=text)
    if "muted_text_color" in given:
        muted = _readable(given["muted_text_color"], behind, otherwise=muted)
    where = "" if surface == "card" else f"_on_{surface}"
    return {f"text{where}_color": text, f"muted_text{where}_color": muted}


def _fill_colors(fill: str, given: Mapping[str, str], base: Mapping[str, str]) -> dict[str, str]:
    """Return the colour of a fill and its foreground. A given fill is kept; a missing one suits the
    given foreground."""
    fill_name, text_name = f"{fill}_color", f"{fill}_foreground_color"
    color, text = given.get(fill_name), given.get(text_name, base[text_name])
    if color is None:
        color = _readable(base[fill_name], text, otherwise=_black_or_white_on(text))
    text = _readable(text, color, otherwise=_black_or_white_on(color))
    return {fill_name: color, text_name: text}


def _readable(color: str, behind: str, otherwise: str) -> str:
    """Return ``color``, moved away from ``behind`` only as far as it has to be to be read there;
    ``otherwise`` if that is not possible."""
    if contrast_of(color, behind) >= MIN_CONTRAST:
        return color
    if _luminance(color) == _luminance(behind):
        return otherwise
    moved = _moved(color, behind, MIN_CONTRAST, lighter=_luminance(color) > _luminance(behind))
    return moved if contrast_of(moved, behind) >= MIN_CONTRAST else otherwise


def _edge(fill: str, card: str, background: str) -> str:
    """Return ``fill``, moved only as far as it has to be to be told from ``card`` and
    ``background``, or from ``card`` alone if there is no such colour."""
    candidates = [fill] + [
        _moved(fill, surface, MIN_CONTROL_CONTRAST, lighter=lighter)
        for surface in (card, background)
        for lighter in (False, True)
    ]
    candidates.sort(key=partial(contrast_of, fill))
    fitting = [color for color in candidates if contrast_of(color, card) >= MIN_CONTROL_CONTRAST]
    both = (color for color in fitting if contrast_of(color, background) >= MIN_CONTROL_CONTRAST)
    return next(both, fitting[0])


def _moved(color: str, behind: str, contrast: float, *, lighter: bool) -> str:
    """Return ``color``, mixed with as little white (or black, unless ``lighter``) as makes it
    lighter (or darker) than ``behind`` with this contrast ratio; white (or black) if nothing
    does."""
    ink = WHITE if lighter else BLACK

    def is_enough(step: int) -> bool:
        mixed = _mixed(color, ink, step / 255)
        is_beyond = (_luminance(mixed) > _luminance(behind)) == lighter
        return is_beyond and contrast_of(mixed, behind) >= contrast

    return _mixed(color, ink, bisect_left(range(255), True, key=is_enough) / 255)


def _black_or_white_on(color: str) -> str:
    return max((WHITE, BLACK), key=lambda ink: contrast_of(ink, color))


def _shifted(color: str, start: str, end: str) -> str:
    """Return ``color``, changed as ``start`` is to become ``end``."""
    parts = zip(_parts(color), _parts(start), _parts(end), strict=True)
    return _color(*(min(max(part + b - a, 0), 255) for part, a, b in parts))


def _mixed(color: str, other: str, share: float) -> str:
    """Return a mixture with this share of ``other``, from 0 to 1."""
    parts = zip(_parts(color), _parts(other), strict=True)
    return _color(*(round(a + (b - a) * share) for a, b in parts))


@lru_cache(maxsize=1024)
def _luminance(color: str) -> float:
    shares = (part / 255 for part in _parts(color))
    red, green, blue = (
        share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _parts(color: str) -> tuple[int, int, int]:
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)


def _color(red: int, green: int, blue: int) -> str:
    return f"#{red:02x}{green:02x}{blue:02x}"


def _variables(colors: Mapping[str, str]) -> str:
    return "".join(
        f"--kapso-{name.removesuffix('_color').replace('_', '-')}:{color};"
        for name, color in colors.items()
    )
