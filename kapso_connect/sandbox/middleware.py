"""Log every request, check the API key, apply the faults, and answer errors in JSON."""

from __future__ import annotations

import json
import secrets
import sys
import traceback
from collections.abc import Callable, Iterator

from django.core.exceptions import SuspiciousOperation
from django.http import (
    HttpRequest,
    HttpResponse,
    HttpResponseRedirect,
    StreamingHttpResponse,
    UnreadablePostError,
)
from django.http.multipartparser import MultiPartParserError
from django.http.response import HttpResponseBase

from .faults import Rule
from .fields import ApiError
from .server import HANDLER_KEY, MAX_REQUEST_BODY, TOO_LARGE_KEY, RequestHandler
from .state import LoggedRequest, store
from .web import error_response, json_response

API_PREFIX = "/platform/"
ELSEWHERE_PATH = "/elsewhere"
GetResponse = Callable[[HttpRequest], HttpResponseBase]


class ErrorMiddleware:
    """Refuses bodies that are too large, and answers exceptions of views in JSON."""

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        if request.META.get(TOO_LARGE_KEY):
            error = ApiError(413, f"The body is larger than {MAX_REQUEST_BODY} bytes")
            return _last_of_its_connection(error_response(error))
        return self.get_response(request)

    def process_exception(self, request: HttpRequest, error: Exception) -> HttpResponse:
        if isinstance(error, ApiError):
            return error_response(error)
        if isinstance(error, (SuspiciousOperation, MultiPartParserError, UnreadablePostError)):
            return error_response(ApiError(400, "The request could not be read"))
        traceback.print_exception(error, file=sys.stderr)
        return json_response({"error": "The sandbox has a bug; see its log."}, 500)


class ApiMiddleware:
    """Logs requests to the API, applies faults to them, and checks the API key."""

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        if not request.path.startswith((API_PREFIX, ELSEWHERE_PATH)):
            return self.get_response(request)
        entry = _log(request)
        with store.lock:
            faults = store.faults
            rule = faults.rule_for(f"{request.method} {request.path}")
        if rule is None:
            response: HttpResponseBase | None = self._answer(request)
        else:
            entry.fault = rule.kind
            if rule.kind == "hang":
                faults.ended.wait(rule.seconds or None)
                response = None
            else:
                response = self._apply_fault(rule, request)
        if response is None:
            return _close_connection(request)
        entry.status = response.status_code
        return response

    def _answer(self, request: HttpRequest) -> HttpResponseBase:
        key = request.headers.get("X-API-Key", "")
        expected = store.options.api_key
        valid = secrets.compare_digest(key.encode(), expected.encode()) if expected else bool(key)
        if request.path.startswith(API_PREFIX) and not valid:
            return error_response(ApiError(401, "Unauthorized: invalid or missing API key"))
        return self.get_response(request)

    def _apply_fault(self, rule: Rule, request: HttpRequest) -> HttpResponseBase | None:
        """Return the response that ``rule`` asks for; None when the connection has to break."""
        if rule.kind in ("close", "apply_then_close"):
            if rule.kind == "apply_then_close":
                self._answer(request)
            return None
        if rule.kind == "slow":
            return _slow_response(self._answer(request), rule.seconds or 10.0)
        if rule.kind == "apply_then_500":
            self._answer(request)
            return _plain_error(rule, 500)
        return FAULT_RESPONSES[rule.kind](rule)


def _log(request: HttpRequest) -> LoggedRequest:
    try:
        body = json.loads(request.body) if request.body else None
    except (ValueError, RecursionError):
        body = request.body[:10_000].decode(errors="replace")
    entry = LoggedRequest(
        str(request.method),
        request.path,
        request.META.get("QUERY_STRING", ""),
        body,
        "X-API-Key" in request.headers,
    )
    with store.lock:
        store.requests.append(entry)
    return entry


def _plain_error(rule: Rule, status: int) -> HttpResponse:
    texts = {401: "Unauthorized", 402: "Upgrade your plan to use this", 429: "Too many requests"}
    code = rule.status or status
    response = json_response({"error": texts.get(code, f"Sandbox fault {code}")}, code)
    if rule.retry_after is not None:
        response["Retry-After"] = str(rule.retry_after)
    return response


def _html(rule: Rule) -> HttpResponse:
    code = rule.status or 502
    text = f"<html><head><title>{code}</title></head><body><h1>{code}</h1></body></html>"
    return HttpResponse(text, status=code, content_type="text/html")


def _meta_error(rule: Rule) -> HttpResponse:
    error = {"message": "(#131000) Something went wrong", "type": "OAuthException", "code": 131000}
    return json_response({"error": error}, rule.status or 400)


def _garbage(rule: Rule) -> HttpResponse:
    body = b'{"data": [{"id": \xff\xfe' + secrets.token_bytes(64)
    return HttpResponse(body, status=rule.status or 200, content_type="application/json")


def _redirect(rule: Rule) -> HttpResponse:
    location = rule.location or f"{store.options.base_url}{ELSEWHERE_PATH}"
    return HttpResponseRedirect(location)


def _empty(rule: Rule) -> HttpResponse:
    return HttpResponse(b"", status=rule.status or 200, content_type="application/json")


FAULT_RESPONSES: dict[str, Callable[[Rule], HttpResponse]] = {
    "status": lambda rule: _plain_error(rule, 500),
    "html": _html,
    "meta_error": _meta_error,
    "garbage": _garbage,
    "redirect": _redirect,
    "empty": _empty,
}


def _slow_response(response: HttpResponseBase, seconds: float) -> HttpResponseBase:
    """Return the same response, sent a few bytes at a time."""
    if not isinstance(response, HttpResponse) or not response.content:
        return response
    content = response.content
    pieces = min(20, len(content))
    size = -(-len(content) // pieces)
    ended = store.faults.ended

    def chunks() -> Iterator[bytes]:
        for start in range(0, len(content), size):
            if not ended.is_set():
                ended.wait(seconds / pieces)
            yield content[start : start + size]

    slow = StreamingHttpResponse(chunks(), status=response.status_code, headers=response.headers)
    slow["Content-Length"] = str(len(content))
    return slow


def _last_of_its_connection(response: HttpResponse) -> HttpResponseBase:
    """Return the same response without a length: the server adds ``Connection: close`` to those,
    so that the client sends its next request over a new connection."""
    return StreamingHttpResponse(
        [response.content], status=response.status_code, headers=response.headers
    )


def _close_connection(request: HttpRequest) -> HttpResponse:
    handler = request.META[HANDLER_KEY]
    assert isinstance(handler, RequestHandler)  # noqa: S101  # nosec B101
    handler.close_without_response()
    return HttpResponse()  # never sent
