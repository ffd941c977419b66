"""The page of the site's own in "Onboard with your own front end", in a real browser."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import requests
from playwright.sync_api import Browser, Page, Route, expect

from example_project.demo.processes import HOST

from ..browser.support import Visitor, running_chromium
from .support import DOCS, NewSite, blocks_of

PAGE = "how-to/rest-api.md"
OWN_PAGE = "From a page of your site"
STATUS = "/api/whatsapp/v1/customers/2/status/"


@pytest.fixture(scope="module")
def front_end(site: NewSite) -> Iterator[NewSite]:
    front_end = site.branch("front-end")
    front_end.execute(PAGE, first="Mount it", last="Mount it")
    front_end.execute(PAGE, first=OWN_PAGE, last=OWN_PAGE)
    with front_end.own_sandbox(), front_end.started():
        yield front_end


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running_chromium() as browser:
        yield browser


@pytest.fixture
def page(browser: Browser, front_end: NewSite) -> Iterator[Page]:
    visitor = Visitor(browser)
    page = visitor.window()
    page.goto(f"http://{HOST}:{front_end.port}/connect/")
    page.get_by_label("Username").fill("staff")
    page.get_by_label("Password").fill("correct horse")
    yield page
    visitor.close()
    refused = "the server responded with a status of 429"
    assert [one for one in visitor.complaints if refused not in one] == []


def test_a_page_of_the_site_invites_and_sees_that_the_customer_connects(
    front_end: NewSite, page: Page
) -> None:
    keys = []

    def refuse_once(route: Route) -> None:
        keys.append(route.request.headers["idempotency-key"])
        if len(keys) == 1:
            route.fulfill(status=429, headers={"Retry-After": "1"}, json={"code": "throttled"})
        else:
            route.continue_()

    page.route("**/setup-links/", refuse_once)
    page.get_by_role("button", name="Log in").click()
    expect(page.locator("output")).to_have_text("invited")
    page.unroute_all()  # Playwright turns the browser's store off as long as there are routes
    assert len(keys) == 2
    assert len(set(keys)) == 1
    connect_url = page.get_by_role("link", name="Connect WhatsApp").get_attribute("href")
    assert connect_url.startswith(f"http://{HOST}:{front_end.port}/whatsapp/connect/")
    for _ in range(2):
        with page.expect_response(lambda answer: answer.url.endswith(STATUS)):
            pass
    asked = [line for line in front_end.log.read_text().splitlines() if STATUS in line]
    assert {line.rpartition('" ')[2].split()[0] for line in asked} == {"200", "304"}
    number = {"external_customer_id": "ada", "webhook": True}
    requests.post(f"{front_end.sandbox}/sandbox/numbers", json=number, timeout=10)
    expect(page.locator("output")).to_have_text("connected")


def test_the_page_has_every_line_of_javascript() -> None:
    (script,) = (one for one in blocks_of(DOCS / PAGE) if one.language == "javascript")
    assert (script.path, script.heading) == ("crm/static/crm/connect.js", OWN_PAGE)
