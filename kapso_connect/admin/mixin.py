"""WhatsApp in the host's own admin: a mixin for any ModelAdmin."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.contrib import admin
from django.contrib.admin.options import IS_POPUP_VAR
from django.contrib.admin.views.main import ChangeList
from django.http import HttpRequest
from django.utils.safestring import SafeString
from django.utils.translation import gettext_lazy

from ..onboarding.status import NOBODY, Status, get_statuses
from .panel import StatusPanel
from .status import StatusFilter, status_summary

COLUMN = "whatsapp_status"
ACTION = "create_setup_links"


class SetupLinkAdminMixin(StatusPanel):
    """Adds to a ModelAdmin whose objects are customers of this site: a column, a filter, an action,
    and a panel on the change page.

        @admin.register(Company)
        class CompanyAdmin(SetupLinkAdminMixin, admin.ModelAdmin): ...

    Override ``get_customer_data`` where the model's fields have other names.
    """

    def get_list_display(self, request: HttpRequest) -> Any:
        shown = super().get_list_display(request)
        return shown if COLUMN in shown else [*shown, COLUMN]

    def get_list_filter(self, request: HttpRequest) -> Any:
        filters = super().get_list_filter(request)
        return filters if StatusFilter in filters else [*filters, StatusFilter]

    def get_actions(self, request: HttpRequest, action_location: Any = None) -> dict[str, Any]:
        # Since 6.1 Django asks for the actions of the change page, too.
        place = {} if action_location is None else {"action_location": action_location}
        actions = super().get_actions(request, **place)
        is_off = self.actions is None or IS_POPUP_VAR in request.GET
        if not is_off and self.has_create_setup_link_permission(request):
            # Here and not in ``actions``, which the site's own would replace.
            action = self.get_action(ACTION, **place)
            if action is not None:
                actions.setdefault(ACTION, action)
        return actions

    def get_changelist_instance(self, request: HttpRequest) -> ChangeList:
        changelist = super().get_changelist_instance(request)
        if COLUMN in changelist.list_display:
            # Looked at here, the rows keep what is attached to them until they are shown.
            rows = list(changelist.result_list)
            found = self.get_statuses(rows)
            for row in rows:
                row._kapso_status = found.get(row.pk, NOBODY)
        return changelist

    def get_statuses(self, objs: Sequence[Any]) -> dict[Any, Status]:
        """Return where the customers of ``objs`` stand, by the primary keys of the objects; those
        without a customer are left out."""
        customers = self.find_customers(objs)
        found = get_statuses(customers.values())
        return {
            pk: found[customer.pk] for pk, customer in customers.items() if customer.pk in found
        }

    @admin.display(description=gettext_lazy("WhatsApp"))
    def whatsapp_status(self, obj: Any) -> SafeString:
        status = getattr(obj, "_kapso_status", None)
        if status is None:
            status = self.get_statuses([obj]).get(obj.pk, NOBODY)
        return status_summary(status)
