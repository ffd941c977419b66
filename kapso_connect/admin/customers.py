"""Customers, and everything there is to know about one of them on one page."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from django.contrib import admin
from django.contrib.admin.exceptions import NotRegistered
from django.db.models import Exists, Model, OuterRef, Q, QuerySet
from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.utils import timezone
from django.utils.formats import date_format
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.text import capfirst
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from ..models import Connection, ConnectionEvent, Customer, SetupLink
from .base import (
    EMPTY,
    HIDDEN,
    PackageAdmin,
    badge,
    connection_state,
    copyable,
    link_state,
    may_create_setup_links,
    phone_number,
)
from .connections import alive_links
from .events import signal_state
from .setup_links import CreateSetupLinks

NEWEST = 20
EDITABLE = ["name", "external_customer_id", "email", "language"]


def is_connected() -> Exists:
    return Exists(
        Connection.objects.filter(customer=OuterRef("pk"), status=Connection.Status.CONNECTED)
    )


def is_invited() -> Exists:
    return Exists(SetupLink.objects.filter(alive_links(), customer=OuterRef("pk")))


class WhatsAppFilter(admin.SimpleListFilter):
    title = gettext_lazy("WhatsApp")
    parameter_name = "whatsapp"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [
            ("connected", _("Connected")),
            ("invited", _("Invited, not connected")),
            ("none", _("Neither")),
        ]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Customer]) -> QuerySet[Customer]:
        conditions = {
            "connected": Q(is_connected()),
            "invited": ~Q(is_connected()) & Q(is_invited()),
            "none": ~Q(is_connected()) & ~Q(is_invited()),
        }
        return queryset.filter(conditions.get(self.value() or "", Q()))


@admin.register(Customer)
class CustomerAdmin(CreateSetupLinks, PackageAdmin[Customer]):
    list_display = ["name", "whatsapp", "external_customer_id", "email", "language", "created_at"]
    list_filter = [WhatsAppFilter, "language", "created_at"]
    search_fields = ["name", "external_customer_id", "email", "kapso_id"]
    search_help_text = gettext_lazy("Name, external id, e-mail, or Kapso's id.")
    actions = ["create_setup_links"]
    change_form_template = "admin/kapso_connect/customer/change_form.html"

    def get_fields(self, request: HttpRequest, obj: Customer | None = None) -> list[Any]:
        if obj is None:
            return EDITABLE
        address = "setup_link" if may_create_setup_links(request) else "hidden_setup_link"
        return [*EDITABLE, address, "kapso_id", "created_at", "updated_at"]

    def get_readonly_fields(self, request: HttpRequest, obj: Customer | None = None) -> list[Any]:
        return [name for name in self.get_fields(request, obj) if name not in EDITABLE]

    def get_queryset(self, request: HttpRequest) -> QuerySet[Customer]:
        queryset = super().get_queryset(request)
        return queryset.annotate(is_connected=is_connected(), is_invited=is_invited())

    @admin.display(description=gettext_lazy("WhatsApp"))
    def whatsapp(self, customer: Any) -> SafeString | None:
        if customer.is_connected:
            return badge("good", Connection.Status.CONNECTED.label)
        return badge("busy", _("Invited")) if customer.is_invited else None

    def _alive_link(self, customer: Customer) -> SetupLink | None:
        return customer.setup_links.filter(alive_links()).order_by("-created_at", "-pk").first()

    @admin.display(description=gettext_lazy("setup link"))
    def setup_link(self, customer: Customer) -> SafeString | str:
        link = self._alive_link(customer)
        return copyable(link.url, _("Setup link")) if link else EMPTY

    @admin.display(description=gettext_lazy("setup link"))
    def hidden_setup_link(self, customer: Customer) -> str:
        return str(HIDDEN) if self._alive_link(customer) else EMPTY

    # The page of one customer

    def render_change_form(
        self,
        request: HttpRequest,
        context: dict[str, Any],
        add: bool = False,
        change: bool = False,
        form_url: str = "",
        obj: Customer | None = None,
    ) -> HttpResponse:
        if obj is not None:
            if self.has_create_setup_link_permission(request):
                context["create_setup_link_url"] = (
                    f"{self.view_url('create_setup_links')}?ids={obj.pk}"
                )
            context["owner_link"] = self.owner_link(request, obj)
            context["history"] = list(self.history(request, obj))
        return super().render_change_form(request, context, add, change, form_url, obj)

    def history(self, request: HttpRequest, customer: Customer) -> Iterator[dict[str, Any]]:
        """Yield the tables below the form: the newest rows of what the user may see."""
        if table := self.table(request, customer, customer.connections.all()):
            table["columns"] = [_("Number"), _("Name"), _("Status"), _("Type"), _("Connected")]
            table["rows"] = [
                (
                    self.page_of(row, phone_number(row)),
                    row.verified_name,
                    connection_state(row),
                    row.get_connection_type_display(),
                    row.connected_at,
                )
                for row in table["newest"]
            ]
            yield table
        links = customer.setup_links.select_related("created_by").defer("url", "options")
        if table := self.table(request, customer, links):
            table["columns"] = [
                _("Setup link"),
                _("Status"),
                _("Setup"),
                _("Expires"),
                _("Created by"),
            ]
            table["rows"] = [
                (
                    self.page_of(row, localized(row.created_at)),
                    link_state(row),
                    row.get_setup_status_display(),
                    row.expires_at,
                    row.created_by or "",
                )
                for row in table["newest"]
            ]
            yield table
        events = customer.events.select_related("connection")
        if table := self.table(request, customer, events):
            table["columns"] = [_("When"), _("What"), _("Number"), _("Source"), _("Signal")]
            table["rows"] = [
                (
                    self.page_of(row, localized(row.occurred_at)),
                    row.get_kind_display(),
                    phone_number(row.connection) if row.connection else "",
                    row.get_source_display(),
                    signal_state(row),
                )
                for row in table["newest"]
            ]
            yield table

    def table(
        self, request: HttpRequest, customer: Customer, queryset: QuerySet[Any]
    ) -> dict[str, Any] | None:
        try:
            model_admin = self.admin_site.get_model_admin(queryset.model)
        except NotRegistered:
            return None
        if not model_admin.has_view_permission(request):
            return None
        newest = list(queryset.order_by("-pk")[: NEWEST + 1])
        opts = queryset.model._meta
        url = reverse(
            f"admin:{opts.app_label}_{opts.model_name}_changelist", current_app=self.admin_site.name
        )
        return {
            "name": opts.model_name,
            "title": opts.verbose_name_plural,
            "newest": newest[:NEWEST],
            "all_url": f"{url}?customer__id__exact={customer.pk}" if newest[NEWEST:] else "",
        }

    def page_of(self, row: Model, text: object) -> SafeString:
        opts = row._meta
        name = f"admin:{opts.app_label}_{opts.model_name}_change"
        url = reverse(name, args=[row.pk], current_app=self.admin_site.name)
        return format_html('<a href="{}">{}</a>', url, text)

    def owner_link(self, request: HttpRequest, customer: Customer) -> SafeString | None:
        """Return a link to the host's own object, where it exists and the user may see it."""
        kind = customer.owner_type
        model: type[Model] | None = kind.model_class() if kind else None
        if model is None or not customer.owner_id:
            return None
        try:
            model_admin = self.admin_site.get_model_admin(model)
        except NotRegistered:
            return None
        owner = model_admin.get_object(request, customer.owner_id)
        if owner is None or not model_admin.has_view_or_change_permission(request, owner):
            return None
        opts = model_admin.opts
        url = reverse(
            f"admin:{opts.app_label}_{opts.model_name}_change",
            args=[owner.pk],
            current_app=self.admin_site.name,
        )
        return format_html('{}: <a href="{}">{}</a>', capfirst(opts.verbose_name), url, owner)

    # Deleting

    def get_deleted_objects(
        self, objs: Any, request: HttpRequest
    ) -> tuple[list[Any], dict[str, int], set[str], list[str]]:
        deleted, counts, lacking, protected = super().get_deleted_objects(objs, request)
        # A customer's own links and timeline go along, though nobody may delete them by hand.
        lacking = lacking - {
            str(model._meta.verbose_name) for model in (SetupLink, ConnectionEvent, Connection)
        }
        connections = Connection.objects.filter(customer__in=[obj.pk for obj in objs])
        numbers = [
            _("Connection %(number)s of %(customer)s") % {"number": row, "customer": row.customer}
            for row in connections.select_related("customer")[:NEWEST]
        ]
        return deleted, counts, lacking, [*protected, *numbers]


def localized(moment: datetime) -> str:
    local = timezone.localtime(moment) if timezone.is_aware(moment) else moment
    return date_format(local, "SHORT_DATETIME_FORMAT")
