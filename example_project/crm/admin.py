from __future__ import annotations

from django.contrib import admin

from kapso_connect.admin import SetupLinkAdminMixin

from .models import Company


@admin.register(Company)
class CompanyAdmin(SetupLinkAdminMixin, admin.ModelAdmin):
    list_display = ["name", "email", "whatsapp_connected_at", "whatsapp_problem"]
    list_filter = [("whatsapp_connected_at", admin.EmptyFieldListFilter)]
    search_fields = ["name", "email"]
    show_full_result_count = False
    readonly_fields = ["whatsapp_number", "whatsapp_connected_at", "whatsapp_problem"]
