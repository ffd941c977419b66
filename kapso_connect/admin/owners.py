"""The bridge between a ModelAdmin of the site's and this package's customers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from django.contrib.contenttypes.models import ContentType
from django.core.exceptions import ValidationError
from django.db import IntegrityError
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils import timezone
from django.utils.translation import gettext as _

from ..db import atomic
from ..kapso.types import Language
from ..models import Customer
from .base import Pages

CHUNK = 500
"""Objects that one query is about."""

LENGTHS = {"name": 255, "external_customer_id": 255, "email": 254, "language": 16}


class Owners(Pages):
    """A ModelAdmin whose objects are customers, or own one each."""

    def get_customer_data(self, obj: Any) -> Mapping[str, Any]:
        """Return what Kapso and this package need to know of ``obj``; override it where your model
        calls them otherwise: ``name``, ``external_customer_id``, ``email``, ``language``.

        What is left out stays as it is. Without ``external_customer_id`` one is made up.
        """
        data = {"name": str(obj)}
        for name in ("email", "language"):
            value = getattr(obj, name, None)
            if isinstance(value, str):
                data[name] = value
        return data

    def find_customers(self, objs: Iterable[Any]) -> dict[Any, Customer]:
        """Return the customers that the ``objs`` own, by the primary keys of their owners; those
        that own none are left out. One query."""
        owners = {str(obj.pk): obj.pk for obj in objs}
        kind = ContentType.objects.get_for_model(self.model)
        customers = Customer.objects.filter(owner_type=kind, owner_id__in=owners)
        # MySQL and MariaDB take "Ab3" for "aB3".
        return {owners[c.owner_id]: c for c in customers if c.owner_id in owners}

    def find_objects(self, request: HttpRequest, customers: Iterable[Customer]) -> dict[int, Any]:
        """Return the objects that own the ``customers``, by the customers' primary keys; those that
        the user may not see are left out. One query."""
        kind = ContentType.objects.get_for_model(self.model)
        owned = {}
        for customer in customers:
            # What is noted as an owner's id need not be one.
            with suppress(ValidationError):
                key = self.opts.pk.to_python(customer.owner_id)
                if isinstance(key, int) and key.bit_length() > 63:
                    continue  # more than databases can compare with
                if customer.owner_type_id == kind.pk and str(key) == customer.owner_id:
                    owned[key] = customer.pk
        objs = self.get_queryset(request).filter(pk__in=owned)
        return {
            owned[obj.pk]: obj
            for obj in objs
            if obj.pk in owned and self.has_view_or_change_permission(request, obj)
        }

    def find_customer(self, obj: Any) -> Customer | None:
        """Return the customer that ``obj`` owns, or None."""
        return self.find_customers([obj]).get(obj.pk)

    def make_customer(self, obj: Any) -> Customer:
        """Return the customer that ``obj`` owns, made where there is none, and brought up to date
        with ``get_customer_data``. Raises IntegrityError where its external id is another's."""
        data = clean_customer_data(self.get_customer_data(obj))
        customer = Customer.objects.for_owner(obj, **data)
        if changed := _bring_up_to_date(customer, data):
            customer.save(update_fields=[*changed, "updated_at"])
        return customer

    def make_customers(self, objs: QuerySet[Any]) -> tuple[Iterable[int], list[str]]:
        """Do what ``make_customer`` does for all the ``objs``, in few queries.

        Returns the customers' primary keys, and in words those objects for which it could not be
        done.
        """
        pks: list[int] = []
        problems: list[str] = []
        wanted = list(objs.order_by().values_list("pk", flat=True))
        for at in range(0, len(wanted), CHUNK):
            # What a list does not need may be what a customer is made of.
            rows = list(objs.filter(pk__in=wanted[at : at + CHUNK]).defer(None))
            made = self._make_together(rows)
            pks += [customer.pk for customer in made.values()]
            for obj in rows:
                if obj.pk in made:
                    continue
                try:
                    with atomic():
                        pks.append(self.make_customer(obj).pk)
                except IntegrityError:
                    problems.append(
                        _("%(object)s: its external id is that of another customer.")
                        % {"object": obj}
                    )
        return pks, problems

    def _make_together(self, objs: Sequence[Any]) -> dict[Any, Customer]:
        """Make the customers of ``objs`` and bring them up to date; return those of which nothing
        is left to do, by the primary keys of their owners."""
        kind = ContentType.objects.get_for_model(self.model)
        known = self.find_customers(objs)
        data = {obj.pk: clean_customer_data(self.get_customer_data(obj)) for obj in objs}
        Customer.objects.bulk_create(
            [
                Customer(
                    owner_type=kind,
                    owner_id=str(obj.pk),
                    **{"name": str(obj)[:255], **data[obj.pk]},
                )
                for obj in objs
                if obj.pk not in known
            ],
            ignore_conflicts=True,
        )
        made = {**known, **self.find_customers([obj for obj in objs if obj.pk not in known])}
        changed = [
            customer for pk, customer in made.items() if _bring_up_to_date(customer, data[pk])
        ]
        try:
            with atomic():
                Customer.objects.bulk_update(changed, [*LENGTHS, "updated_at"])
        except IntegrityError:
            # One by one, they say whose external id is another customer's.
            return {pk: customer for pk, customer in made.items() if customer not in changed}
        return made


def _bring_up_to_date(customer: Customer, data: Mapping[str, Any]) -> list[str]:
    """Set on ``customer`` what ``data`` says; return the names of the fields that changed."""
    changed = [name for name, value in data.items() if getattr(customer, name) != value]
    if customer.kapso_id:
        # Kapso knows the customer by it.
        changed = [name for name in changed if name != "external_customer_id"]
    for name in changed:
        setattr(customer, name, data[name])
    if changed:
        customer.updated_at = timezone.now()
    return changed


def clean_customer_data(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of ``data`` a Customer can keep: texts in their lengths, a language Kapso has."""
    clean: dict[str, Any] = {}
    for name in LENGTHS:
        value = data.get(name)
        if value not in (None, ""):
            clean[name] = str(value).replace("\0", "")[: LENGTHS[name]]
    if "language" in clean:
        language = str(data["language"]).lower().replace("_", "-").partition("-")[0]
        clean["language"] = language if language in Language.values else ""
    return clean
