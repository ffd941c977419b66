"""QR codes on staff's pages. Their size there is that of .kapso-qr in admin.css."""

from __future__ import annotations

from django.utils.html import format_html
from django.utils.safestring import SafeString, mark_safe

from ..models import Customer
from ..qr import qr_svg
from ..translation import gettext as _


def qr_label(customer: Customer) -> str:
    return _("QR code with the personal link of %(customer)s") % {"customer": customer}


def qr_code(url: str, label: object) -> SafeString | None:
    """Return ``url`` as a QR code with ``label`` for screen readers; None if segno is not
    installed."""
    svg = qr_svg(url)
    if not svg:
        return None
    # segno's SVG contains no text.
    return format_html(
        '<div class="kapso-qr" role="img" aria-label="{}">{}</div>',
        label,
        mark_safe(svg),  # noqa: S308  # nosec B308 B703
    )
