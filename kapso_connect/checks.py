"""System checks: what can be known of a wrong installation without asking the network.

Errors stop the site from starting; what they name cannot work.

``kapso_connect.E001``
    ``KAPSO_CONNECT`` is no dict, has an unknown key, or a value of the wrong kind.
``kapso_connect.E002``
    ``PUBLIC_URL`` does not start with https:// or http://.
``kapso_connect.E003``
    ``SETUP_LINK_DEFAULTS`` has an option or a value that Kapso does not take.
``kapso_connect.E004``
    ``NEXT_URL`` is a page of another site.
``kapso_connect.E005``
    ``LOGO_URL`` is on another site.
``kapso_connect.E006``
    ``PUBLIC_URL`` is no origin: no host, a user name, a query, a wrong port.
``kapso_connect.E007``
    No template engine finds the templates of the customers' pages.
``kapso_connect.E008``
    A class of ``API_PERMISSIONS`` cannot be imported.

Warnings of every ``manage.py check``:

``kapso_connect.W001``
    ``API_KEY`` is not set.
``kapso_connect.W002``
    ``WEBHOOK_SECRET`` is not set.
``kapso_connect.W003``
    ``PUBLIC_URL`` is not set.
``kapso_connect.W004``
    ``kapso_connect.urls`` is not in the URLconf.
``kapso_connect.W007``
    Text in the colours of ``theme_config`` is hard to read.
``kapso_connect.W008``
    ``PUBLIC_URL`` has a path.
``kapso_connect.W009``
    A callable of ``OBSERVERS`` cannot be imported.
``kapso_connect.W010``
    Another view answers at one of this package's addresses.
``kapso_connect.W011``
    ``LEASE_SECONDS`` is shorter than what one operation may take.
``kapso_connect.W012``
    ``REQUEST_BUDGET`` is longer than Kapso waits for an answer.
``kapso_connect.W013``
    The task backend runs nothing.
``kapso_connect.W014``
    ``django.contrib.staticfiles`` is not installed, so the pages have no styles.

Warnings of ``manage.py check --deploy`` only:

``kapso_connect.W005``
    ``PUBLIC_URL`` is not https.
``kapso_connect.W006``
    ``API_BASE_URL`` is not https.
``kapso_connect.W015``
    ``PUBLIC_URL`` is an address that nobody outside can reach.
``kapso_connect.W016``
    ``API_BASE_URL`` is the sandbox's.
``kapso_connect.W017``
    A secret of ``WEBHOOK_SECRET`` is short, well known, or used for something else as well.
``kapso_connect.W018``
    ``API_KEY`` is the sandbox's.
``kapso_connect.W019``
    The sandbox is in ``INSTALLED_APPS``.
``kapso_connect.W020``
    The default cache is each process's own, so clicks are not counted.
``kapso_connect.W021``
    ``ALLOWED_HOSTS`` does not have the host of ``PUBLIC_URL``.
``kapso_connect.W022``
    A mail server may hang for ever: there is no timeout.
``kapso_connect.W023``
    ``DEFAULT_FROM_EMAIL`` is Django's placeholder.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from typing import Any
from urllib.parse import SplitResult, urlsplit

from django.apps import apps
from django.conf import settings
from django.core import mail
from django.core.cache import caches
from django.core.cache.backends.dummy import DummyCache
from django.core.cache.backends.locmem import LocMemCache
from django.core.checks import CheckMessage, Error, Tags, Warning, register  # noqa: A004
from django.core.exceptions import ImproperlyConfigured
from django.http.request import validate_host
from django.template import TemplateDoesNotExist, TemplateSyntaxError
from django.template.loader import get_template
from django.urls import NoReverseMatch, get_script_prefix, resolve, reverse
from django.utils.module_loading import import_string

from . import exceptions, outbox, utils
from .conf import Conf, get_conf
from .kapso import setup_link_options
from .pages import theme, views

KAPSO_WAITS = 10.0
"""Seconds within which Kapso wants its webhook answered."""

SHORT = 16
"""Characters below which a secret can be guessed."""

SANDBOX = ("sandbox", "sandbox-api-key", "sandbox-webhook-secret")
"""What the sandbox and the documentation use for a key and for a secret."""


@register("kapso_connect")
def check_settings(**kwargs: Any) -> list[CheckMessage]:
    try:
        conf = get_conf()
    except ImproperlyConfigured as error:
        return [Error(str(error), id="kapso_connect.E001")]
    return [
        *_missing(conf),
        *_public_url(conf),
        *_link_defaults(conf),
        *_pages(conf),
        *_observers(conf),
        *_api_permissions(conf),
        *_times(conf),
        *_task_backend(),
    ]


@register(Tags.urls)
def check_urls(**kwargs: Any) -> list[CheckMessage]:
    if not getattr(settings, "ROOT_URLCONF", None):
        return []  # a worker's settings, as for Django's own URL checks
    try:
        reverse("kapso_connect:webhook")
    except NoReverseMatch:
        return [
            Warning(
                "kapso_connect.urls is not in the URLconf, so Kapso's webhooks and customers "
                "coming back have nowhere to go.",
                hint='Add path("whatsapp/", include("kapso_connect.urls")) to urlpatterns.',
                id="kapso_connect.W004",
            )
        ]
    return [*_shadowed(), *_page_parts()]


def _shadowed() -> Iterator[CheckMessage]:
    for name in ("webhook", "success", "failed"):
        try:
            path = reverse(f"kapso_connect:{name}")
        except NoReverseMatch:
            continue  # a page that the site left out
        found = resolve("/" + path.removeprefix(get_script_prefix()))
        # A site may put a subclass of a page there.
        page = getattr(found.func, "view_class", None)
        is_page = isinstance(page, type) and issubclass(page, views.PageView)
        if found.view_name != f"kapso_connect:{name}" and not is_page:
            yield Warning(
                f"{path} is answered by {found._func_path}, not by kapso_connect's own view.",
                hint='Put include("kapso_connect.urls") above the pattern that takes its address.',
                id="kapso_connect.W010",
            )


def _page_parts() -> Iterator[CheckMessage]:
    try:
        get_template("kapso_connect/connect.html")
    except (TemplateDoesNotExist, ImproperlyConfigured):
        yield Error(
            "The templates of the customers' pages are not found.",
            hint='Let TEMPLATES have a DjangoTemplates engine with "APP_DIRS": True.',
            id="kapso_connect.E007",
        )
    except TemplateSyntaxError:
        pass  # the site's own template; its page says where
    if not apps.is_installed("django.contrib.staticfiles"):
        yield Warning(
            "django.contrib.staticfiles is not installed, so the customers' pages have no styles.",
            hint='Add "django.contrib.staticfiles" to INSTALLED_APPS, or serve the folder '
            "kapso_connect/static yourself and silence this.",
            id="kapso_connect.W014",
        )


def _missing(conf: Conf) -> list[CheckMessage]:
    messages: list[CheckMessage] = []
    if not conf.api_key:
        messages.append(
            Warning(
                "KAPSO_CONNECT['API_KEY'] is not set: setup links cannot be created.",
                hint="Create a key in Kapso's project settings, or use the sandbox.",
                id="kapso_connect.W001",
            )
        )
    if not conf.webhook_secret:
        messages.append(
            Warning(
                "KAPSO_CONNECT['WEBHOOK_SECRET'] is not set: every webhook is refused.",
                hint="Choose a long random string and give the same one to Kapso's webhook.",
                id="kapso_connect.W002",
            )
        )
    return messages


def _public_url(conf: Conf) -> list[CheckMessage]:
    if not conf.public_url:
        return [
            Warning(
                "KAPSO_CONNECT['PUBLIC_URL'] is not set: setup links cannot be created.",
                hint="Set it to the origin of this site, such as https://crm.example.com.",
                id="kapso_connect.W003",
            )
        ]
    if not conf.public_url.startswith(("http://", "https://")):
        return [
            Error(
                "KAPSO_CONNECT['PUBLIC_URL'] must start with https:// (or http:// in development).",
                hint="Set it to the origin of this site, such as https://crm.example.com.",
                id="kapso_connect.E002",
            )
        ]
    if problem := _why_no_origin(conf.public_url):
        return [
            Error(
                f"KAPSO_CONNECT['PUBLIC_URL'] is not an address to put paths behind: {problem}.",
                hint="Give the scheme and the host alone, such as https://crm.example.com.",
                id="kapso_connect.E006",
            )
        ]
    if urlsplit(conf.public_url).path:
        return [
            Warning(
                "KAPSO_CONNECT['PUBLIC_URL'] has a path: it is put before every address of this "
                "site, which has its own.",
                hint="Give the scheme and the host alone. A site under a path says so to Django "
                "by FORCE_SCRIPT_NAME.",
                id="kapso_connect.W008",
            )
        ]
    return []


def _why_no_origin(url: str) -> str:
    parts = _split(url)
    if parts is None or not parts.hostname:
        return "it has no usable host"
    if "@" in parts.netloc:
        return "it has a user name"
    if "?" in url or "#" in url:
        return "it has a query or a fragment"
    if not url.isascii() or not url.isprintable() or " " in url:
        return "it has characters that no address has"
    return ""


def _split(url: str) -> SplitResult | None:
    """Return the parts of ``url``; None where it or its port is none."""
    try:
        parts = urlsplit(url)
        _port = parts.port
    except ValueError:
        return None
    return parts


def _link_defaults(conf: Conf) -> list[CheckMessage]:
    try:
        setup_link_options.SetupLinkOptions.build(conf.setup_link_defaults)
    except exceptions.InvalidOptions as error:
        return [
            Error(
                f"KAPSO_CONNECT['SETUP_LINK_DEFAULTS']: {error}",
                hint="The options are Kapso's: see SetupLinkOptions in kapso_connect.kapso.",
                id="kapso_connect.E003",
            )
        ]
    return []


def _pages(conf: Conf) -> list[CheckMessage]:
    messages: list[CheckMessage] = []
    try:
        utils.validate_same_site_url(conf.next_url)
    except exceptions.InvalidOptions:
        messages.append(
            Error(
                "KAPSO_CONNECT['NEXT_URL'] must be a page of this site: customers are led there, "
                "and it is told who they are.",
                hint="Give its path, such as /welcome/.",
                id="kapso_connect.E004",
            )
        )
    logo = conf.logo_url
    if logo.startswith("//") or ("://" in logo and not logo.startswith(f"{conf.public_url}/")):
        messages.append(
            Error(
                "KAPSO_CONNECT['LOGO_URL'] is on another site: customers' pages show nothing of "
                "others.",
                hint="Give the path of a static file, such as crm/logo.svg, or /media/logo.png.",
                id="kapso_connect.E005",
            )
        )
    try:
        colors = (
            setup_link_options.SetupLinkOptions.build(conf.setup_link_defaults).theme_config or {}
        )
    except exceptions.InvalidOptions:
        colors = {}  # E003 says it
    for text, behind, contrast in theme.hard_to_read(theme.full_theme(colors)):
        messages.append(
            Warning(
                f"The theme_config of KAPSO_CONNECT['SETUP_LINK_DEFAULTS'] is hard to read: "
                f"{text} on {behind} has a contrast of {contrast:.1f}.",
                hint=f"Choose colours with a contrast of at least {theme.READABLE}.",
                id="kapso_connect.W007",
            )
        )
    return messages


def _api_permissions(conf: Conf) -> Iterator[CheckMessage]:
    for path in conf.api_permissions:
        try:
            import_string(path)
        except Exception as error:
            yield Error(
                f"KAPSO_CONNECT['API_PERMISSIONS'] names {path}, and the REST API lets nobody in: "
                f"{type(error).__name__}: {error}.",
                hint="Name permission classes of Django REST framework by their import paths.",
                id="kapso_connect.E008",
            )


def _observers(conf: Conf) -> Iterator[CheckMessage]:
    for path in conf.observers:
        try:
            problem = "" if callable(import_string(path)) else "it is not callable"
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
        if problem:
            yield Warning(
                f"KAPSO_CONNECT['OBSERVERS'] names {path}, which is told nothing: {problem}.",
                hint="Correct the path. For kapso_connect.monitoring.metrics: "
                'python -m pip install "django-kapso-connect[prometheus]"',
                id="kapso_connect.W009",
            )


def _times(conf: Conf) -> Iterator[CheckMessage]:
    longest = max(conf.request_budget, conf.api_budget)
    if conf.lease_seconds <= longest:
        yield Warning(
            f"KAPSO_CONNECT['LEASE_SECONDS'] is {conf.lease_seconds:g}, and one operation may take "
            f"{longest:g} seconds: another process would take over what is still being done.",
            hint="Make it a good deal longer than API_BUDGET and than your slowest receiver.",
            id="kapso_connect.W011",
        )
    if conf.request_budget >= KAPSO_WAITS:
        yield Warning(
            f"KAPSO_CONNECT['REQUEST_BUDGET'] is {conf.request_budget:g}, and Kapso waits "
            f"{KAPSO_WAITS:g} seconds for the answer to a webhook.",
            hint="Leave time for your receivers: 5 seconds is the default.",
            id="kapso_connect.W012",
        )


def _task_backend() -> Iterator[CheckMessage]:
    if type(outbox.deliver_event.get_backend()).__name__ == "DummyBackend":
        yield Warning(
            "The default of TASKS is a DummyBackend, which runs nothing: signals are sent and "
            "webhooks finished by kapso_sync only.",
            hint="Leave TASKS out to run tasks at once, or name a backend that has workers.",
            id="kapso_connect.W013",
        )


@register("kapso_connect", deploy=True)
def check_deployment(**kwargs: Any) -> list[CheckMessage]:
    try:
        conf = get_conf()
    except ImproperlyConfigured:
        return []  # E001 says it
    return [*_addresses(conf), *_secrets(conf), *_surroundings(conf), *_mail()]


def _addresses(conf: Conf) -> Iterator[CheckMessage]:
    if conf.public_url.startswith("http://"):
        yield Warning(
            "KAPSO_CONNECT['PUBLIC_URL'] is not https: Kapso delivers webhooks to https only.",
            hint="Serve this site by https, and set it to https://…",
            id="kapso_connect.W005",
        )
    if conf.public_url and _is_local(conf.public_url):
        yield Warning(
            f"KAPSO_CONNECT['PUBLIC_URL'] is {conf.public_url}, which neither Kapso nor a customer "
            "can reach.",
            hint="Set it to the origin of this site as customers' browsers see it.",
            id="kapso_connect.W015",
        )
    if _is_local(conf.api_base_url):
        yield Warning(
            f"KAPSO_CONNECT['API_BASE_URL'] is {conf.api_base_url}, which is not Kapso but the "
            "sandbox: nobody can connect a number.",
            hint="Leave it out.",
            id="kapso_connect.W016",
        )
    elif not conf.api_base_url.startswith("https://"):
        yield Warning(
            "KAPSO_CONNECT['API_BASE_URL'] is not https: the API key travels in the clear.",
            hint="Leave it out; another address is only for the sandbox.",
            id="kapso_connect.W006",
        )


def _is_local(url: str) -> bool:
    """True where the host is this machine, or one of a network that is closed to the outside."""
    parts = _split(url)
    host = ((parts and parts.hostname) or "").rstrip(".")
    try:
        return not ipaddress.ip_address(host).is_global
    except ValueError:
        return bool(host) and ("." not in host or host.endswith((".localhost", ".local")))


def _secrets(conf: Conf) -> Iterator[CheckMessage]:
    elsewhere = {settings.SECRET_KEY, conf.api_key} - {""}
    for secret in conf.webhook_secret:
        if secret in SANDBOX:
            problem = "is one that everybody knows"
        elif secret in elsewhere:
            problem = "is also SECRET_KEY or API_KEY"
        elif len(secret) < SHORT:
            problem = f"has fewer than {SHORT} characters"
        else:
            continue
        yield Warning(
            f"KAPSO_CONNECT['WEBHOOK_SECRET'] {problem}: whoever guesses it can connect and "
            "disconnect numbers here.",
            hint="Make one, and give the same to Kapso's webhook: "
            'python -c "import secrets; print(secrets.token_urlsafe(32))"',
            id="kapso_connect.W017",
        )
    if conf.api_key in SANDBOX:
        yield Warning(
            "KAPSO_CONNECT['API_KEY'] is the sandbox's.",
            hint="Create a key in Kapso's project settings.",
            id="kapso_connect.W018",
        )


def _surroundings(conf: Conf) -> Iterator[CheckMessage]:
    if any(app.name.startswith("kapso_connect.sandbox") for app in apps.get_app_configs()):
        yield Warning(
            "The sandbox is in INSTALLED_APPS.",
            hint="Take it out. It is a process of its own: python -m kapso_connect.sandbox",
            id="kapso_connect.W019",
        )
    if not getattr(settings, "ROOT_URLCONF", None):
        return  # a worker's settings: it has no pages
    if isinstance(caches["default"], (LocMemCache, DummyCache)):
        yield Warning(
            "The default cache is each process's own: how often a customer's address is used is "
            "not counted across processes.",
            hint="Let CACHES name one that all processes share: Redis, Memcached, the database.",
            id="kapso_connect.W020",
        )
    host = (_split(conf.public_url) or urlsplit("")).hostname
    allowed = settings.ALLOWED_HOSTS
    # Django's own check speaks of an empty list.
    if host and allowed and not validate_host(host, allowed):
        yield Warning(
            f"ALLOWED_HOSTS does not have {host}, the host of KAPSO_CONNECT['PUBLIC_URL']: "
            "webhooks and customers are turned away.",
            hint=f"Add {host!r} to ALLOWED_HOSTS.",
            id="kapso_connect.W021",
        )


def _mail() -> Iterator[CheckMessage]:
    from django.core.mail.backends.smtp import EmailBackend

    backend = _mail_backend()
    if not isinstance(backend, EmailBackend):
        return
    if backend.timeout is None:
        yield Warning(
            "E-mail has no timeout: a mail server that hangs keeps whoever sends an invitation "
            "waiting.",
            hint='Set EMAIL_TIMEOUT, or from Django 6.1 on "timeout" in the OPTIONS of MAILERS, '
            "to 10 seconds.",
            id="kapso_connect.W022",
        )
    if settings.DEFAULT_FROM_EMAIL == "webmaster@localhost":
        yield Warning(
            "DEFAULT_FROM_EMAIL is Django's placeholder: invitations come from "
            "webmaster@localhost, and are refused.",
            hint="Set it to an address of yours.",
            id="kapso_connect.W023",
        )


def _mail_backend() -> object:
    """Return what sends this site's e-mail, not connected; None where that is not usable."""
    try:
        mailers: Any = getattr(mail, "mailers", None)  # from Django 6.1 on
        return mail.get_connection() if mailers is None else mailers.default
    except Exception:
        return None
