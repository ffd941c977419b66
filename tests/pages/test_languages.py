"""The language of the customers' pages: which one, the switch, and names in its sentences."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from html.parser import HTMLParser
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import polib
import pytest
from django.conf.urls.i18n import i18n_patterns
from django.core import mail
from django.core.cache import caches
from django.db import OperationalError
from django.http import HttpResponse
from django.test import Client, override_settings
from django.urls import include, path
from django.utils import timezone, translation

from kapso_connect import onboarding
from kapso_connect.kapso.languages import Language
from kapso_connect.languages import NATIVE_NAMES, direction, html_language
from kapso_connect.models import Customer, SetupLink, TimelineEvent, new_connect_key
from kapso_connect.onboarding.connect_urls import VISIT_COOKIE, connect_path
from kapso_connect.pages import questions, rate_limit
from kapso_connect.testing import Sandbox
from tests import ROOT

from ..factories import failing_queries, make_connection, make_customer, make_link
from .test_connect import AWAY, end
from .test_views import FAILED, SUCCESS, failed, success, text, visit

pytestmark = pytest.mark.django_db(transaction=True)

UNSUPPORTED = ["ur", "de", "fa-IR"]


@pytest.fixture(autouse=True)
def _forget_clicks() -> None:
    caches["default"].clear()


@dataclass
class World:
    client: Client
    sandbox: Sandbox
    patch: pytest.MonkeyPatch
    name: str = "Bäckerei"
    query: str = ""
    headers: dict[str, str] | None = None

    def get(self, url: str) -> HttpResponse:
        return self.client.get(self.with_query(url), headers=self.headers)

    def post(self, url: str) -> HttpResponse:
        return self.client.post(self.with_query(url), headers=self.headers)

    def with_query(self, url: str) -> str:
        return f"{url}{'&' if '?' in url else '?'}{self.query}" if self.query else url

    def link(self, **fields: Any) -> SetupLink:
        customer = make_customer(name=self.name, connect_key=new_connect_key())
        return make_link(customer, **fields)

    def own_path(self, **fields: Any) -> str:
        return connect_path(self.link(**fields).customer)

    def leaving(self) -> HttpResponse:
        link = onboarding.create_setup_link(make_customer(name=self.name, kapso_id=None))
        return self.post(connect_path(link.customer))

    def success(self) -> HttpResponse:
        link = self.link(status="used", setup_status="completed")
        make_connection(link.customer, display_phone_number="+442071838750")
        make_connection(link.customer, display_phone_number="+4930901820")
        return self.get(connect_path(link.customer))

    def waiting(self) -> HttpResponse:
        self.sandbox.faults(api=[AWAY])
        return self.get(success(self.link(), "123456"))

    def failed(self, code: str = "link_expired") -> HttpResponse:
        link = self.link()
        self.client.cookies[VISIT_COOKIE] = visit(link.customer)
        return self.get(failed(link, code))

    def unavailable(self) -> HttpResponse:
        self.sandbox.faults(api=[AWAY])
        link = self.link()
        end(link)
        return self.post(connect_path(link.customer))

    def busy(self) -> HttpResponse:
        self.patch.setattr(rate_limit, "CONNECT_RATE_LIMIT", 0)
        return self.post(self.own_path())

    def withdrawn(self) -> HttpResponse:
        path = self.own_path()
        SetupLink.objects.all().delete()
        return self.get(path)

    def error(self) -> HttpResponse:
        path = self.own_path()
        with failing_queries(OperationalError("away"), "SELECT", Customer):
            return self.get(path)


PAGES: dict[str, tuple[int, Callable[[World], HttpResponse]]] = {
    "connect": (200, lambda world: world.get(world.own_path())),
    "reconnect": (
        200,
        lambda world: world.get(
            world.own_path(options={"reconnect_phone_number": "+442071838750"})
        ),
    ),
    "failed before": (
        200,
        lambda world: world.get(
            world.own_path(setup_status="failed", last_error_code="link_expired")
        ),
    ),
    "leaving": (200, World.leaving),
    "success": (200, World.success),
    "waiting": (202, World.waiting),
    "failed": (200, World.failed),
    "contact": (200, lambda world: world.failed("unknown")),
    "unavailable": (503, World.unavailable),
    "busy": (429, World.busy),
    "withdrawn": (410, World.withdrawn),
    "invalid": (404, lambda world: world.get("/whatsapp/connect/x/")),
    "posted to nobody": (404, lambda world: world.post("/whatsapp/connect/x/")),
    "mistyped": (404, lambda world: world.get("/whatsapp/connect")),
    "malformed": (400, lambda world: world.get(SUCCESS)),
    "error": (503, World.error),
}
each_page = pytest.mark.parametrize("page", PAGES)


@pytest.fixture
def world(client: Client, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(client, sandbox, monkeypatch)


def open_page(world: World, page: str) -> str:
    """Open the page and return its HTML; the sandbox and the clicks are as at first."""
    caches["default"].clear()
    world.sandbox.reset()
    status, visit_page = PAGES[page]
    with pytest.MonkeyPatch.context() as patch:
        world.patch = patch
        response = visit_page(world)
    assert response.status_code == status, page
    language = re.findall(r'<html lang="([^"]*)" dir="([^"]*)">', text(response))
    assert [language[0][0]] == [response["Content-Language"]]
    assert {"Accept-Language", "Cookie"} <= set(response["Vary"].split(", "))
    return text(response)


class Words(HTMLParser):
    """The texts of a page that people see, each with the tags around it."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[tuple[str, list[str]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag not in {"meta", "link", "img", "source", "br", "input", "path", "circle"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if not {"head", "title", "script", "style", "nav"}.intersection(self.open):
            self.texts.append((data, list(self.open)))


def words(html: str) -> str:
    return "".join(text for text, _tags in Words(html).texts)


# Which language


@each_page
def test_in_a_language_without_translations_pages_are_in_english_and_say_so(
    world: World, page: str
) -> None:
    world.headers = {"Accept-Language": "en"}
    english = words(open_page(world, page))
    for language in UNSUPPORTED:
        world.headers = {"Accept-Language": language}
        html = open_page(world, page)
        assert '<html lang="en" dir="ltr">' in html
        # References and numbers of minutes are another customer's.
        assert without_names(words(html)) == without_names(english)


def without_names(shown: str) -> str:
    return re.sub(r"\b[0-9a-f]{8}\b|\d+", "", shown)


@each_page
def test_pages_are_in_the_language_that_they_are_declared_to_be_in(world: World, page: str) -> None:
    seen = {}
    for language in Language.values:
        world.headers = {"Accept-Language": f"{language}-XX, en;q=0.1"}
        html = open_page(world, page)
        assert f'<html lang="{html_language(language)}" dir="{direction(language)}">' in html
        seen[language] = without_names(words(html))
    assert len(set(seen.values())) == 6
    letters = {language: letters_of(shown) for language, shown in seen.items()}
    assert {"ar", "hi"} == {code for code, (latin, others) in letters.items() if others > latin}


def letters_of(shown: str) -> tuple[int, int]:
    latin = len(re.findall("[A-Za-z]", shown))
    return latin, len(re.findall("[\u0600-\u06ff\u0900-\u097f]", shown))


@pytest.mark.parametrize(
    ("site", "active", "expected"),
    [
        ("ur", "", "en"),
        ("ur", "fa", "en"),
        ("hi", "ur", "hi"),
        ("pt-pt", "", "pt"),
        ("de", "es-mx", "es"),
    ],
)
def test_without_a_language_of_the_browser_it_is_that_of_the_site(
    world: World, settings: Any, site: str, active: str, expected: str
) -> None:
    settings.MIDDLEWARE = [name for name in settings.MIDDLEWARE if "locale" not in name.lower()]
    settings.LANGUAGE_CODE = site
    with translation.override(active or site):
        html = open_page(world, "connect")
    assert f'<html lang="{html_language(expected)}" dir="ltr">' in html


def test_wrong_settings_do_not_cost_the_page(client: Client, configure: Any) -> None:
    configure(EXTRA_LANGUAGES="de")
    response = client.get("/whatsapp/connect/x/", headers={"Accept-Language": "es"})
    assert response.status_code == 500
    assert response["Content-Language"] == "es"


# The switch


LINK = re.compile(
    r'<a href="([^"]*)" lang="([^"]*)" hreflang="([^"]*)" dir="(ltr|rtl)"( aria-current="true")?>'
    r"([^<]*)</a>"
)


def switch(html: str) -> dict[str, tuple[str, bool]]:
    """The URL of each language and whether it is the current one, by the language's own name."""
    part = html.partition('<nav class="kapso-languages"')[2].partition("</nav>")[0]
    found = {}
    for url, language, target, text_direction, current, name in LINK.findall(part):
        assert language == target
        assert text_direction == ("rtl" if language == "ar" else "ltr")
        found[name] = (url.replace("&amp;", "&"), bool(current))
    return found


@each_page
def test_every_page_can_be_switched_to_every_language(world: World, page: str) -> None:
    html = open_page(world, page)
    assert list(switch(html)) == list(NATIVE_NAMES.values())
    assert [name for name, (_url, current) in switch(html).items() if current] == ["English"]
    urls = [url for url, _current in switch(html).values()]
    assert [parse_qs(url[1:])["language"] for url in urls] == [[code] for code in NATIVE_NAMES]
    for code, name in NATIVE_NAMES.items():
        world.query = f"language={code}"
        world.headers = {"Accept-Language": "id"}
        html = open_page(world, page)
        assert f'<html lang="{html_language(code)}" dir="{direction(code)}">' in html
        assert [one for one, (_url, current) in switch(html).items() if current] == [name]
        form = re.search(r'<form method="post" action="([^"]*)"', html)
        assert form is None or form[1].endswith(f"/?language={code}")


def test_choice_goes_before_the_link_and_the_customer(client: Client) -> None:
    customer = make_customer(connect_key="mine", language="hi")
    link = make_link(customer, options={"language": "ar"})
    for url in (connect_path(customer), failed(link, "link_expired")):
        added = f"{url}{'&' if '?' in url else '?'}language=pt-BR"
        assert client.get(added)["Content-Language"] == "pt-BR"
    link.refresh_from_db()
    customer.refresh_from_db()
    assert (customer.language, link.options) == ("hi", {"language": "ar"}), "GET changes nothing"


@pytest.mark.parametrize(
    "value", ["", "xx", "<script>", "x" * 9000, "-" * 9000, "%00", "%ff", "es&language=xx"]
)
def test_wrong_choice_is_ignored(client: Client, value: str) -> None:
    url = connect_path(make_link(make_customer(connect_key="mine", language="hi")).customer)
    response = client.get(f"{url}?language={value}")
    assert (response.status_code, response["Content-Language"]) == (200, "hi")
    assert f'action="{url}"' in text(response)
    assert "xxxx" not in text(response)


def test_switch_keeps_the_parameters_of_the_redirect(client: Client) -> None:
    link = make_link()
    sent = {
        "setup_link_id": link.kapso_id,
        "error_code": "phone_verification_failed",
        "display_phone_number": "+44 20 7183",
        "status": "<b>",
        "more": "a&b",
        "language": "id",
    }
    page = text(client.get(f"{FAILED}?{urlencode(sent)}"))
    url, _current = switch(page)["Español"]
    assert parse_qs(urlsplit(url).query) == {
        "setup_link_id": [link.kapso_id],
        "error_code": ["phone_verification_failed"],
        "display_phone_number": ["+44 20 7183"],
        "language": ["es"],
    }
    response = client.get(f"{FAILED}{url}")
    assert response["Content-Language"] == "es"
    assert link.reference in text(response)


def test_choice_survives_redirects_of_pages(client: Client) -> None:
    link = make_link(make_customer(connect_key="mine"))
    url = connect_path(link.customer)
    assert client.get(f"{url[:-1]}?language=es")["Location"] == f"{url}?language=es"
    assert client.get(f"{url}%3E?language=es")["Location"] == f"{url}?language=es"
    assert client.get("/whatsapp/success?a=1&language=es")["Location"].endswith("a=1&language=es")
    make_connection(link.customer)
    SetupLink.objects.update(status="used", setup_status="completed")
    response = client.post(f"{url}?language=es")
    assert (response.status_code, response["Location"]) == (303, f"{url}?language=es")
    assert client.post(f"{url}?language=xx")["Location"] == url


class Prefixed:
    urlpatterns = i18n_patterns(path("whatsapp/", include("kapso_connect.urls")))


@override_settings(ROOT_URLCONF=Prefixed, LANGUAGES=[("en", "English"), ("es", "Spanish")])
def test_with_i18n_patterns_pages_can_be_switched_as_well(client: Client) -> None:
    with translation.override("es"):
        url = connect_path(make_link(make_customer(connect_key="mine")).customer)
    assert url.startswith("/es/")
    for language in ("es", "en", "ar"):
        response = client.get(f"{url}?language={language}")
        assert response["Content-Language"] == language
        form = re.search(r'action="([^"]*)"', text(response))
        assert form
        assert form[1].endswith(f"?language={language}")
        assert client.get(form[1])["Content-Language"] == language


# The choice is kept


@pytest.fixture
def link(sandbox: Sandbox) -> SetupLink:
    return onboarding.create_setup_link(
        make_customer(kapso_id=None, language="hi", email="ada@example.com"),
        options={"language": "ar", "allowed_connection_types": ["dedicated"]},
    )


def at_kapso(sandbox: Sandbox) -> list[str | None]:
    return [row["language"] for row in sandbox.state()["setup_links"]]


def test_choice_is_kept_when_the_button_is_pressed(
    link: SetupLink, client: Client, sandbox: Sandbox, requests_in_transaction: list[bool]
) -> None:
    events = list(TimelineEvent.objects.values())
    response = client.post(f"{connect_path(link.customer)}?language=es")
    assert response["Refresh"] == f"0; url={link.url}"
    assert at_kapso(sandbox) == ["es"]
    assert requests_in_transaction
    assert not any(requests_in_transaction)
    before = link.options
    link.refresh_from_db()
    assert (link.customer.language, link.options) == ("es", {**before, "language": "es"})
    kinds = [event.kind for event in TimelineEvent.objects.order_by("pk")]
    assert kinds == [*(event["kind"] for event in events), "setup_link_opened"]
    # What follows is in it, without the parameter.
    assert client.get(failed(link, "link_expired"))["Content-Language"] == "es"
    onboarding.send_invitation(link.customer, link)
    assert '<html lang="es" dir="ltr">' in str(mail.outbox[0].alternatives[0][0])
    # Pressed again, it has nothing to change.
    asked = methods(sandbox)
    changed_at = Customer.objects.get().updated_at
    client.post(f"{connect_path(link.customer)}?language=es")
    assert "PATCH" in asked
    assert "PATCH" not in methods(sandbox)[len(asked) :]
    assert Customer.objects.get().updated_at == changed_at


def methods(sandbox: Sandbox) -> list[str]:
    return [request["method"] for request in sandbox.requests()]


def test_while_kapso_is_slow_it_is_not_asked_to_change_its_page(
    link: SetupLink, client: Client, sandbox: Sandbox
) -> None:
    caches["default"].set(questions.SLOW_KEY, True)
    asked = len(methods(sandbox))
    assert client.post(f"{connect_path(link.customer)}?language=es").status_code == 200
    assert len(methods(sandbox)) == asked
    assert Customer.objects.get().language == "es"


def test_without_a_choice_the_button_changes_no_language(
    link: SetupLink, client: Client, sandbox: Sandbox
) -> None:
    client.post(connect_path(link.customer), headers={"Accept-Language": "es"})
    before = link.options
    link.refresh_from_db()
    assert (link.customer.language, link.options) == ("hi", before)
    assert at_kapso(sandbox) == ["ar"]


def test_while_kapso_does_not_change_its_page_the_customer_goes_on(
    link: SetupLink, client: Client, sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    away = {"match": f".*/setup_links/{link.kapso_id}", "kind": "status", "status": 503}
    sandbox.faults(api=[away])
    response = client.post(f"{connect_path(link.customer)}?language=es")
    assert response["Refresh"] == f"0; url={link.url}"
    assert "could not be changed at Kapso" in caplog.text
    link.refresh_from_db()
    assert (link.customer.language, link.options.get("language")) == ("es", None)
    assert client.get(failed(link, "link_expired"))["Content-Language"] == "es"
    assert at_kapso(sandbox) == ["ar"]
    # The next press makes up for it.
    sandbox.faults(api=[])
    client.post(f"{connect_path(link.customer)}?language=es")
    link.refresh_from_db()
    assert (at_kapso(sandbox), link.options["language"]) == (["es"], "es")


def test_renewed_link_is_in_the_language_that_was_chosen(
    link: SetupLink, client: Client, sandbox: Sandbox
) -> None:
    end(link)
    client.post(f"{connect_path(link.customer)}?language=id")
    new = SetupLink.objects.get(status="active")
    assert new != link
    assert new.options["language"] == "id"
    assert at_kapso(sandbox)[-1] == "id"
    SetupLink.objects.update(expires_at=timezone.now() - timedelta(seconds=1), status="expired")
    client.post(connect_path(link.customer))
    assert SetupLink.objects.get(status="active").options["language"] == "id"


# A seventh language


def translate(folder: Any, language: str, texts: dict[str, str]) -> None:
    """Write and compile a catalog with translations of ``texts``."""
    po = polib.POFile()
    po.metadata = {"Content-Type": "text/plain; charset=utf-8", "Language": language}
    po.extend(
        polib.POEntry(msgid=msgid, msgctxt="WhatsApp", msgstr=msgstr)
        for msgid, msgstr in texts.items()
    )
    messages = folder / language / "LC_MESSAGES"
    messages.mkdir(parents=True)
    po.save_as_mofile(str(messages / "django.mo"))


@pytest.fixture
def _german(settings: Any, tmp_path: Any, configure: Any) -> None:
    texts = {
        entry.msgid: f"[{entry.msgid}]"
        for entry in polib.pofile(str(ROOT / "kapso_connect/locale/es/LC_MESSAGES/django.po"))
        if not entry.msgid_plural
    }
    translate(tmp_path, "de", texts)
    settings.LOCALE_PATHS = [str(tmp_path)]
    configure(EXTRA_LANGUAGES=["de"])


@pytest.mark.usefixtures("_german")
def test_language_that_the_site_adds(world: World, client: Client) -> None:
    for header in ("de", "de-AT, es;q=0.9"):
        world.headers = {"Accept-Language": header}
        html = open_page(world, "invalid")
        assert '<html lang="de" dir="ltr">' in html
        assert "<h1>[" in html
        assert switch(html)["Deutsch"] == ("?language=de", True)
        assert list(switch(html))[:1] == ["English"]
    customer = make_customer(connect_key="mine", language="de-CH", email="ada@example.com")
    link = make_link(customer)
    assert customer.language == "de"
    response = client.get(connect_path(customer), headers={"Accept-Language": "es"})
    assert response["Content-Language"] == "de"
    onboarding.send_invitation(customer, link)
    assert mail.outbox[0].subject.startswith("[")
    assert '<html lang="de" dir="ltr">' in str(mail.outbox[0].alternatives[0][0])


@pytest.mark.usefixtures("_german")
def test_choice_of_a_language_that_kapso_does_not_have_is_kept_here(
    link: SetupLink, client: Client, sandbox: Sandbox
) -> None:
    assert client.post(f"{connect_path(link.customer)}?language=de").status_code == 200
    assert at_kapso(sandbox) == ["ar"]
    link.refresh_from_db()
    assert link.customer.language == "de"
    assert client.get(failed(link, "link_expired"))["Content-Language"] == "de"
    end(link)
    client.post(connect_path(link.customer))
    assert at_kapso(sandbox)[-1] is None


@pytest.mark.usefixtures("_german")
def test_language_of_the_customer_goes_before_the_default_of_links(
    sandbox: Sandbox, client: Client, configure: Any
) -> None:
    configure(SETUP_LINK_DEFAULTS={"language": "es"})
    link = onboarding.create_setup_link(make_customer(kapso_id=None, language="de"))
    assert at_kapso(sandbox) == [None]
    assert client.get(connect_path(link.customer))["Content-Language"] == "de"


# Names


NAMES = {"Shop!": "Shop!", "digits": "123 مخبز", "company": "Crumb & Co.", "markup": "<b>"}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
@each_page
def test_names_are_isolated_from_the_text_around_them(
    world: World, configure: Any, page: str, name: str
) -> None:
    world.name = name
    for site, contact in ((name, ""), (name, "mailto:help@site.example")):
        configure(SITE_NAME=site, CONTACT_URL=contact)
        for language in Language.values:
            world.query = f"language={language}"
            html = open_page(world, page)
            texts = Words(html).texts
            outside = [text for text, tags in texts if name in text and "bdi" not in tags]
            assert outside == [], language
            assert ".." not in words(html), language
