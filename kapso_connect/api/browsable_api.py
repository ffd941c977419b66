"""Django REST framework's browsable API: filled-in forms, and links that filter lists."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlencode

from django.db.models import QuerySet
from django.template.loader import render_to_string
from rest_framework import serializers
from rest_framework.filters import BaseFilterBackend
from rest_framework.request import Request

from .fields import is_primary_key


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
        customer = view.request.query_params.get("customer", "")
        data["customer"] = int(customer) if is_primary_key(customer) else None
    if instance is None and "customers" in data:
        data["customers"] = []
    return SimpleNamespace(data=data, fields={})


class BrowsableFilters(BaseFilterBackend):
    """Renders the filters of a list; the view itself applies them."""

    def to_html(self, request: Request, queryset: QuerySet[Any], view: Any) -> str:
        values = request.query_params.dict()
        for name in ("page", "cursor"):
            values.pop(name, None)
        filters = [
            _filter_context(name, field, values)
            for name, field in view.filters().fields.items()
            if name not in ("page", "cursor")
        ]
        return render_to_string("kapso_connect/api/filters.html", {"filters": filters})


def _filter_context(name: str, field: Any, values: Mapping[str, str]) -> dict[str, Any]:
    others = {key: value for key, value in values.items() if key != name}
    choices = field.choices if isinstance(field, serializers.ChoiceField) else {}
    value = values.get(name, "")
    return {
        "name": name,
        "label": name.replace("_", " ").capitalize(),
        "help": field.help_text or "",
        "value": value,
        "others": others,
        "all": urlencode(others),
        "choices": [
            {"label": label, "query": urlencode({**others, name: key}), "is_chosen": key == value}
            for key, label in choices.items()
        ],
    }
