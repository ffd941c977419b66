"""The pages of the example, in its demo."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, Route, expect

from example_project.demo.data import MEMBER, USERNAME
from example_project.demo.processes import Demo, running

from .support import PHONE, Visitor, assert_accessible

POLICY = "default-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    log: Path = tmp_path_factory.mktemp("demo") / "site.log"
    with running(log=log) as demo:
        yield demo


def under_the_policy(route: Route) -> None:
    response = route.fetch(max_redirects=0)
    route.fulfill(
        response=response, headers={**response.headers, "content-security-policy": POLICY}
    )


def log_in(page: Page, demo: Demo, user: str) -> None:
    page.get_by_label("User name").fill(user)
    page.get_by_label("Password").fill(demo.password)
    page.get_by_role("button", name="Log in").click()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_pages_are_accessible_at_every_width(visitor: Visitor, demo: Demo, scheme: str) -> None:
    page = visitor.window(color_scheme=scheme)
    page.route("**/*", under_the_policy)
    page.goto(f"{demo.site_url}/")
    visitor.look(page, f"example-public-{scheme}")
    assert_accessible(page)
    log_in(page, demo, USERNAME)
    expect(page.get_by_role("heading", name="Companies on WhatsApp")).to_be_visible()
    visitor.look(page, f"example-start-{scheme}")
    assert_accessible(page)
    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_role("button", name="Log in")).to_be_visible()
    page.goto(f"{demo.site_url}/account/")
    assert_accessible(page)
    log_in(page, demo, MEMBER)
    expect(page.get_by_role("heading", name="Your account")).to_be_visible()
    visitor.look(page, f"example-account-{scheme}")
    assert_accessible(page)


def test_a_company_is_invited_from_the_start_page(visitor: Visitor, demo: Demo) -> None:
    page = visitor.window(PHONE)
    page.goto(f"{demo.site_url}/")
    log_in(page, demo, USERNAME)
    page.get_by_role("button", name="Invite Park Street Pharmacy").click()
    expect(page.get_by_role("heading", name="Create WhatsApp setup link")).to_be_visible()
