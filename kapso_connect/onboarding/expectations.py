"""What a customer can expect of a setup link, from its options: what happens to their WhatsApp
number, what they need, and the steps. For the invitation and its e-mails, in the active language.

Sources: Kapso's documentation of setup links, of coexistence and of "Connect WhatsApp" (which takes
"about 5 minutes" there), and Meta's of onboarding users of the WhatsApp Business app.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..kapso.setup_link_options import PARTNER_MANAGED
from ..kapso.types import ConnectionType
from ..models import SetupLink
from ..translation import gettext as _


@dataclass(frozen=True)
class NumberOption:
    """One of the things that can happen to the customer's number; ``icon`` is that of a template in
    ``kapso_connect/icons``."""

    icon: str
    title: str
    text: str
    hint: str = ""
    """Whom it suits, if there is a choice."""


@dataclass(frozen=True)
class Expectations:
    """What a customer can expect of a setup link."""

    options: list[NumberOption]
    """Several if the customer chooses between them on Kapso's page."""
    have_ready: list[str]
    steps: list[str]
    keeps_app: bool
    """Whether the number may stay in the WhatsApp Business app."""
    can_get_test_number: bool
    """Whether Meta may offer one of its test numbers ("Display name only")."""


def expectations(link: SetupLink) -> Expectations:
    """Return what the customer of ``link`` can expect."""
    given = link.options
    payment = [] if given.get("meta_billing_mode") == PARTNER_MANAGED else [_payment_method()]
    if link.reconnect_number:
        return _reconnected(payment)
    if given.get("provision_phone_number"):
        return _provisioned(payment)
    return _chosen(given, payment)


def _chosen(given: Mapping[str, Any], payment: list[str]) -> Expectations:
    types = set(given.get("allowed_connection_types") or ConnectionType.values)
    phones = {
        ConnectionType.COEXISTENCE: _("The phone with the WhatsApp Business app"),
        ConnectionType.DEDICATED: _("A phone that receives calls or texts to the number"),
    }
    if len(types) > 1:
        options = [_keep(has_choice=True), _leave(has_choice=True)]
        phone = _("The phone that has the number")
        step = _("You enter your number, and scan a QR code or enter a code to confirm it.")
    elif ConnectionType.COEXISTENCE in types:
        options, phone = [_keep()], phones[ConnectionType.COEXISTENCE]
        step = _("You enter your number and scan a QR code in the WhatsApp Business app.")
    else:
        options, phone = [_leave()], phones[ConnectionType.DEDICATED]
        step = _("You enter your number and confirm it with a code from a text message or a call.")
    return Expectations(
        options,
        [_facebook_account(), phone, _business_details(), *payment],
        [_log_in(), step, _come_back()],
        keeps_app=ConnectionType.COEXISTENCE in types,
        can_get_test_number=True,
    )


def _provisioned(payment: list[str]) -> Expectations:
    option = NumberOption(
        "new",
        _("You get a new number"),
        _(
            "Kapso provides it, so there is nothing to choose or confirm. The numbers you have now "
            "stay as they are."
        ),
    )
    return Expectations(
        [option],
        [_facebook_account(), _business_details(), *payment],
        [_log_in(), _("Your business gets the new number."), _come_back()],
        keeps_app=False,
        can_get_test_number=False,
    )


def _reconnected(payment: list[str]) -> Expectations:
    option = NumberOption(
        "again",
        _("The same number again"),
        _(
            "Choose the same business, WhatsApp Business account and number as before. It does not "
            "work with another number."
        ),
    )
    return Expectations(
        [option],
        [_facebook_account(), _("The phone that has the number"), *payment],
        [
            _log_in(),
            _("You choose the same number as before and, if WhatsApp asks, confirm it."),
            _come_back(),
        ],
        keeps_app=False,
        can_get_test_number=True,
    )


def _keep(*, has_choice: bool = False) -> NumberOption:
    return NumberOption(
        "phone",
        _("Keep your WhatsApp Business app")
        if has_choice
        else _("You keep your WhatsApp Business app"),
        _("You scan a QR code in the app. Your chats stay, and you can go on writing there."),
        _("Good if you answer customers on your phone.") if has_choice else "",
    )


def _leave(*, has_choice: bool = False) -> NumberOption:
    return NumberOption(
        "leave",
        _("Move the number out of the app") if has_choice else _("This number leaves the app"),
        _(
            "You get a code by text message or call. After that, the number no longer works in "
            "WhatsApp's apps, so save the chats you need first."
        ),
        _("Good for a number that you do not use in the app.") if has_choice else "",
    )


def _facebook_account() -> str:
    return _("The Facebook account that manages your business")


def _business_details() -> str:
    return _("The legal name and the website of your business")


def _payment_method() -> str:
    return _("A payment method for Meta, which charges your business for some messages")


def _log_in() -> str:
    return _("You log in to Facebook and choose your business, or create one.")


def _come_back() -> str:
    return _("You come back to us and see that your number is connected.")
