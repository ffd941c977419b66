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

from ..failures import FAILURES
from ..models import Connection, Customer, SetupLink
from ..status import Standing, Status, invitations, stands
from .base import badge, phone_number

BADGES = {
    Standing.NOT_INVITED: "neutral",
    Standing.INVITED: "busy",
    Standing.OPENED: "busy",
    Standing.WAITING: "busy",
    Standing.FAILED: "bad",
    Standing.CONNECTED: "good",
    Standing.DISCONNECTED: "bad",
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


def standing_badge(status: Status) -> SafeString:
    return badge(BADGES[status.standing], status.standing.label)


def has_expired(link: SetupLink) -> bool:
    """True for a link that would work if its time were not over."""
    in_play = {SetupLink.Status.ACTIVE, SetupLink.Status.EXPIRED}
    return link.status in in_play and not link.is_alive


def in_short(status: Status) -> SafeString:
    """Return where a customer stands, for the cell of a table."""
    connection, link = status.connection, status.link
    facts: list[object] = []
    if status.standing in {Standing.INVITED, Standing.OPENED} and link and has_expired(link):
        facts.append(_("the link has expired"))
    elif status.standing == Standing.FAILED and link:
        facts.append(failure_reason(link))
    elif status.standing == Standing.CONNECTED and connection:
        facts.append(phone_number(connection))
        if status.more:
            facts.append(ngettext("+%(n)s more", "+%(n)s more", status.more) % {"n": status.more})
    elif status.standing == Standing.DISCONNECTED and connection:
        facts += [phone_number(connection), disconnect_reason(connection)]
    cells = format_html_join("", '<span class="kapso-fact">{}</span>', ((f,) for f in facts if f))
    return format_html('<span class="kapso-standing">{}{}</span>', standing_badge(status), cells)


class StandingFilter(admin.SimpleListFilter):
    title = gettext_lazy("WhatsApp")
    parameter_name = "whatsapp_status"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        return list(Standing.choices)

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        value = self.value()
        return standing_at(queryset, Standing(value)) if value in Standing.values else queryset


def standing_at(queryset: QuerySet[Any], standing: Standing) -> QuerySet[Any]:
    """Return those of ``queryset``, customers or their owners, who stand at ``standing``."""
    if queryset.model is Customer:
        return queryset.filter(stands(standing))
    owned = customers_of_owners(queryset)
    if standing == Standing.NOT_INVITED:
        # Whoever owns no customer was not invited either.
        for somewhere in invitations():  # one by one, databases join them
            queryset = queryset.exclude(Exists(owned.filter(somewhere)))
        return queryset
    return queryset.filter(Exists(owned.filter(stands(standing))))


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
