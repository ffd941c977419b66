"""The colours of the customers' pages: the same twelve that Kapso's hosted page takes; and whether
text in them can be read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from ..kapso.setup_link_options import THEME_COLORS, is_color

LIGHT = {
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
"""What ``pages.css`` has, too: the colours where a theme says nothing."""

TEXT_ON = (
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
"""Which colour is text, and which is behind it."""

FILLED = ("primary", "secondary", "destructive")
"""Colours that are filled with, each with its foreground: they bear either appearance."""

READABLE = 4.5
"""The contrast that WCAG 2 asks of text, at level AA."""


def full_theme(theme: Mapping[str, str]) -> dict[str, str]:
    """Return ``theme`` with all twelve colours: what is missing is ours, and readable on what is
    given."""
    colors = {**LIGHT, **theme}
    for name in FILLED:
        fill, foreground = f"{name}_color", f"{name}_foreground_color"
        if fill in theme and foreground not in theme:
            colors[foreground] = max(
                ("#ffffff", "#000000"), key=lambda c: contrast_of(c, theme[fill])
            )
    return colors


def hard_to_read(theme: Mapping[str, str]) -> Iterator[tuple[str, str, float]]:
    """Yield the pairs of ``TEXT_ON`` that ``theme`` sets with too little contrast, and how much
    they have, from 1 to 21. ``theme`` has colours as ``#rrggbb``."""
    for text, behind in TEXT_ON:
        if text in theme and behind in theme:
            contrast = contrast_of(theme[text], theme[behind])
            if contrast < READABLE:
                yield text, behind, contrast


def contrast_of(one: str, other: str) -> float:
    """Return WCAG's contrast ratio of two colours, from 1 to 21."""
    darker, lighter = sorted((_luminance(one), _luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(color: str) -> float:
    parts = (int(color[at : at + 2], 16) / 255 for at in (1, 3, 5))
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def to_path(theme: object) -> str:
    """Return ``theme`` as it stands in the address of its stylesheet, without what is no colour: a
    mistake in the settings keeps no customer from the page."""
    colors = theme if isinstance(theme, Mapping) else {}
    return "-".join(
        str(colors.get(name)).removeprefix("#").lower() if is_color(colors.get(name)) else ""
        for name in THEME_COLORS
    )


def from_path(colors: str) -> dict[str, str]:
    """Return the theme that ``to_path`` made ``colors`` of."""
    pairs = zip(THEME_COLORS, colors.split("-"), strict=True)
    return {name: f"#{color}" for name, color in pairs if color}


def stylesheet(theme: Mapping[str, str]) -> str:
    """Return the colours of ``theme`` as CSS variables.

    A light theme leaves the dark appearance its own surfaces, where a visitor wants it dark; a dark
    theme is dark for everybody.
    """
    colors = full_theme(theme)
    if _luminance(colors["card_color"]) < _luminance(colors["text_color"]):
        return f":root{{color-scheme:dark;{_variables(colors, THEME_COLORS)}}}\n"
    given = {name for name in FILLED if {f"{name}_color", f"{name}_foreground_color"} & set(theme)}
    filled = [name for name in THEME_COLORS if name.split("_")[0] in given]
    rest = [name for name in THEME_COLORS if name not in filled]
    return (
        f":root{{{_variables(colors, filled)}}}\n"
        f"@media not all and (prefers-color-scheme:dark){{:root{{{_variables(colors, rest)}}}}}\n"
    )


def _variables(colors: Mapping[str, str], names: Iterable[str]) -> str:
    return "".join(
        f"--kapso-{name.removesuffix('_color').replace('_', '-')}:{colors[name]};" for name in names
    )
