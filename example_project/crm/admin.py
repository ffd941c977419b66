from __future__ import annotations

from django.contrib import admin
from django.http import HttpRequest

from kapso_connect.admin import SetupLinkAdminMixin

from .models import Company, ReceivedMessage, WelcomeMessage


@admin.register(Company)
class CompanyAdmin(SetupLinkAdminMixin, admin.ModelAdmin):
    list_display = ["name", "email", "whatsapp_connected_at", "whatsapp_problem"]
    list_filter = [("whatsapp_connected_at", admin.EmptyFieldListFilter)]
    search_fields = ["name", "email"]
    show_full_result_count = False
    readonly_fields = ["whatsapp_number", "whatsapp_connected_at", "whatsapp_problem"]


@admin.register(WelcomeMessage, ReceivedMessage)
class MessageAdmin(admin.ModelAdmin):
    list_display = ["__str__", "phone_number_id"]
    show_full_result_count = False

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: object = None) -> bool:
        return False
