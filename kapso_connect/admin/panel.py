"""The WhatsApp panel on the change page of a customer, or of an object that owns one."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

from django.contrib.admin.options import IS_POPUP_VAR
from django.contrib.admin.utils import quote
from django.db.models import Q
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import URLPattern
from django.utils.safestring import SafeString
from django.views.decorators.debug import sensitive_variables

from ..kapso.error_codes import find_error
from ..models import Attention, Connection, Customer, SetupLink, TimelineEvent
from ..onboarding.connect_urls import connect_url
from ..onboarding.emails import REMINDER
from ..onboarding.health import is_held
from ..onboarding.renewal import leads_to_setup
from ..onboarding.status import (
    NOT_INVITED,
    CustomerStatus,
    OnboardingStatus,
    get_statuses,
)
from ..translation import gettext as _
from ..translation import gettext_lazy
from ..utils import time_since
from .base import list_url
from .display import (
    HIDDEN_URL,
    badges,
    connection_badge,
    copy_field,
    format_datetime,
    funding_badge,
    health_badge,
    hold_text,
    phone_number_html,
    plain_number_html,
    problem_texts,
)
from .invite import InviteMixin
from .manage_link import ExtendView, RevokeView
from .manage_number import ConfirmNumberView, DisconnectView, HealthView, ReconnectView
from .qr import qr_code, qr_label
from .restrictions import BUSINESS_SUPPORT_URL, account_texts
from .send_link import CopiedView, EmailView, QRCodeView, ShareView
from .status import attention_advice, disconnect_reason, failure_reason, status_badges
from .timeline_events import event_details, signal_badge

PANEL_ROWS = 20
"""How many of the customer's numbers and events the panel shows, the newest first."""

USUAL_CONFIRMATION = timedelta(minutes=2)
"""How long Kapso usually takes, at most, to confirm a number that a customer came back with."""

SENT_LATELY = timedelta(days=3)
"""How long staff wait for what a customer does after the personal link was sent."""

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
            self.view_path(f"{one}confirm/", ConfirmNumberView, "whatsapp_confirm"),
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

    @sensitive_variables()  # the customer's personal link is among them
    def panel(self, request: HttpRequest, obj: Any) -> dict[str, Any]:
        """Return the template context of the panel of ``obj`` for this user."""
        customer = self.find_customer(obj)
        status = NOT_INVITED
        if customer:
            found = get_statuses([customer], with_attention=True)
            status = found.get(customer.pk, NOT_INVITED)
        link, connection = status.link, status.connection
        url = connect_url(customer) if customer else ""
        is_sendable = customer is not None and leads_to_setup(customer, link)
        has_email = bool(self.read_customer_data(obj).get("email"))
        waiting_since = find_waiting_since(customer) if customer else None
        waits_long = waiting_since is not None and time_since(waiting_since) >= USUAL_CONFIRMATION
        sent = find_last_sent(customer, status) if customer else None
        next_action, next_number = find_next_action(
            status,
            is_sendable=is_sendable,
            has_email=has_email,
            waits_long=waits_long,
            was_sent_lately=sent is not None and time_since(sent.occurred_at) < SENT_LATELY,
        )
        if status.is_erased:
            next_action = ""
        error = find_error(link.last_error_code) if link else None
        return {
            "key": str(quote(obj.pk)),
            "status": status,
            "badge": badges(status_badges(status)),
            "attention": list(panel_attention(status)),
            "disconnect_reason": disconnect_reason(connection) if connection else "",
            "failure_reason": failure_reason(link.last_error_code) if link else "",
            "shown_error": f"{error.cause} {error.advice}" if error else "",
            "link": link,
            "waiting_since": waiting_since,
            "waits_long": waits_long,
            "sent": sent_text(sent) if sent else "",
            "can_create": not status.is_erased and self.has_create_setup_link_permission(request),
            "is_sendable": is_sendable,
            "customer_url": self._customer_url(request, url),
            "customer_url_help": personal_link_help(status, is_sendable=is_sendable),
            "qr": self._qr(request, customer) if customer and is_sendable else None,
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


def find_waiting_since(customer: Customer) -> datetime | None:
    """Return since when Kapso has not confirmed a number that the customer came back with; None if
    there is none."""
    if customer.status != OnboardingStatus.CONFIRMING:
        return None
    unconfirmed = customer.setup_links.unconfirmed().order_by("unconfirmed_since")
    return unconfirmed.values_list("unconfirmed_since", flat=True).first()


def find_last_sent(customer: Customer, status: CustomerStatus) -> TimelineEvent | None:
    """Return the last event that says that the customer was sent the personal link by e-mail or as
    a text, since a number was connected; None if there is none."""
    if status.status in {OnboardingStatus.CONFIRMING, OnboardingStatus.CONNECTED}:
        return None
    by_channel = Q(data__channel="email") | Q(data__channel="share")
    sent = Q(kind=TimelineEvent.Kind.SETUP_LINK_SENT) & by_channel
    sent |= Q(kind=TimelineEvent.Kind.EMAIL_SENT, data__message="failed")
    events = customer.events.filter(sent)
    if status.connection and status.connection.disconnected_at:
        events = events.filter(occurred_at__gte=status.connection.disconnected_at)
    return events.order_by("-occurred_at", "-pk").first()


def sent_text(event: TimelineEvent) -> str:
    """Return when and how the customer was sent the personal link, as ``event`` says."""
    if event.data.get("channel") == "share":
        text = _("Shared as a text on %(when)s.")
    elif not event.data.get("to"):  # the address was erased
        text = _("E-mailed on %(when)s.")
    elif event.data.get("message") == REMINDER:
        text = _("Reminded on %(when)s by e-mail to %(to)s.")
    elif event.data.get("message"):
        text = _("E-mailed about the failed attempt on %(when)s to %(to)s.")
    else:
        text = _("E-mailed on %(when)s to %(to)s.")
    return text % {"when": format_datetime(event.occurred_at), "to": event.data.get("to", "")}


def personal_link_help(status: CustomerStatus, *, is_sendable: bool) -> str:
    """Return what the customer's personal link does when the customer opens it."""
    link, number = status.link, status.connection
    if link is None:
        return ""
    if link.status == SetupLink.Status.REVOKED:
        return _(
            "The setup link was revoked in Kapso, so the personal link may not work. Create a new "
            "setup link."
        )
    if not is_sendable:
        return _("It shows the customer that the number is connected.")
    if status.status == OnboardingStatus.CONFIRMING:
        return _("It asks the customer to wait, and after a minute offers to start again.")
    if link.is_usable:
        if link.expires_at is None:
            return ""
        return _(
            "The setup link behind it works until %(when)s; it is then renewed automatically."
        ) % {"when": format_datetime(link.expires_at)}
    if link.current_status == SetupLink.Status.EXPIRED:
        return _(
            "The setup link has expired. A new one is created when the customer opens the personal "
            "link."
        )
    if link.is_revocable:
        return _(
            "The setup link has been used up. A new one is created when the customer opens the "
            "personal link."
        )
    if number and number.is_connected:
        return _("It lets the customer connect another number in place of this one.")
    if number and number.is_paused and not number.is_paused_for_long:
        return _(
            "It says that the number is paused. If it is not back after an hour, the customer can "
            "connect it again with the personal link."
        )
    return _(
        "It lets the customer connect the number again: a new setup link is created when the "
        "customer opens the personal link."
    )


def find_next_action(
    status: CustomerStatus,
    *,
    is_sendable: bool,
    has_email: bool,
    waits_long: bool = False,
    was_sent_lately: bool = False,
) -> tuple[str, Connection | None]:
    """Return the name of the action to highlight, "" for none, and the number that it is on, if it
    is on one."""
    number = status.connection
    match status.status:
        case OnboardingStatus.CONFIRMING:
            return ("confirm" if waits_long else ""), None
        case OnboardingStatus.PAUSED if number and not number.is_paused_for_long:
            return "", None
        case OnboardingStatus.CONNECTED:
            return find_next_check(status)
        case _ if is_sendable and was_sent_lately:
            return "", None
        case OnboardingStatus.DISCONNECTED | OnboardingStatus.PAUSED if (
            number and number.display_phone_number
        ):
            return "reconnect", number
        # A customer whose attempt failed can try again with the same personal link.
        case _ if is_sendable:
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
