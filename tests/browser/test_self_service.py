"""A logged-in user connects, reconnects and disconnects WhatsApp on the site's own page, in its
window or in another one."""

from __future__ import annotations

from typing import Any

import pytest
from django.utils import timezone
from playwright.sync_api import Page, Route, expect

from kapso_connect.models import Connection, Customer
from kapso_connect.testing import Sandbox

from ..factories import make_connection, make_link
from .self_service import NUMBER, finish, log_in, open_window, state
from .support import PHONE, Visitor, assert_accessible

SCHEMES = pytest.mark.parametrize("scheme", ["light", "dark"])
SHOWN = "+44 20 7183 8750"

pytestmark = pytest.mark.django_db(transaction=True)


# In the same window


def test_connect_and_come_back(
    settings_page: Page, site: str, sandbox: Sandbox, visitor: Visitor
) -> None:
    expect(state(settings_page)).to_have_text("WhatsApp is not connected")
    visitor.look(settings_page, "self-service-new")
    settings_page.get_by_role("button", name="Connect WhatsApp").click()
    finish(settings_page, sandbox)
    expect(settings_page.get_by_role("heading", name="WhatsApp is connected")).to_be_visible()
    settings_page.get_by_role("link", name="Continue").click()
    expect(settings_page).to_have_url(f"{site}/settings/")
    expect(settings_page.get_by_text("Back: ada")).to_be_visible()
    expect(state(settings_page)).to_have_text("WhatsApp is connected")
    expect(settings_page.get_by_text(SHOWN)).to_be_visible()
    visitor.look(settings_page, "self-service-connected")


def test_try_again_after_a_failure(
    settings_page: Page, site: str, sandbox: Sandbox, visitor: Visitor
) -> None:
    settings_page.get_by_role("button", name="Connect WhatsApp").click()
    finish(settings_page, sandbox, "phone_verification_failed")
    expect(settings_page.get_by_role("heading", name="could not be verified")).to_be_visible()
    settings_page.goto(f"{site}/settings/")
    expect(state(settings_page)).to_have_text("The last attempt did not work.")
    visitor.look(settings_page, "self-service-failed")
    settings_page.get_by_role("button", name="Try again").click()
    finish(settings_page, sandbox)
    settings_page.get_by_role("link", name="Continue").click()
    expect(state(settings_page)).to_have_text("WhatsApp is connected")


def test_disconnect_and_reconnect(
    settings_page: Page, site: str, sandbox: Sandbox, visitor: Visitor
) -> None:
    settings_page.get_by_role("button", name="Connect WhatsApp").click()
    finish(settings_page, sandbox)
    settings_page.get_by_role("link", name="Continue").click()
    button = settings_page.get_by_role("button", name="Disconnect this number")
    expect(button).to_be_hidden()
    settings_page.get_by_text("Disconnect", exact=True).click()
    expect(button).to_be_visible()
    visitor.look(settings_page, "self-service-disconnect")
    button.click()
    expect(state(settings_page)).to_have_text("Your number is disconnected")
    expect(settings_page).to_have_url(f"{site}/settings/")
    visitor.look(settings_page, "self-service-disconnected")
    settings_page.get_by_role("button", name="Connect another number").click()
    finish(settings_page, sandbox)
    settings_page.get_by_role("link", name="Continue").click()
    number = Connection.objects.get(status="connected")
    Connection.objects.filter(pk=number.pk).update(
        health_status="unhealthy", health_problems=[{"check": "token_validity"}]
    )
    settings_page.goto(f"{site}/settings/")
    settings_page.get_by_role("button", name="Connect again").click()
    finish(settings_page, sandbox)
    expect(settings_page.get_by_role("heading", name="WhatsApp is connected")).to_be_visible()
    assert Customer.objects.get().latest_setup_link.reconnect_number == NUMBER


STATES: dict[str, dict[str, Any]] = {
    "test": {"display_phone_number": "+1 555-123-4567"},
    "restricted": {"account_status": "restricted"},
    "paused": {"status": "disconnected", "disconnect_reason": "offboarded"},
}


@SCHEMES
@pytest.mark.parametrize("name", STATES)
def test_states_can_be_read_by_everyone(
    site: str, member: Any, visitor: Visitor, name: str, scheme: Any
) -> None:
    fields = {
        "disconnected_at": timezone.now(),
        "display_phone_number": NUMBER,
        "verified_name": "Ada's Bakery",
        **STATES[name],
    }
    make_connection(Customer.objects.for_owner(member), **fields)
    settings_page = visitor.window(PHONE, color_scheme=scheme)
    log_in(settings_page.context, site, member)
    settings_page.goto(f"{site}/settings/")
    expect(settings_page.locator(".kapso-connection-problem")).to_be_visible()
    visitor.look(settings_page, f"self-service-{name}-{scheme}", {"width": 320, "height": 640})
    assert_accessible(settings_page)


@SCHEMES
def test_page_before_connecting_is_accessible(
    site: str, member: Any, visitor: Visitor, scheme: Any
) -> None:
    settings_page = visitor.window(PHONE, color_scheme=scheme)
    log_in(settings_page.context, site, member)
    settings_page.goto(f"{site}/settings/")
    visitor.look(settings_page, f"self-service-new-{scheme}")
    assert_accessible(settings_page)


# In a window of its own


@pytest.fixture(params=["same-origin", "same-origin-allow-popups", None])
def opener(request: Any, settings_page: Page, site: str, settings: Any) -> Page:
    """The site's page with ``popup=True``, with each policy that it may have: Django's own comes
    first."""
    settings.SECURE_CROSS_ORIGIN_OPENER_POLICY = request.param
    settings_page.goto(f"{site}/settings/?popup")
    return settings_page


def test_window_closes_and_its_opener_shows_the_number(opener: Page, sandbox: Sandbox) -> None:
    window = open_window(opener)
    with window.expect_event("close"):
        finish(window, sandbox)
    expect(state(opener)).to_have_text("WhatsApp is connected")
    expect(opener.get_by_text(SHOWN)).to_be_visible()


def test_failure_is_told_and_can_be_read(opener: Page, sandbox: Sandbox, visitor: Visitor) -> None:
    window = open_window(opener)
    finish(window, sandbox, "facebook_auth_failed")
    expect(state(opener)).to_have_text("The last attempt did not work.")
    expect(window.get_by_role("heading", name="The login was not completed")).to_be_visible()
    window.get_by_role("button", name="Try again").click()
    with window.expect_event("close"):
        finish(window, sandbox)
    expect(state(opener)).to_have_text("WhatsApp is connected")


LISTEN = """(channel) => {
  document.addEventListener("kapso:connected", (event) => event.preventDefault());
  const html = document.documentElement;
  html.dataset.heard = "";
  const hear = ({ data, origin }) => {
    html.dataset.heard += `${origin} ${data.type} ${data.status};`;
  };
  const where = channel ? new BroadcastChannel(channel) : window;
  where.addEventListener("message", hear);
}"""


def without_opener_policy(route: Route) -> None:
    response = route.fetch(max_redirects=0)
    headers = {k: v for k, v in response.headers.items() if k != "cross-origin-opener-policy"}
    route.fulfill(response=response, headers=headers)


@pytest.mark.parametrize(
    ("policy", "channel"), [(None, ""), (None, "kapso_connect"), ("same-origin", "kapso_connect")]
)
def test_page_may_listen_itself(
    settings_page: Page,
    site: str,
    sandbox: Sandbox,
    settings: Any,
    policy: str | None,
    channel: str,
) -> None:
    settings.SECURE_CROSS_ORIGIN_OPENER_POLICY = policy
    if policy is None:
        settings_page.context.route(f"{sandbox.url}/**", without_opener_policy)
    settings_page.goto(f"{site}/settings/?popup")
    settings_page.evaluate(LISTEN, channel)
    window = open_window(settings_page)
    with window.expect_event("close"):
        finish(window, sandbox)
    heard = f"{site} kapso_connect connected;"
    expect(settings_page.locator("html")).to_have_attribute("data-heard", heard)


def test_page_of_another_origin_hears_nothing(
    settings_page: Page, site: str, sandbox: Sandbox, settings: Any, visitor: Visitor
) -> None:
    settings.SECURE_CROSS_ORIGIN_OPENER_POLICY = None
    settings_page.context.route(f"{sandbox.url}/**", without_opener_policy)
    link = make_link()
    settings_page.goto(f"{sandbox.url}/")
    settings_page.evaluate(LISTEN, "")
    url = f"{site}/whatsapp/failed/?setup_link_id={link.kapso_id}&error_code=link_expired"
    with settings_page.expect_popup() as opened:
        settings_page.evaluate("(url) => { window.open(url, 'kapso_connect_x') }", url)
    window = opened.value
    expect(window.get_by_role("heading", name="This link has expired")).to_be_visible()
    assert window.evaluate("window.opener !== null")
    expect(settings_page.locator("html")).to_have_attribute("data-heard", "")
    visitor.close()
    (complaint,) = visitor.complaints
    assert "does not match the recipient window's origin" in complaint
    visitor.complaints = []


def test_other_window_changes_nothing(settings_page: Page, site: str, sandbox: Sandbox) -> None:
    """One in which the same user connects without a popup."""
    settings_page.goto(f"{site}/settings/?popup")
    settings_page.evaluate(LISTEN, "kapso_connect")
    other = settings_page.context.new_page()
    other.goto(f"{site}/settings/")
    other.get_by_role("button", name="Connect WhatsApp").click()
    finish(other, sandbox)
    expect(other.get_by_role("link", name="Continue")).to_be_visible()
    expect(settings_page.locator("html")).to_have_attribute("data-heard", "")


@pytest.mark.parametrize("used", [0, 1])
def test_each_of_two_windows_is_heard(
    settings_page: Page, site: str, sandbox: Sandbox, used: int
) -> None:
    """After a double click, or for two customers on the page."""
    settings_page.goto(f"{site}/settings/?popup")
    windows = []
    for _ in range(2):
        windows.append(open_window(settings_page))
        windows[-1].wait_for_url(f"{sandbox.url}/**")
    with windows[used].expect_event("close"):
        finish(windows[used], sandbox)
    expect(state(settings_page)).to_have_text("WhatsApp is connected")


def test_no_window_is_opened_for_what_the_page_stops(settings_page: Page, site: str) -> None:
    settings_page.goto(f"{site}/settings/?popup")
    settings_page.evaluate(
        """() => {
          for (const kind of ["submit", "click"]) {
            document.querySelector("main").addEventListener(kind, (event) => {
              if (kind === "submit" || event.target.matches("a")) {
                event.preventDefault();
                document.documentElement.dataset.stopped += ` ${kind}`;
              }
            });
          }
          document.documentElement.dataset.stopped = "";
          const link = document.createElement("a");
          link.href = "/whatsapp/failed/";
          link.textContent = "Open";
          link.dataset.kapsoPopup = "";
          document.querySelector("main").append(link);
        }"""
    )
    settings_page.get_by_role("link", name="Open").click()
    settings_page.get_by_role("button", name="Connect WhatsApp").click()
    expect(settings_page.locator("html")).to_have_attribute("data-stopped", " click submit")
    assert settings_page.context.pages == [settings_page]


def test_blocked_window_is_no_obstacle(settings_page: Page, site: str, sandbox: Sandbox) -> None:
    settings_page.add_init_script("window.open = () => null")
    settings_page.goto(f"{site}/settings/?popup")
    settings_page.get_by_role("button", name="Connect WhatsApp").click()
    finish(settings_page, sandbox)
    settings_page.get_by_role("link", name="Continue").click()
    expect(state(settings_page)).to_have_text("WhatsApp is connected")


def test_number_that_cannot_be_used_is_shown_in_the_window(opener: Page, sandbox: Sandbox) -> None:
    window = open_window(opener)
    finish(window, sandbox, number="+15551234567")
    expect(window.get_by_role("heading", name="Not ready to use yet")).to_be_visible()
    expect(opener.get_by_text("one of Meta's test numbers")).to_be_visible()
