"""The admin of setup links."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils.safestring import SafeString

from ..models import Customer, SetupLink
from ..onboarding.connect_urls import connect_url
from ..onboarding.renewal import leads_to_setup
from ..translation import gettext as _
from ..translation import gettext_lazy
from .base import ReadOnlyAdmin
from .display import HIDDEN_URL, badge, copy_field, json_block
from .export import ExportMixin
from .permissions import can_create_setup_links


class UsableFilter(admin.SimpleListFilter):
    title = gettext_lazy("usable")
    parameter_name = "usable"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [
            ("yes", _("Usable now")),
            ("no", _("No longer usable")),
        ]

    def queryset(self, request: HttpRequest, queryset: Any) -> Any:
        if self.value() == "yes":
            return queryset.usable()
        if self.value() == "no":
            return queryset.exclude(pk__in=SetupLink.objects.usable())
        return queryset


@admin.register(SetupLink)
class SetupLinkAdmin(ReadOnlyAdmin, ExportMixin):
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
    # Never the URL: a search could be used to guess it.
    search_fields = [
        "kapso_id",
        "customer__name",
        "customer__external_customer_id",
        "customer__email",
    ]
    search_help_text = gettext_lazy(
        "The customer's name, e-mail, external id or phone number, or the link's reference."
    )

    change_form_template = "admin/kapso_connect/setup_link/change_form.html"

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[SetupLink], search_term: str
    ) -> tuple[QuerySet[SetupLink], bool]:
        found, may_have_duplicates = super().get_search_results(request, queryset, search_term)
        if search_term:
            found |= queryset.filter(customer__in=Customer.objects.with_number(search_term))
        return found, may_have_duplicates

    def get_fields(self, request: HttpRequest, obj: SetupLink | None = None) -> list[Any]:
        return [
            "customer",
            "reference",
            "customer_url" if can_create_setup_links(request) else "hidden_url",
            "state",
            "setup_status",
            "last_error_code",
            "created_at",
            "created_by",
            "opened_at",
            "expires_at",
            "latest",
            "next_url",
            "unconfirmed_phone_number_id",
            "unconfirmed_since",
            "kapso_id",
            "requested_options",
        ]

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> HttpResponse:
        link = context.get("original")
        if link is not None and link.is_latest:
            context["can_send"] = leads_to_setup(link.customer, link)
            context["can_extend"] = link.is_usable and link.expires_at is not None
            context["can_revoke"] = link.is_revocable
        return super().render_change_form(request, context, *args, **kwargs)

    @admin.display(description=gettext_lazy("status"), ordering="status")
    def state(self, link: SetupLink) -> SafeString:
        return badge("good" if link.is_usable else "neutral", link.current_status.label)

    @admin.display(description=gettext_lazy("reference"))
    def reference(self, link: SetupLink) -> str:
        return link.reference

    @admin.display(description=gettext_lazy("latest"), boolean=True)
    def latest(self, link: SetupLink) -> bool:
        return link.is_latest

    @admin.display(description=gettext_lazy("created by"))
    def by(self, link: SetupLink) -> str | None:
        return str(link.created_by) if link.created_by else None

    @admin.display(description=gettext_lazy("personal link"))
    def customer_url(self, link: SetupLink) -> SafeString | str:
        url = connect_url(link.customer) if link.is_latest else ""
        if not url or not leads_to_setup(link.customer, link):
            return _("The customer's personal link no longer leads to this setup link.")
        return copy_field(url, _("The customer's personal link"))

    @admin.display(description=gettext_lazy("personal link"))
    def hidden_url(self, link: SetupLink) -> str:
        return str(HIDDEN_URL)

    @admin.display(description=gettext_lazy("options"))
    def requested_options(self, link: SetupLink) -> SafeString:
        return json_block(link.options)
