"""Where the site writes numbers with separators, ids are still written as they are."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from typing import Any

import pytest
from django.contrib import admin
from django.core import mail
from django.db.models import Model
from django.test import Client
from django.urls import reverse
from django.utils import translation

from kapso_connect import onboarding
from kapso_connect.api.urls import versioned_patterns
from kapso_connect.models import (
    Connection,
    Customer,
    SetupLink,
    TimelineEvent,
    WebhookEvent,
)
from kapso_connect.onboarding.connect_urls import connect_path

from . import conftest
from .admin.every_page import EveryRow
from .factories import make_customer, make_link
from .sites.host_site.models import Bakery

pytestmark = pytest.mark.django_db

LANGUAGES = ["en", "de", "fr", "hi", "ar"] if conftest.THOROUGH else ["de"]
UNCHECKED = {"alt", "aria-label", "content", "d", "data-copied", "placeholder", "title", "viewbox"}
"""Attributes that people read, and those of drawings."""
SEPARATED = re.compile(
    r"(?<!\d)\d{1,3}(?:[,. \u00a0\u202f\u066c]\d{2,3})*[,. \u00a0\u202f\u066c]\d{3}(?!\d)"
)


class Attributes(HTMLParser):
    """Collects the attributes of a page that programs read."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, str]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found += [(n, v) for n, v in attributes if v and n not in UNCHECKED]


def check(page: str) -> None:
    found = Attributes(page).found
    assert found
    assert [(name, value) for name, value in found if SEPARATED.search(value)] == []


@pytest.fixture(params=LANGUAGES)
def world(request: pytest.FixtureRequest, settings: Any) -> Iterator[EveryRow]:
    settings.USE_THOUSAND_SEPARATOR = True
    settings.LANGUAGE_CODE = request.param
    settings.LANGUAGES = [(code, code) for code in LANGUAGES]
    with translation.override(request.param):
        yield EveryRow()


@pytest.fixture
def staff(world: EveryRow) -> Client:
    client = Client(headers={"accept-language": translation.get_language()})
    client.force_login(world.staff)
    return client


@pytest.mark.parametrize(
    "model", [Bakery, Customer, SetupLink, Connection, TimelineEvent, WebhookEvent]
)
def test_no_page_of_the_admin_localizes_an_id(
    world: EveryRow, staff: Client, model: type[Model]
) -> None:
    pages = 0
    if model is Customer:
        world.fill_batch()
    for url in world.urls(model):
        response = staff.get(url, follow=True)
        if response.status_code not in {403, 405}:  # no page to add history; only for POST
            assert response.status_code == 200, url
            if response["Content-Type"].startswith("text/html"):  # not CSV
                check(response.content.decode())
            pages += 1
    assert pages >= (11 if hasattr(admin.site.get_model_admin(model), "panel") else 3)


def test_no_page_of_customers_localizes_an_id(
    world: EveryRow, client: Client, configure: Callable[..., None]
) -> None:
    configure(REQUEST_BUDGET=0.1)
    waiting = make_link(make_customer(pk=23456789))  # Kapso cannot be asked here
    failed = make_link(make_customer(pk=23456790))
    back = {"setup_link_id": world.link.kapso_id, "phone_number_id": world.number.phone_number_id}
    connect = connect_path(world.customer)
    pages = {
        "connect": client.get(connect),
        "success": client.get("/whatsapp/success/", back),
        "failed": client.get("/whatsapp/failed/", {"setup_link_id": failed.kapso_id}),
        "invalid": client.get("/whatsapp/success/"),
        "waiting": client.get("/whatsapp/success/", {**back, "setup_link_id": waiting.kapso_id}),
    }
    for name, response in pages.items():
        assert next(t.name for t in response.templates) == f"kapso_connect/{name}.html"
        check(response.content.decode())


def test_no_email_localizes_an_id(world: EveryRow) -> None:
    onboarding.send_invitation(world.customer, world.link)
    (message,) = mail.outbox
    (html,) = message.alternatives
    check(str(html.content))
    assert connect_path(world.customer) in message.body


def test_no_page_of_the_browsable_api_localizes_an_id(world: EveryRow, staff: Client) -> None:
    rows = {
        "customer": world.customer,
        "setup-link": world.link,
        "connection": world.number,
        "batch": world.batch,
    }
    for pattern in versioned_patterns():
        kind = next((kind for kind in rows if str(pattern.name).startswith(kind)), "")
        kwargs = {"pk": rows[kind].pk} if pattern.pattern.converters else {}
        url = reverse(f"kapso_connect_api:{pattern.name}", kwargs=kwargs)
        response = staff.get(url, headers={"accept": "text/html"})
        if response.headers["Content-Type"].startswith("text/html"):
            check(response.content.decode())
            assert not kwargs or response.status_code == 405 or str(kwargs["pk"]) in response.text
