"""Errors in words for staff: what happened, and what to do about it."""

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
            "Kapso refused this site's API key. Ask whoever runs this site to check "
            "KAPSO_CONNECT['API_KEY']."
        )
    if isinstance(error, KapsoPlanError):
        return _("Your Kapso plan does not include this. Upgrade it in Kapso, then try again.")
    if isinstance(error, KapsoRateLimited):
        return _("Kapso was asked too often. Wait a minute, then try again.")
    if isinstance(error, KapsoUnavailable):
        return _("Kapso did not answer. Try again in a few minutes; that is safe.")
    if isinstance(error, KapsoConflict):
        return _("Kapso says that a limit is reached or this exists already: %(detail)s") % {
            "detail": detail
        }
    if isinstance(error, (KapsoValidationError, InvalidOptions)):
        return _("Correct what was refused, then try again: %(detail)s") % {"detail": detail}
    if isinstance(error, KapsoNotFound):
        return _("Kapso does not know this customer any more: %(detail)s") % {"detail": detail}
    if isinstance(error, KapsoError):
        return _("Kapso's answer could not be understood: %(detail)s") % {"detail": detail}
    if isinstance(error, ImproperlyConfigured):
        return _("This site's settings are not complete: %(detail)s") % {"detail": detail}
    if isinstance(error, NoReverseMatch):
        return _(
            "This site's settings are not complete: kapso_connect.urls is not included in its "
            "URLconf, so Kapso cannot be told where to send customers back to."
        )
    if isinstance(error, Customer.DoesNotExist):
        return _("The customer was deleted meanwhile.")
    return _("The link could not be recorded. Try again; the site's log says more.")
