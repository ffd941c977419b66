"""The colours of the customers' pages, with the names of Kapso's ``theme_config``, and the contrast
of text in them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from .kapso.setup_link_options import THEME_COLORS, is_color

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
"""The colours that a theme does not set; ``pages.css`` has the same ones."""

TEXT_PAIRS = (
    ("text_color", "background_color"),
    ("text_color", "card_color"),
    ("text_color", "muted_color"),
    ("muted_text_color", "background_color"),
    ("muted_text_color", "card_color"),
    ("muted_text_color", "muted_color"),
    ("primary_foreground_color", "primary_color"),
    ("secondary_foreground_color", "secondary_color"),
    ("destructive_foreground_color", "destructive_color"),
)
"""Colours of text, each with a background that it appears on."""

FILL_COLORS = ("primary", "secondary", "destructive")
"""Colours of filled areas, each with its own foreground: they suit a light and a dark page."""

MIN_CONTRAST = 4.5
"""The contrast ratio of text that WCAG 2 requires at level AA."""


def full_theme(theme: Mapping[str, str]) -> dict[str, str]:
    """Return ``theme`` with all twelve colours. Missing ones are the defaults, or a readable
    foreground for a given fill colour."""
    colors = {**DEFAULT_COLORS, **theme}
    for name in FILL_COLORS:
        fill, foreground = f"{name}_color", f"{name}_foreground_color"
        if fill in theme and foreground not in theme:
            colors[foreground] = max(
                ("#ffffff", "#000000"), key=lambda c: contrast_of(c, theme[fill])
            )
    return colors


def low_contrast_pairs(theme: Mapping[str, str]) -> Iterator[tuple[str, str, float]]:
    """Yield the ``TEXT_PAIRS`` in ``theme`` whose contrast ratio is below ``MIN_CONTRAST``, and the
    ratio. ``theme`` maps names to colours such as ``#1a2b3c``."""
    for text, background in TEXT_PAIRS:
        if text in theme and background in theme:
            contrast = contrast_of(theme[text], theme[background])
            if contrast < MIN_CONTRAST:
                yield text, background, contrast


def contrast_of(one: str, other: str) -> float:
    """Return the contrast ratio of two colours by WCAG 2, from 1 to 21."""
    darker, lighter = sorted((_luminance(one), _luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(color: str) -> float:
    parts = (int(color[at : at + 2], 16) / 255 for at in (1, 3, 5))
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def to_path(theme: object) -> str:
    """Return ``theme`` as a part of the URL of its stylesheet. Invalid colours are left out: a
    mistake in the settings does not break the page."""
    colors = theme if isinstance(theme, Mapping) else {}
    return "-".join(
        str(colors.get(name)).removeprefix("#").lower() if is_color(colors.get(name)) else ""
        for name in THEME_COLORS
    )


def from_path(colors: str) -> dict[str, str]:
    """Return the theme that ``to_path`` turned into ``colors``."""
    pairs = zip(THEME_COLORS, colors.split("-"), strict=True)
    return {name: f"#{color}" for name, color in pairs if color}


def stylesheet(theme: Mapping[str, str]) -> str:
    """Return the colours of ``theme`` as CSS variables.

    A light theme applies to dark mode only with its fill colours; a dark theme applies to both.
    """
    colors = full_theme(theme)
    if _luminance(colors["card_color"]) < _luminance(colors["text_color"]):
        return f":root{{color-scheme:dark;{_variables(colors, THEME_COLORS)}}}\n"
    given_fills = {
        name for name in FILL_COLORS if {f"{name}_color", f"{name}_foreground_color"} & set(theme)
    }
    fills = [name for name in THEME_COLORS if name.split("_")[0] in given_fills]
    surfaces = [name for name in THEME_COLORS if name not in fills]
    in_light_mode = f":root{{{_variables(colors, surfaces)}}}"
    return (
        f":root{{{_variables(colors, fills)}}}\n"
        f"@media not all and (prefers-color-scheme:dark){{{in_light_mode}}}\n"
    )


def _variables(colors: Mapping[str, str], names: Iterable[str]) -> str:
    return "".join(
        f"--kapso-{name.removesuffix('_color').replace('_', '-')}:{colors[name]};" for name in names
    )
