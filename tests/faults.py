"""Faults at the edges of the package: in requests to Kapso, in SQL statements, and in responses."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from django.db import connection
from requests import PreparedRequest, Response
from requests.adapters import HTTPAdapter


class ProcessKilled(BaseException):
    """Like the end of a process: the package catches it nowhere."""


def kill_process() -> None:
    raise ProcessKilled


@contextmanager
def around_api_requests(
    match: str = "",
    *,
    before: Callable[[], None] | None = None,
    after: Callable[[], None] | None = None,
) -> Iterator[None]:
    """Call ``before`` and ``after`` around each request to Kapso with this "METHOD url"."""
    send = HTTPAdapter.send

    def intercept(self: Any, request: PreparedRequest, *args: Any, **kwargs: Any) -> Response:
        matches = re.search(match, f"{request.method} {request.url}")
        if before and matches:
            before()
        response = send(self, request, *args, **kwargs)
        if after and matches:
            after()
        return response

    with mock.patch.object(HTTPAdapter, "send", intercept):
        yield


@contextmanager
def failing_statement(verb: str, table: str, error: BaseException) -> Iterator[None]:
    """Raise ``error`` in place of statements that begin with ``verb`` and name ``table``."""

    def wrapper(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if sql.startswith(verb) and re.search(rf"\b{table}\b", sql):
            raise error
        return execute(sql, params, many, context)

    with connection.execute_wrapper(wrapper):
        yield


def killing_middleware(get_response: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """End the process once the view has returned its response."""

    def middleware(request: Any) -> Any:
        get_response(request)
        raise ProcessKilled

    return middleware


def raising_middleware(get_response: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Raise once the view has returned its response."""

    def middleware(request: Any) -> Any:
        get_response(request)
        raise ZeroDivisionError

    return middleware
