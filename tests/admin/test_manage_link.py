"""Revoking and extending a customer's setup link."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from django.test import Client
from django.utils.dateparse import parse_datetime

from kapso_connect.admin.forms import MAX_EXTENSION_DAYS, ExtendForm, end_of_day
from kapso_connect.admin.manage_link import EXTENSION_DAYS
from kapso_connect.models import SetupLink
from kapso_connect.onboarding import connect_urls
from kapso_connect.utils import to_local_time, today

from ..factories import make_link
from .world import (
    GOOD,
    TOMORROW,
    UNTIL,
    World,
    kinds,
    messages,
)

pytestmark = pytest.mark.django_db(transaction=True)


def test_revoking_ends_the_link_and_the_customers_url(world: World) -> None:
    address = connect_urls.connect_url(world.customer)
    page = world.client.get(world.url("revoke")).content.decode()
    assert "What will happen" in page
    assert kinds() == []
    world.post("revoke")
    world.link.refresh_from_db()
    assert world.link.status == "revoked"
    assert Client().get(address.removeprefix("https://site.example")).status_code == 410
    assert [row["status"] for row in world.sandbox.state()["setup_links"]] == ["revoked"]


def test_link_used_at_kapso_is_not_revoked(world: World) -> None:
    data = world.form_version("revoke")
    world.sandbox.patch_setup_link(world.link.kapso_id, status="used")
    response = world.client.post(world.url("revoke"), data)
    assert messages(response).startswith("The setup link was not revoked")
    world.link.refresh_from_db()
    assert world.link.status == "used"
    assert kinds() == []


@pytest.mark.parametrize("page", ["revoke", "extend"])
def test_link_revoked_at_kapso_is_revoked_here(world: World, page: str) -> None:
    data = {**world.form_version(page), **GOOD.get(page, {})}
    world.sandbox.patch_setup_link(world.link.kapso_id, status="revoked")
    response = world.client.post(world.url(page), data)
    world.link.refresh_from_db()
    assert world.link.status == "revoked"
    assert kinds() == ["setup_link_revoked"]
    assert ("cannot be extended" in messages(response)) == (page == "extend")


@pytest.mark.parametrize("days", [60, MAX_EXTENSION_DAYS, 30])
def test_extending_asks_kapso_for_the_end_of_that_day(world: World, days: int) -> None:
    day = today() + timedelta(days=days)
    world.post("extend", {"until": day.isoformat()})
    world.link.refresh_from_db()
    assert world.link.expires_at == end_of_day(day)
    (remote,) = world.sandbox.state()["setup_links"]
    assert parse_datetime(remote["expires_at"]) == end_of_day(day)


def test_the_buttons_extend_by_days_and_override_the_field(world: World) -> None:
    page = world.client.get(world.url("extend")).content.decode()
    assert world.link.expires_at
    for days in EXTENSION_DAYS:
        day = to_local_time(world.link.expires_at).date() + timedelta(days=days)
        assert f'name="until" value="{day.isoformat()}"' in page
    data = world.form_version("extend")
    world.client.post(world.url("extend"), {**data, "until": ["2020-01-01", day.isoformat()]})
    world.link.refresh_from_db()
    assert world.link.expires_at == end_of_day(day)


INVALID_DAYS = [
    "",
    "x",
    "2020-01-01",
    "0001-01-01",
    "9999-12-31",
    "2026-02-30",
    "١٢-١٢-٢٠٢٦",
    "\0",
    "9" * 999,
]


def test_invalid_day_is_refused_before_kapso_is_asked(world: World) -> None:
    version = world.form_version("extend")
    for until in INVALID_DAYS:
        response = world.client.post(world.url("extend"), {**version, "until": until})
        assert response.status_code == 200, until
        assert 'class="errorlist"' in response.content.decode(), until
    assert world.request_count("PATCH", "setup_links") == 0


def test_too_early_and_too_late_days_are_refused(world: World) -> None:
    for day in (TOMORROW, today() + timedelta(days=MAX_EXTENSION_DAYS + 1)):
        assert world.post("extend", {"until": day.isoformat()}).status_code == 200
    assert kinds() == []


def test_a_link_without_an_end_needs_no_extension(world: World) -> None:
    SetupLink.objects.update(expires_at=None)
    response = world.client.get(world.url("extend"))
    assert messages(response) == "This setup link does not expire."


@pytest.mark.parametrize("language", ["en", "ar", "hi"])
def test_dates_are_read_the_same_in_every_language(world: World, language: str) -> None:
    data = {**world.form_version("extend"), **UNTIL}
    world.client.post(world.url("extend"), data, headers={"accept-language": language})
    assert kinds() == ["setup_link_extended"]


def test_it_works_without_time_zones(world: World, settings: Any) -> None:
    settings.USE_TZ = False
    world.sandbox.patch_setup_link(world.link.kapso_id, status="active")
    link = make_link(
        world.customer,
        kapso_id=world.link.kapso_id + "x",
        created_at=datetime.now(),
        expires_at=datetime.now() + timedelta(days=3),
    )
    form = ExtendForm(None, expires_at=link.expires_at)  # type: ignore[arg-type]
    assert form.day_after(7) == (datetime.now() + timedelta(days=10)).date()
    assert end_of_day(form.day_after(7)).tzinfo is None
