"""Sending a customer's link: by e-mail, as a QR code, as a text to share, or copied."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote as url_quote

from django.contrib import messages
from django.contrib.admin.utils import quote
from django.db import DatabaseError, IntegrityError
from django.http import (
    HttpRequest,
    HttpResponse,
    HttpResponseRedirect,
)
from django.utils import timezone
from django.utils.translation import get_language_info
from django.utils.translation import gettext as _

from .. import exceptions
from ..db import atomic
from ..log import log_event
from ..models import SetupLink, TimelineEvent
from ..onboarding import customers, emails, setup_links
from ..onboarding.connect_urls import connect_url
from .customer_actions import DOUBLE_CLICK, CustomerActions, Target, current_user
from .history import log_change
from .permissions import can_create_setup_links
from .qr import qr_code, qr_label


class SendLinkViews(CustomerActions):
    """The pages that give a customer their link."""

    def _email_view(self, request: HttpRequest, target: Target) -> HttpResponse:
        if request.method == "POST":
            return self._send(request, target)
        try:
            # The e-mail address may have changed in the site's own object.
            with atomic():
                customer = self.make_customer(target.obj)
            target = Target(target.obj, customer, target.link)
        except IntegrityError:
            pass  # Another customer has its external id; a new invitation says so.
        message = None
        problem = ""
        if target.link is not None and target.is_sendable:
            try:
                message = emails.invitation_message(target.customer, target.link)
            except exceptions.CannotInvite as error:
                problem = str(error)
        context: dict[str, Any] = {"problem": problem}
        if message is not None and target.link is not None:
            code = emails.invitation_language(target.customer, target.link)
            text = str(message.body)
            if not can_create_setup_links(request):
                url = connect_url(target.customer)
                text = text.replace(url, _("[the customer's personal link]"))
            context |= {
                "to": message.to[0],
                "language": language_name(code),
                "language_code": code,
                "subject": message.subject,
                "text": text,
                "sent": self._last_email(target.link),
            }
        elif not problem and can_create_setup_links(request):
            context["invite_url"] = self.view_url("whatsapp_invite")
            context["quoted_pk"] = quote(target.obj.pk)
        return self.render_action_page(request, target, "email", _("E-mail the link"), **context)

    def _last_email(self, link: SetupLink) -> TimelineEvent | None:
        emails_sent = link.events.filter(
            kind=TimelineEvent.Kind.SETUP_LINK_SENT, data__channel="email"
        ).select_related("actor")
        return emails_sent.order_by("-pk").first()

    def _send(self, request: HttpRequest, target: Target) -> HttpResponse:
        same_page = HttpResponseRedirect(request.path)
        if (
            target.link is None
            or not target.is_sendable
            or not self.accept_action_form(request, target)
        ):
            return same_page
        to = target.customer.email
        try:
            emails.send_invitation(target.customer, target.link, actor=current_user(request))
        except DatabaseError:
            raise
        except Exception as error:  # Each mail backend raises its own.
            log_event("email.failed", customer_id=target.customer.pk, error=type(error).__name__)
            self.message_user(request, emails.send_error_message(error), messages.ERROR)
            return same_page
        return self.finish_action(
            request,
            target,
            _("E-mailed the WhatsApp setup link to %(to)s.") % {"to": to},
            _("The link was e-mailed to %(to)s.") % {"to": to},
        )

    def _qr_view(self, request: HttpRequest, target: Target) -> HttpResponse:
        return self._show_link(request, target, "qr", _("QR code"))

    def _share_view(self, request: HttpRequest, target: Target) -> HttpResponse:
        return self._show_link(request, target, "share", _("Share the link"))

    def _show_link(
        self, request: HttpRequest, target: Target, channel: str, title: str
    ) -> HttpResponse:
        """Show the customer's URL; a POST records that it was given out, then shows it."""
        if target.link is None or not target.is_sendable:
            return self.redirect_with_warning(
                request, target, _("There is no active link. Create a new one first.")
            )
        if request.method == "POST":
            self._record_sent(request, target, target.link, channel)
            return HttpResponseRedirect(request.path)
        url = connect_url(target.customer)
        if channel == "qr":
            context: dict[str, Any] = {"qr": qr_code(url, qr_label(target.customer))}
        else:
            code = emails.invitation_language(target.customer, target.link)
            text = emails.share_text(target.customer, target.link)
            context = {
                "text": text,
                "language": language_name(code),
                "language_code": code,
                "share_url": f"https://wa.me/?text={url_quote(text, safe='')}",
            }
        return self.render_action_page(request, target, channel, title, url=url, **context)

    def _copied_view(self, request: HttpRequest, target: Target) -> HttpResponse:
        if target.link is not None and target.is_sendable:
            self._record_sent(request, target, target.link, "copy")
        return HttpResponse(status=204)

    def _record_sent(
        self, request: HttpRequest, target: Target, link: SetupLink, channel: str
    ) -> None:
        recent = link.events.filter(
            kind=TimelineEvent.Kind.SETUP_LINK_SENT,
            data__channel=channel,
            actor=request.user.pk,
            occurred_at__gt=timezone.now() - DOUBLE_CLICK,
        )
        if recent.exists() or not customers.touch_if_unchanged(target.customer):
            return
        setup_links.record_sent(link, channel, actor=current_user(request))
        entries = {
            "qr": _("Showed the QR code of the WhatsApp setup link."),
            "share": _("Shared the WhatsApp setup link."),
            "copy": _("Copied the WhatsApp setup link."),
        }
        log_change(request, target.customer, entries[channel])


def language_name(code: str) -> str:
    """Return the language's name in the current language."""
    try:
        return _(get_language_info(code)["name"])
    except KeyError:
        return code
