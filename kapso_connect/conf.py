"""The settings of this package, ``settings.KAPSO_CONNECT``, and the times that are fixed.

A *timeout* limits one HTTP request, a *budget* all API requests of one operation together,
repeats included. Both are in seconds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured, ValidationError
from django.core.signals import setting_changed
from django.core.validators import validate_email
from django.utils.functional import Promise
from django.views.decorators.debug import sensitive_variables

from .text import one_line

SETTING = "KAPSO_CONNECT"

DEFAULT_THROTTLE_RATES = {"read": "600/min", "write": "60/min", "kapso": "30/min"}
DEFAULT_NUMBER_EVENTS = ("whatsapp.message.received",)
MAX_NUMBER = 10**9
"""For each setting that is a number; databases and timers cannot compute with any."""

MAX_DAYS = 365

LANGUAGE_CODE_PATTERN = re.compile("[a-z]{2,3}(-[a-z0-9]{2,8})*")
MAX_LANGUAGE_CODE = 16
"""Characters of a customer's language."""

THROTTLE_RATE = re.compile("[1-9][0-9]{0,8}/(s|sec|second|m|min|minute|h|hour|d|day)")

KAPSO_WEBHOOK_TIMEOUT = 10.0
"""Kapso waits this long for the answer to a webhook."""

API_CONNECT_TIMEOUT = 3.0
"""For opening a connection to Kapso's API, for each IP address that is tried."""

API_READ_TIMEOUT = 10.0
"""For one request to Kapso's API and its whole answer."""

SYNC_BUDGET = 15 * 60.0
"""For comparing this site with Kapso in one run of ``kapso_sync``."""

SYNC_WEBHOOKS_BUDGET = 30.0
"""For processing stored webhooks in one run of ``kapso_sync``; the rest stays due. Each may wait
for Kapso's API for ``REQUEST_BUDGET``."""

SYNC_DETAILS_BUDGET = 20.0
"""For the details of numbers whose signals are sent in one run of ``kapso_sync``."""

DETAILS_BUDGET = 2.0
"""For asking Kapso's API, before ``whatsapp_connected`` is sent, which number it is, if only a
webhook has told of it. All numbers of one delivery share it."""

NUMBER_WEBHOOK_BUDGET = 2.0
"""For registering or removing the webhooks of numbers while the signals of one webhook delivery or
one page view are sent. All its numbers share it."""

SYNC_NUMBER_WEBHOOKS_BUDGET = 60.0
"""For repairing the webhooks of numbers in one run of ``kapso_sync``; the next run continues."""

SYNC_INVITATIONS_BUDGET = 5 * 60.0
"""For continuing unfinished batches of invitations in one run of ``kapso_sync``."""

SYNC_EMAILS_BUDGET = 60.0
"""For sending reminders, and e-mails about failed attempts, in one run of ``kapso_sync``."""

DOCTOR_BUDGET = 10.0
"""For each check of ``kapso_doctor`` that asks Kapso's API."""

TEST_DELIVERY_TIMEOUT = 20.0
"""How long ``kapso_doctor`` waits for Kapso's test delivery to arrive."""


@dataclass(frozen=True)
class NumberWebhook:
    """The setting ``NUMBER_WEBHOOK``: the webhook that each connected number gets."""

    url: str
    events: tuple[str, ...]
    secrets: tuple[str, ...] = field(repr=False)
    kind: str


@dataclass(frozen=True)
class Conf:
    """The settings in ``KAPSO_CONNECT``, with their defaults.

    The value None, and an empty text, is the same as leaving the setting out. Blanks and line
    breaks around texts are ignored, also around each entry of a list.

    ``API_KEY``
        The API key of your Kapso project (in Kapso: Project settings, API keys). Without it, no
        setup link can be created and nothing can be confirmed with Kapso.
    ``API_BASE_URL``
        The URL of Kapso's API. Change it only to use the sandbox.
    ``WEBHOOK_SECRET``
        The secret that Kapso signs its webhooks with: a string, or a list of strings while you
        rotate it. Webhooks signed with any of them are accepted; ``kapso_webhook`` gives Kapso the
        first. Without a secret, every webhook is refused. One with fewer than 8 characters is an
        error of ``manage.py check``.
    ``PUBLIC_URL``
        The origin of this site as customers' browsers see it, with https:
        ``https://crm.example.com``.
    ``NUMBER_WEBHOOK``
        Where Kapso delivers the messages of each connected number: a dict with ``url`` (an https
        URL, or a path of this site), ``secret`` (a string, or a list of strings while you rotate
        it), ``events`` (by default ``["whatsapp.message.received"]``) and ``kind`` (``"kapso"``, or
        ``"meta"`` for Meta's own payloads, which has no ``events``). Without it, numbers get no
        webhook.
    ``SITE_NAME``
        The name of this site in e-mails and on customers' pages: ``Example CRM``. If empty, the
        host of ``PUBLIC_URL`` is shown.
    ``SETUP_LINK_DEFAULTS``
        Default options for new setup links, under Kapso's names (see
        ``kapso_connect.kapso.setup_link_options.SetupLinkOptions``).
    ``ADOPT_UNKNOWN_CUSTOMERS``
        Whether a customer of the Kapso project that this site did not create becomes a customer
        here when a number of theirs is connected. Turn it off where several sites or environments
        share the project: what is not about customers of this site is ignored then.
    ``LOGO_URL``
        The logo at the top of customers' pages and e-mails: a static file (``crm/logo.svg``) or a
        URL on this site (``/media/logo.png``). It is also the icon in the browser's tab. E-mails
        show the name in place of an SVG file.
    ``LOGO_DARK_URL``
        The logo in dark mode. Without it, ``LOGO_URL`` is shown on a light plate there.
    ``LOGO_HAS_NAME``
        Whether the logo shows the name of this site, so that it is not written beside it.
    ``SHARE_IMAGE_URL``
        The picture in a preview of a connect URL, in a chat for example: a PNG or JPEG file of
        1200 by 630 pixels, given like ``LOGO_URL``.
    ``CONTACT_URL``
        Where customers can get help: a ``mailto:``, ``tel:`` or https URL, or a path.
    ``PRIVACY_URL``
        Your privacy policy: an https URL, or a path.
    ``TERMS_URL``
        Your terms of service: an https URL, or a path.
    ``NEXT_URL``
        The page of this site that customers continue to after connecting, such as ``/welcome/``.
        The setup link or the customer's owner may name another one.
    ``INVITATION_TEXT``
        A sentence of your own on the invitation and in its e-mail: why to connect a number. A text,
        or a translated one (``gettext_lazy``).
    ``COST_TEXT``
        What connecting a number costs your customers, in a sentence of your own, like
        ``INVITATION_TEXT``. Without it, nothing is said about your prices.
    ``NEXT_TEXT``
        What happens after a number is connected, in a sentence of your own, like
        ``INVITATION_TEXT``.
    ``SHOW_INVITER``
        Whether customers see the name of the member of staff who created their invitation.
    ``EXTRA_LANGUAGES``
        Codes of languages, such as ``["de"]``, that your project translates the customers' pages
        into, besides the six that come with this package.
    ``EMAIL_REPLY_TO``
        The address that answers to e-mails for customers go to. By default that of ``CONTACT_URL``,
        if it is a ``mailto:`` URL.
    ``EMAIL_REMINDER_DAYS``
        After how many days ``kapso_sync`` sends a customer who was invited by e-mail, and has not
        connected a number, one reminder: 1 to 365. By default none is sent.
    ``EMAIL_FAILED``
        Whether ``kapso_sync`` sends an e-mail to a customer whose attempt failed, with what to do
        now.
    ``EMAIL_CONNECTED``
        Whether a customer gets an e-mail when a number is connected with a setup link of this site.
    ``REQUEST_BUDGET``
        Seconds that one webhook delivery or one page view may spend on Kapso's API in total. Kapso
        waits 10 seconds for the answer to a webhook.
    ``API_BUDGET``
        Seconds that any other operation (in the admin, the REST API, a command or a task) may spend
        on Kapso's API in total. Keep it well below the timeout of your web server, which is 30
        seconds for gunicorn.
    ``MAX_WEBHOOK_BYTES``
        Maximum size of a webhook's body in bytes. A larger one is answered with status 413.
    ``RETRY_LIMIT``
        How many times a stored webhook, a signal or an invitation is tried before it counts as
        failed. The delays between attempts double, from 15 seconds up to an hour. Failed ones can
        be run again in the admin.
    ``LEASE_SECONDS``
        Seconds that one process may work on a stored webhook, a signal or an invitation before
        another process takes over. Must be longer than your slowest signal receiver needs.
    ``OBSERVERS``
        Dotted paths of callables that are called with each log event, as ``(name, fields)``; for
        example ``kapso_connect.monitoring.metrics.observe``.
    ``API_PERMISSIONS``
        Dotted paths of permission classes for the REST API. They replace the default, which allows
        staff who have this package's permissions.
    ``API_THROTTLE_RATES``
        How often one user may call the REST API: ``read``, ``write``, and ``kapso`` for requests
        that ask Kapso. Each is a rate such as ``"30/min"``, or None for no limit.
    """

    api_key: str = field(default="", repr=False)
    api_base_url: str = "https://api.kapso.ai"
    webhook_secret: tuple[str, ...] = field(default=(), repr=False)
    public_url: str = ""
    number_webhook: NumberWebhook | None = None
    site_name: str = ""
    setup_link_defaults: Mapping[str, Any] = field(default_factory=dict)
    adopt_unknown_customers: bool = True
    logo_url: str = ""
    logo_dark_url: str = ""
    logo_has_name: bool = False
    share_image_url: str = ""
    contact_url: str = ""
    privacy_url: str = ""
    terms_url: str = ""
    next_url: str = ""
    invitation_text: str | Promise = ""
    cost_text: str | Promise = ""
    next_text: str | Promise = ""
    show_inviter: bool = False
    extra_languages: tuple[str, ...] = ()
    email_reply_to: str = ""
    email_reminder_days: int | None = None
    email_failed: bool = False
    email_connected: bool = False
    request_budget: float = 5.0
    api_budget: float = 12.0
    max_webhook_bytes: int = 1024 * 1024
    retry_limit: int = 10
    lease_seconds: float = 300.0
    observers: tuple[str, ...] = ()
    api_permissions: tuple[str, ...] = ()
    api_throttle_rates: Mapping[str, str | None] = field(
        default_factory=lambda: DEFAULT_THROTTLE_RATES
    )

    @property
    def display_name(self) -> str:
        """``SITE_NAME``, or the host of ``PUBLIC_URL``."""
        return self.site_name or urlsplit(self.public_url).netloc


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"must be a string, not {type(value).__name__}.")
    return value.strip()


def _shown(value: object) -> str:
    # An environment variable that is not UTF-8 has characters that no page can contain.
    return one_line(_text(value))


def _url(value: object) -> str:
    return _text(value).rstrip("/")


def _words(value: object) -> str | Promise:
    # A translated text is read when a page is shown, in its language.
    return value if isinstance(value, Promise) else _shown(value)


def _page_url(value: object) -> str:
    url = _shown(value)
    if url and (url.startswith("//") or not url.startswith(("https://", "http://", "/"))):
        raise ValueError("must start with https:// or /.")
    return url


def _email(value: object) -> str:
    address = _shown(value)
    try:
        if address:
            validate_email(address)
    except ValidationError:
        raise ValueError("must be an e-mail address.") from None
    return address


def _languages(value: object) -> tuple[str, ...]:
    codes = tuple(code.lower() for code in _texts(value, "a list of language codes"))
    for code in codes:
        if not LANGUAGE_CODE_PATTERN.fullmatch(code) or len(code) > MAX_LANGUAGE_CODE:
            raise ValueError(f'must have codes such as "de", not {code!r}.')
    return codes


def _contact(value: object) -> str:
    url = _shown(value)
    if url and not url.startswith(("mailto:", "tel:", "https://", "http://", "/")):
        raise ValueError("must start with mailto:, tel:, https:// or /.")
    return url


def _texts(value: object, wanted: str) -> tuple[str, ...]:
    """Return the texts of a list without the empty ones."""
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"must be {wanted}, not {type(value).__name__}.")
    for entry in value:
        if entry is None:
            raise ValueError("has None in its list: is an environment variable not set?")
        if not isinstance(entry, str):
            raise ValueError(f"must be {wanted}, but has {type(entry).__name__} in its list.")
    return tuple(text for text in map(str.strip, value) if text)


def _secrets(value: object) -> tuple[str, ...]:
    # An empty one is left out: anybody could sign with it.
    secrets = (value,) if isinstance(value, str) else value
    return _texts(secrets, "a string or a list of strings")


def _paths(value: object) -> tuple[str, ...]:
    return _texts(value, "a list of dotted paths")


def _mapping(value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"must be a dict, not {type(value).__name__}.")
    return value


def _number_webhook(value: object) -> NumberWebhook | str:
    given = {
        key: entry
        for key, entry in _mapping(value).items()
        if entry is not None and not (isinstance(entry, str) and not entry.strip())
    }
    known = ("url", "events", "secret", "kind")
    for key in given:
        if key not in known:
            raise ValueError(f"has an unknown key {key!r}. Known keys: {', '.join(known)}.")
    if "url" not in given:
        return ""
    kind = _text(given.get("kind", "kapso"))
    if kind not in ("kapso", "meta"):
        raise ValueError('must have "kapso" or "meta" as its kind.')
    events = _texts(given.get("events", []), "a list of names of events as its events")
    if kind == "meta" and events:
        raise ValueError('must have no events with the kind "meta", which delivers all.')
    if kind == "kapso" and not events:
        events = DEFAULT_NUMBER_EVENTS
    return NumberWebhook(_page_url(given["url"]), events, _secrets(given.get("secret", ())), kind)


def _rates(value: object) -> Mapping[str, str | None]:
    rates = _mapping(value)
    for kind, rate in rates.items():
        if kind not in DEFAULT_THROTTLE_RATES:
            known = ", ".join(DEFAULT_THROTTLE_RATES)
            raise ValueError(f"has an unknown key {kind!r}. Known keys: {known}.")
        if rate is not None and not (isinstance(rate, str) and THROTTLE_RATE.fullmatch(rate)):
            raise ValueError(f'must have a rate such as "30/min" for {kind!r}.')
    return {**DEFAULT_THROTTLE_RATES, **rates}


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"must be True or False, not {type(value).__name__}.")
    return value


def _positive(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"must be a number, not {type(value).__name__}.")
    if not 0 < value <= MAX_NUMBER:
        raise ValueError(f"must be a number greater than 0 and not above {MAX_NUMBER}.")
    return value


def _positive_int(value: object) -> int:
    number = _positive(value)
    if not isinstance(number, int):
        raise ValueError("must be a whole number.")
    return number


def _days(value: object) -> int:
    number = _positive_int(value)
    if number > MAX_DAYS:
        raise ValueError(f"must not be above {MAX_DAYS}.")
    return number


READERS: dict[str, Callable[[object], Any]] = {
    "API_KEY": _text,
    "API_BASE_URL": _url,
    "WEBHOOK_SECRET": _secrets,
    "PUBLIC_URL": _url,
    "NUMBER_WEBHOOK": _number_webhook,
    "SITE_NAME": _shown,
    "SETUP_LINK_DEFAULTS": _mapping,
    "ADOPT_UNKNOWN_CUSTOMERS": _flag,
    "LOGO_URL": _shown,
    "LOGO_DARK_URL": _shown,
    "LOGO_HAS_NAME": _flag,
    "SHARE_IMAGE_URL": _shown,
    "CONTACT_URL": _contact,
    "PRIVACY_URL": _page_url,
    "TERMS_URL": _page_url,
    "NEXT_URL": _text,
    "INVITATION_TEXT": _words,
    "COST_TEXT": _words,
    "NEXT_TEXT": _words,
    "SHOW_INVITER": _flag,
    "EXTRA_LANGUAGES": _languages,
    "EMAIL_REPLY_TO": _email,
    "EMAIL_REMINDER_DAYS": _days,
    "EMAIL_FAILED": _flag,
    "EMAIL_CONNECTED": _flag,
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
@sensitive_variables()
def get_conf() -> Conf:
    """Return ``settings.KAPSO_CONNECT`` as typed values.

    Raise ImproperlyConfigured, naming the key, for an unknown key or a value of the wrong type.
    The message does not quote the value, which may be a secret under the wrong key.
    """
    given = getattr(settings, SETTING, {})
    if not isinstance(given, Mapping):
        raise ImproperlyConfigured(f"{SETTING} must be a dict, not {type(given).__name__}.")
    unknown = sorted(str(key) for key in given if key not in READERS)
    if unknown:
        raise ImproperlyConfigured(
            f"{SETTING} has unknown keys: {', '.join(unknown)}. Known keys: {', '.join(READERS)}."
        )
    values = {}
    for key, value in given.items():
        if value is None:
            continue
        try:
            read = READERS[key](value)
        except ValueError as error:
            raise ImproperlyConfigured(f"{SETTING}[{key!r}] {error}") from None
        if isinstance(read, Promise) or read != "":
            values[key.lower()] = read
    return Conf(**values)


def _clear_cache(*, setting: str, **kwargs: object) -> None:
    if setting == SETTING:
        get_conf.cache_clear()


setting_changed.connect(_clear_cache, dispatch_uid="kapso_connect.conf")
