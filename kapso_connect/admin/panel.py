"""The WhatsApp panel on the change page of a customer, or of an object that owns one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from django.contrib.admin.options import IS_POPUP_VAR
from django.contrib.admin.utils import quote
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import URLPattern
from django.utils.safestring import SafeString
from django.views.decorators.debug import sensitive_variables

from ..kapso.error_codes import SETUP_ERRORS
from ..models import Attention, Connection, Customer, SetupLink, TimelineEvent
from ..onboarding.connect_urls import connect_url
from ..onboarding.health import is_held
from ..onboarding.status import (
    NOT_INVITED,
    CustomerStatus,
    OnboardingStatus,
    can_still_connect,
    get_statuses,
)
from ..translation import gettext as _
from ..translation import gettext_lazy
from .base import list_url
from .display import (
    HIDDEN_URL,
    badges,
    connection_badge,
    copy_field,
    funding_badge,
    health_badge,
    hold_text,
    phone_number_html,
    plain_number_html,
    problem_texts,
)
from .invite import InviteMixin
from .manage_link import ExtendView, RevokeView
from .manage_number import DisconnectView, HealthView, ReconnectView
from .qr import qr_code, qr_label
from .restrictions import BUSINESS_SUPPORT_URL, account_texts
from .send_link import CopiedView, EmailView, QRCodeView, ShareView
from .status import attention_advice, disconnect_reason, failure_reason, status_badges
from .timeline_events import event_details, signal_badge

PANEL_ROWS = 20
"""How many of the customer's numbers and events the panel shows, the newest first."""

PANEL_TEMPLATE = "admin/kapso_connect/panel.html"
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


class StatusPanel(InviteMixin):
    """Adds the panel to the change page of a ModelAdmin, and the pages that its buttons lead to."""

    def get_urls(self) -> list[URLPattern]:
        one, number = "whatsapp/<str:object_id>/", "<int:connection>/"
        return [
            self.view_path(f"{one}email/", EmailView, "whatsapp_email"),
            self.view_path(f"{one}qr/", QRCodeView, "whatsapp_qr"),
            self.view_path(f"{one}share/", ShareView, "whatsapp_share"),
            self.view_path(f"{one}copied/", CopiedView, "whatsapp_copied"),
            self.view_path(f"{one}revoke/", RevokeView, "whatsapp_revoke"),
            self.view_path(f"{one}extend/", ExtendView, "whatsapp_extend"),
            self.view_path(f"{one}reconnect/{number}", ReconnectView, "whatsapp_reconnect"),
            self.view_path(f"{one}health/{number}", HealthView, "whatsapp_health"),
            self.view_path(f"{one}disconnect/{number}", DisconnectView, "whatsapp_disconnect"),
            *super().get_urls(),
        ]

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

    @sensitive_variables()  # the customer's URL is among them
    def panel(self, request: HttpRequest, obj: Any) -> dict[str, Any]:
        """Return the template context of the panel of ``obj`` for this user."""
        customer = self.find_customer(obj)
        status = get_statuses([customer]).get(customer.pk, NOT_INVITED) if customer else NOT_INVITED
        link, connection = status.link, status.connection
        url = connect_url(customer) if customer else ""
        has_url = bool(customer and customer.connect_key and link and link.is_usable)
        has_email = bool(self.read_customer_data(obj).get("email"))
        next_action, next_number = find_next_action(status, has_url, has_email)
        if status.is_erased:
            next_action = ""
        error = SETUP_ERRORS.get(link.last_error_code) if link else None
        return {
            "key": str(quote(obj.pk)),
            "status": status,
            "badge": badges(status_badges(status)),
            "attention": list(panel_attention(status)),
            "disconnect_reason": disconnect_reason(connection) if connection else "",
            "failure_reason": failure_reason(link) if link else "",
            "shown_error": f"{error.cause} {error.advice}" if error else "",
            "link": link,
            "can_still_connect": link is not None
            and can_still_connect(link.status, link.setup_status),
            "can_create": not status.is_erased and self.has_create_setup_link_permission(request),
            "has_url": has_url,
            "customer_url": self._customer_url(request, url),
            "qr": self._qr(request, customer) if customer and has_url else None,
            "next_action": next_action,
            "next_number": next_number,
            "numbers": list(panel_numbers(customer)) if customer else [],
            "timeline": list(panel_timeline(customer)) if customer else [],
            "lists": list(self._lists(request, customer)) if customer else [],
        }

    def _customer_url(self, request: HttpRequest, url: str) -> SafeString | str:
        if not url or not self.has_create_setup_link_permission(request):
            return str(HIDDEN_URL) if url else ""
        return copy_field(url, _("The customer's personal link"))

    def _qr(self, request: HttpRequest, customer: Customer) -> SafeString | None:
        may_create = self.has_create_setup_link_permission(request)
        if not (may_create and request.user.has_perms(QRCodeView.permissions)):
            return None
        return qr_code(connect_url(customer), qr_label(customer))

    def _lists(self, request: HttpRequest, customer: Customer) -> Iterator[tuple[str, Any]]:
        """Yield URL and title of the lists of the customer's rows that the user may view."""
        for model in (Connection, SetupLink, TimelineEvent):
            query = {"customer__id__exact": str(customer.pk)}
            if url := list_url(self.admin_site, request, model, **query):
                yield url, model._meta.verbose_name_plural


def find_next_action(
    status: CustomerStatus, has_url: bool, has_email: bool
) -> tuple[str, Connection | None]:
    """Return the name of the action to highlight, "" for none, and the number that it is on, if it
    is on one."""
    number = status.connection
    match status.status:
        case OnboardingStatus.CONFIRMING:
            return "", None
        case OnboardingStatus.PAUSED if number and not number.is_paused_for_long:
            return "", None
        case OnboardingStatus.CONNECTED:
            return find_next_check(status)
        case OnboardingStatus.DISCONNECTED | OnboardingStatus.PAUSED if (
            number and number.display_phone_number
        ):
            return "reconnect", number
        # A customer whose attempt failed can try again with the same link.
        case OnboardingStatus.INVITED | OnboardingStatus.OPENED | OnboardingStatus.FAILED if (
            has_url
        ):
            return "email" if has_email else "share", None
    return "invite", None


def find_next_check(status: CustomerStatus) -> tuple[str, Connection | None]:
    """Do what ``find_next_action`` does, for a customer who is connected."""
    for why, number in status.attention:
        match why:
            case Attention.TEST_NUMBER:
                return "invite", None
            case Attention.DISCONNECTED if number.display_phone_number:
                return "reconnect", number
            case Attention.HEALTH | Attention.FUNDING if not is_held(number):
                return "health", number
    # The owner of an account or of a name acts at Meta.
    shown = status.connection
    if status.attention or shown is None or is_held(shown):
        return "", None
    return "health", shown


def panel_attention(status: CustomerStatus) -> Iterator[dict[str, Any]]:
    """Yield what to do about the numbers of a connected customer that need attention."""
    if status.status != OnboardingStatus.CONNECTED:
        return
    for why, number in status.attention[:PANEL_ROWS]:
        yield {
            "connection": number,
            "number": plain_number_html(number),
            "advice": attention_advice(why, number),
            "url": BUSINESS_SUPPORT_URL if why == Attention.RESTRICTED else "",
        }


def panel_numbers(customer: Customer) -> Iterator[dict[str, Any]]:
    """Yield the customer's numbers as the panel shows them: those that are connected first."""
    numbers = customer.connections.filter(connected_at__isnull=False)
    numbers = numbers.select_related("setup_link").order_by("status", "-connected_at", "-pk")
    shown = list(numbers[:PANEL_ROWS])
    account = account_texts(shown)
    for connection in shown:
        name, quality = connection.name_status, connection.quality_rating
        yield {
            "connection": connection,
            "number": phone_number_html(connection),
            "state": connection_badge(connection),
            "reason": disconnect_reason(connection),
            "account": account[connection.pk],
            "name_status": NAME_STATUSES.get(name, name),
            "quality": QUALITY_RATINGS.get(quality, quality),
            "health": health_badge(connection),
            "problems": problem_texts(connection),
            "hold": hold_text(connection),
            "funding": funding_badge(connection),
        }


def panel_timeline(customer: Customer) -> Iterator[dict[str, Any]]:
    """Yield the customer's latest timeline events as the panel shows them, newest first."""
    events = customer.events.select_related("connection", "actor")
    for event in events.order_by("-occurred_at", "-pk")[:PANEL_ROWS]:
        yield {
            "event": event,
            "details": event_details(event),
            "number": phone_number_html(event.connection) if event.connection else "",
            "signal": signal_badge(event),
        }
