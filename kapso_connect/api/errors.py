"""One body for every error of the API, each with a code that stays as it is."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from django.core.exceptions import (
    ImproperlyConfigured,
    ObjectDoesNotExist,
    PermissionDenied,
    RequestDataTooBig,
    SuspiciousOperation,
)
from django.db import InterfaceError, OperationalError
from django.http import Http404, UnreadablePostError
from django.urls import NoReverseMatch
from rest_framework import exceptions
from rest_framework.response import Response
from rest_framework.settings import api_settings

from ..exceptions import (
    InvalidOptions,
    KapsoConflict,
    KapsoCredentialsError,
    KapsoError,
    KapsoNotFound,
    KapsoPlanError,
    KapsoRateLimited,
    KapsoUnavailable,
    KapsoValidationError,
    TryLater,
)
from ..log import log_event

RETRY_SECONDS = 30
"""What a client is asked to wait where nobody knows better."""

Fields = dict[str, list[dict[str, str]]]
"""What is wrong where: the path of a value to problems, each with ``code`` and ``message``."""


class ApiError(exceptions.APIException):
    """What a client is told: ``status``, ``code``, ``message``, and ``fields`` where values are
    wrong. ``wait`` is after how many seconds it may try again."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        fields: Fields | None = None,
        wait: float | None = None,
    ) -> None:
        super().__init__(message, code)
        self.status_code = status
        self.code = code
        self.fields = fields or {}
        self.wait = wait


def invalid(fields: Fields, *, code: str = "invalid") -> ApiError:
    return ApiError(400, code, "Some values are not right; fields says which.", fields=fields)


def invalid_value(path: str, message: str, *, code: str = "invalid") -> ApiError:
    return invalid({path: [{"code": code, "message": message}]}, code=code)


def handle(error: Exception, context: Mapping[str, Any]) -> Response | None:
    """Return the answer to what a view raised; None leaves it to Django, which answers 500.

    The exception handler of this API's views alone, whatever the site's own views use.
    """
    known = _translate(error, context["view"])
    if known is None:
        return None
    if known.status_code >= 500:
        # With its trace only where this site is at fault: an outage of Kapso's has none to show.
        trace = False if isinstance(error, KapsoError) else error
        log_event(
            "rest.failed",
            status=known.status_code,
            code=known.code,
            error=f"{type(error).__name__}: {error}",
            exc_info=trace,
        )
    body = {"code": known.code, "message": str(known.detail), "fields": known.fields}
    headers = {}
    if header := getattr(error, "auth_header", None):
        headers["WWW-Authenticate"] = header
    if known.wait is not None:
        headers["Retry-After"] = str(max(math.ceil(known.wait), 1))
    return Response(body, status=known.status_code, headers=headers)


def _translate(error: Exception, view: Any) -> ApiError | None:
    if isinstance(error, ApiError):
        return error
    if isinstance(error, exceptions.ValidationError):
        return invalid(dict(_problems(error.detail)))
    if isinstance(error, exceptions.APIException):
        return _of_the_framework(error)
    if isinstance(error, InvalidOptions):
        return _of_options(error)
    if isinstance(error, KapsoError):
        return _of_kapso(error, view.shows_details)
    if isinstance(error, TryLater):
        return ApiError(409, "changed_meanwhile", "Kapso cannot tell yet.", wait=RETRY_SECONDS)
    for kinds, (status, code, message) in OTHERS.items():
        if isinstance(error, kinds):
            wait = RETRY_SECONDS if status == 503 else None
            return ApiError(status, code, message, wait=wait)
    return None


OTHERS: dict[tuple[type[Exception], ...], tuple[int, str, str]] = {
    (Http404, ObjectDoesNotExist): (404, "not_found", "There is no such thing."),
    (PermissionDenied,): (403, "permission_denied", "You may not do this."),
    (RequestDataTooBig,): (413, "too_large", "The body is too large."),
    (SuspiciousOperation,): (400, "bad_request", "This site takes no such request."),
    (UnreadablePostError,): (400, "parse_error", "The body could not be read."),
    (ImproperlyConfigured, NoReverseMatch): (
        503,
        "not_configured",
        "This site's settings are not complete; its log says more.",
    ),
    (OperationalError, InterfaceError): (503, "unavailable", "Try again in a moment."),
}


def _of_the_framework(error: exceptions.APIException) -> ApiError:
    detail: Any = error.detail
    if isinstance(detail, Mapping):  # of an authentication class of the site's
        detail = detail.get("detail", error.default_detail)
    if isinstance(detail, list):
        detail = detail[0] if detail else error.default_detail
    code = str(getattr(detail, "code", None) or error.default_code)
    wait = getattr(error, "wait", None)
    return ApiError(error.status_code, code, str(detail), wait=wait)


def _problems(detail: Any, path: str = "") -> Iterator[tuple[str, list[dict[str, str]]]]:
    """Yield the path of each value that a serializer refused, and why."""
    if isinstance(detail, Mapping):
        for name, inner in detail.items():
            inside = "" if name == api_settings.NON_FIELD_ERRORS_KEY else str(name)
            yield from _problems(inner, ".".join(filter(None, (path, inside))))
    elif any(isinstance(inner, (Mapping, list)) for inner in detail):
        for index, inner in enumerate(detail):
            yield from _problems(inner, f"{path}.{index}")
    elif detail:
        yield path or WHOLE, [{"code": problem.code, "message": problem} for problem in detail]


WHOLE = "body"
"""The path of what is wrong with the body as a whole."""


def _of_options(error: InvalidOptions) -> ApiError:
    own = {"next_url", "options"}
    return invalid(
        {
            name if name in own else f"options.{name}": [{"code": "invalid", "message": problem}]
            for name, problem in error.errors.items()
        }
    )


def _of_kapso(error: KapsoError, with_details: bool) -> ApiError:
    if error.outcome_unknown:
        return ApiError(
            503,
            "kapso_outcome_unknown",
            "Kapso broke off, and may have done it or not. Send the same again: with the same "
            "Idempotency-Key it is done once.",
            wait=RETRY_SECONDS,
        )
    told = (told for kind, told in KAPSO.items() if isinstance(error, kind))
    status, code, message = next(told, UNEXPECTED)
    wait: float | None = RETRY_SECONDS if status == 503 else None
    if isinstance(error, KapsoRateLimited) and error.retry_after is not None:
        wait = error.retry_after
    if with_details and status < 500:
        message = str(error)
    return ApiError(status, code, message, wait=wait)


KAPSO: dict[type[KapsoError], tuple[int, str, str]] = {
    KapsoRateLimited: (503, "kapso_rate_limited", "Kapso was asked too often."),
    KapsoUnavailable: (503, "kapso_unavailable", "Kapso did not answer. Nothing was done."),
    KapsoCredentialsError: (502, "kapso_credentials", "Kapso refused this site's API key."),
    KapsoPlanError: (502, "kapso_plan", "This site's Kapso plan does not include this."),
    KapsoConflict: (409, "kapso_conflict", "Kapso says that a limit is reached or it exists."),
    KapsoNotFound: (409, "kapso_not_found", "Kapso does not know it any more."),
    KapsoValidationError: (422, "kapso_refused", "Kapso refused what was asked for."),
}
UNEXPECTED = (502, "kapso_unexpected", "Kapso's answer could not be understood.")
