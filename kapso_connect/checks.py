"""System checks: what can be known of a wrong installation without asking the network."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register  # noqa: A004
from django.core.exceptions import ImproperlyConfigured
from django.urls import NoReverseMatch, reverse

from .conf import Conf, get_conf
from .onboarding.links import own_page
from .options import InvalidOptions, SetupLinkOptions
from .theme import READABLE, full_theme, hard_to_read


@register("kapso_connect")
def check_settings(**kwargs: Any) -> list[CheckMessage]:
    try:
        conf = get_conf()
    except ImproperlyConfigured as error:
        return [Error(str(error), id="kapso_connect.E001")]
    return [*_missing(conf), *_public_url(conf), *_link_defaults(conf), *_pages(conf)]


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
    return []


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
                id="kapso_connect.E002",
            )
        ]
    return []


def _link_defaults(conf: Conf) -> list[CheckMessage]:
    try:
        SetupLinkOptions.build(conf.setup_link_defaults)
    except InvalidOptions as error:
        return [
            Error(
                f"KAPSO_CONNECT['SETUP_LINK_DEFAULTS']: {error}",
                id="kapso_connect.E003",
            )
        ]
    return []


def _pages(conf: Conf) -> list[CheckMessage]:
    messages: list[CheckMessage] = []
    try:
        own_page(conf.next_url)
    except InvalidOptions:
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
        colors = SetupLinkOptions.build(conf.setup_link_defaults).theme_config or {}
    except InvalidOptions:
        colors = {}  # E003 says it
    for text, behind, contrast in hard_to_read(full_theme(colors)):
        messages.append(
            Warning(
                f"The theme_config of KAPSO_CONNECT['SETUP_LINK_DEFAULTS'] is hard to read: "
                f"{text} on {behind} has a contrast of {contrast:.1f}.",
                hint=f"Choose colours with a contrast of at least {READABLE}.",
                id="kapso_connect.W007",
            )
        )
    return messages


@register("kapso_connect", deploy=True)
def check_deployment(**kwargs: Any) -> list[CheckMessage]:
    try:
        conf = get_conf()
    except ImproperlyConfigured:
        return []  # E001 says it
    messages: list[CheckMessage] = []
    if conf.public_url.startswith("http://"):
        messages.append(
            Warning(
                "KAPSO_CONNECT['PUBLIC_URL'] is not https: Kapso delivers webhooks to https only.",
                id="kapso_connect.W005",
            )
        )
    if not conf.api_base_url.startswith("https://"):
        messages.append(
            Warning(
                "KAPSO_CONNECT['API_BASE_URL'] is not https: the API key travels in the clear.",
                hint="Leave it out; another address is only for the sandbox.",
                id="kapso_connect.W006",
            )
        )
    return messages
