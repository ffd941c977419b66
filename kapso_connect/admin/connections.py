"""The admin of connections: the customers' numbers."""

from __future__ import annotations

from typing import Any, ClassVar

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from ..models import AccountStatus, Attention, Connection
from ..phone_numbers import searched_digits
from ..translation import gettext as _
from ..translation import gettext_lazy
from .base import ReadOnlyAdmin
from .display import (
    EMPTY,
    badge,
    connection_badge,
    funding_badge,
    health_badge,
    health_details,
    json_block,
    phone_number_html,
)
from .export import ExportMixin
from .status import disconnect_reason


class AttentionFilter(admin.SimpleListFilter):
    title = gettext_lazy("needs attention")
    parameter_name = "attention"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        return list(Attention.choices)

    def queryset(self, request: HttpRequest, queryset: Any) -> Any:
        why = self.value()
        return queryset.needing_attention(why) if why in Attention.values else queryset


@admin.register(Connection)
class ConnectionAdmin(ReadOnlyAdmin, ExportMixin):
    list_display = [
        phone_number_html,
        "customer",
        "verified_name",
        connection_badge,
        health_badge,
        "connection_type",
        "connected_at",
        "disconnected_at",
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
    ]
    search_help_text = gettext_lazy("Number, name, customer, or Meta's ids.")
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
        if digits := searched_digits(search_term):
            found |= queryset.filter(phone_digits__contains=digits)
        return found, may_have_duplicates

    change_form_template = "admin/kapso_connect/connection/change_form.html"

    def get_fields(self, request: HttpRequest, obj: Connection | None = None) -> list[Any]:
        fields = list(super().get_fields(request, obj))
        if obj is None or not obj.is_test_number:
            fields.remove("test_number")
        if obj is None or funding_badge(obj) == EMPTY:
            fields.remove("funding")
            fields.remove("funding_checked_at")
        if obj is None or not obj.restrictions:
            fields.remove("account_restrictions")
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

    @admin.display(description=gettext_lazy("Kapso pays Meta"))
    def funding(self, connection: Connection) -> SafeString | str:
        return funding_badge(connection)

    @admin.display(description=gettext_lazy("health details"))
    def health_findings(self, connection: Connection) -> SafeString | str:
        texts = [(text,) for text in health_details(connection)]
        if not texts:
            return EMPTY
        items = format_html_join("", "<li><bdi>{}</bdi></li>", texts)
        return format_html('<ul class="kapso-problems">{}</ul>', items)

    @admin.display(description=gettext_lazy("account status"))
    def account_state(self, connection: Connection) -> SafeString:
        is_active = connection.account_status == AccountStatus.ACTIVE
        return badge("good" if is_active else "bad", connection.get_account_status_display())

    @admin.display(description=gettext_lazy("restrictions"))
    def account_restrictions(self, connection: Connection) -> SafeString:
        return json_block(connection.restrictions)
