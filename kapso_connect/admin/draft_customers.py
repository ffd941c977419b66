"""The customers of a draft: how many they are, and how many of them would be left out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from django.db.models import Count, Exists, OuterRef, Q, QuerySet

from ..models import Connection, Customer, InvitationBatch, SetupLink


@dataclass(frozen=True)
class Counts:
    """How many customers there are, and how many of them have an e-mail address."""

    total: int
    with_email: int


class DraftCustomers:
    """The customers of ``batch``, counted in one query."""

    def __init__(self, batch: InvitationBatch) -> None:
        customers: Any = batch_customers(batch)
        groups = customers.order_by().values("is_connected", "is_invited")
        self._groups = list(
            groups.annotate(total=Count("pk"), with_email=Count("pk", filter=~Q(email="")))
        )
        everybody = self.count()
        self.total, self.with_email = everybody.total, everybody.with_email
        self.connected = self._sum("total", lambda group: group["is_connected"])
        self.invited = self._sum("total", lambda group: group["is_invited"])

    def count(self, *, without_connected: bool = False, without_invited: bool = False) -> Counts:
        """Return how many customers are left without those who are connected, or have a link that
        can be used."""

        def is_left(group: Any) -> bool:
            return not (
                (without_connected and group["is_connected"])
                or (without_invited and group["is_invited"])
            )

        return Counts(self._sum("total", is_left), self._sum("with_email", is_left))

    def _sum(self, name: str, condition: Callable[[Any], bool]) -> int:
        return sum(group[name] for group in self._groups if condition(group))


def batch_customers(batch: InvitationBatch) -> QuerySet[Customer]:
    """Return the customers of a batch; ``is_connected`` and ``is_invited`` tell whether one has a
    connected number and a usable link."""
    numbers = Connection.objects.connected().filter(customer=OuterRef("pk"))
    links = SetupLink.objects.usable().filter(customer=OuterRef("pk"))
    return Customer.objects.filter(invitations__batch=batch).annotate(
        is_connected=Exists(numbers), is_invited=Exists(links)
    )
