"""What several operations have in common in the schema: their headers and their errors."""

from __future__ import annotations

from typing import Any, TypeVar

from . import examples
from .errors import ERRORS, INVALID_VALUES, FieldErrors
from .idempotency import (
    IDEMPOTENCY_KEY_HEADER,
    MAX_IDEMPOTENCY_KEY_LENGTH,
    REPLAYED_HEADER,
)
from .schema import (
    OpenApiExample,
    OpenApiParameter,
    OpenApiResponse,
    extend_schema,
    extend_schema_view,
)
from .serializers import ErrorSerializer

View = TypeVar("View", bound=Any)


def _idempotency_headers(status: int, *, key: str, replayed: str) -> list[OpenApiParameter]:
    schema = {"type": "string", "maxLength": MAX_IDEMPOTENCY_KEY_LENGTH, "pattern": "^[ -~]+$"}
    return [
        OpenApiParameter(IDEMPOTENCY_KEY_HEADER, schema, "header", description=key),
        OpenApiParameter(REPLAYED_HEADER, str, "header", response=[status], description=replayed),
    ]


CREATE_HEADERS = [
    *_idempotency_headers(
        201,
        key="A text that is unique to the object to create, such as a UUID. A request repeated "
        "with the same key creates it only once.",
        replayed='"true" if an earlier request with the same Idempotency-Key created it.',
    ),
    OpenApiParameter(
        "Location",
        {"type": "string", "format": "uri"},
        "header",
        response=[201],
        description="The URL of the new object.",
    ),
]
SEND_HEADERS = _idempotency_headers(
    200,
    key="A text that is unique to the e-mail to send, such as a UUID. A request repeated with the "
    "same key never sends it twice.",
    replayed='"true" if an earlier request with the same Idempotency-Key sent it.',
)

REST_FRAMEWORK_ERRORS: dict[str, tuple[tuple[int, ...], str]] = {
    # The site's first authentication class decides whether these two are 401 or 403.
    "not_authenticated": ((401, 403), "Authentication credentials were not provided."),
    "authentication_failed": ((401, 403), "Incorrect authentication credentials."),
    "not_acceptable": ((406,), "Could not satisfy the request Accept header."),
    "unsupported_media_type": ((415,), 'Unsupported media type "text/plain" in request.'),
    # djangorestframework-simplejwt's.
    "token_not_valid": ((401,), "Given token not valid for any token type"),
    "throttled": ((429,), "Request was throttled. Expected available in 30 seconds."),
}
"""By code, the statuses and the message of errors of libraries."""

COMMON_ERRORS = (
    "bad_request",
    "permission_denied",
    "not_authenticated",
    "authentication_failed",
    "token_not_valid",
    "not_acceptable",
    "throttled",
    "unavailable",
)
"""The codes of errors that every operation has."""
BODY_ERRORS = ("csrf_failed", "parse_error", "invalid", "too_large", "unsupported_media_type")
IDEMPOTENCY_ERRORS = (
    "invalid_idempotency_key",
    "idempotency_key_in_use",
    "idempotency_key_reused",
)
SEND_ERRORS = (
    "not_found",
    *BODY_ERRORS,
    *IDEMPOTENCY_ERRORS,
    "customer_erased",
    "already_connected",
    "no_personal_link",
    "no_email_address",
    "email_refused",
    "email_not_accepted_yet",
    "email_outcome_unknown",
    "not_configured",
)
KAPSO_ERRORS = (
    "kapso_conflict",
    "kapso_not_found",
    "kapso_refused",
    "kapso_credentials",
    "kapso_plan",
    "kapso_unexpected",
    "kapso_unavailable",
    "kapso_blocked",
    "kapso_rate_limited",
    "kapso_outcome_unknown",
    "not_configured",
)


def _error_responses(codes: tuple[str, ...], invalid: FieldErrors) -> dict[int, OpenApiResponse]:
    """Return, by status, the responses with the errors ``codes`` and ``COMMON_ERRORS``; see
    ``responses``."""
    known = {**REST_FRAMEWORK_ERRORS}
    known |= {code: ((status,), message) for code, (status, message) in ERRORS.items()}
    by_status: dict[int, list[str]] = {}
    for code in (*COMMON_ERRORS, *codes):
        for status in known[code][0]:
            by_status.setdefault(status, []).append(code)
    return {
        status: OpenApiResponse(
            ErrorSerializer,
            description=" ".join(f"`{code}`: {known[code][1]}" for code in by_status[status]),
            examples=[
                OpenApiExample(
                    "example", {"code": code, "message": INVALID_VALUES, "fields": invalid}
                )
                for code in ("invalid", "invalid_filter")
                if code in by_status[status]
            ],
        )
        for status in sorted(by_status)
    }


def responses(
    serializer: Any,
    *codes: str,
    status: int = 200,
    description: str = "The object.",
    invalid: FieldErrors = examples.UNKNOWN_FIELD,
) -> dict[int, OpenApiResponse]:
    """Return, by status, the response with an object of ``serializer`` and those with the errors
    ``codes`` and ``COMMON_ERRORS``. ``invalid`` is the example of what is said of invalid values.
    """
    return {
        status: OpenApiResponse(serializer, description=description),
        **_error_responses(codes, invalid),
    }


def describe_reads(view: View) -> View:
    """Describe the list of a view, and each of its objects: a class decorator."""
    kind = view.serializer_class
    codes = ("invalid_filter", *view.pagination_class.error_codes)
    page = responses(
        kind, *codes, description="A page of the list.", invalid=examples.PAGE_TOO_LARGE
    )
    return extend_schema_view(
        list=extend_schema(parameters=[view.filters], responses=page),
        retrieve=extend_schema(responses=responses(kind, "not_found")),
    )(view)
