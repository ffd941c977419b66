"""What a chat shows of a connect URL that is sent in it, and what it asks for first."""

from __future__ import annotations

import socket
from html.parser import HTMLParser
from typing import Any
from urllib.parse import urlsplit

import pytest
from django.test import Client
from django.utils.translation import gettext_lazy
from pytest_django.live_server_helper import LiveServer

from kapso_connect import onboarding
from kapso_connect.models import Customer, SetupLink, new_connect_key
from kapso_connect.onboarding.connect_urls import connect_path, connect_qr_path
from kapso_connect.testing import Sandbox

from ..factories import make_connection, make_customer, make_link
from .test_views import failed, success, text

pytestmark = pytest.mark.django_db(transaction=True)

NAME = "Bäckerei Süß"


class Head(HTMLParser):
    """The properties of a page for previews, and its title."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.properties: dict[str, str] = {}
        self.title = ""
        self._in_title = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self._in_title = tag == "title"
        if tag == "meta" and given.get("property"):
            self.properties[str(given["property"])] = str(given.get("content"))

    def handle_data(self, data: str) -> None:
        if self._in_title:
            self.title += data
            self._in_title = False


@pytest.fixture
def link() -> SetupLink:
    return make_link(make_customer(name=NAME, connect_key=new_connect_key()))


def preview(client: Client, link: SetupLink, **headers: str) -> Head:
    agent = {"User-Agent": "WhatsApp/2.23.18.78 i", **headers}
    return Head(text(client.get(connect_path(link.customer), headers=agent)))


def test_preview_has_title_description_and_an_absolute_picture(
    link: SetupLink, client: Client, configure: Any
) -> None:
    configure(SITE_NAME='Crumb & "Co."')
    head = preview(client, link)
    assert head.properties["og:title"] == 'Connect your WhatsApp number to Crumb & "Co."'
    assert head.properties["og:description"] == (
        "It takes about five minutes, on a phone or on a computer."
    )
    assert head.properties["og:site_name"] == 'Crumb & "Co."'
    assert head.properties["og:type"] == "website"
    picture = head.properties["og:image"]
    assert picture == "https://site.example/static/kapso_connect/share.png"


def test_preview_has_the_sites_own_words_and_picture_in_the_customers_language(
    link: SetupLink, client: Client, configure: Any
) -> None:
    configure(INVITATION_TEXT=gettext_lazy("Yes"), SHARE_IMAGE_URL="crm/share.jpg")
    link.options = {"language": "es"}
    link.save()
    head = preview(client, link, **{"Accept-Language": "en"})
    assert head.properties["og:description"] == "Sí"
    assert head.properties["og:image"] == "https://site.example/static/crm/share.jpg"


def test_preview_names_no_customer_and_has_no_token(
    link: SetupLink, client: Client, configure: Any
) -> None:
    configure(SHOW_INVITER=True)
    head = preview(client, link)
    words = "".join([head.title, *head.properties.values()])
    assert words
    assert NAME not in words
    assert link.url not in words
    assert connect_path(link.customer).split("/")[-2] not in words
    assert str(link.customer.connect_key) not in words
    assert link.kapso_id not in words
    assert "og:url" not in head.properties


@pytest.fixture
def pages(sandbox: Sandbox, client: Client) -> dict[str, tuple[str, int]]:
    """The path of each page that a GET request can show, and its status."""
    invited = make_link(make_customer(connect_key=new_connect_key()))
    connection = make_connection(display_phone_number="+442071838750")
    connected = make_link(connection.customer)
    waiting = make_link(make_customer())
    sandbox.faults(api=[{"match": ".*", "kind": "status", "status": 503}])
    gone = connect_path(Customer(connect_key="gone"))
    invitation = connect_path(invited.customer)
    return {
        "connect": (invitation, 200),
        "qr": (connect_qr_path(invited.customer), 200),
        "mistyped": (f"{invitation[:-1]}%3E", 302),
        "success": (success(connected, connection.phone_number_id), 200),
        "waiting": (success(waiting, "1234"), 202),
        "failed": (failed(invited, "link_expired"), 200),
        "invalid": ("/whatsapp/connect/x/", 404),
        "malformed": ("/whatsapp/success/?setup_link_id=%00", 400),
        "withdrawn": (gone, 410),
        "no QR code": (gone + "qr.svg", 404),
        "theme": ("/whatsapp/theme/112233-----------.css", 200),
    }


PAGES = ["connect", "qr", "mistyped", "success", "waiting", "failed", "invalid", "malformed"]
PAGES += ["withdrawn", "no QR code", "theme"]


@pytest.mark.parametrize("page", PAGES)
def test_head_answers_as_get_does_without_a_body(
    live_server: LiveServer, pages: dict[str, tuple[str, int]], page: str
) -> None:
    path, status = pages[page]
    head, get = ask(live_server, "HEAD", path), ask(live_server, "GET", path)
    assert get[0] == str(status)
    assert head[:2] == get[:2]
    assert head[2] == b""
    assert sorted(pages) == sorted(PAGES)


def ask(server: LiveServer, method: str, path: str) -> tuple[str, dict[str, str], bytes]:
    """Return the status, the headers but for the times in them, and the body. The server has
    finished with the request then."""
    address = urlsplit(server.url)
    with socket.create_connection((address.hostname, address.port), timeout=20) as connection:
        lines = [f"{method} {path} HTTP/1.1", f"Host: {address.netloc}", "Connection: close"]
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        with connection.makefile("rb") as answer:
            head, _, body = answer.read().partition(b"\r\n\r\n")
    status, *fields = head.decode().split("\r\n")
    headers = dict(field.split(": ", 1) for field in fields)
    for name in ("Date", "Expires"):
        headers.pop(name, None)
    if headers.get("Content-Length") == "0":
        del headers["Content-Length"]  # which Django's server says after GET only
    return status.split()[1], headers, body


def test_head_of_an_invitation_asks_kapso_nothing(sandbox: Sandbox, client: Client) -> None:
    link = onboarding.create_setup_link(make_customer(kapso_id=None))
    asked = len(sandbox.requests())
    assert client.head(connect_path(link.customer)).status_code == 200
    assert len(sandbox.requests()) == asked
