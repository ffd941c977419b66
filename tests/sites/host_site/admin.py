from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest

from kapso_connect.admin import SetupLinkAdminMixin

from .models import Bakery, Branch, Franchise, Shop


@admin.register(Bakery)
class BakeryAdmin(SetupLinkAdminMixin, admin.ModelAdmin):
    """Has of its own whatever the mixin touches."""

    list_display = ["title", "opened"]
    list_editable = ["opened"]
    list_filter = ["opened"]
    list_per_page = 50
    search_fields = ["title"]
    actions = ["close"]
    change_form_template = "host_site/change_form.html"

    class Media:
        js = ["host_site/own.js"]

    def get_queryset(self, request: HttpRequest) -> QuerySet[Bakery]:
        return super().get_queryset(request).defer("reference")

    def get_customer_data(self, obj: Bakery) -> Mapping[str, Any]:
        return {
            "name": obj.title,
            "external_customer_id": obj.reference,
            "email": obj.contact,
            "language": obj.locale,
        }

    def close(self, request: HttpRequest, queryset: QuerySet[Bakery]) -> None:
        queryset.update(opened=False)


@admin.register(Franchise)
class PlainAdmin(SetupLinkAdminMixin, admin.ModelAdmin):
    pass


@admin.register(Shop)
class ShopAdmin(PlainAdmin):
    search_fields = ["name"]


@admin.register(Branch)
class BranchAdmin(SetupLinkAdminMixin, admin.ModelAdmin):
    actions = None


other_site = admin.AdminSite("other")
other_site.register(Bakery, BakeryAdmin)
