"""Django's own documentation of a site, in its admin: every page about this package opens."""

from __future__ import annotations

import re
from typing import Any

import pytest
from django.contrib import admin
from django.test import Client
from django.urls import include, path

from kapso_connect.api.tenants import TenantMixin
from kapso_connect.api.urls import urls_for

from ..sites.host_site.admin import other_site

pytestmark = pytest.mark.django_db


@pytest.fixture
def docs(settings: Any, admin_client: Client) -> Client:
    pytest.importorskip("docutils")
    metrics = pytest.importorskip("kapso_connect.monitoring.metrics").metrics
    settings.INSTALLED_APPS = ["django.contrib.admindocs", *settings.INSTALLED_APPS]
    urlpatterns = [
        path("admin/doc/", include("django.contrib.admindocs.urls")),
        path("admin/", admin.site.urls),
        path("other-admin/", other_site.urls),
        path("whatsapp/", include("kapso_connect.urls")),
        path("api/whatsapp/", include("kapso_connect.api.urls")),
        path("api/mine/", include(urls_for(TenantMixin), namespace="mine")),
        path("metrics/", metrics),
    ]
    settings.ROOT_URLCONF = type("urls", (), {"urlpatterns": urlpatterns})
    return admin_client


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "fewest"), [("views", 20), ("models", 8)])
def test_every_page_opens(docs: Client, kind: str, fewest: int) -> None:
    index = docs.get(f"/admin/doc/{kind}/").text
    pages = set(re.findall(r'href="(/admin/doc/\w+/(?:kapso_connect|host_site)[^"#]+)"', index))
    assert len(pages) >= fewest
    for page in pages:
        response = docs.get(page)
        assert response.status_code == 200, page
        # What docutils cannot read.
        assert "system-message" not in response.text, page
