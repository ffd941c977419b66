"""What went wrong and what to do about it, in words for staff."""

from __future__ import annotations

from collections.abc import Mapping

from django.core.exceptions import ImproperlyConfigured
from django.urls import NoReverseMatch

from ..exceptions import (
    CannotInvite,
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
    NotErased,
    TryLater,
)
from ..kapso.health import PAYMENT_PROBLEM
from ..models import Customer
from ..translation import gettext as _
from ..translation import gettext_lazy

HEALTH_CHECKS = {
    "phone_number_access": gettext_lazy("Kapso's access to the number"),
    "phone_number_connection": gettext_lazy("The number's connection"),
    "messaging_health": gettext_lazy("Sending messages"),
    "webhook_subscription": gettext_lazy("Kapso's subscription to the number's messages"),
    "webhook_verified": gettext_lazy("Kapso's webhook at Meta"),
    "token_validity": gettext_lazy("Kapso's access token"),
}
ENTITIES = {
    "PHONE_NUMBER": gettext_lazy("The phone number"),
    "WABA": gettext_lazy("The WhatsApp Business Account"),
    "BUSINESS": gettext_lazy("The business at Meta"),
    "APP": gettext_lazy("The app at Meta"),
    "MESSAGE_TEMPLATE": gettext_lazy("A message template"),
}
"""What a health check finds fault with. New ones are shown as they are."""


def health_message(problem: Mapping[str, str]) -> str:
    """Return one of a connection's ``health_problems``, and what to do about it, for staff."""
    check, entity, code = (problem.get(name, "") for name in ("check", "entity", "code"))
    states = {
        "": _("no reason was given"),
        "failed": _("no reason was given"),
        "BLOCKED": _("Meta does not let it send messages"),
        "LIMITED": _("Meta limits what it can send"),
        "DISCONNECTED": _("it is disconnected"),
    }
    description = problem.get("description", "")
    text = _("%(what)s: %(description)s") % {
        "what": ENTITIES.get(entity, entity) or HEALTH_CHECKS.get(check, check),
        "description": states.get(description, description).rstrip("."),
    }
    sentences = [f"{text} ({code})." if code else f"{text}."]
    if solution := problem.get("solution", ""):
        sentences.append(_("Meta advises: %(solution)s") % {"solution": solution})
    if code == PAYMENT_PROBLEM:
        sentences.append(
            _(
                "This can only be solved at Meta: the owner of the account has to add a working "
                "payment method in Meta's Business Manager."
            )
        )
    return " ".join(sentences)


def staff_message(error: Exception) -> str:
    """Return what went wrong and what to do about it, for a member of staff."""
    if isinstance(error, KapsoCredentialsError) and error.status is None:
        text = _(
            "This site has no usable API key for Kapso. Ask whoever runs this site to set "
            "KAPSO_CONNECT['API_KEY']."
        )
    elif isinstance(error, KapsoCredentialsError):
        text = _(
            "Kapso rejected this site's API key. Ask whoever runs this site to check "
            "KAPSO_CONNECT['API_KEY']."
        )
    elif isinstance(error, KapsoPlanError):
        text = _("Your Kapso plan does not include this. Upgrade it in Kapso, then try again.")
    elif isinstance(error, KapsoRateLimited) and error.status is None:
        text = _("Kapso allows only so many requests a minute. This continues in the next minute.")
    elif isinstance(error, KapsoRateLimited):
        text = _("Kapso has had too many requests, and nothing was changed. %(detail)s")
    elif isinstance(error, KapsoBlocked):
        text = _(
            "Something in front of Kapso refused this server's request; the API key was not looked "
            "at. Try again in a few minutes. If it continues, ask whoever runs this site to check "
            "its proxy, and to ask Kapso's support whether the server's IP address is blocked."
        )
    elif isinstance(error, KapsoUnavailable):
        text = _("Kapso did not respond. It is safe to try again in a few minutes.")
    elif isinstance(error, KapsoConflict):
        text = _("A limit has been reached at Kapso, or this already exists: %(detail)s")
    elif isinstance(error, (KapsoValidationError, InvalidOptions)):
        text = _("The request was rejected. Correct it, then try again: %(detail)s")
    elif isinstance(error, KapsoNotFound):
        text = _("This customer no longer exists at Kapso: %(detail)s")
    elif isinstance(error, KapsoError):
        text = _("Kapso sent an unexpected response: %(detail)s")
    elif isinstance(error, ImproperlyConfigured):
        text = _("This site's settings are incomplete: %(detail)s")
    elif isinstance(error, NoReverseMatch):
        text = _(
            "This site's settings are incomplete: its URLconf does not include kapso_connect.urls, "
            "so there is no page for customers to return to."
        )
    elif isinstance(error, (CannotInvite, NotErased)):
        text = "%(detail)s"
    elif isinstance(error, TryLater):
        text = _("Kapso's answer is not up to date yet. Try again in a few minutes.")
    elif isinstance(error, Customer.DoesNotExist):
        text = _("The customer has been deleted.")
    else:
        text = _("The setup link could not be saved. Try again; the site's log has the details.")
    return text % {"detail": error}
