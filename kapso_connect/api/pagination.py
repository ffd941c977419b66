"""Pagination of lists. ``filters`` has validated the query parameters before."""

from __future__ import annotations

from typing import Any

from rest_framework.exceptions import NotFound
from rest_framework.pagination import Cursor, CursorPagination, PageNumberPagination
from rest_framework.request import Request

from .errors import ApiError, invalid_value
from .fields import is_primary_key
from .filters import DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE


class NumberedPagination(PageNumberPagination):
    error_codes = ("not_found",)
    page_size = DEFAULT_PAGE_SIZE
    page_size_query_param = "page_size"
    max_page_size = MAX_PAGE_SIZE

    def get_paginated_response_schema(self, schema: Any) -> dict[str, Any]:
        count = {
            "type": "integer",
            "description": "The number of results on all pages.",
            "example": 1,
        }
        return _page_schema(schema, count=count)


class TimelinePagination(CursorPagination):
    """Newest first. Pages do not shift when new events arrive."""

    error_codes = ("invalid_cursor",)
    page_size = DEFAULT_PAGE_SIZE
    page_size_query_param = "page_size"
    max_page_size = MAX_PAGE_SIZE
    ordering = "-pk"

    def decode_cursor(self, request: Request) -> Cursor | None:
        try:
            cursor: Cursor | None = super().decode_cursor(request)
        except NotFound:
            raise _invalid_cursor() from None
        position: Any = cursor.position if cursor is not None else None
        if position is not None and not is_primary_key(position):
            raise _invalid_cursor()
        return cursor

    def get_paginated_response_schema(self, schema: Any) -> dict[str, Any]:
        return _page_schema(schema)


def _page_schema(results: Any, **properties: Any) -> dict[str, Any]:
    link = {"type": "string", "nullable": True, "format": "uri", "example": None}
    properties = {
        **properties,
        "next": {**link, "description": "The URL of the next page; null on the last one."},
        "previous": {**link, "description": "The URL of the previous page; null on the first one."},
        "results": results,
    }
    return {"type": "object", "required": list(properties), "properties": properties}


def _invalid_cursor() -> ApiError:
    return invalid_value("cursor", "Invalid cursor.", code="invalid_cursor")
