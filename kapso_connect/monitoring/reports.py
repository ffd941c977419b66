"""Figures for staff: how invitations go over a period, and what needs attention now.

The number of queries is the same however many rows there are.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Generic, TypeVar

from django.db import models
from django.db.models import Count, DurationField, Exists, ExpressionWrapper, F, OuterRef, Q
from django.db.models.fields.json import KT
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from ..kapso.error_codes import FAILURES, UNKNOWN, Failure
from ..models import AccountStatus, Connection, Health, SetupLink, TimelineEvent
from ..onboarding import status
from ..onboarding.numbers import STAFF
from ..utils import TEST_NUMBER

M = TypeVar("M", bound=models.Model)

NEWEST = 10
"""Rows that a list shows of what it counts."""

EXPIRES_SOON = timedelta(days=3)

APPROVED_NAMES = ["", "NONE", "APPROVED", "AVAILABLE_WITHOUT_REVIEW"]
"""Meta's ``name_status`` of a display name about which nothing has to be done; the others are
DECLINED, EXPIRED and PENDING_REVIEW."""


@dataclass(frozen=True)
class Period:
    """A span of time; ``end`` is not part of it."""

    start: datetime
    end: datetime

    def of(self, field: str) -> dict[str, datetime]:
        """Return the lookups for ``field`` lying in it."""
        return {f"{field}__gte": self.start, f"{field}__lt": self.end}


@dataclass(frozen=True)
class Step:
    """How many customers came as far as this; rates are percentages, None of nobody."""

    customers: int
    of_invited: float | None
    of_former: float | None


@dataclass(frozen=True)
class Funnel:
    """The customers for whom a setup link was created in a period: how many there are, how many of
    them followed one of those links, and how many connected a number with one, at any time."""

    invited: int
    opened: int
    connected: int

    @property
    def steps(self) -> list[Step]:
        counts = [self.invited, self.opened, self.connected]
        return [
            Step(count, percentage(count, self.invited), percentage(count, former))
            for former, count in zip([0, *counts], counts, strict=False)
        ]


@dataclass(frozen=True)
class FailureCount:
    """How often connecting failed with ``code``, and for how many customers."""

    code: str
    failure: Failure
    times: int
    customers: int
    rate: float | None


@dataclass(frozen=True)
class Failures:
    """The failures of a period: all of them, and the codes that were the most frequent."""

    total: int
    codes: list[FailureCount]

    @property
    def others(self) -> int:
        return self.total - sum(row.times for row in self.codes)


@dataclass(frozen=True)
class Durations:
    """How long it took from a link's creation to the connection; ``median`` is None for none."""

    count: int
    median: timedelta | None


@dataclass(frozen=True)
class Rows(Generic[M]):
    """How many rows there are, and the newest of them."""

    count: int
    newest: list[M]


class Attention(models.TextChoices):
    """Why somebody should look at a number."""

    TEST_NUMBER = "test", _("Test number")
    RESTRICTED = "restricted", _("Account restricted or disabled")
    DISCONNECTED = "disconnected", _("Disconnected, not invited since")
    NAME = "name", _("Display name not approved")
    HEALTH = "health", _("Not healthy")


def percentage(part: int, whole: int) -> float | None:
    return 100 * part / whole if whole else None


def funnel(period: Period) -> Funnel:
    customers = (
        SetupLink.objects.filter(**period.of("created_at"))
        .order_by()
        .values("customer")
        .annotate(
            followed=Count("opened_at"),
            completed=Count("pk", filter=Q(setup_status=SetupLink.SetupStatus.COMPLETED)),
        )
    )
    return Funnel(
        **customers.aggregate(
            invited=Count("customer"),
            opened=Count("customer", filter=Q(followed__gt=0)),
            connected=Count("customer", filter=Q(completed__gt=0)),
        )
    )


def failures(period: Period) -> Failures:
    """Count what went wrong in ``period``, by Kapso's error codes."""
    events = TimelineEvent.objects.filter(
        kind=TimelineEvent.Kind.SETUP_FAILED, **period.of("occurred_at")
    )
    total = events.count()
    by_code = (
        events.order_by()
        .values(code=KT("data__error_code"))
        .annotate(times=Count("pk"), customers=Count("customer", distinct=True))
        .order_by("-times", "code")
    )
    return Failures(
        total,
        [
            FailureCount(
                code=row["code"] or "",
                failure=FAILURES.get(row["code"] or "", UNKNOWN),
                times=row["times"],
                customers=row["customers"],
                rate=percentage(row["times"], total),
            )
            for row in by_code[:NEWEST]
        ],
    )


def time_to_connect(period: Period) -> Durations:
    """How long those took who connected in ``period``, from the creation of their link."""
    durations = TimelineEvent.objects.filter(
        kind__in=[TimelineEvent.Kind.CONNECTED, TimelineEvent.Kind.RECONNECTED],
        setup_link__isnull=False,
        **period.of("occurred_at"),
    )
    count = durations.count()
    middle = (
        durations.annotate(
            took=ExpressionWrapper(
                F("occurred_at") - F("setup_link__created_at"), output_field=DurationField()
            )
        )
        .order_by("took")
        .values_list("took", flat=True)[max(count - 1, 0) // 2 : count // 2 + 1]
    )
    values = [max(took, timedelta()) for took in middle]  # Kapso's clock may be ahead of ours
    return Durations(count, sum(values, timedelta()) / len(values) if values else None)


def expiring() -> Q:
    """The condition for setup links that end soon, and are not used."""
    now = timezone.now()
    return Q(status=SetupLink.Status.ACTIVE, expires_at__gt=now, expires_at__lte=now + EXPIRES_SOON)


def links_expiring() -> Rows[SetupLink]:
    """The links that end soon, those first that end first."""
    links = SetupLink.objects.filter(expiring())
    newest = links.select_related("customer").defer("url", "options", "next_url")
    return Rows(links.count(), list(newest.order_by("expires_at", "pk")[:NEWEST]))


def needs_attention(why: str) -> Q:
    """Return the condition for connections that need attention; ``why`` is of ``Attention``."""
    connected = Q(status=Connection.Status.CONNECTED)
    again = Connection.objects.filter(
        customer=OuterRef("customer"),
        status=Connection.Status.CONNECTED,
        connected_at__gte=OuterRef("disconnected_at"),
    )
    return {
        Attention.TEST_NUMBER: connected & Q(display_phone_number__regex=TEST_NUMBER),
        Attention.RESTRICTED: connected & ~Q(account_status=AccountStatus.ACTIVE),
        # What staff disconnected is as they want it.
        Attention.DISCONNECTED: status.lost() & ~Q(disconnect_reason=STAFF) & ~Q(Exists(again)),
        Attention.NAME: connected & ~Q(name_status__in=APPROVED_NAMES),
        Attention.HEALTH: connected & ~Q(health_status__in=["", Health.HEALTHY]),
    }[Attention(why)]


def numbers_needing_attention() -> dict[Attention, Rows[Connection]]:
    found = {why: Connection.objects.filter(needs_attention(why)) for why in Attention}
    lost = Attention.DISCONNECTED
    # The others are of connected numbers: one look at each of those counts them all.
    counts: dict[str, int] = Connection.objects.filter(
        status=Connection.Status.CONNECTED
    ).aggregate(
        **{why.value: Count("pk", filter=needs_attention(why)) for why in found if why != lost}
    )
    counts[lost.value] = found[lost].count()
    return {
        why: Rows(
            counts[why.value],
            list(numbers.select_related("customer").order_by("-pk")[:NEWEST]),
        )
        for why, numbers in found.items()
    }
