"""Around every request: its log, the API key, the faults, and no stack traces."""

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
from .server import HANDLER, MAX_BODY, TOO_LARGE, RequestHandler
from .state import LoggedRequest, world
from .web import error_response, json_response

API = "/platform/"
ELSEWHERE = "/elsewhere"
GetResponse = Callable[[HttpRequest], HttpResponseBase]


class Guard:
    """Refuses what is too large, and answers for a view that broke."""

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        if request.META.get(TOO_LARGE):
            return error_response(ApiError(413, f"The body is larger than {MAX_BODY} bytes"))
        return self.get_response(request)

    def process_exception(self, request: HttpRequest, error: Exception) -> HttpResponse:
        if isinstance(error, ApiError):
            return error_response(error)
        if isinstance(error, (SuspiciousOperation, MultiPartParserError, UnreadablePostError)):
            return error_response(ApiError(400, "The request could not be read"))
        traceback.print_exception(error, file=sys.stderr)
        return json_response({"error": "The sandbox has a bug; its log says more."}, 500)


class Platform:
    """Logs the API's requests, lets faults happen to them, and asks for the key."""

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        if not request.path.startswith((API, ELSEWHERE)):
            return self.get_response(request)
        entry = _log(request)
        with world.lock:
            faults = world.faults
            rule = faults.rule_for(f"{request.method} {request.path}")
        if rule is None:
            response: HttpResponseBase | None = self._answer(request)
        else:
            entry.fault = rule.kind
            if rule.kind == "hang":
                faults.over.wait(rule.seconds or None)
                response = None
            else:
                response = self._misbehave(rule, request)
        if response is None:
            return _hang_up(request)
        entry.status = response.status_code
        return response

    def _answer(self, request: HttpRequest) -> HttpResponseBase:
        given = request.headers.get("X-API-Key", "")
        wanted = world.options.api_key
        right = secrets.compare_digest(given.encode(), wanted.encode()) if wanted else bool(given)
        if request.path.startswith(API) and not right:
            return error_response(ApiError(401, "Unauthorized: invalid or missing API key"))
        return self.get_response(request)

    def _misbehave(self, rule: Rule, request: HttpRequest) -> HttpResponseBase | None:
        """Return what ``rule`` makes of the request; None when the connection breaks."""
        if rule.kind in ("close", "apply_then_close"):
            if rule.kind == "apply_then_close":
                self._answer(request)
            return None
        if rule.kind == "slow":
            return _drip(self._answer(request), rule.seconds or 10.0)
        if rule.kind == "apply_then_500":
            self._answer(request)
            return _plain_error(rule, 500)
        return FORGERIES[rule.kind](rule)


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
    with world.lock:
        world.requests.append(entry)
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
    location = rule.location or f"{world.options.base_url}{ELSEWHERE}"
    return HttpResponseRedirect(location)


def _empty(rule: Rule) -> HttpResponse:
    return HttpResponse(b"", status=rule.status or 200, content_type="application/json")


FORGERIES: dict[str, Callable[[Rule], HttpResponse]] = {
    "status": lambda rule: _plain_error(rule, 500),
    "html": _html,
    "meta_error": _meta_error,
    "garbage": _garbage,
    "redirect": _redirect,
    "empty": _empty,
}


def _drip(response: HttpResponseBase, seconds: float) -> HttpResponseBase:
    """Send the same answer a few bytes at a time."""
    if not isinstance(response, HttpResponse) or not response.content:
        return response
    content = response.content
    pieces = min(20, len(content))
    size = -(-len(content) // pieces)
    over = world.faults.over

    def drip() -> Iterator[bytes]:
        for start in range(0, len(content), size):
            if not over.is_set():
                over.wait(seconds / pieces)
            yield content[start : start + size]

    slow = StreamingHttpResponse(drip(), status=response.status_code, headers=response.headers)
    slow["Content-Length"] = str(len(content))
    return slow


def _hang_up(request: HttpRequest) -> HttpResponse:
    handler = request.META[HANDLER]
    assert isinstance(handler, RequestHandler)  # noqa: S101  # nosec B101
    handler.hang_up()
    return HttpResponse()  # goes nowhere
