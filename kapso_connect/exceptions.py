"""Everything that a caller may have to catch, one class for each thing a caller does about it."""

from __future__ import annotations

from collections.abc import Mapping


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


class InvalidOptions(ValueError):
    """Options that Kapso would refuse. ``errors`` has every problem: option name to plain words."""

    def __init__(self, errors: Mapping[str, str]) -> None:
        self.errors: dict[str, str] = dict(errors)
        super().__init__(" ".join(f"{name}: {problem}" for name, problem in self.errors.items()))


class NeedsConfirmation(Exception):
    """What was told would reopen, move or wrongly close a connection: the API decides first."""


class TryLater(Exception):
    """The API cannot tell yet: a number that was just taken down is still readable, or what it
    answered is older than what was recorded meanwhile."""


class Rejected(Exception):
    """The API does not know the claimed number, or not as the link's customer's."""


class Withdrawn(Exception):
    """The customer's invitation was taken back, or there never was one."""


class AlreadyConnected(Exception):
    """The customer has connected a number, and was not invited to connect another one since."""


class BeingRenewed(Exception):
    """Another request makes the customer's link at this moment, and is not done."""


class CannotInvite(Exception):
    """There is nothing to send to this customer; base of the reasons. Its message is for staff."""


class NoEmailAddress(CannotInvite):
    """The customer has no e-mail address, or what is noted as one is none."""


class NoConnectAddress(CannotInvite):
    """The customer's own address does not exist: nobody invited them, or it was withdrawn."""


class Unusable(Exception):
    """An event is well-formed, but about nothing that is known here; the message says what."""


class Ignored(Exception):
    """There is nothing to do about an event; the message says why."""


class MalformedBody(ValueError):
    """The signed body is no JSON object."""


class MalformedPayload(ValueError):
    """An event's payload lacks what the event is about, or has it in a wrong form."""
