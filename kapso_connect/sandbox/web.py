"""Requests and responses in JSON, with errors as ``{"error": "text"}``."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from django.http import HttpRequest, HttpResponse

from . import fields
from .fields import ApiError, Invalid
from .state import store

MAX_PER_PAGE = 100

# A handler returns a value for JSON (status 200), a (status, value) pair, or a response.
Handler = Callable[..., Any]


def timestamp(moment: datetime) -> str:
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _encode(value: object) -> str:
    if isinstance(value, datetime):
        return timestamp(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def json_response(value: object, status: int = 200) -> HttpResponse:
    body = b"" if status == 204 else json.dumps(value, default=_encode).encode()
    return HttpResponse(body, status=status, content_type="application/json")


def error_response(error: ApiError) -> HttpResponse:
    response = json_response({"error": error.text}, error.status)
    for name, value in error.headers.items():
        response[name] = value
    return response


def methods(**handlers: Handler) -> Callable[..., HttpResponse]:
    """Return a view with one handler per HTTP method; each runs with the store's lock held."""

    def view(request: HttpRequest, **kwargs: str) -> HttpResponse:
        method = "GET" if request.method == "HEAD" else str(request.method)
        try:
            if method not in handlers:
                allow = ", ".join(handlers)
                raise ApiError(405, f"Method {method} not allowed; use {allow}", {"Allow": allow})
            with store.lock:
                result = handlers[method](request, **kwargs)
                if isinstance(result, HttpResponse):
                    return result
                status, value = result if isinstance(result, tuple) else (200, result)
                return json_response(value, status)
        except ApiError as error:
            return error_response(error)

    return view


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
    is_json = request.content_type == "application/json"
    value = read_json(request) if is_json else {}
    inner = value.get(name) if isinstance(value, dict) else None
    if not isinstance(inner, dict) or not inner:
        text = f"param is missing or the value is empty or invalid: {name}"
        raise ApiError(400, text)
    return inner


def query(request: HttpRequest, name: str, check: fields.Check) -> Any:
    """Return a checked query parameter; None when it is missing or empty."""
    value = request.GET.get(name)
    return check(name, value) if value else None


def positive_integer(name: str, value: object) -> int:
    text = fields.text(name, value)
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) > 0):
        raise Invalid(f"{name} must be a whole number above 0")
    return int(text)


def true_or_false(name: str, value: object) -> bool:
    return bool(fields.choice("true", "false")(name, value) == "true")


def page_of(request: HttpRequest, rows: Sequence[Any], shape: Callable[[Any], Any]) -> object:
    """Return one page of ``rows`` and its meta, filtered by created_after and created_before."""
    after = query(request, "created_after", fields.date_time)
    before = query(request, "created_before", fields.date_time)
    if after:
        rows = [row for row in rows if row.created_at >= after]
    if before:
        rows = [row for row in rows if row.created_at <= before]
    page = query(request, "page", positive_integer) or 1
    per_page = min(query(request, "per_page", positive_integer) or 20, MAX_PER_PAGE)
    start = (page - 1) * per_page
    meta = {
        "page": page,
        "per_page": per_page,
        "total_pages": math.ceil(len(rows) / per_page),
        "total_count": len(rows),
    }
    return {"data": [shape(row) for row in rows[start : start + per_page]], "meta": meta}
