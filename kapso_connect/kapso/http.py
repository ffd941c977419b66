"""HTTP for the client: connections, timeouts, retries, and what a failure means.

This module imports requests and is only imported when a client is made, or by what needs ``fetch``.
"""

from __future__ import annotations

import json
import math
import os
import re
import ssl
import threading
import time
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import requests
from django.core.serializers.json import DjangoJSONEncoder
from django.views.decorators.debug import sensitive_variables
from requests.adapters import HTTPAdapter
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    InvalidHeader,
    MaxRetryError,
    NameResolutionError,
    ProxyError,
    ReadTimeoutError,
    SSLError,
)
from urllib3.util import Retry, Timeout

from .. import __version__
from ..conf import API_CONNECT_TIMEOUT
from ..exceptions import (
    KapsoBlocked,
    KapsoConflict,
    KapsoCredentialsError,
    KapsoError,
    KapsoNotFound,
    KapsoPlanError,
    KapsoRateLimited,
    KapsoUnavailable,
    KapsoUnexpectedResponse,
    KapsoValidationError,
)
from ..log import log_event
from ..utils import host_of, is_loopback

MAX_RESPONSE_BYTES = 10 * 1024 * 1024
READ_BYTES = 64 * 1024

RATE_LIMIT_SECONDS = 60.0
"""Kapso's rate limit is for each API key and minute."""

RESERVED_SHARE = 0.1
"""Of the rate limit, what a paced client leaves to webhooks, staff and customers' pages."""

MAX_WAIT_FOR_COUNT = 1.0
"""Seconds that paced requests wait for the answer that says how many a new minute allows."""

MAX_QUOTED_LENGTH = 300  # characters of Kapso's error text in a message
BACKOFF_FACTOR = 0.25  # seconds; doubled with every retry
# Repeating one of these changes nothing. A POST creates something each time.
IDEMPOTENT_METHODS = frozenset({"GET", "PATCH", "DELETE"})
HEADERS = {
    # So that MAX_RESPONSE_BYTES limits what is received and what it decodes to.
    "Accept-Encoding": "identity",
    "User-Agent": f"django-kapso-connect/{__version__}",
}

COMPRESSIONS = frozenset({"gzip", "x-gzip", "deflate"})
"""Values of ``Content-Encoding`` that are decoded."""

REFUSALS: dict[int, tuple[type[KapsoError], str, str]] = {
    400: (KapsoValidationError, "Kapso rejected the values", "Correct the values that it names."),
    401: (
        KapsoCredentialsError,
        "Kapso refused the API key",
        'Set KAPSO_CONNECT["API_KEY"] to a valid key of your Kapso project.',
    ),
    402: (
        KapsoPlanError,
        "your Kapso plan does not include this",
        "Upgrade the plan or pay for it in Kapso's dashboard.",
    ),
    403: (
        KapsoCredentialsError,
        "the API key has no permission for this",
        'Set KAPSO_CONNECT["API_KEY"] to a key of this Kapso project that has it.',
    ),
    404: (
        KapsoNotFound,
        "Kapso has no such object",
        "Check the id, and that the API key belongs to the same Kapso project.",
    ),
    409: (
        KapsoConflict,
        "a limit is reached, or it already exists",
        "Use the existing one, or remove one that is no longer needed.",
    ),
    422: (KapsoValidationError, "Kapso rejected the values", "Correct the values that it names."),
}
"""For each status: the error, what happened, and what to do next."""

RECONNECT = "Let the customer connect the number again, with a new setup link."
META_NEXT_STEPS = {
    131042: "The customer has to solve the payment problem of the account at Meta.",
    131047: "Send an approved template: free text may be sent only within 24 hours of the person's "
    "last message.",
    133010: RECONNECT,
}
"""What to do next, for each of these error codes of Meta's."""

SECRET_REQUEST_FIELDS = frozenset({"access_token", "secret_key", "webhook_verify_token"})
"""Fields of a request whose values no error may quote."""

TRY_LATER = "Try again later."
CHECK_CONNECTION = (
    'Check KAPSO_CONNECT["API_BASE_URL"], and the proxy and CA bundle of this site\'s environment.'
)
CHECK_CALLER = (
    "Check any proxy between this server and Kapso. If there is none, ask Kapso's support whether "
    "this server's IP address is blocked. Then try again."
)
CHECK_CONTRACT = (
    'Check KAPSO_CONNECT["API_BASE_URL"], any proxy between this site and Kapso, and whether there '
    "is a newer version of this package."
)


class Unreachable(Exception):
    """There was no answer; the message says why."""


@dataclass(frozen=True)
class Response:
    """An answer. The names of ``headers`` may be in any case.

    A ``body`` that is longer than MAX_RESPONSE_BYTES is not complete.
    """

    status: int
    # Error reports show the locals of a frame, and these may contain a link's token.
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)

    @property
    def retry_after(self) -> float | None:
        """The seconds of the ``Retry-After``, or None if it is missing or invalid."""
        try:
            return Retry().parse_retry_after(self.headers["Retry-After"])
        except (KeyError, InvalidHeader, ValueError, OverflowError):
            return None


@dataclass(frozen=True)
class _Failure:
    """Why there is no answer, and whether the server may have received the request all the same."""

    reason: str
    was_sent: bool
    is_temporary: bool = True


class _Session(requests.Session):
    def get_redirect_target(self, resp: requests.Response) -> None:
        """Return None: even if a redirect is not followed, requests would read the whole body, and
        fail if the URL in ``Location`` is invalid."""


def _new_session() -> requests.Session:
    session = _Session()
    adapter = HTTPAdapter(pool_maxsize=32)
    session.mount("https://", adapter)
    session.mount("http://", adapter)
    return session


_session = _new_session()
"""Has the connections of this process, which all clients share."""


def _forget_connections() -> None:
    # Two processes that share a socket would read each other's answers.
    global _session
    _session = _new_session()
    _rate_limits.clear()  # a thread that does not exist here may hold the lock of one


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_connections)


@sensitive_variables()
def fetch(
    method: str,
    url: str,
    *,
    server: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    timeout: float,
) -> Response:
    """Make one request without the API key, and on a new connection, since behind a reused one
    there is always the same process. It is not retried, and redirects are not followed.

    ``timeout`` is in seconds; name resolution, and an answer whose headers arrive byte by byte, may
    take longer. Raise Unreachable, whose message calls the other side ``server``.
    """
    request = requests.Request(method, url, headers={**HEADERS, **(headers or {})}, data=body)
    with _new_session() as session:
        answer = _send(session, request, server, API_CONNECT_TIMEOUT, timeout)
    if isinstance(answer, _Failure):
        raise Unreachable(answer.reason)
    return answer


@sensitive_variables()
def _send(
    session: requests.Session,
    request: requests.Request,
    server: str,
    connect_timeout: float,
    timeout: float,
) -> Response | _Failure:
    """Make a request once, within ``timeout`` seconds.

    A failure is returned, not raised: its context would be an exception of requests, which contains
    the request and so the API key.
    """
    deadline = time.monotonic() + timeout
    limits: Any = Timeout(connect=connect_timeout, total=timeout)
    try:
        # Not prepared by the session, which would add cookies, and the credentials of a netrc file.
        prepared = request.prepare()
        direct = {"no_proxy": host_of(request.url)} if is_loopback(request.url) else {}
        options: Any = session.merge_environment_settings(request.url, direct, True, None, None)
        with session.send(prepared, timeout=limits, allow_redirects=False, **options) as response:
            body = _read_body(response.raw, deadline)
            body = _decompress(body, response.headers.get("Content-Encoding", ""))
            return Response(response.status_code, response.headers, body)
    except (requests.RequestException, HTTPError, OSError) as error:
        return _describe_failure(error, server)


def _read_body(raw: Any, deadline: float) -> bytes:
    """Return the body, or its beginning if it is larger than MAX_RESPONSE_BYTES."""
    body = bytearray()
    while len(body) <= MAX_RESPONSE_BYTES:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        # The socket has the timeout that was left before the headers. It is out of reach if the
        # server closes the connection after this answer; one read may then take as long again.
        if raw.connection and raw.connection.sock:
            raw.connection.sock.settimeout(left)
        # Not read() or stream(), which wait until as much has arrived as was asked for.
        piece = raw.read1(READ_BYTES)
        if not piece:
            break
        body += piece
    return bytes(body)


def _decompress(body: bytes, encoding: str) -> bytes:
    """Return what a proxy has compressed although it was not asked to, or the beginning of it if it
    is larger than MAX_RESPONSE_BYTES. A body that cannot be decompressed is returned unchanged."""
    names = [name.strip().lower() for name in encoding.split(",")]
    for name in reversed(names):  # the last one was applied last
        if name not in COMPRESSIONS:
            continue
        # Both formats with a header, and deflate without one, as some servers send it.
        for window_bits in (zlib.MAX_WBITS | 32, -zlib.MAX_WBITS):
            try:
                stream = zlib.decompressobj(window_bits)
                body = stream.decompress(body, MAX_RESPONSE_BYTES + 1)
                break
            except zlib.error:
                continue
    return body


def _describe_failure(error: Exception, server: str) -> _Failure:
    cause: Any = error
    if isinstance(error, requests.RequestException) and error.args:
        cause = error.args[0]
    if isinstance(cause, MaxRetryError):
        cause = cause.reason
    if isinstance(cause, ProxyError):  # the request never got past the proxy
        return _Failure("the proxy in this site's environment refused it", was_sent=False)
    if isinstance(cause, NameResolutionError):
        return _Failure(f"the host name of {server} cannot be resolved (DNS)", was_sent=False)
    if isinstance(cause, ConnectTimeoutError):
        return _Failure(f"could not connect to {server}", was_sent=False)
    if isinstance(cause, SSLError):
        if any(isinstance(arg, ssl.SSLCertVerificationError) for arg in cause.args):
            reason = "this site does not trust the certificate (check its CA bundle)"
            return _Failure(reason, was_sent=False, is_temporary=False)
        return _Failure("the TLS connection failed", was_sent=True, is_temporary=False)
    if isinstance(cause, (ReadTimeoutError, TimeoutError)):
        return _Failure(f"{server} did not answer in time", was_sent=True)
    if isinstance(error, ValueError):
        return _Failure("the URL is invalid", was_sent=False, is_temporary=False)
    return _Failure(f"the connection to {server} broke", was_sent=True)


class RateLimit:
    """How many requests Kapso still allows one API key in this minute, as far as its answers say.

    All threads of this process share it. What is counted ends a minute after the first answer: by
    then Kapso counts anew, whenever its own minute begins. Requests without an answer yet count.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._in_progress = 0
        self._left: float | None = None  # not known; infinite if Kapso names no limit
        self._known_until = 0.0
        self._reserved = 0.0
        self._count_expected_until = 0.0

    def begin(self) -> None:
        """Count a request that is sent without waiting."""
        with self._changed:
            self._begin()

    def wait_and_begin(self, deadline: float) -> float:
        """Count a request once it may be sent, and return 0; or return how many seconds too early
        it is, if it may be sent only after ``deadline``."""
        with self._changed:
            while wait := self._seconds_to_wait():
                if time.monotonic() + wait >= deadline:
                    if self._left is not None:
                        return wait
                    break
                self._changed.wait(wait)
            self._begin()
        return 0.0

    def end(self, answer: Response | _Failure) -> None:
        """Record the answer to a counted request."""
        limit, left = (_count_in(answer, f"X-RateLimit-{name}") for name in ("Limit", "Remaining"))
        with self._changed:
            self._in_progress -= 1
            self._count_expected_until = 0.0
            self._forget_former_minute()
            is_success = isinstance(answer, Response) and answer.status < 400
            if self._left is None and (left is not None or is_success):
                self._left = math.inf
                self._known_until = time.monotonic() + RATE_LIMIT_SECONDS
            if self._left is not None and left is not None:
                self._left = min(self._left, left - self._in_progress)
                self._reserved = (limit or 0) * RESERVED_SHARE
            self._changed.notify_all()

    def _begin(self) -> None:
        self._forget_former_minute()
        self._in_progress += 1
        if self._left is None:
            self._count_expected_until = time.monotonic() + MAX_WAIT_FOR_COUNT
        else:
            self._left -= 1

    def _seconds_to_wait(self) -> float:
        self._forget_former_minute()
        if self._left is None:  # one request finds out how many are left, and the others wait
            return max(self._count_expected_until - time.monotonic(), 0.0)
        if self._left > self._reserved:
            return 0.0
        return max(self._known_until - time.monotonic(), 0.0)

    def _forget_former_minute(self) -> None:
        if time.monotonic() >= self._known_until:
            self._left = None


def _count_in(answer: Response | _Failure, header: str) -> int | None:
    text = answer.headers.get(header, "") if isinstance(answer, Response) else ""
    return int(text) if re.fullmatch("[0-9]{1,9}", text) else None


_rate_limits: dict[tuple[str, str], RateLimit] = {}


def rate_limit_of(base_url: str, api_key: str) -> RateLimit:
    """Return what this process knows about the rate limit of an API key."""
    return _rate_limits.setdefault((base_url, api_key), RateLimit())


class Transport:
    """Makes the requests of one client, all within one budget in seconds, counted from now, each at
    most ``attempts`` times. With ``paced``, they leave a part of the rate limit to others.

    ``hidden`` are secrets, besides the API key, that no message may quote from an answer.
    """

    def __init__(
        self,
        api_key: str,
        budget: float,
        connect_timeout: float,
        read_timeout: float,
        hidden: Iterable[str],
        attempts: int,
        rate_limit: RateLimit,
        *,
        paced: bool,
    ) -> None:
        self._api_key = api_key
        self._rate_limit = rate_limit
        self._paced = paced
        self._hidden = [secret for secret in (api_key, *hidden) if secret]
        self._attempts = attempts
        self._budget = budget
        self._deadline = time.monotonic() + budget
        self._connect_timeout = connect_timeout
        self._read_timeout = read_timeout

    @sensitive_variables()
    def call(
        self, operation: str, method: str, url: str, body: Mapping[str, Any] | None = None
    ) -> Any:
        """Return the answer as parsed JSON, or None if it is empty. Raise KapsoError."""
        started = time.monotonic()
        outcome, status = "ok", None
        try:
            status, result = self._call(operation, method, url, body)
        except KapsoError as error:
            outcome, status = type(error).__name__, error.status
            raise
        finally:
            seconds = time.monotonic() - started
            log_event(
                "api.called",
                outcome=outcome,
                status=status,
                seconds=seconds,
                operation=operation,
                method=method,
            )
        return result

    @sensitive_variables()
    def _call(
        self, operation: str, method: str, url: str, body: Mapping[str, Any] | None
    ) -> tuple[int, Any]:
        """Return the status and the parsed JSON of the answer."""
        if problem := _key_problem(self._api_key):
            next_step = 'Set KAPSO_CONNECT["API_KEY"] to a key of your Kapso project.'
            raise _error(KapsoCredentialsError, operation, problem, next_step)
        if self._remaining() <= 0:
            reason = f"the time limit of {self._budget:g} seconds for API requests was reached"
            raise _error(KapsoUnavailable, operation, reason, TRY_LATER)
        answer, may_have_happened = self._send_with_retries(operation, method, url, body)
        if isinstance(answer, _Failure):
            unknown = answer.was_sent and method == "POST"
            next_step = TRY_LATER if answer.is_temporary else CHECK_CONNECTION
            raise _error(
                KapsoUnavailable, operation, answer.reason, next_step, outcome_unknown=unknown
            )
        if 200 <= answer.status < 300:
            return answer.status, self._json(operation, method, answer)
        if answer.status == 404 and method == "DELETE" and may_have_happened:
            return answer.status, None  # deleted by an earlier attempt whose answer was lost
        raise self._refusal(operation, method, answer, self._quote(answer, body))

    def _remaining(self) -> float:
        return self._deadline - time.monotonic()

    @sensitive_variables()
    def _send_with_retries(
        self, operation: str, method: str, url: str, body: Mapping[str, Any] | None
    ) -> tuple[Response | _Failure, bool]:
        """Return the last answer, and whether an attempt before it may have been carried out."""
        headers = {**HEADERS, "Accept": "application/json", "X-API-Key": self._api_key}
        data = None
        if body is not None:
            headers["Content-Type"] = "application/json"
            data = json.dumps(body, cls=DjangoJSONEncoder, allow_nan=False).encode()
        request = requests.Request(method, url, headers=headers, data=data)
        may_have_happened = False
        for attempt in range(1, self._attempts + 1):
            self._begin(operation)
            timeout = max(min(self._read_timeout, self._remaining()), 0.001)  # 0 is invalid
            answer: Response | _Failure = _Failure("it was interrupted", was_sent=True)
            try:
                answer = _send(_session, request, "Kapso", self._connect_timeout, timeout)
            finally:
                self._rate_limit.end(answer)
            wait = BACKOFF_FACTOR * 2 ** (attempt - 1)
            if isinstance(answer, _Failure):
                was_carried_out, may_retry = answer.was_sent, answer.is_temporary
            else:
                # These were refused before anything happened.
                was_carried_out = answer.status != 429 and not _is_blocked(answer)
                may_retry = not was_carried_out or 500 <= answer.status < 600
                wait = answer.retry_after or wait
            may_retry = may_retry and (not was_carried_out or method in IDEMPOTENT_METHODS)
            if not may_retry or attempt == self._attempts or wait >= self._remaining():
                break
            may_have_happened = may_have_happened or was_carried_out
            time.sleep(wait)
        return answer, may_have_happened

    def _begin(self, operation: str) -> None:
        """Count a request; a paced one waits first. Raise KapsoRateLimited if that takes longer
        than the budget."""
        if not self._paced:
            self._rate_limit.begin()
        elif wait := self._rate_limit.wait_and_begin(self._deadline):
            reason = (
                "what is left of this minute's requests to Kapso is kept for webhooks and customers"
            )
            next_step = f"Try again in {math.ceil(wait)} seconds."
            raise _error(KapsoRateLimited, operation, reason, next_step, retry_after=wait)

    def _refusal(self, operation: str, method: str, answer: Response, quoted: str) -> KapsoError:
        status, code = answer.status, _meta_code(answer.body)
        if status == 429:
            wait = answer.retry_after
            reason = f"too many requests (429){quoted}"
            when = TRY_LATER if wait is None else f"Try again in {wait:.0f} seconds."
            details: dict[str, Any] = {"status": 429, "retry_after": wait, "meta_code": code}
            return _error(KapsoRateLimited, operation, reason, when, **details)
        if _is_blocked(answer):
            reason = (
                "something in front of Kapso refused this server's request without looking at the "
                f"API key (403){quoted}"
            )
            return _error(KapsoBlocked, operation, reason, CHECK_CALLER, status=403)
        if status in REFUSALS:
            kind, reason, next_step = REFUSALS[status]
            if code is not None:
                reason = "Meta refused it"
                if kind is KapsoCredentialsError:  # not the API key, but Meta's for the number
                    kind, next_step = KapsoValidationError, RECONNECT
                next_step = META_NEXT_STEPS.get(code, next_step)
            details = {"status": status, "meta_code": code}
            return _error(kind, operation, f"{reason} ({status}){quoted}", next_step, **details)
        if status == 408 or 500 <= status < 600:
            unknown = method == "POST" and status != 408
            reason = f"Kapso failed ({status}){quoted}"
            details = {"status": status, "outcome_unknown": unknown, "meta_code": code}
            return _error(KapsoUnavailable, operation, reason, TRY_LATER, **details)
        is_redirect = 300 <= status < 400
        reason = "it is a redirect, which is not followed" if is_redirect else "unexpected status"
        return self.unexpected_response(operation, method, f"{reason} ({status}){quoted}", status)

    @sensitive_variables()
    def _quote(self, answer: Response, body: Mapping[str, Any] | None) -> str:
        text = _error_text(answer.body)
        for secret in (*self._hidden, *_secrets_in(body)):
            text = text.replace(secret, "***")
        text = "".join(c for c in text if c.isprintable() or c.isspace())
        text = " ".join(text.split())
        if len(text) > MAX_QUOTED_LENGTH:
            text = text[:MAX_QUOTED_LENGTH] + "…"
        return f': "{text}"' if text else ""

    def _json(self, operation: str, method: str, answer: Response) -> Any:
        if len(answer.body) > MAX_RESPONSE_BYTES:
            reason = "it is larger than 10 MB"
        elif not answer.body.strip():
            return None
        else:
            try:
                return json.loads(answer.body)
            except (ValueError, RecursionError):
                # Its text is not quoted: it may contain the URL of a setup link.
                is_html = "html" in answer.headers.get("Content-Type", "")
                encoding = answer.headers.get("Content-Encoding", "identity")
                reason = "it is HTML, not JSON" if is_html else "it is not JSON"
                if encoding.lower() not in {"identity", *COMPRESSIONS}:
                    reason = "it is encoded in a way that was not asked for"
        raise self.unexpected_response(operation, method, reason, answer.status)

    @staticmethod
    def unexpected_response(
        operation: str, method: str, reason: str, status: int | None = None
    ) -> KapsoError:
        """Return the error for an answer that is not what Kapso's contract promises."""
        was_refused = status is not None and 300 <= status < 500
        unknown = method == "POST" and not was_refused
        reason = f"Kapso's response is not as documented: {reason}"
        details = {"status": status, "outcome_unknown": unknown}
        return _error(KapsoUnexpectedResponse, operation, reason, CHECK_CONTRACT, **details)


def _key_problem(key: str) -> str:
    if not key:
        return "no API key is set"
    # A header may contain latin-1, but a key is ASCII without spaces and control characters.
    if not re.fullmatch("[!-~]+", key):
        return "the API key contains characters that are not allowed"
    return ""


def _error(
    kind: type[KapsoError], operation: str, reason: str, next_step: str, **details: Any
) -> KapsoError:
    if details.get("outcome_unknown"):
        next_step = "It may have been carried out: check before you repeat it."
    return kind(f"Could not {operation}: {reason}. {next_step}", operation=operation, **details)


def _is_blocked(answer: Response) -> bool:
    """Return whether a request never reached Kapso, which stands behind Cloudflare: that judges a
    caller's address and client without looking at the key."""
    return answer.status == 403 and _json_error(answer.body) is None


def _json_error(body: bytes) -> Any:
    """Return what Kapso's or Meta's answer calls its error; None if it is not from them."""
    try:
        return json.loads(body)["error"]
    except (ValueError, RecursionError, LookupError, TypeError):
        return None


def _meta_code(body: bytes) -> int | None:
    """Return the code of an error of Meta's, or None: Kapso's own have a text only."""
    error = _json_error(body)
    if not isinstance(error, Mapping) or "message" not in error:
        return None
    code = error.get("code")
    return code if type(code) is int else None


def _meta_text(error: Mapping[str, Any]) -> str | None:
    """Return Meta's words about an error, with its code."""
    message, code, data = error.get("message"), error.get("code"), error.get("error_data")
    if not isinstance(message, str):
        return None
    details = data.get("details") if isinstance(data, Mapping) else None
    if type(code) is int and str(code) not in message:
        message += f" (code {code})"
    return f"{message}: {details}" if isinstance(details, str) else message


@sensitive_variables()
def _secrets_in(body: Mapping[str, Any] | None) -> list[str]:
    """Return the secrets that a request contains in the object that its body wraps."""
    return [
        value
        for wrapped in (body or {}).values()
        if isinstance(wrapped, Mapping)
        for name, value in wrapped.items()
        if name in SECRET_REQUEST_FIELDS and isinstance(value, str) and value
    ]


def _error_text(body: bytes) -> str:
    """Return the text of an error answer: Kapso's, Meta's, or that of a proxy's page."""
    error = _json_error(body)
    if isinstance(error, Mapping):
        error = _meta_text(error)
    if isinstance(error, str):
        reason = json.loads(body).get("message")  # a refused health check has it beside the error
        return f"{error}: {reason}" if isinstance(reason, str) and reason != error else error
    page = body[:4096].decode("utf-8", "replace")
    return re.sub("<[^<>]*>", " ", page)
