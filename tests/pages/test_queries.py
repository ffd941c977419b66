"""How many queries each of the customers' pages makes at most, as long as nothing changes."""

from __future__ import annotations

from typing import Any

import pytest
from django.core.cache import cache
from django.db import connection as database
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from kapso_connect.models import SetupLink, new_connect_key
from kapso_connect.onboarding.connect_urls import connect_path
from kapso_connect.pages import questions

from ..factories import make_connection, make_customer, make_link
from .test_views import failed, success

pytestmark = pytest.mark.django_db

NUMBER = "100200300"


def invited(**fields: Any) -> SetupLink:
    return make_link(make_customer(connect_key=new_connect_key()), **fields)


def failing() -> SetupLink:
    return invited(setup_status="failed", last_error_code="waba_limit_reached")


def waiting() -> SetupLink:
    return invited(unconfirmed_phone_number_id=NUMBER, unconfirmed_since=timezone.now())


def connected() -> SetupLink:
    link = invited(status="used", setup_status="completed")
    for number_id in (NUMBER, "100200301", "100200302"):
        fields = {"phone_number_id": number_id, "display_phone_number": "+442071838750"}
        make_connection(link.customer, **fields)
    return link


def paused() -> SetupLink:
    link = invited(status="used", setup_status="completed")
    fields = {"status": "disconnected", "disconnect_reason": "offboarded"}
    make_connection(link.customer, disconnected_at=timezone.now(), **fields)
    return link


def own_url(link: SetupLink) -> str:
    return connect_path(link.customer)


def qr_url(link: SetupLink) -> str:
    return f"{own_url(link)}qr.svg"


def success_url(link: SetupLink) -> str:
    return success(link, NUMBER)


def failed_url(link: SetupLink) -> str:
    return failed(link, "waba_limit_reached")


@pytest.mark.parametrize(
    ("state", "page", "status", "most"),
    [
        (invited, own_url, 200, 1),
        (invited, qr_url, 200, 1),
        (failing, own_url, 200, 1),
        (paused, own_url, 200, 3),
        (waiting, own_url, 202, 2),
        (connected, own_url, 200, 2),
        (waiting, success_url, 202, 2),
        (connected, success_url, 200, 2),
        (failing, failed_url, 200, 8),
        (connected, failed_url, 200, 7),
    ],
)
def test_pages_make_few_queries(
    state: Any, page: Any, status: int, most: int, client: Client
) -> None:
    url = page(state())
    client.get(url)  # what follows from the redirect is recorded once
    cache.set(questions.SLOW_KEY, True)  # Kapso is not asked
    with CaptureQueriesContext(database) as captured:
        assert client.get(url).status_code == status
    assert len(captured) <= most, [query["sql"] for query in captured]
