"""How the objects of a site's own ModelAdmin become customers: a customer's data, found or made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.db import IntegrityError
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils import timezone

from ..db import atomic
from ..exceptions import ExternalIdTaken
from ..languages import find_page_language
from ..models import Customer
from ..owners import owner_key, owner_type
from ..translation import gettext as _
from .base import AdminPages

CUSTOMERS_PER_QUERY = 500

MAX_LENGTHS = {"name": 255, "external_customer_id": 255, "email": 254, "language": 16}


class CustomerDataMixin(AdminPages):
    """For a ModelAdmin whose objects own one customer each, or are customers."""

    def get_customer_data(self, obj: Any) -> Mapping[str, Any]:
        """Return the customer fields of ``obj``: ``name``, ``external_customer_id``, ``email`` and
        ``language``. Override it if your model's fields have other names.

        Fields that are left out are not changed. A new customer without an
        ``external_customer_id`` gets a random one.
        """
        data = {"name": str(obj)}
        for name in ("email", "language"):
            value = getattr(obj, name, None)
            if isinstance(value, str):
                data[name] = value
        return data

    def read_customer_data(self, obj: Any) -> Mapping[str, Any]:
        """Return what ``get_customer_data`` returns, or nothing if that is wrong: for a page that
        can do without."""
        try:
            return clean_customer_data(self.get_customer_data(obj))
        except ImproperlyConfigured:
            return {}

    def find_customers(self, objs: Iterable[Any]) -> dict[Any, Customer]:
        """Return the customers that ``objs`` own, by the primary key of the owner, in one query.
        Objects that own none are left out."""
        owners = {owner_key(self.model, obj.pk): obj.pk for obj in objs}
        kind = owner_type(self.model)
        customers = Customer.objects.filter(owner_type=kind, owner_id__in=owners)
        # MySQL and MariaDB ignore case: "Ab3" also finds "aB3".
        return {owners[c.owner_id]: c for c in customers if c.owner_id in owners}

    def find_objects(self, request: HttpRequest, customers: Iterable[Customer]) -> dict[int, Any]:
        """Return the objects that own ``customers``, by the customer's primary key, in one query.
        Objects that the user may not view are left out."""
        kind = owner_type(self.model)
        owned = {}
        for customer in customers:
            if customer.owner_type_id != kind.pk:
                continue
            # ``owner_id`` may not be a valid primary key.
            with suppress(ValueError):
                if owner_key(self.model, customer.owner_id) != customer.owner_id:
                    continue
                key = self.opts.pk.to_python(customer.owner_id)
                if isinstance(key, int) and key.bit_length() > 63:
                    continue  # databases cannot compare with it
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
        """Return the customer that ``obj`` owns, created if there is none, updated from
        ``get_customer_data``. Raise IntegrityError or ExternalIdTaken if another customer has its
        external id."""
        data = clean_customer_data(self.get_customer_data(obj))
        customer = Customer.objects.for_owner(obj, **data)
        if changed := _update_customer(customer, data):
            customer.save(update_fields=[*changed, "updated_at"])
        return customer

    def make_customers(self, objs: QuerySet[Any]) -> tuple[Iterable[int], list[str]]:
        """Do what ``make_customer`` does for all of ``objs``, in few queries.

        Return the primary keys of the customers, and a message for each object that failed.
        """
        pks: list[int] = []
        problems: list[str] = []
        all_pks = list(objs.order_by().values_list("pk", flat=True))
        for start in range(0, len(all_pks), CUSTOMERS_PER_QUERY):
            # The list may have deferred fields that ``get_customer_data`` reads.
            rows = list(
                objs.filter(pk__in=all_pks[start : start + CUSTOMERS_PER_QUERY]).defer(None)
            )
            made = self._make_in_bulk(rows)
            pks += [customer.pk for customer in made.values()]
            for obj in rows:
                if obj.pk in made:
                    continue
                try:
                    with atomic():
                        pks.append(self.make_customer(obj).pk)
                except (IntegrityError, ExternalIdTaken):
                    problems.append(
                        _("%(object)s: its external id is that of another customer.")
                        % {"object": obj}
                    )
        return pks, problems

    def _make_in_bulk(self, objs: Sequence[Any]) -> dict[Any, Customer]:
        """Create and update the customers of ``objs``. Return those that are up to date, by the
        primary key of the owner."""
        kind = owner_type(self.model)
        known = self.find_customers(objs)
        data = {obj.pk: clean_customer_data(self.get_customer_data(obj)) for obj in objs}
        Customer.objects.bulk_create(
            [
                Customer(
                    owner_type=kind,
                    owner_id=owner_key(self.model, obj.pk),
                    **{"name": str(obj)[:255], **data[obj.pk]},
                )
                for obj in objs
                if obj.pk not in known
            ],
            ignore_conflicts=True,
        )
        made = {**known, **self.find_customers([obj for obj in objs if obj.pk not in known])}
        changed = [
            customer for pk, customer in made.items() if _update_customer(customer, data[pk])
        ]
        try:
            with atomic():
                Customer.objects.bulk_update(changed, [*MAX_LENGTHS, "updated_at"])
        except IntegrityError:
            # Saved one by one, it shows whose external id another customer has.
            return {pk: customer for pk, customer in made.items() if customer not in changed}
        return made


def _update_customer(customer: Customer, data: Mapping[str, Any]) -> list[str]:
    """Set the fields in ``data`` on ``customer``; return the names of those that changed."""
    changed = [name for name, value in data.items() if getattr(customer, name) != value]
    if customer.kapso_id:
        # Kapso identifies the customer by it.
        changed = [name for name in changed if name != "external_customer_id"]
    for name in changed:
        setattr(customer, name, data[name])
    if changed:
        customer.updated_at = timezone.now()
    return changed


def clean_customer_data(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the non-empty fields of ``data``, cut to a Customer's lengths; ``language`` is ""
    unless pages are in it. Raise ImproperlyConfigured for a field that a site cannot set."""
    known = ", ".join(MAX_LENGTHS)
    if not isinstance(data, Mapping):
        raise ImproperlyConfigured(
            f"get_customer_data must return a dict with some of these keys: {known}."
        )
    if unknown := ", ".join(repr(name) for name in data if name not in MAX_LENGTHS):
        raise ImproperlyConfigured(
            f"get_customer_data returned unknown keys: {unknown}. Known keys: {known}."
        )
    clean: dict[str, Any] = {}
    for name in MAX_LENGTHS:
        value = data.get(name)
        if value not in (None, ""):
            clean[name] = str(value).replace("\0", "")[: MAX_LENGTHS[name]]
    if "language" in clean:
        clean["language"] = find_page_language(clean["language"])
    return clean
