"""What the customers' pages show of the site."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest
from django.contrib.staticfiles import finders
from django.http import HttpRequest, HttpResponse
from django.template import engines
from django.test import RequestFactory
from django.utils import translation
from django.views.generic import TemplateView

from kapso_connect.branding import BrandingMixin, absolute_url, base_context, site_branding

MANIFEST = "django.contrib.staticfiles.storage.ManifestStaticFilesStorage"
SITE = "https://site.example"
DEFAULT_PICTURE = f"{SITE}/static/kapso_connect/share.png"


@pytest.mark.parametrize(
    ("given", "picture"),
    [
        ({}, DEFAULT_PICTURE),
        ({"LOGO_URL": "crm/logo.svg"}, DEFAULT_PICTURE),
        ({"LOGO_URL": "/media/logo"}, DEFAULT_PICTURE),
        ({"LOGO_URL": "crm/logo.png"}, f"{SITE}/static/crm/logo.png"),
        ({"LOGO_URL": "/media/Logo.JPG?v=2"}, f"{SITE}/media/Logo.JPG?v=2"),
        ({"LOGO_URL": f"{SITE}/media/logo.jpeg"}, f"{SITE}/media/logo.jpeg"),
        ({"SHARE_IMAGE_URL": "crm/share.jpg"}, f"{SITE}/static/crm/share.jpg"),
        ({"SHARE_IMAGE_URL": "/a.png", "LOGO_URL": "/b.png"}, f"{SITE}/a.png"),
        ({"PUBLIC_URL": ""}, ""),
        ({"PUBLIC_URL": "", "LOGO_URL": "//[", "SHARE_IMAGE_URL": "https://["}, ""),
    ],
)
def test_picture_of_a_preview(configure: Any, given: dict[str, str], picture: str) -> None:
    configure(**given)
    assert base_context()["share_image_url"] == picture


def test_picture_that_a_storage_does_not_have_is_replaced_by_the_next(
    configure: Any, settings: Any
) -> None:
    settings.STORAGES = {**settings.STORAGES, "staticfiles": {"BACKEND": MANIFEST}}
    configure(SHARE_IMAGE_URL="crm/away.png", LOGO_URL="/media/logo.png")
    assert base_context()["share_image_url"] == f"{SITE}/media/logo.png"
    configure(SHARE_IMAGE_URL="crm/away.png", LOGO_URL="crm/gone.png")
    assert base_context()["share_image_url"] == "", "nor has it the package's own"


@pytest.mark.parametrize(
    ("public_url", "static_url", "picture"),
    [
        (SITE, "//cdn.example/", "https://cdn.example/kapso_connect/share.png"),
        ("http://localhost:8000", "//cdn.example/", "http://cdn.example/kapso_connect/share.png"),
        (SITE, "https://cdn.example/", "https://cdn.example/kapso_connect/share.png"),
    ],
)
def test_static_files_may_be_on_another_host(
    configure: Any, settings: Any, public_url: str, static_url: str, picture: str
) -> None:
    configure(PUBLIC_URL=public_url)
    settings.STATIC_URL = static_url
    assert base_context()["share_image_url"] == picture


def test_no_url_stays_none() -> None:
    assert absolute_url("") == ""


def test_picture_of_the_package_has_the_size_that_previews_need() -> None:
    picture = Path(str(finders.find("kapso_connect/share.png"))).read_bytes()
    assert struct.unpack(">II", picture[16:24]) == (1200, 630)
    assert len(picture) < 20_000


def test_the_logo_is_the_icon(configure: Any) -> None:
    assert base_context()["icon_url"] == ""
    configure(LOGO_URL="crm/logo.svg")
    assert base_context()["icon_url"] == "/static/crm/logo.svg"


@pytest.mark.parametrize(
    ("active", "ours", "own"),
    [
        ("en", ("en", "ltr"), ("en", "ltr")),
        ("ar", ("ar", "rtl"), ("ar", "rtl")),
        ("pt-br", ("pt-BR", "ltr"), ("pt-br", "ltr")),
        # This package's texts are in English then, the site's own are not.
        ("de", ("en", "ltr"), ("de", "ltr")),
        ("ur", ("en", "ltr"), ("ur", "rtl")),
    ],
)
def test_language_of_our_pages_and_of_a_sites_own(
    active: str, ours: tuple[str, str], own: tuple[str, str]
) -> None:
    with translation.override(active):
        assert (base_context()["language"], base_context()["direction"]) == ours
        assert (site_branding()["language"], site_branding()["direction"]) == own


def test_without_a_language_a_sites_own_page_is_in_that_of_the_site(settings: Any) -> None:
    settings.LANGUAGE_CODE = "de"
    with translation.override(None):
        assert site_branding()["language"] == "de"


def test_a_sites_own_view_has_our_look(configure: Any) -> None:
    configure(SITE_NAME="Crumb & Co.", LOGO_URL="crm/logo.svg")
    source = '{% extends "kapso_connect/base.html" %}{% block content %}{{ hello }}{% endblock %}'

    class Welcome(BrandingMixin, TemplateView):
        extra_context = {"hello": "Willkommen"}

        def render_to_response(self, context: Any, **kwargs: Any) -> HttpResponse:
            return HttpResponse(engines["django"].from_string(source).render(context, self.request))

    request: HttpRequest = RequestFactory().get("/")
    with translation.override("de"):
        response = Welcome.as_view()(request)
    assert isinstance(response, HttpResponse)
    page = response.content.decode()
    assert '<html lang="de" dir="ltr">' in page
    assert "Crumb &amp; Co." in page
    assert "/static/crm/logo.svg" in page
    assert "/static/kapso_connect/pages.css" in page
    assert "Willkommen" in page
