"""Customers: registered with Kapso, and found or added by what Kapso says about them."""

from __future__ import annotations

from functools import partial

from django.db import IntegrityError
from django.utils import timezone

from ..db import atomic, retry_on_conflict, sqlite_write_lock
from ..exceptions import KapsoConflict, KapsoError, KapsoValidationError
from ..kapso.client import KapsoClient
from ..kapso.types import KapsoCustomer
from ..models import Customer, new_external_id
from .steps import Steps


def registration_steps(customer: Customer) -> Steps[str]:
    """Return Kapso's id of ``customer``, and register the customer there if it has none.

    Kapso is searched before a customer is created, so that a repeated call after a lost response
    creates no second one. Raise KapsoConflict if another customer here has the id already.
    """
    if customer.kapso_id:
        return customer.kapso_id
    if not customer.external_customer_id:
        Customer.objects.filter(pk=customer.pk, external_customer_id=None).update(
            external_customer_id=new_external_id()
        )
        customer.refresh_from_db(fields=["external_customer_id"])
    external_id = customer.external_customer_id or ""
    remote: KapsoCustomer = yield partial(
        _find_or_create_remote, name=customer.name, external_id=external_id
    )
    try:
        with atomic():
            Customer.objects.filter(pk=customer.pk).update(kapso_id=remote.id)
    except IntegrityError:
        raise KapsoConflict(
            f"Kapso's customer {remote.id} is another customer of this site: "
            f"{Customer.objects.get(kapso_id=remote.id)}. Use that one.",
            operation="find customer",
        ) from None
    customer.kapso_id = remote.id
    return remote.id


def _find_or_create_remote(client: KapsoClient, *, name: str, external_id: str) -> KapsoCustomer:
    found = client.find_customer(external_id)
    if found is not None:
        return found
    try:
        return client.create_customer(name=name, external_customer_id=external_id)
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


def customer_from_api(kapso_id: str, client: KapsoClient) -> Customer:
    """Return the customer with Kapso's id, and add it from the API if it is not known here."""
    customer = Customer.objects.filter(kapso_id=kapso_id).first()
    if customer is not None:
        return customer
    return add_customer_from_api(client.get_customer(kapso_id))


def add_customer_from_api(remote: KapsoCustomer) -> Customer:
    """Return the customer here for ``remote``, which was just read from the API."""
    return retry_on_conflict(
        lambda: find_or_add_customer(remote.id, remote.external_customer_id or "", remote.name)
    )


def find_or_add_customer(kapso_id: str, external_customer_id: str, name: str = "") -> Customer:
    """Return the customer with Kapso's id, else the one with our own id; add an unknown one.

    Call it inside ``retry_on_conflict``: two processes may add the same customer at once. Raise
    ValueError for an external id that the database cannot tell from that of another customer.
    """
    customer = Customer.objects.filter(kapso_id=kapso_id).first()
    if customer is None and external_customer_id:
        customer = Customer.objects.filter(external_customer_id=external_customer_id).first()
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
            name=(name or external_customer_id or f"Kapso customer {kapso_id[:8]}")[:255],
        )
    return customer


def touch_if_unchanged(customer: Customer) -> bool:
    """Set ``updated_at``, and return True, unless the row has changed since ``customer`` was read.

    Of several processes that read the same row, one gets True. So what a double click or two
    members of staff ask for is done once, without a lock that is held while Kapso is asked.
    """
    unchanged = Customer.objects.filter(pk=customer.pk, updated_at=customer.updated_at)
    return bool(
        retry_on_conflict(
            lambda: unchanged.update(updated_at=timezone.now()), within=sqlite_write_lock
        )
    )
