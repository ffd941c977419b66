"""Requests and responses in JSON, with errors as ``{"error": "text"}``."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.http.response import HttpResponseBase
from django.views import View

from . import fields
from .fields import ApiError
from .state import Record, store

page_number = fields.pattern(r"[1-9][0-9]{0,8}", "a whole number above 0")
page_size = fields.pattern(r"[1-9][0-9]?|100", "a whole number from 1 to 100")


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


def json_response(
    value: object, status: int = 200, headers: Mapping[str, str] | None = None
) -> HttpResponse:
    if status == 204:
        return HttpResponse(status=status)
    return JsonResponse(value, encoder=_Encoder, safe=False, status=status, headers=headers)


def error_response(error: ApiError) -> HttpResponse:
    body = {"error": error.text}
    if error.message is not None:
        body["message"] = error.message
    return json_response(body, error.status, error.headers)


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


def read_wrapped(request: HttpRequest, name: str, *, may_be_empty: bool = False) -> dict[str, Any]:
    """Return the object under ``name``, or refuse with Kapso's error text."""
    value = read_json(request) if request.content_type == "application/json" else {}
    inner = value.get(name) if isinstance(value, dict) else None
    if not isinstance(inner, dict) or not (inner or may_be_empty):
        raise ApiError(400, f"param is missing or the value is empty or invalid: {name}")
    return inner


def query(request: HttpRequest, name: str, check: fields.Check = fields.text) -> Any:
    """Return a checked query parameter; None when it is missing."""
    value = request.GET.get(name)
    return None if value is None else check(name, value)


def flag(request: HttpRequest, name: str) -> bool | None:
    """Return a query parameter that is true or false; None when it is missing."""
    value = query(request, name, fields.choice("true", "false"))
    return None if value is None else value == "true"


def page_of(request: HttpRequest, rows: Sequence[Record]) -> HttpResponse:
    """Return one page of ``rows``, filtered by created_after and created_before, with its meta and
    headers."""
    if after := query(request, "created_after", fields.date_time):
        rows = [row for row in rows if row.created_at >= after]
    if before := query(request, "created_before", fields.date_time):
        rows = [row for row in rows if row.created_at <= before]
    page = int(query(request, "page", page_number) or 1)
    per_page = int(query(request, "per_page", page_size) or 20)
    total_pages = math.ceil(len(rows) / per_page)
    meta = {
        "page": page,
        "per_page": per_page,
        "total_pages": total_pages,
        "total_count": len(rows),
    }
    headers = {
        "X-Total": str(len(rows)),
        "X-Total-Pages": str(total_pages),
        "X-Per-Page": str(per_page),
        "X-Page": str(page),
        "Link": _links(request, page, total_pages),
    }
    shown = rows[(page - 1) * per_page : page * per_page]
    body = {"data": [row.as_json() for row in shown], "meta": meta}
    return json_response(body, headers=headers)


def _links(request: HttpRequest, page: int, total_pages: int) -> str:
    """Return the header ``Link`` of a page (RFC 5988)."""
    last = max(total_pages, 1)
    pages = {"first": 1, "prev": min(page - 1, last), "next": page + 1, "last": last}
    parameters = request.GET.copy()
    links = []
    for relation, number in pages.items():
        if 1 <= number <= last:
            parameters["page"] = str(number)
            url = request.build_absolute_uri(f"{request.path}?{parameters.urlencode()}")
            links.append(f'<{url}>; rel="{relation}"')
    return ", ".join(links)
