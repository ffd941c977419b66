"""Log every request to the API, check its key, and apply the faults; answer errors in JSON."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

from django.core.exceptions import DisallowedHost
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase

from .faults import Rule
from .fields import ApiError
from .limits import count_request
from .server import CONNECTION_KEY
from .state import now, store
from .web import error_response, json_response, read_json

SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
MAX_REQUEST_BODY = 1024 * 1024
API_PREFIXES = ("/platform/", "/meta/")
ELSEWHERE_PATH = "/elsewhere"
UNKNOWN_NUMBER_TEXT = "WhatsApp configuration not found"
ERROR_TEXTS = {
    401: "Unauthorized",
    402: "Upgrade your plan to use this",
    404: UNKNOWN_NUMBER_TEXT,
    429: "Too many requests",
}
NUMBER_PATH = re.compile(r"/platform/v1/whatsapp/phone_numbers/([^/]+)")
JSON = "application/json"
CLOUDFLARE_PAGE = b"""<!DOCTYPE html>
<html lang="en-US"><head><title>Access denied | api.kapso.ai used Cloudflare</title></head>
<body><h1>Error 1010</h1><p>The owner of this website (api.kapso.ai) has banned your access based
on your browser's signature.</p></body></html>
"""
META_ERROR = {"message": "(#131000) Something went wrong", "type": "OAuthException", "code": 131000}
# What the faults answer when the rule does not say otherwise: status, content type and body.
FAULT_RESPONSES: dict[str, tuple[int, str, bytes]] = {
    "html": (502, "text/html", b"<html><body><h1>Bad gateway</h1></body></html>"),
    "meta_error": (400, JSON, json.dumps({"error": META_ERROR}).encode()),
    "cloudflare": (403, "text/html; charset=UTF-8", CLOUDFLARE_PAGE),
    "cloudflare_1010": (403, "text/plain; charset=UTF-8", b"error code: 1010"),
    "garbage": (200, JSON, b'{"data": [{"id": \xff\xfe\x00\x9d'),
    "redirect": (302, "text/html", b""),
    "empty": (200, JSON, b""),
}


class SameSiteMiddleware:
    """Refuses requests for another host, and changes that a page of another site asks for.

    The developer's browser can reach the sandbox, and so can every web page that is open in it.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        host = request.get_host()  # raises DisallowedHost
        if request.method in SAFE_METHODS or _is_same_site(request, host):
            return self.get_response(request)
        return error_response(ApiError(403, "Pages of other sites must not use the sandbox"))


def _is_same_site(request: HttpRequest, host: str) -> bool:
    """Return False if a browser says that the request comes from a page of another site. Programs
    that are no browsers send neither header."""
    own = {host, urlsplit(store.options.base_url).netloc}
    origin = request.headers.get("Origin")
    if origin is not None and origin.partition("://")[2] not in own:
        return False
    return request.headers.get("Sec-Fetch-Site", "none") in ("same-origin", "none")


def has_key(request: HttpRequest) -> bool:
    """Return whether the request has an API key that the sandbox accepts."""
    key, expected = request.headers.get("X-API-Key", ""), store.options.api_key
    return key == expected if expected else key != ""


class SandboxMiddleware:
    """Answers errors in JSON; for requests to the API: logs them, applies faults, checks keys."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        length = request.headers.get("Content-Length", "")
        if length.isdecimal() and int(length) > MAX_REQUEST_BODY:
            return error_response(
                ApiError(413, f"The body is larger than {MAX_REQUEST_BODY} bytes")
            )
        if not request.path.startswith((*API_PREFIXES, ELSEWHERE_PATH)):
            return self.get_response(request)
        entry = _log(request)
        line = f"{request.method} {request.path}"
        with store.lock:
            rule = next((rule for rule in store.faults.api if rule.affects(line)), None)
        if rule is None:
            response: HttpResponseBase | None = self._answer(request)
        else:
            entry["fault"] = rule.kind
            response = self._apply_fault(rule, request)
        if response is None:
            return _break_connection(request)
        entry["status"] = response.status_code
        return response

    def process_exception(self, request: HttpRequest, error: Exception) -> HttpResponse | None:
        return error_response(error) if isinstance(error, ApiError) else None

    def _answer(self, request: HttpRequest) -> HttpResponseBase:
        if request.path.startswith(API_PREFIXES) and not has_key(request):
            return error_response(ApiError(401, "Unauthorized: invalid or missing API key"))
        try:
            with store.lock:
                headers = count_request(request.headers.get("X-API-Key", ""))
        except ApiError as error:
            return error_response(error)
        found = NUMBER_PATH.match(request.path)
        with store.lock:
            if found and store.is_lagging(found[1]):
                return error_response(ApiError(404, UNKNOWN_NUMBER_TEXT))
        response = self.get_response(request)
        if response.status_code < 400:
            for name, value in headers.items():
                response[name] = value
        return response

    def _apply_fault(self, rule: Rule, request: HttpRequest) -> HttpResponseBase | None:
        """Return the response that ``rule`` asks for; None when the connection has to break."""
        if rule.kind == "slow":
            return _slow_response(self._answer(request), rule)
        if rule.kind == "hang":
            _wait(rule, rule.seconds or None)
        if rule.kind in ("apply_then_500", "apply_then_close"):
            self._answer(request)
        if rule.kind in ("hang", "close", "apply_then_close"):
            return None
        return _fault_response(rule)


def _log(request: HttpRequest) -> dict[str, Any]:
    try:
        body = read_json(request) if request.body else None
    except ApiError:
        body = request.body[:10_000].decode(errors="replace")
    entry = {
        "method": request.method,
        "path": request.path,
        "query": request.META.get("QUERY_STRING", ""),
        "body": body,
        "has_key": "X-API-Key" in request.headers,
        "at": now(),
        "status": None,  # no response was sent, or not yet
        "fault": None,
    }
    with store.lock:
        store.requests.append(entry)
    return entry


def _wait(rule: Rule, seconds: float | None) -> None:
    """Wait so long, or until the rule is removed."""
    store.wait_for(lambda: rule not in store.faults.api, seconds)


def _fault_response(rule: Rule) -> HttpResponse:
    if rule.kind in FAULT_RESPONSES:
        status, content_type, body = FAULT_RESPONSES[rule.kind]
        response = HttpResponse(body, status=rule.status or status, content_type=content_type)
    else:  # status, apply_then_500
        status = rule.status or 500
        response = json_response(
            {"error": ERROR_TEXTS.get(status, f"Sandbox fault {status}")}, status
        )
    if rule.kind.startswith("cloudflare"):
        response["Server"] = "cloudflare"
    if rule.kind == "redirect":
        response["Location"] = rule.location or f"{store.options.base_url}{ELSEWHERE_PATH}"
    if rule.retry_after is not None:
        response["Retry-After"] = rule.retry_after
    return response


def _slow_response(response: HttpResponseBase, rule: Rule) -> HttpResponseBase:
    """Return the same response, sent a few bytes at a time."""
    if not isinstance(response, HttpResponse) or not response.content:
        return response
    content = response.content
    size = -(-len(content) // 20)
    starts = range(0, len(content), size)

    def chunks() -> Iterator[bytes]:
        for start in starts:
            _wait(rule, (rule.seconds or 10.0) / len(starts))
            yield content[start : start + size]

    slow = StreamingHttpResponse(chunks(), status=response.status_code, headers=response.headers)
    slow["Content-Length"] = str(len(content))
    return slow


def _break_connection(request: HttpRequest) -> HttpResponse:
    with contextlib.suppress(OSError):
        request.META[CONNECTION_KEY].shutdown(socket.SHUT_RDWR)
    return HttpResponse()  # never sent


# Django's handlers for what no view answered


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    if isinstance(exception, DisallowedHost):
        text = "The sandbox does not serve this host name. Start it with --allowed-host to allow it"
        return json_response({"error": text}, 400)
    return json_response({"error": "The request could not be read"}, 400)


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    return json_response({"error": f"Not found: {request.path}"}, 404)


def server_error(request: HttpRequest) -> HttpResponse:
    traceback.print_exc(file=sys.stderr)
    return json_response({"error": "The sandbox has a bug; see its log."}, 500)
