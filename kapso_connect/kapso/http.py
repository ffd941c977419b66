"""How the client's requests reach Kapso: connections, time, repeats, and what failures mean."""

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
from ..exceptions import (
    KapsoConflict,
    KapsoCredentialsError,
    KapsoError,
    KapsoNotFound,
    KapsoPlanError,
    KapsoRateLimited,
    KapsoUnavailable,
    KapsoUnexpectedAnswer,
    KapsoValidationError,
)
from ..log import log_event

MAX_ANSWER_BYTES = 10 * 1024 * 1024
MAX_QUOTED = 300  # characters of Kapso's own words in a message
REPEATS = 3
FIRST_WAIT = 0.25  # seconds; doubled with every repeat
# They name the state wanted, so doing it twice is doing it once. A POST makes something each time.
REPEATABLE = frozenset({"GET", "PATCH", "DELETE"})


@dataclass(frozen=True)
class _Failure:
    error: type[KapsoError]
    what: str
    next_step: str


_FAILURES = {
    400: _Failure(KapsoValidationError, "Kapso refused the content", "Correct what it names."),
    401: _Failure(
        KapsoCredentialsError,
        "Kapso refused the API key",
        'Set KAPSO_CONNECT["API_KEY"] to a valid key of your Kapso project.',
    ),
    402: _Failure(
        KapsoPlanError,
        "your Kapso plan does not include this",
        "Upgrade or settle the plan in Kapso's dashboard.",
    ),
    403: _Failure(
        KapsoCredentialsError,
        "the API key may not do this",
        'Set KAPSO_CONNECT["API_KEY"] to a key of this Kapso project that may.',
    ),
    404: _Failure(
        KapsoNotFound,
        "Kapso does not know it",
        "Check the id, and that the API key is of the Kapso project it belongs to.",
    ),
    409: _Failure(
        KapsoConflict,
        "a limit is reached, or it exists already",
        "Use what exists, or remove what is no longer needed.",
    ),
    422: _Failure(KapsoValidationError, "Kapso refused the content", "Correct what it names."),
}
_LATER = "Try again later."
_LOOK_FIRST = "It may have been carried out: look before you repeat it."


class _AnswerTooLargeError(Exception):
    """Not an OSError on purpose: urllib3 then takes it for no broken connection to repeat."""


class _TimedReader(io.RawIOBase):
    """Reads a socket whose timeout is for all that is read, not for each piece: an answer that
    drips, in its headers or in its body, ends in time. It ends when it grows too large, too."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._deadline = time.monotonic() + (sock.gettimeout() or 0)
        self._bytes_left = MAX_ANSWER_BYTES
        # The socket stays open until this is closed, whatever http.client closes before.
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
        plain, self.fp = self.fp, io.BufferedReader(_TimedReader(sock))
        plain.close()


class _HTTPConnection(urllib3.connection.HTTPConnection):
    response_class = _TimedResponse


class _HTTPSConnection(urllib3.connection.HTTPSConnection):
    response_class = _TimedResponse


class _WholeAnswers:
    """Reads the body together with the headers, so that Retry sees it break off as well."""

    def urlopen(self, *args: Any, **kwargs: Any) -> Any:
        return super().urlopen(*args, **{**kwargs, "preload_content": True})  # type: ignore[misc]


class _HTTPPool(_WholeAnswers, urllib3.HTTPConnectionPool):
    ConnectionCls = _HTTPConnection


class _HTTPSPool(_WholeAnswers, urllib3.HTTPSConnectionPool):
    ConnectionCls = _HTTPSConnection


def _with_our_pools(manager: urllib3.PoolManager) -> urllib3.PoolManager:
    manager.pool_classes_by_scheme = {"http": _HTTPPool, "https": _HTTPSPool}
    return manager


class _Connections:
    """The connections of this process, whichever client opened them."""

    def __init__(self) -> None:
        self.manager = _with_our_pools(urllib3.PoolManager(num_pools=10, maxsize=32))
        self.proxies: dict[str, urllib3.PoolManager] = {}


_connections = _Connections()


def _forget_connections() -> None:
    # Two processes that speak on one socket would read each other's answers.
    global _connections
    _connections = _Connections()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_connections)


class _Budget:
    """The API time of one client, in seconds, counted from now."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._deadline = time.monotonic() + seconds

    def remaining(self) -> float:
        return self._deadline - time.monotonic()


class _BudgetTimeout(Timeout):
    """A Timeout that gives each attempt what is left of the budget, for urllib3 clones it then."""

    def __init__(self, connect: float, read: float, budget: _Budget) -> None:
        super().__init__(connect=connect, read=read)
        self._budget = budget

    def clone(self) -> Timeout:
        left = max(self._budget.remaining(), 0.001)
        return Timeout(connect=self._connect, read=self._read, total=left)


class _Retry(Retry):
    """Repeats what Kapso's contract lets be repeated, while the wait fits the budget.

    Giving up raises MaxRetryError; where there was an answer, urllib3 then hands that over.
    """

    def __init__(self, *args: Any, budget: _Budget, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._budget = budget

    @classmethod
    def within(cls, budget: _Budget) -> _Retry:
        return cls(
            total=REPEATS,
            other=0,
            allowed_methods=REPEATABLE,
            status_forcelist=range(500, 600),
            backoff_factor=FIRST_WAIT,
            raise_on_status=False,
            budget=budget,
        )

    def new(self, **kwargs: Any) -> _Retry:
        return super().new(budget=self._budget, **kwargs)

    def is_retry(self, method: str, status_code: int, has_retry_after: bool = False) -> bool:
        # A 429 was refused before anything happened, so every method may come again.
        return status_code == 429 or (status_code in self.status_forcelist and method in REPEATABLE)

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
        """Return the wait asked for in seconds, given as such or as a date; None for nonsense."""
        try:
            return super().get_retry_after(response)
        except (InvalidHeader, ValueError, OverflowError):
            return None

    def get_backoff_time(self) -> float:
        # urllib3 repeats the first time at once; a server that struggles gets a moment.
        return super().get_backoff_time() or FIRST_WAIT

    def may_have_happened(self) -> bool:
        """Whether one of the earlier attempts may have been carried out."""
        return any(
            entry.status != 429 and not (entry.error and self._is_connection_error(entry.error))
            for entry in self.history
        )


class _Adapter(HTTPAdapter):
    def __init__(self, retry: Retry, timeout: Timeout, own: _Connections | None = None) -> None:
        self._timeout = timeout
        self._own = own
        super().__init__(max_retries=retry)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to make: the connections are the process's."""

    def proxy_manager_for(self, proxy: Any, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(proxy, **kwargs)
        # A SOCKS proxy comes with connections of its own kind.
        return manager if proxy.lower().startswith("socks") else _with_our_pools(manager)

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> Any:
        connections = self._own or _connections
        self.poolmanager = connections.manager
        self.proxy_manager = connections.proxies
        return super().send(request, *args, **{**kwargs, "timeout": self._timeout})

    def close(self) -> None:
        """Keep the process's connections: they are for the next client."""
        if self._own is not None:
            for manager in (self._own.manager, *self._own.proxies.values()):
                manager.clear()


class _Session(requests.Session):
    def get_redirect_target(self, resp: requests.Response) -> None:
        """Look at no Location: none is followed, and a broken one must not raise."""


class _ApiKey(AuthBase):
    """Puts the key on a request. As the session's ``auth`` it also keeps requests from taking
    credentials out of a netrc file, while proxies and CA bundles of the environment still count."""

    def __init__(self, key: str) -> None:
        self.key = key

    def problem(self) -> str:
        if not self.key:
            return "no API key is set"
        # A header holds latin-1 without control characters; a key is plain ASCII without spaces.
        if not re.fullmatch("[!-~]+", self.key):
            return "the API key has characters that no key has"
        return ""

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["X-API-Key"] = self.key
        return request


@dataclass(frozen=True)
class _Answer:
    status: int
    content_type: str
    # Error reporters show the locals of a frame, and here may be a link's token.
    body: bytes = field(repr=False)
    retry_after: float | None
    repeated: bool


class Transport:
    """Makes one request after the other for a client, within one budget of seconds.

    ``hidden`` are secrets besides the key that no message may quote from an answer.
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
                # What is received is then what counts against MAX_ANSWER_BYTES.
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

    @sensitive_variables()
    def call(
        self, operation: str, method: str, url: str, body: Mapping[str, Any] | None = None
    ) -> Any:
        """Return the JSON of the answer, or None where a 2xx answer is empty. Raises KapsoError."""
        started = time.monotonic()
        outcome, status = "ok", None
        try:
            status, result = self._call(operation, method, url, body)
        except KapsoError as error:
            outcome, status = type(error).__name__, error.status
            raise
        finally:
            seconds = time.monotonic() - started
            asked: dict[str, Any] = {"operation": operation, "method": method}
            log_event("api.called", outcome=outcome, status=status, seconds=seconds, **asked)
        return result

    @sensitive_variables()
    def _call(
        self, operation: str, method: str, url: str, body: Mapping[str, Any] | None
    ) -> tuple[int, Any]:
        """Return the status and the JSON of the answer."""
        if problem := self._key.problem():
            raise KapsoCredentialsError(
                f'Could not {operation}: {problem}. Set KAPSO_CONNECT["API_KEY"] to a key of your '
                "Kapso project.",
                operation=operation,
            )
        if self._budget.remaining() <= 0:
            raise KapsoUnavailable(
                f"Could not {operation}: the {self._budget.seconds:g} seconds of API time are "
                f"spent. {_LATER}",
                operation=operation,
            )
        answer = self._exchange(operation, method, url, body)
        if isinstance(answer, KapsoError):
            raise answer
        if 200 <= answer.status < 300:
            return answer.status, _json(operation, method, answer)
        if answer.status == 404 and method == "DELETE" and answer.repeated:
            return answer.status, None  # gone, and it was us: only the first answer was lost
        raise self._refusal(operation, method, answer)

    def _exchange(
        self, operation: str, method: str, url: str, body: Mapping[str, Any] | None
    ) -> _Answer | KapsoError:
        """Return the answer or why there is none. Not raised here, where the exceptions of
        requests, which hold the request and so the key, would become its context."""
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
                repeated=raw.retries.may_have_happened(),
            )
        except _AnswerTooLargeError:
            return unexpected(operation, method, "it is larger than 10 MB")
        except (requests.RequestException, HTTPError, http.client.HTTPException, OSError) as error:
            return _no_answer(operation, method, error)

    def _refusal(self, operation: str, method: str, answer: _Answer) -> KapsoError:
        said = self._quoted(answer)
        status = answer.status
        if status == 429:
            wait = answer.retry_after
            when = _LATER if wait is None else f"Try again in {wait:.0f} seconds."
            return KapsoRateLimited(
                f"Could not {operation}: too many requests (429){said}. {when}",
                operation=operation,
                status=status,
                retry_after=wait,
            )
        if status in _FAILURES:
            failure = _FAILURES[status]
            return failure.error(
                f"Could not {operation}: {failure.what} ({status}){said}. {failure.next_step}",
                operation=operation,
                status=status,
            )
        if status == 408 or 500 <= status < 600:
            unknown = method == "POST" and status != 408
            return KapsoUnavailable(
                f"Could not {operation}: Kapso failed ({status}){said}. "
                + (_LOOK_FIRST if unknown else _LATER),
                operation=operation,
                status=status,
                outcome_unknown=unknown,
            )
        what = "it is a redirect, which is not followed" if 300 <= status < 400 else "its status"
        return unexpected(operation, method, f"{what} ({status}){said}", status)

    def _quoted(self, answer: _Answer) -> str:
        words = _words(answer.body)
        for secret in filter(None, self._hidden):
            words = words.replace(secret, "***")
        shown = "".join(c for c in words if c.isprintable() or c.isspace())
        text = " ".join(shown.split())
        if len(text) > MAX_QUOTED:
            text = text[:MAX_QUOTED] + "…"
        return f': "{text}"' if text else ""


def unexpected(
    operation: str, method: str, reason: str, status: int | None = None
) -> KapsoUnexpectedAnswer:
    """Return the error for an answer that is not what the contract promises."""
    refused = status is not None and 300 <= status < 500
    unknown = method == "POST" and not refused
    next_step = (
        _LOOK_FIRST
        if unknown
        else 'Check KAPSO_CONNECT["API_BASE_URL"], what stands between this site and Kapso, and '
        "whether there is a newer version of this package."
    )
    return KapsoUnexpectedAnswer(
        f"Could not {operation}: Kapso's answer is not what was agreed: {reason}. {next_step}",
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
        # Its text is not quoted: part of a good answer may be a setup link's address.
        reason = "it is HTML, not JSON" if "html" in answer.content_type else "it is not JSON"
    raise unexpected(operation, method, reason, answer.status)


def _words(body: bytes) -> str:
    """Return what an error answer says: Kapso's words, Meta's, or the text of a proxy's page."""
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
    what, sent = _what_broke(error, "Kapso")
    unknown = sent and method == "POST"
    return KapsoUnavailable(
        f"Could not {operation}: {what}. " + (_LOOK_FIRST if unknown else _LATER),
        operation=operation,
        outcome_unknown=unknown,
    )


def _what_broke(error: Exception, who: str) -> tuple[str, bool]:
    """Return what happened, and whether the other side, ``who``, may have got the request."""
    cause: Any = error
    if isinstance(error, requests.RequestException) and error.args:
        cause = error.args[0]
    if isinstance(cause, MaxRetryError):
        cause = cause.reason
    if isinstance(cause, ProxyError):  # urllib3: never past the proxy
        return "the proxy of this site's environment did not let it through", False
    if type(cause).__name__ == "NameResolutionError":  # urllib3 2 has it
        return f"the name in the address of {who} cannot be resolved (DNS)", False
    if isinstance(cause, ConnectTimeoutError):
        return f"there is no connection to {who}", False
    if isinstance(cause, SSLError):
        unverified = any(isinstance(arg, ssl.SSLCertVerificationError) for arg in cause.args)
        if unverified:
            return "the certificate is not one this site trusts (check its CA bundle)", False
        return "the TLS connection failed", True
    if isinstance(cause, ReadTimeoutError):
        return f"{who} did not answer in time", True
    if isinstance(error, ValueError):
        return 'KAPSO_CONNECT["API_BASE_URL"] or the proxy\'s address is not usable', False
    return f"the connection to {who} broke", True


# Addresses that are not Kapso's API


class Unreachable(Exception):
    """There was no answer; the message says what broke."""


@dataclass(frozen=True)
class Visit:
    """An answer to ``visit``. ``headers`` by lower-case name."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)


class _NoCredentials(AuthBase):
    """Keeps requests from taking credentials out of a netrc file."""

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        return request


@sensitive_variables()
def visit(
    method: str,
    url: str,
    *,
    who: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    seconds: float = 10.0,
) -> Visit:
    """Make one request without the API key, on a connection of its own: behind one that is kept
    there is always the same process. Nothing is repeated, no redirect is followed.

    ``seconds`` are for the whole answer, name resolution not counted. Raises Unreachable, whose
    message calls the other side ``who``.
    """
    budget = _Budget(seconds)
    once = _Retry(total=0, other=0, status_forcelist=(), raise_on_status=False, budget=budget)
    adapter = _Adapter(once, _BudgetTimeout(min(3.0, seconds), seconds, budget), _Connections())
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
            failure = f"{who} sent more than 10 MB"
        except (requests.RequestException, HTTPError, http.client.HTTPException, OSError) as error:
            failure = "no usable address" if isinstance(error, ValueError) else ""
            failure = failure or _what_broke(error, who)[0]
        else:
            lower = {name.lower(): value for name, value in response.headers.items()}
            return Visit(response.status_code, lower, content)
    raise Unreachable(failure)
