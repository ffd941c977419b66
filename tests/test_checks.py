from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import django
import polib
import pytest
from django.conf.urls.i18n import i18n_patterns
from django.core.checks import run_checks
from django.db import connections
from django.db.backends.sqlite3.base import DatabaseWrapper
from django.http import HttpRequest, HttpResponse
from django.test import override_settings
from django.urls import include, path, re_path, set_script_prefix
from django.utils import translation
from django.views.generic import RedirectView

from kapso_connect import checks
from kapso_connect.pages.views import SuccessView
from kapso_connect.webhooks.number_webhooks import NUMBER_EVENTS
from tests import ROOT

# From Django 6.1 on some checks look at the database.
pytestmark = pytest.mark.django_db

GOOD = {
    "API_KEY": "k",
    "WEBHOOK_SECRET": "Vx3nL2mG9qTz7RpY",
    "PUBLIC_URL": "https://site.example",
}
MANIFEST = "django.contrib.staticfiles.storage.ManifestStaticFilesStorage"
SMTP = "django.core.mail.backends.smtp.EmailBackend"


@pytest.fixture(autouse=True)
def _ready_for_deployment(settings: Any, tmp_path: Path, sqlite_options: None) -> None:
    """Start from a site that is ready to be deployed."""
    settings.CACHES = {
        "default": {
            "BACKEND": "django.core.cache.backends.filebased.FileBasedCache",
            "LOCATION": str(tmp_path),
        }
    }
    settings.KAPSO_CONNECT = GOOD


STATIC = "kapso_connect/share.png"

OF_SETTINGS = ["kapso_connect", "urls"]
"""The tags of the checks of settings."""


def ids(*, deploy: bool = False, tags: list[str] | None = None) -> set[str]:
    """Run all checks, or those with one of the tags; return the numbers of our messages, each of
    which is given once, with a hint."""
    messages = run_checks(include_deployment_checks=deploy, tags=tags)
    ours = [message for message in messages if str(message.id).startswith("kapso_connect.")]
    for message in ours:
        assert message.hint or message.id == "kapso_connect.E001"
        assert ours.count(message) == 1, "said twice"
    return {str(message.id).removeprefix("kapso_connect.") for message in ours}


@pytest.mark.parametrize("deploy", [False, True])
def test_complete_installation_has_no_messages(deploy: bool) -> None:
    assert ids(deploy=deploy) == set()


def themed(**colors: str) -> dict[str, object]:
    return {"SETUP_LINK_DEFAULTS": {"theme_config": colors}}


MESSAGES = {"url": "/messages/", "secret": "Qb7kT4vM1xHs9ZwE"}
SANDBOX = {"API_BASE_URL": "http://127.0.0.1:8900"}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"API_KEY": 1}, {"E001"}),
        ({"CONTACT_URL": "javascript:alert(1)"}, {"E001"}),
        ({"OBSERVERS": "one.path"}, {"E001"}),
        ({"OBSERVERS": [1]}, {"E001"}),
        ({"API_KEY": ""}, {"W001"}),
        ({"API_KEY": None}, {"W001"}),
        ({"WEBHOOK_SECRET": [""]}, {"W002"}),
        ({"WEBHOOK_SECRET": None}, {"W002"}),
        ({"WEBHOOK_SECRET": [" \n"]}, {"W002"}),
        ({"WEBHOOK_SECRET": [None]}, {"E001"}),
        ({"WEBHOOK_SECRET": f"{GOOD['WEBHOOK_SECRET']}\r\n"}, set()),
        ({"WEBHOOK_SECRET": [GOOD["WEBHOOK_SECRET"], f'"{GOOD["WEBHOOK_SECRET"]}"']}, {"E010"}),
        ({"WEBHOOK_SECRET": f"\ufeff{GOOD['WEBHOOK_SECRET']}"}, {"E010"}),
        ({"WEBHOOK_SECRET": f"{GOOD['WEBHOOK_SECRET']}\u200b"}, {"E010"}),
        ({"API_KEY": "'quoted'"}, {"E010"}),
        ({"API_KEY": "broken\nkey"}, {"E010"}),
        ({"API_BASE_URL": ""}, set()),
        ({"API_BASE_URL": "api.kapso.ai"}, {"E015"}),
        ({"API_BASE_URL": "https://api.kapso.ai:https"}, {"E015"}),
        ({"PUBLIC_URL": ""}, {"W003"}),
        ({"PUBLIC_URL": "site.example"}, {"E002"}),
        ({"PUBLIC_URL": "https://"}, {"E002"}),
        ({"PUBLIC_URL": "https://:443"}, {"E006"}),
        ({"PUBLIC_URL": "https://site.example:http"}, {"E006"}),
        ({"PUBLIC_URL": "https://[::1"}, {"E006"}),
        ({"PUBLIC_URL": "https://ada:secret@site.example"}, {"E006"}),
        ({"PUBLIC_URL": "https://site.example?a=b"}, {"E006"}),
        ({"PUBLIC_URL": "https://site.example?"}, {"E006"}),
        ({"PUBLIC_URL": "https://site.example#a"}, {"E006"}),
        ({"PUBLIC_URL": "https://site.exam ple"}, {"E006"}),
        ({"PUBLIC_URL": "https://site.example\0"}, {"E006"}),
        ({"PUBLIC_URL": "https://süß.example"}, {"E006"}),
        ({"PUBLIC_URL": "https://site.example/crm"}, {"W008"}),
        ({"PUBLIC_URL": "https://site.example:8443/"}, set()),
        ({"SETUP_LINK_DEFAULTS": {"colour": "red"}}, {"E003"}),
        ({"NEXT_URL": "https://elsewhere.example/"}, {"E004"}),
        ({"NEXT_URL": "//elsewhere.example/"}, {"E004"}),
        ({"LOGO_URL": "https://elsewhere.example/logo.png"}, {"E005"}),
        ({"LOGO_URL": "//elsewhere.example/logo.png"}, {"E005"}),
        ({"LOGO_URL": "crm/no-such-logo.svg"}, {"W029"}),
        ({"LOGO_URL": "kapso_connect/pages.css"}, set()),
        ({"LOGO_URL": STATIC, "LOGO_DARK_URL": "https://elsewhere.example/dark.png"}, {"E005"}),
        ({"LOGO_URL": STATIC, "LOGO_DARK_URL": "crm/no-such-logo.svg"}, {"W029"}),
        ({"LOGO_URL": STATIC, "LOGO_DARK_URL": STATIC, "LOGO_HAS_NAME": True}, set()),
        ({"LOGO_DARK_URL": STATIC}, {"W033"}),
        ({"LOGO_HAS_NAME": True}, {"W033"}),
        ({"LOGO_HAS_NAME": False}, set()),
        ({"SHARE_IMAGE_URL": "//elsewhere.example/share.png"}, {"E005"}),
        ({"SHARE_IMAGE_URL": "crm/no-such-picture.png"}, {"W029"}),
        ({"SHARE_IMAGE_URL": STATIC}, set()),
        ({"SHARE_IMAGE_URL": f"{GOOD['PUBLIC_URL']}/media/share.jpg"}, set()),
        ({"SHARE_IMAGE_URL": "/media/Share.SVG?v=2"}, {"W034"}),
        (themed(text_color="#999999"), {"W007"}),
        (themed(primary_color="#888888", primary_foreground_color="#ffffff"), {"W007"}),
        (themed(primary_color="#888888"), set()),
        (themed(card_color="#000000"), set()),
        (themed(card_color="#000000", text_color="#eeeeee"), {"W007"}),
        (
            {
                "LOGO_URL": f"{GOOD['PUBLIC_URL']}/media/logo.png",
                "NEXT_URL": "/welcome/",
                "CONTACT_URL": "mailto:help@example.com",
            },
            set(),
        ),
        ({"OBSERVERS": ["kapso_connect.monitoring.metrics.observe"]}, set()),
        ({"OBSERVERS": ["kapso_connect.monitoring.metrics.nothing"]}, {"W009"}),
        ({"OBSERVERS": ["nowhere"]}, {"W009"}),
        ({"OBSERVERS": ["kapso_connect.conf.SETTING"]}, {"W009"}),
        ({"API_PERMISSIONS": ["rest_framework.permissions.IsAuthenticated"]}, set()),
        ({"API_PERMISSIONS": ["rest_framework.permissions.Nobody"]}, {"E008"}),
        ({"LEASE_SECONDS": 12}, {"W011"}),
        ({"LEASE_SECONDS": 4.0, "API_BUDGET": 1}, {"W011"}),
        ({"LEASE_SECONDS": 13}, set()),
        ({"NUMBER_WEBHOOK": MESSAGES}, set()),
        ({"NUMBER_WEBHOOK": {**MESSAGES, "url": "https://other.example/messages/"}}, set()),
        ({"NUMBER_WEBHOOK": {**MESSAGES, "kind": "meta"}}, set()),
        ({"NUMBER_WEBHOOK": {**MESSAGES, "kind": "other"}}, {"E001"}),
        ({"NUMBER_WEBHOOK": {**MESSAGES, "kind": "meta", "events": ["x"]}}, {"E001"}),
        ({"NUMBER_WEBHOOK": {**MESSAGES, "url": "messages/"}}, {"E001"}),
        ({"NUMBER_WEBHOOK": {**MESSAGES, "url": "https://"}}, {"E017"}),
        ({"NUMBER_WEBHOOK": {**MESSAGES, "url": "https://ada:s3@site.example/"}}, {"E017"}),
        ({"NUMBER_WEBHOOK": {**MESSAGES, "url": "/whatsapp/webhook/"}}, {"E018"}),
        (
            {"NUMBER_WEBHOOK": {**MESSAGES, "url": "https://SITE.example/whatsapp/webhook"}},
            {"E018"},
        ),
        ({"NUMBER_WEBHOOK": {**MESSAGES, "secret": None}}, {"W041"}),
        ({"NUMBER_WEBHOOK": {**MESSAGES, "secret": ["", " "]}}, {"W041"}),
        ({"NUMBER_WEBHOOK": {**MESSAGES, "secret": "'quoted and long enough'"}}, {"E010"}),
        ({"NUMBER_WEBHOOK": {**MESSAGES, "events": ["whatsapp.message.seen"]}}, {"W043"}),
        (
            {"NUMBER_WEBHOOK": {**MESSAGES, "events": ["whatsapp.phone_number.created"]}},
            {"W043"},
        ),
        ({"NUMBER_WEBHOOK": {**MESSAGES, "events": list(NUMBER_EVENTS)}}, set()),
        ({"REQUEST_BUDGET": 10}, {"W012"}),
        ({"REQUEST_BUDGET": 9.9}, set()),
    ],
)
def test_wrong_settings_are_reported(
    configure: Any, changes: dict[str, object], expected: set[str]
) -> None:
    configure(**changes)
    assert ids(tags=OF_SETTINGS) == expected
    assert ids(tags=OF_SETTINGS, deploy=True) == expected


@pytest.mark.parametrize("given", [None, [], "settings", 7])
def test_settings_that_are_not_a_dict_are_reported(settings: Any, given: object) -> None:
    settings.KAPSO_CONNECT = given
    assert ids(deploy=True) == {"E001"}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"PUBLIC_URL": "http://site.example"}, {"W005"}),
        ({"PUBLIC_URL": "http://localhost:8000"}, {"W005", "W015"}),
        ({"PUBLIC_URL": "https://localhost"}, {"W015"}),
        ({"PUBLIC_URL": "https://127.0.0.1"}, {"W015"}),
        ({"PUBLIC_URL": "https://10.0.0.7"}, {"W015"}),
        ({"PUBLIC_URL": "https://[::1]:8000"}, {"W015"}),
        ({"PUBLIC_URL": "https://crm.localhost"}, {"W015"}),
        ({"PUBLIC_URL": "https://printer.local."}, {"W015"}),
        ({"PUBLIC_URL": "https://crm.internal"}, {"W015"}),
        ({"PUBLIC_URL": "https://8.8.8.8"}, set()),
        (SANDBOX, {"W016"}),
        ({"API_BASE_URL": "https://localhost:8900"}, {"W016"}),
        ({"API_BASE_URL": "http://sandbox:8900"}, {"W016"}),
        ({"API_BASE_URL": "http://api.kapso.example"}, {"W006"}),
        ({"WEBHOOK_SECRET": "sandbox"}, {"W017"}),
        ({"WEBHOOK_SECRET": "sandbox-webhook-secret"}, {"W017"}),
        ({"WEBHOOK_SECRET": "x" * 15}, {"W017"}),
        ({"WEBHOOK_SECRET": [GOOD["WEBHOOK_SECRET"], "quite-short"]}, {"W017"}),
        ({"WEBHOOK_SECRET": "the key of this site"}, {"W017"}),
        ({"WEBHOOK_SECRET": "k" * 40, "API_KEY": "k" * 40}, {"W017"}),
        ({"NUMBER_WEBHOOK": {**MESSAGES, "url": "http://site.example/messages/"}}, {"W042"}),
        ({"NUMBER_WEBHOOK": {**MESSAGES, "url": "https://10.0.0.7/messages/"}}, {"W042"}),
        ({"NUMBER_WEBHOOK": {**MESSAGES, "secret": "sandbox"}}, {"W044"}),
        ({"NUMBER_WEBHOOK": {**MESSAGES, "secret": "x" * 15}}, {"W044"}),
        ({"NUMBER_WEBHOOK": {**MESSAGES, "secret": "the key of this site"}}, {"W044"}),
        ({"API_KEY": "sandbox"}, {"W018"}),
        ({"API_KEY": "sandbox-api-key"}, {"W018"}),
    ],
)
def test_settings_unfit_for_deployment_are_reported(
    settings: Any, configure: Any, changes: dict[str, object], expected: set[str]
) -> None:
    settings.SECRET_KEY = "the key of this site"
    configure(**changes)
    assert ids(tags=OF_SETTINGS) == set()
    assert ids(tags=OF_SETTINGS, deploy=True) == expected


@pytest.mark.parametrize("secret", ["x", "short", "7 chars", ["good-enough-for-this", "short"]])
def test_webhook_secret_that_anybody_could_guess_is_an_error(configure: Any, secret: Any) -> None:
    configure(WEBHOOK_SECRET=secret)
    assert ids() == {"E010"}
    (message,) = [m for m in run_checks() if m.id == "kapso_connect.E010"]
    assert message.is_serious()
    assert "has fewer than 8 characters" in message.msg


def test_message_secret_that_anybody_could_guess_is_an_error(configure: Any) -> None:
    configure(NUMBER_WEBHOOK={**MESSAGES, "secret": "short"})
    assert ids() == {"E010"}
    (message,) = [m for m in run_checks() if m.id == "kapso_connect.E010"]
    assert message.msg.startswith("The secret of KAPSO_CONNECT['NUMBER_WEBHOOK'] has fewer")


def test_old_secret_keys_are_no_webhook_secrets(settings: Any, configure: Any) -> None:
    settings.SECRET_KEY_FALLBACKS = ["the former key of this site"]
    configure(WEBHOOK_SECRET="the former key of this site")
    assert ids(deploy=True) == {"W017"}


def test_without_a_secret_key_the_checks_run(settings: Any) -> None:
    """As while an image is built. Django's own check reports it."""
    settings.SECRET_KEY = ""
    assert checks.check_deployment() == []


def test_messages_show_no_secret(configure: Any) -> None:
    configure(
        API_KEY="sandbox",
        WEBHOOK_SECRET="s3cret",
        PUBLIC_URL="https://ada:s3cret@site.example",
    )
    messages = [m for m in run_checks(include_deployment_checks=True) if "kapso" in (m.id or "")]
    assert len(messages) == 4
    assert "s3cret" not in repr(messages)


# The URLconf and the pages


def own_view(request: HttpRequest) -> HttpResponse:
    return HttpResponse()


class OurSuccessView(SuccessView):
    pass


class ShadowedWebhook:
    urlpatterns = [
        re_path("^whatsapp/web", own_view),
        path("whatsapp/", include("kapso_connect.urls")),
        re_path("", own_view),
    ]


class Subclassed:
    urlpatterns = [
        path("whatsapp/success/", OurSuccessView.as_view()),
        path("whatsapp/", include("kapso_connect.urls")),
        re_path("", own_view),
    ]


class Selective:
    """Leaves one page out."""

    urlpatterns = [re_path("^whatsapp/(?!success)", include("kapso_connect.urls"))]


class AllShadowed:
    urlpatterns = [re_path("", own_view), path("whatsapp/", include("kapso_connect.urls"))]


@pytest.mark.parametrize(
    ("urlconf", "paths"),
    [
        (ShadowedWebhook, ["/whatsapp/webhook/"]),
        (Subclassed, []),
        (Selective, []),
        (AllShadowed, ["/whatsapp/webhook/", "/whatsapp/success/", "/whatsapp/failed/"]),
    ],
)
def test_view_that_shadows_our_url_is_reported(urlconf: Any, paths: list[str]) -> None:
    with override_settings(ROOT_URLCONF=urlconf):
        found = checks.check_urls()
    assert [m.id for m in found] == ["kapso_connect.W010"] * len(paths)
    assert [m.msg.split()[0] for m in found] == paths


def test_site_under_a_script_name_has_no_messages() -> None:
    set_script_prefix("/crm/")
    try:
        with override_settings(ROOT_URLCONF=ShadowedWebhook):
            assert [m.msg.split()[0] for m in checks.check_urls()] == ["/crm/whatsapp/webhook/"]
        assert checks.check_urls() == []
    finally:
        set_script_prefix("/")


@override_settings(ROOT_URLCONF="tests.sites.bare_urls")
def test_missing_urls_are_reported() -> None:
    assert [m.id for m in checks.check_urls()] == ["kapso_connect.W004"]


class InsideANamespace:
    urlpatterns = [
        path(
            "crm/",
            include(([path("whatsapp/", include("kapso_connect.urls"))], "crm"), namespace="acme"),
        )
    ]


class UnderAnotherName:
    urlpatterns = [
        path("whatsapp/", include(("kapso_connect.urls", "kapso_connect"), namespace="x"))
    ]


@override_settings(ROOT_URLCONF=InsideANamespace)
def test_urls_inside_another_namespace_are_reported() -> None:
    (message,) = checks.check_urls()
    assert message.id == "kapso_connect.E013"
    assert "inside the namespace 'acme'" in message.msg
    assert '"acme:kapso_connect:webhook"' in message.msg
    assert "outside of the include() with the namespace 'acme'" in str(message.hint)


@override_settings(ROOT_URLCONF=UnderAnotherName)
def test_urls_may_have_an_instance_namespace_of_their_own() -> None:
    assert checks.check_urls() == []


class Prefixed:
    urlpatterns = i18n_patterns(path("whatsapp/", include("kapso_connect.urls")))


@pytest.mark.parametrize(
    ("urlconf", "language", "expected"),
    [
        (Prefixed, "fr", ["kapso_connect.W028"]),
        (Prefixed, "en-us", []),
        (Prefixed, "de", []),
        ("tests.urls", "fr", []),
    ],
)
def test_language_code_that_urls_cannot_begin_with_is_reported(
    settings: Any, urlconf: Any, language: str, expected: list[str]
) -> None:
    settings.ROOT_URLCONF, settings.LANGUAGE_CODE = urlconf, language
    settings.LANGUAGES = [("en", "English"), ("de", "German")]
    with translation.override(language):  # as in a process in which nothing activates another
        assert [m.id for m in checks.check_urls()] == expected


OURS = path("whatsapp/", include("kapso_connect.urls"))
REST = path("api/", include("kapso_connect.api.urls"))
OWN = path("api/orders/", RedirectView.as_view(url="/"), name="own-orders")


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ([OURS, OWN, REST], []),
        ([OURS, path("api/whatsapp/", include("kapso_connect.api.urls")), OWN], []),
        ([OURS, REST, OWN], ["kapso_connect.W040"]),
        ([OURS, REST, path("api/", include([OWN]))], ["kapso_connect.W040"]),
        ([OURS, path("in/", include([REST, OWN]))], ["kapso_connect.W040"]),
        ([OURS, path("<int:pk>/", include([REST]))], ["kapso_connect.E016"]),
        ([OURS, re_path("^(?P<pk>[0-9]+)/", include([REST]))], ["kapso_connect.E016"]),
        ([OURS, path("<int:team>/", include([REST]))], []),
    ],
)
def test_urls_that_the_rest_api_hides_are_reported(
    settings: Any, patterns: list[Any], expected: list[str]
) -> None:
    settings.ROOT_URLCONF = type("Urls", (), {"urlpatterns": patterns})
    assert [m.id for m in checks.check_urls()] == expected


def test_rest_api_without_its_app_is_reported(settings: Any) -> None:
    settings.INSTALLED_APPS = [app for app in settings.INSTALLED_APPS if app != "rest_framework"]
    assert [m.id for m in checks.check_urls()] == ["kapso_connect.E011"]
    settings.ROOT_URLCONF = Subclassed
    assert checks.check_urls() == []


def test_static_files_without_a_url_are_reported(settings: Any, configure: Any) -> None:
    settings.STORAGES = {**settings.STORAGES, "staticfiles": {"BACKEND": MANIFEST}}
    logo, dark, share = "kapso_connect/pages.js", "kapso_connect/admin.css", STATIC
    configure(LOGO_URL=logo, LOGO_DARK_URL=dark, SHARE_IMAGE_URL=share)
    messages = checks.check_deployment()
    assert [m.id for m in messages] == ["kapso_connect.W030"] * 4
    files = ("kapso_connect/pages.css", logo, dark, share)
    for message, file in zip(messages, files, strict=True):
        assert file in message.msg


def test_missing_templates_are_reported(settings: Any) -> None:
    settings.TEMPLATES = []
    assert [m.id for m in checks.check_urls()] == ["kapso_connect.E007"]
    settings.TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates"}]
    assert [m.id for m in checks.check_urls()] == ["kapso_connect.E007"]


def test_broken_template_of_the_site_is_not_reported(settings: Any, tmp_path: Path) -> None:
    (tmp_path / "kapso_connect").mkdir()
    (tmp_path / "kapso_connect" / "connect.html").write_text("{% nonsense %}")
    settings.TEMPLATES = [{**settings.TEMPLATES[0], "DIRS": [tmp_path]}]
    assert checks.check_urls() == []


def test_missing_staticfiles_app_is_reported(settings: Any) -> None:
    settings.INSTALLED_APPS = [
        app for app in settings.INSTALLED_APPS if app != "django.contrib.staticfiles"
    ]
    assert [m.id for m in checks.check_urls()] == ["kapso_connect.W014"]


def test_process_without_urls_gets_no_messages_about_pages(settings: Any) -> None:
    del settings.ROOT_URLCONF
    settings.TEMPLATES = []
    settings.CACHES = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}
    settings.ALLOWED_HOSTS = ["elsewhere.example"]
    assert checks.check_urls() == []
    assert checks.check_deployment() == []


# The environment


def test_task_backend_that_runs_nothing_is_reported(settings: Any) -> None:
    package = "django" if django.VERSION >= (6, 0) else "django_tasks"
    module = "tasks.backends.dummy" if package == "django" else "backends.dummy"
    settings.TASKS = {"default": {"BACKEND": f"{package}.{module}.DummyBackend"}}
    assert ids() == {"W013"}


def test_sandbox_in_installed_apps_is_reported(settings: Any) -> None:
    settings.INSTALLED_APPS = [*settings.INSTALLED_APPS, "kapso_connect.sandbox"]
    assert ids() == set()
    assert ids(deploy=True) == {"W019"}


@pytest.mark.parametrize("backend", ["locmem.LocMemCache", "dummy.DummyCache"])
def test_cache_not_shared_between_processes_is_reported(settings: Any, backend: str) -> None:
    settings.CACHES = {"default": {"BACKEND": f"django.core.cache.backends.{backend}"}}
    assert ids() == set()
    assert ids(deploy=True) == {"W020"}


RECOMMENDED = {"transaction_mode": "IMMEDIATE", "timeout": 20}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"kapso_connect.W024"}),
        ({"transaction_mode": "IMMEDIATE"}, {"kapso_connect.W024"}),
        ({"timeout": 20}, {"kapso_connect.W024"}),
        ({**RECOMMENDED, "transaction_mode": "DEFERRED"}, {"kapso_connect.W024"}),
        ({**RECOMMENDED, "transaction_mode": None}, {"kapso_connect.W024"}),
        ({**RECOMMENDED, "timeout": 19.5}, {"kapso_connect.W024"}),
        (RECOMMENDED, set()),
        ({"transaction_mode": "immediate", "timeout": 60}, set()),
        ({**RECOMMENDED, "transaction_mode": "EXCLUSIVE"}, set()),
    ],
)
def test_options_that_let_writers_to_sqlite_fail_are_reported(
    options: dict[str, object], expected: set[str]
) -> None:
    with sqlite("db.sqlite3", options):
        assert {m.id for m in checks.check_settings()} == expected


def test_hint_for_sqlite_names_options_that_it_accepts(tmp_path: Path) -> None:
    with sqlite("db.sqlite3", {}):
        (message,) = checks.check_settings()
    (shown,) = re.findall(r"\{.*\}", str(message.hint))
    with sqlite(str(tmp_path / "db.sqlite3"), ast.literal_eval(shown)) as database:
        assert checks.check_settings() == []
        with database.cursor() as cursor:
            assert cursor.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        database.close()


@pytest.mark.parametrize("name", [":memory:", "file:memorydb_default?mode=memory&cache=shared"])
def test_sqlite_in_memory_needs_no_options(name: str) -> None:
    with sqlite(name, {}):
        assert checks.check_settings() == []


@contextmanager
def sqlite(name: str, options: Mapping[str, object]) -> Iterator[Any]:
    """Let the default database be this one of SQLite, to which nothing connects by itself."""
    usual: Any = connections["default"]
    given = {**usual.settings_dict, "NAME": name, "OPTIONS": {**options}}
    connections["default"] = DatabaseWrapper(given, "default")
    try:
        yield connections["default"]
    finally:
        connections["default"] = usual


@pytest.mark.parametrize(
    ("allowed", "expected"),
    [
        (["elsewhere.example"], {"W021"}),
        ([".site.example"], set()),
        (["SITE.example"], set()),
        (["*"], set()),
        ([], set()),
    ],
)
def test_public_host_missing_from_allowed_hosts_is_reported(
    settings: Any, allowed: list[str], expected: set[str]
) -> None:
    settings.ALLOWED_HOSTS = allowed
    assert ids(deploy=True) == expected


def test_extra_language_without_translations_is_reported(settings: Any, tmp_path: Path) -> None:
    settings.LOCALE_PATHS = [tmp_path]
    settings.LANGUAGE_CODE = "es"  # whose texts are shown instead of those that are missing
    settings.KAPSO_CONNECT = {**GOOD, "EXTRA_LANGUAGES": ["de", "fr-ca", "en-gb"]}
    with translation.override("hi"):
        found = [m for m in checks.check_settings() if m.id == "kapso_connect.W039"]
    assert [message.msg.partition(", but")[0] for message in found] == [
        "KAPSO_CONNECT['EXTRA_LANGUAGES'] has 'de'",
        "KAPSO_CONNECT['EXTRA_LANGUAGES'] has 'fr-ca'",
    ]
    for locale in ("de", "fr"):
        catalog = polib.POFile()
        catalog.metadata = {"Content-Type": "text/plain; charset=utf-8"}
        text = polib.POEntry(msgid="Connect WhatsApp", msgctxt="WhatsApp", msgstr="Verbinden")
        catalog.append(text)
        (tmp_path / locale / "LC_MESSAGES").mkdir(parents=True)
        catalog.save_as_mofile(str(tmp_path / locale / "LC_MESSAGES" / "django.mo"))
    assert ids(tags=OF_SETTINGS) == set()


def test_extra_language_that_cannot_be_used_is_reported(settings: Any) -> None:
    settings.KAPSO_CONNECT = {**GOOD, "EXTRA_LANGUAGES": ["de"]}
    settings.USE_I18N = False
    assert ids(tags=OF_SETTINGS) == {"W038"}
    settings.KAPSO_CONNECT = GOOD
    assert ids(tags=OF_SETTINGS) == set()


def configure_email(settings: Any, backend: str, timeout: int | None) -> None:
    if django.VERSION >= (6, 1):
        options = {"host": "localhost"} | ({} if timeout is None else {"timeout": timeout})
        settings.MAILERS = {"default": {"BACKEND": backend, "OPTIONS": options}}
    else:
        settings.EMAIL_BACKEND, settings.EMAIL_TIMEOUT = backend, timeout


def test_email_without_timeout_or_sender_is_reported(settings: Any) -> None:
    configure_email(settings, SMTP, None)
    assert ids() == set()
    assert ids(deploy=True) == {"W022", "W023"}
    configure_email(settings, SMTP, 10)
    assert ids(deploy=True) == {"W023"}
    settings.DEFAULT_FROM_EMAIL = "hello@site.example"
    assert ids(deploy=True) == set()


def test_email_without_timeout_lets_kapso_wait_too(settings: Any, configure: Any) -> None:
    configure_email(settings, SMTP, None)
    for is_on in (False, True):
        configure(EMAIL_CONNECTED=is_on)
        [found] = [m for m in checks.check_deployment() if m.id == "kapso_connect.W022"]
        assert ("EMAIL_CONNECTED" in found.msg) == is_on


@pytest.mark.parametrize(
    "given", [{"EMAIL_REMINDER_DAYS": 3}, {"EMAIL_FAILED": True}, {"EMAIL_CONNECTED": True}]
)
def test_emails_that_nobody_can_answer_are_reported(given: dict[str, Any], configure: Any) -> None:
    configure(CONTACT_URL="")
    assert ids() == set()
    configure(**given)
    assert ids() == {"W035"}
    configure(CONTACT_URL="tel:+14155550100")
    assert ids() == set()
    configure(CONTACT_URL="", EMAIL_REPLY_TO="crm@example.com")
    assert ids() == set()


@pytest.mark.skipif(django.VERSION < (6, 1), reason="Nothing is deprecated yet.")
def test_deprecated_email_settings_are_checked(settings: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with override_settings(EMAIL_BACKEND=SMTP):
            del settings.MAILERS
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                found = {m.id for m in checks.check_deployment()}
            settings.MAILERS = {}
    assert found == {"kapso_connect.W022", "kapso_connect.W023"}


def test_unusable_email_backend_is_left_to_django(settings: Any) -> None:
    configure_email(settings, "nowhere.Backend", None)
    assert checks.check_deployment() == []


@pytest.mark.slow
def test_task_backend_without_our_queue_fails_at_startup() -> None:
    """No check can report it, since the task itself cannot be defined."""
    package = "django.tasks" if django.VERSION >= (6, 0) else "django_tasks"
    code = (
        "from tests.settings import *\n"
        f"TASKS = {{'default': {{'BACKEND': '{package}.backends.immediate.ImmediateBackend',"
        " 'QUEUES': ['low']}}\n"
        "import django; from django.conf import settings\n"
        "settings.configure(**{k: v for k, v in globals().items() if k.isupper()})\n"
        "django.setup()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "KAPSO_TEST_DATABASE_URL": "sqlite://:memory:"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Queue 'default' is not valid for backend" in done.stderr
