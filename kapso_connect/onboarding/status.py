"""Where each customer stands: not invited, invited, opened, waiting, failed, connected, …

One definition in two forms: ``standings`` for the customers of a page, ``stands`` for a query over
all of them. Both make a fixed number of queries, however many rows there are.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from django.db import models
from django.db.models import Count, Exists, F, FilteredRelation, OuterRef, Q, Subquery
from django.utils.translation import gettext_lazy as _

from ..models import Connection, Customer, SetupLink


class OnboardingStatus(models.TextChoices):
    """Where a customer stands with WhatsApp."""

    NOT_INVITED = "not_invited", _("Not invited")
    INVITED = "invited", _("Invited")
    OPENED = "opened", _("Opened")
    WAITING = "waiting", _("Waiting")
    FAILED = "failed", _("Failed")
    CONNECTED = "connected", _("Connected")
    DISCONNECTED = "disconnected", _("Disconnected")


@dataclass(frozen=True)
class Status:
    """Where one customer stands, and the rows that say so.

    ``connection`` is the number that is connected, or was last; ``link`` the newest setup link,
    without its ``url`` and ``options``. Each is None where there is none. ``more`` is how many
    further numbers are connected.
    """

    standing: OnboardingStatus
    connection: Connection | None = None
    link: SetupLink | None = None
    more: int = 0


NOBODY = Status(OnboardingStatus.NOT_INVITED)

_connected = Q(status=Connection.Status.CONNECTED)
# One that never was connected stands for a number whose end was heard of before its beginning.
_lost = Q(
    status=Connection.Status.DISCONNECTED,
    connected_at__isnull=False,
    disconnected_at__isnull=False,
)
_can_still_connect = (
    Q(is_latest=True)
    & ~Q(setup_status=SetupLink.SetupStatus.COMPLETED)
    & (
        Q(status__in=[SetupLink.Status.ACTIVE, SetupLink.Status.EXPIRED])
        | Q(status=SetupLink.Status.USED, setup_status=SetupLink.SetupStatus.FAILED)
    )
)


def get_statuses(customers: Iterable[Customer]) -> dict[int, Status]:
    """Return where each of the ``customers`` stands, by primary key, in three queries."""
    rows = list(_located(Customer.objects.filter(pk__in=[customer.pk for customer in customers])))
    numbers = Connection.objects.in_bulk([r.open_pk or r.lost_pk for r in rows])
    known = SetupLink.objects.defer("url", "options").in_bulk([r.link_pk for r in rows])
    return {
        row.pk: _status(
            numbers.get(row.open_pk or row.lost_pk),
            known.get(row.link_pk),
            waits=row.waits,
            more=max((row.connected or 0) - 1, 0),
        )
        for row in rows
    }


def get_status(customers: models.QuerySet[Customer]) -> tuple[Customer, Status] | None:
    """Return the one customer in ``customers`` and where it stands, in two queries; None where
    there is none. The link has its ``url`` and ``options`` here."""
    row = _located(customers).first()
    if row is None:
        return None
    same: Any = Customer.objects.filter(pk=row.pk)
    customer = (
        same.annotate(
            number=FilteredRelation(
                "connections", condition=Q(connections__pk=row.open_pk or row.lost_pk or 0)
            ),
            newest=FilteredRelation("setup_links", condition=Q(setup_links__pk=row.link_pk or 0)),
        )
        .select_related("number", "newest")
        .first()
    )
    if customer is None:
        return None
    return customer, _status(
        getattr(customer, "number", None),  # Django sets what there is
        getattr(customer, "newest", None),
        waits=row.waits,
        more=max((row.connected or 0) - 1, 0),
    )


def _located(customers: models.QuerySet[Customer]) -> Any:
    own = Connection.objects.filter(customer=OuterRef("pk"))
    links = SetupLink.objects.filter(customer=OuterRef("pk"))
    return (
        customers.annotate(
            open_pk=Subquery(_newest(own.filter(_connected), "connected_at")),
            lost_pk=Subquery(_newest(own.filter(_lost), "disconnected_at")),
            link_pk=Subquery(_newest(links.filter(is_latest=True), "created_at")),
            waits=Exists(links.filter(unconfirmed_since__isnull=False)),
            connected=Subquery(_count(own.filter(_connected))),
        )
        .order_by()
        .values_list("pk", "open_pk", "lost_pk", "link_pk", "waits", "connected", named=True)
    )


def _newest(rows: models.QuerySet[Any], moment: str) -> models.QuerySet[Any]:
    return rows.order_by(F(moment).desc(nulls_last=True), "-pk").values("pk")[:1]


def _count(rows: models.QuerySet[Any]) -> models.QuerySet[Any]:
    counted: models.QuerySet[Any] = rows.order_by().values("customer").annotate(count=Count("pk"))
    return counted.values("count")


def _status(
    connection: Connection | None, link: SetupLink | None, *, waits: bool, more: int
) -> Status:
    return Status(_onboarding_status(connection, link, waits), connection, link, more)


def _onboarding_status(
    connection: Connection | None, link: SetupLink | None, waits: bool
) -> OnboardingStatus:
    if connection is not None and connection.is_connected:
        return OnboardingStatus.CONNECTED
    if waits:
        return OnboardingStatus.WAITING
    may_connect = link is not None and can_still_connect(link)
    if connection is not None and not (
        link is not None
        and may_connect
        and connection.disconnected_at is not None
        and link.created_at > connection.disconnected_at
    ):
        return OnboardingStatus.DISCONNECTED
    if link is None or not may_connect:
        return OnboardingStatus.NOT_INVITED
    if link.setup_status == SetupLink.SetupStatus.FAILED:
        return OnboardingStatus.FAILED
    return OnboardingStatus.OPENED if link.opened_at else OnboardingStatus.INVITED


def can_still_connect(link: SetupLink) -> bool:
    """True where a customer's newest link may still lead to a connection, or says why it did not:
    neither withdrawn nor completed. One that expired is renewed when the customer comes."""
    failed = link.setup_status == SetupLink.SetupStatus.FAILED
    return link.setup_status != SetupLink.SetupStatus.COMPLETED and (
        link.status in {SetupLink.Status.ACTIVE, SetupLink.Status.EXPIRED}
        or (link.status == SetupLink.Status.USED and failed)
    )


def lost() -> Q:
    """The condition for connections that ended and whose customer was not invited since."""
    newer = SetupLink.objects.filter(
        _can_still_connect,
        customer=OuterRef("customer"),
        created_at__gt=OuterRef("disconnected_at"),
    )
    return _lost & ~Q(Exists(newer))


def invitations() -> tuple[Q, Q, Q, Q]:
    """Return the conditions for connected, waiting, lost and invited customers; who stands at
    NOT_INVITED meets none of them, everybody else at least one."""
    own = Connection.objects.filter(customer=OuterRef("pk"))
    links = SetupLink.objects.filter(customer=OuterRef("pk"))
    return (
        Q(Exists(own.filter(_connected))),
        Q(Exists(links.filter(unconfirmed_since__isnull=False))),
        Q(Exists(own.filter(lost()))),
        Q(Exists(links.filter(_can_still_connect))),
    )


def has_status(standing: str) -> Q:
    """Return the condition for customers who stand at ``standing``, a value of ``Standing``."""
    connected, waiting, left, _invited = invitations()
    can_still_connect = SetupLink.objects.filter(_can_still_connect, customer=OuterRef("pk"))
    failed = Q(setup_status=SetupLink.SetupStatus.FAILED)
    invited = ~connected & ~waiting & ~left
    return {
        OnboardingStatus.CONNECTED: connected,
        OnboardingStatus.WAITING: ~connected & waiting,
        OnboardingStatus.DISCONNECTED: ~connected & ~waiting & left,
        OnboardingStatus.FAILED: invited & Q(Exists(can_still_connect.filter(failed))),
        OnboardingStatus.OPENED: invited
        & Q(Exists(can_still_connect.filter(~failed, opened_at__isnull=False))),
        OnboardingStatus.INVITED: invited
        & Q(Exists(can_still_connect.filter(~failed, opened_at=None))),
        OnboardingStatus.NOT_INVITED: invited & ~Q(Exists(can_still_connect)),
    }[OnboardingStatus(standing)]
