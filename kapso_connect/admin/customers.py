"""The admin of customers: the list, and a page that shows all about one of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

from django.contrib import admin
from django.contrib.admin.exceptions import NotRegistered
from django.contrib.admin.utils import quote
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.urls import URLPattern, reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.text import capfirst

from ..models import Connection, Customer, CustomerQuerySet, SetupLink, TimelineEvent
from ..owners import models_of_owner
from ..translation import gettext as _
from ..translation import gettext_lazy
from . import overview
from .base import PackageAdmin
from .display import CONFIRMATION_ROWS
from .mixin import SetupLinkAdminMixin
from .status import AttentionFilter, StatusFilter

EDITABLE_FIELDS = ["name", "external_customer_id", "email", "language"]


@admin.register(Customer)
class CustomerAdmin(SetupLinkAdminMixin, PackageAdmin):
    list_display = [
        "name",
        "whatsapp_status",
        "email",
        "language",
        "created_at",
    ]
    list_filter = [StatusFilter, AttentionFilter, "language", "created_at"]
    search_fields = ["name", "external_customer_id", "email", "kapso_id"]
    search_help_text = gettext_lazy(
        "Name, e-mail, external id, phone number, Kapso's id, or the reference that customers see."
    )
    change_list_template = "admin/kapso_connect/customer/change_list.html"
    change_form_template = "admin/kapso_connect/customer/change_form.html"

    def get_fields(self, request: HttpRequest, obj: Customer | None = None) -> list[Any]:
        if obj is None:
            return EDITABLE_FIELDS
        return [*EDITABLE_FIELDS, "kapso_id", "created_at", "updated_at"]

    def get_readonly_fields(self, request: HttpRequest, obj: Customer | None = None) -> list[Any]:
        return [name for name in self.get_fields(request, obj) if name not in EDITABLE_FIELDS]

    def find_customers(self, objs: Iterable[Customer]) -> dict[Any, Customer]:
        return {customer.pk: customer for customer in objs}

    def find_objects(self, request: HttpRequest, customers: Iterable[Customer]) -> dict[int, Any]:
        objs = self.get_queryset(request).filter(pk__in=[customer.pk for customer in customers])
        return {obj.pk: obj for obj in objs if self.has_view_or_change_permission(request, obj)}

    def search_customers(self, queryset: QuerySet[Any], text: str) -> QuerySet[Customer]:
        # ``search_fields`` find the rest.
        customers = cast("CustomerQuerySet", queryset)
        return customers.with_number_or_reference(text)

    def make_customer(self, obj: Customer) -> Customer:
        return obj

    def make_customers(self, objs: QuerySet[Customer]) -> tuple[Iterable[int], list[str]]:
        # Only keys are read here, so there is nothing to prefetch for.
        return objs.prefetch_related(None).order_by().values_list("pk", flat=True).iterator(), []

    # The overview

    def get_urls(self) -> list[URLPattern]:
        return [
            self.view_path("overview/", overview.OverviewView, "overview"),
            *super().get_urls(),
        ]

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        overview_url = self.view_url("overview") if overview.can_view_overview(request) else ""
        context = {
            "overview_url": overview_url,
            "can_remind": self.has_send_setup_link_permission(request),
            **(extra_context or {}),
        }
        return super().changelist_view(request, context)

    # The page of one customer

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> HttpResponse:
        if customer := context.get("original"):
            context["owner_link"] = self.owner_link(request, customer)
        return super().render_change_form(request, context, *args, **kwargs)

    def owner_link(self, request: HttpRequest, customer: Customer) -> SafeString | None:
        """Return a link to the site's own object, if it exists and the user may view it."""
        key = customer.owner_id or ""
        for model in models_of_owner(customer.owner_type):
            try:
                model_admin = self.admin_site.get_model_admin(model)
            except NotRegistered:
                continue
            owner = model_admin.get_object(request, key)
            if owner is None or not model_admin.has_view_or_change_permission(request, owner):
                continue
            opts = model_admin.opts
            page = f"admin:{opts.app_label}_{opts.model_name}_change"
            url = reverse(page, args=[quote(owner.pk)], current_app=self.admin_site.name)
            return format_html('{}: <a href="{}">{}</a>', capfirst(opts.verbose_name), url, owner)
        return None

    # Deleting

    def get_deleted_objects(
        self, objs: Any, request: HttpRequest
    ) -> tuple[list[Any], dict[str, int], set[str], list[str]]:
        deleted, counts, missing_permissions, protected = super().get_deleted_objects(objs, request)
        # A customer's links and timeline are deleted with it, though not by hand.
        missing_permissions = missing_permissions - {
            str(model._meta.verbose_name) for model in (SetupLink, TimelineEvent, Connection)
        }
        connections = Connection.objects.filter(customer__in=[obj.pk for obj in objs])
        numbers = [
            _("Connection %(number)s of %(customer)s") % {"number": row, "customer": row.customer}
            for row in connections.select_related("customer")[:CONFIRMATION_ROWS]
        ]
        return deleted, counts, missing_permissions, [*protected, *numbers]
