"""The story as people see it: staff in the admin, the customer on Kapso's page and on ours."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.contrib.auth.models import User
from django.test import override_settings
from playwright.sync_api import Browser, Page, expect
from pytest_django.live_server_helper import LiveServer

from kapso_connect import onboarding, views
from kapso_connect.failures import FAILURES
from kapso_connect.models import Connection, ConnectionEvent, Customer, SetupLink
from kapso_connect.signals import whatsapp_connected
from kapso_connect.testing import Sandbox

from .browser_support import PHONE, Visitor, path_of, running_chromium

NUMBER = "+1 415-555-0123"

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running_chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def server(browser: Browser, django_db_setup: None) -> Iterator[LiveServer]:
    """The site, under a strict Content-Security-Policy."""
    policy = "tests.browser_support.StrictPolicy"
    with override_settings(MIDDLEWARE=[policy, *django_settings.MIDDLEWARE]):
        server = LiveServer("127.0.0.1")
    yield server
    server.stop()


@pytest.fixture
def site(server: LiveServer, sandbox: Sandbox, settings: Any) -> str:
    """The site's address; it and the sandbox know each other."""
    settings.KAPSO_CONNECT = {**settings.KAPSO_CONNECT, "PUBLIC_URL": server.url}
    settings.LOGIN_URL = "/admin/login/"
    sandbox.set_webhook(f"{server.url}/whatsapp/webhook/")
    # The test database has one connection, for one request at a time.
    sandbox.faults(webhook_first=True)
    return server.url


@pytest.fixture
def visitor(browser: Browser, tmp_path: Path) -> Iterator[Visitor]:
    folder = Path(os.environ.get("KAPSO_TEST_SCREENSHOTS") or tmp_path)
    visitor = Visitor(browser, folder)
    yield visitor
    visitor.close()
    assert visitor.complaints == []


@pytest.fixture
def customer() -> Customer:
    return Customer.objects.create(name="Ada's Bakery", email="ada@example.com")


@pytest.fixture
def link(site: str, customer: Customer) -> SetupLink:
    return onboarding.create_setup_link(customer)


@pytest.fixture
def heard() -> Iterator[list[dict[str, Any]]]:
    """What whatsapp_connected told."""
    told: list[dict[str, Any]] = []

    def hear(**arguments: Any) -> None:
        told.append(arguments)

    whatsapp_connected.connect(hear)
    yield told
    whatsapp_connected.disconnect(hear)


def connect(page: Page, url: str) -> None:
    """Play the customer on the hosted page."""
    page.goto(url)
    page.get_by_label("Phone number").fill(NUMBER)
    page.get_by_role("button", name="Connect", exact=True).click()


def test_staff_invites_and_the_customer_connects(
    site: str, visitor: Visitor, customer: Customer, heard: list[dict[str, Any]]
) -> None:
    User.objects.create_superuser("staff", password="correct horse")
    staff = visitor.window()
    staff.goto(f"{site}/admin/kapso_connect/customer/")
    staff.get_by_label("Username").fill("staff")
    staff.get_by_label("Password").fill("correct horse")
    staff.get_by_role("button", name="Log in").click()
    staff.get_by_role("row", name="Ada's Bakery").get_by_role("checkbox").check()
    staff.get_by_label("Action:").select_option("Create WhatsApp setup link")
    visitor.look(staff, "1-customers")
    staff.get_by_role("button", name="Run").or_(staff.get_by_role("button", name="Go")).click()
    expect(staff.get_by_role("heading", name="Create WhatsApp setup link").first).to_be_visible()
    visitor.look(staff, "2-options")
    staff.locator("#content form input[type=submit], #content form button[type=submit]").click()
    link = SetupLink.objects.get()
    expect(staff.get_by_label("Setup link for Ada's Bakery")).to_have_value(link.url)
    visitor.look(staff, "3-setup-link")
    staff.context.grant_permissions(["clipboard-read", "clipboard-write"])
    staff.get_by_role("button", name="Copy").click()
    assert staff.evaluate("navigator.clipboard.readText()") == link.url

    page = visitor.window(PHONE)
    page.goto(link.url)
    visitor.look(page, "4-hosted-page")
    connect(page, link.url)
    expect(page.get_by_role("heading")).to_have_text("WhatsApp is connected")
    expect(page.get_by_text(NUMBER)).to_be_visible()
    assert path_of(page) == "/whatsapp/success/"
    visitor.look(page, "5-success")

    connection = Connection.objects.get()
    assert (connection.customer, connection.is_connected) == (customer, True)
    assert [(told["customer"], told["source"]) for told in heard] == [(customer, "webhook")]
    staff.goto(f"{site}/admin/kapso_connect/customer/{customer.pk}/change/")
    expect(staff.get_by_text(NUMBER).first).to_be_visible()
    visitor.look(staff, "6-customer")


@pytest.mark.parametrize("code", FAILURES)
def test_each_failure_is_explained(visitor: Visitor, link: SetupLink, code: str) -> None:
    failure = FAILURES[code]
    page = visitor.window(PHONE)
    page.goto(link.url)
    page.get_by_role("button", name=code).click()
    expect(page.get_by_role("heading", level=1)).to_have_text(str(failure.title))
    expect(page.get_by_text(str(failure.advice))).to_be_visible()
    assert path_of(page) == "/whatsapp/failed/"
    visitor.look(page, f"failed-{code}")
    again = page.get_by_role("link", name="Try again")
    if failure.can_retry:
        again.click()
        assert page.url == link.url
    else:
        expect(again).to_have_count(0)


def test_the_waiting_page_turns_into_success_by_itself(
    visitor: Visitor,
    link: SetupLink,
    sandbox: Sandbox,
    monkeypatch: pytest.MonkeyPatch,
    heard: list[dict[str, Any]],
) -> None:
    monkeypatch.setattr(views, "REFRESH_SECONDS", 3)
    away = {"match": "phone_numbers", "kind": "status", "status": 503}
    sandbox.faults(webhook_first=False, drop=True, api=[away])
    page = visitor.window(PHONE)
    connect(page, link.url)
    expect(page.get_by_role("heading")).to_have_text("Almost there")
    visitor.look(page, "waiting")
    sandbox.faults(api=[])
    expect(page.get_by_role("heading")).to_have_text("WhatsApp is connected")
    assert [told["source"] for told in heard] == ["redirect"]


def test_it_works_without_javascript(visitor: Visitor, link: SetupLink) -> None:
    page = visitor.window(PHONE, java_script_enabled=False)
    connect(page, link.url)
    expect(page.get_by_role("heading")).to_have_text("WhatsApp is connected")


def test_a_link_is_used_once(visitor: Visitor, link: SetupLink) -> None:
    page = visitor.window(PHONE)
    connect(page, link.url)
    page.goto(link.url)
    expect(page.get_by_role("heading", level=1)).to_have_text("This link has been used already")
    kinds = ConnectionEvent.objects.values_list("kind", flat=True)
    assert sorted(kinds) == ["connected", "setup_link_created"]


def test_an_address_that_leads_nowhere_is_friendly(visitor: Visitor, site: str) -> None:
    page = visitor.window(PHONE, color_scheme="dark")
    page.goto(f"{site}/whatsapp/failed/?setup_link_id=nobody&error_code=link_expired")
    expect(page.get_by_role("heading", level=1)).to_have_text("We cannot find this connection")
    visitor.look(page, "invalid")
    # The browser itself notes the status of the page.
    assert [text for text in visitor.complaints if "404" not in text] == []
    visitor.complaints.clear()
