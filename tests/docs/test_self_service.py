"""The page "Let users connect WhatsApp themselves", in a new project."""

from __future__ import annotations

import re
from html import unescape
from urllib.parse import urljoin

import pytest

from example_project.demo.browser import Browser, Page
from example_project.demo.processes import HOST, free_port

from .support import NewSite

STRICT = """
DATABASES["default"]["ATOMIC_REQUESTS"] = True
MIDDLEWARE += ["mysite.policy.strict"]
"""
POLICY = """
def strict(get_response):
    def middleware(request):
        response = get_response(request)
        response["Content-Security-Policy"] = "default-src 'self'; form-action 'self'"
        return response

    return middleware
"""
REVOKE = """
from kapso_connect.models import SetupLink
from kapso_connect.onboarding import revoke_setup_link
for link in SetupLink.objects.select_related("customer"):
    revoke_setup_link(link)
"""


@pytest.fixture(scope="module")
def own(companies: NewSite) -> NewSite:
    own = companies.branch("self-service")
    own.port = free_port(0)
    own.environment["KAPSO_PUBLIC_URL"] = f"http://{HOST}:{own.port}"
    own.shell(REVOKE)  # the link of the earlier page leads back to another port
    own.execute("how-to/self-service.md")
    with (own.project / "mysite" / "settings.py").open("a") as settings:
        settings.write(STRICT)
    (own.project / "mysite" / "policy.py").write_text(POLICY)
    words = [own.python, "manage.py", "runserver", "--noreload", f"{HOST}:{own.port}"]
    own.serve(words, own.port, own.folder / "self-service.log")
    return own


def log_in(browser: Browser, url: str, username: str) -> Page:
    page = browser.get(url)
    assert "/accounts/login/" in page.url
    return browser.submit(
        page, page.forms[0], ("username", username), ("password", "correct horse")
    )


def test_user_connects_and_comes_back_identified(own: NewSite) -> None:
    url = own.output.strip().replace(":8000", f":{own.port}")
    with Browser() as user:
        page = log_in(user, url, "staff")
        assert "WhatsApp is not connected" in page.text
        page = user.submit(page, page.form("action"))
        page = user.submit(page, page.form("outcome"), ("outcome", "connect"))
        assert page.url.startswith(f"http://{HOST}:{own.port}/whatsapp/success/"), page.text
        (next_url,) = re.findall(r'<a class="kapso-button" href="(.+?)"', page.html)
        page = user.get(urljoin(url, unescape(next_url)))
        assert page.url == url
        assert "Thank you, Ada's Bakery Ltd!" in page.text
        assert "WhatsApp is connected" in page.text
        page = user.submit(page, page.form("action"))
        assert "Your number is disconnected" in page.text


def test_user_of_another_company_is_refused(own: NewSite) -> None:
    own.shell(STRANGER)
    with Browser() as stranger:
        page = log_in(stranger, f"http://{HOST}:{own.port}/companies/1/", "stranger")
        assert page.status == 404
        page = stranger.get(f"http://{HOST}:{own.port}/companies/1/whatsapp/")
        assert page.status == 404


STRANGER = """
from django.contrib.auth import get_user_model
get_user_model().objects.create_user("stranger", password="correct horse")
"""
