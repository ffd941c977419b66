from __future__ import annotations

import sys
from typing import Any

import pytest
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.test import RequestFactory, override_settings
from django.utils import translation
from django.utils.translation import gettext_lazy
from django.views.debug import ExceptionReporter

from kapso_connect.conf import READERS, Conf, get_conf

PAGES = ["PRIVACY_URL", "TERMS_URL"]
PICTURES = ["LOGO_URL", "LOGO_DARK_URL", "SHARE_IMAGE_URL"]
SENTENCES = ["INVITATION_TEXT", "COST_TEXT", "NEXT_TEXT"]
TEXTS = [
    *("API_KEY", "SITE_NAME", "NEXT_URL", "CONTACT_URL", "API_BASE_URL"),
    *PAGES,
    *PICTURES,
    *SENTENCES,
]


def test_defaults() -> None:
    with override_settings(KAPSO_CONNECT={}):
        conf = get_conf()
    assert conf.api_base_url == "https://api.kapso.ai"
    assert conf.webhook_secret == ()
    assert conf.request_budget == 5


def test_missing_setting_is_all_defaults() -> None:
    with override_settings(KAPSO_CONNECT={}):
        del settings.KAPSO_CONNECT
        get_conf.cache_clear()  # Django tells nobody of a deletion
        assert get_conf() == Conf()


def test_override_settings_takes_effect_and_ends() -> None:
    with override_settings(KAPSO_CONNECT={"API_KEY": "other"}):
        assert get_conf().api_key == "other"
    assert get_conf().api_key == "test-api-key"


@pytest.mark.parametrize(
    ("given", "secrets"),
    [
        ("a", ("a",)),
        (["a", "b"], ("a", "b")),
        (("a", ""), ("a",)),
        ("", ()),
        ([""], ()),
        (" a\r\n", ("a",)),
        (["a\n", " \t", "\u00a0b"], ("a", "b")),
        (" \n", ()),
    ],
)
def test_webhook_secret_is_one_or_several_and_never_empty(given, secrets) -> None:
    with override_settings(KAPSO_CONNECT={"WEBHOOK_SECRET": given}):
        assert get_conf().webhook_secret == secrets


@pytest.mark.parametrize("name", READERS)
def test_none_is_the_same_as_left_out(name: str) -> None:
    """The environment variable that a setting is read from may be missing."""
    with override_settings(KAPSO_CONNECT={}):
        default = get_conf()
    with override_settings(KAPSO_CONNECT={name: None}):
        assert get_conf() == default


@pytest.mark.parametrize("name", [*TEXTS, "PUBLIC_URL", "WEBHOOK_SECRET", "EMAIL_REPLY_TO"])
def test_an_empty_text_is_the_same_as_left_out(name: str) -> None:
    """The line of a variable in a file may have nothing behind the equals sign."""
    with override_settings(KAPSO_CONNECT={name: " \n"}):
        assert get_conf() == Conf()


@pytest.mark.parametrize("name", ["SITE_NAME", "CONTACT_URL", *PAGES, *PICTURES, *SENTENCES])
def test_what_pages_show_can_be_shown(name: str) -> None:
    """A variable of an environment that is not UTF-8 has characters that no page can contain."""
    with override_settings(KAPSO_CONNECT={name: "/s\udcfc\u00df\u202e"}):
        assert ascii(getattr(get_conf(), name.lower())) == ascii("/s\u00df")


@pytest.mark.parametrize("name", ["WEBHOOK_SECRET", "OBSERVERS", "API_PERMISSIONS"])
def test_none_in_a_list_is_named(name: str) -> None:
    with (
        override_settings(KAPSO_CONNECT={name: ["the-secret", None]}),
        pytest.raises(ImproperlyConfigured, match="has None in its list: is an envir") as caught,
    ):
        get_conf()
    assert name in str(caught.value)
    assert "the-secret" not in str(caught.value)


def test_blanks_around_texts_are_ignored() -> None:
    given = {name: f" /{name}\n" for name in TEXTS}
    with override_settings(KAPSO_CONNECT={**given, "OBSERVERS": [" a.b\n", ""]}):
        conf = get_conf()
    assert [getattr(conf, name.lower()) for name in TEXTS] == [f"/{name}" for name in TEXTS]
    assert conf.observers == ("a.b",)


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("url", ["https://a.example/privacy", "http://localhost/", "/privacy/"])
def test_pages_are_urls_or_paths(name: str, url: str) -> None:
    with override_settings(KAPSO_CONNECT={name: url}):
        assert getattr(get_conf(), name.lower()) == url


@pytest.mark.parametrize("name", SENTENCES)
def test_translated_sentences_are_read_when_they_are_shown(name: str) -> None:
    """The setting is read once, for customers of all languages."""
    with override_settings(KAPSO_CONNECT={name: gettext_lazy("Yes")}):
        sentence = getattr(get_conf(), name.lower())
    shown = {}
    for language in ("en", "es"):
        with translation.override(language):
            shown[language] = str(sentence)
    assert shown == {"en": "Yes", "es": "Sí"}


def test_codes_of_languages_are_in_lower_case() -> None:
    with override_settings(KAPSO_CONNECT={"EXTRA_LANGUAGES": [" de", "zh-Hans", ""]}):
        assert get_conf().extra_languages == ("de", "zh-hans")


def test_urls_lose_their_trailing_slash() -> None:
    with override_settings(KAPSO_CONNECT={"PUBLIC_URL": " https://a.example/ "}):
        assert get_conf().public_url == "https://a.example"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("API_KEY", 7),
        ("API_BASE_URL", b"https://x"),
        ("WEBHOOK_SECRET", 7),
        ("WEBHOOK_SECRET", ["a", 7]),
        ("SETUP_LINK_DEFAULTS", []),
        ("REQUEST_BUDGET", 0),
        ("REQUEST_BUDGET", "5"),
        ("REQUEST_BUDGET", True),
        ("REQUEST_BUDGET", float("nan")),
        ("API_BUDGET", float("inf")),
        ("LEASE_SECONDS", 10**400),
        ("ADOPT_UNKNOWN_CUSTOMERS", "False"),
        ("ADOPT_UNKNOWN_CUSTOMERS", 0),
        ("RETRY_LIMIT", 10**10),
        ("MAX_WEBHOOK_BYTES", 1.5),
        ("RETRY_LIMIT", -1),
        ("API_PERMISSIONS", "one.path"),
        ("API_PERMISSIONS", [object]),
        ("API_THROTTLE_RATES", ["30/min"]),
        ("API_THROTTLE_RATES", {"reading": "30/min"}),
        ("API_THROTTLE_RATES", {"read": "30"}),
        ("API_THROTTLE_RATES", {"read": "0/min"}),
        ("API_THROTTLE_RATES", {"read": 30}),
        ("LOGO_HAS_NAME", "True"),
        ("SHOW_INVITER", 1),
        ("EMAIL_FAILED", "no"),
        ("EMAIL_CONNECTED", "yes"),
        ("EMAIL_REMINDER_DAYS", 0),
        ("EMAIL_REMINDER_DAYS", 1.5),
        ("EMAIL_REMINDER_DAYS", True),
        ("EMAIL_REMINDER_DAYS", 366),
        ("EMAIL_REPLY_TO", "Ada"),
        ("EMAIL_REPLY_TO", "Ada <ada@example.com>"),
        ("EMAIL_REPLY_TO", ["ada@example.com"]),
        ("PRIVACY_URL", "privacy/"),
        ("PRIVACY_URL", "mailto:ada@example.com"),
        ("TERMS_URL", "//elsewhere.example/"),
        ("TERMS_URL", "javascript:alert(1)"),
        ("INVITATION_TEXT", 7),
        ("COST_TEXT", {"en": "Nothing"}),
        ("NEXT_TEXT", ["a", "b"]),
        ("EXTRA_LANGUAGES", "de"),
        ("EXTRA_LANGUAGES", ["German"]),
        ("EXTRA_LANGUAGES", ["de_AT"]),
        ("EXTRA_LANGUAGES", ["de", None]),
        ("API_KYE", "typo"),
    ],
)
def test_wrong_values_are_named(name: str, value: object) -> None:
    with (
        override_settings(KAPSO_CONNECT={name: value}),
        pytest.raises(ImproperlyConfigured, match=name),
    ):
        get_conf()


def test_one_throttle_rate_leaves_the_others_as_they_are() -> None:
    with override_settings(KAPSO_CONNECT={"API_THROTTLE_RATES": {"read": None}}):
        rates = get_conf().api_throttle_rates
    assert rates == {"read": None, "write": "60/min", "kapso": "30/min"}


def test_setting_must_be_a_dict() -> None:
    with (
        override_settings(KAPSO_CONNECT="key"),
        pytest.raises(ImproperlyConfigured, match="must be a dict"),
    ):
        get_conf()


def test_secrets_stay_out_of_the_repr() -> None:
    with override_settings(KAPSO_CONNECT={"API_KEY": "hush", "WEBHOOK_SECRET": ["hush2"]}):
        assert "hush" not in repr(get_conf())


def test_error_report_of_a_wrong_setting_has_no_secret(configure: Any) -> None:
    webhook = {"url": "/messages/", "secret": "secret of messages", "kind": "other"}
    configure(API_KEY="the key", WEBHOOK_SECRET="secret of webhooks", NUMBER_WEBHOOK=webhook)
    request = RequestFactory().get("/")
    try:
        get_conf()
    except ImproperlyConfigured:
        report = ExceptionReporter(request, *sys.exc_info())
    frames = report.get_traceback_data()["frames"]
    shown = str([frame["vars"] for frame in frames if "kapso_connect/conf" in frame["filename"]])
    assert shown
    for secret in ("the key", "secret of webhooks", "secret of messages"):
        assert secret not in shown
