"""Where a customer stands, in words for staff, and as a filter of a list."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.contrib.contenttypes.models import ContentType
from django.db import connections
from django.db.models import CharField, Exists, F, Model, OuterRef, QuerySet, UUIDField, Value
from django.db.models.functions import Concat, Replace
from django.http import HttpRequest
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from ..kapso.error_codes import FAILURES
from ..models import Connection, Customer, SetupLink
from ..onboarding.status import OnboardingStatus, Status, has_status, invitations
from .base import badge, phone_number

BADGES = {
    OnboardingStatus.NOT_INVITED: "neutral",
    OnboardingStatus.INVITED: "busy",
    OnboardingStatus.OPENED: "busy",
    OnboardingStatus.WAITING: "busy",
    OnboardingStatus.FAILED: "bad",
    OnboardingStatus.CONNECTED: "good",
    OnboardingStatus.DISCONNECTED: "bad",
}

REASONS = {
    "deleted": gettext_lazy("removed from Kapso"),
    "migrated": gettext_lazy("taken to another provider"),
    "moved": gettext_lazy("connected by another customer"),
    "no_customer": gettext_lazy("no longer this customer's at Kapso"),
    "not_found": gettext_lazy("Kapso does not know it any more"),
    "offboarded": gettext_lazy("the customer withdrew it from Kapso"),
    "staff": gettext_lazy("by a member of staff"),
}
"""Why numbers are disconnected. Whatever else Kapso says is shown as it is."""


def failure_reason(link: SetupLink) -> str:
    failure = FAILURES.get(link.last_error_code)
    return str(failure.title) if failure else link.last_error_code


def disconnect_reason(connection: Connection) -> str:
    return str(REASONS.get(connection.disconnect_reason, connection.disconnect_reason))


def status_badge(status: Status) -> SafeString:
    return badge(BADGES[status.standing], status.standing.label)


def has_expired(link: SetupLink) -> bool:
    """True for a link that would work if its time were not over."""
    in_play = {SetupLink.Status.ACTIVE, SetupLink.Status.EXPIRED}
    return link.status in in_play and not link.is_usable


def status_summary(status: Status) -> SafeString:
    """Return where a customer stands, for the cell of a table."""
    connection, link = status.connection, status.link
    facts: list[object] = []
    if (
        status.standing in {OnboardingStatus.INVITED, OnboardingStatus.OPENED}
        and link
        and has_expired(link)
    ):
        facts.append(_("the link has expired"))
    elif status.standing == OnboardingStatus.FAILED and link:
        facts.append(failure_reason(link))
    elif status.standing == OnboardingStatus.CONNECTED and connection:
        facts.append(phone_number(connection))
        if status.more:
            facts.append(ngettext("+%(n)s more", "+%(n)s more", status.more) % {"n": status.more})
    elif status.standing == OnboardingStatus.DISCONNECTED and connection:
        facts += [phone_number(connection), disconnect_reason(connection)]
    cells = format_html_join("", '<span class="kapso-fact">{}</span>', ((f,) for f in facts if f))
    return format_html('<span class="kapso-standing">{}{}</span>', status_badge(status), cells)


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


def with_status(queryset: QuerySet[Any], standing: OnboardingStatus) -> QuerySet[Any]:
    """Return those of ``queryset``, customers or their owners, who stand at ``standing``."""
    if queryset.model is Customer:
        return queryset.filter(has_status(standing))
    owned = customers_of_owners(queryset)
    if standing == OnboardingStatus.NOT_INVITED:
        # Whoever owns no customer was not invited either.
        for somewhere in invitations():  # one by one, databases join them
            queryset = queryset.exclude(Exists(owned.filter(somewhere)))
        return queryset
    return queryset.filter(Exists(owned.filter(has_status(standing))))


def customers_of_owners(queryset: QuerySet[Any]) -> QuerySet[Customer]:
    """Return the customers that a row of ``queryset`` owns, as a subquery of it."""
    model: type[Model] = queryset.model
    # Not Cast: MariaDB would compare its result by rules that the column may not have.
    key: Any = Concat(OuterRef("pk"), Value(""), output_field=CharField())
    owner_id: Any = F("owner_id")
    has_uuids = connections[queryset.db].features.has_native_uuid_field
    if isinstance(_key_field(model), UUIDField) and not has_uuids:
        # Such a database keeps a UUID as 32 digits.
        owner_id = Replace("owner_id", Value("-"), Value(""))
    return Customer.objects.alias(_owner_key=owner_id).filter(
        owner_type=ContentType.objects.get_for_model(model), _owner_key=key
    )


def _key_field(model: type[Model]) -> Any:
    field: Any = model._meta.pk
    while field.remote_field:
        field = field.target_field
    return field
