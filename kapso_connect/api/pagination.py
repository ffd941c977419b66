"""Pages of bounded size; what was asked for is checked by ``filters`` before."""

from __future__ import annotations

from typing import Any

from rest_framework.exceptions import NotFound
from rest_framework.pagination import Cursor, CursorPagination, PageNumberPagination
from rest_framework.request import Request

from .errors import ApiError, invalid_value
from .fields import is_key
from .filters import MAX_PAGE_SIZE, PAGE_SIZE


class Pages(PageNumberPagination):
    page_size = PAGE_SIZE
    page_size_query_param = "page_size"
    max_page_size = MAX_PAGE_SIZE

    def get_paginated_response_schema(self, schema: Any) -> dict[str, Any]:
        count = {"type": "integer", "description": "How many there are in all.", "example": 1}
        return _page(schema, count=count)


class Timeline(CursorPagination):
    """Newest first. What arrives meanwhile shifts nothing: a page goes on below the last row."""

    page_size = PAGE_SIZE
    page_size_query_param = "page_size"
    max_page_size = MAX_PAGE_SIZE
    ordering = "-pk"

    def decode_cursor(self, request: Request) -> Cursor | None:
        try:
            cursor: Cursor | None = super().decode_cursor(request)
        except NotFound:
            raise _bad_cursor() from None
        position: Any = cursor.position if cursor is not None else None
        if position is not None and not is_key(position):
            raise _bad_cursor()
        return cursor

    def get_paginated_response_schema(self, schema: Any) -> dict[str, Any]:
        return _page(schema)


def _page(rows: Any, **more: Any) -> dict[str, Any]:
    """Return the JSON schema of a page of ``rows``."""
    link = {"type": "string", "nullable": True, "format": "uri", "example": None}
    properties = {
        **more,
        "next": {**link, "description": "The next page; null on the last one."},
        "previous": {**link, "description": "The page before; null on the first one."},
        "results": rows,
    }
    return {"type": "object", "required": list(properties), "properties": properties}


def _bad_cursor() -> ApiError:
    return invalid_value("cursor", "This is no cursor of this list.", code="invalid_cursor")
