"""The overview: how invitations went over a period, and what needs attention now."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from typing import Any

from django import forms
from django.http import HttpRequest
from django.template.response import TemplateResponse
from django.utils import timezone
from django.utils.formats import date_format
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.timesince import timesince
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from ..models import Connection, Customer, Health, SetupLink, TimelineEvent
from ..monitoring import reports
from ..monitoring.reports import Attention, Period
from ..utils import from_local_time, today
from .base import Addresses, Pages, badge, localized, phone_number, sees, shorten
from .status import disconnect_reason

DEFAULT_DAYS = 30
PERIODS = {
    7: gettext_lazy("7 days"),
    30: gettext_lazy("30 days"),
    90: gettext_lazy("90 days"),
    365: gettext_lazy("A year"),
}
EARLIEST = date(2009, 1, 1)
"""Before this there was no WhatsApp; databases know no dates much earlier or later."""

SHOWN = (Customer, SetupLink, Connection)


def beginning(day: date) -> datetime:
    return from_local_time(datetime.combine(day, time.min))


class DayField(forms.DateField):
    """A day as browsers send it, whatever the language of the page."""

    widget = forms.DateInput(format="%Y-%m-%d", attrs={"type": "date"})

    def __init__(self, **options: Any) -> None:
        super().__init__(required=False, input_formats=["%Y-%m-%d"], localize=False, **options)


class PeriodForm(forms.Form):
    """Which days the overview tells of: the last so many, or those from one to another."""

    days = forms.TypedChoiceField(
        label=gettext_lazy("Period"),
        choices=list(PERIODS.items()),
        coerce=int,
        required=False,
    )
    start = DayField(label=gettext_lazy("From"))
    end = DayField(label=gettext_lazy("To"))

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or {}
        start, end = cleaned.get("start"), cleaned.get("end") or today()
        if self.errors:
            return cleaned
        if start is None and cleaned.get("end"):
            self.add_error("start", _("Choose the day from which on you want to see."))
        elif start is not None and start > end:
            self.add_error("start", _("The first day must not be after the last one."))
        elif start is not None and (start < EARLIEST or end > today()):
            self.add_error(
                "start",
                _("Choose days from %(first)s until today.") % {"first": date_format(EARLIEST)},
            )
        return cleaned

    def chosen(self) -> tuple[date, date, int | None]:
        """Return the first day, the last one, and how many days it is where that was chosen."""
        data = self.cleaned_data if self.is_valid() else {}
        if start := data.get("start"):
            return start, data.get("end") or today(), None
        days = data.get("days") or DEFAULT_DAYS
        return today() - timedelta(days=days - 1), today(), days


@dataclass(frozen=True)
class Item:
    """One row of a list: what it is, whose, and what is to be known of it."""

    name: object
    url: str
    customer: Customer
    customer_url: str
    detail: object


@dataclass(frozen=True)
class Listing:
    """The newest of what was counted, and the address of the list that has all of it."""

    title: object
    count: int
    items: list[Item]
    all_url: str


def show(model_admin: Pages, request: HttpRequest) -> TemplateResponse:
    """Return the page of the period that ``request`` names."""
    form = PeriodForm(request.GET)
    first, last, days = form.chosen()
    period = Period(beginning(first), beginning(last + timedelta(days=1)))
    took = reports.time_to_connect(period)
    address = Addresses(model_admin.admin_site, request)
    return model_admin.page(
        request,
        "customer/overview",
        _("WhatsApp overview"),
        form=form,
        first=first,
        last=last,
        periods=[
            {"title": title, "url": f"?days={count}", "is_chosen": count == days}
            for count, title in PERIODS.items()
        ],
        earliest=EARLIEST.isoformat(),
        today=today().isoformat(),
        is_empty=not SetupLink.objects.exists() and not Connection.objects.exists(),
        steps=list(
            zip(
                [_("Invited"), _("Opened the link"), _("Connected")],
                reports.funnel(period).steps,
                strict=True,
            )
        ),
        took=took,
        median=duration(took.median) if took.median is not None else "",
        failures=reports.failures(period),
        failures_url=address.of_list(
            TimelineEvent,
            kind__exact=TimelineEvent.Kind.SETUP_FAILED,
            **{name: str(moment) for name, moment in period.of("occurred_at").items()},
        ),
        expiring=expiring(address),
        attention=attention(address),
    )


def is_seen_by(request: HttpRequest) -> bool:
    return all(sees(request, model._meta) for model in SHOWN)


def expiring(address: Addresses) -> Listing:
    links = reports.links_expiring()
    return Listing(
        title=_("Links that end within 3 days"),
        count=links.count,
        items=[
            Item(
                name=_("until %(when)s") % {"when": localized(link.expires_at)},
                url=address.of_row(link),
                customer=link.customer,
                customer_url=address.of_row(link.customer),
                detail=badge("busy", _("Opened")) if link.opened_at else "",
            )
            for link in links.newest
            if link.expires_at
        ],
        all_url=address.of_list(SetupLink, usable="soon"),
    )


def attention(address: Addresses) -> list[Listing]:
    return [
        Listing(
            title=why.label,
            count=numbers.count,
            items=[
                Item(
                    name=phone_number(number),
                    url=address.of_row(number),
                    customer=number.customer,
                    customer_url=address.of_row(number.customer),
                    detail=DETAILS[why](number),
                )
                for number in numbers.newest
            ],
            all_url=address.of_list(Connection, attention=why),
        )
        for why, numbers in reports.numbers_needing_attention().items()
    ]


def _disconnected(number: Connection) -> str:
    when = localized(number.disconnected_at) if number.disconnected_at else ""
    return f"{when} {shorten(disconnect_reason(number))}"


def _name(number: Connection) -> SafeString:
    kind = "busy" if number.name_status == "PENDING_REVIEW" else "bad"
    state = badge(kind, NAME_STATUSES.get(number.name_status, number.name_status))
    return format_html("<bdi>{}</bdi> {}", shorten(number.verified_name), state)


def _health(number: Connection) -> SafeString:
    kind = "bad" if number.health_status == Health.UNHEALTHY else "busy"
    state = badge(kind, number.get_health_status_display())
    return format_html("{} {}", state, shorten(number.health_error))


NAME_STATUSES = {
    "DECLINED": gettext_lazy("Declined"),
    "EXPIRED": gettext_lazy("Expired"),
    "PENDING_REVIEW": gettext_lazy("In review"),
}

DETAILS: dict[Attention, Callable[[Connection], object]] = {
    Attention.TEST_NUMBER: lambda number: "",
    Attention.RESTRICTED: lambda number: badge("bad", number.get_account_status_display()),
    Attention.DISCONNECTED: _disconnected,
    Attention.NAME: _name,
    Attention.HEALTH: _health,
}


def duration(took: timedelta) -> str:
    if took < timedelta(minutes=1):
        return _("less than a minute")
    now = timezone.now()
    return timesince(now - took, now)
