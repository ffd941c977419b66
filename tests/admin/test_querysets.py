"""A site's own ``get_queryset`` in its ModelAdmins: every page and action works."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.admin import AdminSite
from django.db.models import Count, Model, Prefetch, QuerySet
from django.http import HttpRequest
from django.test import Client
from django.urls import include, path, reverse
from django.utils.html import strip_tags

from kapso_connect.admin import (
    ConnectionAdmin,
    CustomerAdmin,
    SetupLinkAdmin,
    TimelineEventAdmin,
    WebhookEventAdmin,
)
from kapso_connect.models import (
    Connection,
    Customer,
    InvitationBatch,
    SetupLink,
    TimelineEvent,
    WebhookEvent,
)

from ..cases import combinations
from ..sites.host_site.admin import BakeryAdmin
from ..sites.host_site.models import Bakery
from .every_page import EveryRow

pytestmark = pytest.mark.django_db

ADMINS: dict[type[Model], Any] = {
    Bakery: BakeryAdmin,
    Customer: CustomerAdmin,
    SetupLink: SetupLinkAdmin,
    Connection: ConnectionAdmin,
    TimelineEvent: TimelineEventAdmin,
    WebhookEvent: WebhookEventAdmin,
}
RELATED = {
    Bakery: "whatsapp",
    Customer: "setup_links",
    SetupLink: "connections",
    Connection: "events",
    TimelineEvent: "setup_link",
    WebhookEvent: "timeline_events",
}
OTHER = {
    Bakery: "title",
    Customer: "email",
    SetupLink: "options",
    Connection: "verified_name",
    TimelineEvent: "last_error",
    WebhookEvent: "last_error",
}
QUERYSETS: dict[str, Callable[[QuerySet[Any]], QuerySet[Any]]] = {
    "prefetch_related": lambda rows: rows.prefetch_related(
        Prefetch(RELATED[rows.model], to_attr="own")
    ),
    "distinct": lambda rows: (
        rows.annotate(own=Count(RELATED[rows.model]))
        .defer(OTHER[rows.model])
        .order_by("-own")
        .distinct()
    ),
}


@pytest.fixture
def site(own_queryset: Callable[[QuerySet[Any]], QuerySet[Any]], settings: Any) -> AdminSite:
    """An admin site whose ModelAdmins have a ``get_queryset`` of their own."""

    class OwnQuerySet:
        def get_queryset(self, http_request: HttpRequest) -> QuerySet[Any]:
            return own_queryset(super().get_queryset(http_request))

    site = AdminSite()
    for model, model_admin in ADMINS.items():
        site.register(model, type("OwnAdmin", (OwnQuerySet, model_admin), {}))
    urlpatterns = [
        path("admin/", site.urls),
        path("whatsapp/", include("kapso_connect.urls")),
    ]
    settings.ROOT_URLCONF = type("urls", (), {"urlpatterns": urlpatterns})
    return site


@pytest.mark.parametrize(("own_queryset", "model"), combinations(QUERYSETS, list(ADMINS)))
def test_every_page_works(site: AdminSite, client: Client, model: type[Model]) -> None:
    rows = EveryRow()
    client.force_login(rows.staff)
    for url in rows.urls(model, site):
        assert client.get(url, follow=True).status_code in {200, 403, 405}, url
    changelist = changelist_url(model)
    own_filters = re.findall(
        r'href="(\?(?:attention|signal|usable|whatsapp_status)=[^"]*)"',
        client.get(changelist).text,
    )
    for query in (*own_filters, "?q=Ada%27s", "?o=1.-2"):
        assert client.get(changelist + query).status_code == 200, query


@pytest.mark.parametrize("own_queryset", QUERYSETS.values(), ids=QUERYSETS)
def test_search_finds_what_it_finds_elsewhere(site: AdminSite, client: Client) -> None:
    rows = EveryRow()
    client.force_login(rows.staff)
    for model, text in ((Bakery, "+44 20 7183"), (Bakery, "Ada"), (Customer, "+44 20 7183")):
        page = client.get(changelist_url(model), {"q": text})
        assert [row.pk for row in page.context["cl"].result_list] == [rows.row(model).pk]
    assert not client.get(changelist_url(Bakery), {"q": "nobody"}).context["cl"].result_list


@pytest.mark.parametrize(("own_queryset", "model"), combinations(QUERYSETS, [Bakery, Customer]))
def test_rows_can_be_invited(site: AdminSite, client: Client, model: type[Model]) -> None:
    rows = EveryRow()
    client.force_login(rows.staff)
    chosen = {"action": "create_setup_links", "_selected_action": [rows.row(model).pk]}
    button = reverse(
        f"admin:{model._meta.app_label}_{model._meta.model_name}_whatsapp_invite",
        args=[rows.row(model).pk],
    )
    for url, data in ((changelist_url(model), chosen), (button, {})):
        response = client.post(url, data, follow=True)
        assert "For 1 customer" in strip_tags(response.text)
    for batch in InvitationBatch.objects.exclude(pk__in=[rows.draft.pk, rows.batch.pk]):
        assert batch.invitations.get().customer == rows.customer


@pytest.mark.parametrize(
    ("own_queryset", "model"), combinations(QUERYSETS, [TimelineEvent, WebhookEvent])
)
def test_rows_can_be_run_again(site: AdminSite, client: Client, model: type[Model]) -> None:
    rows = EveryRow()
    client.force_login(rows.staff)
    row = rows.row(model)
    chosen = {"action": "run_again", "_selected_action": [row.pk]}
    page = client.post(changelist_url(model), chosen, follow=True)
    response = client.post(page.request["PATH_INFO"], {"ids": [row.pk]}, follow=True)
    assert re.search("1 (succeeded|failed again)", response.text)


def changelist_url(model: type[Model]) -> str:
    return reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_changelist")
