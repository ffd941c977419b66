"""The colours of the hosted page, in words for staff."""

from __future__ import annotations

from typing import NamedTuple

from django.utils.functional import Promise
from django.utils.translation import gettext_lazy


class Color(NamedTuple):
    """A colour of Kapso's theme: what staff call it, and what the preview shows where it is not
    set (Kapso does not say which colours its page has then)."""

    label: str | Promise
    shown: str


COLORS: dict[str, Color] = {
    "primary_color": Color(gettext_lazy("Button"), "#2563eb"),
    "primary_foreground_color": Color(gettext_lazy("Text on the button"), "#ffffff"),
    "background_color": Color(gettext_lazy("Page"), "#f9fafb"),
    "text_color": Color(gettext_lazy("Text"), "#111827"),
    "muted_text_color": Color(gettext_lazy("Quiet text"), "#4b5563"),
    "card_color": Color(gettext_lazy("Box"), "#ffffff"),
    "muted_color": Color(gettext_lazy("Quiet area"), "#f3f4f6"),
    "border_color": Color(gettext_lazy("Lines"), "#d1d5db"),
    "secondary_color": Color(gettext_lazy("Second button"), "#e5e7eb"),
    "secondary_foreground_color": Color(gettext_lazy("Text on the second button"), "#111827"),
    "destructive_color": Color(gettext_lazy("Warning"), "#b91c1c"),
    "destructive_foreground_color": Color(gettext_lazy("Text on a warning"), "#ffffff"),
}
