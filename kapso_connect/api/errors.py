"""The errors of the API: one body for all of them, each with a code that does not change."""

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
from django.http import Http404, UnreadablePostError
from django.urls import NoReverseMatch
from rest_framework import exceptions
from rest_framework.response import Response
from rest_framework.settings import api_settings

from ..db import OUTAGE_ERRORS
from ..exceptions import (
    CalledInTransaction,
    CustomerErased,
    InvalidOptions,
    KapsoBlocked,
    KapsoConflict,
    KapsoCredentialsError,
    KapsoError,
    KapsoNotFound,
    KapsoPlanError,
    KapsoRateLimited,
    KapsoUnavailable,
    KapsoValidationError,
    NoConnectUrl,
    NoEmailAddress,
    NumberGone,
    NumberMoved,
    OwnerTaken,
    TryLater,
)
from ..log import log_event

DEFAULT_RETRY_AFTER = 30
"""Seconds after which a client may try again, where nothing more precise is known."""

INVALID_VALUES = "Some values are invalid; see fields."

ERRORS: dict[str, tuple[int, str]] = {
    "invalid": (400, INVALID_VALUES),
    "invalid_filter": (400, INVALID_VALUES),
    "invalid_cursor": (400, INVALID_VALUES),
    "invalid_idempotency_key": (400, INVALID_VALUES),
    "bad_request": (400, "Bad request."),
    "parse_error": (400, "The request body could not be read."),
    "permission_denied": (403, "You do not have permission to perform this action."),
    "csrf_failed": (403, "The CSRF token is missing or wrong."),
    "token_not_permitted": (403, "You do not have permission to receive the link's token."),
    "not_found": (404, "Not found."),
    "missing_slash": (404, "Nothing was done: the URL needs a slash at its end."),
    "already_connected": (409, "This customer has connected a number."),
    "batch_not_stopped": (409, "The batch has not stopped: it is being worked on."),
    "changed_meanwhile": (409, "Kapso cannot confirm the current state yet. Try again shortly."),
    "customer_erased": (409, "The personal data of this customer were erased."),
    "emailed_recently": (409, "This customer was e-mailed the personal link less than a day ago."),
    "external_customer_id_taken": (409, "Another customer already has this external id."),
    "idempotency_key_in_use": (
        409,
        "A request with this key is still being processed. Try again shortly.",
    ),
    "no_email_address": (409, "This customer has no valid e-mail address."),
    "no_personal_link": (
        409,
        "This customer has no personal link that leads to a setup link. Create a setup link first.",
    ),
    "not_waiting": (409, "Only customers who are invited, or have opened the link, are reminded."),
    "nobody_left": (409, "All customers would be left out. Nothing was created."),
    "number_moved": (
        409,
        "Kapso says that this number is not this customer's any more. Nothing was done with it.",
    ),
    "owner_taken": (409, "The owner of the new customer has another customer already."),
    "setup_link_used": (409, "A setup link that has been used cannot be revoked."),
    "kapso_conflict": (
        409,
        "Kapso reports a conflict: a limit has been reached, or the object already exists.",
    ),
    "kapso_not_found": (409, "This no longer exists at Kapso."),
    "too_large": (413, "The request body is too large."),
    "idempotency_key_reused": (
        422,
        "This key was already used with a different body. Use a new key.",
    ),
    "kapso_refused": (422, "Kapso rejected the request."),
    "openapi_not_installed": (
        501,
        "The schema needs drf-spectacular, which is not installed on this site.",
    ),
    "email_refused": (502, "The e-mail was not sent: the mail server refuses it."),
    "kapso_credentials": (502, "This site has no valid API key for Kapso."),
    "kapso_plan": (502, "This site's Kapso plan does not include this."),
    "kapso_unexpected": (502, "Kapso sent a response that could not be understood."),
    "email_not_accepted_yet": (
        503,
        "The e-mail was not sent: the mail server does not accept it yet. Try again later.",
    ),
    "email_outcome_unknown": (
        503,
        "It is not known whether the e-mail was sent. Ask the customer before you send another "
        "one, with another Idempotency-Key.",
    ),
    "kapso_outcome_unknown": (
        503,
        "Kapso did not say whether it carried out the request. Send it again: with the same "
        "Idempotency-Key, it is carried out only once.",
    ),
    "kapso_blocked": (
        503,
        "Something in front of Kapso refused this server's request; the API key was not looked at. "
        "Try again later; the site's log has the details.",
    ),
    "kapso_rate_limited": (503, "This site has sent Kapso too many requests."),
    "kapso_unavailable": (503, "Kapso did not respond. Try again shortly."),
    "not_configured": (503, "This site's settings are incomplete; its log has the details."),
    "unavailable": (503, "Temporarily unavailable. Try again shortly."),
}
"""By code, the status and the message of the errors that this API raises itself."""

DJANGO_ERROR_CODES: dict[tuple[type[Exception], ...], str] = {
    (Http404, ObjectDoesNotExist): "not_found",
    (PermissionDenied,): "permission_denied",
    (RequestDataTooBig,): "too_large",
    (SuspiciousOperation,): "bad_request",
    (UnreadablePostError,): "parse_error",
    (ImproperlyConfigured, NoReverseMatch, CalledInTransaction): "not_configured",
    OUTAGE_ERRORS: "unavailable",
    (CustomerErased,): "customer_erased",
    (OwnerTaken,): "owner_taken",
    (TryLater,): "changed_meanwhile",
    (NumberMoved,): "number_moved",
    (NumberGone,): "kapso_not_found",
    (NoEmailAddress,): "no_email_address",
    (NoConnectUrl,): "no_personal_link",
}
KAPSO_ERROR_CODES: dict[type[KapsoError], str] = {
    KapsoRateLimited: "kapso_rate_limited",
    KapsoBlocked: "kapso_blocked",
    KapsoUnavailable: "kapso_unavailable",
    KapsoCredentialsError: "kapso_credentials",
    KapsoPlanError: "kapso_plan",
    KapsoConflict: "kapso_conflict",
    KapsoNotFound: "kapso_not_found",
    KapsoValidationError: "kapso_refused",
    KapsoError: "kapso_unexpected",
}
"""A class comes before its base class."""

RETRIABLE_CODES = {"changed_meanwhile"} | {code for code in ERRORS if ERRORS[code][0] == 503}

OUTCOME_UNKNOWN_CODES = {"email_outcome_unknown", "kapso_outcome_unknown"}
"""What was requested may have been done: its Idempotency-Key stays in use."""

BODY_PATH = "body"
"""The path of errors that concern the body as a whole."""

CSRF_MESSAGE = "CSRF Failed: "
"""How the message of Django REST framework's SessionAuthentication begins: the error has no class
and no code of its own."""

FieldErrors = dict[str, list[dict[str, str]]]
"""The path of each invalid value, with its errors: each has a ``code`` and a ``message``."""


class ApiError(exceptions.APIException):
    """An error of this API: ``code`` is a key of ``ERRORS``, which has the status and the message
    unless another ``message`` is given. ``retry_after`` is in seconds."""

    def __init__(
        self,
        code: str,
        message: str = "",
        *,
        fields: FieldErrors | None = None,
        retry_after: float | None = None,
    ) -> None:
        status, default_message = ERRORS[code]
        super().__init__(message or default_message, code)
        self.status_code = status
        self.fields = fields or {}
        self.outcome_unknown = code in OUTCOME_UNKNOWN_CODES
        if retry_after is None and code in RETRIABLE_CODES:
            retry_after = DEFAULT_RETRY_AFTER
        self.wait = retry_after


def invalid_value(path: str, message: str, *, code: str = "invalid") -> ApiError:
    """Return the error for a single invalid value."""
    return ApiError(code, fields={path: [{"code": code, "message": message}]})


def exception_handler(error: Exception, context: Mapping[str, Any]) -> Response | None:
    """Return the response to ``error``; None leaves it to Django, which answers 500.

    Only this API's views use it, whatever EXCEPTION_HANDLER the site has set.
    """
    known = _to_drf_error(error, context["view"])
    if known is None:
        return None
    code, message = _code_and_message(known)
    if known.status_code >= 500:
        # A traceback helps only where this site is at fault, not when Kapso is down.
        log_event(
            "rest.failed",
            status=known.status_code,
            code=code,
            error=f"{type(error).__name__}: {error}",
            exc_info=False if isinstance(error, KapsoError) else error,
        )
    headers = {}
    if auth_header := getattr(error, "auth_header", None):
        headers["WWW-Authenticate"] = auth_header
    seconds = getattr(known, "wait", None)
    if seconds is None and known.status_code == 429:
        seconds = DEFAULT_RETRY_AFTER
    if seconds is not None:
        headers["Retry-After"] = str(max(math.ceil(seconds), 1))
    fields = known.fields if isinstance(known, ApiError) else {}
    body = {"code": code, "message": message, "fields": fields}
    return Response(body, status=known.status_code, headers=headers)


def _to_drf_error(error: Exception, view: Any) -> exceptions.APIException | None:
    if isinstance(error, InvalidOptions):
        error = exceptions.ValidationError(option_errors(error))
    if isinstance(error, exceptions.ValidationError):
        return ApiError("invalid", fields=dict(field_errors(error.detail)))
    if isinstance(error, exceptions.PermissionDenied) and str(error.detail).startswith(
        CSRF_MESSAGE
    ):
        return ApiError("csrf_failed", str(error.detail))
    if isinstance(error, exceptions.APIException):
        return error
    if isinstance(error, KapsoError):
        return _kapso_error(error, with_details=view.shows_details)
    for classes, code in DJANGO_ERROR_CODES.items():
        if isinstance(error, classes):
            return ApiError(code)
    return None


def _code_and_message(error: exceptions.APIException) -> tuple[str, str]:
    # Authentication classes of other libraries raise errors with mappings and lists.
    detail: Any = error.detail
    code = None
    if isinstance(detail, Mapping):
        code = detail.get("code")  # as in djangorestframework-simplejwt
        detail = detail.get("detail", error.default_detail)
    if isinstance(detail, list):
        detail = detail[0] if detail else error.default_detail
    return str(code or getattr(detail, "code", None) or error.default_code), str(detail)


def option_errors(error: InvalidOptions) -> dict[str, Any]:
    """Return what is wrong with a new link as the errors of a serializer with ``options`` and
    ``next_url``."""
    errors: dict[str, Any] = {
        name: [exceptions.ErrorDetail(message, code="invalid")]
        for name, message in error.errors.items()
    }
    options = {name: errors.pop(name) for name in errors.keys() - {"next_url", "options"}}
    return {"options": options, **errors} if options else errors


def field_errors(detail: Any, path: str = "") -> Iterator[tuple[str, list[dict[str, str]]]]:
    """Yield the path of each value that a serializer rejected, with its errors."""
    if isinstance(detail, Mapping):
        for name, inner in detail.items():
            inside = "" if name == api_settings.NON_FIELD_ERRORS_KEY else str(name)
            yield from field_errors(inner, ".".join(filter(None, (path, inside))))
    elif any(isinstance(inner, (Mapping, list)) for inner in detail):
        for index, inner in enumerate(detail):
            yield from field_errors(inner, f"{path}.{index}")
    elif detail:
        yield path or BODY_PATH, [{"code": one.code, "message": one} for one in detail]


def _kapso_error(error: KapsoError, *, with_details: bool) -> ApiError:
    if error.outcome_unknown:
        return ApiError("kapso_outcome_unknown")
    code = next(code for kind, code in KAPSO_ERROR_CODES.items() if isinstance(error, kind))
    is_about_the_request = ERRORS[code][0] < 500 or code == "kapso_rate_limited"
    return ApiError(
        code,
        str(error) if with_details and is_about_the_request else "",
        retry_after=error.retry_after if isinstance(error, KapsoRateLimited) else None,
    )
