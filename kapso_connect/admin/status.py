"""A customer's onboarding status as staff see it: badge, column, filter."""

from __future__ import annotations

from itertools import starmap
from typing import Any

from django.contrib import admin
from django.db.models import Exists, OuterRef, QuerySet
from django.http import HttpRequest
from django.utils.html import format_html
from django.utils.safestring import SafeString

from ..kapso.error_codes import SETUP_ERRORS, find_error
from ..models import (
    OFFBOARDED,
    Attention,
    Connection,
    ConnectionQuerySet,
    Customer,
    CustomerQuerySet,
    Funding,
    Health,
    OnboardingStatus,
    SetupLink,
)
from ..onboarding.status import CustomerStatus
from ..owners import OwnerKey, owner_type
from ..translation import gettext as _
from ..translation import gettext_lazy, ngettext
from .display import (
    FUNDING_ADVICE,
    attention_badge,
    badge,
    badges,
    phone_number_html,
    plain_number_html,
)

STATUS_BADGES = {
    OnboardingStatus.NOT_INVITED: "neutral",
    OnboardingStatus.INVITED: "busy",
    OnboardingStatus.OPENED: "busy",
    OnboardingStatus.CONFIRMING: "busy",
    OnboardingStatus.FAILED: "bad",
    OnboardingStatus.CONNECTED: "good",
    OnboardingStatus.PAUSED: "busy",
    OnboardingStatus.DISCONNECTED: "bad",
}

DISCONNECT_REASONS = {
    "deleted": gettext_lazy("removed from Kapso"),
    "migrated": gettext_lazy("moved to another provider"),
    "moved": gettext_lazy("connected by another customer"),
    "no_customer": gettext_lazy("no longer this customer's at Kapso"),
    "not_found": gettext_lazy("no longer known to Kapso"),
    OFFBOARDED: gettext_lazy("paused by Meta, for example after a change of phone"),
    "partner_app_uninstalled": gettext_lazy("the customer removed Kapso's app"),
    "partner_removed": gettext_lazy("the customer withdrew Kapso's access"),
    "staff": gettext_lazy("by a member of staff"),
}
"""Why a number was disconnected. Other reasons that Kapso gives are shown as they are."""


def failure_reason(code: str) -> str:
    """Return why connecting failed, in words; an unknown code is named. "" is no code."""
    if not code:
        return ""
    title = str(find_error(code).title)
    return title if code in SETUP_ERRORS else f"{title} ({code})"


def disconnect_reason(connection: Connection) -> str:
    return str(DISCONNECT_REASONS.get(connection.disconnect_reason, connection.disconnect_reason))


def pause_advice(connection: Connection) -> str:
    """Return what to do about a number that Meta has paused."""
    if connection.is_paused_for_long:
        return _("Not back after an hour: let the customer reconnect it")
    return _("Usually back within minutes")


def attention_advice(why: Attention, connection: Connection) -> str:
    """Return what to do about a number that needs attention."""
    match why:
        case Attention.TEST_NUMBER:
            return _(
                "Create a new setup link, and ask the customer to connect their own number with it."
            )
        case Attention.RESTRICTED:
            return _(
                "Only the account's owner can see why, and may ask Meta for a review, in Meta's "
                "Business Support Home."
            )
        case Attention.DISCONNECTED:
            return _("Let the customer reconnect it.")
        case Attention.NAME if connection.name_status == "PENDING_REVIEW":
            return _("Meta is reviewing the display name. You do not need to do anything.")
        case Attention.NAME:
            return _(
                "Meta has not approved the display name. The account's owner can change it in "
                "Meta's WhatsApp Manager."
            )
        case Attention.HEALTH if connection.health_status == Health.ERROR:
            return _("Kapso could not check the number. Check its health again.")
        case Attention.HEALTH:
            return _(
                "The problems that the last health check found are listed with the number. Check "
                "its health again when they are solved."
            )
    return str(FUNDING_ADVICE.get(Funding(connection.funding_status), ""))


def status_badges(status: CustomerStatus) -> list[SafeString]:
    """Return the status, and why a customer who is connected needs attention."""
    if status.is_erased and status.status != OnboardingStatus.CONNECTED:
        return [badge("neutral", _("Erased"))]
    first = badge(STATUS_BADGES[status.status], status.status.label)
    if status.status != OnboardingStatus.CONNECTED:
        return [first]
    # Several numbers may have the same trouble.
    return list(dict.fromkeys([first, *starmap(attention_badge, status.attention)]))


def status_summary(status: CustomerStatus) -> SafeString:
    """Return the status and what it is about, for a cell of the list."""
    connection, link = status.connection, status.link
    details: list[object] = []
    if status.is_erased and status.status != OnboardingStatus.CONNECTED:
        return badges(status_badges(status))
    if (
        status.status in {OnboardingStatus.INVITED, OnboardingStatus.OPENED}
        and link
        and link.current_status == SetupLink.Status.EXPIRED
    ):
        details.append(_("the setup link has expired"))
    elif status.status == OnboardingStatus.FAILED and link:
        details.append(failure_reason(link.last_error_code))
    elif status.status == OnboardingStatus.CONNECTED and connection:
        details.append(plain_number_html(connection))
        if status.more_connections:
            details.append(
                ngettext("+%(n)s more", "+%(n)s more", status.more_connections)
                % {"n": status.more_connections}
            )
    elif status.status == OnboardingStatus.PAUSED and connection:
        details += [phone_number_html(connection), pause_advice(connection)]
    elif status.status == OnboardingStatus.DISCONNECTED and connection:
        details += [phone_number_html(connection), disconnect_reason(connection)]
    cells = (
        format_html('<span class="kapso-status-detail">{}</span>', text) for text in details if text
    )
    return badges([*status_badges(status), *cells])


class StatusFilter(admin.SimpleListFilter):
    title = gettext_lazy("WhatsApp")
    parameter_name = "whatsapp_status"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        return list(OnboardingStatus.choices)

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        value = self.value()
        return (
            with_status(queryset, OnboardingStatus(value))
            if value in OnboardingStatus.values
            else queryset
        )


class AttentionFilter(admin.SimpleListFilter):
    """The numbers that need attention, or the customers, or the objects that own customers, who
    have one."""

    title = gettext_lazy("what needs attention")
    parameter_name = "attention"
    ANY = "any"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        return [(self.ANY, _("For any reason")), *Attention.choices]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        why = self.value()
        if why == self.ANY:
            return needing_attention(queryset, None)
        return needing_attention(queryset, why) if why in Attention.values else queryset


def needing_attention(queryset: QuerySet[Any], why: str | None) -> QuerySet[Any]:
    """Filter ``queryset``, of numbers, of customers or of objects that own one: see
    ``CustomerQuerySet.needing_attention``."""
    if isinstance(queryset, (ConnectionQuerySet, CustomerQuerySet)):
        return queryset.needing_attention(why)
    return owners_of(Customer.objects.needing_attention(why), queryset)


def with_status(queryset: QuerySet[Any], status: OnboardingStatus) -> QuerySet[Any]:
    """Filter ``queryset``, of customers or of objects that own one, by the customer's status."""
    if queryset.model is Customer:
        return queryset.filter(status=status)
    owned = customers_of_owners(queryset)
    if status == OnboardingStatus.NOT_INVITED:
        # Objects that own no customer count as not invited, too.
        return queryset.exclude(Exists(owned.exclude(status=status)))
    return queryset.filter(Exists(owned.filter(status=status)))


def owners_of(customers: QuerySet[Customer], queryset: QuerySet[Any]) -> QuerySet[Any]:
    """Return the objects in ``queryset`` that own one of the ``customers``."""
    owned = customers.filter(owner_type=owner_type(queryset.model))
    keyed: QuerySet[Any] = queryset.alias(_owner_key=OwnerKey("pk"))
    return keyed.filter(_owner_key__in=owned.values("owner_id"))


def customers_of_owners(queryset: QuerySet[Any]) -> QuerySet[Customer]:
    """Return the customers that a row of ``queryset`` owns, for use as a subquery of it."""
    return Customer.objects.filter(
        owner_type=owner_type(queryset.model),
        owner_id=OwnerKey(OuterRef("pk")),
    )
