"""The e-mail that sends a customer their connect URL, in their language.

Its text is in the templates ``kapso_connect/email/invitation_subject.txt``, ``invitation.txt`` and
``invitation.html``, which a site may override. It is sent as the site sends all its e-mail.
"""

from __future__ import annotations

from copy import copy
from typing import Any

from django.conf import settings
from django.contrib.auth.models import AbstractBaseUser
from django.core.exceptions import ValidationError
from django.core.mail import EmailMultiAlternatives
from django.core.validators import validate_email
from django.template.loader import render_to_string
from django.utils import translation

from ..conf import get_conf
from ..exceptions import CannotInvite, NoConnectUrl, NoEmailAddress
from ..kapso.languages import Language
from ..languages import (
    current_language,
    default_language,
    direction,
    find_page_language,
    html_language,
)
from ..models import Customer, SetupLink
from ..text import one_line
from ..translation import gettext as _
from ..utils import describe
from . import setup_links
from .connect_urls import connect_url
from .mailer import SendFailure, classify_error


def send_invitation(
    customer: Customer, link: SetupLink, *, actor: AbstractBaseUser | None = None
) -> None:
    """Send ``customer`` the connect URL for ``link``, and record in the timeline that ``actor``
    did.

    Raise as ``invitation_message`` does, and SMTPException or OSError as the mail backend does;
    nothing is recorded then.
    """
    message = invitation_message(customer, link)
    message.send()
    setup_links.record_sent(link, "email", actor=actor, to=customer.email)


def invitation_message(customer: Customer, link: SetupLink) -> EmailMultiAlternatives:
    """Return the e-mail that gives ``customer`` the connect URL for ``link``.

    It is in the link's language, else the customer's, else the site's. Its ``send`` uses neither
    the database nor a template. Raise NoEmailAddress or NoConnectUrl.
    """
    try:
        validate_email(customer.email)
    except ValidationError:
        raise NoEmailAddress(
            _("%(customer)s has no valid e-mail address.") % {"customer": customer}
        ) from None
    url = connect_url(customer)
    if not url:
        raise NoConnectUrl(
            _("There is no link to send to %(customer)s. Create a setup link first.")
            % {"customer": customer}
        )
    with translation.override(invitation_language(customer, link)):
        context = _context(customer, link, url)
        subject, text, html = (
            render_to_string(f"kapso_connect/email/{name}", context)
            for name in ("invitation_subject.txt", "invitation.txt", "invitation.html")
        )
    # A line break in a name must not start another header.
    message = EmailMultiAlternatives(one_line(" ".join(subject.split())), text.strip() + "\n")
    message.to = [customer.email]
    message.attach_alternative(html, "text/html")
    return message


def share_text(customer: Customer, link: SetupLink) -> str:
    """Return a short text with the connect URL for ``link``, for staff to send to ``customer`` in a
    chat. It is in the template ``kapso_connect/share.txt``."""
    with translation.override(invitation_language(customer, link)):
        context = _context(customer, link, connect_url(customer))
        return render_to_string("kapso_connect/share.txt", context).strip()


def _context(customer: Customer, link: SetupLink, url: str) -> dict[str, Any]:
    shown = copy(customer)
    shown.name = one_line(customer.name)  # this object may not have been saved
    return {
        "customer": shown,
        "link": link,
        "url": url,
        "site_name": one_line(get_conf().display_name),
        "language": html_language(current_language()),
        "direction": direction(current_language()),
    }


def invitation_language(customer: Customer, link: SetupLink) -> str:
    """Return the code of the language in which to write to ``customer`` about ``link``: the link's,
    else the customer's, else that of LANGUAGE_CODE if this package's texts are in it, else English.
    """
    if not settings.USE_I18N:
        return Language.ENGLISH.value
    known = find_page_language(link.options.get("language")) or find_page_language(
        customer.language
    )
    return known or default_language()


def send_error_message(error: Exception) -> str:
    """Return why an e-mail was not sent, or may not have been, for a member of staff."""
    if isinstance(error, CannotInvite):
        return str(error)
    failure = classify_error(error)
    if failure is SendFailure.TEMPORARY:
        return send_later_message(error)
    if failure is SendFailure.UNKNOWN:
        return f"{unknown_outcome_message()} {describe(error)[:500]}"
    return _("The e-mail could not be sent: %(detail)s") % {"detail": describe(error)[:500]}


def send_later_message(error: Exception) -> str:
    """Return why an e-mail was not sent that may be sent later, for a member of staff."""
    message = _("The mail server does not accept the e-mail yet. Try again later. %(detail)s")
    return message % {"detail": describe(error)[:500]}


def unknown_outcome_message() -> str:
    """Return what to do about an e-mail that may have been sent, for a member of staff."""
    return _("It is not known whether the e-mail was sent. Ask the customer, or send it again.")
