"""The panel on the page of a customer, or of who owns one: where they stand, and what is next."""

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

from ..kapso.error_codes import FAILURES
from ..models import AccountStatus, Connection, Customer, SetupLink, TimelineEvent
from ..onboarding import setup_links
from ..onboarding.connect_urls import connect_url
from ..onboarding.status import NOBODY, OnboardingStatus, Status, can_still_connect, get_statuses
from ..utils import is_test_number
from .base import (
    HIDDEN,
    Addresses,
    connection_state,
    copyable,
    health_state,
    localized,
    may_create_setup_links,
    phone_number,
)
from .events import signal_state
from .invite import InviteViews
from .manage import ManageViews
from .qr import qr_code, qr_label
from .status import REASONS, disconnect_reason, failure_reason, has_expired, status_badge

NEWEST = 20
TEMPLATE = "admin/kapso_connect/panel.html"
Kind = TimelineEvent.Kind

QUALITIES = {
    "GREEN": gettext_lazy("High"),
    "YELLOW": gettext_lazy("Medium"),
    "RED": gettext_lazy("Low"),
    "UNKNOWN": gettext_lazy("Not known yet"),
}

NAMES = {
    "APPROVED": gettext_lazy("approved by Meta"),
    "AVAILABLE_WITHOUT_REVIEW": gettext_lazy("needs no approval"),
    "DECLINED": gettext_lazy("declined by Meta"),
    "EXPIRED": gettext_lazy("approval expired"),
    "PENDING_REVIEW": gettext_lazy("waits for Meta's approval"),
    "NONE": gettext_lazy("not submitted to Meta"),
}

CHANNELS = {
    "email": gettext_lazy("by e-mail"),
    "copy": gettext_lazy("copied"),
    "qr": gettext_lazy("as a QR code"),
    "share": gettext_lazy("as a text to share"),
}


NEXT = {
    OnboardingStatus.WAITING: "",
    OnboardingStatus.CONNECTED: "health",
    OnboardingStatus.DISCONNECTED: "reconnect",
}
"""The one thing to do where a customer stands; elsewhere that is to invite them."""


@dataclass(frozen=True)
class Action:
    """A button: a link, or a form that posts ``ids``. ``about`` is the number it concerns."""

    label: str
    url: str
    is_next: bool
    is_post: bool = False
    ids: str = ""
    about: Connection | None = None


class StatusPanel(InviteViews, ManageViews):
    """The part of a ModelAdmin that shows a customer's standing on the change page."""

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> HttpResponse:
        response = super().render_change_form(request, context, *args, **kwargs)
        obj = context.get("original")
        is_popup = IS_POPUP_VAR in request.GET or IS_POPUP_VAR in request.POST
        if obj is None or is_popup or not isinstance(response, TemplateResponse):
            return response
        # Whatever template the site's ModelAdmin has, ours extends it.
        response.context_data = {
            **(response.context_data or {}),
            "kapso_parent": response.resolve_template(response.template_name),
            "kapso": self.panel(request, obj),
        }
        response.template_name = TEMPLATE
        return response

    def panel(self, request: HttpRequest, obj: Any) -> dict[str, Any]:
        """Return what the panel of ``obj`` shows this user."""
        customer = self.find_customer(obj)
        status = get_statuses([customer]).get(customer.pk, NOBODY) if customer else NOBODY
        actions = Actions(self, request, obj, customer, status)
        return {
            "customer": customer,
            "status": status,
            "badge": status_badge(status),
            "words": in_words(status),
            "advice": advice(status),
            "link": status.link if status.link and can_still_connect(status.link) else None,
            "has_expired": status.link is not None and has_expired(status.link),
            "address": self._address(request, customer),
            "qr": self._qr(request, customer) if actions.has_address else None,
            "note_url": self.view_url("whatsapp_copied", quote(obj.pk)),
            "qr_url": self.view_url("whatsapp_qr", quote(obj.pk)),
            "actions": actions.of_link(),
            "numbers": list(self._numbers(customer, actions)) if customer else [],
            "timeline": list(timeline(customer)) if customer else [],
            "lists": list(self._lists(request, customer)) if customer else [],
        }

    def _address(self, request: HttpRequest, customer: Customer | None) -> SafeString | str:
        url = connect_url(customer) if customer else ""
        if not url or not may_create_setup_links(request):
            return str(HIDDEN) if url else ""
        return copyable(url, _("The customer's address"))

    def _qr(self, request: HttpRequest, customer: Customer | None) -> SafeString | None:
        if customer is None or not self.may_manage(request, "qr"):
            return None
        return qr_code(connect_url(customer), qr_label(customer))

    def _numbers(self, customer: Customer, actions: Actions) -> Iterator[dict[str, Any]]:
        known = customer.connections.filter(connected_at__isnull=False)
        for connection in known.order_by("status", "-connected_at", "-pk")[:NEWEST]:
            name = NAMES.get(connection.name_status, connection.name_status)
            quality = QUALITIES.get(connection.quality_rating, connection.quality_rating)
            yield {
                "connection": connection,
                "number": phone_number(connection),
                "state": connection_state(connection),
                "why": "" if connection.is_connected else disconnect_reason(connection),
                "is_test": is_test_number(connection.display_phone_number),
                "name_status": name,
                "quality": quality,
                "health": health_state(connection) if connection.health_status else "",
                "is_restricted": connection.account_status != AccountStatus.ACTIVE,
                "actions": actions.of_number(connection),
            }

    def _lists(self, request: HttpRequest, customer: Customer) -> Iterator[tuple[str, Any]]:
        """Yield the lists of all there is of the customer, where the user may see them."""
        address = Addresses(self.admin_site, request)
        for model in (Connection, SetupLink, TimelineEvent):
            if url := address.of_list(model, customer__id__exact=str(customer.pk)):
                yield url, model._meta.verbose_name_plural


class Actions:
    """What this user may do about a customer, and which of it is the one thing to do now."""

    def __init__(
        self,
        model_admin: StatusPanel,
        request: HttpRequest,
        obj: Any,
        customer: Customer | None,
        status: Status,
    ) -> None:
        self.model_admin = model_admin
        self.request = request
        self.key = quote(obj.pk)
        self.link = status.link
        self.number = status.connection
        self.has_address = bool(
            customer and customer.connect_key and self.link and self.link.is_usable
        )
        has_email = bool(model_admin.get_customer_data(obj).get("email"))
        # A failed attempt can be repeated at the same address.
        invited = {OnboardingStatus.INVITED, OnboardingStatus.OPENED, OnboardingStatus.FAILED}
        if status.standing in invited and self.has_address:
            self.next = "email" if has_email else "share"
        else:
            self.next = NEXT.get(status.standing, "invite")
        if self.next == "reconnect" and not (self.number and self.number.display_phone_number):
            self.next = "invite"

    def of_link(self) -> list[Action]:
        """Return what can be done about the customer's link, and about getting another one."""
        found = [self._invite()]
        if self.has_address:
            found = [
                self._manage("email", _("E-mail the link")),
                self._manage("share", _("Text to share")),
                self._manage("qr", _("Print a QR code")) if find_spec("segno") else None,
                *found,
                self._manage("extend", _("Extend the link"))
                if self.link and self.link.expires_at
                else None,
            ]
        if self.link and setup_links.is_revocable(self.link):
            found.append(self._manage("revoke", _("Revoke the link")))
        return sorted((action for action in found if action), key=lambda action: not action.is_next)

    def of_number(self, number: Connection) -> list[Action]:
        """Return what can be done about ``number``, one of the customer's."""
        found = []
        if number.is_connected:
            found.append(self._manage("health", _("Check health now"), number, is_post=True))
        if number.display_phone_number:
            found.append(self._manage("reconnect", _("Reconnect"), number))
        if number.is_connected:
            found.append(self._manage("disconnect", _("Disconnect"), number))
        return [action for action in found if action]

    def _invite(self) -> Action | None:
        if not self.model_admin.has_create_setup_link_permission(self.request):
            return None
        label = _("Create a new link") if self.link else _("Create WhatsApp setup link")
        url = self.model_admin.view_url("whatsapp_invite")
        return Action(label, url, self.next == "invite", is_post=True, ids=self.key)

    def _manage(
        self, name: str, label: str, number: Connection | None = None, *, is_post: bool = False
    ) -> Action | None:
        if not self.model_admin.may_manage(self.request, name):
            return None
        args = [self.key, number.pk] if number else [self.key]
        url = self.model_admin.view_url(f"whatsapp_{name}", *args)
        is_next = name == self.next and number in {None, self.number}
        return Action(label, url, is_next, is_post=is_post, about=number)


def in_words(status: Status) -> str:
    """Return what happened so far, as a sentence."""
    link, connection = status.link, status.connection
    if status.standing == OnboardingStatus.CONNECTED and connection:
        return _("Connected since %(when)s") % {"when": localized(connection.connected_at)}
    if status.standing == OnboardingStatus.DISCONNECTED and connection:
        when = localized(connection.disconnected_at)
        if why := disconnect_reason(connection):
            return _("Disconnected since %(when)s: %(why)s") % {"when": when, "why": why}
        return _("Disconnected since %(when)s") % {"when": when}
    if status.standing == OnboardingStatus.WAITING:
        return _("The customer is done, and Kapso has not confirmed the number yet.")
    if status.standing == OnboardingStatus.FAILED and link:
        return _("Connecting failed: %(why)s") % {"why": failure_reason(link) or _("unknown")}
    if status.standing == OnboardingStatus.OPENED and link:
        when = localized(link.opened_at)
        return _("The customer opened the link on %(when)s, and did not finish.") % {"when": when}
    if status.standing == OnboardingStatus.INVITED and link:
        when = localized(link.created_at)
        return _("Invited on %(when)s; the customer has not opened the link yet.") % {"when": when}
    if link and link.status == SetupLink.Status.REVOKED:
        return _("The last link was revoked.")
    return _("Nobody has invited this customer yet.")


def advice(status: Status) -> str:
    """Return what staff should know or do next, as a sentence or two; "" where it is plain."""
    link = status.link
    if status.standing == OnboardingStatus.WAITING:
        return _("That usually takes less than a minute. There is nothing to do.")
    if status.standing == OnboardingStatus.FAILED and link:
        failure = FAILURES.get(link.last_error_code)
        told = f"{failure.cause} {failure.advice}" if failure else ""
        return _("The customer was told: “%(told)s”") % {"told": told} if told else ""
    if (
        status.standing in {OnboardingStatus.INVITED, OnboardingStatus.OPENED}
        and link
        and has_expired(link)
    ):
        return _(
            "The link has expired. A new one is made when the customer opens the address below."
        )
    return ""


def timeline(customer: Customer) -> Iterator[dict[str, Any]]:
    events = customer.events.select_related("connection", "actor")
    for event in events.order_by("-occurred_at", "-pk")[:NEWEST]:
        yield {
            "when": event.occurred_at,
            "what": event.get_kind_display(),
            "details": details(event),
            "number": phone_number(event.connection) if event.connection else "",
            "who": event.actor or event.get_source_display(),
            # That its receivers have heard of it goes without saying.
            "signal": "" if event.delivered_at else signal_state(event),
        }


def details(event: TimelineEvent) -> list[str]:
    """Return what a timeline tells beside the kind of an event."""
    data = event.data if isinstance(event.data, dict) else {}
    reason, code, channel = (str(data.get(k) or "") for k in ("reason", "error_code", "channel"))
    texts: dict[str, list[Any]] = {
        Kind.SETUP_LINK_SENT: [CHANNELS.get(channel, channel), data.get("to")],
        Kind.SETUP_LINK_REVOKED: [_("a new one took its place") if reason else ""],
        Kind.SETUP_FAILED: [FAILURES[code].title if code in FAILURES else code],
        Kind.DISCONNECTED: [REASONS.get(reason, reason)],
        Kind.HEALTH_CHECKED: [data.get("status"), data.get("error")],
        Kind.ACCOUNT_UPDATED: [data.get("event")],
    }
    return [str(text)[:200] for text in texts.get(event.kind, []) if text]
