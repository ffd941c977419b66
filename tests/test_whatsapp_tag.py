"""``{% whatsapp_connection %}`` on a page of the site's own."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import AnonymousUser
from django.template import TemplateSyntaxError, engines
from django.test import Client
from django.urls import NoReverseMatch
from django.utils import timezone
from django.utils.functional import SimpleLazyObject
from django.utils.html import strip_tags

from kapso_connect.kapso.error_codes import SETUP_ERRORS
from kapso_connect.models import Customer

from .factories import make_connection, make_customer, make_link, make_user, store_statuses

pytestmark = [pytest.mark.django_db, pytest.mark.urls("tests.sites.self_service_urls")]

NUMBER = {"display_phone_number": "+442071838750", "verified_name": "Ada's Bakery"}


def show(owner: Any, arguments: str = "url='whatsapp'", **context: Any) -> str:
    source = "{% load whatsapp %}{% whatsapp_connection owner " + arguments + " %}"
    page: str = engines["django"].from_string(source).render({"owner": owner, **context})
    return page


def words(page: str) -> str:
    return " ".join(strip_tags(page).split())


def ended(reason: str = "", minutes: int = 5) -> dict[str, Any]:
    return {
        "status": "disconnected",
        "disconnect_reason": reason,
        "disconnected_at": timezone.now() - timedelta(minutes=minutes),
        **NUMBER,
    }


def button(action: str) -> str:
    return f'<input type="hidden" name="action" value="{action}">'


def nobody() -> Customer | None:
    return None


def opened() -> Customer:
    return make_link(opened_at=timezone.now()).customer


def failed() -> Customer:
    return make_link(setup_status="failed", last_error_code="waba_limit_reached").customer


def confirming() -> Customer:
    return make_link(unconfirmed_since=timezone.now()).customer


def with_number(**fields: Any) -> Any:
    return lambda: make_connection(**{**NUMBER, **fields}).customer


NOT_CONNECTED = "WhatsApp is not connected"
LOST = {"health_status": "unhealthy", "health_problems": [{"check": "token_validity"}]}
STATES: dict[str, tuple[Any, str, list[str]]] = {
    "nobody": (nobody, NOT_CONNECTED, ["connect"]),
    "new": (make_customer, NOT_CONNECTED, ["connect"]),
    "invited": (lambda: make_link().customer, NOT_CONNECTED, ["connect"]),
    "opened": (opened, "You have started to connect WhatsApp", ["connect"]),
    "failed": (failed, str(SETUP_ERRORS["waba_limit_reached"].cause), ["connect"]),
    "confirming": (confirming, "Your number is being confirmed", ["connect"]),
    "connected": (with_number(), "+44 20 7183 8750", ["disconnect"]),
    "test": (
        with_number(display_phone_number="+1 555-123-4567"),
        "one of Meta's test numbers",
        ["connect", "disconnect"],
    ),
    "restricted": (
        with_number(account_status="restricted"),
        "Meta has restricted",
        ["connect", "disconnect"],
    ),
    "name": (with_number(name_status="PENDING_REVIEW"), "still reviewing", ["disconnect"]),
    "access": (with_number(**LOST), "no longer works", ["disconnect", "reconnect"]),
    "paused": (with_number(**ended("offboarded")), "usually comes back", []),
    "paused_long": (
        with_number(**ended("offboarded", 120)),
        "has not come back by itself",
        ["reconnect"],
    ),
    "disconnected": (
        with_number(**ended("partner_removed")),
        "Your number is disconnected",
        ["connect", "reconnect"],
    ),
}


@pytest.mark.parametrize("state", STATES)
def test_each_state_has_its_words_and_buttons(state: str) -> None:
    make, text, actions = STATES[state]
    page = show(make())
    assert text in words(page).replace("&#x27;", "'")
    shown = [name for name in ("connect", "disconnect", "reconnect") if button(name) in page]
    assert shown == actions
    assert 'action="/settings/whatsapp/"' in page or not actions


def test_numbers_that_are_connected_and_paused_are_shown() -> None:
    customer = make_customer()
    make_connection(customer, **NUMBER)
    make_connection(customer, **{**ended("offboarded"), "display_phone_number": "+14155550123"})
    make_connection(customer, **{**ended("deleted"), "display_phone_number": "+14155550199"})
    page = words(show(customer))
    assert "+44 20 7183 8750 Ada" in page
    assert "+1 415-555-0123" in page
    assert "+1 415-555-0199" not in page


def test_only_reads(django_assert_max_num_queries: Any) -> None:
    user = make_user()
    with django_assert_max_num_queries(2):
        show(user)
    assert Customer.objects.count() == 0
    Customer.objects.for_owner(user)
    make_connection(Customer.objects.get(), **NUMBER)
    with django_assert_max_num_queries(3):
        assert "+44 20 7183 8750" in words(show(user))


def test_owner_may_be_the_lazy_user_of_a_request() -> None:
    user = make_user()
    lazy: Any = SimpleLazyObject(lambda: user)
    assert Customer.objects.for_owner(lazy) == Customer.objects.for_owner(user)
    make_connection(Customer.objects.get(), **NUMBER)
    assert "+44 20 7183 8750" in words(show(lazy))


@pytest.mark.parametrize("visitor", [AnonymousUser(), None])
def test_visitor_who_is_not_logged_in_has_no_customer(visitor: Any) -> None:
    assert button("connect") in show(visitor)
    assert button("connect") in show(SimpleLazyObject(lambda: visitor))


@pytest.mark.parametrize("action", ["disconnect", "reconnect"])
def test_key_of_a_number_has_no_separators(settings: Any, action: str) -> None:
    settings.USE_THOUSAND_SEPARATOR = True
    lost = make_connection(pk=1234567, **NUMBER, **LOST)
    assert f'{button(action)}<input type="hidden" name="connection" value="1234567">' in show(
        lost.customer
    )


def test_forms_have_the_csrf_token(client: Client) -> None:
    client.force_login(make_user())
    assert "csrfmiddlewaretoken" in client.get("/settings/").content.decode()


def test_url_may_be_a_path() -> None:
    assert 'action="/any/where/"' in show(None, "url='/any/where/'")


@pytest.mark.parametrize(
    ("owner", "arguments", "error", "message"),
    [
        ("", "url='whatsapp'", TemplateSyntaxError, "the owner is ''"),
        (None, "url=missing", TemplateSyntaxError, "url is empty"),
        (None, "url='whatsap'", NoReverseMatch, "whatsap"),
        (None, "", TemplateSyntaxError, "url"),
    ],
)
def test_mistake_is_an_error(owner: Any, arguments: str, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        show(owner, arguments)


def test_popup_has_its_script() -> None:
    page = show(None, "url='whatsapp' popup=True")
    assert "data-kapso-popup" in page
    assert "kapso_connect/popup.js" in page
    assert "kapso-popup" not in show(None)
    assert "popup.js" not in show(None)


def test_disconnecting_needs_no_popup() -> None:
    page = show(with_number()(), "url='whatsapp' popup=True")
    assert "<form" in page
    assert "data-kapso-popup" not in page


def test_name_of_a_customer_is_escaped() -> None:
    page = show(with_number(verified_name="<b>Ada</b>")())
    assert "<b>" not in page


def test_statuses_all_have_words() -> None:
    store_statuses()
    for status in Customer._meta.get_field("status").choices or []:
        assert words(show(make_customer(status=status[0])))
