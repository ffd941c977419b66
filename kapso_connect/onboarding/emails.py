"""The e-mails to customers, in their language: the invitation, a reminder, that a number is
connected, that an attempt failed.

Their texts are in the templates ``kapso_connect/email/…_subject.txt``, ``….txt`` and ``….html``,
which a site may override. They are sent as the site sends all its e-mail. ``automatic_emails``
sends those that no member of staff sends.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from copy import copy
from typing import Any
from urllib.parse import unquote, urlsplit

from django.conf import settings
from django.contrib.auth.models import AbstractBaseUser
from django.core.exceptions import ValidationError
from django.core.mail import EmailMultiAlternatives
from django.core.validators import validate_email
from django.template.loader import render_to_string
from django.utils import timezone, translation
from django.utils.html import format_html

from .. import theme
from ..branding import absolute_url, base_context, inviter_name, is_svg, theme_of
from ..conf import get_conf
from ..db import retry_on_conflict
from ..exceptions import CannotInvite, NoConnectUrl, NoEmailAddress
from ..kapso.error_codes import Action, find_error
from ..kapso.languages import Language
from ..kapso.types import ConnectionType
from ..languages import default_language
from ..models import Connection, Customer, SetupLink, TimelineEvent
from ..phone_numbers import format_phone_number
from ..text import isolated, one_line
from ..translation import gettext as _
from ..utils import describe
from . import setup_links
from .arguments import check_customer
from .connect_urls import connect_url, find_next_url
from .expectations import expectations
from .mailer import SendFailure, classify_error

REMINDER = "reminder"
"""The ``message`` of a timeline event by which a reminder is told from an invitation."""


def send_invitation(
    customer: Customer,
    link: SetupLink,
    *,
    actor: AbstractBaseUser | None = None,
    on_recorded: Callable[[TimelineEvent], object] = lambda event: None,
) -> None:
    """Send ``customer`` the connect URL for ``link``, and record in the timeline that ``actor``
    did. ``on_recorded`` is called with the event, in the transaction that records it.

    Raise as ``invitation_message`` does, and SMTPException or OSError as the mail backend does;
    nothing is recorded then.
    """
    check_customer(customer, "send_invitation")
    message = invitation_message(customer, link)
    message.send()

    def record() -> None:
        on_recorded(setup_links.record_sent(link, "email", actor=actor, to=customer.email))

    retry_on_conflict(record)


def send_reminder(
    customer: Customer,
    link: SetupLink,
    *,
    actor: AbstractBaseUser | None = None,
    on_recorded: Callable[[TimelineEvent], object] = lambda event: None,
) -> None:
    """Send ``customer`` a reminder of the invitation ``link``, with the connect URL. Record in the
    timeline that ``actor`` did, and when in ``link.reminded_at``, so that ``kapso_sync`` sends no
    other one. ``on_recorded`` is called as by ``send_invitation``.

    Raise as ``send_invitation`` does.
    """
    check_customer(customer, "send_reminder")
    message = reminder_message(customer, link)
    message.send()
    now = timezone.now()

    def record() -> None:
        SetupLink.objects.filter(pk=link.pk).update(reminded_at=now)
        to = customer.email
        on_recorded(setup_links.record_sent(link, "email", actor=actor, to=to, message=REMINDER))

    retry_on_conflict(record)
    link.reminded_at = now


def invitation_message(customer: Customer, link: SetupLink) -> EmailMultiAlternatives:
    """Return the e-mail that gives ``customer`` the connect URL for ``link``.

    It is in the link's language, else the customer's, else the site's. Its ``send`` uses neither
    the database nor a template. Raise NoEmailAddress, NoConnectUrl or CustomerErased.
    """
    return _message("invitation", customer, link, url=_url_to_send(customer))


def reminder_message(customer: Customer, link: SetupLink) -> EmailMultiAlternatives:
    """Return the e-mail that reminds ``customer`` of the invitation ``link``; see
    ``invitation_message``."""
    return _message(REMINDER, customer, link, url=_url_to_send(customer))


def failed_message(customer: Customer, link: SetupLink) -> EmailMultiAlternatives:
    """Return the e-mail that tells ``customer`` why the attempt with ``link`` failed, and what to
    do now; see ``invitation_message``."""
    failure = find_error(link.last_error_code)
    return _message(
        "failed",
        customer,
        link,
        url=_url_to_send(customer),
        failure=failure,
        contact_first=failure.action == Action.CONTACT,
    )


def connected_message(connection: Connection) -> EmailMultiAlternatives:
    """Return the e-mail that tells the customer of ``connection`` that it is connected. It has no
    URL that identifies the customer. Raise NoEmailAddress; see ``invitation_message``."""
    link = connection.setup_link
    return _message(
        "connected",
        connection.customer,
        link,
        connection=connection,
        phone_number=format_phone_number(connection.display_phone_number),
        verified_name=connection.verified_name,
        keeps_app=connection.connection_type == ConnectionType.COEXISTENCE,
        next_text=get_conf().next_text,
        next_url=absolute_url(find_next_url(connection, link)),
    )


def share_text(customer: Customer, link: SetupLink) -> str:
    """Return a short text with the connect URL for ``link``, for staff to send to ``customer`` in a
    chat. It is in the template ``kapso_connect/share.txt``."""
    with translation.override(invitation_language(customer, link)):
        context = _context(customer, link, url=connect_url(customer))
        return render_to_string("kapso_connect/share.txt", _in_text(context)).strip()


def reply_to() -> str:
    """Return the address that customers' answers go to, or "" for that of the sender."""
    conf = get_conf()
    contact = urlsplit(conf.contact_url)
    address = unquote(contact.path) if contact.scheme == "mailto" else ""
    return conf.email_reply_to or (address if _is_valid(address) else "")


def _url_to_send(customer: Customer) -> str:
    if customer.erased_at is not None:
        raise setup_links.erased_error(customer)
    if url := connect_url(customer):
        return url
    raise NoConnectUrl(
        _("There is no link to send to %(customer)s. Create a setup link first.")
        % {"customer": customer}
    )


def _message(
    name: str, customer: Customer, link: SetupLink | None, **context: Any
) -> EmailMultiAlternatives:
    """Return the e-mail whose templates begin with ``name``."""
    if not _is_valid(customer.email):
        raise NoEmailAddress(
            _("%(customer)s has no valid e-mail address.") % {"customer": customer}
        )
    with translation.override(invitation_language(customer, link)):
        context = _context(customer, link, **context)
        in_text = _in_text(context)
        folder = "kapso_connect/email"
        subject = render_to_string(f"{folder}/{name}_subject.txt", in_text)
        text = render_to_string(f"{folder}/{name}.txt", in_text)
        html = render_to_string(f"{folder}/{name}.html", _in_html(context))
    # A line break in a name must not start another header.
    message = EmailMultiAlternatives(" ".join(subject.split()), _without_gaps(text))
    message.to = [customer.email]
    message.extra_headers = {"Auto-Submitted": "auto-generated"}
    if address := reply_to():
        message.reply_to = [address]
    message.attach_alternative(html, "text/html")
    return message


def _is_valid(address: str) -> bool:
    try:
        validate_email(address)
    except ValidationError:
        return False
    return True


def _without_gaps(text: str) -> str:
    """Return ``text`` without the empty lines that parts of a template leave behind."""
    return re.sub(r"\n(\s*\n)+", "\n\n", text).strip() + "\n"


def _context(customer: Customer, link: SetupLink | None, **more: Any) -> dict[str, Any]:
    """Return the context of all templates of e-mails, in the active language."""
    conf, colors = get_conf(), theme_of(link)
    shown = copy(customer)
    shown.name = one_line(customer.name)  # this object may not have been saved
    return {
        **base_context(link),
        "customer": shown,
        "link": link,
        "light": theme.resolve(colors, dark=False),
        "dark": theme.resolve(colors, dark=True),
        "expectations": expectations(link) if link else None,
        "inviter": inviter_name(link) if link else "",
        "reconnect_number": format_phone_number(link.reconnect_number if link else ""),
        "reference": link.reference if link else "",
        "invitation_text": conf.invitation_text,
        "cost_text": conf.cost_text,
        "contact_url": absolute_url(conf.contact_url),
        "privacy_url": absolute_url(conf.privacy_url),
        "terms_url": absolute_url(conf.terms_url),
        "reply_to": reply_to(),
        **more,
    }


SITE_TEXTS = ("invitation_text", "cost_text", "next_text")
NAMES = ("name", "site", "inviter", "verified_name", *SITE_TEXTS)
"""What others wrote, and is put into texts of any language and direction."""

CODES = ("reference", "reconnect_number", "phone_number", "contact")
"""What is written from left to right in every language."""


def _with_names(context: dict[str, Any]) -> dict[str, Any]:
    return {**context, "name": context["customer"].name, "site": context["site_name"]}


def _in_text(context: dict[str, Any]) -> dict[str, Any]:
    """Return ``context`` for a template of plain text."""
    contact_url = str(context["contact_url"])
    is_page = contact_url.startswith(("http://", "https://"))
    contact = contact_url if is_page else unquote(urlsplit(contact_url).path)
    shown = {**_with_names(context), "contact": contact}
    direction = str(context["direction"])
    for name in (*NAMES, *CODES):
        if shown.get(name):
            shown[name] = isolated(str(shown[name]), direction)
    return shown


def _in_html(context: dict[str, Any]) -> dict[str, Any]:
    """Return ``context`` for a template of HTML."""
    shown = _with_names(context)
    for name in NAMES:
        if shown.get(name):
            shown[name] = format_html("<bdi>{}</bdi>", shown[name])
    return {**shown, **_logo(context)}


def _logo(context: dict[str, Any]) -> dict[str, Any]:
    """Return the logo's URLs as mail programs need them. Most of them do not show SVG files: the
    name of the site stands there then."""
    logo, dark_logo = (
        "" if is_svg(url) else absolute_url(url)
        for url in (context["logo_url"], context["logo_dark_url"])
    )
    is_on_dark = theme.is_dark(theme_of(context["link"]))
    return {
        "logo_url": logo,
        "logo_dark_url": dark_logo,
        "logo_has_plate": bool(logo) and is_on_dark and not dark_logo,
    }


def invitation_language(customer: Customer, link: SetupLink | None) -> str:
    """Return the code of the language in which to write to ``customer`` about ``link``: the link's,
    else the customer's, else that of LANGUAGE_CODE if this package's texts are in it, else English.
    """
    if not settings.USE_I18N:
        return Language.ENGLISH.value
    return customer.find_language(link) or default_language()


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
