"""How far each customer's onboarding has come: the rule, the one function that stores its result,
and what is shown beside it.

``Customer.status`` is stored, so that lists can be filtered and sorted by it. Whatever changes a
customer's links or numbers calls ``update_status`` in the same transaction, with the customer's row
locked. ``kapso_sync`` compares all stored statuses with the rule.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django.db.models import Count, Exists, F, OuterRef, QuerySet, Subquery
from django.utils import timezone

from ..db import alias, retry_on_conflict
from ..models import (
    OFFBOARDED,
    Attention,
    Connection,
    Customer,
    OnboardingStatus,
    SetupLink,
)

__all__ = [
    "CustomerStatus",
    "OnboardingStatus",
    "can_still_connect",
    "find_wrong_statuses",
    "get_statuses",
    "repair_status",
    "update_status",
]

PAGE_SIZE = 1000


def can_still_connect(status: str | None, setup_status: str | None) -> bool:
    """Return whether a customer's latest link, with these states, may still lead to a connection,
    or says why it did not: it was neither revoked nor completed. An expired one is renewed when the
    customer comes."""
    return setup_status != SetupLink.SetupStatus.COMPLETED and (
        status in {SetupLink.Status.ACTIVE, SetupLink.Status.EXPIRED}
        # Kapso ends a link after some failures.
        or (status == SetupLink.Status.USED and setup_status == SetupLink.SetupStatus.FAILED)
    )


def _status_of(facts: Mapping[str, Any]) -> OnboardingStatus:
    """Return the status that follows from ``facts``, a row of ``_facts``."""
    if facts["is_connected"]:
        return OnboardingStatus.CONNECTED
    if facts["is_unconfirmed"]:
        return OnboardingStatus.CONFIRMING
    can_connect = can_still_connect(facts["link_status"], facts["setup_status"])
    ended_at = facts["ended_at"]
    if ended_at is not None and not (can_connect and facts["invited_at"] > ended_at):
        is_paused = facts["ended_because"] == OFFBOARDED
        return OnboardingStatus.PAUSED if is_paused else OnboardingStatus.DISCONNECTED
    if not can_connect:
        return OnboardingStatus.NOT_INVITED
    if facts["setup_status"] == SetupLink.SetupStatus.FAILED:
        return OnboardingStatus.FAILED
    return OnboardingStatus.OPENED if facts["opened_at"] else OnboardingStatus.INVITED


def _facts(customers: QuerySet[Customer]) -> Any:
    """Return dicts: each customer, its stored status, and what its status follows from."""
    connections = Connection.objects.filter(customer=OuterRef("pk"))
    links = SetupLink.objects.filter(customer=OuterRef("pk"))
    ended = connections.ended().order_by(F("disconnected_at").desc(), "-pk")
    return customers.using(alias()).values(
        "pk",
        "status",
        is_connected=Exists(connections.connected()),
        is_unconfirmed=Exists(links.unconfirmed()),
        ended_at=Subquery(ended.values("disconnected_at")[:1]),
        ended_because=Subquery(ended.values("disconnect_reason")[:1]),
        link_status=F("latest_setup_link__status"),
        setup_status=F("latest_setup_link__setup_status"),
        opened_at=F("latest_setup_link__opened_at"),
        invited_at=F("latest_setup_link__created_at"),
    )


def update_status(*customers: Customer, is_connected: bool = False) -> None:
    """Store the status of ``customers`` as it follows from their links and numbers now.

    Call it at the end of the transaction that changed those, with the customers' rows locked
    (``Customer.objects.locked()``) and just read. With ``is_connected``, the caller has just
    connected a number of each of them, and nothing else matters.
    """
    pks = [customer.pk for customer in customers]
    if is_connected:
        statuses = dict.fromkeys(pks, OnboardingStatus.CONNECTED)
    else:
        rows = _facts(Customer.objects.filter(pk__in=pks))
        statuses = {row["pk"]: _status_of(row) for row in rows}
    changed: dict[OnboardingStatus, list[int]] = defaultdict(list)
    now = timezone.now()
    for customer in customers:
        status = statuses[customer.pk]
        if customer.status != status:
            customer.status, customer.status_changed_at = status, now
            changed[status].append(customer.pk)
    for status, changed_pks in changed.items():
        Customer.objects.filter(pk__in=changed_pks).update(status=status, status_changed_at=now)


def find_wrong_statuses() -> Iterator[int]:
    """Yield the keys of the customers whose stored status is not the one that follows from their
    links and numbers. Reads ``PAGE_SIZE`` customers at a time."""
    last = 0
    customers = _facts(Customer.objects.all()).order_by("pk")
    while page := list(customers.filter(pk__gt=last)[:PAGE_SIZE]):
        yield from (row["pk"] for row in page if row["status"] != _status_of(row))
        last = page[-1]["pk"]


def repair_status(customer_id: int) -> tuple[str, str] | None:
    """Store the right status of a customer. Return the old and the new status, or None if it was
    right in the meantime."""

    def change() -> tuple[str, str] | None:
        customer = Customer.objects.locked().filter(pk=customer_id).first()
        if customer is None:
            return None
        before = customer.status
        update_status(customer)
        return (before, customer.status) if customer.status != before else None

    return retry_on_conflict(change)


@dataclass(frozen=True)
class CustomerStatus:
    """The onboarding status of one customer, and the rows that are shown with it.

    ``connection`` is the number that is connected, or was last; ``link`` is the latest setup link,
    without its ``url`` and ``options``. Each is None if there is none. ``more_connections`` is
    how many further numbers are connected. ``attention`` has each of the customer's numbers that
    need attention, with the reason: see ``CustomerQuerySet.needing_attention``. ``is_erased`` is
    True if the customer's personal data were erased.
    """

    status: OnboardingStatus
    connection: Connection | None = None
    link: SetupLink | None = None
    more_connections: int = 0
    attention: Sequence[tuple[Attention, Connection]] = ()
    is_erased: bool = False


NOT_INVITED = CustomerStatus(OnboardingStatus.NOT_INVITED)


def get_statuses(
    customers: Iterable[Customer], *, with_attention: bool = False
) -> dict[int, CustomerStatus]:
    """Return the status of each of the ``customers``, by primary key, in three queries; with
    ``attention``, in four."""
    customers = list(customers)
    pks = [customer.pk for customer in customers]
    rows = {row["pk"]: row for row in _shown_connections(pks)}
    attention = _attention(pks) if with_attention else {}
    connections = Connection.objects.in_bulk(
        [row["connected_pk"] or row["ended_pk"] for row in rows.values()]
    )
    links = SetupLink.objects.defer("url", "options").in_bulk(
        [customer.latest_setup_link_id for customer in customers]
    )
    return {
        customer.pk: CustomerStatus(
            OnboardingStatus(customer.status),
            connections.get(rows[customer.pk]["connected_pk"] or rows[customer.pk]["ended_pk"]),
            links.get(customer.latest_setup_link_id),
            max((rows[customer.pk]["connected_count"] or 0) - 1, 0),
            attention.get(customer.pk, ()),
            customer.erased_at is not None,
        )
        for customer in customers
        if customer.pk in rows
    }


def _attention(customer_ids: list[int]) -> dict[int, list[tuple[Attention, Connection]]]:
    found: dict[int, list[tuple[Attention, Connection]]] = defaultdict(list)
    numbers = Connection.objects.needing_attention().filter(customer__in=customer_ids)
    for number in numbers.order_by("-connected_at", "-pk"):
        reasons = number.attention if number.is_connected else [Attention.DISCONNECTED]
        found[number.customer_id] += [(why, number) for why in reasons]
    return found


def _shown_connections(customer_ids: list[int]) -> Iterable[Any]:
    connections = Connection.objects.filter(customer=OuterRef("pk"))
    counts = connections.connected().order_by().values("customer").annotate(count=Count("pk"))
    return (
        Customer.objects.filter(pk__in=customer_ids)
        .order_by()
        .values(
            "pk",
            connected_pk=Subquery(_latest(connections.connected(), "connected_at")),
            ended_pk=Subquery(_latest(connections.ended(), "disconnected_at")),
            connected_count=Subquery(counts.values("count")),
        )
    )


def _latest(rows: QuerySet[Connection], time_field: str) -> QuerySet[Connection, Any]:
    return rows.order_by(F(time_field).desc(nulls_last=True), "-pk").values("pk")[:1]
