"""Kapso's error codes for a failed setup, and how each is explained to the customer."""

from __future__ import annotations

from dataclasses import dataclass

from django.db import models
from django.utils.functional import Promise

from ..translation import gettext_lazy as _


class Action(models.TextChoices):
    """The best next step after a failed setup; the labels are those of the page's button."""

    TRY_AGAIN = "try_again", _("Try again")
    OTHER_NUMBER = "other_number", _("Try again")
    FRESH_LINK = "fresh_link", _("Get a fresh link")
    CONTACT = "contact", _("Try again")


@dataclass(frozen=True)
class SetupError:
    """How a failed setup is explained to the customer: what happened, why, and what to do next."""

    title: str | Promise
    cause: str | Promise
    advice: str | Promise
    action: Action = Action.TRY_AGAIN


SETUP_ERRORS: dict[str, SetupError] = {
    "facebook_auth_failed": SetupError(
        _("The login was not completed"),
        _("The Facebook login was closed or cancelled before it was done."),
        _(
            "Try again, and keep the login window open until it says you are finished. Use a "
            "Facebook account that can manage your business."
        ),
    ),
    "phone_verification_failed": SetupError(
        _("The phone number could not be verified"),
        _("WhatsApp sent a code to the number. It was wrong, came too late, or did not arrive."),
        _(
            "Use a number that can receive a message or a call right now. You can also enter the "
            "same number again: if the code does not come by message, ask for a call."
        ),
        Action.OTHER_NUMBER,
    ),
    "waba_limit_reached": SetupError(
        _("Your business has reached its limit of WhatsApp Business accounts"),
        _("Meta allows a business only a certain number of them."),
        _(
            "Try again and choose one of your existing accounts, instead of creating a new one. Or "
            "first open Meta Business Suite and remove one that you no longer use."
        ),
    ),
    "token_exchange_failed": SetupError(
        _("Meta did not confirm the permission"),
        _("You allowed the connection, but Meta's confirmation did not arrive."),
        _("This usually resolves itself within a minute. Wait a moment, then try again."),
    ),
    "link_expired": SetupError(
        _("This link has expired"),
        _("For security, a setup link works only for a limited time."),
        _("Get a fresh link; it takes only a moment."),
        Action.FRESH_LINK,
    ),
    "already_used": SetupError(
        _("This link has been used already"),
        _("Each setup link works once."),
        _("If you could not finish, get a fresh link; it takes only a moment."),
        Action.FRESH_LINK,
    ),
}

UNKNOWN_ERROR = SetupError(
    _("WhatsApp could not be connected"),
    _("Something went wrong while your number was being connected."),
    _("Contact us and tell us the reference below, and we will find out what happened."),
    Action.CONTACT,
)
"""The error for a code that is not in ``SETUP_ERRORS``, as Kapso may add codes."""


def find_error(code: str) -> SetupError:
    """Return the error for one of Kapso's codes, or ``UNKNOWN_ERROR``."""
    return SETUP_ERRORS.get(code, UNKNOWN_ERROR)
