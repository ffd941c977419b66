"""A real browser for tests: Chromium, driven by Playwright, that notes whatever it complains of."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from django.conf import settings
from django.http import HttpRequest, HttpResponseBase
from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Page,
    Route,
    expect,
    sync_playwright,
)

TIMEOUT = 15_000
"""Milliseconds that a page has for what is expected of it: all cores may be busy."""

expect.set_options(timeout=TIMEOUT)

PHONE = {"width": 360, "height": 740}
DESKTOP = {"width": 1280, "height": 800}

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-sync",
    "--no-first-run",
]


class StrictPolicy:
    """Middleware: the Content-Security-Policy under which the app promises to work."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        response = self.get_response(request)
        policy = "default-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
        response.headers["Content-Security-Policy"] = policy
        # Django's middleware reads this setting only once.
        if opener_policy := settings.SECURE_CROSS_ORIGIN_OPENER_POLICY:
            response.headers["Cross-Origin-Opener-Policy"] = opener_policy
        else:
            del response.headers["Cross-Origin-Opener-Policy"]
        return response


def chromium() -> str:
    """Return the browser's path; skip the test, or fail it where a browser is required."""
    path = os.environ.get("KAPSO_TEST_CHROMIUM")
    # The first has no windows at all: the tests take two thirds of the time with it.
    path = path or shutil.which("chromium-headless-shell") or shutil.which("chromium")
    if path:
        return path
    reason = "Chromium is not installed (apt-get install chromium, or set KAPSO_TEST_CHROMIUM)."
    if os.environ.get("KAPSO_TEST_REQUIRE_BROWSER") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@contextmanager
def running_chromium() -> Iterator[Browser]:
    path = chromium()
    with pytest.MonkeyPatch.context() as patch, sync_playwright() as playwright:
        # Playwright's synchronous API keeps an event loop in this thread, which Django takes for
        # asynchronous code.
        patch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "true")
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Visitor:
    """Opens windows that share nothing, and notes what their consoles and networks report."""

    browser: Browser
    screenshots: Path | None = None
    complaints: list[str] = field(default_factory=list)
    _contexts: list[BrowserContext] = field(default_factory=list)

    def window(self, viewport: dict[str, int] = DESKTOP, **options: Any) -> Page:
        context = self.browser.new_context(viewport=viewport, **{"locale": "en-GB", **options})
        context.set_default_timeout(TIMEOUT)
        self._contexts.append(context)
        page = context.new_page()
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.complaints.append(f"error: {error}"))
        return page

    def _console(self, message: ConsoleMessage) -> None:
        # Every site has its own icon, or none.
        is_icon = message.location["url"].endswith("/favicon.ico")
        if message.type in ("error", "warning") and not is_icon:
            self.complaints.append(f"{message.type}: {message.text}")

    def shoot(self, page: Page, name: str, *, full_page: bool = True) -> None:
        """Take a screenshot, where somebody wants to look at it."""
        if self.screenshots:
            page.screenshot(path=self.screenshots / f"{name}.png", full_page=full_page)

    def look(self, page: Page, name: str, phone: dict[str, int] = PHONE) -> None:
        """See the page at both widths; nothing may be wider than the screen."""
        page.wait_for_load_state("load")
        before = page.viewport_size
        for device, size in {"phone": phone, "desktop": DESKTOP}.items():
            page.set_viewport_size(size)
            self.shoot(page, f"{name}-{device}")
            width = page.evaluate("document.documentElement.scrollWidth")
            assert width <= size["width"], f"{name} is {width} px wide on a {device}"
        if before:
            page.set_viewport_size(before)

    def close(self) -> None:
        for context in self._contexts:
            context.close()


def settle(page: Page) -> None:
    """Wait until colours that change with the scheme have changed."""
    page.evaluate("Promise.all(document.getAnimations().map((one) => one.finished))")


def assert_accessible(page: Page) -> None:
    """Let axe-core look for what WCAG 2.2 AA forbids."""
    settle(page)
    tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
    options = {"runOnly": {"type": "tag", "values": tags}, "resultTypes": ["violations"]}
    found = Axe().run(page, options=options)
    assert found.violations_count == 0, found.generate_report()


def select_all(page: Page) -> None:
    """Select all rows of a list of the admin. Django's script, once loaded, unticks what was ticked
    before."""
    page.wait_for_load_state("load")
    page.locator("#action-toggle").check()


def path_of(page: Page) -> str:
    return re.sub(r"^https?://[^/]+|\?.*$", "", page.url)


def refuse_cookies(route: Route) -> None:
    """Let the browser keep no cookie of the site, as one that blocks them."""
    response = route.fetch(max_redirects=0)  # stores the cookies of the response
    route.request.frame.page.context.clear_cookies()
    headers = {k: v for k, v in response.headers.items() if k != "set-cookie"}
    route.fulfill(response=response, headers=headers)
