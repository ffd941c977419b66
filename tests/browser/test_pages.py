"""The customers' pages as customers see them: on a phone, in six languages, with every outcome."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from unittest import mock

import pytest
from django.db import OperationalError
from django.utils import timezone, translation
from playwright.sync_api import Page, Response, Route, expect

from kapso_connect import onboarding
from kapso_connect.kapso.error_codes import SETUP_ERRORS, UNKNOWN_ERROR, Action
from kapso_connect.kapso.languages import Language
from kapso_connect.languages import html_language
from kapso_connect.models import Connection, Customer, SetupLink, TimelineEvent
from kapso_connect.onboarding.connect_urls import connect_url
from kapso_connect.pages import base, rate_limit, views
from kapso_connect.testing import Sandbox
from kapso_connect.translation import gettext

from ..conftest import THOROUGH
from ..factories import allow_questions
from .support import DESKTOP, Visitor, assert_accessible, path_of, refuse_cookies

PHONE = {"width": 320, "height": 640}
NUMBER = "+1 415-555-0123"
SCRIPTS = pytest.mark.parametrize("scripts", [True, False], ids=["scripts", "no_scripts"])
LANGUAGES = pytest.mark.parametrize("language", Language.values)
AWAY = {"match": "phone_numbers", "kind": "status", "status": 503}

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def customer() -> Customer:
    return Customer.objects.create(name="Ada's Bakery", email="ada@example.com")


@pytest.fixture
def invite(site: str, customer: Customer, configure: Any) -> Callable[..., str]:
    """Invite the customer; return the address that is given to them."""
    configure(SITE_NAME="Crumb & Co.")

    def invite(**options: Any) -> str:
        onboarding.create_setup_link(customer, options=options, next_url="/admin/login/")
        return connect_url(customer)

    return invite


def look(visitor: Visitor, page: Page, name: str, scripts: bool = True) -> None:
    """What must hold of each page."""
    visitor.look(page, name, PHONE)
    expect(page.get_by_role("heading", level=1)).to_have_count(1)
    if not scripts:
        return
    before = page.viewport_size or PHONE
    for size in (PHONE, DESKTOP) if THOROUGH else (before,):
        page.set_viewport_size(size)
        assert_accessible(page)
    page.set_viewport_size(before)


def press(page: Page) -> None:
    page.locator("form button").click()


def connect(page: Page) -> None:
    """Play the customer on the hosted page."""
    page.get_by_label("Phone number").fill(NUMBER)
    page.get_by_role("button", name="Connect", exact=True).click()


@LANGUAGES
@SCRIPTS
def test_from_the_invitation_to_the_next_step(
    invite: Callable[..., str], visitor: Visitor, language: str, scripts: bool
) -> None:
    page = visitor.window(PHONE, java_script_enabled=scripts)
    page.goto(invite(language=language))
    with translation.override(language):
        expected = {
            "lang": html_language(language),
            "dir": "rtl" if language == "ar" else "ltr",
            "success": gettext("WhatsApp is connected"),
            "button": gettext("Connect WhatsApp"),
            "continue": gettext("Continue"),
        }
    html = page.locator("html")
    for attribute in ("lang", "dir"):
        expect(html).to_have_attribute(attribute, expected[attribute])
    look(visitor, page, f"connect-{language}", scripts)
    assert not TimelineEvent.objects.filter(kind="setup_link_opened").exists()
    page.get_by_role("button", name=expected["button"]).click()
    expect(page).to_have_url(SetupLink.objects.get().url)
    connect(page)
    expect(page.get_by_role("heading", level=1)).to_have_text(expected["success"])
    expect(html).to_have_attribute("lang", expected["lang"])
    number = page.get_by_text(NUMBER)
    expect(number).to_be_visible()
    expect(number).to_have_attribute("dir", "ltr")
    look(visitor, page, f"success-{language}", scripts)
    page.get_by_role("link", name=expected["continue"]).click()
    assert path_of(page) == "/admin/login/"
    assert "?kapso_connect=" in page.url
    assert Connection.objects.get().is_connected


@SCRIPTS
@pytest.mark.parametrize("code", SETUP_ERRORS)
def test_each_failure_leads_on(
    invite: Callable[..., str], visitor: Visitor, code: str, scripts: bool
) -> None:
    page = visitor.window(PHONE, java_script_enabled=scripts)
    page.goto(invite())
    press(page)
    page.get_by_role("button", name=code).click()
    assert path_of(page).startswith("/whatsapp/failed/")
    failure = SETUP_ERRORS[code]
    expect(page.get_by_role("heading", level=1)).to_have_text(str(failure.title))
    page.get_by_role("button", name=str(failure.action.label)).click()
    expect(page.get_by_label("Phone number")).to_be_visible()
    link = Customer.objects.get().latest_setup_link
    expect(page).to_have_url(link.url)
    assert (SetupLink.objects.count() == 2) == (failure.action == Action.FRESH_LINK)
    connect(page)
    expect(page.get_by_role("heading", level=1)).to_have_text("WhatsApp is connected")
    assert Connection.objects.get().is_connected


@LANGUAGES
def test_each_failure_is_explained(
    invite: Callable[..., str], visitor: Visitor, site: str, language: str
) -> None:
    page = visitor.window(PHONE)
    page.goto(invite(language=language))
    press(page)
    expect(page.get_by_label("Phone number")).to_be_visible()
    link = SetupLink.objects.get()
    for code, failure in {**SETUP_ERRORS, "unheard_of": UNKNOWN_ERROR}.items():
        page.goto(f"{site}/whatsapp/failed/?setup_link_id={link.kapso_id}&error_code={code}")
        with translation.override(language):
            title, advice, button = map(str, (failure.title, failure.advice, failure.action.label))
        expect(page.get_by_role("heading", level=1)).to_have_text(title)
        expect(page.get_by_text(advice)).to_be_visible()
        expect(page.get_by_text(link.reference)).to_be_visible()
        expect(page.get_by_role("button", name=button)).to_be_visible()
        look(visitor, page, f"failed-{code}-{language}")


def test_who_did_not_come_by_the_address_is_told_to(
    invite: Callable[..., str], visitor: Visitor
) -> None:
    invite()
    page = visitor.window(PHONE)
    page.goto(SetupLink.objects.get().url)
    page.get_by_role("button", name="facebook_auth_failed").click()
    expect(page.get_by_text("reopen your invitation")).to_be_visible()
    expect(page.get_by_role("button")).to_have_count(0)
    look(visitor, page, "failed-unknown-browser")


@SCRIPTS
@pytest.mark.parametrize("language", ["en", "ar"])
def test_the_waiting_page_turns_into_success_by_itself(
    invite: Callable[..., str],
    visitor: Visitor,
    sandbox: Sandbox,
    monkeypatch: pytest.MonkeyPatch,
    scripts: bool,
    language: str,
) -> None:
    monkeypatch.setattr(base, "REFRESH_SECONDS", 1)
    page = visitor.window(PHONE, java_script_enabled=scripts)
    page.goto(invite(language=language))
    press(page)
    sandbox.faults(webhook_first=False, drop=True, api=[AWAY])
    connect(page)
    with translation.override(language):
        waiting, done = gettext("Almost there"), gettext("WhatsApp is connected")
    expect(page.get_by_role("heading")).to_have_text(waiting)
    look(visitor, page, f"waiting-{language}", scripts)
    sandbox.faults(api=[])
    expect(page.get_by_role("heading")).to_have_text(done, timeout=20_000)
    assert path_of(page) == "/whatsapp/success/"


@pytest.fixture
def waiting(
    invite: Callable[..., str],
    visitor: Visitor,
    sandbox: Sandbox,
    monkeypatch: pytest.MonkeyPatch,
) -> Page:
    """The page of a customer who has connected a number, which Kapso does not confirm yet."""
    monkeypatch.setattr(base, "REFRESH_SECONDS", 1)
    page = visitor.window(PHONE)
    page.goto(invite())
    press(page)
    sandbox.faults(webhook_first=False, drop=True, api=[AWAY])
    connect(page)
    expect(page.get_by_text("updates automatically")).to_be_visible()
    return page


def test_translation_by_the_browser_stays_while_nothing_changes(
    waiting: Page, sandbox: Sandbox
) -> None:
    # As Chrome's translation does it.
    waiting.evaluate(
        """() => {
          for (const text of document.querySelectorAll("[role=status] p")) {
            const font = document.createElement("font");
            font.textContent = "Wir warten auf WhatsApp.";
            text.replaceChildren(font);
          }
        }"""
    )
    with waiting.expect_response("**/success/**"):
        pass
    with waiting.expect_response("**/success/**"):
        pass
    expect(waiting.locator("[role=status] font").first).to_have_text("Wir warten auf WhatsApp.")
    SetupLink.objects.update(unconfirmed_since=timezone.now() - timedelta(minutes=2))
    expect(waiting.get_by_text("You can close this page")).to_be_visible()
    expect(waiting.locator("[role=status] font")).to_have_count(0)


@pytest.mark.parametrize("status", [429, 503])
def test_an_error_on_the_way_does_not_end_the_waiting(
    waiting: Page, sandbox: Sandbox, visitor: Visitor, status: int
) -> None:
    failed: list[float] = []

    def fail(route: Route) -> None:
        failed.append(time.monotonic())
        route.fulfill(status=status, headers={"Retry-After": "1"}, body="<h1>Not now</h1>")

    waiting.route("**/success/**", fail)
    while len(failed) < 3:
        waiting.wait_for_timeout(200)
    # It backs off, and shows what it showed before.
    assert failed[2] - failed[1] > failed[1] - failed[0] > 1
    expect(waiting.get_by_role("heading")).to_have_text("Almost there")
    waiting.unroute("**/success/**", fail)
    sandbox.faults(api=[])
    allow_questions()
    expect(waiting.get_by_role("heading")).to_have_text("WhatsApp is connected", timeout=20_000)
    visitor.complaints[:] = [text for text in visitor.complaints if "status of" not in text]


def test_back_from_the_hosted_page_leads_to_the_invitation(
    invite: Callable[..., str], visitor: Visitor
) -> None:
    page = visitor.window(PHONE)
    page.goto(invite())
    press(page)
    expect(page.get_by_label("Phone number")).to_be_visible()
    page.go_back()
    expect(page.get_by_role("button", name="Connect WhatsApp")).to_be_visible()


def test_button_shows_that_it_was_pressed_until_the_page_is_seen_again(
    invite: Callable[..., str], visitor: Visitor
) -> None:
    page = visitor.window(PHONE)
    page.goto(invite())
    # The form is sent only once; here not even that, so that the page stays.
    page.evaluate(
        """() => {
          window.sent = 0;
          addEventListener("submit", (event) => {
            if (!event.defaultPrevented) window.sent += 1;
            event.preventDefault();
          });
        }"""
    )
    button = page.locator("form button")
    button.click()
    expect(button).to_have_text("One moment…")
    expect(button).to_have_attribute("aria-disabled", "true")
    button.click(force=True)
    assert page.evaluate("window.sent") == 1
    page.evaluate("window.dispatchEvent(new Event('pageshow'))")
    expect(button).to_have_text("Connect WhatsApp")
    button.click()
    assert page.evaluate("window.sent") == 2


def test_customer_who_has_connected_sees_that_everywhere(
    invite: Callable[..., str], visitor: Visitor
) -> None:
    """On the way back, in a second tab, and in the invitation."""
    page = visitor.window(PHONE)
    address = invite()
    page.goto(address)
    second = page.context.new_page()
    press(page)
    second.goto(page.url)
    connect(page)
    done = "WhatsApp is connected"
    expect(page.get_by_role("heading", level=1)).to_have_text(done)
    # The hosted page of a link that was used leads to the failure URL.
    second.reload()
    expect(second.get_by_role("heading", level=1)).to_have_text(done)
    page.go_back()
    page.go_back()
    expect(page.get_by_role("heading", level=1)).to_have_text(done)
    page.goto(address)
    expect(page.get_by_role("heading", level=1)).to_have_text(done)


def test_without_cookies_a_failed_customer_can_try_again(
    invite: Callable[..., str], visitor: Visitor
) -> None:
    page = visitor.window(PHONE)

    page.route("**/whatsapp/**", refuse_cookies)
    page.goto(invite())
    press(page)
    page.get_by_role("button", name="facebook_auth_failed").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("The login was not completed")
    press(page)
    connect(page)
    expect(page.get_by_role("heading", level=1)).to_have_text("WhatsApp is connected")


@pytest.mark.parametrize("event", ["visibilitychange", "online"])
def test_who_comes_back_waits_no_longer(
    waiting: Page, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, event: str
) -> None:
    monkeypatch.setattr(base, "REFRESH_SECONDS", 600)
    with waiting.expect_response("**/success/**"):
        pass  # from now on, the page asks every ten minutes
    expect(waiting.locator("[data-kapso-refresh]")).to_have_attribute("data-kapso-refresh", "600")
    sandbox.faults(api=[])
    allow_questions()
    target = "document" if event == "visibilitychange" else "window"
    waiting.evaluate(f"{target}.dispatchEvent(new Event('{event}'))")
    expect(waiting.get_by_role("heading")).to_have_text("WhatsApp is connected", timeout=8_000)


def test_time_of_day_is_the_visitors(
    invite: Callable[..., str], visitor: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rate_limit, "CONNECT_RATE_LIMIT", 0)
    page = visitor.window(PHONE, timezone_id="Asia/Kathmandu")
    page.goto(invite())
    press(page)
    clock = page.locator("time")
    shown = page.evaluate(
        "new Date(document.querySelector('time').dateTime)"
        ".toLocaleTimeString('en', { hour: 'numeric', minute: '2-digit' })"
    )
    expect(clock).to_have_text(shown)
    expect(page.get_by_role("button")).to_have_count(0)
    visitor.complaints[:] = [text for text in visitor.complaints if "status of" not in text]


@SCRIPTS
def test_page_before_the_hosted_one_leads_on_by_itself_or_with_a_link(
    invite: Callable[..., str], visitor: Visitor, scripts: bool
) -> None:
    """Under ``form-action 'self'``, which keeps browsers from following a redirect of a form."""
    page = visitor.window(PHONE, java_script_enabled=scripts)
    page.goto(invite())

    def without_refresh(route: Route) -> None:
        if route.request.method != "POST":
            route.continue_()
            return
        response = route.fetch()
        headers = {k: v for k, v in response.headers.items() if k != "refresh"}
        route.fulfill(response=response, headers=headers)

    page.route("**/connect/**", without_refresh)
    press(page)
    link = page.get_by_role("link", name="Continue")
    expect(link).to_be_visible()
    look(visitor, page, "leaving", scripts)
    link.click()
    expect(page).to_have_url(SetupLink.objects.get().url)


@pytest.mark.parametrize("appearance", ["light", "dark"])
def test_page_after_an_error(invite: Callable[..., str], visitor: Visitor, appearance: Any) -> None:
    page = visitor.window(PHONE, color_scheme=appearance)
    address = invite()
    with mock.patch.object(views.ConnectView, "get", side_effect=OperationalError):
        page.goto(address)
    expect(page.get_by_role("heading")).to_have_text("Not possible right now")
    look(visitor, page, f"error-{appearance}")
    visitor.complaints[:] = [text for text in visitor.complaints if "status of" not in text]


def test_who_waits_with_scripts_is_not_disturbed_and_may_leave_after_a_minute(
    invite: Callable[..., str],
    visitor: Visitor,
    sandbox: Sandbox,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(base, "REFRESH_SECONDS", 1)
    page = visitor.window(PHONE)
    page.goto(invite())
    press(page)
    sandbox.faults(webhook_first=False, drop=True, api=[AWAY])
    connect(page)
    expect(page.get_by_text("updates automatically")).to_be_visible()
    page.wait_for_load_state("load")
    loads: list[Any] = []
    page.on("load", lambda loaded: loads.append(loaded))
    page.wait_for_timeout(6500)
    assert loads == [], "the server's own refresh was not called off"
    SetupLink.objects.update(unconfirmed_since=timezone.now() - timedelta(minutes=2))
    expect(page.get_by_text("You can close this page")).to_be_visible()
    look(visitor, page, "waiting-long")
    assert loads == []
    sandbox.faults(api=[])
    allow_questions()
    page.get_by_role("link", name="Check again").click()
    expect(page.get_by_role("heading")).to_have_text("WhatsApp is connected")


@pytest.mark.parametrize("appearance", ["light", "dark"])
@pytest.mark.parametrize("is_dark", [False, True], ids=["light_theme", "dark_theme"])
def test_a_sites_own_colours(
    invite: Callable[..., str], visitor: Visitor, settings: Any, appearance: Any, is_dark: bool
) -> None:
    colors = {"primary_color": "#7a1fa2", "background_color": "#fff3e0", "card_color": "#fffaf3"}
    if is_dark:
        colors = {
            "primary_color": "#ffb300",
            "background_color": "#101020",
            "card_color": "#1c1c30",
            "muted_color": "#26263c",
            "text_color": "#f5f5ff",
            "muted_text_color": "#b9b9d0",
            "border_color": "#3c3c58",
        }
    settings.KAPSO_CONNECT = {
        **settings.KAPSO_CONNECT,
        "SETUP_LINK_DEFAULTS": {"theme_config": colors},
        "LOGO_URL": "admin/img/icon-yes.svg",
    }
    page = visitor.window(PHONE, color_scheme=appearance)
    page.goto(invite())
    look(visitor, page, f"theme-{'dark' if is_dark else 'light'}-in-{appearance}")
    button = page.get_by_role("button")
    primary = "rgb(255, 179, 0)" if is_dark else "rgb(122, 31, 162)"
    expect(button).to_have_css("background-color", primary)
    own = {True: "rgb(16, 16, 32)", False: "rgb(255, 243, 224)"}[is_dark]
    has_own = is_dark or appearance == "light"
    expect(page.locator("body")).to_have_css(
        "background-color", own if has_own else "rgb(16, 22, 20)"
    )
    assert page.evaluate("document.querySelector('header img').naturalWidth") > 0


def test_logo_without_a_size_of_its_own_is_seen(
    invite: Callable[..., str], visitor: Visitor, configure: Any
) -> None:
    configure(LOGO_URL="/media/logo.svg")
    svg = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 96 48"><circle r="9"/></svg>'
    page = visitor.window(PHONE)
    page.route(
        "**/media/logo.svg", lambda route: route.fulfill(body=svg, content_type="image/svg+xml")
    )
    page.goto(invite())
    box = page.locator("header img").bounding_box()
    assert box is not None
    assert (round(box["width"]), round(box["height"])) == (96, 48)
    visitor.shoot(page, "logo")


def test_with_the_keyboard_alone(invite: Callable[..., str], visitor: Visitor) -> None:
    page = visitor.window(PHONE)
    page.goto(invite())
    page.keyboard.press("Tab")
    expect(page.get_by_role("button")).to_be_focused()
    visitor.look(page, "connect-focus", PHONE)
    page.keyboard.press("Enter")
    expect(page.get_by_label("Phone number")).to_be_visible()


def test_a_page_weighs_less_than_35_kb(
    invite: Callable[..., str], visitor: Visitor, sandbox: Sandbox, site: str
) -> None:
    page = visitor.window(PHONE)
    weights: dict[str, int] = {}

    def weigh(response: Response) -> None:
        if response.url.startswith(site) and response.status < 300:
            weights[response.url] = len(response.body())

    page.on("response", weigh)

    def assert_light() -> None:
        page.wait_for_load_state("networkidle")
        assert 0 < sum(weights.values()) < 35_000, weights
        assert all(size < 14_000 for url, size in weights.items() if ".css" in url)
        weights.clear()

    page.goto(invite(theme_config={"primary_color": "#7a1fa2"}))
    assert_light()
    press(page)
    sandbox.faults(webhook_first=False, drop=True, api=[AWAY])
    connect(page)
    expect(page.get_by_role("heading")).to_have_text("Almost there")
    assert_light()
