"""Why connecting can fail, in words for the customer: Kapso's error codes."""

from __future__ import annotations

from dataclasses import dataclass

from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _


@dataclass(frozen=True)
class Failure:
    """What a customer is told. ``can_retry`` says whether the same link can work at all."""

    title: str | Promise
    cause: str | Promise
    advice: str | Promise
    can_retry: bool = True


FAILURES = {
    "facebook_auth_failed": Failure(
        _("The login was not finished"),
        _(
            "The Facebook login was closed or cancelled before it was done, so WhatsApp could not "
            "be connected."
        ),
        _(
            "Try again, and stay in the login window until it says that you are done. You need a "
            "Facebook account that may manage your business."
        ),
    ),
    "phone_verification_failed": Failure(
        _("The phone number could not be verified"),
        _(
            "WhatsApp sent a code to the number, but it was not confirmed: it was wrong, it came "
            "too late, or the number cannot receive messages or calls."
        ),
        _(
            "Check that you have the phone at hand and that the number is right, then try again. "
            "If the code does not come by message, ask for a call."
        ),
    ),
    "waba_limit_reached": Failure(
        _("Your business has too many WhatsApp accounts"),
        _(
            "Meta allows a business only a certain number of WhatsApp Business Accounts, and yours "
            "has reached it."
        ),
        _(
            "Try again and choose one of your existing accounts, or remove one you no longer use "
            "in Meta Business Suite first."
        ),
    ),
    "token_exchange_failed": Failure(
        _("Meta did not confirm the permission"),
        _(
            "You allowed the connection, but Meta did not hand over its confirmation. This is "
            "usually over after a moment."
        ),
        _("Wait a minute and try again. If it happens again, contact us."),
    ),
    "link_expired": Failure(
        _("This link has expired"),
        _("For safety, a setup link works for 30 days only."),
        _("Ask us for a new link; it takes us a moment only."),
        can_retry=False,
    ),
    "already_used": Failure(
        _("This link has been used already"),
        _("Each setup link connects one number, once."),
        _(
            "If your number is connected, there is nothing left to do. To connect another one, ask "
            "us for a new link."
        ),
        can_retry=False,
    ),
}

UNKNOWN = Failure(
    _("WhatsApp could not be connected"),
    _("Something went wrong while your number was being connected. Nothing was changed."),
    _("Try again in a few minutes. If it happens again, contact us."),
)
