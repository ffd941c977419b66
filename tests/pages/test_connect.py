"""The customer's own address, and what all of the customers' pages have in common."""

from __future__ import annotations

import logging
import re
import time
from datetime import timedelta
from html import unescape
from typing import Any
from unittest import mock
from urllib.parse import urlsplit

import pytest
from django import VERSION
from django.contrib.auth.models import User
from django.core import mail
from django.core.cache import caches
from django.db import OperationalError
from django.db import connection as database
from django.http import HttpResponse
from django.test import Client, RequestFactory
from django.urls import reverse
from django.utils import timezone, translation
from django.utils.html import escape
from django.utils.log import AdminEmailHandler
from django.utils.translation import gettext_lazy

from kapso_connect import onboarding, theme
from kapso_connect.kapso.error_codes import SETUP_ERRORS
from kapso_connect.kapso.setup_link_options import THEME_COLORS
from kapso_connect.models import (
    Connection,
    Customer,
    IdempotentRequest,
    SetupLink,
    TimelineEvent,
    new_connect_key,
)
from kapso_connect.onboarding.connect_urls import (
    RETURN_SECONDS,
    connect_path,
    connect_url,
    returning_customer,
    with_customer_token,
)
from kapso_connect.pages import rate_limit, views
from kapso_connect.testing import Sandbox

from ..factories import (
    failing_queries,
    make_connection,
    make_customer,
    make_link,
    make_user,
    read_only_database,
    remote_customer,
    store_statuses,
)
from ..faults import around_api_requests
from .test_views import FAILED, SUCCESS, failed, success, text, visit

pytestmark = pytest.mark.django_db(transaction=True)

AWAY = {"match": ".*", "kind": "status", "status": 503}
REFUSED = {"match": ".*", "kind": "status", "status": 401}
BLOCKED = {"match": ".*", "kind": "html", "status": 403}


@pytest.fixture(autouse=True)
def _forget_clicks() -> None:
    caches["default"].clear()


@pytest.fixture
def link(sandbox: Sandbox) -> SetupLink:
    return onboarding.create_setup_link(make_customer(kapso_id=None))


@pytest.fixture
def address(link: SetupLink) -> str:
    return connect_path(link.customer)


def rows() -> list[Any]:
    models = (Customer, SetupLink, Connection, TimelineEvent)
    return [list(model.objects.order_by("pk").values()) for model in models]


def end(link: SetupLink) -> None:
    SetupLink.objects.filter(pk=link.pk).update(
        status="expired", expires_at=timezone.now() - timedelta(seconds=1)
    )


# Looking


def test_invitation_names_site_and_customer(address: str, client: Client, configure: Any) -> None:
    page = text(client.get(address))
    assert "<bdi>site.example</bdi> invites <bdi>Bäckerei Süß</bdi>" in page
    configure(SITE_NAME="Crumb & Co.")
    page = text(client.get(address))
    assert "<bdi>Crumb &amp; Co.</bdi> invites <bdi>Bäckerei Süß</bdi>" in page
    assert 'method="post"' in page


def test_get_changes_nothing(address: str, client: Client, sandbox: Sandbox) -> None:
    before, asked = rows(), len(sandbox.requests())
    for _ in range(20):
        response = client.get(address, headers={"User-Agent": "a mail scanner"})
        assert response.status_code == 200
        assert not response.cookies
    assert rows() == before
    assert len(sandbox.requests()) == asked


def test_number_to_reconnect_is_shown(sandbox: Sandbox, client: Client) -> None:
    customer = remote_customer(sandbox)
    sandbox.add_number(customer_id=customer.kapso_id, phone_number="+442071838750")
    onboarding.create_setup_link(customer, options={"reconnect_phone_number": "+442071838750"})
    page = text(client.get(connect_path(customer)))
    assert '<bdi dir="ltr">+44 20 7183 8750</bdi>' in page


def test_invitation_after_a_failure_says_why(address: str, client: Client) -> None:
    assert "The last attempt did not work" not in text(client.get(address))
    SetupLink.objects.update(setup_status="failed", last_error_code="waba_limit_reached")
    page = text(client.get(address))
    assert "The last attempt did not work" in page
    for words in (
        SETUP_ERRORS["waba_limit_reached"].cause,
        SETUP_ERRORS["waba_limit_reached"].advice,
    ):
        assert str(words) in unescape(page)


OPTION_TEXTS = {
    "keep": ({"allowed_connection_types": ["coexistence"]}, "You keep your WhatsApp Business app"),
    "leave": ({"allowed_connection_types": ["dedicated"]}, "This number leaves the app"),
    "choice": ({}, "You choose one of these:"),
    "new": ({"provision_phone_number": True}, "You get a new number"),
    "again": ({"reconnect_phone_number": "+14155550123"}, "The same number again"),
}
PAYMENT = "A payment method for Meta"


@pytest.mark.parametrize("kind", OPTION_TEXTS)
def test_invitation_says_what_happens_to_the_number(
    link: SetupLink, address: str, client: Client, kind: str
) -> None:
    options, words = OPTION_TEXTS[kind]
    SetupLink.objects.update(options=options)
    page = text(client.get(address))
    assert words in page
    assert PAYMENT in page
    assert "about five minutes" in page
    for other in OPTION_TEXTS.keys() - {kind}:
        assert OPTION_TEXTS[other][1] not in page
    assert ("Display name only" in page) == (kind != "new")
    keeps_app = kind in {"keep", "choice"}
    assert ("Business Platform" in page) == keeps_app
    assert ("read what you write there" in page) == keeps_app


def test_no_payment_method_is_needed_where_kapso_pays(
    link: SetupLink, address: str, client: Client
) -> None:
    SetupLink.objects.update(options={"meta_billing_mode": "partner_managed"})
    assert PAYMENT not in text(client.get(address))


def test_sites_own_texts_and_pages_are_shown(
    link: SetupLink, address: str, client: Client, configure: Any
) -> None:
    page = text(client.get(address))
    for words in ("Privacy", "Terms", "Ida Kim", "Free of charge"):
        assert words not in page
    configure(
        INVITATION_TEXT=gettext_lazy("Search"),  # a text that Django translates
        COST_TEXT="Free of charge.",
        PRIVACY_URL="/privacy/",
        TERMS_URL="https://crumb.example/terms",
    )
    link.created_by = make_user("ida", first_name="Ida", last_name="Kim")
    link.save()
    page = text(client.get(address, headers={"Accept-Language": "es"}))
    assert "Buscar" in page
    page = text(client.get(address))
    for words in (
        "<bdi>Search</bdi>",
        "<bdi>Free of charge.</bdi>",
        'href="/privacy/"',
        "https://crumb.example/terms",
    ):
        assert words in page
    assert "Ida Kim" not in page
    configure(SHOW_INVITER=True)
    assert "<bdi>Ida Kim</bdi> (<bdi>site.example</bdi>) invites" in text(client.get(address))
    link.created_by.delete()
    assert "<bdi>site.example</bdi> invites" in text(client.get(address))


def test_invitation_waits_while_the_number_is_being_confirmed(
    link: SetupLink, address: str, client: Client, sandbox: Sandbox
) -> None:
    sandbox.faults(api=[{"match": ".*", "kind": "status", "status": 503}])
    SetupLink.objects.update(unconfirmed_phone_number_id="1", unconfirmed_since=timezone.now())
    response = client.get(address)
    assert response.status_code == 202
    assert "We are waiting for WhatsApp to confirm" in text(response)
    assert "<form" not in text(response)
    since = timezone.now() - timedelta(minutes=2)
    SetupLink.objects.update(unconfirmed_since=since)
    assert "Start again" in text(client.get(address)), "a redirect can be false"
    assert client.head(address).status_code == 202


def test_invitation_confirms_what_a_redirect_reported(
    link: SetupLink, address: str, client: Client, sandbox: Sandbox
) -> None:
    number = sandbox.add_number(customer_id=link.customer.kapso_id)
    SetupLink.objects.update(
        unconfirmed_phone_number_id=number["phone_number_id"], unconfirmed_since=timezone.now()
    )
    assert "WhatsApp is connected" in text(client.get(address))
    assert link.customer.connections.get().is_connected


def test_invitation_is_open_again_when_kapso_has_no_such_number(
    link: SetupLink, address: str, client: Client, sandbox: Sandbox
) -> None:
    since = timezone.now() - timedelta(minutes=1)
    SetupLink.objects.update(unconfirmed_phone_number_id="100200300", unconfirmed_since=since)
    response = client.get(address)
    assert response.status_code == 200
    assert 'method="post"' in text(response)


# Clicking


def test_post_leads_to_the_link(link: SetupLink, address: str, client: Client) -> None:
    for _ in range(2):
        response = client.post(address)
        assert response.status_code == 200
        assert response["Refresh"] == f"0; url={link.url}"
        assert f'<a class="kapso-button" href="{escape(link.url)}">Continue</a>' in text(response)
        assert "<form" not in text(response)
        assert "no-store" in response["Cache-Control"]
        assert response["Referrer-Policy"] == "no-referrer"
    (event,) = TimelineEvent.objects.filter(kind="setup_link_opened")
    assert (event.setup_link, event.source) == (link, "redirect")


def test_cookie_is_protected(address: str, client: Client) -> None:
    cookie = client.post(address, secure=True).cookies["kapso_connect_token"]
    assert (cookie["httponly"], cookie["secure"], cookie["samesite"]) == (True, True, "Lax")
    assert cookie["max-age"] == 2 * 60 * 60


def test_post_needs_no_cookies(address: str) -> None:
    assert Client(enforce_csrf_checks=True).post(address).status_code == 200


def test_post_renews_an_expired_link(link: SetupLink, address: str, client: Client) -> None:
    end(link)
    response = client.post(address)
    fresh = Customer.objects.get().latest_setup_link
    assert fresh != link
    assert response["Refresh"] == f"0; url={fresh.url}"
    assert connect_path(Customer.objects.get()) == address


def test_the_api_is_asked_outside_atomic_requests(
    link: SetupLink, address: str, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(database.settings_dict, "ATOMIC_REQUESTS", True)
    end(link)
    in_transaction = []
    with around_api_requests(before=lambda: in_transaction.append(database.in_atomic_block)):
        assert client.post(address).status_code == 200
    assert in_transaction
    assert not any(in_transaction)


def test_without_time_zones(sandbox: Sandbox, client: Client, settings: Any) -> None:
    settings.USE_TZ = False
    link = onboarding.create_setup_link(make_customer(kapso_id=None))
    address = connect_path(link.customer)
    assert client.post(address)["Refresh"] == f"0; url={link.url}"
    end(link)
    assert client.post(address).status_code == 200
    assert SetupLink.objects.count() == 2


@pytest.mark.parametrize("fault", [AWAY, BLOCKED, REFUSED], ids=["away", "blocked", "refused"])
def test_kapso_errors_show_a_friendly_page(
    link: SetupLink, address: str, client: Client, sandbox: Sandbox, configure: Any, caplog: Any,
    fault: dict[str, Any],
) -> None:  # fmt: skip
    configure(REQUEST_BUDGET=0.3)
    end(link)
    sandbox.faults(api=[fault])
    with caplog.at_level(logging.WARNING, "kapso_connect"):
        response = client.post(address)
    assert response.status_code == 503
    assert ("Retry-After" in response) == (fault is not REFUSED)
    page = text(response)
    assert "Try again" in page
    assert link.kapso_id[:8] in page
    words = re.sub(r"<[^>]*>", "", page)  # the tokens in attributes are random
    assert "API" not in words
    assert f"No setup link for customer {link.customer_id}" in caplog.text
    for secret in ("test-api-key", address.split("/")[-2], link.url):
        assert secret not in caplog.text


def test_wrong_settings_are_not_shown_to_customers(
    link: SetupLink, address: str, client: Client, configure: Any
) -> None:
    end(link)
    configure(SETUP_LINK_DEFAULTS={"nonsense": 1})
    response = client.post(address)
    assert response.status_code == 503
    assert "nonsense" not in text(response)


# Who has connected, who may not


def test_connected_customer_sees_the_success_page(
    link: SetupLink, address: str, client: Client
) -> None:
    SetupLink.objects.update(status="used", setup_status="completed")
    make_connection(link.customer, display_phone_number="+442071838750")
    make_connection(link.customer, display_phone_number="+4930901820")
    page = text(client.get(address))
    assert "WhatsApp is connected" in page
    assert "can now send and receive messages for <bdi>Bäckerei Süß</bdi>" in page
    for number in ("+44 20 7183 8750", "+49 30 901820"):
        assert number in page
    response = client.post(address)
    assert (response.status_code, response["Location"]) == (303, address)


def connected_customer(**fields: Any) -> Customer:
    completed = {"status": "used", "setup_status": "completed"}
    link = make_link(make_customer(connect_key="mine", kapso_id=None), **completed)
    shown = {"display_phone_number": "+442071838750", "verified_name": "Süß Ltd."}
    make_connection(link.customer, **{"setup_link": link, **shown, **fields})
    return link.customer


def test_success_page_names_the_number_and_what_comes_next(client: Client, configure: Any) -> None:
    configure(NEXT_TEXT="We call you tomorrow.", CONTACT_URL="mailto:help@crumb.example")
    customer = connected_customer()
    page = text(client.get(connect_path(customer)))
    for shown in (
        "+44 20 7183 8750",
        "<bdi>Süß Ltd.</bdi>",
        'href="https://wa.me/442071838750"',
        "<bdi>We call you tomorrow.</bdi>",
        "mailto:help@crumb.example",
        customer.latest_setup_link.reference,
    ):
        assert shown in page
    assert "<form" not in page


UNUSABLE = {
    "test": ({"display_phone_number": "+1 555-123-4567"}, "one of Meta's test numbers"),
    "restricted": ({"account_status": "restricted"}, "Meta has restricted"),
    "disabled": ({"account_status": "disabled"}, "Meta has restricted"),
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_number_that_cannot_be_used_is_no_success_and_can_be_replaced(
    client: Client, sandbox: Sandbox, kind: str
) -> None:
    fields, words = UNUSABLE[kind]
    customer = connected_customer(**fields)
    page = text(client.get(connect_path(customer)))
    assert words in page
    for wrong in ("WhatsApp is connected", "can now send", "wa.me"):
        assert wrong not in page
    assert f'action="{connect_path(customer)}"' in page
    assert customer.latest_setup_link is not None
    shown = text(client.get(failed(customer.latest_setup_link, "already_used")))
    assert words in shown
    assert "<form" not in shown, "whoever knows the link's id must not connect another number"
    response = client.post(connect_path(customer))
    assert response.status_code == 200
    customer.refresh_from_db()
    assert customer.latest_setup_link.is_usable
    assert customer.latest_setup_link.url in text(response)


def test_test_number_beside_an_own_number_can_be_replaced(client: Client, sandbox: Sandbox) -> None:
    """The customer was invited to connect another number, and got one of Meta's."""
    customer = connected_customer(display_phone_number="+1 555-123-4567")
    own = make_connection(customer, display_phone_number="+4930901820", setup_link=None)
    client.cookies["kapso_connect_token"] = visit(customer)
    link = customer.latest_setup_link
    assert link is not None
    number = Connection.objects.exclude(pk=own.pk).get().phone_number_id
    for url in (connect_path(customer), success(link, number)):
        assert f'action="{connect_path(customer)}"' in text(client.get(url))
    assert client.post(connect_path(customer)).status_code == 200
    customer.refresh_from_db()
    assert customer.latest_setup_link != link


def test_button_for_an_older_number_that_cannot_be_used_is_not_shown_in_vain(
    client: Client, sandbox: Sandbox
) -> None:
    customer = connected_customer()
    old = make_link(customer, is_latest=False, status="used", setup_status="completed")
    restricted = make_connection(customer, setup_link=old, account_status="restricted")
    client.cookies["kapso_connect_token"] = visit(customer)
    for url in (connect_path(customer), success(old, restricted.phone_number_id)):
        assert "<form" not in text(client.get(url))
    assert client.post(connect_path(customer)).status_code == 303


@pytest.mark.parametrize(
    ("status", "words"),
    [("PENDING_REVIEW", "still reviewing the name"), ("DECLINED", "has not approved the name")],
)
def test_name_that_is_not_approved_is_explained(client: Client, status: str, words: str) -> None:
    page = text(client.get(connect_path(connected_customer(name_status=status))))
    assert words in page
    assert "WhatsApp is connected" in page
    assert "<form" not in page


def test_paused_number_comes_back_by_itself_within_the_hour(client: Client) -> None:
    customer = connected_customer(
        status="disconnected", disconnect_reason="offboarded", disconnected_at=timezone.now()
    )
    store_statuses(customer)
    page = text(client.get(connect_path(customer)))
    assert "<h1>WhatsApp has paused your number</h1>" in page
    assert "<title>WhatsApp has paused your number" in page
    assert "<form" not in page
    Connection.objects.update(disconnected_at=timezone.now() - timedelta(hours=2))
    page = text(client.get(connect_path(customer)))
    assert "<h1>Connect your WhatsApp number again</h1>" in page
    assert "it has not come back by itself" in page
    assert "<form" in page


@pytest.mark.parametrize("method", ["get", "post"])
def test_revoked_invitation_is_gone(
    link: SetupLink, address: str, client: Client, method: str
) -> None:
    onboarding.revoke_setup_link(link)
    before = rows()
    response = getattr(client, method)(address)
    assert response.status_code == 410
    assert "no longer open" in text(response)
    assert link.customer.name not in text(response)
    assert rows() == before


def test_deleted_customer_is_gone(link: SetupLink, address: str, client: Client) -> None:
    link.customer.delete()
    assert client.get(address).status_code == client.post(address).status_code == 410


def test_post_to_an_invitation_revoked_at_kapso_is_gone(
    link: SetupLink, address: str, client: Client, sandbox: Sandbox
) -> None:
    sandbox.patch_setup_link(link.kapso_id, status="revoked")
    assert client.post(address).status_code == 410


@pytest.mark.parametrize(
    "token",
    [
        "x",
        "key.signature",
        "<script>alert(1)</script>",
        "%00",
        "%ff%fe",
        "' OR 1=1 --",
        "x" * 100_000,
        "%E2%80%AE",
        "TOKENx",
        "xTOKEN",
        "tOKEN",
    ],
    ids=range(11),
)
def test_no_other_token_works(address: str, client: Client, token: str) -> None:
    own = address.split("/")[-2]
    token = {"TOKENx": f"{own}x", "xTOKEN": f"x{own}", "tOKEN": own.swapcase()}.get(token, token)
    before = rows()
    for ask in (client.get, client.post):
        response = ask(f"/whatsapp/connect/{token}/")
        assert response.status_code == 404
        assert "alert" not in text(response)
        assert rows() == before


def test_signatures_for_other_purposes_are_rejected(link: SetupLink, client: Client) -> None:
    """Neither the cookie nor the parameter of the next page opens the address."""
    parameter = urlsplit(with_customer_token("/", link.customer)).query.partition("=")[2]
    for token in (visit(link.customer), parameter):
        assert client.get(f"/whatsapp/connect/{token}/").status_code == 404


def test_head_and_options_change_nothing(address: str, client: Client, sandbox: Sandbox) -> None:
    before, asked = rows(), len(sandbox.requests())
    page, head = client.get(address), client.head(address)
    assert (head.status_code, head.content) == (200, b"")
    for name in ("Content-Type", "Content-Language", "Referrer-Policy", "X-Robots-Tag", "Vary"):
        assert head[name] == page[name]
    assert not head.cookies
    options = client.options(address)
    assert (options.status_code, options["Allow"]) == (200, "GET, HEAD, POST, OPTIONS")
    assert client.head("/whatsapp/connect/x/").status_code == 404
    assert rows() == before
    assert len(sandbox.requests()) == asked


@pytest.mark.parametrize("method", ["put", "delete", "patch", "trace"])
def test_no_other_method_changes_anything_or_puts_the_url_into_the_log(
    address: str, client: Client, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    before = rows()
    response = getattr(client, method)(address)
    assert response.status_code == 405
    assert response["Referrer-Policy"] == "no-referrer"
    assert address.split("/")[-2] not in caplog.text
    assert rows() == before


def test_url_of_a_page_that_does_not_exist_any_more_is_not_in_the_log(
    link: SetupLink, address: str, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    link.customer.delete()
    assert client.get(address).status_code == 410
    assert client.get(f"{address[:-2]}/").status_code == 404
    assert [record for record in caplog.records if record.name == "django.request"] == []
    # Another page's is, and so are the errors of ours.
    assert client.get("/no/such/page/").status_code == 404
    assert "Not Found: /no/such/page/" in caplog.text


ADDED = ["%3E", ">", '"', "**", ".", ")", "*", "'", ",", "%E2%80%8B", "%C2%A0", "%253E", "%0A"]
ADDED += ["_", " and more", "%EF%BB%BF", "%ff", "/>", "//", ">/", "%C2%A0/"]
"""What mail programs and people leave at the end of a URL."""


@pytest.mark.parametrize("has_slash", [True, False], ids=["slash", "no slash"])
@pytest.mark.parametrize("appends_slash", [True, False], ids=["append", "no append"])
def test_url_with_something_behind_it_leads_to_the_clean_one(
    address: str, client: Client, settings: Any, caplog: pytest.LogCaptureFixture,
    has_slash: bool, appends_slash: bool,
) -> None:  # fmt: skip
    settings.APPEND_SLASH = appends_slash
    for added in ADDED:
        response = client.get((address if has_slash else address[:-1]) + added)
        assert (response.status_code, response.get("Location")) == (302, address), added
        assert response["Referrer-Policy"] == "no-referrer"
    assert caplog.records == []


@pytest.mark.parametrize("appends_slash", [True, False])
def test_url_without_the_slash_leads_to_the_clean_one(
    address: str, client: Client, settings: Any, appends_slash: bool
) -> None:
    settings.APPEND_SLASH = appends_slash
    for method in (client.get, client.head):
        response = method(address[:-1])
        assert (response.status_code, response["Location"]) == (302, address)
    assert (
        client.get(f"/whatsapp/connect/%E2%80%8B{address.split('/')[-2]}/")["Location"] == address
    )


@pytest.mark.parametrize(
    "end",
    ["connect", "connect/", "connect/x", "connect/x/y/", "connect/%0A", "success/>", "failed//"],
)
@pytest.mark.parametrize("method", ["get", "head", "post"])
def test_mistyped_urls_get_a_friendly_page(
    client: Client, end: str, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    response = getattr(client, method)(f"/whatsapp/{end}")
    assert response.status_code == 404
    if method != "head":
        assert "We cannot find this connection" in text(response)
    assert response["Referrer-Policy"] == "no-referrer"
    assert caplog.records == []


def test_only_the_token_of_a_customer_is_recognized(address: str, client: Client) -> None:
    forged = address[:-2] + ("A" if address[-2] != "A" else "B")
    assert client.get(f"{forged}/>").status_code == 404
    assert client.post(f"{address}>").status_code == 404


@pytest.mark.parametrize("page", ["success", "failed", "failed/a.token"])
@pytest.mark.parametrize("appends_slash", [True, False])
def test_redirect_without_the_slash_is_not_lost(
    client: Client, settings: Any, page: str, appends_slash: bool
) -> None:
    settings.APPEND_SLASH = appends_slash
    response = client.get(f"/whatsapp/{page}?setup_link_id=1&error_code=%2B")
    assert response.status_code == 302
    assert response["Location"] == f"/whatsapp/{page}/?setup_link_id=1&error_code=%2B"


# Errors


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture, settings: Any) -> Any:
    """Where a site's log and its mails to ADMINS go."""
    settings.ADMINS = [("Ada", "ada@example.com")] if VERSION < (6,) else ["ada@example.com"]
    handler = AdminEmailHandler(include_html=True)
    handler.setLevel(logging.ERROR)
    root = logging.getLogger()
    root.addHandler(handler)
    yield caplog
    root.removeHandler(handler)


def mails() -> str:
    sent = getattr(mail, "outbox", [])
    parts = [str(part) for one in sent for part in (one.subject, one.body, one.alternatives)]
    return "\n".join(parts)


@pytest.mark.parametrize("page", ["change", "whatsapp_email", "api"])
def test_mails_about_errors_of_staffs_pages_do_not_show_the_url(
    link: SetupLink, address: str, admin_client: Client, log: Any, page: str
) -> None:
    Customer.objects.update(email="bakery@example.com")
    admin_client.raise_request_exception = False
    admin_client.cookies["kapso_connect_token"] = cookie = visit(link.customer)
    if page == "api":
        path, data = "/api/whatsapp/v1/setup-links/", {"customer": link.customer.pk}
        with failing_queries(RuntimeError, "UPDATE", IdempotentRequest):
            response = admin_client.post(path, data, content_type="application/json")
    else:
        path = reverse(f"admin:kapso_connect_customer_{page}", args=[link.customer.pk])
        with failing_queries(RuntimeError, "SELECT", TimelineEvent):
            response = admin_client.get(path)
    assert response.status_code == 500
    assert path in mails()
    for secret in [address, cookie, *SetupLink.objects.values_list("url", flat=True)]:
        assert secret not in mails()


@pytest.mark.parametrize("method", ["get", "post"])
def test_without_a_database_the_page_is_friendly_and_its_url_in_no_log_or_mail(
    link: SetupLink, address: str, client: Client, log: Any, method: str
) -> None:
    with failing_queries(OperationalError("the database is away"), "SELECT", Customer):
        response = getattr(client, method)(address)
    assert (response.status_code, response["Retry-After"]) == (503, "60")
    assert "Not possible right now" in text(response)
    assert "Something went wrong on our side" in text(response)
    assert response["Referrer-Policy"] == "no-referrer"
    (record,) = log.records
    assert (record.name, record.levelname) == ("kapso_connect.page", "ERROR")
    assert record.exc_info[0] is OperationalError
    assert "the database is away" in mails()
    assert "in dispatch" in mails()
    for secret in (address.split("/")[-2], str(link.customer.connect_key), link.url):
        assert secret not in log.text + mails()


def test_read_only_database_is_temporary(link: SetupLink, address: str, client: Client) -> None:
    with read_only_database():
        response = client.post(address)
    assert (response.status_code, response["Retry-After"]) == (503, "60")


def test_redirects_with_an_error_are_friendly_and_not_in_djangos_log(
    link: SetupLink, client: Client, log: Any
) -> None:
    with failing_queries(OperationalError("away"), "SELECT", SetupLink):
        for url in (success(link, "1"), failed(link, "link_expired")):
            assert client.get(url).status_code == 503
    assert link.kapso_id not in log.text + mails()
    assert {record.name for record in log.records} == {"kapso_connect.page"}


def test_error_in_a_sites_own_page_is_friendly(link: SetupLink, client: Client, log: Any) -> None:
    class Broken(views.ConnectView):
        def get_context_data(self, page: str, **context: Any) -> dict[str, Any]:
            raise ZeroDivisionError

    token = connect_path(link.customer).split("/")[-2]
    response = Broken.as_view()(RequestFactory().get("/"), token=token)
    assert response.status_code == 500
    assert "Something went wrong on our side" in text(response)
    assert "Broken failed: ZeroDivisionError" in log.text
    assert token not in log.text + mails()


def test_page_without_templates_is_a_line_of_text(
    address: str, client: Client, log: Any, settings: Any
) -> None:
    settings.TEMPLATES = []
    response = client.get(address)
    assert (response.status_code, text(response)) == (500, "Not possible right now")
    assert [record.levelname for record in log.records] == ["ERROR"]
    assert "kapso_connect/" in log.text


def test_exception_of_a_middleware_after_the_page_is_logged_without_its_url(
    address: str, client: Client, log: Any, settings: Any
) -> None:
    settings.MIDDLEWARE = ["tests.faults.raising_middleware", *settings.MIDDLEWARE]
    client.raise_request_exception = False
    assert client.get(address).status_code == 500
    (record,) = log.records
    assert (record.name, record.exc_info[0]) == ("django.request", ZeroDivisionError)
    mailed = "".join(sent.subject + str(sent.body) for sent in mail.outbox)
    assert mailed
    assert address.split("/")[-2] not in log.text + mailed


# Too often


def test_too_many_clicks_are_limited(
    link: SetupLink, address: str, client: Client, monkeypatch: pytest.MonkeyPatch, sandbox: Sandbox
) -> None:
    monkeypatch.setattr(rate_limit.time, "time", lambda: 1_800_000_000 + 60)
    for _ in range(rate_limit.CONNECT_RATE_LIMIT):
        assert client.post(address).status_code == 200
    asked = len(sandbox.requests())
    response = client.post(address)
    assert response.status_code == 429
    assert response["Retry-After"] == "540"
    assert "try again in 9 minutes, at:" in text(response)
    assert len(sandbox.requests()) == asked
    assert client.get(address).status_code == 200

    other = onboarding.create_setup_link(make_customer(kapso_id=None))
    assert client.post(connect_path(other.customer)).status_code == 200
    monkeypatch.setattr(rate_limit.time, "time", lambda: 1_800_000_000 + 600)
    assert client.post(address).status_code == 200


@pytest.mark.parametrize("is_broken", [False, True], ids=["dummy", "broken"])
def test_broken_cache_means_no_limit(
    address: str, client: Client, settings: Any, is_broken: bool
) -> None:
    settings.CACHES = {"default": {"BACKEND": "django.core.cache.backends.dummy.DummyCache"}}
    broken = mock.patch.object(rate_limit.cache, "add", side_effect=ConnectionError("away"))
    with broken if is_broken else mock.MagicMock():
        for _ in range(rate_limit.CONNECT_RATE_LIMIT + 2):
            assert client.post(address).status_code == 200


# Languages


@pytest.mark.parametrize(
    ("link_language", "customer_language", "browser", "expected"),
    [
        ("ar", "hi", "es", "ar"),
        (None, "hi", "es", "hi"),
        (None, "", "es", "es"),
        (None, "", "de, pt-PT;q=0.8, es;q=0.5", "pt-BR"),
        (None, "", "pt;q=0.1, id;q=0.9", "id"),
        (None, "", "de, es;q=0", "en"),
        (None, "", "de", "en"),
        (None, "", "", "en"),
        (None, "", ",;q=x" * 10_000, "en"),
        ("xx", "yy", "es", "es"),
    ],
    ids=range(10),
)
def test_language_of_link_customer_or_browser(
    client: Client, settings: Any, link_language: str | None, customer_language: str, browser: str,
    expected: str,
) -> None:  # fmt: skip
    settings.MIDDLEWARE = [name for name in settings.MIDDLEWARE if "locale" not in name]
    translation.deactivate()
    customer = make_customer(connect_key="mine")
    # Not saved, which would refuse a language that Kapso does not have.
    Customer.objects.filter(pk=customer.pk).update(language=customer_language)
    options = {"language": link_language} if link_language else {}
    link = make_link(customer, is_latest=True, options=options)
    for url in (connect_path(customer), failed(link, "link_expired")):
        response = client.get(url, headers={"Accept-Language": browser})
        assert response["Content-Language"] == expected
        assert "Accept-Language" in response["Vary"]
        direction = "rtl" if expected == "ar" else "ltr"
        assert f'<html lang="{expected}" dir="{direction}">' in text(response)
    response = client.get("/whatsapp/connect/x/")
    assert response["Content-Language"] == "en", "the language ends with the page"


def test_without_translations(address: str, client: Client, settings: Any) -> None:
    settings.USE_I18N = False
    chosen = vars(translation._trans)  # with USE_I18N or without, as of the first use
    chosen.clear()
    try:
        response = client.get(address, headers={"Accept-Language": "ar"})
        client.post(f"{address}?language=es")
    finally:
        chosen.clear()
    assert '<html lang="en" dir="ltr">' in text(response)
    assert response["Content-Language"] == "en"
    assert "kapso-languages" not in text(response)
    assert not Customer.objects.filter(language="es").exists()


# Colours


def test_stylesheet_has_the_links_colours(client: Client, settings: Any) -> None:
    customer = make_customer(connect_key="mine")
    link = make_link(customer, is_latest=True)
    assert "theme/" not in text(client.get(connect_path(customer)))
    for colors in ({"primary_color": "#AB12CD"}, dict.fromkeys(THEME_COLORS, "#ab12cd")):
        SetupLink.objects.update(options={"theme_config": colors})
        page = text(client.get(connect_path(customer)))
        url = f"/whatsapp/theme/{theme.to_path(colors)}.css?{theme.VERSION}"
        assert f'href="{url}"' in page
        response = Client().get(url)
        assert response["Content-Type"] == "text/css"
        assert "immutable" in response["Cache-Control"]
        assert not response.cookies
        assert "--kapso-primary:#ab12cd;" in text(response).lower()
    assert f'href="{url}"' in text(client.get(failed(link, "link_expired")))


@pytest.mark.parametrize(
    "colors",
    ["", "-" * 10, "-" * 12, "red" + "-" * 11, "12345g" + "-" * 11, "}body{" + "-" * 11, "-" * 99],
    ids=range(7),
)
def test_stylesheet_accepts_only_colours(client: Client, colors: str) -> None:
    assert client.get(f"/whatsapp/theme/{colors}.css").status_code == 404


@pytest.mark.parametrize(
    "colors",
    [{"primary_color": "#fff"}, {"primary_color": None}, {"primary_color": 1}, "#ffffff", []],
    ids=["short", "none", "number", "text", "list"],
)
def test_invalid_colours_in_settings_are_ignored(
    address: str, client: Client, configure: Any, colors: object
) -> None:
    configure(SETUP_LINK_DEFAULTS={"theme_config": colors})
    response = client.get(address)
    assert response.status_code == 200
    assert "/theme/" not in text(response)


# The site's own next step


@pytest.fixture
def connected(sandbox: Sandbox) -> Connection:
    owner = User.objects.create(username="Ada's Bakery")
    customer = Customer.objects.for_owner(owner, connect_key="mine", kapso_id="k")
    link = make_link(customer, is_latest=True, status="used", setup_status="completed")
    return make_connection(customer, setup_link=link, display_phone_number="+442071838750")


def next_step(client: Client, connection: Connection) -> str:
    assert connection.setup_link is not None
    response = client.get(success(connection.setup_link, connection.phone_number_id))
    assert response.status_code == 200
    url: str = response.context["next_url"]
    assert (f'href="{escape(url)}"' in text(response)) == bool(url)
    assert ("you can close this page" in text(response)) == (not url)
    return url


def test_next_url_of_link_owner_or_setting(
    connected: Connection, client: Client, configure: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(User, "get_whatsapp_next_url", raising=False)
    assert next_step(client, connected) == ""
    configure(NEXT_URL="/of-the-setting/")
    assert next_step(client, connected) == "/of-the-setting/"
    data = []

    def hook(self: User, connection: Connection) -> str:
        data.append((self.username, connection))
        return "/of-the-owner/"

    monkeypatch.setattr(User, "get_whatsapp_next_url", hook, raising=False)
    assert next_step(client, connected) == "/of-the-owner/"
    assert data == [("Ada's Bakery", connected)]
    SetupLink.objects.update(next_url="https://site.example/of-the-link/")
    assert next_step(client, connected) == "https://site.example/of-the-link/"
    SetupLink.objects.update(next_url="https://site.example")
    assert next_step(client, connected) == "https://site.example"


@pytest.mark.parametrize(
    "elsewhere",
    ["https://elsewhere.example/", "//elsewhere.example", "javascript:alert(1)", "/\\x.example", 7],
)
def test_next_url_never_leads_to_another_site(
    connected: Connection, client: Client, monkeypatch: pytest.MonkeyPatch, elsewhere: Any
) -> None:
    monkeypatch.setattr(
        User, "get_whatsapp_next_url", lambda self, connection: elsewhere, raising=False
    )
    assert next_step(client, connected) == ""


def test_error_of_the_owner_does_not_break_the_page(
    connected: Connection, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = mock.Mock(side_effect=RuntimeError("broken"))
    monkeypatch.setattr(User, "get_whatsapp_next_url", broken, raising=False)
    assert next_step(client, connected) == ""


def test_next_url_identifies_only_the_customers_browser(
    connected: Connection, client: Client
) -> None:
    SetupLink.objects.update(next_url="/welcome/?step=2")
    assert next_step(client, connected) == "/welcome/?step=2"
    client.cookies["kapso_connect_token"] = visit(make_customer(connect_key="others"))
    assert next_step(client, connected) == "/welcome/?step=2"
    client.cookies["kapso_connect_token"] = visit(connected.customer)
    url = next_step(client, connected)
    assert url.startswith("/welcome/?step=2&kapso_connect=")
    assert returning_customer(RequestFactory().get(url)) == connected.customer
    # Whoever has the customer's own address is the customer, too.
    page = client.get(connect_path(connected.customer))
    assert returning_customer(RequestFactory().get(page.context["next_url"])) is not None


def test_customer_token_is_valid_for_an_hour_and_cannot_be_forged() -> None:
    customer = make_customer(connect_key="mine")
    url = with_customer_token("/welcome/", customer)
    later = mock.patch("django.core.signing.time.time", return_value=time.time() + 3601)
    assert RETURN_SECONDS == 3600
    with later:
        assert returning_customer(RequestFactory().get(url)) is None
    for forged in ("/", "/?kapso_connect=", "/?kapso_connect=mine", url[:-1], f"{url}%00"):
        assert returning_customer(RequestFactory().get(forged)) is None
    for token in (connect_url(customer).split("/")[-2], visit(customer)):
        assert returning_customer(RequestFactory().get(f"/?kapso_connect={token}")) is None
    Customer.objects.update(connect_key=None)
    assert returning_customer(RequestFactory().get(url)) is None
    customer.connect_key = None
    assert with_customer_token("/welcome/", customer) == "/welcome/"


# All pages


@pytest.mark.parametrize(
    "query",
    [
        "setup_link_id=LINK&setup_link_id=OTHER&error_code=link_expired&phone_number_id=1",
        "setup_link_id=LINK%00&error_code=link_expired&phone_number_id=1",
        "setup_link_id=" + "x" * 100_000,
        "&".join(f"p{n}=1" for n in range(2000)),
        "setup_link_id[]=LINK&error_code[]=a&phone_number_id[]=1",
        "=&=&;;%",
    ],
    ids=range(6),
)
def test_hostile_parameters_get_a_friendly_page_and_change_nothing(
    client: Client, query: str
) -> None:
    link, other = make_link(), make_link()
    query = query.replace("LINK", link.kapso_id).replace("OTHER", other.kapso_id)
    before = rows()
    for page in (SUCCESS, FAILED):
        response = client.get(f"{page}?{query}")
        assert response.status_code == 400
        assert "We cannot find this connection" in text(response)
        assert "alert" not in text(response)
        assert "xxxx" not in text(response)
        assert rows() == before


@pytest.mark.parametrize(
    "odd", ["a&ODD=b", "%ff", "%00", "<script>alert(1)</script>", "1" * 100_000], ids=range(5)
)
def test_hostile_number_is_refused_and_hostile_error_code_is_a_failure_like_others(
    client: Client, odd: str
) -> None:
    link = make_link()
    query = f"setup_link_id={link.kapso_id}&ODD={odd}"
    before = rows()
    response = client.get(f"{SUCCESS}?{query.replace('ODD', 'phone_number_id')}")
    assert response.status_code == 400
    assert rows() == before
    response = client.get(f"{FAILED}?{query.replace('ODD', 'error_code')}")
    assert response.status_code == 200
    assert "WhatsApp could not be connected" in text(response)
    assert "alert" not in text(response)
    link.refresh_from_db()
    assert re.fullmatch("[0-9A-Za-z_-]{1,64}", link.last_error_code)


@pytest.mark.parametrize(
    "name", ["connect", "success", "failed", "invalid", "withdrawn", "mistyped"]
)
def test_every_page_is_private(connected: Connection, client: Client, name: str) -> None:
    link = connected.setup_link
    assert link is not None
    pages = {
        "connect": connect_path(connected.customer),
        "success": success(link, connected.phone_number_id),
        "failed": failed(link, "link_expired"),
        "invalid": "/whatsapp/connect/x/",
        "withdrawn": connect_path(Customer(connect_key="gone")),
        "mistyped": "/whatsapp/connect/x",
    }
    response = client.get(pages[name])
    assert "no-store" in response["Cache-Control"]
    assert response["Referrer-Policy"] == "no-referrer"
    assert response["X-Robots-Tag"] == "noindex, nofollow"
    page = text(response)
    for inline in ("<style", "style=", "<script>", "onclick", "http://", "https://"):
        assert inline not in page.replace("https://wa.me/", "").replace("https://site.example", "")


def test_a_site_subclasses_a_page(connected: Connection) -> None:
    class OurSuccess(views.SuccessView):
        def get_context_data(self, page: str, **context: Any) -> dict[str, Any]:
            context = super().get_context_data(page, **context)
            return {**context, "site_name": f"Our {page} page for {context['customer']}"}

    assert connected.setup_link is not None
    url = success(connected.setup_link, connected.phone_number_id)
    response: HttpResponse = OurSuccess.as_view()(RequestFactory().get(url))
    assert "Our success page for Ada&#x27;s Bakery" in text(response)


def test_staff_find_the_reference(admin_client: Client) -> None:
    link, _other = make_link(make_customer(name="Sought")), make_link(make_customer(name="Not"))
    url = "/admin/kapso_connect/setuplink/"
    page = text(admin_client.get(url, {"q": link.reference}))
    assert "Sought" in page
    assert "1 setup link" in page


def test_customer_whose_number_meta_paused_is_told_so(client: Client) -> None:
    customer = make_customer(connect_key=new_connect_key())
    connection = make_connection(
        customer,
        status="disconnected",
        disconnect_reason="offboarded",
        disconnected_at=timezone.now(),
    )
    make_link(customer, is_latest=True, status="used", setup_status="completed")
    store_statuses()
    page = client.get(connect_path(connection.customer)).content.decode()
    assert "WhatsApp has paused your number" in page
