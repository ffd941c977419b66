"""The API's pages in a browser, as Django REST framework makes them: forms that are filled in, and
filters to click."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from django.db.models import QuerySet
from django.template.loader import render_to_string
from rest_framework import serializers
from rest_framework.filters import BaseFilterBackend
from rest_framework.request import Request

from .operations import Operation


class Form:
    """What a page's form is filled with; to BrowsableAPIRenderer it looks like a serializer."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        self.data = dict(data)
        self.fields: dict[str, Any] = {}


def form_for(view: Any, instance: Any) -> Form:
    """Return what was just refused, or else the row as it is, or else an example."""
    request = view.request
    if request.method == request._request.method and view.response.status_code >= 400:
        sent = getattr(request, "_full_data", None)
        if isinstance(sent, dict) and sent:
            return Form(sent)
    kind = view.get_serializer_class()
    fields = kind(context=view.get_serializer_context()).fields
    writable = {name: field for name, field in fields.items() if not field.read_only}
    if instance is not None:
        values = {name: field.get_attribute(instance) for name, field in writable.items()}
        return Form(
            {
                name: None if value is None else writable[name].to_representation(value)
                for name, value in values.items()
            }
        )
    operation: Operation | None = view.operations.get(view.action)
    example = dict(operation.example or {}) if operation is not None else {}
    if "customer" in example:
        # Nobody is invited by accident.
        given = request.query_params.get("customer", "")
        example["customer"] = int(given) if given.isascii() and given.isdigit() else None
    return Form({name: value for name, value in example.items() if name in writable})


class FilterLinks(BaseFilterBackend):
    """Shows the filters of a list; the view itself narrows it."""

    def to_html(self, request: Request, queryset: QuerySet[Any], view: Any) -> str:
        given = request.query_params.dict()
        for name in ("page", "cursor"):
            given.pop(name, None)
        shown = [
            _shown(name, field, given)
            for name, field in view.filters().fields.items()
            if name not in ("page", "cursor")
        ]
        return render_to_string("kapso_connect/api/filters.html", {"filters": shown})


def _shown(name: str, field: Any, given: Mapping[str, str]) -> dict[str, Any]:
    others = {key: value for key, value in given.items() if key != name}
    choices = field.choices if isinstance(field, serializers.ChoiceField) else {}
    value = given.get(name, "")
    return {
        "name": name,
        "label": name.replace("_", " ").capitalize(),
        "help": field.help_text or "",
        "value": value,
        "others": others,
        "all": urlencode(others),
        "choices": [
            {"label": label, "query": urlencode({**others, name: one}), "is_chosen": one == value}
            for one, label in choices.items()
        ],
    }
