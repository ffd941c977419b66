"""Customers: registered with Kapso, and found or added by what Kapso says about them."""

from __future__ import annotations

from collections.abc import Mapping

from django.db import DatabaseError, IntegrityError
from django.db.models import Q
from django.utils import timezone

from ..conf import get_conf
from ..db import atomic, retry_on_conflict
from ..exceptions import KapsoConflict, KapsoError, KapsoValidationError
from ..kapso.client import KapsoClient
from ..kapso.types import KapsoCustomer
from ..models import Customer, new_external_id
from ..text import one_line


def register(customer: Customer, client: KapsoClient) -> None:
    """Register ``customer`` with Kapso if it is not, and set its ``kapso_id``.

    Raise KapsoConflict if another customer here has the id already.
    """
    if not customer.kapso_id:
        prepare_registration(customer)
        error = record_registrations({customer: ask_for_registration(customer, client)})
        if customer in error:
            raise error[customer]


def prepare_registration(customer: Customer) -> None:
    """Give ``customer`` an external id if it has none: by it Kapso's customer is found again."""
    if not customer.external_customer_id:
        Customer.objects.filter(pk=customer.pk, external_customer_id=None).update(
            external_customer_id=new_external_id()
        )
        customer.refresh_from_db(fields=["external_customer_id"])


def ask_for_registration(customer: Customer, client: KapsoClient) -> KapsoCustomer:
    """Return Kapso's customer for ``customer``. Touches no row, so any thread may call it.

    Kapso is searched before a customer is created, so that a repeated call after a lost response
    creates no second one.
    """
    external_id = customer.external_customer_id or ""
    found = client.find_customer(external_id)
    if found is not None:
        return found
    try:
        return client.create_customer(name=customer.name, external_customer_id=external_id)
    except KapsoError as error:
        # Another process may have registered the customer at the same moment, or our request was
        # carried out although its response was lost.
        may_exist = (
            isinstance(error, (KapsoConflict, KapsoValidationError)) or error.outcome_unknown
        )
        found = client.find_customer(external_id) if may_exist else None
        if found is None:
            raise
        return found


def record_registrations(registered: Mapping[Customer, KapsoCustomer]) -> dict[Customer, Exception]:
    """Store Kapso's ids of customers in one transaction. Return an error for each customer whose id
    could not be stored: a KapsoConflict if it is that of another customer here."""
    for customer, remote in registered.items():
        customer.kapso_id = remote.id
    try:
        with atomic():
            Customer.objects.bulk_update(registered, ["kapso_id"])
    except DatabaseError:
        # One that cannot be stored must not stop the others.
        return {
            customer: error
            for customer, remote in registered.items()
            if (error := _record_registration(customer, remote)) is not None
        }
    return {}


def _record_registration(customer: Customer, remote: KapsoCustomer) -> Exception | None:
    try:
        with atomic():
            Customer.objects.filter(pk=customer.pk).update(kapso_id=remote.id)
    except IntegrityError:
        customer.kapso_id = None
        return KapsoConflict(
            f"Kapso's customer {remote.id} is another customer of this site: "
            f"{Customer.objects.get(kapso_id=remote.id)}. Use that one.",
            operation="find customer",
        )
    except DatabaseError as error:
        customer.kapso_id = None
        return error
    return None


def customer_from_api(kapso_id: str, client: KapsoClient) -> Customer | None:
    """Return the customer with Kapso's id, and add it from the API if it is not known here; None
    if ADOPT_UNKNOWN_CUSTOMERS is off and it is none of this site's."""
    customer = Customer.objects.filter(kapso_id=kapso_id).first()
    if customer is not None:
        return customer
    remote = client.get_customer(kapso_id)
    if is_foreign(remote.id, remote.external_customer_id or ""):
        return None
    return add_customer_from_api(remote)


def add_customer_from_api(remote: KapsoCustomer) -> Customer:
    """Return the customer here for ``remote``, which was just read from the API."""
    return retry_on_conflict(
        lambda: find_or_add_customer(remote.id, remote.external_customer_id or "", remote.name)
    )


def is_known(kapso_id: str, external_customer_id: str) -> bool:
    """Return whether a customer here has Kapso's id, or the external id that this site gave it."""
    is_theirs = Q(kapso_id=kapso_id)
    if external_customer_id:
        is_theirs |= Q(external_customer_id=external_customer_id)
    return Customer.objects.filter(is_theirs).exists()


def is_foreign(kapso_id: str, external_customer_id: str) -> bool:
    """Return whether a customer of Kapso's is none of this site's, and must not become one."""
    return not get_conf().adopt_unknown_customers and not is_known(kapso_id, external_customer_id)


def find_or_add_customer(kapso_id: str, external_customer_id: str, name: str = "") -> Customer:
    """Return the customer with Kapso's id, else the one with our own id; add an unknown one.

    Its row is locked. Call it inside ``retry_on_conflict``: two processes may add the same customer
    at once. Raise ValueError for an external id that the database cannot tell from that of another
    customer.
    """
    customers = Customer.objects.locked()
    customer = customers.filter(kapso_id=kapso_id).first()
    if customer is None and external_customer_id:
        customer = customers.filter(external_customer_id=external_customer_id).first()
        if customer is not None and customer.external_customer_id != external_customer_id:
            # MySQL and MariaDB take "Ab3" for "aB3", and cannot store both.
            raise ValueError(
                f"This database cannot tell Kapso's external customer id {external_customer_id!r} "
                f"from that of a customer here, {customer.external_customer_id!r}. "
                "Correct one of them."
            )
        if customer is not None and customer.kapso_id is None:
            customer.kapso_id = kapso_id
            customer.save(update_fields=["kapso_id", "updated_at"])
    if customer is None:
        customer = Customer.objects.create(
            kapso_id=kapso_id,
            external_customer_id=external_customer_id or None,
            name=(one_line(name) or external_customer_id or f"Kapso customer {kapso_id[:8]}")[:255],
        )
    return customer


def touch_if_unchanged(customer: Customer) -> bool:
    """Set ``updated_at``, and return True, unless the row has changed since ``customer`` was read.

    Of several processes that read the same row, one gets True. So what a double click or two
    members of staff ask for is done once, without a lock that is held while Kapso is asked.
    """
    unchanged = Customer.objects.filter(pk=customer.pk, updated_at=customer.updated_at)
    return bool(retry_on_conflict(lambda: unchanged.update(updated_at=timezone.now())))
