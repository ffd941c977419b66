"""What went wrong and what to do about it, in words for staff."""

from __future__ import annotations

from django.core.exceptions import ImproperlyConfigured
from django.urls import NoReverseMatch
from django.utils.translation import gettext as _

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
)
from ..models import Customer


def staff_message(error: Exception) -> str:
    """Return what went wrong and what to do about it, for a member of staff."""
    detail = str(error)
    if isinstance(error, KapsoCredentialsError):
        return _(
            "Kapso rejected this site's API key. Ask whoever runs this site to check "
            "KAPSO_CONNECT['API_KEY']."
        )
    if isinstance(error, KapsoPlanError):
        return _("Your Kapso plan does not include this. Upgrade it in Kapso, then try again.")
    if isinstance(error, KapsoRateLimited):
        return _("Too many requests were sent to Kapso. Wait a minute, then try again.")
    if isinstance(error, KapsoUnavailable):
        return _("Kapso did not respond. It is safe to try again in a few minutes.")
    if isinstance(error, KapsoConflict):
        return _("A limit has been reached at Kapso, or this already exists: %(detail)s") % {
            "detail": detail
        }
    if isinstance(error, (KapsoValidationError, InvalidOptions)):
        return _("The request was rejected. Correct it, then try again: %(detail)s") % {
            "detail": detail
        }
    if isinstance(error, KapsoNotFound):
        return _("This customer no longer exists at Kapso: %(detail)s") % {"detail": detail}
    if isinstance(error, KapsoError):
        return _("Kapso sent an unexpected response: %(detail)s") % {"detail": detail}
    if isinstance(error, ImproperlyConfigured):
        return _("This site's settings are incomplete: %(detail)s") % {"detail": detail}
    if isinstance(error, NoReverseMatch):
        return _(
            "This site's settings are incomplete: its URLconf does not include kapso_connect.urls, "
            "so there is no page for customers to return to."
        )
    if isinstance(error, Customer.DoesNotExist):
        return _("The customer has been deleted.")
    return _("The setup link could not be saved. Try again; the site's log has the details.")
