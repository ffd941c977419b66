"""Sending a customer's personal link: by e-mail, as a QR code, as a text to share, or copied."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from django import forms
from django.contrib import messages
from django.db import Error
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.views.generic import TemplateView

from .. import exceptions
from ..languages import html_language, language_choices
from ..log import log_event
from ..models import Customer, SetupLink, TimelineEvent
from ..onboarding import customers, emails, setup_links
from ..onboarding.connect_urls import connect_url
from ..translation import gettext as _
from ..translation import gettext_lazy
from ..utils import time_since
from .customer_actions import DOUBLE_CLICK, ConfirmView, CustomerActionView
from .history import log_change
from .qr import qr_code, qr_label


def email_entry(to: str) -> str:
    """Return the entry of the admin's history for an e-mail with the personal link."""
    return _("E-mailed the personal link for WhatsApp to %(to)s.") % {"to": to}


class EmailView(ConfirmView):
    link: SetupLink
    permissions = ["kapso_connect.send_setup_link"]
    template_name = "admin/kapso_connect/customer_actions/email.html"
    title = gettext_lazy("E-mail the personal link")

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        self.update_customer()
        may_create = self.model_admin.has_create_setup_link_permission(self.request)
        context = {**super().get_context_data(**kwargs), "can_create": may_create}
        if not self.is_sendable:
            return context
        try:
            message = emails.invitation_message(self.customer, self.link)
        except exceptions.CannotInvite as error:
            return {**context, "problem": str(error)}
        text = str(message.body)
        if not may_create:
            hidden = _("[the customer's personal link]")
            text = text.replace(connect_url(self.customer), hidden)
        return {
            **context,
            **language_context(emails.invitation_language(self.customer, self.link)),
            "to": message.to[0],
            "subject": message.subject,
            "text": text,
            "sent": sent_events(self.link, "email").select_related("actor").last(),
        }

    def post(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        if not self.is_sendable:  # the page says so
            return HttpResponseRedirect(request.path)
        return super().post(request, *args, **kwargs)

    def act(self, form: forms.Form) -> HttpResponse:
        to = self.customer.email
        if problem := send_email(self.customer, self.link, self.actor):
            self.add_message(problem, messages.ERROR)
            return HttpResponseRedirect(self.request.path)
        return self.finish(
            email_entry(to), _("The personal link was e-mailed to %(to)s.") % {"to": to}
        )


def send_email(customer: Customer, link: SetupLink, actor: Any) -> str:
    """E-mail the personal link to ``customer``. Return why it was not sent; "" if it was."""
    try:
        emails.send_invitation(customer, link, actor=actor)
    except Error:
        raise
    except Exception as error:  # Each mail backend raises its own.
        log_event("email.failed", customer_id=customer.pk, error=type(error).__name__)
        return emails.send_error_message(error)
    return ""


class SharedLinkView(CustomerActionView):
    """Base of what gives staff the customer's personal link. A POST records that it was given
    out."""

    link: SetupLink
    channel: str
    entry: Any

    def has_permission(self) -> bool:
        may_create: bool = self.model_admin.has_create_setup_link_permission(self.request)
        return may_create and super().has_permission()

    def record_sent(self) -> None:
        mine = sent_events(self.link, self.channel).filter(actor=self.actor.pk)
        last = mine.order_by("pk").last()
        if last is not None and time_since(last.occurred_at) < DOUBLE_CLICK:
            return
        if not customers.touch_if_unchanged(self.customer):
            return
        setup_links.record_sent(self.link, self.channel, actor=self.actor)
        log_change(self.request, self.customer, self.entry)


class CopiedView(SharedLinkView):
    """Records that the personal link was copied from a page that shows it."""

    permissions = ["kapso_connect.create_setup_link"]
    channel = "copy"
    entry = gettext_lazy("Copied the personal link for WhatsApp.")

    def post(self, request: HttpRequest, **kwargs: Any) -> HttpResponse:
        if self.is_sendable:
            self.record_sent()
        return HttpResponse(status=204)


class ShowLinkView(SharedLinkView, TemplateView):
    """Base of the pages that show the customer's personal link."""

    permissions = ["kapso_connect.send_setup_link", "kapso_connect.create_setup_link"]

    def find_obstacle(self) -> str:
        if self.is_sendable:
            return ""
        return _("The personal link leads to no setup link now. Create a new one first.")

    def post(self, request: HttpRequest, **kwargs: Any) -> HttpResponse:
        self.record_sent()
        return HttpResponseRedirect(request.path)


class QRCodeView(ShowLinkView):
    template_name = "admin/kapso_connect/customer_actions/qr.html"
    title = gettext_lazy("QR code")
    channel = "qr"
    entry = gettext_lazy("Showed the QR code of the personal link for WhatsApp.")

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        url = connect_url(self.customer)
        qr = qr_code(url, qr_label(self.customer))
        return super().get_context_data(url=url, qr=qr, **kwargs)


class ShareView(ShowLinkView):
    template_name = "admin/kapso_connect/customer_actions/share.html"
    title = gettext_lazy("Share the personal link")
    channel = "share"
    entry = gettext_lazy("Shared the personal link for WhatsApp.")

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        text = emails.share_text(self.customer, self.link)
        return {
            **super().get_context_data(**kwargs),
            **language_context(emails.invitation_language(self.customer, self.link)),
            "text": text,
            "share_url": f"https://wa.me/?text={quote(text, safe='')}",
        }


def sent_events(link: SetupLink, channel: str) -> Any:
    """Return the timeline events that say that ``link`` was given out by ``channel``."""
    kind = TimelineEvent.Kind.SETUP_LINK_SENT
    return link.events.filter(kind=kind, data__channel=channel).order_by("pk")


def language_context(code: str) -> dict[str, str]:
    """Return the ``lang`` attribute of a language's texts, and its name in the current language."""
    return {"language": dict(language_choices())[code], "language_code": html_language(code)}
