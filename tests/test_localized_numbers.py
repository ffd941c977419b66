"""Where the site writes numbers with separators, ids are still written as they are."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from itertools import count
from typing import Any

import pytest
from django.contrib import admin
from django.contrib.auth.models import User
from django.core import mail
from django.db.models import Model
from django.test import Client
from django.urls import URLPattern, reverse
from django.utils import timezone, translation

from kapso_connect import onboarding
from kapso_connect.api.urls import urlpatterns as api_urls
from kapso_connect.models import (
    Connection,
    Customer,
    Invitation,
    InvitationBatch,
    SetupLink,
    TimelineEvent,
    WebhookEvent,
    new_connect_key,
)
from kapso_connect.onboarding.connect_urls import connect_path

from . import conftest
from .factories import make_connection, make_customer, make_link, make_user
from .sites.host_site.models import Bakery

pytestmark = pytest.mark.django_db

LANGUAGES = ["en", "de", "fr", "hi", "ar"] if conftest.THOROUGH else ["en", "de"]
UNCHECKED = {"alt", "aria-label", "content", "d", "data-copied", "placeholder", "title", "viewbox"}
"""Attributes that people read, and those of drawings."""
SEPARATED = re.compile(
    r"(?<!\d)\d{1,3}(?:[,. \u00a0\u202f\u066c]\d{2,3})*[,. \u00a0\u202f\u066c]\d{3}(?!\d)"
)


class World:
    """One row of each model, with ids that have separators when they are localized."""

    def __init__(self) -> None:
        pks = count(12345678)
        now = timezone.now()
        self.bakery = Bakery.objects.create(pk=next(pks), title="Ada's", contact="ada@example.com")
        self.customer = make_customer(
            pk=next(pks), owner=self.bakery, email="ada@example.com", connect_key=new_connect_key()
        )
        self.link = make_link(self.customer, pk=next(pks), expires_at=now)
        SetupLink.objects.update(expires_at=now.replace(year=now.year + 1))
        self.number = make_connection(
            self.customer,
            pk=next(pks),
            setup_link=self.link,
            display_phone_number="+442071838750",
            name_status="DECLINED",
        )
        self.event = TimelineEvent.objects.create(
            pk=next(pks),
            kind="connected",
            source="webhook",
            customer=self.customer,
            connection=self.number,
            setup_link=self.link,
            last_error="A receiver raised.",
            next_attempt_at=None,
        )
        self.webhook = WebhookEvent.objects.create(
            pk=next(pks),
            idempotency_key="key",
            event="whatsapp.phone_number.created",
            payload={},
            status=WebhookEvent.Status.FAILED,
            next_attempt_at=None,
        )
        self.staff = make_user("staff", "superuser")
        User.objects.filter(pk=self.staff.pk).update(id=next(pks))
        self.staff = User.objects.get()
        self.draft, self.batch = (
            InvitationBatch.objects.create(pk=next(pks), created_by=self.staff, started_at=started)
            for started in (None, now)
        )
        Invitation.objects.create(pk=next(pks), batch=self.draft, customer=self.customer)
        Invitation.objects.create(
            pk=next(pks),
            batch=self.batch,
            customer=self.customer,
            setup_link=self.link,
            status=Invitation.Status.DONE,
            next_attempt_at=None,
        )

    def fill_batch(self) -> None:
        """Let the batch be of more than a thousand customers."""
        rows = Customer.objects.bulk_create(Customer(name=f"Customer {n}") for n in range(1000))
        Invitation.objects.bulk_create(Invitation(batch=self.batch, customer=row) for row in rows)

    def row(self, model: type[Model]) -> Any:
        rows = (self.bakery, self.customer, self.link, self.number, self.event, self.webhook)
        return next(row for row in rows if isinstance(row, model))

    def urls(self, model: type[Model]) -> Iterator[str]:
        """The address of each page of this model's admin."""
        row = self.row(model)
        for pattern in admin.site.get_model_admin(model).get_urls():
            if not isinstance(pattern, URLPattern) or pattern.name is None:
                continue
            arguments = {"object_id": [row.pk], "connection": [self.number.pk]}
            arguments["pk"] = [self.draft.pk, self.batch.pk]
            names = list(pattern.pattern.converters)
            for value in arguments[names[-1]] if names else [None]:
                kwargs = {name: arguments[name][0] for name in names}
                if names:
                    kwargs[names[-1]] = value
                url = reverse(f"admin:{pattern.name}", kwargs=kwargs)
                yield f"{url}?ids={row.pk}" if url.endswith("run-again/") else url


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
def world(request: pytest.FixtureRequest, settings: Any) -> Iterator[World]:
    settings.USE_THOUSAND_SEPARATOR = True
    settings.LANGUAGE_CODE = request.param
    settings.LANGUAGES = [(code, code) for code in LANGUAGES]
    with translation.override(request.param):
        yield World()


@pytest.fixture
def staff(world: World) -> Client:
    client = Client(headers={"accept-language": translation.get_language()})
    client.force_login(world.staff)
    return client


@pytest.mark.parametrize(
    "model", [Bakery, Customer, SetupLink, Connection, TimelineEvent, WebhookEvent]
)
def test_no_page_of_the_admin_localizes_an_id(
    world: World, staff: Client, model: type[Model]
) -> None:
    pages = 0
    if model is Customer:
        world.fill_batch()
    for url in world.urls(model):
        response = staff.get(url, follow=True)
        if response.status_code not in {403, 405}:  # no page to add history; only for POST
            assert response.status_code == 200, url
            check(response.content.decode())
            pages += 1
    assert pages >= (11 if hasattr(admin.site.get_model_admin(model), "panel") else 3)


def test_no_page_of_customers_localizes_an_id(
    world: World, client: Client, configure: Callable[..., None]
) -> None:
    configure(REQUEST_BUDGET=0.1)
    waiting = make_link(make_customer(pk=23456789))  # Kapso cannot be asked here
    back = {"setup_link_id": world.link.kapso_id, "phone_number_id": world.number.phone_number_id}
    connect = connect_path(world.customer)
    pages = {
        "connect": client.get(connect),
        "success": client.get("/whatsapp/success/", back),
        "failed": client.get("/whatsapp/failed/", {**back, "error_code": "link_expired"}),
        "invalid": client.get("/whatsapp/success/"),
        "waiting": client.get("/whatsapp/success/", {**back, "setup_link_id": waiting.kapso_id}),
    }
    for name, response in pages.items():
        assert next(t.name for t in response.templates) == f"kapso_connect/{name}.html"
        check(response.content.decode())


def test_no_email_localizes_an_id(world: World) -> None:
    onboarding.send_invitation(world.customer, world.link)
    (message,) = mail.outbox
    (html,) = message.alternatives
    check(str(html.content))
    assert connect_path(world.customer) in message.body


def test_no_page_of_the_browsable_api_localizes_an_id(world: World, staff: Client) -> None:
    rows = {"customer": world.customer, "setup-link": world.link, "connection": world.number}
    for pattern in api_urls:
        kind = next((kind for kind in rows if pattern.name.startswith(kind)), "")
        kwargs = {"pk": rows[kind].pk} if pattern.pattern.converters else {}
        url = reverse(f"kapso_connect_api:{pattern.name}", kwargs=kwargs)
        response = staff.get(url, headers={"accept": "text/html"})
        if response.headers["Content-Type"].startswith("text/html"):
            check(response.content.decode())
            assert not kwargs or response.status_code == 405 or str(kwargs["pk"]) in response.text
