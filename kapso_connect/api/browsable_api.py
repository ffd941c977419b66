"""Django REST framework's browsable API: filled-in forms, and links that filter lists."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlencode

from django.db.models import QuerySet
from django.template.loader import render_to_string
from rest_framework.filters import BaseFilterBackend
from rest_framework.request import Request

from .fields import is_primary_key
from .filters import ListParameter


def raw_data_form(view: Any, instance: Any) -> SimpleNamespace:
    """Return the rejected body, or else the values of ``instance``, or else an example, with the
    attributes that BrowsableAPIRenderer reads of a serializer."""
    if view.response.status_code >= 400 and view.body and isinstance(view.body, dict):
        return SimpleNamespace(data=view.body, fields={})
    values = view.example if instance is None else view.represent([instance])[0]
    fields = view.get_serializer_class()(context=view.get_serializer_context()).fields
    data = {n: values[n] for n in fields if n in values and not fields[n].read_only}
    if instance is None and "customer" in data:
        # An example id could belong to a real customer, who would be invited by accident.
        customers = view.request.query_params.getlist("customer")
        is_one = len(customers) == 1 and is_primary_key(customers[0])
        data["customer"] = int(customers[0]) if is_one else None
    if instance is None and "customers" in data:
        data["customers"] = []
    return SimpleNamespace(data=data, fields={})


class BrowsableFilters(BaseFilterBackend):
    """Renders the filters of a list; the view itself applies them."""

    def to_html(self, request: Request, queryset: QuerySet[Any], view: Any) -> str:
        values = dict(request.query_params.lists())
        for name in ("page", "cursor"):
            values.pop(name, None)
        filters = [
            _filter_context(name, field, values)
            for name, field in view.filters().fields.items()
            if name not in ("page", "cursor")
        ]
        return render_to_string("kapso_connect/api/filters.html", {"filters": filters})


def _filter_context(name: str, field: Any, values: Mapping[str, list[str]]) -> dict[str, Any]:
    is_list = isinstance(field, ListParameter)
    choices = getattr(field.child if is_list else field, "choices", {})
    chosen = values.get(name, [])
    others = {key: value for key, value in values.items() if key != name}
    # A form without choices adds a value to those of a list, and replaces any other.
    kept = values if is_list else others

    def query(new: list[str]) -> str:
        return urlencode({**others, name: new}, doseq=True)

    def toggled(value: str) -> list[str]:
        if value in chosen:
            return [one for one in chosen if one != value] if is_list else chosen
        return [*chosen, value] if is_list else [value]

    return {
        "name": name,
        "label": name.replace("_", " ").capitalize(),
        "help": field.help_text or "",
        "is_list": is_list,
        "value": "" if is_list else "".join(chosen[-1:]),
        "is_set": bool(chosen),
        "kept": [(key, one) for key, several in kept.items() for one in several],
        "all": urlencode(others, doseq=True),
        "chosen": [
            {"label": one, "query": query(toggled(one))} for one in dict.fromkeys(chosen) if is_list
        ],
        "choices": [
            {"label": label, "query": query(toggled(key)), "is_chosen": key in chosen}
            for key, label in choices.items()
        ],
    }
