"""HTTP for the client: connections, timeouts, retries, and what a failure means.

This module imports requests and is only imported when a client is made, or by what needs ``fetch``.
"""

from __future__ import annotations

import http.client
import io
import json
import os
import re
import socket
import ssl
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import requests
import urllib3
from django.core.serializers.json import DjangoJSONEncoder
from django.views.decorators.debug import sensitive_variables
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    InvalidHeader,
    MaxRetryError,
    ProxyError,
    ReadTimeoutError,
    SSLError,
)
from urllib3.util import Retry, Timeout

from .. import __version__
from ..conf import API_CONNECT_TIMEOUT
from ..exceptions import (
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

MAX_RESPONSE_BYTES = 10 * 1024 * 1024
MAX_QUOTED_LENGTH = 300  # characters of Kapso's error text in a message
MAX_RETRIES = 3
BACKOFF_FACTOR = 0.25  # seconds; doubled with every retry
# Repeating one of these changes nothing. A POST creates something each time.
IDEMPOTENT_METHODS = frozenset({"GET", "PATCH", "DELETE"})


@dataclass(frozen=True)
class _Refusal:
    error: type[KapsoError]
    reason: str
    next_step: str


_REFUSALS = {
    400: _Refusal(
        KapsoValidationError, "Kapso rejected the values", "Correct the values that it names."
    ),
    401: _Refusal(
        KapsoCredentialsError,
        "Kapso refused the API key",
        'Set KAPSO_CONNECT["API_KEY"] to a valid key of your Kapso project.',
    ),
    402: _Refusal(
        KapsoPlanError,
        "your Kapso plan does not include this",
        "Upgrade the plan or pay for it in Kapso's dashboard.",
    ),
    403: _Refusal(
        KapsoCredentialsError,
        "the API key has no permission for this",
        'Set KAPSO_CONNECT["API_KEY"] to a key of this Kapso project that has it.',
    ),
    404: _Refusal(
        KapsoNotFound,
        "Kapso has no such object",
        "Check the id, and that the API key belongs to the same Kapso project.",
    ),
    409: _Refusal(
        KapsoConflict,
        "a limit is reached, or it already exists",
        "Use the existing one, or remove one that is no longer needed.",
    ),
    422: _Refusal(
        KapsoValidationError, "Kapso rejected the values", "Correct the values that it names."
    ),
}
_TRY_LATER = "Try again later."
_CHECK_FIRST = "It may have been carried out: check before you repeat it."


class _AnswerTooLargeError(Exception):
    """Not an OSError, which urllib3 would take for a broken connection and retry."""


class _TimedReader(io.RawIOBase):
    """Reads a socket with one timeout for the whole answer, not one for each piece: headers or a
    body that arrive byte by byte end in time. Raises _AnswerTooLargeError for a large answer."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._deadline = time.monotonic() + (sock.gettimeout() or 0)
        self._bytes_left = MAX_RESPONSE_BYTES
        # Keeps the socket open until this is closed, whatever http.client closes before.
        self._raw = sock.makefile("rb", buffering=0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        self._socket.settimeout(left)
        count = self._raw.readinto(buffer)
        self._bytes_left -= count or 0
        if self._bytes_left < 0:
            raise _AnswerTooLargeError
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


class _TimedResponse(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        original, self.fp = self.fp, io.BufferedReader(_TimedReader(sock))
        original.close()


class _HTTPConnection(urllib3.connection.HTTPConnection):
    response_class = _TimedResponse


class _HTTPSConnection(urllib3.connection.HTTPSConnection):
    response_class = _TimedResponse


class _PreloadedAnswers:
    """Reads the body together with the headers, so that Retry also sees a body that breaks off."""

    def urlopen(self, *args: Any, **kwargs: Any) -> Any:
        return super().urlopen(*args, **{**kwargs, "preload_content": True})  # type: ignore[misc]


class _HTTPPool(_PreloadedAnswers, urllib3.HTTPConnectionPool):
    ConnectionCls = _HTTPConnection


class _HTTPSPool(_PreloadedAnswers, urllib3.HTTPSConnectionPool):
    ConnectionCls = _HTTPSConnection


def _use_our_pools(manager: urllib3.PoolManager) -> urllib3.PoolManager:
    manager.pool_classes_by_scheme = {"http": _HTTPPool, "https": _HTTPSPool}
    return manager


class _Connections:
    """The connections of this process, shared by all clients."""

    def __init__(self) -> None:
        self.manager = _use_our_pools(urllib3.PoolManager(num_pools=10, maxsize=32))
        self.proxies: dict[str, urllib3.PoolManager] = {}


_connections = _Connections()


def _forget_connections() -> None:
    # Two processes that share a socket would read each other's answers.
    global _connections
    _connections = _Connections()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_connections)


class _Budget:
    """The seconds that all requests of one client may take together, counted from now."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._deadline = time.monotonic() + seconds

    def remaining(self) -> float:
        return self._deadline - time.monotonic()


class _BudgetTimeout(Timeout):
    """A Timeout that limits each attempt to the rest of the budget: urllib3 clones it for each."""

    def __init__(self, connect: float, read: float, budget: _Budget) -> None:
        super().__init__(connect=connect, read=read)
        self._budget = budget

    def clone(self) -> Timeout:
        left = max(self._budget.remaining(), 0.001)
        return Timeout(connect=self._connect, read=self._read, total=left)


class _Retry(Retry):
    """Retries what Kapso's contract allows to be retried, while the wait fits the budget.

    Raises MaxRetryError to give up; if there was an answer, urllib3 then returns it.
    """

    def __init__(self, *args: Any, budget: _Budget, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._budget = budget

    @classmethod
    def within(cls, budget: _Budget) -> _Retry:
        return cls(
            total=MAX_RETRIES,
            other=0,
            allowed_methods=IDEMPOTENT_METHODS,
            status_forcelist=range(500, 600),
            backoff_factor=BACKOFF_FACTOR,
            raise_on_status=False,
            budget=budget,
        )

    def new(self, **kwargs: Any) -> _Retry:
        return super().new(budget=self._budget, **kwargs)

    def is_retry(self, method: str, status_code: int, has_retry_after: bool = False) -> bool:
        # A 429 was refused before anything happened, so every method may be retried.
        return status_code == 429 or (
            status_code in self.status_forcelist and method in IDEMPOTENT_METHODS
        )

    def increment(
        self,
        method: str | None = None,
        url: str | None = None,
        response: Any = None,
        error: Exception | None = None,
        _pool: Any = None,
        _stacktrace: Any = None,
    ) -> _Retry:
        following = super().increment(method, url, response, error, _pool, _stacktrace)
        wait = response is not None and following.get_retry_after(response)
        if (wait or following.get_backoff_time()) >= self._budget.remaining():
            raise MaxRetryError(_pool, url or "", error)
        return following

    def get_retry_after(self, response: Any) -> float | None:
        """Return the ``Retry-After`` in seconds, or None if it is missing or invalid."""
        try:
            return super().get_retry_after(response)
        except (InvalidHeader, ValueError, OverflowError):
            return None

    def get_backoff_time(self) -> float:
        # urllib3 would retry the first time without a delay.
        return super().get_backoff_time() or BACKOFF_FACTOR

    def may_have_happened(self) -> bool:
        """Return True if one of the earlier attempts may have been carried out."""
        return any(
            entry.status != 429 and not (entry.error and self._is_connection_error(entry.error))
            for entry in self.history
        )


class _Adapter(HTTPAdapter):
    def __init__(
        self, retry: Retry, timeout: Timeout, connections: _Connections | None = None
    ) -> None:
        self._timeout = timeout
        self._own_connections = connections
        super().__init__(max_retries=retry)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        """Create nothing: the connections are the process's."""

    def proxy_manager_for(self, proxy: Any, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(proxy, **kwargs)
        # A SOCKS proxy needs its own kind of connections.
        return manager if proxy.lower().startswith("socks") else _use_our_pools(manager)

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> Any:
        connections = self._own_connections or _connections
        self.poolmanager = connections.manager
        self.proxy_manager = connections.proxies
        return super().send(request, *args, **{**kwargs, "timeout": self._timeout})

    def close(self) -> None:
        """Keep the process's connections for the next client."""
        own = self._own_connections
        if own is not None:
            for manager in (own.manager, *own.proxies.values()):
                manager.clear()


class _Session(requests.Session):
    def get_redirect_target(self, resp: requests.Response) -> None:
        """Ignore Location: redirects are not followed, and an invalid one must not raise."""


class _ApiKey(AuthBase):
    """Adds the API key to a request. As the session's ``auth``, it also keeps requests from reading
    credentials from a netrc file, while the environment's proxies and CA bundles still apply."""

    def __init__(self, key: str) -> None:
        self.key = key

    def problem(self) -> str:
        if not self.key:
            return "no API key is set"
        # A header may contain latin-1, but a key is ASCII without spaces and control characters.
        if not re.fullmatch("[!-~]+", self.key):
            return "the API key contains characters that are not allowed"
        return ""

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["X-API-Key"] = self.key
        return request


@dataclass(frozen=True)
class _Answer:
    status: int
    content_type: str
    # Error reports show the locals of a frame, and this may contain a link's token.
    body: bytes = field(repr=False)
    retry_after: float | None
    was_retried: bool


class Transport:
    """Makes the requests of one client, all within one budget in seconds.

    ``hidden`` are secrets, besides the API key, that no message may quote from an answer.
    """

    def __init__(
        self,
        api_key: str,
        budget: float,
        connect_timeout: float,
        read_timeout: float,
        hidden: Iterable[str] = (),
    ) -> None:
        self._key = _ApiKey(api_key)
        self._hidden = (api_key, *hidden)
        self._budget = _Budget(budget)
        self._session = _Session()
        self._session.auth = self._key
        self._session.headers.update(
            {
                "Accept": "application/json",
                # So that MAX_RESPONSE_BYTES limits what is received and what it decodes to.
                "Accept-Encoding": "identity",
                "User-Agent": f"django-kapso-connect/{__version__}",
            }
        )
        adapter = _Adapter(
            _Retry.within(self._budget),
            _BudgetTimeout(connect_timeout, read_timeout, self._budget),
        )
        self._session.mount("https://", adapter)
        self._session.mount("http://", adapter)

    def close(self) -> None:
        self._session.close()

    @staticmethod
    def unexpected_response(operation: str, method: str, reason: str) -> KapsoUnexpectedResponse:
        return unexpected_response(operation, method, reason)

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
        if problem := self._key.problem():
            raise KapsoCredentialsError(
                f'Could not {operation}: {problem}. Set KAPSO_CONNECT["API_KEY"] to a key of your '
                "Kapso project.",
                operation=operation,
            )
        if self._budget.remaining() <= 0:
            raise KapsoUnavailable(
                f"Could not {operation}: the time limit of {self._budget.seconds:g} seconds for "
                f"API requests was reached. {_TRY_LATER}",
                operation=operation,
            )
        answer = self._exchange(operation, method, url, body)
        if isinstance(answer, KapsoError):
            raise answer
        if 200 <= answer.status < 300:
            return answer.status, _json(operation, method, answer)
        if answer.status == 404 and method == "DELETE" and answer.was_retried:
            return answer.status, None  # deleted by an earlier attempt whose answer was lost
        raise self._refusal(operation, method, answer)

    def _exchange(
        self, operation: str, method: str, url: str, body: Mapping[str, Any] | None
    ) -> _Answer | KapsoError:
        """Return the answer, or the error if there is none.

        The error is not raised here, where its context would be an exception of requests, which
        contains the request and so the API key.
        """
        data = headers = None
        if body is not None:
            data = json.dumps(body, cls=DjangoJSONEncoder, allow_nan=False).encode()
            headers = {"Content-Type": "application/json"}
        try:
            response = self._session.request(
                method, url, data=data, headers=headers, allow_redirects=False, stream=True
            )
            raw: Any = response.raw
            return _Answer(
                status=response.status_code,
                content_type=response.headers.get("Content-Type", ""),
                body=raw.data or b"",
                retry_after=raw.retries.get_retry_after(raw),
                was_retried=raw.retries.may_have_happened(),
            )
        except _AnswerTooLargeError:
            return unexpected_response(operation, method, "it is larger than 10 MB")
        except (requests.RequestException, HTTPError, http.client.HTTPException, OSError) as error:
            return _no_answer(operation, method, error)

    def _refusal(self, operation: str, method: str, answer: _Answer) -> KapsoError:
        quoted = self._quote(answer)
        status = answer.status
        if status == 429:
            wait = answer.retry_after
            when = _TRY_LATER if wait is None else f"Try again in {wait:.0f} seconds."
            return KapsoRateLimited(
                f"Could not {operation}: too many requests (429){quoted}. {when}",
                operation=operation,
                status=status,
                retry_after=wait,
            )
        if status in _REFUSALS:
            refusal = _REFUSALS[status]
            return refusal.error(
                f"Could not {operation}: {refusal.reason} ({status}){quoted}. {refusal.next_step}",
                operation=operation,
                status=status,
            )
        if status == 408 or 500 <= status < 600:
            unknown = method == "POST" and status != 408
            return KapsoUnavailable(
                f"Could not {operation}: Kapso failed ({status}){quoted}. "
                + (_CHECK_FIRST if unknown else _TRY_LATER),
                operation=operation,
                status=status,
                outcome_unknown=unknown,
            )
        is_redirect = 300 <= status < 400
        reason = "it is a redirect, which is not followed" if is_redirect else "unexpected status"
        return unexpected_response(operation, method, f"{reason} ({status}){quoted}", status)

    def _quote(self, answer: _Answer) -> str:
        text = _error_text(answer.body)
        for secret in filter(None, self._hidden):
            text = text.replace(secret, "***")
        text = "".join(c for c in text if c.isprintable() or c.isspace())
        text = " ".join(text.split())
        if len(text) > MAX_QUOTED_LENGTH:
            text = text[:MAX_QUOTED_LENGTH] + "…"
        return f': "{text}"' if text else ""


def unexpected_response(
    operation: str, method: str, reason: str, status: int | None = None
) -> KapsoUnexpectedResponse:
    """Return the error for an answer that is not what Kapso's contract promises."""
    was_refused = status is not None and 300 <= status < 500
    unknown = method == "POST" and not was_refused
    next_step = (
        _CHECK_FIRST
        if unknown
        else 'Check KAPSO_CONNECT["API_BASE_URL"], any proxy between this site and Kapso, and '
        "whether there is a newer version of this package."
    )
    return KapsoUnexpectedResponse(
        f"Could not {operation}: Kapso's response is not as documented: {reason}. {next_step}",
        operation=operation,
        status=status,
        outcome_unknown=unknown,
    )


def _json(operation: str, method: str, answer: _Answer) -> Any:
    if not answer.body.strip():
        return None
    try:
        return json.loads(answer.body)
    except (ValueError, RecursionError):
        # Its text is not quoted: it may contain the URL of a setup link.
        reason = "it is HTML, not JSON" if "html" in answer.content_type else "it is not JSON"
    raise unexpected_response(operation, method, reason, answer.status)


def _error_text(body: bytes) -> str:
    """Return the text of an error answer: Kapso's, Meta's, or that of a proxy's page."""
    try:
        error = json.loads(body)["error"]
        if isinstance(error, Mapping):
            error = error["message"]
    except (ValueError, RecursionError, LookupError, TypeError):
        error = None
    if isinstance(error, str):
        return error
    page = body[:4096].decode("utf-8", "replace")
    return re.sub("<[^<>]*>", " ", page)


def _no_answer(operation: str, method: str, error: Exception) -> KapsoUnavailable:
    reason, was_sent = _describe_failure(error, "Kapso")
    unknown = was_sent and method == "POST"
    return KapsoUnavailable(
        f"Could not {operation}: {reason}. " + (_CHECK_FIRST if unknown else _TRY_LATER),
        operation=operation,
        outcome_unknown=unknown,
    )


def _describe_failure(error: Exception, server: str) -> tuple[str, bool]:
    """Return what failed, and whether ``server`` may have received the request."""
    cause: Any = error
    if isinstance(error, requests.RequestException) and error.args:
        cause = error.args[0]
    if isinstance(cause, MaxRetryError):
        cause = cause.reason
    if isinstance(cause, ProxyError):  # the request never got past the proxy
        return "the proxy in this site's environment refused it", False
    if type(cause).__name__ == "NameResolutionError":  # only in urllib3 2
        return f"the host name of {server} cannot be resolved (DNS)", False
    if isinstance(cause, ConnectTimeoutError):
        return f"could not connect to {server}", False
    if isinstance(cause, SSLError):
        if any(isinstance(arg, ssl.SSLCertVerificationError) for arg in cause.args):
            return "this site does not trust the certificate (check its CA bundle)", False
        return "the TLS connection failed", True
    if isinstance(cause, ReadTimeoutError):
        return f"{server} did not answer in time", True
    if isinstance(error, ValueError):
        return 'KAPSO_CONNECT["API_BASE_URL"] or the URL of the proxy is invalid', False
    return f"the connection to {server} broke", True


# Requests without the API key


class Unreachable(Exception):
    """There was no answer; the message says why."""


@dataclass(frozen=True)
class Response:
    """The answer to ``fetch``. The names of ``headers`` are lower-case."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)


class _NoCredentials(AuthBase):
    """Keeps requests from reading credentials from a netrc file."""

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        return request


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

    ``timeout`` is in seconds for the whole answer; name resolution does not count. Raise
    Unreachable, whose message calls the other side ``server``.
    """
    budget = _Budget(timeout)
    once = _Retry(total=0, other=0, status_forcelist=(), raise_on_status=False, budget=budget)
    adapter = _Adapter(
        once, _BudgetTimeout(min(API_CONNECT_TIMEOUT, timeout), timeout, budget), _Connections()
    )
    failure = ""
    with _Session() as session:
        session.auth = _NoCredentials()
        session.mount("https://", adapter)
        session.mount("http://", adapter)
        try:
            response = session.request(
                method, url, data=body, headers=headers, allow_redirects=False, stream=True
            )
            content = response.raw.data or b""
        except _AnswerTooLargeError:
            failure = f"{server} sent more than 10 MB"
        except (requests.RequestException, HTTPError, http.client.HTTPException, OSError) as error:
            failure = "the URL is invalid" if isinstance(error, ValueError) else ""
            failure = failure or _describe_failure(error, server)[0]
        else:
            lower = {name.lower(): value for name, value in response.headers.items()}
            return Response(response.status_code, lower, content)
    raise Unreachable(failure)
