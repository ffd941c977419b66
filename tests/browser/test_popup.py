"""The JavaScript of the page "Connect in a window of its own", in Chromium; that for ``@kapso/sdk``
with a stand-in of the SDK, as far as what it does is documented."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, Route, expect

from kapso_connect.testing import Sandbox

from ..sites.self_service_urls import POPUP_PAGE, SDK_OPTIONS
from .self_service import finish, open_window
from .support import Visitor

EVENTS, MESSAGES, EMBEDDED = (one.text for one in POPUP_PAGE if one.language == "javascript")

pytestmark = pytest.mark.django_db(transaction=True)


def run(page: Page, site: str, script: str) -> None:
    """Let a page of the site, under its policy, have ``script`` in a file of its own."""
    page.route(
        f"{site}/own.js",
        lambda route: route.fulfill(body=script, content_type="text/javascript"),
    )
    page.evaluate("document.body.append(document.createElement('output'))")
    page.add_script_tag(url=f"{site}/own.js")


def test_events(settings_page: Page, site: str, sandbox: Sandbox) -> None:
    settings_page.goto(f"{site}/settings/?popup")
    run(settings_page, site, EVENTS)
    window = open_window(settings_page)
    finish(window, sandbox, "waba_limit_reached")
    expect(settings_page.locator("output")).to_have_text("That did not work: waba_limit_reached")
    window.get_by_role("button", name="Try again").click()
    with window.expect_event("close"):
        finish(window, sandbox)
    expect(settings_page.locator("output")).to_have_text("Your number is connected.")


def test_messages(settings_page: Page, site: str, sandbox: Sandbox) -> None:
    settings_page.get_by_role("button", name="Connect WhatsApp").click()
    finish(settings_page, sandbox, "link_expired")
    expect(settings_page.get_by_role("heading", name="This link has expired")).to_be_visible()
    failed = settings_page.url
    settings_page.goto(f"{site}/settings/")
    settings_page.evaluate(
        """(url) => {
          const link = document.createElement("a");
          link.href = url;
          link.textContent = "Open";
          document.body.prepend(link);
        }""",
        failed,
    )
    run(settings_page, site, MESSAGES)
    with settings_page.expect_popup() as opened:
        settings_page.get_by_role("link", name="Open").click()
    expect(opened.value.get_by_role("heading", name="This link has expired")).to_be_visible()
    expect(settings_page.locator("output")).to_have_text("kapso_connect_1: failed link_expired")


# The SDK

(ORIGIN,) = SDK_OPTIONS["allowed_origins"]
SDK = "https://sdk.example.com"
STAND_IN = """
export async function connect(token) {
  const answer = await fetch("https://sdk.example.com/connect", { method: "POST", body: token });
  if (!answer.ok) throw new Error(await answer.text());
}
"""
PAGE = """<!doctype html>
<html lang="en">
<title>Embedded</title>
<link rel="icon" href="data:,">
<form action="/token/">
  <input type="hidden" name="csrfmiddlewaretoken" value="{csrf}">
  <button>Connect</button>
</form>
<output></output>
<script type="module" src="/main.js"></script>
"""
MAIN = """
import { connect } from "https://sdk.example.com/sdk.js";
const form = document.querySelector("form");
form.addEventListener("submit", async (event) => {
  event.preventDefault();
  await connectEmbedded(form, connect).catch((error) => { sessionStorage.error = error.message; });
});
document.querySelector("output").value = sessionStorage.error ?? "";
"""


def embed(page: Page, site: str, sandbox: Sandbox, origin: str) -> None:
    """Serve a page at ``origin`` that uses the stand-in. Kapso's side of the SDK checks the token,
    the page's origin, and that the link has one connection type, and connects a number."""
    csrf = "a" * 32
    page.context.add_cookies([{"name": "csrftoken", "value": csrf, "url": site}])

    def serve_page(route: Route) -> None:
        path = route.request.url.removeprefix(origin)
        if path == "/token/":
            headers = {k: v for k, v in route.request.headers.items() if k != "origin"}
            route.fulfill(response=route.fetch(url=f"{site}/settings/token/", headers=headers))
        elif path == "/main.js":
            route.fulfill(body=EMBEDDED + MAIN, content_type="text/javascript")
        else:
            route.fulfill(body=PAGE.format(csrf=csrf), content_type="text/html")

    def serve_sdk(route: Route) -> None:
        request, allowed = route.request, {"Access-Control-Allow-Origin": "*"}
        if request.url == f"{SDK}/sdk.js":
            route.fulfill(body=STAND_IN, content_type="text/javascript", headers=allowed)
            return
        links = [one for one in sandbox.state()["setup_links"] if one["status"] == "active"]
        found = [one for one in links if one["url"].endswith(f"/{request.post_data}")]
        problem = ""
        if not found:
            problem = "unknown token"
        elif request.headers["origin"] not in found[0]["allowed_origins"]:
            problem = "origin not allowed"
        elif len(found[0]["allowed_connection_types"]) != 1:
            problem = "more than one connection type"
        else:
            (customer,) = sandbox.state()["customers"]
            sandbox.add_number(customer_id=customer["id"], webhook=True)
        route.fulfill(status=400 if problem else 200, body=problem, headers=allowed)

    page.route(f"{origin}/**", serve_page)
    page.route(f"{SDK}/**", serve_sdk)
    page.goto(f"{origin}/")


def test_sdk(settings_page: Page, site: str, sandbox: Sandbox) -> None:
    embed(settings_page, site, sandbox, ORIGIN)
    with settings_page.expect_event("load"):
        settings_page.get_by_role("button", name="Connect").click()
    expect(settings_page.locator("output")).to_have_text("")
    settings_page.goto(f"{site}/settings/")
    expect(settings_page.locator(".kapso-connection-state")).to_have_text("WhatsApp is connected")


def test_sdk_on_another_origin(
    settings_page: Page,
    site: str,
    sandbox: Sandbox,
    visitor: Visitor,
) -> None:
    embed(settings_page, site, sandbox, "https://elsewhere.example.com")
    with settings_page.expect_event("load"):
        settings_page.get_by_role("button", name="Connect").click()
    expect(settings_page.locator("output")).to_have_text("origin not allowed")
    visitor.close()
    assert all("status of 400" in one for one in visitor.complaints)
    visitor.complaints = []
