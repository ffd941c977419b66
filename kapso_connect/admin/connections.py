"""The admin of connections: the customers' numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, cast

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.html import format_html
from django.utils.safestring import SafeString

from ..models import AccountStatus, Attention, Connection, ConnectionQuerySet, Customer
from ..translation import gettext as _
from ..translation import gettext_lazy
from ..webhooks import number_webhooks
from .base import ReadOnlyAdmin
from .check_health import CheckHealthMixin
from .display import (
    EMPTY,
    badge,
    bullets,
    connection_badge,
    funding_badge,
    health_badge,
    health_details,
    phone_number_html,
)
from .export import ExportMixin
from .restrictions import BUSINESS_SUPPORT_URL, account_texts
from .status import AttentionFilter, attention_advice, disconnect_reason


@admin.register(Connection)
class ConnectionAdmin(CheckHealthMixin, ReadOnlyAdmin, ExportMixin):
    actions = ["check_health"]
    list_display = [
        phone_number_html,
        "customer",
        "verified_name",
        connection_badge,
        health_badge,
        "connected_at",
    ]
    list_filter = [AttentionFilter, "status", "account_status", "connection_type", "connected_at"]
    list_select_related = ["customer"]
    search_fields = [
        "display_phone_number",
        "phone_number_id",
        "business_account_id",
        "verified_name",
        "customer__name",
        "customer__external_customer_id",
        "customer__email",
    ]
    search_help_text = gettext_lazy(
        "Number, name, the customer's name, e-mail, external id or reference, or Meta's ids."
    )
    fields: ClassVar[Any] = [
        phone_number_html,
        "test_number",
        "customer",
        connection_badge,
        "connection_type",
        "verified_name",
        "connected_at",
        "disconnected_at",
        "reason",
        health_badge,
        "health_findings",
        "health_checked_at",
        "funding",
        "funding_checked_at",
        "quality_rating",
        "name_status",
        "account_state",
        "account_restrictions",
        "account_updated_at",
        "setup_link",
        "messages",
        "phone_number_id",
        "business_account_id",
        "provisioned_phone_number_id",
        "created_at",
        "updated_at",
    ]

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Connection], search_term: str
    ) -> tuple[QuerySet[Connection], bool]:
        found, may_have_duplicates = super().get_search_results(request, queryset, search_term)
        if search_term:
            customers = Customer.objects.with_reference(search_term)
            numbers = cast("ConnectionQuerySet", queryset).with_number(search_term)
            found |= numbers | queryset.filter(customer__in=customers)
        return found, may_have_duplicates

    def find_numbers(self, rows: Sequence[Connection]) -> ConnectionQuerySet:
        return Connection.objects.filter(pk__in=[row.pk for row in rows])

    def find_rows_of_numbers(
        self, request: HttpRequest, numbers: Sequence[Connection]
    ) -> dict[int, tuple[Any, str]]:
        rows = self.get_queryset(request).filter(pk__in=[number.pk for number in numbers])
        pks = set(rows.values_list("pk", flat=True))
        return {
            number.pk: (number, str(number.customer))
            for number in numbers
            if number.pk in pks and self.has_view_permission(request, number)
        }

    change_form_template = "admin/kapso_connect/connection/change_form.html"

    def get_fields(self, request: HttpRequest, obj: Connection | None = None) -> list[Any]:
        fields = list(super().get_fields(request, obj))
        if obj is None or not obj.is_test_number:
            fields.remove("test_number")
        is_webhook_set = number_webhooks.is_configured()
        if obj is None or not (obj.number_webhook_id or (is_webhook_set and obj.is_connected)):
            fields.remove("messages")
        if obj is None or funding_badge(obj) == EMPTY:
            fields.remove("funding")
            fields.remove("funding_checked_at")
        return fields

    @admin.display(description=gettext_lazy("why disconnected"))
    def reason(self, connection: Connection) -> str:
        return EMPTY if connection.is_connected else disconnect_reason(connection) or EMPTY

    @admin.display(description=gettext_lazy("note"))
    def test_number(self, connection: Connection) -> SafeString:
        return format_html(
            '<span class="kapso-note">{}</span>',
            _(
                "This is one of Meta's test numbers. It is not the customer's real number: ask "
                "the customer to connect that one."
            ),
        )

    @admin.display(description=gettext_lazy("messages"))
    def messages(self, connection: Connection) -> SafeString:
        if not connection.number_webhook_id:
            return badge("busy", _("Not delivered to this site yet"))
        return badge("good", _("Delivered to this site"))

    @admin.display(description=gettext_lazy("Kapso pays Meta"))
    def funding(self, connection: Connection) -> SafeString | str:
        return funding_badge(connection)

    @admin.display(description=gettext_lazy("health details"))
    def health_findings(self, connection: Connection) -> SafeString | str:
        return bullets(health_details(connection))

    @admin.display(description=gettext_lazy("account status"))
    def account_state(self, connection: Connection) -> SafeString:
        is_active = connection.account_status == AccountStatus.ACTIVE
        return badge("good" if is_active else "bad", connection.get_account_status_display())

    @admin.display(description=gettext_lazy("restrictions"))
    def account_restrictions(self, connection: Connection) -> SafeString | str:
        texts = account_texts([connection])[connection.pk]
        if not texts:
            return EMPTY
        link = format_html(
            '<a href="{}" rel="noreferrer">{}</a>',
            BUSINESS_SUPPORT_URL,
            _("Meta's Business Support Home"),
        )
        advice = attention_advice(Attention.RESTRICTED, connection)
        return format_html("{}<p>{} {}</p>", bullets(texts), advice, link)
