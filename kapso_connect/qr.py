"""QR codes, if segno is installed (the extra ``qr``)."""

from __future__ import annotations

import io
from importlib.util import find_spec


def has_qr_codes() -> bool:
    """Return whether this site can draw QR codes."""
    return find_spec("segno") is not None


def qr_svg(url: str) -> str:
    """Return ``url`` as a QR code in SVG, or "" if segno is not installed.

    It is black on white, with the quiet zone of four modules that cameras need, in dark mode too.
    """
    try:
        import segno
    except ImportError:
        return ""
    svg = io.BytesIO()
    segno.make(url, error="m", micro=False).save(
        svg,
        kind="svg",
        xmldecl=False,
        nl=False,
        border=4,
        dark="#000",
        light="#fff",
        omitsize=True,
        svgclass=None,
        lineclass=None,
    )
    return svg.getvalue().decode()
