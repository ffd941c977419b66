"""Filters of the list of customers that the figures of the overview lead to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.views.main import ChangeList
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.formats import date_format

from ..kapso.error_codes import find_error
from ..models import Customer
from ..monitoring import reports
from ..translation import gettext as _
from ..translation import gettext_lazy, ngettext
from .forms import idle_before
from .overview import FUNNEL_STEPS, IDLE_DAYS, PeriodForm

FIGURES = {**FUNNEL_STEPS, "failed": gettext_lazy("Connecting failed")}

PARAMETERS = ["funnel", "failed_with", "start", "end"]


class OverviewFilterForm(PeriodForm):
    funnel = forms.ChoiceField(choices=list(FIGURES.items()), required=False)
    failed_with = forms.CharField(max_length=64, required=False, strip=False)


class OverviewFilter(admin.ListFilter):
    """The customers that a figure of the overview counts. It is shown only while it is chosen:
    ``funnel`` is a step or "failed", ``failed_with`` an error code, ``start`` and ``end`` are the
    period."""

    title = gettext_lazy("figure of the overview")

    def __init__(
        self, request: HttpRequest, params: dict[str, Any], model: Any, model_admin: Any
    ) -> None:
        super().__init__(request, params, model, model_admin)
        self.model_admin = model_admin
        for name in PARAMETERS:
            if name in params:
                self.used_parameters[name] = params.pop(name)[-1]
        self.form = OverviewFilterForm(self.used_parameters)

    def expected_parameters(self) -> list[str | None]:
        return [*PARAMETERS]

    def has_output(self) -> bool:
        return "funnel" in self.used_parameters or "failed_with" in self.used_parameters

    def choices(self, changelist: ChangeList) -> Iterator[dict[str, Any]]:
        without = changelist.get_query_string(remove=PARAMETERS)
        yield {"selected": False, "query_string": without, "display": _("All")}
        query = changelist.get_query_string(self.used_parameters)
        yield {"selected": True, "query_string": query, "display": self.description()}

    def description(self) -> str:
        """Return what is chosen, with the period."""
        first, last, _days = self.form.period()
        if step := self.form.cleaned_data["funnel"]:
            what = str(FIGURES[step])
        else:
            code = self.form.cleaned_data["failed_with"]
            what = f"{find_error(code).title} {code}".rstrip()
        shown = {"what": what, "first": date_format(first), "last": date_format(last)}
        return _("%(what)s, from %(first)s to %(last)s") % shown

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any] | None:
        if not self.has_output():
            return None
        if not self.form.is_valid():
            errors = [error for errors in self.form.errors.values() for error in errors]
            text = " ".join(map(str, [_("The list is not filtered."), *errors]))
            self.model_admin.message_user(request, text, messages.ERROR)
            raise IncorrectLookupParameters
        period = self.form.covered()
        step = self.form.cleaned_data["funnel"]
        if step == "failed":
            customers = reports.customers_failed(period)
        elif step:
            customers = reports.customers_at_step(step, period)
        else:
            customers = reports.customers_failed_with(self.form.cleaned_data["failed_with"], period)
        return queryset.filter(pk__in=customers.values("pk"))


class IdleFilter(admin.SimpleListFilter):
    title = gettext_lazy("days without a reaction")
    parameter_name = "idle"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [
            (str(days), ngettext("%(days)s day", "%(days)s days", days) % {"days": days})
            for days in (IDLE_DAYS, 7, 30)
        ]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any] | None:
        if self.value() not in {value for value, _title in self.lookup_choices}:
            return None
        idle = Customer.objects.idle_since(idle_before(int(self.value() or 0)))
        return queryset.filter(pk__in=idle.values("pk"))
