"""The one reader of ``settings.KAPSO_CONNECT``."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed

NAME = "KAPSO_CONNECT"
THROTTLE_RATES = {"read": "600/min", "write": "60/min", "kapso": "30/min"}


@dataclass(frozen=True)
class Conf:
    """The settings of this package, with their defaults.

    ``API_KEY``
        The key of your Kapso project (Kapso: Project settings, API keys). Without it no setup link
        can be created, and nothing that is in doubt can be confirmed.
    ``API_BASE_URL``
        Where Kapso's API is; another address only for the sandbox.
    ``WEBHOOK_SECRET``
        The secret that signs Kapso's webhooks: a string, or a list of them while rotating. Each of
        them is accepted; Kapso is given the first. Without one every webhook is refused.
    ``PUBLIC_URL``
        The https origin of this site as customers' browsers see it: ``https://crm.example.com``.
    ``SITE_NAME``
        What customers know this site by, in e-mails and on pages: ``Example CRM``. Empty means the
        host of ``PUBLIC_URL``.
    ``SETUP_LINK_DEFAULTS``
        Options for every new setup link, under Kapso's names (see ``options.SetupLinkOptions``).
    ``LOGO_URL``
        The picture above customers' pages: a static file (``crm/logo.svg``) or an address of this
        site (``/media/logo.png``).
    ``CONTACT_URL``
        Where customers turn to for help: ``mailto:``, ``tel:``, an https address, or a path.
    ``NEXT_URL``
        The page of this site that the success page leads on to, ``/welcome/``, where neither the
        setup link nor the customer's owner names one.
    ``REQUEST_BUDGET``
        Seconds of API time that one webhook delivery or one page view may spend in all. Kapso waits
        10 seconds for the answer to a webhook.
    ``API_BUDGET``
        Seconds of API time for one operation elsewhere: the admin, commands, tasks.
    ``MAX_WEBHOOK_BYTES``
        Largest webhook body that is read; a larger one is answered 413.
    ``RETRY_LIMIT``
        How often a failed signal receiver or a pending delivery is tried before it counts as
        failed. The waits in between double, from 15 seconds to an hour. What has failed can be run
        again in the admin.
    ``LEASE_SECONDS``
        How many seconds one process may work on a delivery before another one takes it over.
        Longer than your slowest receiver.
    ``OBSERVERS``
        Dotted paths of callables that are told what happens, ``(name, fields)``, such as
        ``kapso_connect.monitoring.metrics.observe`` (see ``observe.EVENTS``).
    ``API_PERMISSIONS``
        Dotted paths of the permission classes of the REST API, in place of the default: staff, with
        this package's permissions.
    ``API_THROTTLE_RATES``
        How often one user may use the REST API: ``read``, ``write``, and ``kapso`` for what asks
        Kapso, each such as ``"30/min"``, or None for no limit.
    """

    api_key: str = field(default="", repr=False)
    api_base_url: str = "https://api.kapso.ai"
    webhook_secret: tuple[str, ...] = field(default=(), repr=False)
    public_url: str = ""
    site_name: str = ""
    setup_link_defaults: Mapping[str, Any] = field(default_factory=dict)
    logo_url: str = ""
    contact_url: str = ""
    next_url: str = ""
    request_budget: float = 5.0
    api_budget: float = 30.0
    max_webhook_bytes: int = 1024 * 1024
    retry_limit: int = 10
    lease_seconds: float = 300.0
    observers: tuple[str, ...] = ()
    api_permissions: tuple[str, ...] = ()
    api_throttle_rates: Mapping[str, str | None] = field(default_factory=lambda: THROTTLE_RATES)

    @property
    def display_name(self) -> str:
        """``SITE_NAME``, or what stands in for it."""
        return self.site_name or urlsplit(self.public_url).netloc


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise ImproperlyConfigured(f"{NAME}[{name!r}] must be a string, not {_kind(value)}.")
    return value.strip()


def _url(name: str, value: object) -> str:
    return _text(name, value).rstrip("/")


def _contact(name: str, value: object) -> str:
    url = _text(name, value)
    if url and not url.startswith(("mailto:", "tel:", "https://", "http://", "/")):
        raise ImproperlyConfigured(
            f"{NAME}[{name!r}] must start with mailto:, tel:, https:// or /, unlike {url!r}."
        )
    return url


def _secrets(name: str, value: object) -> tuple[str, ...]:
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, (list, tuple)) or not all(isinstance(v, str) for v in values):
        raise ImproperlyConfigured(
            f"{NAME}[{name!r}] must be a string or a list of strings, not {_kind(value)}."
        )
    # An empty secret would let anybody sign: it counts as none.
    return tuple(v for v in values if v)


def _paths(name: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)) or not all(isinstance(v, str) for v in value):
        raise ImproperlyConfigured(
            f"{NAME}[{name!r}] must be a list of dotted paths, not {_kind(value)}."
        )
    return tuple(value)


def _mapping(name: str, value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ImproperlyConfigured(f"{NAME}[{name!r}] must be a dict, not {_kind(value)}.")
    return value


def _rates(name: str, value: object) -> Mapping[str, str | None]:
    rates = _mapping(name, value)
    for kind, rate in rates.items():
        if kind not in THROTTLE_RATES:
            raise ImproperlyConfigured(
                f"{NAME}[{name!r}] knows {', '.join(THROTTLE_RATES)}, not {kind!r}."
            )
        if rate is not None and not (isinstance(rate, str) and RATE.fullmatch(rate)):
            raise ImproperlyConfigured(
                f'{NAME}[{name!r}][{kind!r}] must be a rate such as "30/min", not {rate!r}.'
            )
    return {**THROTTLE_RATES, **rates}


RATE = re.compile("[1-9][0-9]{0,8}/(s|sec|second|m|min|minute|h|hour|d|day)")


def _positive(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise ImproperlyConfigured(f"{NAME}[{name!r}] must be a number above 0, not {value!r}.")
    return value


def _positive_int(name: str, value: object) -> int:
    number = _positive(name, value)
    if not isinstance(number, int):
        raise ImproperlyConfigured(f"{NAME}[{name!r}] must be a whole number, not {value!r}.")
    return number


def _kind(value: object) -> str:
    return type(value).__name__


READERS: dict[str, Callable[[str, object], Any]] = {
    "API_KEY": _text,
    "API_BASE_URL": _url,
    "WEBHOOK_SECRET": _secrets,
    "PUBLIC_URL": _url,
    "SITE_NAME": _text,
    "SETUP_LINK_DEFAULTS": _mapping,
    "LOGO_URL": _text,
    "CONTACT_URL": _contact,
    "NEXT_URL": _text,
    "REQUEST_BUDGET": _positive,
    "API_BUDGET": _positive,
    "MAX_WEBHOOK_BYTES": _positive_int,
    "RETRY_LIMIT": _positive_int,
    "LEASE_SECONDS": _positive,
    "OBSERVERS": _paths,
    "API_PERMISSIONS": _paths,
    "API_THROTTLE_RATES": _rates,
}


@lru_cache(maxsize=1)
def get_conf() -> Conf:
    """Return the settings as typed values.

    Raises ImproperlyConfigured, naming the key, for a value of the wrong type or an unknown key.
    """
    given = getattr(settings, NAME, {})
    if not isinstance(given, Mapping):
        raise ImproperlyConfigured(f"{NAME} must be a dict, not {_kind(given)}.")
    unknown = sorted(str(key) for key in given if key not in READERS)
    if unknown:
        raise ImproperlyConfigured(
            f"{NAME} has unknown keys: {', '.join(unknown)}. Known are: {', '.join(READERS)}."
        )
    return Conf(**{key.lower(): READERS[key](key, value) for key, value in given.items()})


def _forget(*, setting: str, **kwargs: object) -> None:
    if setting == NAME:
        get_conf.cache_clear()


setting_changed.connect(_forget, dispatch_uid="kapso_connect.conf")
