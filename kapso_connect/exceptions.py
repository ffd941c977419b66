"""Every exception that a caller may want to catch: one class for each thing a caller does about it.

First the errors of Kapso's API, then those of invitations and setup links, then those of numbers
and of webhooks.
"""

from __future__ import annotations

from collections.abc import Mapping

# Kapso's API


class KapsoError(Exception):
    """Base of all errors of calls to Kapso's API.

    ``operation`` names what was attempted ("create setup link"). ``status`` is the HTTP status of
    the answer, or None without an answer. ``outcome_unknown`` is True if Kapso may have carried
    out the request although no usable answer arrived: check before you repeat it. ``meta_code`` is
    Meta's error code if it was Meta that refused: 131047 says that a free text may not be sent.
    The message says what happened, to what, and what to do next. It never contains the API key.
    """

    def __init__(
        self,
        message: str,
        *,
        operation: str = "",
        status: int | None = None,
        outcome_unknown: bool = False,
        meta_code: int | None = None,
    ) -> None:
        super().__init__(message)
        self.operation = operation
        self.status = status
        self.outcome_unknown = outcome_unknown
        self.meta_code = meta_code


class KapsoCredentialsError(KapsoError):
    """The API key is missing (``status`` is None then) or was refused by Kapso (401, 403 in Kapso's
    own words). Set a valid one; until then every call fails."""


class KapsoPlanError(KapsoError):
    """The Kapso plan does not include this (402). Upgrade it, or pay what is due."""


class KapsoNotFound(KapsoError):
    """The object does not exist in this Kapso project, or no longer does (404)."""


class KapsoConflict(KapsoError):
    """A limit was reached, or the object exists already (409)."""


class KapsoValidationError(KapsoError):
    """Kapso or Meta refused the contents of the request (400, 422), or Meta its number's access.
    Correct what the message names."""


class KapsoRateLimited(KapsoError):
    """Too many requests (429), or as many as a paced client makes (``status`` is None then).
    Nothing was changed; try again later.

    ``retry_after`` is the number of seconds to wait, or None if Kapso gave none.
    """

    def __init__(
        self,
        message: str,
        *,
        operation: str = "",
        status: int | None = None,
        retry_after: float | None = None,
        meta_code: int | None = None,
    ) -> None:
        super().__init__(message, operation=operation, status=status, meta_code=meta_code)
        self.retry_after = retry_after


class KapsoUnavailable(KapsoError):
    """Kapso did not answer in time, closed the connection, or answered 5xx. Try again later."""


class KapsoBlocked(KapsoUnavailable):
    """Something in front of Kapso, such as Cloudflare or a proxy, refused this server's request (a
    403 that is not Kapso's). The API key was not looked at, and nothing was changed. Check the
    proxy, or ask Kapso's support about this server's IP address; until then, try again later."""


class KapsoUnexpectedResponse(KapsoError):
    """The answer does not match Kapso's API: a redirect, HTML, a missing field.

    Check ``API_BASE_URL``; if that is right, the API has changed.
    """


# Invitations and setup links


class InvalidOptions(ValueError):
    """Options that Kapso would refuse. Correct them.

    ``errors`` has all problems, as a dict from the option's name to a message for people.
    """

    def __init__(self, errors: Mapping[str, str]) -> None:
        self.errors: dict[str, str] = dict(errors)
        super().__init__(self.errors)

    def __str__(self) -> str:
        return " ".join(f"{name}: {problem}" for name, problem in self.errors.items())


class CalledInTransaction(RuntimeError):
    """A function that asks Kapso was called inside a transaction, whose rollback would lose what
    Kapso has done. Call it outside: see the message."""


class ExternalIdTaken(ValueError):
    """Another owner's customer has this ``external_customer_id`` (or ``kapso_id``). The message
    says whose."""


class OwnerTaken(ValueError):
    """Another customer is this owner's. The message says which."""


class CannotInvite(Exception):
    """The customer cannot be sent an invitation. Show the message, which is for staff."""


class NoEmailAddress(CannotInvite):
    """The customer has no e-mail address, or an invalid one. Correct it."""


class NoConnectUrl(CannotInvite):
    """The customer has no connect URL: create a setup link first."""


class CustomerErased(CannotInvite):
    """The customer's personal data were erased, so it cannot be invited any more."""


class NotErased(Exception):
    """The customer's personal data could not be erased yet, and nothing was anonymised. Show the
    message, which is for staff and says what to do."""


class InvitationWithdrawn(Exception):
    """The customer was not invited, or their invitation was withdrawn. A member of staff has to
    invite them."""


class AlreadyConnected(Exception):
    """The customer has connected a number and was not invited again since. Show them that."""


class RenewalInProgress(Exception):
    """Another request is creating a setup link for the customer at this moment. Try again soon."""


# Numbers


class NumberMoved(Exception):
    """Kapso says that the number is not this customer's any more, so nothing was done with it. What
    Kapso says was recorded: look at the number again."""

    def __init__(
        self,
        message: str = "Kapso says that this number is not this customer's any more. Nothing was "
        "done with it.",
    ) -> None:
        super().__init__(message)


class NumberGone(Exception):
    """Kapso no longer has the number. It was recorded as disconnected."""

    def __init__(
        self, message: str = "Kapso no longer has this number. It is now marked as disconnected."
    ) -> None:
        super().__init__(message)


# Webhooks


class NeedsConfirmation(Exception):
    """An event would reopen, move or wrongly close a connection. Ask the API before applying it."""


class TryLater(Exception):
    """The API cannot confirm the number's state yet. Ask again later.

    It still shows a number that was just deleted, or its answer is older than what was recorded
    meanwhile.
    """


class Ignored(Exception):
    """An event requires no action. Store it with the message, which says why."""


class UnknownCustomer(Ignored):
    """Kapso's customer is not one of this site's, and ADOPT_UNKNOWN_CUSTOMERS is off. Store the
    event with the message."""

    def __init__(self, kapso_id: str) -> None:
        super().__init__(kapso_id)
        self.kapso_id = kapso_id

    def __str__(self) -> str:
        return (
            f"Kapso's customer {self.kapso_id} is not a customer of this site "
            "(ADOPT_UNKNOWN_CUSTOMERS is off)."
        )


class MalformedBody(ValueError):
    """The body of a signed delivery is not a JSON object. Answer 400, with the message."""


class DeliveryRefused(Exception):
    """A request to the site's own webhook is none of Kapso's deliveries. Answer ``status``, with
    the message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(status, message)
        self.status = status
        self.message = message

    def __str__(self) -> str:
        return self.message


class MalformedPayload(ValueError):
    """An event's payload has a missing or invalid field. Store it as failed, with the message."""
