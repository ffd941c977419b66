"""The overview: how invitations went over a period, and what needs attention now."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import date, timedelta
from typing import Any

from django import forms
from django.db.models import Model
from django.http import HttpRequest
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.timesince import timesince
from django.views.generic import TemplateView

from ..models import (
    Attention,
    Connection,
    Customer,
    Health,
    InvitationBatch,
    SetupLink,
    TimelineEvent,
)
from ..monitoring import reports
from ..monitoring.reports import Period
from ..translation import gettext as _
from ..translation import gettext_lazy
from ..utils import today
from .base import AdminView, list_url
from .batch_notices import batch_notices
from .display import (
    badge,
    format_datetime,
    funding_badge,
    health_details,
    phone_number_html,
    shorten,
)
from .forms import EARLIEST_DAY, DayField, idle_before, period_problem, start_of_day
from .permissions import can_view
from .status import disconnect_reason

DEFAULT_DAYS = 30
PERIODS = {
    7: gettext_lazy("7 days"),
    30: gettext_lazy("30 days"),
    90: gettext_lazy("90 days"),
    365: gettext_lazy("A year"),
}

OVERVIEW_MODELS = (Customer, SetupLink, Connection)
"""The overview is for users who may view these."""


FUNNEL_STEPS = {
    "invited": gettext_lazy("Invited"),
    "opened": gettext_lazy("Opened the link"),
    "connected": gettext_lazy("Connected"),
}

IDLE_DAYS = 3
"""The overview shows who has done nothing for so many days."""


class PeriodForm(forms.Form):
    """The days that the overview covers: the last ``days``, or those from ``start`` to ``end``."""

    days = forms.TypedChoiceField(
        label=gettext_lazy("Period"),
        choices=list(PERIODS.items()),
        coerce=int,
        required=False,
    )
    start = DayField(label=gettext_lazy("From"), required=False)
    end = DayField(label=gettext_lazy("To"), required=False)

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or {}
        start, end = cleaned.get("start"), cleaned.get("end") or today()
        if self.errors:
            return cleaned
        if start is None and cleaned.get("end"):
            self.add_error("start", _("Choose the first day."))
        elif start is not None and start > end:
            self.add_error("start", _("The first day must not be after the last one."))
        elif start is not None and (problem := period_problem(start, end)):
            self.add_error("start", problem)
        return cleaned

    def period(self) -> tuple[date, date, int | None]:
        """Return the first day, the last day, and ``days`` if it was chosen."""
        data = self.cleaned_data if self.is_valid() else {}
        if start := data.get("start"):
            return start, data.get("end") or today(), None
        days = data.get("days") or DEFAULT_DAYS
        return today() - timedelta(days=days - 1), today(), days

    def covered(self) -> Period:
        """Return the time from the first day to the last one."""
        first, last, _days = self.period()
        return Period(start_of_day(first), start_of_day(last + timedelta(days=1)))


class OverviewView(AdminView, TemplateView):
    template_name = "admin/kapso_connect/customer/overview.html"
    title = gettext_lazy("WhatsApp overview")

    def has_permission(self) -> bool:
        return can_view_overview(self.request)

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        """Return what the page shows for the period in the query string."""
        form = PeriodForm(self.request.GET)
        first, last, days = form.period()
        period = form.covered()
        chosen = {"start": first.isoformat(), "end": last.isoformat()}
        time_to_connect = reports.time_to_connect(period)
        median = time_to_connect.median
        failures = reports.failures(period)
        idle = reports.idle_customers(idle_before(IDLE_DAYS))
        attention = reports.numbers_needing_attention()
        numbers_listed = (number for numbers in attention.values() for number in numbers.listed)
        # The figures count all customers, also those whose names the user may not see.
        may_view = self.model_admin.find_objects(
            self.request, [*idle.listed, *(number.customer for number in numbers_listed)]
        )
        return super().get_context_data(
            form=form,
            first=first,
            last=last,
            periods=[
                {"title": title, "url": f"?days={count}", "is_chosen": count == days}
                for count, title in PERIODS.items()
            ],
            earliest=EARLIEST_DAY.isoformat(),
            today=today().isoformat(),
            is_empty=not SetupLink.objects.exists() and not Connection.objects.exists(),
            steps=[
                (title, step, self.list_url(Customer, funnel=name, **chosen))
                for (name, title), step in zip(
                    FUNNEL_STEPS.items(), reports.funnel(period).steps, strict=True
                )
            ],
            time_to_connect=time_to_connect,
            median=duration(median) if median is not None else "",
            failures=failures,
            failed_codes=[
                (row, self.list_url(Customer, failed_with=row.code, **chosen))
                for row in failures.codes
            ],
            failed_url=self.list_url(Customer, funnel="failed", **chosen),
            failures_url=self.list_url(
                TimelineEvent,
                kind__exact=TimelineEvent.Kind.SETUP_FAILED,
                **{name: str(moment) for name, moment in period.lookups("occurred_at").items()},
            ),
            idle=replace(idle, listed=[row for row in idle.listed if row.pk in may_view]),
            idle_days=IDLE_DAYS,
            idle_url=self.list_url(Customer, idle=str(IDLE_DAYS)),
            batches_url=self.list_url(InvitationBatch),
            attention=[
                (
                    reason,
                    numbers.count,
                    [
                        (number, phone_number_html(number), ATTENTION_DETAILS[reason](number))
                        for number in numbers.listed
                        if number.customer_id in may_view
                    ],
                )
                for reason, numbers in attention.items()
                if numbers.count
            ],
            batch_notices=batch_notices(self.request, self.model_admin),
            **kwargs,
        )

    def list_url(self, model: type[Model], **query: str) -> str:
        return list_url(self.model_admin.admin_site, self.request, model, **query)


def can_view_overview(request: HttpRequest) -> bool:
    return all(can_view(request, model._meta) for model in OVERVIEW_MODELS)


def _disconnected_detail(number: Connection) -> str:
    when = format_datetime(number.disconnected_at) if number.disconnected_at else ""
    return f"{when} {shorten(disconnect_reason(number))}"


def _name_detail(number: Connection) -> SafeString:
    kind = "busy" if number.name_status == "PENDING_REVIEW" else "bad"
    state = badge(kind, SHORT_NAME_STATUSES.get(number.name_status, number.name_status))
    return format_html("<bdi>{}</bdi> {}", shorten(number.verified_name), state)


def _health_detail(number: Connection) -> SafeString:
    kind = "bad" if number.health_status == Health.UNHEALTHY else "busy"
    state = badge(kind, number.get_health_status_display())
    return format_html("{} {}", state, shorten(" ".join(health_details(number))))


SHORT_NAME_STATUSES = {
    "DECLINED": gettext_lazy("Declined"),
    "EXPIRED": gettext_lazy("Expired"),
    "PENDING_REVIEW": gettext_lazy("In review"),
}

ATTENTION_DETAILS: dict[Attention, Callable[[Connection], object]] = {
    Attention.TEST_NUMBER: lambda number: "",
    Attention.RESTRICTED: lambda number: badge("bad", number.get_account_status_display()),
    Attention.DISCONNECTED: _disconnected_detail,
    Attention.NAME: _name_detail,
    Attention.HEALTH: _health_detail,
    Attention.FUNDING: funding_badge,
}


def duration(span: timedelta) -> str:
    if span < timedelta(minutes=1):
        return _("less than a minute")
    now = timezone.now()
    return timesince(now - span, now)
