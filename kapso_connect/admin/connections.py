"""Setup links and connections, to look at."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import Q, QuerySet
from django.http import HttpRequest
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from ..models import AccountStatus, Connection, SetupLink
from ..phones import is_test_number
from .base import (
    HIDDEN,
    ReadOnlyAdmin,
    badge,
    connection_state,
    copyable,
    json_block,
    link_state,
    may_create_setup_links,
    phone_number,
)


class AliveFilter(admin.SimpleListFilter):
    title = gettext_lazy("usable")
    parameter_name = "usable"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("yes", _("Usable now")), ("no", _("Over"))]

    def queryset(self, request: HttpRequest, queryset: QuerySet[SetupLink]) -> QuerySet[SetupLink]:
        alive = alive_links()
        if self.value() == "yes":
            return queryset.filter(alive)
        if self.value() == "no":
            return queryset.exclude(alive)
        return queryset


def alive_links() -> Q:
    """The condition for what ``SetupLink.is_alive`` says."""
    in_time = Q(expires_at=None) | Q(expires_at__gt=timezone.now())
    return Q(status=SetupLink.Status.ACTIVE) & in_time


@admin.register(SetupLink)
class SetupLinkAdmin(ReadOnlyAdmin[SetupLink]):
    list_display = ["id", "customer", "state", "setup_status", "created_at", "expires_at", "by"]
    list_filter = [AliveFilter, "status", "setup_status", "created_at"]
    list_select_related = ["customer", "created_by"]
    # Never the URL: a search that finds it would reveal it.
    search_fields = ["kapso_id", "customer__name", "customer__external_customer_id"]
    search_help_text = gettext_lazy("Customer's name or external id, or Kapso's id of the link.")
    date_hierarchy = "created_at"

    def get_fields(self, request: HttpRequest, obj: SetupLink | None = None) -> list[Any]:
        return [
            "customer",
            "address" if may_create_setup_links(request) else "hidden_address",
            "state",
            "setup_status",
            "last_error_code",
            "created_at",
            "created_by",
            "expires_at",
            "claimed_phone_number_id",
            "claimed_at",
            "kapso_id",
            "asked_for",
        ]

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest) -> bool:
        # ``?url__startswith=…`` would let somebody guess the address letter by letter.
        return lookup.split("__")[0] != "url" and super().lookup_allowed(lookup, value, request)

    @admin.display(description=gettext_lazy("status"), ordering="status")
    def state(self, link: SetupLink) -> SafeString:
        return link_state(link)

    @admin.display(description=gettext_lazy("created by"))
    def by(self, link: SetupLink) -> str | None:
        return str(link.created_by) if link.created_by else None

    @admin.display(description=gettext_lazy("address"))
    def address(self, link: SetupLink) -> SafeString | str:
        if not link.is_alive:
            return _("This link can no longer be used.")
        return copyable(link.url, _("Setup link"))

    @admin.display(description=gettext_lazy("address"))
    def hidden_address(self, link: SetupLink) -> str:
        return str(HIDDEN)

    @admin.display(description=gettext_lazy("options"))
    def asked_for(self, link: SetupLink) -> SafeString:
        return json_block(link.options)


@admin.register(Connection)
class ConnectionAdmin(ReadOnlyAdmin[Connection]):
    list_display = [
        "number",
        "customer",
        "verified_name",
        "state",
        "connection_type",
        "connected_at",
        "disconnected_at",
    ]
    list_filter = ["status", "account_status", "connection_type", "connected_at"]
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
    date_hierarchy = "connected_at"
    fields = [
        "number",
        "test_number",
        "customer",
        "state",
        "connection_type",
        "verified_name",
        "connected_at",
        "disconnected_at",
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

    def get_fields(self, request: HttpRequest, obj: Connection | None = None) -> list[Any]:
        fields = list(super().get_fields(request, obj))
        if obj is None or not is_test_number(obj.display_phone_number):
            fields.remove("test_number")
        if obj is None or not obj.restrictions:
            fields.remove("account_restrictions")
        return fields

    @admin.display(description=gettext_lazy("phone number"), ordering="display_phone_number")
    def number(self, connection: Connection) -> SafeString | str:
        return phone_number(connection)

    @admin.display(description=gettext_lazy("note"))
    def test_number(self, connection: Connection) -> SafeString:
        return format_html(
            '<span class="kapso-note">{}</span>',
            _(
                "This is one of Meta's test numbers. It is not the customer's real number: ask "
                "the customer to connect that one."
            ),
        )

    @admin.display(description=gettext_lazy("account status"))
    def account_state(self, connection: Connection) -> SafeString:
        is_active = connection.account_status == AccountStatus.ACTIVE
        return badge("good" if is_active else "bad", connection.get_account_status_display())

    @admin.display(description=gettext_lazy("restrictions"))
    def account_restrictions(self, connection: Connection) -> SafeString:
        return json_block(connection.restrictions)

    @admin.display(description=gettext_lazy("status"), ordering="status")
    def state(self, connection: Connection) -> SafeString:
        return connection_state(connection)
