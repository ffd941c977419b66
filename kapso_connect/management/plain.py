"""Text for a terminal."""

from __future__ import annotations

from typing import Any


def plain(text: str, stream: Any) -> str:
    """Return ``text`` without control characters or characters that ``stream`` cannot encode.

    Line breaks stay.
    """
    encoding = getattr(stream, "encoding", None) or "utf-8"
    shown = "".join(c if c.isprintable() or c == "\n" else f"\\x{ord(c):02x}" for c in text)
    return shown.encode(encoding, "backslashreplace").decode(encoding)


def format_count(count: int, singular: str, plural: str = "") -> str:
    """Return for example "1 customer" or "2 customers"."""
    return f"{count} {singular if count == 1 else plural or singular + 's'}"
