"""The page "A front end on another origin": a page that another server has runs the JavaScript of
its blocks, against new sites that have nothing but the settings of its blocks."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from example_project.demo.processes import HOST, free_port, serving
from kapso_connect.testing import Sandbox

from ..conftest import API_KEY, WEBHOOK_SECRET
from ..docs.support import DOCS, ROOT, Block, blocks_of, run
from .support import Visitor

PAGE = blocks_of(DOCS / "how-to" / "front-end.md")
LIMIT = 60
"""Requests a minute that read; a page that polls needs 20."""
API, APP = "https://crm.example.com", "https://app.example.com"

FORM = """<!doctype html>
<html lang="en">
<title>Front end</title>
<link rel="icon" href="data:,">
<form>
  <input name="username" value="staff">
  <input name="password" type="password" value="correct horse">
</form>
<a>Connect WhatsApp</a>
<output></output>
<script type="module" src="main.js"></script>
"""


def blocks(heading: str, language: str) -> list[Block]:
    return [one for one in PAGE if (one.heading, one.language) == (heading, language)]


def script(heading: str) -> str:
    """The JavaScript of one way to authenticate, and the requests."""
    (first,), (requests,) = blocks(heading, "javascript"), blocks("The requests", "javascript")
    return f"{first.text}\n{requests.text}"


# Two servers


@dataclass
class FrontEnd:
    """A server with one page and one script, which it has under two host names."""

    port: int
    script: str = ""

    def url(self, host: str) -> str:
        return f"http://{host}:{self.port}"


@pytest.fixture(scope="module")
def front_end() -> Iterator[FrontEnd]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            is_script = self.path == "/main.js"
            body = (served.script if is_script else FORM).encode()
            self.send_response(200)
            kind = "text/javascript" if is_script else "text/html"
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            pass

    with ThreadingHTTPServer((HOST, 0), Handler) as server:
        served = FrontEnd(server.server_address[1])
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield served
        server.shutdown()
        thread.join()


@dataclass
class Site:
    """A running site, and what its server prints: a line for each request."""

    url: str
    log: Path

    def answers(self, path: str) -> list[str]:
        """The statuses of the requests whose path begins with ``path``."""
        lines = [line for line in self.log.read_text().splitlines() if f" {path}" in line]
        return [line.rpartition('" ')[2].split()[0] for line in lines]


@contextmanager
def running_site(
    folder: Path, sandbox: Sandbox, app: str, heading: str, *, count: int | None = None
) -> Iterator[Site]:
    """Run a new project after the tutorial, with the API, and with the blocks of ``heading``: the
    first ``count`` of the settings, or all."""
    port = free_port(0)
    url = f"http://localhost:{port}"
    start = [sys.executable, "-m", "django", "startproject", "mysite", "."]
    environment = {
        **{name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"},
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        "KAPSO_API_KEY": API_KEY,
        "KAPSO_API_BASE_URL": sandbox.url,
        "KAPSO_WEBHOOK_SECRET": WEBHOOK_SECRET,
        "KAPSO_PUBLIC_URL": url,
        "DJANGO_SUPERUSER_PASSWORD": "correct horse",
    }
    run(start, cwd=folder, env=environment)
    tutorial = [one for one in blocks_of(DOCS / "tutorial.md") if one.path.startswith("mysite/")]
    tutorial = [one for one in tutorial if '"crm"' not in one.text]  # the reader's own app
    mount = [one for one in blocks_of(DOCS / "how-to" / "rest-api.md") if one.heading == "Mount it"]
    own = blocks(heading, "python")
    settings = [one for one in own if one.path == "mysite/settings.py"][:count]
    urls = [one for one in own if one.path == "mysite/urls.py"]
    for block in [*tutorial, *mount, *blocks("Allow the origin", "python"), *settings, *urls]:
        module = folder / block.path
        module.write_text(f"{module.read_text()}\n{block.text.replace(APP, app)}")
    with (folder / "mysite" / "settings.py").open("a") as file:
        file.write(f'\nKAPSO_CONNECT |= {{"API_THROTTLE_RATES": {{"read": "{LIMIT}/min"}}}}\n')
    manage = [sys.executable, "manage.py"]
    run([*manage, "migrate", "--verbosity", "0"], cwd=folder, env=environment)
    user = ("createsuperuser", "--noinput", "--username", "staff", "--email", "s@example.com")
    run([*manage, *user], cwd=folder, env=environment)
    log = folder / "site.log"
    server = [*manage, "runserver", "--noreload", f"{HOST}:{port}"]
    with serving(server, environment, port, log, folder):
        sandbox.set_webhook(f"{url}/whatsapp/webhook/")
        yield Site(url, log)


# What the page does


def log_in(page: Page, site: Site) -> None:
    """Log in on the site's own page."""
    page.goto(f"{site.url}/admin/")
    page.get_by_label("Username").fill("staff")
    page.get_by_label("Password").fill("correct horse")
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("heading", name="Site administration")).to_be_visible()


def onboard(page: Page, front_end: FrontEnd, host: str, site: Site, sandbox: Sandbox) -> None:
    """Open the page, let it create a customer and a link, and let it see that the customer
    connects. While nothing changes, the browser asks with the ETag that it stored."""
    status = "/api/whatsapp/v1/customers/1/status/"
    page.goto(front_end.url(host))
    expect(page.locator("output")).to_have_text("invited")
    assert page.locator("a").get_attribute("href").startswith(f"{site.url}/whatsapp/connect/")
    with page.expect_response(lambda answer: answer.url.endswith(status)):
        pass  # the second request may have been sent before
    with page.expect_response(lambda answer: answer.url.endswith(status)) as again:
        pass
    assert "origin" in again.value.headers["vary"]
    assert set(site.answers(status)) == {"200", "304"}
    sandbox.add_number(external_customer_id="ada", webhook=True)
    expect(page.locator("output")).to_have_text("connected")


FETCH = """async ([site, path, options]) => {
  const answer = await fetch(site + path, options);
  return [answer.status, Object.fromEntries(answer.headers)];
}"""


def ask(page: Page, site: Site, path: str, **options: Any) -> tuple[int, dict[str, str]]:
    """Return the status and the headers of an answer of the API, as the page may read them."""
    path = f"/api/whatsapp/v1/{path}"
    status, headers = page.evaluate(FETCH, [site.url, path, options])
    return status, headers


def check_headers(page: Page, site: Site, **options: Any) -> set[str]:
    """Let the page send and read what it may, and return the headers that it read. ``options`` are
    of ``fetch``, with those headers that say who the user is."""
    who = options.pop("headers")
    status, headers = ask(page, site, "customers/", headers=who, **options)
    assert (status, headers["ratelimit-limit"]) == (200, str(LIMIT))
    read = set(headers)
    given = {**who, "X-Request-ID": "front-end.1", "Accept-Language": "es"}
    status, headers = ask(page, site, "customers/1/status/", headers=given, **options)
    assert (status, headers["x-request-id"]) == (200, "front-end.1")
    read |= set(headers)
    # A header of one's own is left alone by the browser: it is told of the 304.
    conditional = {**who, "If-None-Match": headers["etag"], "Accept-Language": "es"}
    status, _headers = ask(page, site, "customers/1/status/", headers=conditional, **options)
    assert status == 304
    new = {**who, "Content-Type": "application/json", "Idempotency-Key": "k"}
    body = '{"name": "Bob"}'
    for replayed in (None, "true"):
        status, headers = ask(
            page, site, "customers/", method="POST", headers=new, body=body, **options
        )
        assert status == 201
        assert headers["location"].startswith(f"{site.url}/api/whatsapp/v1/customers/")
        assert headers.get("idempotent-replayed") == replayed
        read |= set(headers)
    for number in range(LIMIT):
        status, headers = ask(page, site, f"customers/9999{number}/", headers=who, **options)
        if status == 429:
            break
    assert (status, headers["ratelimit-remaining"]) == (429, "0")
    assert 1 <= int(headers["retry-after"]) <= 60
    return read | set(headers)


def exposed() -> set[str]:
    settings: dict[str, Any] = {"INSTALLED_APPS": [], "MIDDLEWARE": []}
    (block,) = blocks("Allow the origin", "python")
    exec(block.text, settings)
    return {name.lower() for name in settings["CORS_EXPOSE_HEADERS"]}


# The ways to authenticate


@pytest.fixture
def servers() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


REFUSALS = ("the server responded with a status of 4",)
"""What Chromium reports about each answer from 400."""


@pytest.fixture
def page(visitor: Visitor) -> Iterator[Page]:
    yield visitor.window()
    visitor.close()
    visitor.complaints = [
        one for one in visitor.complaints if not any(known in one for known in REFUSALS)
    ]


@pytest.mark.parametrize(("host", "count"), [("localhost", 1), ("127.0.0.1", None)])
def test_session(
    front_end: FrontEnd,
    servers: ExitStack,
    sandbox: Sandbox,
    tmp_path: Path,
    page: Page,
    host: str,
    count: int | None,
) -> None:
    """On another port, with the first settings; on another domain, with all."""
    app = front_end.url(host)
    site = servers.enter_context(running_site(tmp_path, sandbox, app, "Session", count=count))
    front_end.script = script("Session").replace(API, site.url)
    log_in(page, site)
    onboard(page, front_end, host, site, sandbox)
    token = page.evaluate(
        "async (url) => (await (await fetch(url, {credentials: 'include'})).json()).csrf_token",
        f"{site.url}/api/csrf-token/",
    )
    read = check_headers(page, site, credentials="include", headers={"X-CSRFToken": token})
    assert exposed() - read == {"www-authenticate"}  # which sessions have no use for


def test_session_of_another_domain_needs_the_cookies_settings(
    front_end: FrontEnd,
    servers: ExitStack,
    sandbox: Sandbox,
    tmp_path: Path,
    visitor: Visitor,
) -> None:
    page = visitor.window()
    app = front_end.url("127.0.0.1")
    site = servers.enter_context(running_site(tmp_path, sandbox, app, "Session", count=1))
    front_end.script = ""
    log_in(page, site)
    page.goto(app)
    status, _headers = ask(page, site, "customers/", credentials="include")
    assert status == 403
    page.goto(front_end.url("localhost"))  # which is not an allowed origin
    refused = page.evaluate(
        "(url) => fetch(url, {credentials: 'include'}).then(() => '', (error) => error.message)",
        f"{site.url}/api/whatsapp/v1/customers/",
    )
    assert refused == "Failed to fetch"
    visitor.close()
    known = (*REFUSALS, "has been blocked by CORS policy", "net::ERR_FAILED")
    visitor.complaints = [c for c in visitor.complaints if not any(one in c for one in known)]


def token_of(page: Page, site: Site, name: str) -> str:
    """Return the token ``name`` that the site gives the user of the form."""
    body = """async ([url, name]) => {
      const body = new FormData(document.querySelector("form"));
      return (await (await fetch(url, { method: "POST", body })).json())[name];
    }"""
    token: str = page.evaluate(body, [f"{site.url}/api/token/", name])
    return token


def test_jwt(
    front_end: FrontEnd, servers: ExitStack, sandbox: Sandbox, tmp_path: Path, page: Page
) -> None:
    app = front_end.url("127.0.0.1")
    site = servers.enter_context(running_site(tmp_path, sandbox, app, "JWT"))
    front_end.script = script("JWT").replace(API, site.url)
    onboard(page, front_end, "127.0.0.1", site, sandbox)
    assert site.answers("/api/token/refresh/") == []
    status, unknown = ask(page, site, "customers/", headers={"Authorization": "Bearer wrong"})
    assert (status, unknown["www-authenticate"]) == (401, 'Bearer realm="api"')
    who = {"Authorization": f"Bearer {token_of(page, site, 'access')}"}
    assert exposed() == (check_headers(page, site, headers=who) | set(unknown)) & exposed()


def test_jwt_is_renewed_before_it_expires(
    front_end: FrontEnd, servers: ExitStack, sandbox: Sandbox, tmp_path: Path, page: Page
) -> None:
    app = front_end.url("127.0.0.1")
    site = servers.enter_context(running_site(tmp_path, sandbox, app, "JWT"))
    front_end.script = script("JWT").replace(API, site.url)
    page.clock.install()
    page.goto(app)
    expect(page.locator("a")).to_have_attribute("href", re.compile("/whatsapp/connect/"))
    with page.expect_response(f"{site.url}/api/token/refresh/") as renewed:
        page.clock.fast_forward("05:00")
    assert renewed.value.ok
    expect(page.locator("output")).to_have_text("invited")
    sandbox.add_number(external_customer_id="ada", webhook=True)
    page.clock.fast_forward("00:05")
    expect(page.locator("output")).to_have_text("connected")


def test_token(
    front_end: FrontEnd, servers: ExitStack, sandbox: Sandbox, tmp_path: Path, page: Page
) -> None:
    app = front_end.url("127.0.0.1")
    site = servers.enter_context(running_site(tmp_path, sandbox, app, "Token"))
    front_end.script = script("Token").replace(API, site.url)
    onboard(page, front_end, "127.0.0.1", site, sandbox)
    status, unknown = ask(page, site, "customers/", headers={"Authorization": "Token wrong"})
    assert (status, unknown["www-authenticate"]) == (401, "Token")
    who = {"Authorization": f"Token {token_of(page, site, 'token')}"}
    assert exposed() == (check_headers(page, site, headers=who) | set(unknown)) & exposed()


def test_an_error_names_the_code_and_the_request(
    front_end: FrontEnd, servers: ExitStack, sandbox: Sandbox, tmp_path: Path, visitor: Visitor
) -> None:
    app = front_end.url("127.0.0.1")
    site = servers.enter_context(running_site(tmp_path, sandbox, app, "Token"))
    front_end.script = script("Token").replace(API, site.url)
    page = visitor.window()
    for _ in range(2):  # the second time, the external id is taken
        with page.expect_response(lambda answer: answer.url.endswith("/customers/")) as answer:
            page.goto(app)
    request_id = answer.value.headers["x-request-id"]
    expect(page.locator("output")).to_have_text("")
    visitor.close()
    assert "external_customer_id_taken: " in visitor.complaints[-1]
    assert request_id in visitor.complaints[-1]
    visitor.complaints = []


def test_every_javascript_block_of_the_page_was_run() -> None:
    used = "".join(script(heading) for heading in ("Session", "JWT", "Token"))
    every = [block for block in PAGE if block.language == "javascript"]
    assert len(every) == 4
    assert all(block.text in used for block in every)
