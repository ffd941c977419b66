"""Text that others wrote, such as names, as it may be put into other text."""

from __future__ import annotations

import unicodedata

LINE_BREAKS_AND_CONTROLS = {"Cc", "Zl", "Zp"}
INVISIBLE = {"Cf", "Cs"}
"""Unicode categories: formatting such as a change of direction, and halves of characters."""

NUMBER_SIGNS = frozenset("\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2")
"""Signs of Arabic and Syriac that are visible, although their category is "Cf"."""

JOINERS = frozenset("\u200c\u200d")
"""They shape the letters beside them, and join emoji."""

RIGHT_TO_LEFT = {"R", "AL", "AN"}
"""Directions of letters and digits that are written from right to left, or among such letters."""

FIRST_STRONG_ISOLATE, POP_DIRECTIONAL_ISOLATE = "\u2068", "\u2069"

VIRAMA = 9
"""The combining class of the signs of Indic scripts after which a joiner may end a word."""


def one_line(text: str) -> str:
    """Return ``text`` on one line, without the characters that hide or reorder what is around it.

    It is for what others wrote, such as customers' names, and is put into e-mails, logs or messages
    to staff. Line breaks and control characters become spaces; changes of direction and other
    invisible characters are left out, except the joiners that a word or an emoji is spelt with.
    """
    if text.isprintable():
        return text.strip()
    clean = ""
    for position, character in enumerate(text):
        category = unicodedata.category(character)
        if category in LINE_BREAKS_AND_CONTROLS:
            clean += " "
        elif (
            category not in INVISIBLE
            or character in NUMBER_SIGNS
            or (character in JOINERS and _is_needed(clean[-1:], text[position + 1 : position + 2]))
        ):
            clean += character
    return clean.strip()


def _is_needed(before: str, after: str) -> bool:
    """Return True for a joiner after a virama, or between two characters of a script or an emoji
    that are shaped by one; those of Latin, Greek and Cyrillic are not."""
    if before and unicodedata.combining(before) == VIRAMA:
        return True
    return all(one > "\u058f" and unicodedata.category(one)[0] in "LMS" for one in (before, after))


def isolated(text: str, direction: str) -> str:
    """Return ``text`` so that it does not reorder a text in ``direction``, "ltr" or "rtl", that it
    is put into: between U+2068 and U+2069, unless all of it is written from left to right."""
    if direction == "ltr" and not any(
        unicodedata.bidirectional(one) in RIGHT_TO_LEFT for one in text
    ):
        return text
    return f"{FIRST_STRONG_ISOLATE}{text}{POP_DIRECTIONAL_ISOLATE}"
