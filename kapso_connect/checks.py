"""System checks: mistakes in an installation that can be found without using the network.

Ids starting with E are errors, which stop manage.py commands; those with W are warnings.
"""

from __future__ import annotations

import gettext
from collections.abc import Collection, Iterator
from typing import Any
from urllib.parse import urlsplit

from django.apps import apps
from django.conf import settings
from django.core import mail
from django.core.cache import caches
from django.core.cache.backends.dummy import DummyCache
from django.core.cache.backends.locmem import LocMemCache
from django.core.checks import CheckMessage, Error, Tags, Warning, register  # noqa: A004
from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.http.request import validate_host
from django.template import TemplateDoesNotExist, TemplateSyntaxError
from django.template.loader import get_template
from django.templatetags.static import static
from django.urls import (
    LocalePrefixPattern,
    NoReverseMatch,
    URLResolver,
    get_resolver,
    get_script_prefix,
    resolve,
)
from django.utils import translation
from django.utils.module_loading import import_string

from . import db, outbox, theme, utils
from .branding import is_static_file, is_svg
from .conf import KAPSO_WEBHOOK_TIMEOUT, Conf, get_conf
from .exceptions import InvalidOptions
from .kapso.languages import Language
from .kapso.setup_link_options import SetupLinkOptions
from .models import WhatsAppRelation
from .owners import owner_model
from .pages import views
from .translation import CONTEXT
from .webhooks import number_webhooks
from .webhooks.number_webhooks import NUMBER_EVENTS

MIN_WEBHOOK_SECRET_LENGTH = 16
"""A shorter one is reported before a site is deployed."""

SHORTEST_WEBHOOK_SECRET = 8
"""A shorter one is always an error: it is a mistake, or it can be guessed."""

MIN_SQLITE_TIMEOUT = 20
"""Seconds that a request waits for others to finish writing to SQLite. Python's default is 5."""

SANDBOX_SECRETS = ("sandbox", "sandbox-api-key", "sandbox-webhook-secret")
"""API keys and webhook secrets that the sandbox and the documentation use."""


@register("kapso_connect")
def check_settings(**kwargs: Any) -> list[CheckMessage]:
    """Check the values in ``KAPSO_CONNECT``, the task backend, and SQLite's options."""
    try:
        conf = get_conf()
    except ImproperlyConfigured as error:
        return [Error(str(error), id="kapso_connect.E001")]
    return [
        *_missing_settings(conf),
        *_mistyped_secrets(conf),
        *_api_base_url(conf),
        *_public_url(conf),
        *_number_webhook(conf),
        *_link_defaults(conf),
        *_next_url(conf),
        *_pictures(conf),
        *_extra_languages(conf),
        *_email_settings(conf),
        *_observers(conf),
        *_api_permissions(conf),
        *_time_limits(conf),
        *_owners(),
        *_task_backend(),
        *_sqlite(),
    ]


@register(Tags.urls)
def check_urls(**kwargs: Any) -> list[CheckMessage]:
    """Check this package's URLs, and what its pages and its REST API need."""
    if not getattr(settings, "ROOT_URLCONF", None):
        return []  # a process without URLs; Django's own URL checks do the same
    rest = _rest_requirements()
    try:
        utils.reverse_path("kapso_connect:webhook")
    except NoReverseMatch:
        if namespaces := _namespaces_of("kapso_connect", get_resolver()):
            return [_inside_a_namespace(namespaces), *rest]
        return [
            *rest,
            Warning(
                "kapso_connect.urls is not in the URLconf, so neither Kapso's webhooks nor "
                "returning customers can reach this site.",
                hint='Add path("whatsapp/", include("kapso_connect.urls")) to urlpatterns.',
                id="kapso_connect.W004",
            ),
        ]
    return [
        *_shadowed_urls(),
        *_language_prefix(),
        *_number_webhook_url(),
        *_page_requirements(),
        *rest,
    ]


def _namespaces_of(app_name: str, resolver: URLResolver) -> list[str]:
    """Return the namespaces, from the outside to the inside, under which an app's URLs are; none if
    they are not in the URLconf."""
    for pattern in resolver.url_patterns:
        if not isinstance(pattern, URLResolver):
            continue
        own = [pattern.namespace] if pattern.namespace else []
        if pattern.app_name == app_name:
            return own
        if inner := _namespaces_of(app_name, pattern):
            return [*own, *inner]
    return []


def _inside_a_namespace(namespaces: list[str]) -> CheckMessage:
    outer = ":".join(namespaces[:-1])
    return Error(
        f"kapso_connect.urls is mounted inside the namespace {outer!r}, so its URLs are called "
        f'"{":".join(namespaces)}:webhook" and not "kapso_connect:webhook": no setup link can be '
        "created, and the customers' pages fail.",
        hint='Put path("whatsapp/", include("kapso_connect.urls")) into the urlpatterns of the '
        f"ROOT_URLCONF, outside of the include() with the namespace {outer!r}.",
        id="kapso_connect.E013",
    )


def _language_prefix() -> Iterator[CheckMessage]:
    """Check that the site answers URLs with its own language, if URLs begin with a language."""
    if not any(_is_language_prefix(one) for one in get_resolver().url_patterns):
        return
    try:
        translation.get_supported_language_variant(settings.LANGUAGE_CODE)
    except LookupError:
        yield Warning(
            f"LANGUAGE_CODE is {settings.LANGUAGE_CODE!r}, which is not in LANGUAGES, and "
            "kapso_connect.urls is inside i18n_patterns(): the site does not answer URLs that "
            "begin with its own language.",
            hint="Add it to LANGUAGES, or include kapso_connect.urls outside of i18n_patterns(): "
            "its pages choose the customer's language themselves.",
            id="kapso_connect.W028",
        )


def _is_language_prefix(pattern: object) -> bool:
    return (
        isinstance(pattern, URLResolver)
        and isinstance(pattern.pattern, LocalePrefixPattern)
        and bool(_namespaces_of("kapso_connect", pattern))
    )


def _rest_requirements() -> list[CheckMessage]:
    is_mounted = bool(_namespaces_of("kapso_connect_api", get_resolver()))
    hidden = [*_hidden_by_rest(get_resolver()), *_shadowed_by_rest(get_resolver())]
    if not is_mounted or apps.is_installed("rest_framework"):
        return hidden
    return [
        *hidden,
        Error(
            "kapso_connect.api.urls is in the URLconf, but Django REST framework is not in "
            "INSTALLED_APPS, so its pages for browsers have no templates: they are answered with "
            "JSON.",
            hint='Add "rest_framework" to INSTALLED_APPS.',
            id="kapso_connect.E011",
        ),
    ]


def _hidden_by_rest(resolver: URLResolver) -> Iterator[CheckMessage]:
    """Yield a warning for each URL pattern that comes after the REST API and begins with its
    prefix: the API answers all that is below it, also what it does not have."""
    patterns = resolver.url_patterns
    for index, pattern in enumerate(patterns):
        if not isinstance(pattern, URLResolver):
            continue
        if pattern.app_name != "kapso_connect_api":
            yield from _hidden_by_rest(pattern)
            continue
        prefix = str(pattern.pattern)
        for later in patterns[index + 1 :]:
            route = str(later.pattern)
            if route.startswith(prefix):
                yield Warning(
                    f"The URL pattern {route!r} comes after kapso_connect.api.urls, which is "
                    f"mounted at {prefix!r} and answers everything below it: it is never reached.",
                    hint="Mount the REST API below a prefix of its own, such as api/whatsapp/, or "
                    "after the other patterns.",
                    id="kapso_connect.W040",
                )


def _shadowed_by_rest(resolver: URLResolver, outside: str = "") -> Iterator[CheckMessage]:
    """Yield an error for each mount of the REST API below an argument ``pk``."""
    for pattern in resolver.url_patterns:
        if not isinstance(pattern, URLResolver):
            continue
        route = outside + str(pattern.pattern)
        if pattern.app_name != "kapso_connect_api":
            yield from _shadowed_by_rest(pattern, route)
        elif ":pk>" in route or "<pk>" in route:
            yield Error(
                f"kapso_connect.api.urls is mounted at {route!r}, and its own URLs have an "
                "argument named pk, too, which takes the place of this one.",
                hint="Give the argument of the prefix another name.",
                id="kapso_connect.E016",
            )


def _shadowed_urls() -> Iterator[CheckMessage]:
    for name in ("webhook", "success", "failed"):
        try:
            path = utils.reverse_path(f"kapso_connect:{name}")
        except NoReverseMatch:
            continue  # the site leaves this page out
        below_prefix = "/" + path.removeprefix(get_script_prefix())
        # As in a request, whose path names the language.
        language = translation.get_language_from_path(below_prefix) or settings.LANGUAGE_CODE
        with translation.override(language):
            found = resolve(below_prefix)
        # A site may use a subclass of one of our views.
        page = getattr(found.func, "view_class", None)
        is_page = isinstance(page, type) and issubclass(page, views.PageView)
        is_ours = found.app_names == ["kapso_connect"] and found.url_name == name
        if not is_ours and not is_page:
            yield Warning(
                f"{path} is answered by {found.view_name}, not by kapso_connect's own view.",
                hint='Put include("kapso_connect.urls") above the pattern that matches its URL.',
                id="kapso_connect.W010",
            )


def _page_requirements() -> Iterator[CheckMessage]:
    try:
        get_template("kapso_connect/connect.html")
    except (TemplateDoesNotExist, ImproperlyConfigured):
        yield Error(
            "The templates of the customers' pages are not found.",
            hint='Add a DjangoTemplates engine with "APP_DIRS": True to TEMPLATES.',
            id="kapso_connect.E007",
        )
    except TemplateSyntaxError:
        pass  # an error in the site's own template, which its page will show
    if not apps.is_installed("django.contrib.staticfiles"):
        yield Warning(
            "django.contrib.staticfiles is not installed, so the customers' pages have no styles.",
            hint='Add "django.contrib.staticfiles" to INSTALLED_APPS, or serve the folder '
            "kapso_connect/static yourself and silence this warning.",
            id="kapso_connect.W014",
        )


def _missing_settings(conf: Conf) -> Iterator[CheckMessage]:
    if not conf.api_key:
        yield Warning(
            "KAPSO_CONNECT['API_KEY'] is not set: setup links cannot be created.",
            hint="Create an API key in Kapso's project settings, or use the sandbox.",
            id="kapso_connect.W001",
        )
    if not conf.webhook_secret:
        yield Warning(
            "KAPSO_CONNECT['WEBHOOK_SECRET'] is not set: every webhook is refused.",
            hint="Set it to what manage.py kapso_webhook --new-secret prints.",
            id="kapso_connect.W002",
        )


def _mistyped_secrets(conf: Conf) -> Iterator[CheckMessage]:
    """Check for what is a secret only by mistake: Kapso signs with another one."""
    of_number = conf.number_webhook.secrets if conf.number_webhook else ()
    for setting, secrets in (
        ("API_KEY", (conf.api_key,)),
        ("WEBHOOK_SECRET", conf.webhook_secret),
        ("NUMBER_WEBHOOK", of_number),
    ):
        for secret in filter(None, secrets):
            is_short = setting != "API_KEY" and len(secret) < SHORTEST_WEBHOOK_SECRET
            if not secret.isprintable():
                problem = "contains characters that cannot be seen"
            elif len(secret) > 1 and secret[0] == secret[-1] and secret[0] in "'\"`":
                problem = "begins and ends with a quotation mark"
            elif is_short and secret not in SANDBOX_SECRETS:
                problem = f"has fewer than {SHORTEST_WEBHOOK_SECRET} characters"
            else:
                continue
            what = f"KAPSO_CONNECT[{setting!r}]"
            if setting == "NUMBER_WEBHOOK":
                what = f"The secret of {what}"
            yield Error(
                f"{what} {problem}.",
                hint="Copy it again from Kapso, and check the file that sets the environment "
                "variable. manage.py kapso_webhook --new-secret prints a new webhook secret.",
                id="kapso_connect.E010",
            )


def _api_base_url(conf: Conf) -> Iterator[CheckMessage]:
    url = conf.api_base_url
    if not url.startswith(("http://", "https://")) or _why_not_an_origin(url):
        yield Error(
            "KAPSO_CONNECT['API_BASE_URL'] is not the URL of an API.",
            hint="Leave it out, or set it to the URL that the sandbox prints, such as "
            "http://127.0.0.1:8900.",
            id="kapso_connect.E015",
        )


def _public_url(conf: Conf) -> Iterator[CheckMessage]:
    url = conf.public_url
    if not url:
        yield Warning(
            "KAPSO_CONNECT['PUBLIC_URL'] is not set: setup links cannot be created.",
            hint="Set it to the origin of this site, such as https://crm.example.com.",
            id="kapso_connect.W003",
        )
    elif not url.startswith(("http://", "https://")):
        yield Error(
            "KAPSO_CONNECT['PUBLIC_URL'] must start with https:// (or http:// in development).",
            hint="Set it to the origin of this site, such as https://crm.example.com.",
            id="kapso_connect.E002",
        )
    elif problem := _why_not_an_origin(url):
        yield Error(
            f"KAPSO_CONNECT['PUBLIC_URL'] is not the origin of a site: {problem}.",
            hint="Give only the scheme and the host, such as https://crm.example.com.",
            id="kapso_connect.E006",
        )
    elif urlsplit(url).path:
        yield Warning(
            "KAPSO_CONNECT['PUBLIC_URL'] has a path, which would be added in front of the path of "
            "every URL.",
            hint="Give only the scheme and the host. If the site lives under a path, set "
            "FORCE_SCRIPT_NAME.",
            id="kapso_connect.W008",
        )


def _why_not_an_origin(url: str) -> str:
    if not utils.host_of(url):
        return "it has no valid host"
    if "@" in urlsplit(url).netloc:
        return "it has a user name"
    if "?" in url or "#" in url:
        return "it has a query or a fragment"
    if not url.isascii() or not url.isprintable() or " " in url:
        return "it has characters that are not allowed in a URL"
    return ""


def _number_webhook(conf: Conf) -> Iterator[CheckMessage]:
    webhook = conf.number_webhook
    if webhook is None:
        return
    if not webhook.secrets:
        yield Warning(
            "KAPSO_CONNECT['NUMBER_WEBHOOK'] has no secret: no number gets a webhook, and no "
            "delivery of a message is accepted.",
            hint="Set it to what manage.py kapso_webhook --new-secret prints.",
            id="kapso_connect.W041",
        )
    url = webhook.url
    if not url.startswith("/") and (not utils.host_of(url) or "@" in urlsplit(url).netloc):
        yield Error(
            "The url of KAPSO_CONNECT['NUMBER_WEBHOOK'] is not a URL that Kapso can deliver to.",
            hint="Give an https URL, or a path of this site, such as /whatsapp-messages/.",
            id="kapso_connect.E017",
        )
    unknown = [event for event in webhook.events if event not in NUMBER_EVENTS]
    if unknown:
        yield Warning(
            f"KAPSO_CONNECT['NUMBER_WEBHOOK'] has events that Kapso is not known to deliver to the "
            f"webhook of a number: {', '.join(unknown)}. If it refuses one, no number gets a "
            "webhook.",
            hint=f"Those that are known: {', '.join(NUMBER_EVENTS)}.",
            id="kapso_connect.W043",
        )


def _number_webhook_url() -> Iterator[CheckMessage]:
    """Check that messages are not delivered to this package's own webhook."""
    try:
        conf = get_conf()
    except ImproperlyConfigured:
        return  # E001 reports it
    if conf.number_webhook is None:
        return
    url = number_webhooks.absolute_url(conf.number_webhook.url) or conf.number_webhook.url
    own = conf.public_url + utils.reverse_path("kapso_connect:webhook")
    if utils.is_same_target(url, own):
        yield Error(
            "KAPSO_CONNECT['NUMBER_WEBHOOK'] delivers messages to this package's own webhook, "
            "which is for connections.",
            hint="Give the URL of a view of your own: see “Receive the next ones” in the "
            "documentation.",
            id="kapso_connect.E018",
        )


def _link_defaults(conf: Conf) -> Iterator[CheckMessage]:
    try:
        options = SetupLinkOptions.build(conf.setup_link_defaults)
    except InvalidOptions as error:
        yield Error(
            f"KAPSO_CONNECT['SETUP_LINK_DEFAULTS']: {error}",
            hint="The options are documented at kapso_connect.kapso.setup_link_options.",
            id="kapso_connect.E003",
        )
        options = SetupLinkOptions()
    for problem in theme.problems(options.theme_config):
        yield Warning(
            f"The theme_config of KAPSO_CONNECT['SETUP_LINK_DEFAULTS'] makes Kapso's page hard to "
            f"read: {problem}.",
            hint=f"Choose colours with a contrast of at least {theme.MIN_CONTRAST}. The pages of "
            "this site use other colours where they have to.",
            id="kapso_connect.W007",
        )


def _next_url(conf: Conf) -> Iterator[CheckMessage]:
    try:
        utils.validate_same_site_url(conf.next_url)
    except InvalidOptions:
        yield Error(
            "KAPSO_CONNECT['NEXT_URL'] must be a page of this site: its URL is given a token that "
            "identifies the customer.",
            hint="Give a path, such as /welcome/.",
            id="kapso_connect.E004",
        )


def _pictures(conf: Conf) -> Iterator[CheckMessage]:
    for name, picture in _given_pictures(conf):
        is_url = picture.startswith("//") or "://" in picture
        if is_url and not picture.startswith(f"{conf.public_url}/"):
            yield Error(
                f"KAPSO_CONNECT[{name!r}] is on another site: customers' pages load nothing from "
                "other sites.",
                hint="Give the path of a static file, such as crm/logo.svg, or /media/logo.png.",
                id="kapso_connect.E005",
            )
        elif is_static_file(picture) and not _has_static_file(picture):
            yield Warning(
                f"KAPSO_CONNECT[{name!r}] is {picture!r}, and there is no such static file: the "
                "customers' pages do without it.",
                hint="Give the path below a static folder, such as crm/logo.svg for "
                "crm/static/crm/logo.svg; or silence this warning if another server has the file.",
                id="kapso_connect.W029",
            )
    for name, given in (
        ("LOGO_DARK_URL", conf.logo_dark_url),
        ("LOGO_HAS_NAME", conf.logo_has_name),
    ):
        if given and not conf.logo_url:
            yield Warning(
                f"KAPSO_CONNECT[{name!r}] has no effect without LOGO_URL.",
                hint="Set LOGO_URL, too, or leave both out.",
                id="kapso_connect.W033",
            )
    if is_svg(conf.share_image_url):
        yield Warning(
            "KAPSO_CONNECT['SHARE_IMAGE_URL'] is an SVG file, which chat apps do not show in the "
            "preview of a URL.",
            hint="Give a PNG or JPEG file of 1200 by 630 pixels.",
            id="kapso_connect.W034",
        )


def _given_pictures(conf: Conf) -> list[tuple[str, str]]:
    pictures = {
        "LOGO_URL": conf.logo_url,
        "LOGO_DARK_URL": conf.logo_dark_url,
        "SHARE_IMAGE_URL": conf.share_image_url,
    }
    return [(name, picture) for name, picture in pictures.items() if picture]


def _has_static_file(path: str) -> bool:
    if not apps.is_installed("django.contrib.staticfiles"):
        return True  # nobody knows; W014 reports it
    from django.contrib.staticfiles import finders

    return finders.find(path) is not None


def _extra_languages(conf: Conf) -> Iterator[CheckMessage]:
    if conf.extra_languages and not settings.USE_I18N:
        yield Warning(
            "KAPSO_CONNECT['EXTRA_LANGUAGES'] is set, but USE_I18N is off: customers' pages and "
            "e-mails are in English only.",
            hint="Set USE_I18N to True, or leave EXTRA_LANGUAGES out.",
            id="kapso_connect.W038",
        )
        return
    for code in conf.extra_languages:
        if not _is_translated(code):
            yield Warning(
                f"KAPSO_CONNECT['EXTRA_LANGUAGES'] has {code!r}, but no catalog translates the "
                "customers' pages into it, so that their texts are declared to be in a language "
                "that they are not in.",
                hint="Translate them: see “Add a language” in the documentation. Is the folder in "
                "LOCALE_PATHS, and was manage.py compilemessages run?",
                id="kapso_connect.W039",
            )


def _is_translated(code: str) -> bool:
    """Return whether the site's catalogs, or those of its apps, have a text of the pages."""
    locale, text = translation.to_locale(code), "Connect WhatsApp"
    folders = [f"{app.path}/locale" for app in apps.get_app_configs()]
    for folder in [*settings.LOCALE_PATHS, *folders]:
        # Not Django's own function, which falls back to the language of the site.
        catalog = gettext.translation("django", str(folder), [locale], fallback=True)
        if catalog.pgettext(CONTEXT, text) != text:
            return True
    return code.startswith(f"{Language.ENGLISH.value}-")


def _email_settings(conf: Conf) -> Iterator[CheckMessage]:
    given = {
        "EMAIL_REMINDER_DAYS": conf.email_reminder_days is not None,
        "EMAIL_FAILED": conf.email_failed,
        "EMAIL_CONNECTED": conf.email_connected,
    }
    names = [f"KAPSO_CONNECT[{name!r}]" for name, is_given in given.items() if is_given]
    if names and not (conf.email_reply_to or conf.contact_url):
        yield Warning(
            f"E-mails are sent to customers automatically ({', '.join(names)}), and do not say how "
            "to answer.",
            hint="Set EMAIL_REPLY_TO or CONTACT_URL.",
            id="kapso_connect.W035",
        )


def _api_permissions(conf: Conf) -> Iterator[CheckMessage]:
    for path in conf.api_permissions:
        try:
            import_string(path)
        except Exception as error:
            # Its text is not shown, here and below: it may be any module's, and have secrets in it.
            yield Error(
                f"KAPSO_CONNECT['API_PERMISSIONS'] names {path}, which cannot be imported "
                f"({type(error).__name__}), so the REST API refuses every request.",
                hint="Give the dotted paths of Django REST framework permission classes.",
                id="kapso_connect.E008",
            )


def _observers(conf: Conf) -> Iterator[CheckMessage]:
    for path in conf.observers:
        try:
            problem = "" if callable(import_string(path)) else "it is not callable"
        except Exception as error:
            problem = f"importing it raises {type(error).__name__}"
        if problem:
            yield Warning(
                f"KAPSO_CONNECT['OBSERVERS'] names {path}, which cannot be called: {problem}.",
                hint="Correct the path. kapso_connect.monitoring.metrics needs: "
                'python -m pip install "django-kapso-connect[prometheus]"',
                id="kapso_connect.W009",
            )


def _time_limits(conf: Conf) -> Iterator[CheckMessage]:
    longest = max(conf.request_budget, conf.api_budget)
    if conf.lease_seconds <= longest:
        yield Warning(
            f"KAPSO_CONNECT['LEASE_SECONDS'] is {conf.lease_seconds:g}, but one operation may take "
            f"{longest:g} seconds: another process would take over unfinished work.",
            hint="Make it much longer than API_BUDGET and than your slowest signal receiver takes.",
            id="kapso_connect.W011",
        )
    if conf.request_budget >= KAPSO_WEBHOOK_TIMEOUT:
        yield Warning(
            f"KAPSO_CONNECT['REQUEST_BUDGET'] is {conf.request_budget:g}, but Kapso waits only "
            f"{KAPSO_WEBHOOK_TIMEOUT:g} seconds for the answer to a webhook.",
            hint="Leave time for your signal receivers. The default is 5 seconds.",
            id="kapso_connect.W012",
        )


def _owners() -> Iterator[CheckMessage]:
    for model in apps.get_models():
        if any(isinstance(field, WhatsAppRelation) for field in model._meta.private_fields):
            try:
                owner_model(model)
            except ValueError as error:
                yield Error(
                    str(error),
                    hint="Remove its WhatsAppRelation.",
                    obj=model,
                    id="kapso_connect.E012",
                )


def _task_backend() -> Iterator[CheckMessage]:
    if type(outbox.deliver_event.get_backend()).__name__ == "DummyBackend":
        yield Warning(
            "The default backend of TASKS is DummyBackend, which runs no tasks: signals are sent "
            "and webhooks finished only by kapso_sync.",
            hint="Leave TASKS out to run tasks at once, or use a backend with workers.",
            id="kapso_connect.W013",
        )


def _sqlite() -> Iterator[CheckMessage]:
    database: Any = connections[db.alias()]
    if database.vendor != "sqlite" or database.is_in_memory_db():
        return
    options = database.settings_dict["OPTIONS"]
    # The mode may be None, which is SQLite's own default.
    waits = str(options.get("transaction_mode")).upper() in {"IMMEDIATE", "EXCLUSIVE"}
    if waits and options.get("timeout", 0) >= MIN_SQLITE_TIMEOUT:
        return
    yield Warning(
        "The database is SQLite, and its options let requests that write at the same time fail "
        'with "database is locked".',
        hint=f"Let them wait for each other: set OPTIONS in DATABASES[{database.alias!r}] to "
        f'{{"transaction_mode": "IMMEDIATE", "timeout": {MIN_SQLITE_TIMEOUT}, '
        '"init_command": "PRAGMA journal_mode=WAL;"}. The last one is optional: with it, whoever '
        "only reads does not wait for a writer.",
        id="kapso_connect.W024",
    )


@register(Tags.database)
def check_database(databases: Collection[str] | None = None, **kwargs: Any) -> list[CheckMessage]:
    """Check the tables: ``manage.py check --database default`` and ``migrate`` run this."""
    if db.alias() not in (databases or ()) or connections[db.alias()].vendor != "mysql":
        return []
    our_models = apps.get_app_config("kapso_connect").get_models()
    tables = {model._meta.db_table for model in our_models}
    with connections[db.alias()].cursor() as cursor:
        cursor.execute(
            "SELECT table_name FROM information_schema.columns "
            "WHERE table_schema = DATABASE() AND character_set_name <> 'utf8mb4'"
        )
        narrow = sorted(tables & {name for (name,) in cursor.fetchall()})
    if not narrow:
        return []
    return [
        Warning(
            f"These tables cannot store emoji: {', '.join(narrow)}. In names that have some, each "
            "is replaced by U+FFFD.",
            hint="Convert each: ALTER TABLE … CONVERT TO CHARACTER SET utf8mb4. New tables get the "
            "character set of the database: ALTER DATABASE … CHARACTER SET utf8mb4.",
            id="kapso_connect.W032",
        )
    ]


@register("kapso_connect", deploy=True)
def check_deployment(**kwargs: Any) -> list[CheckMessage]:
    """Check what only matters in production: ``manage.py check --deploy`` runs this."""
    try:
        conf = get_conf()
    except ImproperlyConfigured:
        return []  # E001 reports it
    return [
        *_url_settings(conf),
        *_secrets(conf),
        *_environment(conf),
        *_static_files(conf),
        *_mail(conf),
    ]


def _static_files(conf: Conf) -> Iterator[CheckMessage]:
    """Check that the storage has what the pages need: collectstatic has run."""
    pictures = [picture for _name, picture in _given_pictures(conf) if is_static_file(picture)]
    for path in ["kapso_connect/pages.css", *pictures]:
        try:
            static(path)
        except Exception as error:
            yield Warning(
                f"The static file {path} has no URL ({type(error).__name__}): the customers' pages "
                "do without it.",
                hint="Run manage.py collectstatic.",
                id="kapso_connect.W030",
            )


def _url_settings(conf: Conf) -> Iterator[CheckMessage]:
    if conf.public_url.startswith("http://"):
        yield Warning(
            "KAPSO_CONNECT['PUBLIC_URL'] is not https: Kapso delivers webhooks only to https.",
            hint="Serve this site over https, and start the URL with https://.",
            id="kapso_connect.W005",
        )
    if utils.is_private(conf.public_url):
        yield Warning(
            "KAPSO_CONNECT['PUBLIC_URL'] is on this machine or in a private network, where neither "
            "Kapso nor a customer can reach it.",
            hint="Set it to the origin of this site as customers' browsers see it.",
            id="kapso_connect.W015",
        )
    if conf.number_webhook and not conf.number_webhook.url.startswith("/"):
        url = conf.number_webhook.url
        if not url.startswith("https://") or utils.is_private(url):
            yield Warning(
                "The url of KAPSO_CONNECT['NUMBER_WEBHOOK'] is not https, or is on this machine or "
                "in a private network: Kapso delivers messages only to https URLs on the Internet.",
                hint="Give an https URL on the Internet, or a path of this site.",
                id="kapso_connect.W042",
            )
    if utils.is_private(conf.api_base_url):
        yield Warning(
            "KAPSO_CONNECT['API_BASE_URL'] is on this machine or in a private network, so it is "
            "the sandbox, not Kapso: customers cannot connect a number.",
            hint="Leave it out.",
            id="kapso_connect.W016",
        )
    elif conf.api_base_url.startswith("http://"):
        yield Warning(
            "KAPSO_CONNECT['API_BASE_URL'] is not https: the API key is sent unencrypted.",
            hint="Leave it out, except to use the sandbox.",
            id="kapso_connect.W006",
        )


def _secrets(conf: Conf) -> Iterator[CheckMessage]:
    other_secrets = {*_secret_keys(), conf.api_key} - {""}
    for secret in conf.webhook_secret:
        if not (problem := _weakness(secret, other_secrets)):
            continue
        yield Warning(
            f"KAPSO_CONNECT['WEBHOOK_SECRET'] {problem}: whoever guesses it can connect and "
            "disconnect numbers on this site.",
            hint="Replace it: manage.py kapso_webhook --new-secret prints a good one.",
            id="kapso_connect.W017",
        )
    for secret in conf.number_webhook.secrets if conf.number_webhook else ():
        if problem := _weakness(secret, other_secrets):
            yield Warning(
                f"The secret of KAPSO_CONNECT['NUMBER_WEBHOOK'] {problem}: whoever guesses it can "
                "send this site messages that nobody wrote.",
                hint="Replace it: manage.py kapso_webhook --new-secret prints a good one.",
                id="kapso_connect.W044",
            )
    if conf.api_key in SANDBOX_SECRETS:
        yield Warning(
            "KAPSO_CONNECT['API_KEY'] is the key of the sandbox.",
            hint="Create an API key in Kapso's project settings.",
            id="kapso_connect.W018",
        )


def _weakness(secret: str, other_secrets: Collection[object]) -> str:
    """Return why somebody might know or guess the secret of a webhook, or ""."""
    if secret in SANDBOX_SECRETS:
        return "is well known"
    if secret in other_secrets:
        return "is the same as SECRET_KEY or API_KEY"
    if len(secret) < MIN_WEBHOOK_SECRET_LENGTH:
        return f"has fewer than {MIN_WEBHOOK_SECRET_LENGTH} characters"
    return ""


def _secret_keys() -> list[str | bytes]:
    try:
        return [settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS]
    except ImproperlyConfigured:
        return []  # while an image is built, for example; Django's own check reports it


def _environment(conf: Conf) -> Iterator[CheckMessage]:
    if any(app.name.startswith("kapso_connect.sandbox") for app in apps.get_app_configs()):
        yield Warning(
            "The sandbox is in INSTALLED_APPS.",
            hint="Remove it. It runs as a separate process: python -m kapso_connect.sandbox",
            id="kapso_connect.W019",
        )
    if not getattr(settings, "ROOT_URLCONF", None):
        return  # a process without URLs
    if isinstance(caches["default"], (LocMemCache, DummyCache)):
        yield Warning(
            "The default cache is not shared between processes, so requests to a customer's URL "
            "are not counted across processes and the rate limit does not work.",
            hint="Set CACHES['default'] to one that all processes share, such as Redis, Memcached "
            "or the database cache.",
            id="kapso_connect.W020",
        )
    host = utils.host_of(conf.public_url)
    allowed = settings.ALLOWED_HOSTS
    # Django's own check reports an empty list.
    if host and allowed and not validate_host(host, allowed):
        yield Warning(
            f"ALLOWED_HOSTS does not include {host}, the host of KAPSO_CONNECT['PUBLIC_URL']: "
            "webhooks and customers are refused.",
            hint=f"Add {host!r} to ALLOWED_HOSTS.",
            id="kapso_connect.W021",
        )


def _mail(conf: Conf) -> Iterator[CheckMessage]:
    from django.core.mail.backends.smtp import EmailBackend

    backend = _mail_backend()
    if not isinstance(backend, EmailBackend):
        return
    if backend.timeout is None:
        also = (
            " With KAPSO_CONNECT['EMAIL_CONNECTED'], Kapso has to wait, too, and takes its webhook "
            "for undelivered."
            if conf.email_connected
            else ""
        )
        yield Warning(
            "Sending e-mail has no timeout: while a mail server does not answer, whoever sends an "
            f"invitation has to wait.{also}",
            hint='Set EMAIL_TIMEOUT (from Django 6.1 on, "timeout" in the OPTIONS of MAILERS) to '
            "10 seconds.",
            id="kapso_connect.W022",
        )
    if settings.DEFAULT_FROM_EMAIL == "webmaster@localhost":
        yield Warning(
            "DEFAULT_FROM_EMAIL is Django's placeholder: mail servers will refuse invitations from "
            "webmaster@localhost.",
            hint="Set it to an e-mail address of your own.",
            id="kapso_connect.W023",
        )


def _mail_backend() -> object:
    """Return the default e-mail backend, not connected, or None if it cannot be created."""
    try:
        mailers: Any = getattr(mail, "mailers", None)  # from Django 6.1 on
        return mail.get_connection() if mailers is None else mailers.default
    except Exception:
        return None
