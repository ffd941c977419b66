"""The customer's own URL as a QR code, for a phone."""

from __future__ import annotations

import logging
import sys
from typing import Any

import pytest
from django.db import OperationalError
from django.test import Client
from django.urls import Resolver404, resolve

from kapso_connect.models import Customer, SetupLink, new_connect_key
from kapso_connect.onboarding.connect_urls import connect_path, connect_qr_path, connect_url
from kapso_connect.qr import qr_svg

from ..factories import failing_queries, make_customer, make_link

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def link() -> SetupLink:
    return make_link(make_customer(connect_key=new_connect_key()))


@pytest.fixture
def path(link: SetupLink) -> str:
    return connect_qr_path(link.customer)


def token_in(path: str) -> str:
    return path.split("/")[-2]


def test_picture_is_the_customers_own_url(link: SetupLink, path: str, client: Client) -> None:
    response = client.get(path)
    assert response.status_code == 200
    assert response["Content-Type"] == "image/svg+xml"
    assert response.content.decode() == qr_svg(connect_url(link.customer))


def test_picture_is_as_private_as_the_page(path: str, client: Client, settings: Any) -> None:
    settings.SECURE_CONTENT_TYPE_NOSNIFF = False  # which would set the header, too
    response = client.get(path)
    assert "no-store" in response["Cache-Control"]
    assert response["X-Content-Type-Options"] == "nosniff"
    assert response["Referrer-Policy"] == "no-referrer"
    assert response["X-Robots-Tag"] == "noindex, nofollow"
    assert not response.cookies


def test_invitation_has_the_pictures_url(link: SetupLink, path: str, client: Client) -> None:
    assert client.get(connect_path(link.customer)).context["qr_url"] == path


def test_without_segno_there_is_no_picture(
    link: SetupLink, path: str, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "segno", None)
    page = client.get(connect_path(link.customer))
    assert (page.status_code, page.context["qr_url"]) == (200, "")
    assert client.get(path).status_code == 404


def test_a_site_may_leave_the_picture_out(link: SetupLink, client: Client, settings: Any) -> None:
    settings.ROOT_URLCONF = "tests.sites.without_qr_urls"
    with pytest.raises(Resolver404):
        resolve("/whatsapp/connect/x/qr.svg")
    page = client.get(connect_path(link.customer))
    assert (page.status_code, page.context["qr_url"]) == (200, "")


@pytest.mark.parametrize("case", ["unknown", "withdrawn", "deleted", "not invited yet", "damaged"])
def test_other_tokens_have_none_and_are_in_no_log(
    link: SetupLink, path: str, client: Client, caplog: pytest.LogCaptureFixture, case: str
) -> None:
    caplog.set_level(logging.DEBUG)
    match case:
        case "unknown":
            path = "/whatsapp/connect/unknown-token/qr.svg"
        case "damaged":
            path = path.replace("/qr.svg", "x/qr.svg")
        case "withdrawn":
            Customer.objects.update(connect_key=None)
        case "not invited yet":
            Customer.objects.update(latest_setup_link=None)
        case "deleted":
            link.customer.delete()
    response = client.get(path)
    assert (response.status_code, response.content) == (404, b"")
    assert response["Referrer-Policy"] == "no-referrer"
    assert [record for record in caplog.records if record.name.startswith("django.request")] == []
    assert token_in(path) not in caplog.text


def test_token_is_in_no_log_after_an_error(
    path: str, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    with failing_queries(OperationalError("away"), "SELECT", Customer):
        assert client.get(path).status_code == 503
    assert {record.name for record in caplog.records} == {"kapso_connect.page"}
    assert token_in(path) not in caplog.text
    assert client.post(path).status_code == 405
    assert token_in(path) not in caplog.text


def test_the_page_knows_browsers_inside_of_apps(link: SetupLink, client: Client) -> None:
    page = client.get(connect_path(link.customer))
    assert page.context["is_in_app_browser"] is False
    shown = f'dir="ltr">{connect_url(link.customer)}<'
    assert shown not in page.content.decode()
    agent = "Mozilla/5.0 (Linux; Android 14; SM-A146U; wv) AppleWebKit/537.36"
    page = client.get(connect_path(link.customer), headers={"User-Agent": agent})
    assert page.context["is_in_app_browser"] is True
    assert shown in page.content.decode(), "to be copied to another browser"
    assert "no-store" in page["Cache-Control"]
