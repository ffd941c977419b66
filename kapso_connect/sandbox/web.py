"""Requests and responses in JSON, with errors as ``{"error": "text"}``."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.http.response import HttpResponseBase
from django.views import View

from . import fields
from .fields import ApiError
from .state import Record, store

MAX_PER_PAGE = 100
positive = fields.pattern(r"[1-9][0-9]{0,8}", "a whole number above 0")


class SandboxView(View):
    """A view whose methods may return a value for JSON, or a status and a value.

    They hold the store's lock, so that requests are executed one after the other.
    """

    http_method_names = ["get", "head", "post", "patch", "delete"]

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        with store.lock:
            result: Any = super().dispatch(request, *args, **kwargs)
            if isinstance(result, HttpResponseBase):
                return result
            status, value = result if isinstance(result, tuple) else (200, result)
            return json_response(value, status)

    def http_method_not_allowed(
        self, request: HttpRequest, *args: Any, **kwargs: Any
    ) -> HttpResponse:
        names = ("get", "post", "patch", "delete")
        allow = ", ".join(name.upper() for name in names if hasattr(self, name))
        text = f"Method {request.method} not allowed; use {allow}"
        raise ApiError(405, text, {"Allow": allow})


class _Encoder(json.JSONEncoder):
    def default(self, o: Any) -> Any:
        return timestamp(o) if isinstance(o, datetime) else super().default(o)


def timestamp(moment: datetime) -> str:
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def json_response(value: object, status: int = 200) -> HttpResponse:
    if status == 204:
        return HttpResponse(status=status)
    return JsonResponse(value, encoder=_Encoder, safe=False, status=status)


def error_response(error: ApiError) -> HttpResponse:
    response = json_response({"error": error.text}, error.status)
    for name, value in (error.headers or {}).items():
        response[name] = value
    return response


def read_json(request: HttpRequest) -> Any:
    if not request.body:
        return {}
    try:
        value = json.loads(request.body)
        # Half of a surrogate pair is valid JSON, but cannot be encoded.
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        raise ApiError(400, "Malformed JSON in the request body") from None
    return value


def read_object(request: HttpRequest) -> dict[str, Any]:
    value = read_json(request)
    if not isinstance(value, dict):
        raise ApiError(400, "The request body must be a JSON object")
    return value


def read_wrapped(request: HttpRequest, name: str) -> dict[str, Any]:
    """Return the object under ``name``, or refuse with Kapso's error text."""
    value = read_json(request) if request.content_type == "application/json" else {}
    inner = value.get(name) if isinstance(value, dict) else None
    if not isinstance(inner, dict) or not inner:
        raise ApiError(400, f"param is missing or the value is empty or invalid: {name}")
    return inner


def query(request: HttpRequest, name: str, check: fields.Check = fields.text) -> Any:
    """Return a checked query parameter; None when it is missing or empty."""
    value = request.GET.get(name)
    return check(name, value) if value else None


def page_of(request: HttpRequest, rows: Sequence[Record]) -> dict[str, Any]:
    """Return one page of ``rows`` and its meta, filtered by created_after and created_before."""
    if after := query(request, "created_after", fields.date_time):
        rows = [row for row in rows if row.created_at >= after]
    if before := query(request, "created_before", fields.date_time):
        rows = [row for row in rows if row.created_at <= before]
    page = int(query(request, "page", positive) or 1)
    per_page = min(int(query(request, "per_page", positive) or 20), MAX_PER_PAGE)
    meta = {
        "page": page,
        "per_page": per_page,
        "total_pages": math.ceil(len(rows) / per_page),
        "total_count": len(rows),
    }
    shown = rows[(page - 1) * per_page : page * per_page]
    return {"data": [row.as_json() for row in shown], "meta": meta}
