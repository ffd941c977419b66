"""Small helpers: times with and without USE_TZ, URLs, names and errors as text."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Sequence
from datetime import date, datetime, timedelta
from datetime import timezone as zones
from urllib.parse import SplitResult, urlsplit

from django.conf import settings
from django.templatetags.static import static
from django.urls import reverse
from django.utils import timezone, translation
from django.utils.http import url_has_allowed_host_and_scheme

from .conf import get_conf
from .exceptions import InvalidOptions
from .log import log_event
from .translation import gettext as _

MAX_URL_LENGTH = 2000
MAX_ERROR_LENGTH = 10_000
"""Characters of an error's text that are stored."""


def utc_now() -> datetime:
    """Return the current time as an aware datetime in UTC, whether USE_TZ is on or off."""
    return from_timestamp(time.time())


def from_timestamp(seconds: float) -> datetime:
    """Return the time so many seconds after the epoch as an aware datetime in UTC."""
    return datetime.fromtimestamp(seconds, zones.utc)


def as_instant(moment: datetime) -> datetime:
    """Return a ``moment`` as this site stores it as an aware datetime in UTC, to be compared.

    With USE_TZ off, ``moment`` is a local time of TIME_ZONE. If clocks were put back so that it
    happened twice, it is taken as the later of the two, if that has passed.
    """
    if timezone.is_aware(moment):
        return moment.astimezone(zones.utc)
    zone = timezone.get_default_timezone()
    first, second = (
        moment.replace(tzinfo=zone, fold=fold).astimezone(zones.utc) for fold in (0, 1)
    )
    return second if second <= utc_now() else first


def time_since(moment: datetime) -> timedelta:
    """Return how much time has passed since ``moment``, which is as for ``as_instant``."""
    return utc_now() - as_instant(moment)


def to_local_time(moment: datetime) -> datetime:
    """Return ``moment`` in the current time zone. With USE_TZ off, return it unchanged."""
    return timezone.localtime(moment) if timezone.is_aware(moment) else moment


def from_local_time(moment: datetime) -> datetime:
    """Return a naive ``moment`` in the current time zone as this site stores it."""
    return timezone.make_aware(moment) if settings.USE_TZ else moment


def today() -> date:
    """Return the date in the current time zone."""
    return to_local_time(timezone.now()).date()


def as_aware(moment: datetime) -> datetime:
    """Return a ``moment`` as this site stores it as an aware datetime in UTC.

    With USE_TZ off, a local time that happened twice is taken as its ``fold`` says, which is exact
    for one that was not read from the database; for others see ``as_instant``.
    """
    if timezone.is_naive(moment):
        moment = timezone.make_aware(moment, timezone.get_default_timezone())
    return moment.astimezone(zones.utc)


def as_stored(moment: datetime) -> datetime:
    """Return an aware ``moment`` as this site stores it: with USE_TZ off, naive in TIME_ZONE."""
    if settings.USE_TZ:
        return moment
    return timezone.make_naive(moment, timezone.get_default_timezone())


def reverse_path(name: str, args: Sequence[object] = ()) -> str:
    """Return the path of a URL of this package, as ``reverse`` does.

    With ``i18n_patterns`` it begins with the active language, or else the site's, if ``LANGUAGES``
    has it: the site answers no other.
    """
    with translation.override(_language_of_site()):
        return reverse(name, args=args)


def _language_of_site() -> str:
    for code in (translation.get_language(), settings.LANGUAGE_CODE):
        try:
            return translation.get_supported_language_variant(code or "")
        except LookupError:
            continue
    return next((code for code, _name in settings.LANGUAGES), settings.LANGUAGE_CODE)


def static_url(path: str) -> str:
    """Return the URL of a static file, or "" if the site's storage has none for it.

    Without collectstatic, for example, a manifest does not have the file. A page does without it.
    """
    try:
        return static(path)
    except Exception as error:  # a storage of the site's may raise anything
        if path not in _missing_files:
            _missing_files.add(path)
            log_event("page.static_file_missing", path=path, error=describe(error))
        return ""


_missing_files: set[str] = set()
"""The static files whose absence this process has logged."""


def validate_same_site_url(url: str) -> str:
    """Return ``url`` without surrounding whitespace. It may be empty.

    Raise InvalidOptions if it is not a URL of this site: a path, or below ``PUBLIC_URL``.
    """
    url = url.strip()
    site = get_conf().public_url
    if url and not (
        (url.startswith("/") or url == site or url.startswith(f"{site}/"))
        and len(url) <= MAX_URL_LENGTH
        and url.isprintable()
        # "//elsewhere.example" and the like are other sites.
        and url_has_allowed_host_and_scheme(url.removeprefix(site) or "/", allowed_hosts=None)
    ):
        raise InvalidOptions({"next_url": _("Must be a page of this site, such as /welcome/.")})
    return url


def host_of(url: str) -> str:
    """Return the host of ``url``, or "" if it has none, or if ``url`` or its port is invalid."""
    try:
        parts = urlsplit(url)
        _port = parts.port
    except ValueError:
        return ""
    return parts.hostname or ""


def is_loopback(url: str) -> bool:
    """Return True if the host of ``url`` is this machine, which no proxy can reach."""
    host = host_of(url).rstrip(".")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def is_private(url: str) -> bool:
    """Return True if the host of ``url`` is this machine or belongs to a private network."""
    host = host_of(url).rstrip(".")
    try:
        return not ipaddress.ip_address(host).is_global
    except ValueError:
        private = (".localhost", ".local", ".internal")
        return bool(host) and ("." not in host or host.endswith(private))


def is_same_target(url: str, other: str) -> bool:
    """Return True if both URLs lead to the same view, whether or not they have https, or a slash at
    their end."""
    try:
        return _host_and_path(urlsplit(url)) == _host_and_path(urlsplit(other))
    except ValueError:
        return False


def redact_url(url: str) -> str:
    """Return ``url`` without what may be secret: a user's name, a password, and a query."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "an invalid URL"
    query = "?..." if parts.query else ""
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}{query}"


def _host_and_path(url: SplitResult) -> tuple[str, int | None, str]:
    port = None if url.port == {"http": 80, "https": 443}.get(url.scheme) else url.port
    return url.hostname or "", port, url.path.rstrip("/")


def describe(error: BaseException) -> str:
    """Return the type and the text of ``error``, in a form that every database can store."""
    try:
        text = f"{type(error).__name__}: {error}"
    except Exception:
        text = type(error).__name__  # its __str__ raised
    return text[:MAX_ERROR_LENGTH].encode("utf-8", "replace").decode().replace("\0", "?")
