"""The WhatsApp panel on the change page of a customer, or of an object that owns one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from django.contrib.admin.options import IS_POPUP_VAR
from django.contrib.admin.utils import quote
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from ..kapso.error_codes import SETUP_ERRORS
from ..models import AccountStatus, Connection, Customer, SetupLink, TimelineEvent
from ..onboarding.connect_urls import connect_url
from ..onboarding.status import (
    NOT_INVITED,
    CustomerStatus,
    OnboardingStatus,
    can_still_connect,
    get_statuses,
)
from ..phone_numbers import is_test_number
from .base import AdminUrls
from .display import (
    HIDDEN_URL,
    connection_badge,
    copy_field,
    format_datetime,
    health_badge,
    phone_number_html,
)
from .invite import InviteViews
from .manage_link import ManageLinkViews
from .manage_number import ManageNumberViews
from .permissions import can_create_setup_links
from .qr import qr_code, qr_label
from .send_link import SendLinkViews
from .status import DISCONNECT_REASONS, disconnect_reason, failure_reason, has_expired, status_badge
from .timeline_events import signal_badge

PANEL_ROWS = 20
"""How many of the customer's numbers and events the panel shows, the newest first."""

PANEL_TEMPLATE = "admin/kapso_connect/panel.html"
Kind = TimelineEvent.Kind

QUALITY_RATINGS = {
    "GREEN": gettext_lazy("High"),
    "YELLOW": gettext_lazy("Medium"),
    "RED": gettext_lazy("Low"),
    "UNKNOWN": gettext_lazy("Not known yet"),
}

NAME_STATUSES = {
    "APPROVED": gettext_lazy("approved by Meta"),
    "AVAILABLE_WITHOUT_REVIEW": gettext_lazy("needs no approval"),
    "DECLINED": gettext_lazy("declined by Meta"),
    "EXPIRED": gettext_lazy("approval expired"),
    "PENDING_REVIEW": gettext_lazy("waiting for Meta's approval"),
    "NONE": gettext_lazy("not submitted to Meta"),
}

SEND_CHANNELS = {
    "email": gettext_lazy("by e-mail"),
    "copy": gettext_lazy("copied"),
    "qr": gettext_lazy("as a QR code"),
    "share": gettext_lazy("as a text to share"),
}


NEXT_ACTIONS = {
    OnboardingStatus.CONFIRMING: "",
    OnboardingStatus.CONNECTED: "health",
    OnboardingStatus.DISCONNECTED: "reconnect",
}
"""The action to highlight for a status; for all others, it is to invite the customer."""


@dataclass(frozen=True)
class Action:
    """A button: a link, or a form that posts ``ids``. ``about`` is the number it acts on."""

    label: str
    url: str
    is_next: bool
    is_post: bool = False
    ids: str = ""
    about: Connection | None = None


class StatusPanel(InviteViews, SendLinkViews, ManageLinkViews, ManageNumberViews):
    """Adds the panel to the change page of a ModelAdmin."""

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> HttpResponse:
        response = super().render_change_form(request, context, *args, **kwargs)
        obj = context.get("original")
        is_popup = IS_POPUP_VAR in request.GET or IS_POPUP_VAR in request.POST
        if obj is None or is_popup or not isinstance(response, TemplateResponse):
            return response
        # The panel's template extends the one that the site's ModelAdmin has.
        response.context_data = {
            **(response.context_data or {}),
            "kapso_parent": response.resolve_template(response.template_name),
            "kapso": self.panel(request, obj),
        }
        response.template_name = PANEL_TEMPLATE
        return response

    def panel(self, request: HttpRequest, obj: Any) -> dict[str, Any]:
        """Return the template context of the panel of ``obj`` for this user."""
        customer = self.find_customer(obj)
        status = get_statuses([customer]).get(customer.pk, NOT_INVITED) if customer else NOT_INVITED
        actions = Actions(self, request, obj, customer, status)
        link = status.link
        is_open = link is not None and can_still_connect(link.status, link.setup_status)
        return {
            "customer": customer,
            "status": status,
            "badge": status_badge(status),
            "text": status_text(status),
            "advice": advice(status),
            "link": link if is_open else None,
            "has_expired": status.link is not None and has_expired(status.link),
            "customer_url": self._customer_url(request, customer),
            "qr": self._qr(request, customer) if actions.has_url else None,
            "copied_url": self.view_url("whatsapp_copied", quote(obj.pk)),
            "qr_url": self.view_url("whatsapp_qr", quote(obj.pk)),
            "actions": actions.for_link(),
            "numbers": list(self._numbers(customer, actions)) if customer else [],
            "timeline": list(timeline(customer)) if customer else [],
            "lists": list(self._lists(request, customer)) if customer else [],
        }

    def _customer_url(self, request: HttpRequest, customer: Customer | None) -> SafeString | str:
        url = connect_url(customer) if customer else ""
        if not url or not can_create_setup_links(request):
            return str(HIDDEN_URL) if url else ""
        return copy_field(url, _("The customer's personal link"))

    def _qr(self, request: HttpRequest, customer: Customer | None) -> SafeString | None:
        if customer is None or not self.has_action_permission(request, "qr"):
            return None
        return qr_code(connect_url(customer), qr_label(customer))

    def _numbers(self, customer: Customer, actions: Actions) -> Iterator[dict[str, Any]]:
        numbers = customer.connections.filter(connected_at__isnull=False)
        for connection in numbers.order_by("status", "-connected_at", "-pk")[:PANEL_ROWS]:
            name = NAME_STATUSES.get(connection.name_status, connection.name_status)
            quality = QUALITY_RATINGS.get(connection.quality_rating, connection.quality_rating)
            yield {
                "connection": connection,
                "number": phone_number_html(connection),
                "state": connection_badge(connection),
                "reason": "" if connection.is_connected else disconnect_reason(connection),
                "is_test": is_test_number(connection.display_phone_number),
                "name_status": name,
                "quality": quality,
                "health": health_badge(connection) if connection.health_status else "",
                "is_restricted": connection.account_status != AccountStatus.ACTIVE,
                "actions": actions.for_number(connection),
            }

    def _lists(self, request: HttpRequest, customer: Customer) -> Iterator[tuple[str, Any]]:
        """Yield URL and title of the lists of the customer's rows that the user may view."""
        urls = AdminUrls(self.admin_site, request)
        for model in (Connection, SetupLink, TimelineEvent):
            if url := urls.list_url(model, customer__id__exact=str(customer.pk)):
                yield url, model._meta.verbose_name_plural


class Actions:
    """The buttons that this user may press for a customer; one of them is highlighted."""

    def __init__(
        self,
        model_admin: StatusPanel,
        request: HttpRequest,
        obj: Any,
        customer: Customer | None,
        status: CustomerStatus,
    ) -> None:
        self.model_admin = model_admin
        self.request = request
        self.key = quote(obj.pk)
        self.link = status.link
        self.number = status.connection
        self.has_url = bool(customer and customer.connect_key and self.link and self.link.is_usable)
        has_email = bool(model_admin.get_customer_data(obj).get("email"))
        # A customer whose attempt failed can try again with the same link.
        can_send = {OnboardingStatus.INVITED, OnboardingStatus.OPENED, OnboardingStatus.FAILED}
        if status.status in can_send and self.has_url:
            self.next = "email" if has_email else "share"
        else:
            self.next = NEXT_ACTIONS.get(status.status, "invite")
        if self.next == "reconnect" and not (self.number and self.number.display_phone_number):
            self.next = "invite"

    def for_link(self) -> list[Action]:
        """Return the actions on the customer's link, and the one that creates another."""
        actions = [self._invite_action()]
        if self.has_url:
            actions = [
                self._action("email", _("E-mail the link")),
                self._action("share", _("Text to share")),
                self._action("qr", _("Print a QR code")) if find_spec("segno") else None,
                *actions,
                self._action("extend", _("Extend the link"))
                if self.link and self.link.expires_at
                else None,
            ]
        if self.link and self.link.is_revocable:
            actions.append(self._action("revoke", _("Revoke the link")))
        return sorted(
            (action for action in actions if action), key=lambda action: not action.is_next
        )

    def for_number(self, number: Connection) -> list[Action]:
        """Return the actions on ``number``, one of the customer's."""
        actions = []
        if number.is_connected:
            actions.append(self._action("health", _("Check health now"), number, is_post=True))
        if number.display_phone_number:
            actions.append(self._action("reconnect", _("Reconnect"), number))
        if number.is_connected:
            actions.append(self._action("disconnect", _("Disconnect"), number))
        return [action for action in actions if action]

    def _invite_action(self) -> Action | None:
        if not self.model_admin.has_create_setup_link_permission(self.request):
            return None
        label = _("Create a new link") if self.link else _("Create WhatsApp setup link")
        url = self.model_admin.view_url("whatsapp_invite")
        return Action(label, url, self.next == "invite", is_post=True, ids=self.key)

    def _action(
        self, name: str, label: str, number: Connection | None = None, *, is_post: bool = False
    ) -> Action | None:
        if not self.model_admin.has_action_permission(self.request, name):
            return None
        args = [self.key, number.pk] if number else [self.key]
        url = self.model_admin.view_url(f"whatsapp_{name}", *args)
        is_next = name == self.next and number in {None, self.number}
        return Action(label, url, is_next, is_post=is_post, about=number)


def status_text(status: CustomerStatus) -> str:
    """Return a sentence that describes the status."""
    link, connection = status.link, status.connection
    if status.status == OnboardingStatus.CONNECTED and connection:
        return _("Connected since %(when)s") % {"when": format_datetime(connection.connected_at)}
    if status.status == OnboardingStatus.DISCONNECTED and connection:
        when = format_datetime(connection.disconnected_at)
        if reason := disconnect_reason(connection):
            return _("Disconnected since %(when)s: %(why)s") % {"when": when, "why": reason}
        return _("Disconnected since %(when)s") % {"when": when}
    if status.status == OnboardingStatus.CONFIRMING:
        return _("The customer has finished. Kapso has not confirmed the number yet.")
    if status.status == OnboardingStatus.FAILED and link:
        return _("Connecting failed: %(why)s") % {"why": failure_reason(link) or _("unknown")}
    if status.status == OnboardingStatus.OPENED and link:
        when = format_datetime(link.opened_at)
        return _("The customer opened the link on %(when)s, but has not finished yet.") % {
            "when": when
        }
    if status.status == OnboardingStatus.INVITED and link:
        when = format_datetime(link.created_at)
        return _("Invited on %(when)s; the customer has not opened the link yet.") % {"when": when}
    if link and link.status == SetupLink.Status.REVOKED:
        return _("The last link was revoked.")
    return _("This customer has not been invited yet.")


def advice(status: CustomerStatus) -> str:
    """Return what staff should know or do next; "" if there is nothing to add."""
    link = status.link
    if status.status == OnboardingStatus.CONFIRMING:
        return _("That usually takes less than a minute. You do not need to do anything.")
    if status.status == OnboardingStatus.FAILED and link:
        failure = SETUP_ERRORS.get(link.last_error_code)
        shown = f"{failure.cause} {failure.advice}" if failure else ""
        return _("The customer saw: “%(text)s”") % {"text": shown} if shown else ""
    if (
        status.status in {OnboardingStatus.INVITED, OnboardingStatus.OPENED}
        and link
        and has_expired(link)
    ):
        return _(
            "The setup link has expired. A new one is created when the customer opens their "
            "personal link."
        )
    return ""


def timeline(customer: Customer) -> Iterator[dict[str, Any]]:
    """Yield the customer's latest timeline events as the panel shows them, newest first."""
    events = customer.events.select_related("connection", "actor")
    for event in events.order_by("-occurred_at", "-pk")[:PANEL_ROWS]:
        yield {
            "when": event.occurred_at,
            "what": event.get_kind_display(),
            "details": details(event),
            "number": phone_number_html(event.connection) if event.connection else "",
            "who": event.actor or event.get_source_display(),
            # Shown only until it is delivered.
            "signal": "" if event.delivered_at else signal_badge(event),
        }


def details(event: TimelineEvent) -> list[str]:
    """Return the texts shown after the kind of an event."""
    data = event.data if isinstance(event.data, dict) else {}
    reason, code, channel = (str(data.get(k) or "") for k in ("reason", "error_code", "channel"))
    texts: dict[str, list[Any]] = {
        Kind.SETUP_LINK_SENT: [SEND_CHANNELS.get(channel, channel), data.get("to")],
        Kind.SETUP_LINK_REVOKED: [_("replaced by a new one") if reason else ""],
        Kind.SETUP_FAILED: [SETUP_ERRORS[code].title if code in SETUP_ERRORS else code],
        Kind.DISCONNECTED: [DISCONNECT_REASONS.get(reason, reason)],
        Kind.HEALTH_CHECKED: [data.get("status"), data.get("error")],
        Kind.ACCOUNT_UPDATED: [data.get("event")],
    }
    return [str(text)[:200] for text in texts.get(event.kind, []) if text]
