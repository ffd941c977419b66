"""Statistics for staff: how invitations went over a period, and what needs attention now.

The number of queries does not depend on the number of rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Generic, TypeVar

from django.db import models
from django.db.models import Count, F, Q, Value
from django.db.models.fields.json import KT
from django.db.models.functions import Coalesce

from ..kapso.error_codes import SetupError, find_error
from ..models import (
    CONNECTED_NEEDING_ATTENTION,
    Attention,
    Connection,
    Customer,
    SetupLink,
    TimelineEvent,
)

RowT = TypeVar("RowT", bound=models.Model)

MAX_LISTED_ROWS = 10
"""A list counts all rows and shows this many of them."""

STEPS = {
    "invited": Q(),
    "opened": Q(opened_at__isnull=False),
    "connected": Q(setup_status=SetupLink.SetupStatus.COMPLETED),
}
"""Which of the links that were created in a period count for each step of the funnel."""


@dataclass(frozen=True)
class Period:
    """The time from ``start`` up to, but not including, ``end``."""

    start: datetime
    end: datetime

    def lookups(self, field: str) -> dict[str, datetime]:
        """Return filter arguments for rows whose ``field`` is in this period."""
        return {f"{field}__gte": self.start, f"{field}__lt": self.end}


@dataclass(frozen=True)
class Step:
    """How many customers reached a step. The rates are percentages of the invited customers and of
    the previous step; None if there were none."""

    customers: int
    of_invited: float | None
    of_previous: float | None


@dataclass(frozen=True)
class Funnel:
    """The customers for whom a setup link was created in a period: how many were invited, how many
    opened one of those links, and how many connected a number with one, at any time."""

    invited: int
    opened: int
    connected: int

    @property
    def steps(self) -> list[Step]:
        counts = [self.invited, self.opened, self.connected]
        return [
            Step(count, percentage(count, self.invited), percentage(count, previous))
            for previous, count in zip([0, *counts], counts, strict=False)
        ]


@dataclass(frozen=True)
class FailureCount:
    """How often connecting failed with ``code``, and for how many customers."""

    code: str
    failure: SetupError
    times: int
    customers: int
    rate: float | None


@dataclass(frozen=True)
class Failures:
    """The failures in a period: their total, and the most frequent codes."""

    total: int
    codes: list[FailureCount]

    @property
    def others(self) -> int:
        return self.total - sum(row.times for row in self.codes)


@dataclass(frozen=True)
class Durations:
    """The time from a link's creation to the connection; ``median`` is None if ``count`` is 0."""

    count: int
    median: timedelta | None


@dataclass(frozen=True)
class Rows(Generic[RowT]):
    """How many rows there are, and the first ``MAX_LISTED_ROWS`` of them."""

    count: int
    listed: list[RowT]


def percentage(part: int, whole: int) -> float | None:
    return 100 * part / whole if whole else None


def customers_at_step(step: str, period: Period) -> models.QuerySet[Customer]:
    """Return the customers that count for a step of the funnel of ``period``."""
    links = SetupLink.objects.filter(STEPS[step], **period.lookups("created_at"))
    return Customer.objects.filter(pk__in=links.values("customer"))


def funnel(period: Period) -> Funnel:
    links = SetupLink.objects.filter(**period.lookups("created_at"))
    return Funnel(
        **links.aggregate(
            **{
                step: Count("customer", distinct=True, filter=condition or None)
                for step, condition in STEPS.items()
            }
        )
    )


def customers_failed(period: Period) -> models.QuerySet[Customer]:
    """Return the customers for whom connecting failed in ``period``, for whatever reason."""
    return Customer.objects.filter(pk__in=_failed_events(period).values("customer"))


def customers_failed_with(code: str, period: Period) -> models.QuerySet[Customer]:
    """Return the customers for whom connecting failed with ``code`` in ``period``."""
    events = _failed_events(period).filter(code=code)
    return Customer.objects.filter(pk__in=events.values("customer"))


def _failed_events(period: Period) -> Any:
    """Return the events of ``period`` that say that connecting failed, each with its ``code``; ""
    if it has none."""
    events = TimelineEvent.objects.filter(
        kind=TimelineEvent.Kind.SETUP_FAILED, **period.lookups("occurred_at")
    )
    return events.annotate(
        code=Coalesce(KT("data__error_code"), Value(""), output_field=models.TextField())
    )


def failures(period: Period) -> Failures:
    """Return how often connecting failed in ``period``, by Kapso's error codes."""
    events = _failed_events(period)
    total = events.count()
    by_code = (
        events.order_by()
        .values("code")
        .annotate(times=Count("pk"), customers=Count("customer", distinct=True))
        .order_by("-times", "code")
    )
    return Failures(
        total,
        [
            FailureCount(
                code=row["code"],
                failure=find_error(row["code"]),
                times=row["times"],
                customers=row["customers"],
                rate=percentage(row["times"], total),
            )
            for row in by_code[:MAX_LISTED_ROWS]
        ],
    )


def time_to_connect(period: Period) -> Durations:
    """Return how long customers who connected in ``period`` took."""
    durations = TimelineEvent.objects.filter(
        kind__in=[TimelineEvent.Kind.CONNECTED, TimelineEvent.Kind.RECONNECTED],
        setup_link__isnull=False,
        **period.lookups("occurred_at"),
    )
    count = durations.count()
    middle = (
        durations.annotate(took=F("occurred_at") - F("setup_link__created_at"))
        .order_by("took")
        .values_list("took", flat=True)[max(count - 1, 0) // 2 : count // 2 + 1]
    )
    values = [max(took, timedelta()) for took in middle]  # the clocks may differ
    return Durations(count, sum(values, timedelta()) / len(values) if values else None)


def idle_customers(before: datetime) -> Rows[Customer]:
    """Return the customers who were invited and have done nothing since ``before``, the longest
    waiting first."""
    customers = Customer.objects.idle_since(before)
    listed = customers.order_by("status_changed_at", "pk").annotate(
        reminded_at=F("latest_setup_link__reminded_at")
    )
    return Rows(customers.count(), list(listed[:MAX_LISTED_ROWS]))


def numbers_needing_attention() -> dict[Attention, Rows[Connection]]:
    conditions = CONNECTED_NEEDING_ATTENTION.items()
    counts = Connection.objects.connected().aggregate(
        **{why: Count("pk", filter=condition) for why, condition in conditions}
    )
    found: dict[Attention, Rows[Connection]] = {}
    for why in Attention:
        numbers = Connection.objects.needing_attention(why)
        count = counts[why] if why in counts else numbers.count()
        listed = numbers.select_related("customer").order_by("-pk")[:MAX_LISTED_ROWS]
        found[why] = Rows(count, list(listed))
    return found
