"""What ``{% whatsapp_connection %}`` shows of a customer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from django.db.models import Q

from ..kapso.error_codes import SetupError, find_error
from ..models import Connection, Customer, OnboardingStatus
from .connected_number import ConnectedNumber

ACCESS_CHECKS = {"phone_number_access", "phone_number_connection", "token_validity"}
"""The health checks whose failure a customer can end by connecting the number again."""


@dataclass(frozen=True)
class OwnNumber:
    """One of the customer's numbers. Its ``problem`` is one of ``ConnectedNumber``, "access",
    "paused" or "paused_long"; "" if there is none."""

    pk: int
    phone_number: str
    verified_name: str
    problem: str
    is_connected: bool
    can_reconnect: bool


def self_service_state(customer: Customer | None) -> dict[str, Any]:
    """Return the context of ``kapso_connect/connection.html``. Only reads rows: at most two
    queries."""
    status = OnboardingStatus(customer.status) if customer else OnboardingStatus.NOT_INVITED
    numbers: list[OwnNumber] = []
    failure: SetupError | None = None
    if customer is not None and status in NUMBER_STATUSES:
        numbers = _own_numbers(customer)
    if customer is not None and status == OnboardingStatus.FAILED:
        link = customer.latest_setup_link
        failure = find_error(link.last_error_code) if link else None
    return {
        "status": status.value,
        "numbers": numbers,
        "failure": failure,
        "can_replace": any(number.is_connected for number in numbers)
        and all(number.problem in UNUSABLE for number in numbers),
    }


NUMBER_STATUSES = {
    OnboardingStatus.CONNECTED,
    OnboardingStatus.PAUSED,
    OnboardingStatus.DISCONNECTED,
}
"""The statuses that are shown with the customer's numbers."""

UNUSABLE = {"test", "restricted", "paused", "paused_long"}
"""The problems of numbers that cannot be used."""


def _own_numbers(customer: Customer) -> list[OwnNumber]:
    """Return the numbers that are connected or paused; where there is none, the last one."""
    known = Connection.objects.filter(customer=customer)
    ongoing = Q(pk__in=known.connected()) | Q(pk__in=known.paused())
    rows = list(known.filter(ongoing).order_by("-connected_at", "-pk"))
    rows = rows or list(known.ended().order_by("-disconnected_at", "-pk")[:1])
    return [_own_number(row) for row in rows]


def _own_number(connection: Connection) -> OwnNumber:
    shown = ConnectedNumber.of(connection, is_named=True)
    problem = shown.problem if connection.is_connected else ""
    if connection.is_paused:
        problem = "paused_long" if connection.is_paused_for_long else "paused"
    elif connection.is_connected and not problem and _has_lost_access(connection):
        problem = "access"
    is_offered = problem in {"access", "paused_long"} or not (
        connection.is_connected or connection.is_paused
    )
    return OwnNumber(
        connection.pk,
        shown.phone_number,
        shown.verified_name,
        problem,
        connection.is_connected,
        is_offered and bool(connection.phone_digits),
    )


def _has_lost_access(connection: Connection) -> bool:
    problems = connection.health_problems
    return bool(connection.health_status) and any(
        problem.get("check") in ACCESS_CHECKS for problem in problems
    )
