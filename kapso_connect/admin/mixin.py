"""WhatsApp in a site's own admin: a mixin for any ModelAdmin."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.options import IS_POPUP_VAR
from django.contrib.admin.views.main import ChangeList
from django.core.checks import CheckMessage, Error, Warning  # noqa: A004
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import URLPattern, reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString

from ..models import Connection, ConnectionQuerySet, Customer
from ..onboarding.status import NOT_INVITED, CustomerStatus, get_statuses
from ..phone_numbers import format_phone_number
from ..translation import gettext as _
from ..translation import gettext_lazy
from .base import list_url
from .batch_notices import batch_notices
from .check_health import CheckHealthMixin
from .display import CONFIRMATION_ROWS
from .panel import StatusPanel
from .status import AttentionFilter, StatusFilter, owners_of, status_summary

STATUS_COLUMN = "whatsapp_status"
PACKAGE_ACTIONS = {
    "create_setup_links": "create_setup_link",
    "check_health": "check_health",
    "send_reminders": "send_setup_link",
}
"""The actions that the mixin adds to the site's own, and who may run each: those for whom
``has_<…>_permission`` is true."""

NOTICE_TEMPLATE = "admin/kapso_connect/invite/list_with_notices.html"

HOOKS = frozenset(
    {
        "get_actions",
        "get_changelist_instance",
        "get_deleted_objects",
        "get_list_display",
        "get_list_filter",
        "get_search_results",
        "get_urls",
        "render_change_form",
    }
)
"""What the mixin extends of a ModelAdmin."""


class SetupLinkAdminMixin(CheckHealthMixin, StatusPanel):
    """Adds to a ModelAdmin whose objects are customers of the site: a column, filters, actions, and
    a panel on the change page. If it has ``search_fields``, the search also finds objects by
    their customers: see ``CustomerQuerySet.search``.

        @admin.register(Company)
        class CompanyAdmin(SetupLinkAdminMixin, admin.ModelAdmin): ...

    Override ``get_customer_data`` if the model's fields have other names.
    """

    search_help_text = gettext_lazy(
        "Also finds the customer's name, e-mail, external id, phone number, or reference."
    )

    def check(self, **kwargs: Any) -> list[CheckMessage]:
        return [*super().check(**kwargs), *self._check_bases()]

    def _check_bases(self) -> Iterator[CheckMessage]:
        """Check that no other base replaces what the mixin adds."""
        bases = type(self).__mro__
        for base in bases[: bases.index(SetupLinkAdminMixin)]:
            replaced = HOOKS.intersection(vars(base))
            if replaced and not issubclass(base, SetupLinkAdminMixin):
                yield Warning(
                    f"{base.__name__} comes before SetupLinkAdminMixin in the bases of "
                    f"{type(self).__name__}, and replaces its {', '.join(sorted(replaced))}.",
                    hint="Put SetupLinkAdminMixin first.",
                    obj=type(self),
                    id="kapso_connect.W031",
                )
        names = {pattern.name for pattern in self.get_urls() if isinstance(pattern, URLPattern)}
        if self.view_name("whatsapp_batch") not in names:
            yield Error(
                f"The URLs of {type(self).__name__} do not have the pages of SetupLinkAdminMixin.",
                hint="Put SetupLinkAdminMixin first among the bases, and return "
                "[*own_urls, *super().get_urls()] in get_urls.",
                obj=type(self),
                id="kapso_connect.E014",
            )

    def get_list_display(self, request: HttpRequest) -> Any:
        columns = super().get_list_display(request)
        return columns if STATUS_COLUMN in columns else [*columns, STATUS_COLUMN]

    def get_list_filter(self, request: HttpRequest) -> Any:
        filters = super().get_list_filter(request)
        own = (StatusFilter, AttentionFilter)
        return [*filters, *(one for one in own if one not in filters)]

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        found, may_have_duplicates = super().get_search_results(request, queryset, search_term)
        if search_term and self.get_search_fields(request):
            owners = self.search_customers(queryset, search_term)
            # Django refuses to combine the two if only one of them is distinct.
            found |= owners.distinct() if found.query.distinct else owners
        return found, may_have_duplicates

    def search_customers(self, queryset: QuerySet[Any], text: str) -> QuerySet[Any]:
        """Return the objects in ``queryset`` whose customers a search for ``text`` finds."""
        return owners_of(Customer.objects.search(text), queryset)

    def find_numbers(self, rows: Sequence[Any]) -> ConnectionQuerySet:
        return Connection.objects.filter(customer__in=self.find_customers(rows).values())

    def find_rows_of_numbers(
        self, request: HttpRequest, numbers: Sequence[Connection]
    ) -> dict[int, tuple[Any, str]]:
        objs = self.find_objects(request, {number.customer for number in numbers})
        return {
            number.pk: (objs[number.customer_id], str(objs[number.customer_id]))
            for number in numbers
            if number.customer_id in objs
        }

    def get_actions(self, request: HttpRequest, action_location: Any = None) -> dict[str, Any]:
        # Since 6.1 Django calls this for the change page, too.
        location = {} if action_location is None else {"action_location": action_location}
        actions = super().get_actions(request, **location)
        if self.actions is None or IS_POPUP_VAR in request.GET:
            return actions
        # Not in ``actions``, which the site's own would replace.
        for name, permission in PACKAGE_ACTIONS.items():
            action = self.get_action(name, **location)
            if action is not None and getattr(self, f"has_{permission}_permission")(request):
                actions.setdefault(name, action)
        return actions

    def get_changelist_instance(self, request: HttpRequest) -> ChangeList:
        changelist = super().get_changelist_instance(request)
        if STATUS_COLUMN in changelist.list_display:
            # All in few queries; evaluated here, the queryset keeps the rows with their attribute.
            self.add_statuses(list(changelist.result_list))
        return changelist

    def add_statuses(self, rows: Sequence[Any]) -> None:
        """Give each of ``rows`` the status that its column shows, in few queries."""
        statuses = self.get_statuses(rows)
        for row in rows:
            row.kapso_connect_status = statuses.get(row.pk, NOT_INVITED)

    def get_deleted_objects(
        self, objs: Any, request: HttpRequest
    ) -> tuple[list[Any], dict[str, int], set[str], list[Any]]:
        if self.model is not Customer:  # a customer with a number is not deleted
            self._warn_of_numbers(objs, request)
        deleted: tuple[list[Any], dict[str, int], set[str], list[Any]] = (
            super().get_deleted_objects(objs, request)
        )
        return deleted

    def _warn_of_numbers(self, objs: Any, request: HttpRequest) -> None:
        """Say which numbers stay connected when ``objs`` are deleted: their customers outlive
        them, so that nobody is disconnected by accident."""
        customers = [customer.pk for customer in self.find_customers(objs).values()]
        numbers = Connection.objects.connected().filter(customer__in=customers)
        pages = list_url(self.admin_site, request, Customer)
        for number in numbers.select_related("customer")[:CONFIRMATION_ROWS]:
            shown = format_phone_number(str(number))
            text = _(
                "The WhatsApp number %(number)s of %(customer)s stays connected at Kapso. Erase "
                "the customer, or disconnect the number, if that is not wanted."
            ) % {"number": shown, "customer": number.customer}
            page = ""
            if pages:
                name = "admin:kapso_connect_customer_change"
                url = reverse(name, args=[number.customer_id], current_app=self.admin_site.name)
                page = format_html(' <a href="{}">{}</a>', url, _("Open the customer"))
            self.message_user(request, format_html("{}{}", text, page), messages.WARNING)

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        response = super().changelist_view(request, extra_context)
        if IS_POPUP_VAR in request.GET or not isinstance(response, TemplateResponse):
            return response
        context = response.context_data or {}
        if "cl" in context and (notices := batch_notices(request, self)):
            # The notice's template extends the one that the site's ModelAdmin has.
            response.context_data = {
                **context,
                "kapso_list": response.resolve_template(response.template_name),
                "batch_notices": notices,
            }
            response.template_name = NOTICE_TEMPLATE
        return response

    def get_statuses(self, objs: Sequence[Any]) -> dict[Any, CustomerStatus]:
        """Return the status of each object's customer, by the primary key of the object; objects
        without a customer are left out."""
        customers = self.find_customers(objs)
        statuses = get_statuses(customers.values(), with_attention=True)
        return {
            pk: statuses[customer.pk]
            for pk, customer in customers.items()
            if customer.pk in statuses
        }

    @admin.display(description=gettext_lazy("WhatsApp"))
    def whatsapp_status(self, obj: Any) -> SafeString:
        status = getattr(obj, "kapso_connect_status", None)
        if status is None:
            status = self.get_statuses([obj]).get(obj.pk, NOT_INVITED)
        return status_summary(status)
