"""The site's own objects as owners of customers that exist already."""

from __future__ import annotations

from typing import Any

from django.contrib.auth.models import AbstractBaseUser, AnonymousUser
from django.db import IntegrityError, models
from django.utils import timezone

from .. import outbox
from ..db import atomic, retry_on_conflict
from ..exceptions import CustomerErased, OwnerTaken
from ..models import Customer, Source, TimelineEvent
from ..owners import owner_key, owner_type
from .arguments import check_customer


def assign_owner(
    customer: Customer,
    owner: models.Model | None,
    *,
    actor: AbstractBaseUser | AnonymousUser | None = None,
) -> bool:
    """Make ``owner``, an object of any of the site's models, the owner of ``customer``; with None,
    the customer has no owner any more. Return whether that is a change.

    The customer may come from ``kapso_sync`` or from the REST API, or have another owner. To find
    or create the customer of an object, use ``Customer.objects.for_owner`` instead. ``actor`` is
    stored in the timeline.

    Raise OwnerTaken if another customer is the owner's, ValueError for an owner that is not saved
    or has a composite primary key, and CustomerErased.
    """
    check_customer(customer, "assign_owner")
    kind, key = None, None
    if owner is not None:
        if not isinstance(owner, models.Model) or isinstance(owner, Customer):
            raise TypeError(f"The owner has to be an object of the site's own, not {owner!r}.")
        if owner.pk is None:
            raise ValueError("Save the owner before you assign it.")
        # Not type(): ``request.user`` is a lazy object.
        kind, key = owner_type(owner), owner_key(owner.__class__, owner.pk)

    def change() -> bool:
        current = Customer.objects.locked().get(pk=customer.pk)
        if current.erased_at is not None:
            raise CustomerErased("The personal data of this customer were erased.")
        if (current.owner_type_id, current.owner_id) == (kind.pk if kind else None, key):
            return False
        try:
            with atomic():  # a savepoint: the caller's transaction can go on
                Customer.objects.filter(pk=current.pk).update(
                    owner_type=kind, owner_id=key, updated_at=timezone.now()
                )
        except IntegrityError:
            # Locked, MySQL and MariaDB return what was committed after this transaction began.
            taken = Customer.objects.locked().filter(owner_type=kind, owner_id=key).first()
            if taken is None:
                raise
            raise OwnerTaken(f"{owner} owns customer {taken.pk} already: {taken}.") from None
        data: dict[str, Any] = {"removed": True}
        if kind is not None:
            data = {"owner_type": f"{kind.app_label}.{kind.model}", "owner_id": key}
        outbox.record(
            TimelineEvent.Kind.OWNER_ASSIGNED,
            source=Source.MANUAL,
            customer=current,
            actor=actor,
            data=data,
        )
        return True

    is_changed = retry_on_conflict(change)
    customer.refresh_from_db()
    return is_changed
