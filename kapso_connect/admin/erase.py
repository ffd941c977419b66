"""The page that erases the personal data of customers."""

from __future__ import annotations

import time
from collections import defaultdict
from typing import Any

from django.contrib import messages
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.views.generic import TemplateView

from .. import exceptions, onboarding
from ..models import Connection, Customer, SetupLink, TimelineEvent
from ..onboarding.messages import staff_message
from ..phone_numbers import format_phone_number
from ..translation import gettext as _
from ..translation import gettext_lazy, ngettext
from .display import CONFIRMATION_ROWS
from .history import log_changes
from .selected_rows import SelectedRowsView

ERASE_BUDGET = 8
"""Seconds after which no further customer is erased: web servers end requests after about 30."""

ERASE_PERMISSION = "kapso_connect.erase_customer"


class EraseView(SelectedRowsView, TemplateView):
    """Says what is erased of the customers, and erases it."""

    template_name = "admin/kapso_connect/customer/erase.html"
    title = gettext_lazy("Erase the data of customers")

    def has_permission(self) -> bool:
        may_erase: bool = self.model_admin.has_erase_permission(self.request)
        return may_erase

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        customers = [row.pk for row in self.rows]
        connected = Connection.objects.connected().filter(customer__in=customers)
        numbers: dict[int, list[str]] = defaultdict(list)
        shown = [row.pk for row in self.rows[:CONFIRMATION_ROWS]]
        for number in connected.filter(customer__in=shown).order_by("pk"):
            numbers[number.customer_id].append(format_phone_number(str(number)))
        context = super().get_context_data(
            connected=connected.count(),
            active=SetupLink.objects.active().filter(customer__in=customers).count(),
            links=SetupLink.objects.filter(customer__in=customers).count(),
            events=TimelineEvent.objects.filter(customer__in=customers).count(),
            **kwargs,
        )
        rows = [{"customer": row, "numbers": numbers[row.pk]} for row in context["rows"]]
        return {**context, "rows": rows}

    def post(self, request: HttpRequest) -> HttpResponse:
        started = time.monotonic()
        erased = 0
        for customer in self.rows:
            if time.monotonic() - started > ERASE_BUDGET:
                self.add_message(
                    _(
                        "There was not enough time to erase all of them. Select the remaining ones "
                        "and erase them, too."
                    )
                )
                break
            erased += self.erase(customer)
        if erased:
            text = ngettext(
                "The data of %(count)s customer were erased.",
                "The data of %(count)s customers were erased.",
                erased,
            )
            self.add_message(text % {"count": erased}, messages.SUCCESS)
        if len(self.rows) == 1 and Customer.objects.filter(pk=self.rows[0].pk).exists():
            return HttpResponseRedirect(self.model_admin.view_url("change", self.rows[0].pk))
        return self.redirect_to_changelist()

    def erase(self, customer: Customer) -> bool:
        """Erase ``customer``, and add a message about what is left. Return whether it succeeded."""
        before = str(customer)
        try:
            erasure = onboarding.erase_customer(customer, actor=self.actor)
        except (
            exceptions.KapsoError,
            exceptions.NotErased,
            exceptions.TryLater,
            ImproperlyConfigured,
            Customer.DoesNotExist,
        ) as error:
            text = _("%(customer)s was not erased: %(reason)s")
            shown = {"customer": before, "reason": staff_message(error)}
            self.add_message(text % shown, messages.ERROR)
            return False
        log_changes(self.request, [customer], _("Erased the customer's data."))
        if erasure.left_at_kapso:
            text = _(
                "Kapso still has its own record of %(customer)s: %(reason)s Erase the customer "
                "again later to delete that, too."
            )
            self.add_message(text % {"customer": customer, "reason": erasure.left_at_kapso})
        return True
