"""Setup links and connections, to look at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from django.contrib import admin
from django.contrib.admin.exceptions import NotRegistered
from django.db.models import Q, QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from ..models import AccountStatus, Connection, Customer, SetupLink
from ..monitoring import reports
from ..onboarding import setup_links
from ..onboarding.connect_urls import connect_url
from ..utils import is_test_number
from .base import (
    EMPTY,
    HIDDEN,
    M,
    ReadOnlyAdmin,
    badge,
    connection_state,
    copyable,
    health_state,
    json_block,
    link_state,
    may_create_setup_links,
    phone_number,
)
from .manage import NOTED, OF_NUMBERS, ManageViews
from .status import disconnect_reason


class UsableFilter(admin.SimpleListFilter):
    title = gettext_lazy("usable")
    parameter_name = "usable"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [
            ("yes", _("Usable now")),
            ("soon", _("Ends within 3 days")),
            ("no", _("No longer usable")),
        ]

    def queryset(self, request: HttpRequest, queryset: QuerySet[SetupLink]) -> QuerySet[SetupLink]:
        alive = usable_links()
        if self.value() == "yes":
            return queryset.filter(alive)
        if self.value() == "soon":
            return queryset.filter(reports.expiring())
        if self.value() == "no":
            return queryset.exclude(alive)
        return queryset


def usable_links() -> Q:
    """The condition for what ``SetupLink.is_alive`` says."""
    in_time = Q(expires_at=None) | Q(expires_at__gt=timezone.now())
    return Q(status=SetupLink.Status.ACTIVE) & in_time


class ManagedAdmin(ReadOnlyAdmin[M]):
    """Leads from the page of a link or a number to what staff can do with it, which is done at the
    customer's."""

    change_form_template = "admin/kapso_connect/managed_form.html"

    def get_manage_actions(self, obj: M) -> Mapping[str, object]:
        """Return what can be done with ``obj``: labels by the names of the customer's pages."""
        raise NotImplementedError

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> HttpResponse:
        obj = context.get("original")
        if obj is not None:
            context["manage_actions"] = list(self._manage_actions(request, obj))
        return super().render_change_form(request, context, *args, **kwargs)

    def _manage_actions(self, request: HttpRequest, obj: Any) -> Iterator[dict[str, Any]]:
        try:
            owner = self.admin_site.get_model_admin(Customer)
        except NotRegistered:
            return
        customer = obj.customer
        if not isinstance(owner, ManageViews) or not owner.has_view_or_change_permission(
            request, customer
        ):
            return
        for name, label in self.get_manage_actions(obj).items():
            if owner.may_manage(request, name):
                number = [obj.pk] if name in OF_NUMBERS else []
                url = owner.view_url(f"whatsapp_{name}", customer.pk, *number)
                yield {"label": label, "url": url, "is_post": name in NOTED}


@admin.register(SetupLink)
class SetupLinkAdmin(ManagedAdmin[SetupLink]):
    list_display = [
        "id",
        "customer",
        "state",
        "setup_status",
        "created_at",
        "opened_at",
        "expires_at",
        "by",
    ]
    list_filter = [UsableFilter, "status", "setup_status", "created_at"]
    list_select_related = ["customer", "created_by"]
    # Never the URL: a search that finds it would reveal it.
    search_fields = ["kapso_id", "customer__name", "customer__external_customer_id"]
    search_help_text = gettext_lazy("Customer's name or external id, or Kapso's id of the link.")

    def get_fields(self, request: HttpRequest, obj: SetupLink | None = None) -> list[Any]:
        return [
            "customer",
            "address" if may_create_setup_links(request) else "hidden_address",
            "state",
            "setup_status",
            "last_error_code",
            "created_at",
            "created_by",
            "opened_at",
            "expires_at",
            "is_latest",
            "next_url",
            "unconfirmed_phone_number_id",
            "unconfirmed_since",
            "kapso_id",
            "asked_for",
        ]

    def get_manage_actions(self, obj: SetupLink) -> Mapping[str, object]:
        actions = {}
        if obj.is_latest and obj.is_usable:
            actions = {
                "email": _("E-mail the link"),
                "qr": _("QR code"),
                "share": _("Share the link"),
                "extend": _("Extend the link"),
            }
        if obj.is_latest and setup_links.is_revocable(obj):
            actions["revoke"] = _("Revoke the link")
        return actions

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
        url = connect_url(link.customer) if link.is_latest else ""
        if not url or not setup_links.is_revocable(link):
            return _("This link can no longer be used.")
        return copyable(url, _("Setup link"))

    @admin.display(description=gettext_lazy("address"))
    def hidden_address(self, link: SetupLink) -> str:
        return str(HIDDEN)

    @admin.display(description=gettext_lazy("options"))
    def asked_for(self, link: SetupLink) -> SafeString:
        return json_block(link.options)


class AttentionFilter(admin.SimpleListFilter):
    title = gettext_lazy("needs attention")
    parameter_name = "attention"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        return list(reports.Attention.choices)

    def queryset(
        self, request: HttpRequest, queryset: QuerySet[Connection]
    ) -> QuerySet[Connection]:
        why = self.value()
        if why not in reports.Attention.values:
            return queryset
        return queryset.filter(reports.needs_attention(why))


@admin.register(Connection)
class ConnectionAdmin(ManagedAdmin[Connection]):
    list_display = [
        "number",
        "customer",
        "verified_name",
        "state",
        "health",
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
    fields = [
        "number",
        "test_number",
        "customer",
        "state",
        "connection_type",
        "verified_name",
        "connected_at",
        "disconnected_at",
        "why",
        "health",
        "health_error",
        "health_checked_at",
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

    def get_fields(self, request: HttpRequest, obj: Connection | None = None) -> list[Any]:
        fields = list(super().get_fields(request, obj))
        if obj is None or not is_test_number(obj.display_phone_number):
            fields.remove("test_number")
        if obj is None or not obj.restrictions:
            fields.remove("account_restrictions")
        return fields

    def get_manage_actions(self, obj: Connection) -> Mapping[str, object]:
        actions: dict[str, object] = {"health": _("Check health now")}
        if obj.display_phone_number:
            actions["reconnect"] = _("Reconnect")
        if obj.is_connected:
            actions["disconnect"] = _("Disconnect")
        return actions

    @admin.display(description=gettext_lazy("why disconnected"))
    def why(self, connection: Connection) -> str:
        return EMPTY if connection.is_connected else disconnect_reason(connection) or EMPTY

    @admin.display(description=gettext_lazy("health"), ordering="health_status")
    def health(self, connection: Connection) -> SafeString | str:
        return health_state(connection)

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
