"""Small helpers: times with and without USE_TZ, URLs, names and errors as text."""

from __future__ import annotations

import ipaddress
import unicodedata
from datetime import date, datetime
from urllib.parse import urlsplit

from django.conf import settings
from django.utils import timezone
from django.utils.http import url_has_allowed_host_and_scheme
from django.utils.translation import gettext as _

from .conf import get_conf
from .exceptions import InvalidOptions

MAX_URL_LENGTH = 2000
MAX_ERROR_LENGTH = 10_000
"""Characters of an error's text that are stored."""


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
    """Return a ``moment`` from the database as an aware datetime, whether USE_TZ is on or off."""
    if timezone.is_aware(moment):
        return moment
    return timezone.make_aware(moment, timezone.get_default_timezone())


def as_stored(moment: datetime) -> datetime:
    """Return an aware ``moment`` as this site stores it: with USE_TZ off, naive in TIME_ZONE."""
    if settings.USE_TZ:
        return moment
    return timezone.make_naive(moment, timezone.get_default_timezone())


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


LINE_BREAKS_AND_CONTROLS = {"Cc", "Zl", "Zp"}
INVISIBLE = {"Cf", "Cs"}
"""Unicode categories: formatting such as a change of direction, and halves of characters."""

NUMBER_SIGNS = frozenset("\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2")
"""Signs of Arabic and Syriac that are visible, although their category is "Cf"."""

JOINERS = frozenset("\u200c\u200d")
"""They shape the letters beside them, and join emoji."""

VIRAMA = 9
"""The combining class of the signs of Indic scripts after which a joiner may end a word."""


def one_line(text: str) -> str:
    """Return ``text`` on one line, without the characters that hide or reorder what is around it.

    It is for what others wrote, such as customers' names, and is put into e-mails, logs or messages
    to staff. Line breaks and control characters become spaces; changes of direction and other
    invisible characters are left out, except the joiners that a word or an emoji is spelt with.
    """
    if text.isprintable():
        return text.strip()
    clean = ""
    for position, character in enumerate(text):
        category = unicodedata.category(character)
        if category in LINE_BREAKS_AND_CONTROLS:
            clean += " "
        elif (
            category not in INVISIBLE
            or character in NUMBER_SIGNS
            or (character in JOINERS and _is_needed(clean[-1:], text[position + 1 : position + 2]))
        ):
            clean += character
    return clean.strip()


def _is_needed(before: str, after: str) -> bool:
    """Return True for a joiner after a virama, or between two characters of a script or an emoji
    that are shaped by one; those of Latin, Greek and Cyrillic are not."""
    if before and unicodedata.combining(before) == VIRAMA:
        return True
    return all(one > "\u058f" and unicodedata.category(one)[0] in "LMS" for one in (before, after))


def describe(error: Exception) -> str:
    """Return the type and the text of ``error``, in a form that every database can store."""
    try:
        text = f"{type(error).__name__}: {error}"
    except Exception:
        text = type(error).__name__  # its __str__ raised
    return text[:MAX_ERROR_LENGTH].encode("utf-8", "replace").decode().replace("\0", "?")
