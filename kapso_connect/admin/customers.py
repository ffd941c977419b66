"""The admin of customers: the list, and a page that shows all about one of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, cast

from django.contrib import admin
from django.contrib.admin.exceptions import NotRegistered
from django.contrib.admin.utils import quote
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern, reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.text import capfirst

from ..models import Connection, Customer, CustomerQuerySet, SetupLink, TimelineEvent
from ..owners import models_of_owner
from ..phone_numbers import format_phone_number
from ..translation import gettext as _
from ..translation import gettext_lazy, ngettext
from . import overview
from .assign_owner import OwnerView, owner_admins
from .base import PackageAdmin
from .customer_filters import IdleFilter, OverviewFilter
from .display import CONFIRMATION_ROWS
from .erase import ERASE_PERMISSION, EraseView
from .export import ExportMixin
from .mixin import SetupLinkAdminMixin
from .selected_rows import open_page, page_url
from .status import AttentionFilter, StatusFilter

EDITABLE_FIELDS = ["name", "external_customer_id", "email", "language"]


@admin.register(Customer)
class CustomerAdmin(SetupLinkAdminMixin, PackageAdmin, ExportMixin):
    list_display = [
        "name",
        "whatsapp_status",
        "email",
        "language",
        "created_at",
    ]
    actions = ["erase"]
    list_filter = [
        StatusFilter,
        OverviewFilter,
        AttentionFilter,
        IdleFilter,
        "language",
        "created_at",
    ]
    search_fields = ["name", "external_customer_id", "email", "kapso_id"]
    search_help_text = gettext_lazy(
        "Name, e-mail, external id, phone number, Kapso's id, or the reference that customers see."
    )
    change_list_template = "admin/kapso_connect/customer/change_list.html"
    change_form_template = "admin/kapso_connect/customer/change_form.html"

    def get_fields(self, request: HttpRequest, obj: Customer | None = None) -> list[Any]:
        if obj is None:
            return EDITABLE_FIELDS
        erased = ["erased_at"] if obj.erased_at else []
        return [*EDITABLE_FIELDS, "kapso_id", "created_at", "updated_at", *erased]

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
        objs = objs.prefetch_related(None).order_by()
        problems = []
        if erased := objs.exclude(erased_at=None).count():
            text = ngettext(
                "%(count)s customer cannot be invited: its personal data were erased.",
                "%(count)s customers cannot be invited: their personal data were erased.",
                erased,
            )
            problems.append(text % {"count": erased})
        return objs.filter(erased_at=None).values_list("pk", flat=True).iterator(), problems

    def prepare_rows(self, rows: list[Customer]) -> None:
        self.add_statuses(rows)

    # The overview

    def get_urls(self) -> list[URLPattern]:
        return [
            self.view_path("overview/", overview.OverviewView, "overview"),
            self.view_path("erase/", EraseView, "erase"),
            self.view_path("<path:object_id>/owner/", OwnerView, "owner"),
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
            may_change = self.has_change_permission(request, customer)
            if may_change and owner_admins(self.admin_site, request):
                context["owner_url"] = self.view_url("owner", quote(customer.pk))
            if self.has_erase_permission(request):
                context["erase_url"] = page_url(self, request, [customer.pk], "erase")
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

    # Erasing and deleting

    def has_erase_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm(ERASE_PERMISSION) and self.has_view_permission(request)

    @admin.action(description=gettext_lazy("Erase"), permissions=["erase"])
    def erase(
        self, request: HttpRequest, queryset: QuerySet[Customer]
    ) -> HttpResponseRedirect | None:
        return open_page(self, request, queryset, "erase")

    def has_change_permission(self, request: HttpRequest, obj: Customer | None = None) -> bool:
        is_erased = obj is not None and obj.erased_at is not None
        return not is_erased and super().has_change_permission(request, obj)

    def get_deleted_objects(
        self, objs: Any, request: HttpRequest
    ) -> tuple[list[Any], dict[str, int], set[str], list[Any]]:
        deleted, counts, missing_permissions, protected = super().get_deleted_objects(objs, request)
        # A customer's links, numbers and timeline are deleted with it, though not by hand.
        missing_permissions = missing_permissions - {
            str(model._meta.verbose_name) for model in (SetupLink, TimelineEvent, Connection)
        }
        obstacles = list(find_obstacles([obj.pk for obj in objs]))
        return deleted, counts, missing_permissions, [*protected, *obstacles]


def find_obstacles(customers: list[int]) -> Iterator[str]:
    """Yield why these customers cannot be deleted: Kapso would keep what only their rows tell of,
    or a receiver would not hear of it."""
    connected = Connection.objects.connected().filter(customer__in=customers)
    for number in connected.select_related("customer")[:CONFIRMATION_ROWS]:
        text = _(
            "%(customer)s: %(number)s is connected. Erase the customer, or disconnect the number "
            "first."
        )
        shown = format_phone_number(str(number))
        yield text % {"customer": number.customer, "number": shown}
    links = SetupLink.objects.usable().filter(customer__in=customers)
    for link in links.select_related("customer").defer("url", "options")[:CONFIRMATION_ROWS]:
        text = _(
            "%(customer)s: a setup link can still be used at Kapso. Erase the customer, or revoke "
            "the link first."
        )
        yield text % {"customer": link.customer}
    events = TimelineEvent.objects.waiting().filter(customer__in=customers)
    for event in events.select_related("customer", "connection")[:CONFIRMATION_ROWS]:
        text = _("%(customer)s: the signal of “%(event)s” is still to be sent. Wait for it first.")
        yield text % {"customer": event.customer, "event": event.get_kind_display()}
