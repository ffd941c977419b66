"""What others wrote, in a terminal: no control characters, nothing the output cannot encode."""

from __future__ import annotations

from typing import Any


def plain(text: str, stream: Any) -> str:
    """Return ``text`` as ``stream`` can write it; lines stay lines."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    shown = "".join(c if c.isprintable() or c == "\n" else f"\\x{ord(c):02x}" for c in text)
    return shown.encode(encoding, "backslashreplace").decode(encoding)
