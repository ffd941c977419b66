"""The colours of Kapso's hosted page, as staff choose them."""

from __future__ import annotations

from typing import NamedTuple

from django.utils.functional import Promise

from ..translation import gettext_lazy


class Color(NamedTuple):
    """A colour of Kapso's theme: its label, and what the preview shows while it is not set (Kapso
    does not document its own colours)."""

    label: str | Promise
    shown: str


COLORS: dict[str, Color] = {
    "primary_color": Color(gettext_lazy("Button"), "#2563eb"),
    "primary_foreground_color": Color(gettext_lazy("Text on the button"), "#ffffff"),
    "background_color": Color(gettext_lazy("Page"), "#f9fafb"),
    "text_color": Color(gettext_lazy("Text"), "#111827"),
    "muted_text_color": Color(gettext_lazy("Muted text"), "#4b5563"),
    "card_color": Color(gettext_lazy("Card"), "#ffffff"),
    "muted_color": Color(gettext_lazy("Muted area"), "#f3f4f6"),
    "border_color": Color(gettext_lazy("Borders"), "#d1d5db"),
    "secondary_color": Color(gettext_lazy("Second button"), "#e5e7eb"),
    "secondary_foreground_color": Color(gettext_lazy("Text on the second button"), "#111827"),
    "destructive_color": Color(gettext_lazy("Warning"), "#b91c1c"),
    "destructive_foreground_color": Color(gettext_lazy("Text on a warning"), "#ffffff"),
}
