"""Signed URLs of customers, while SECRET_KEY is rotated, and inside ``i18n_patterns``."""

from __future__ import annotations

from typing import Any

import pytest
from django.conf.urls.i18n import i18n_patterns
from django.core import mail
from django.core.signing import BadSignature
from django.test import Client, RequestFactory, override_settings
from django.urls import include, path
from django.utils import translation

from kapso_connect import onboarding
from kapso_connect.onboarding import invitations
from kapso_connect.onboarding.connect_urls import (
    connect_path,
    customer_from_token,
    failure_token,
    returning_customer,
    with_customer_token,
)
from kapso_connect.onboarding.setup_links import build_options
from kapso_connect.testing import Sandbox
from kapso_connect.webhooks.registration import webhook_url

from ..cases import combinations
from ..factories import make_customer, make_link

pytestmark = pytest.mark.django_db


def token(url: str) -> str:
    return url.rstrip("/").rpartition("/")[2]


def test_urls_stay_valid_while_the_secret_key_is_rotated(settings: Any) -> None:
    customer = make_customer(connect_key="mine")
    settings.SECRET_KEY = "the-old-key"
    url, next_url = connect_path(customer), with_customer_token("/next/", customer)
    request = RequestFactory().get(next_url)

    settings.SECRET_KEY, settings.SECRET_KEY_FALLBACKS = "the-new-key", ["the-old-key"]
    assert customer_from_token(token(url)) == customer
    assert returning_customer(request) == customer
    assert connect_path(customer) != url, "new URLs are signed with the new key"

    settings.SECRET_KEY_FALLBACKS = []
    assert returning_customer(request) is None
    with pytest.raises(BadSignature):
        customer_from_token(token(url))
    assert customer_from_token(token(connect_path(customer))) == customer


class Prefixed:
    urlpatterns = i18n_patterns(path("whatsapp/", include("kapso_connect.urls")))


class PrefixedExceptDefault:
    urlpatterns = i18n_patterns(
        path("whatsapp/", include("kapso_connect.urls")), prefix_default_language=False
    )


SITE_LANGUAGES = {
    "en": ("en-us", ["en", "de"]),
    "de": ("de", ["en", "de"]),
    "other": ("fr", ["en", "de"]),
    "without its own": ("en-us", ["de"]),
}


@pytest.mark.parametrize(
    ("urlconf", "site_languages", "active"),
    combinations([Prefixed, PrefixedExceptDefault], SITE_LANGUAGES, [None, "en-us", "es", "de"]),
)
def test_urls_made_in_any_language_are_found(
    client: Client,
    settings: Any,
    urlconf: Any,
    site_languages: tuple[str, list[str]],
    active: str | None,
) -> None:
    """A command or a worker may have any language active, also one that the site does not have."""
    site, languages = site_languages
    settings.ROOT_URLCONF = urlconf
    settings.LANGUAGE_CODE, settings.LANGUAGES = site, [(code, code) for code in languages]
    customer = make_customer(connect_key="mine", language="es", email="ada@example.com")
    link = make_link(customer)
    with translation.override(active) if active else translation.override(None, deactivate=True):
        options = build_options(customer, None)
        urls = [connect_path(customer), str(options.success_redirect_url), webhook_url()]
        onboarding.send_invitation(customer, link)
    paths = [url.removeprefix("https://site.example") for url in urls]
    assert client.get(paths[0], headers={"Accept-Language": "es"}).status_code == 200
    assert client.get(paths[1]).status_code == 400, "our page says what is wrong"
    assert client.post(paths[2]).status_code == 401
    assert f"https://site.example{connect_path(customer)}" in mail.outbox[0].body or any(
        f"https://site.example/{code}/whatsapp/connect/" in mail.outbox[0].body
        for code in languages
    )


@override_settings(ROOT_URLCONF=Prefixed, LANGUAGES=[("en", "English")])
def test_page_in_the_language_of_the_browser_links_to_urls_of_the_site(client: Client) -> None:
    customer = make_customer(connect_key="mine", language="es")
    make_link(customer)
    page = client.get(connect_path(customer)).content.decode()
    assert 'lang="es"' in page
    assert "/es/" not in page
    assert f'action="{connect_path(customer)}"' in page


@override_settings(ROOT_URLCONF=Prefixed, LANGUAGES=[("en", "English"), ("de", "German")])
def test_links_of_a_batch_come_back_with_a_token_in_the_language_of_who_invites(
    sandbox: Sandbox,
) -> None:
    """Kapso is asked in other threads, where another language is active."""
    customer = make_customer(kapso_id=None)
    batch = invitations.make_batch([customer.pk])
    assert invitations.start(batch)
    with translation.override("de"):
        invitations.work(batch.pk)
    [sent] = [r["body"] for r in sandbox.requests() if r["path"].endswith("/setup_links")]
    url = sent["setup_link"]["failure_redirect_url"]
    customer.refresh_from_db()
    assert url == f"https://site.example/de/whatsapp/failed/{failure_token(customer)}/"
