"""How far each customer's onboarding has come: not invited, invited, opened, waiting, failed,
connected or disconnected.

The rules exist in two forms, which must agree: ``get_statuses`` for a list of customers, and
``has_status`` as a condition for a query. ``get_statuses`` makes three queries, however many rows
there are; ``has_status`` makes none.
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
    """How far a customer's onboarding has come."""

    NOT_INVITED = "not_invited", _("Not invited")
    INVITED = "invited", _("Invited")
    OPENED = "opened", _("Opened")
    WAITING = "waiting", _("Waiting")
    FAILED = "failed", _("Failed")
    CONNECTED = "connected", _("Connected")
    DISCONNECTED = "disconnected", _("Disconnected")


@dataclass(frozen=True)
class CustomerStatus:
    """The onboarding status of one customer, and the rows on which it depends.

    ``connection`` is the number that is connected, or was last; ``link`` is the latest setup link,
    without its ``url`` and ``options``. Each is None if there is none. ``more_connections`` is
    how many further numbers are connected.
    """

    status: OnboardingStatus
    connection: Connection | None = None
    link: SetupLink | None = None
    more_connections: int = 0


NOT_INVITED = CustomerStatus(OnboardingStatus.NOT_INVITED)

_is_connected = Q(status=Connection.Status.CONNECTED)
# A row without ``connected_at`` only records that the disconnection was reported first.
_is_disconnected = Q(
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


def get_statuses(customers: Iterable[Customer]) -> dict[int, CustomerStatus]:
    """Return the status of each of the ``customers``, by primary key, in three queries."""
    rows = list(_with_keys(Customer.objects.filter(pk__in=[customer.pk for customer in customers])))
    connections = Connection.objects.in_bulk([r.connected_pk or r.disconnected_pk for r in rows])
    links = SetupLink.objects.defer("url", "options").in_bulk([r.link_pk for r in rows])
    return {
        row.pk: _customer_status(
            row,
            connections.get(row.connected_pk or row.disconnected_pk),
            links.get(row.link_pk),
        )
        for row in rows
    }


def get_status(customers: models.QuerySet[Customer]) -> tuple[Customer, CustomerStatus] | None:
    """Return the one customer in ``customers`` and its status, in two queries; None if
    ``customers`` is empty. Here the link includes its ``url`` and ``options``."""
    row = _with_keys(customers).first()
    if row is None:
        return None
    connection_pk = row.connected_pk or row.disconnected_pk or 0
    same: Any = Customer.objects.filter(pk=row.pk)
    customer = (
        same.annotate(
            number=FilteredRelation("connections", condition=Q(connections__pk=connection_pk)),
            latest_link=FilteredRelation(
                "setup_links", condition=Q(setup_links__pk=row.link_pk or 0)
            ),
        )
        .select_related("number", "latest_link")
        .first()
    )
    if customer is None:
        return None
    # Django leaves out the attribute if there is no such row.
    connection, link = getattr(customer, "number", None), getattr(customer, "latest_link", None)
    return customer, _customer_status(row, connection, link)


def has_status(status: str) -> Q:
    """Return the condition for customers with ``status``, a value of ``OnboardingStatus``."""
    connected, waiting, disconnected, _invited = progress_conditions()
    links = SetupLink.objects.filter(_can_still_connect, customer=OuterRef("pk"))
    failed = Q(setup_status=SetupLink.SetupStatus.FAILED)
    none_of_these = ~connected & ~waiting & ~disconnected
    return {
        OnboardingStatus.CONNECTED: connected,
        OnboardingStatus.WAITING: ~connected & waiting,
        OnboardingStatus.DISCONNECTED: ~connected & ~waiting & disconnected,
        OnboardingStatus.FAILED: none_of_these & Q(Exists(links.filter(failed))),
        OnboardingStatus.OPENED: none_of_these
        & Q(Exists(links.filter(~failed, opened_at__isnull=False))),
        OnboardingStatus.INVITED: none_of_these & Q(Exists(links.filter(~failed, opened_at=None))),
        OnboardingStatus.NOT_INVITED: none_of_these & ~Q(Exists(links)),
    }[OnboardingStatus(status)]


def progress_conditions() -> tuple[Q, Q, Q, Q]:
    """Return the conditions for customers with a connected number, with a number that waits for
    confirmation, with a disconnected number, and with a link that can still connect one.

    A customer whose status is NOT_INVITED meets none of them; any other meets at least one.
    """
    connections = Connection.objects.filter(customer=OuterRef("pk"))
    links = SetupLink.objects.filter(customer=OuterRef("pk"))
    return (
        Q(Exists(connections.filter(_is_connected))),
        Q(Exists(links.filter(unconfirmed_since__isnull=False))),
        Q(Exists(connections.filter(ended_connections()))),
        Q(Exists(links.filter(_can_still_connect))),
    )


def ended_connections() -> Q:
    """Return the condition for connections that ended and whose customer has not been invited
    since."""
    newer = SetupLink.objects.filter(
        _can_still_connect,
        customer=OuterRef("customer"),
        created_at__gt=OuterRef("disconnected_at"),
    )
    return _is_disconnected & ~Q(Exists(newer))


def can_still_connect(link: SetupLink) -> bool:
    """Return whether a customer's latest link may still lead to a connection, or says why it did
    not: it was neither revoked nor completed. An expired one is renewed when the customer comes."""
    failed = link.setup_status == SetupLink.SetupStatus.FAILED
    return link.setup_status != SetupLink.SetupStatus.COMPLETED and (
        link.status in {SetupLink.Status.ACTIVE, SetupLink.Status.EXPIRED}
        or (link.status == SetupLink.Status.USED and failed)
    )


def _with_keys(customers: models.QuerySet[Customer]) -> Any:
    """Return named tuples: each customer's key, and the keys of the rows on which its status
    depends."""
    connections = Connection.objects.filter(customer=OuterRef("pk"))
    connected, disconnected = (
        connections.filter(_is_connected),
        connections.filter(_is_disconnected),
    )
    links = SetupLink.objects.filter(customer=OuterRef("pk"))
    return (
        customers.annotate(
            connected_pk=Subquery(_latest_pk(connected, "connected_at")),
            disconnected_pk=Subquery(_latest_pk(disconnected, "disconnected_at")),
            link_pk=Subquery(_latest_pk(links.filter(is_latest=True), "created_at")),
            is_waiting=Exists(links.filter(unconfirmed_since__isnull=False)),
            connected_count=Subquery(_count(connected)),
        )
        .order_by()
        .values_list(
            "pk",
            "connected_pk",
            "disconnected_pk",
            "link_pk",
            "is_waiting",
            "connected_count",
            named=True,
        )
    )


def _latest_pk(rows: models.QuerySet[Any], time_field: str) -> models.QuerySet[Any]:
    return rows.order_by(F(time_field).desc(nulls_last=True), "-pk").values("pk")[:1]


def _count(rows: models.QuerySet[Any]) -> models.QuerySet[Any]:
    counted: models.QuerySet[Any] = rows.order_by().values("customer").annotate(count=Count("pk"))
    return counted.values("count")


def _customer_status(
    row: Any, connection: Connection | None, link: SetupLink | None
) -> CustomerStatus:
    return CustomerStatus(
        _onboarding_status(connection, link, row.is_waiting),
        connection,
        link,
        max((row.connected_count or 0) - 1, 0),
    )


def _onboarding_status(
    connection: Connection | None, link: SetupLink | None, is_waiting: bool
) -> OnboardingStatus:
    if connection is not None and connection.is_connected:
        return OnboardingStatus.CONNECTED
    if is_waiting:
        return OnboardingStatus.WAITING
    open_link = link if link is not None and can_still_connect(link) else None
    if connection is not None and not _is_newer(open_link, connection):
        return OnboardingStatus.DISCONNECTED
    if open_link is None:
        return OnboardingStatus.NOT_INVITED
    if open_link.setup_status == SetupLink.SetupStatus.FAILED:
        return OnboardingStatus.FAILED
    return OnboardingStatus.OPENED if open_link.opened_at else OnboardingStatus.INVITED


def _is_newer(link: SetupLink | None, connection: Connection) -> bool:
    """Return whether ``link`` was made after ``connection`` ended: the customer was invited
    again."""
    return (
        link is not None
        and connection.disconnected_at is not None
        and link.created_at > connection.disconnected_at
    )
