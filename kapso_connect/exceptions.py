"""What can go wrong when Kapso is asked something, one class per thing a caller does about it."""

from __future__ import annotations


class KapsoError(Exception):
    """Base of every error this package raises about Kapso.

    ``operation`` names what was being done ("create setup link"), ``status`` is the HTTP status
    of the answer or None where there was none. ``outcome_unknown`` is True where the request may
    have been carried out although no usable answer came back: look before you repeat it.
    The message says what happened, to what, and what to do next; it never holds the API key.
    """

    def __init__(
        self,
        message: str,
        *,
        operation: str = "",
        status: int | None = None,
        outcome_unknown: bool = False,
    ) -> None:
        super().__init__(message)
        self.operation = operation
        self.status = status
        self.outcome_unknown = outcome_unknown


class KapsoCredentialsError(KapsoError):
    """The API key is missing or was refused (401, 403). Repeating is pointless until it is set."""


class KapsoPlanError(KapsoError):
    """The Kapso plan does not include this (402). Somebody has to upgrade or pay."""


class KapsoNotFound(KapsoError):
    """What was asked for does not exist in this Kapso project, or no longer does (404)."""


class KapsoConflict(KapsoError):
    """A limit was reached or the thing exists already (409)."""


class KapsoValidationError(KapsoError):
    """Kapso understood the request and refused its content (400, 422). Correct it."""


class KapsoRateLimited(KapsoError):
    """Too many requests (429). Nothing happened; ``retry_after`` is the wait asked for, in seconds,
    or None where Kapso named none."""

    def __init__(
        self,
        message: str,
        *,
        operation: str = "",
        status: int | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message, operation=operation, status=status)
        self.retry_after = retry_after


class KapsoUnavailable(KapsoError):
    """Kapso did not answer in time, broke the connection, or answered 5xx. Try again later."""


class KapsoUnexpectedAnswer(KapsoError):
    """Kapso answered what its contract does not know: a redirect, HTML, a missing field."""
