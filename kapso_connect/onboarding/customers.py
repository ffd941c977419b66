"""Who a customer is: here, and at Kapso."""

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
    """Return Kapso's id of ``customer``, making the customer there where there is none.

    Looks before it creates, so that a repeated call after a lost answer makes no second one.
    """
    if customer.kapso_id:
        return customer.kapso_id
    if not customer.external_customer_id:
        Customer.objects.filter(pk=customer.pk, external_customer_id=None).update(
            external_customer_id=new_external_id()
        )
        customer.refresh_from_db(fields=["external_customer_id"])
    external_id = customer.external_customer_id or ""
    found: KapsoCustomer = yield partial(
        _find_or_create_remote, name=customer.name, external_id=external_id
    )
    try:
        with atomic():
            Customer.objects.filter(pk=customer.pk).update(kapso_id=found.id)
    except IntegrityError:
        raise KapsoConflict(
            f"Kapso's customer {found.id} is another customer of this site: "
            f"{Customer.objects.get(kapso_id=found.id)}. Use that one.",
            operation="find customer",
        ) from None
    customer.kapso_id = found.id
    return found.id


def _find_or_create_remote(client: KapsoClient, *, name: str, external_id: str) -> KapsoCustomer:
    found = client.find_customer(external_id)
    if found is not None:
        return found
    try:
        return client.create_customer(name=name, external_customer_id=external_id)
    except KapsoError as error:
        taken = isinstance(error, (KapsoConflict, KapsoValidationError))
        # Somebody registered the customer at the same moment, or our request was carried out
        # although its answer was lost.
        found = client.find_customer(external_id) if taken or error.outcome_unknown else None
        if found is None:
            raise
        return found


def customer_from_api(kapso_id: str, client: KapsoClient) -> Customer:
    """Return the local customer with Kapso's id, asking Kapso who it is where nobody knows it."""
    customer = Customer.objects.filter(kapso_id=kapso_id).first()
    if customer is not None:
        return customer
    return add_customer_from_api(client.get_customer(kapso_id))


def add_customer_from_api(remote: KapsoCustomer) -> Customer:
    """Return the local customer that ``remote``, just read from the API, stands for."""
    return retry_on_conflict(
        lambda: find_or_add_customer(remote.id, remote.external_customer_id or "", remote.name)
    )


def find_or_add_customer(kapso_id: str, external_customer_id: str, name: str = "") -> Customer:
    """Return the customer Kapso speaks of, by Kapso's id or else by ours; make an unknown one.

    Call it in a transaction that is retried: two processes may hear of the same customer at once.
    """
    customer = Customer.objects.filter(kapso_id=kapso_id).first()
    if customer is None and external_customer_id:
        customer = Customer.objects.filter(external_customer_id=external_customer_id).first()
        if customer is not None and customer.external_customer_id != external_customer_id:
            # MySQL and MariaDB take "Ab3" for "aB3", and cannot keep both.
            raise ValueError(
                f"Kapso's external customer id {external_customer_id!r} is almost, but not quite, "
                f"that of a customer here: {customer.external_customer_id!r}. Correct one of them."
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
    """True for one of those who read ``customer`` as it is now and want to do something about it.

    So what is asked for twice, by a click that came twice or by two members of staff, is done once,
    and without a lock that would be held while Kapso is asked.
    """
    mine = Customer.objects.filter(pk=customer.pk, updated_at=customer.updated_at)
    return bool(
        retry_on_conflict(lambda: mine.update(updated_at=timezone.now()), within=sqlite_write_lock)
    )
