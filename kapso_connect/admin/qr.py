"""QR codes, if segno is installed. Their size on a page is that of .kapso-qr in admin.css."""

from __future__ import annotations

from django.utils.html import format_html
from django.utils.safestring import SafeString, mark_safe

from ..models import Customer
from ..translation import gettext as _


def qr_label(customer: Customer) -> str:
    return _("QR code with the WhatsApp setup link of %(customer)s") % {"customer": customer}


def qr_code(url: str, label: object) -> SafeString | None:
    """Return ``url`` as an SVG with ``label`` for screen readers; None if segno is not installed.

    It is black on white in dark mode too, as cameras need it.
    """
    try:
        import segno
    except ImportError:
        return None
    code = segno.make(url, error="m", micro=False)
    svg = code.svg_inline(border=4, dark="#000", light="#fff", omitsize=True)
    # segno's SVG contains no text.
    return format_html(
        '<div class="kapso-qr" role="img" aria-label="{}">{}</div>',
        label,
        mark_safe(svg),  # noqa: S308  # nosec B308 B703
    )
