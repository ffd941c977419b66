"""Small helpers: times with and without USE_TZ, URLs of this site, errors as text."""

from __future__ import annotations

from datetime import date, datetime

from django.conf import settings
from django.utils import timezone
from django.utils.http import url_has_allowed_host_and_scheme
from django.utils.translation import gettext as _

from .conf import get_conf
from .exceptions import InvalidOptions

MAX_URL_LENGTH = 2000


def to_local_time(moment: datetime) -> datetime:
    """Return ``moment`` in the current time zone; with USE_TZ off, as it is."""
    return timezone.localtime(moment) if timezone.is_aware(moment) else moment


def from_local_time(moment: datetime) -> datetime:
    """Return the naive ``moment`` of the current time zone as this site stores times."""
    return timezone.make_aware(moment) if settings.USE_TZ else moment


def today() -> date:
    """Return the date in the current time zone."""
    return to_local_time(timezone.now()).date()


def as_aware(moment: datetime) -> datetime:
    """Return a ``moment`` from the database as an aware one, whatever USE_TZ is."""
    if timezone.is_aware(moment):
        return moment
    return timezone.make_aware(moment, timezone.get_default_timezone())


def as_stored(moment: datetime) -> datetime:
    """Return an aware ``moment`` as this site's database and clock have it: with USE_TZ off, naive
    in TIME_ZONE."""
    if settings.USE_TZ:
        return moment
    return timezone.make_naive(moment, timezone.get_default_timezone())


def validate_same_site_url(url: str) -> str:
    """Return ``url``, an address of this site or empty. Raises InvalidOptions for any other."""
    url = url.strip()
    own = get_conf().public_url
    is_own = url.startswith("/") or url == own or url.startswith(f"{own}/")
    if url and not (
        is_own
        and len(url) <= MAX_URL_LENGTH
        and url.isprintable()
        # "//elsewhere.example" and the like are other sites.
        and url_has_allowed_host_and_scheme(url.removeprefix(own) or "/", allowed_hosts=None)
    ):
        raise InvalidOptions({"next_url": _("Must be a page of this site, such as /welcome/.")})
    return url


def describe(error: Exception) -> str:
    """Return what ``error`` says as every database can store it."""
    try:
        text = f"{type(error).__name__}: {error}"
    except Exception:
        text = type(error).__name__  # its own __str__ raised
    return text[:10_000].encode("utf-8", "replace").decode().replace("\0", "?")
