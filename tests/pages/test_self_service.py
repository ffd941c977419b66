"""The view behind the buttons of ``{% whatsapp_connection %}``, for a logged-in user."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.cache import caches
from django.core.exceptions import ImproperlyConfigured
from django.db import connection as database
from django.db import connections
from django.test import Client, RequestFactory
from django.utils import timezone

from kapso_connect.models import Connection, Customer, IdempotentRequest, SetupLink, TimelineEvent
from kapso_connect.onboarding import create_setup_link, erase_customer, revoke_setup_link
from kapso_connect.onboarding.connect_urls import VISIT_COOKIE, connect_path
from kapso_connect.pages import rate_limit
from kapso_connect.pages.self_service import WhatsAppView
from kapso_connect.testing import Sandbox, connect_customer

from ..factories import make_connection, make_user
from ..faults import around_api_requests
from ..sites.self_service_urls import OwnWhatsAppView

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.urls("tests.sites.self_service_urls"),
]

URL = "/settings/whatsapp/"
AWAY = {"match": ".*", "kind": "status", "status": 503}
REFUSED = {"match": ".*", "kind": "status", "status": 401}


@pytest.fixture(autouse=True)
def _forget_clicks(settings: Any) -> None:
    caches["default"].clear()
    settings.LOGIN_URL = "/admin/login/"


@pytest.fixture
def ada(sandbox: Sandbox) -> User:
    user: User = make_user("ada", is_staff=False)
    return user


@pytest.fixture
def browser(ada: User, client: Client) -> Client:
    client.force_login(ada)
    return client


def press(browser: Client, action: str = "connect", **data: Any) -> Any:
    return browser.post(URL, {"action": action, **data})


def customer_of(user: User) -> Customer:
    return Customer.objects.for_owner(user)


def created(sandbox: Sandbox) -> int:
    requests = [r for r in sandbox.requests() if r["method"] == "POST"]
    return sum(request["path"].endswith("/setup_links") for request in requests)


def press_elsewhere(user: User) -> Any:
    """Press the button in another browser, in a thread of its own."""
    try:
        browser = Client()
        browser.force_login(user)
        return press(browser)
    finally:
        connections.close_all()


# Connecting


def test_press_leads_to_a_new_link(browser: Client, ada: User, sandbox: Sandbox) -> None:
    response = press(browser)
    assert response.status_code == 200
    link = SetupLink.objects.get()
    assert response["Refresh"] == f"0; url={link.url}"
    assert link.url in response.content.decode()
    assert VISIT_COOKIE in response.cookies
    assert (link.next_url, link.created_by, link.customer.owner) == ("/settings/", ada, ada)
    assert link.opened_at is not None
    assert IdempotentRequest.objects.count() == 0


def test_user_comes_back_identified(browser: Client, ada: User, sandbox: Sandbox) -> None:
    press(browser)
    location = sandbox.complete(SetupLink.objects.get().url)
    success = browser.get(location)
    back = browser.get(success.context["next_url"], follow=True)
    assert back.redirect_chain == [("/settings/", 302)]
    page = back.content.decode()
    assert "Back: ada" in page
    assert "WhatsApp is connected" in page


def test_second_press_leads_to_the_same_link(browser: Client, sandbox: Sandbox) -> None:
    first, second = press(browser), press(browser)
    assert first["Refresh"] == second["Refresh"]
    assert created(sandbox) == 1


def test_link_of_staff_is_used_and_leads_to_the_sites_page(
    browser: Client, ada: User, sandbox: Sandbox
) -> None:
    link = create_setup_link(customer_of(ada), next_url="/elsewhere/")
    assert press(browser)["Refresh"] == f"0; url={link.url}"
    link.refresh_from_db()
    assert link.next_url == "/settings/"
    assert created(sandbox) == 1


def test_expired_link_is_renewed(browser: Client, ada: User, sandbox: Sandbox) -> None:
    link = create_setup_link(customer_of(ada))
    SetupLink.objects.update(status="expired")
    response = press(browser)
    assert response.status_code == 200
    assert link.url not in response["Refresh"]
    assert customer_of(ada).latest_setup_link.next_url == "/settings/"


def test_withdrawn_invitation_is_no_obstacle(browser: Client, ada: User, sandbox: Sandbox) -> None:
    revoke_setup_link(create_setup_link(customer_of(ada)))
    assert press(browser).status_code == 200
    assert customer_of(ada).status == "opened"


def test_connected_customer_goes_back(browser: Client, ada: User, sandbox: Sandbox) -> None:
    make_connection(customer_of(ada), display_phone_number="+442071838750")
    response = press(browser)
    assert (response.status_code, response["Location"]) == (303, "/settings/")
    assert created(sandbox) == 0


def test_number_that_is_being_confirmed_is_waited_for(
    browser: Client, ada: User, sandbox: Sandbox
) -> None:
    press(browser)
    link = SetupLink.objects.get()
    location = sandbox.complete(link.url)
    sandbox.faults(api=[AWAY])
    assert browser.get(location).status_code == 202
    response = press(browser)
    assert response["Location"] == connect_path(customer_of(ada))
    assert browser.get(response["Location"]).status_code == 202


def test_options_of_the_view_are_sent(
    browser: Client, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"allowed_connection_types": ["coexistence"]}
    monkeypatch.setattr(OwnWhatsAppView, "get_setup_link_options", lambda self: options)
    press(browser)
    assert SetupLink.objects.get().options["allowed_connection_types"] == ["coexistence"]


@pytest.mark.parametrize("attempt", range(3))
def test_presses_at_once_create_one_link(
    ada: User, sandbox: Sandbox, sqlite_options: None, attempt: int
) -> None:
    customer_of(ada)

    with (
        around_api_requests("POST .*/setup_links", before=partial(time.sleep, 0.3)),
        ThreadPoolExecutor(3) as threads,
    ):
        responses = list(threads.map(press_elsewhere, [ada] * 3))
    assert [response.status_code for response in responses] == [200] * 3
    assert len({response["Refresh"] for response in responses}) == 1
    assert all(VISIT_COOKIE in response.cookies for response in responses)
    assert created(sandbox) == 1


def test_presses_at_once_are_all_told_that_kapso_refuses(
    ada: User, sandbox: Sandbox, sqlite_options: None
) -> None:
    customer_of(ada)
    sandbox.faults(api=[{**REFUSED, "match": "POST .*"}])
    with (
        around_api_requests("POST .*", before=partial(time.sleep, 0.3)),
        ThreadPoolExecutor(3) as threads,
    ):
        responses = list(threads.map(press_elsewhere, [ada] * 3))
    assert [response.status_code for response in responses] == [503] * 3
    assert not any("Retry-After" in response for response in responses), "nothing to wait for"


def test_press_uses_the_link_that_another_has_just_created(
    browser: Client, ada: User, sandbox: Sandbox, sqlite_options: None
) -> None:
    customer_of(ada)
    others: list[Any] = []

    def press_meanwhile(execute: Any, sql: str, *arguments: Any) -> Any:
        if sql.startswith("INSERT") and "idempotentrequest" in sql and not others:
            with ThreadPoolExecutor(1) as thread:
                others.append(None)
                others[0] = thread.submit(press_elsewhere, ada).result()
        return execute(sql, *arguments)

    with database.execute_wrapper(press_meanwhile):
        response = press(browser)
    assert response["Refresh"] == others[0]["Refresh"]
    assert VISIT_COOKIE in response.cookies
    assert created(sandbox) == 1


def test_lost_answer_creates_no_second_link(browser: Client, sandbox: Sandbox) -> None:
    lost = {"match": "POST .*/setup_links", "kind": "apply_then_close"}
    sandbox.faults(api=[lost, {**AWAY, "match": "GET .*/setup_links"}])
    assert press(browser).status_code == 503
    sandbox.clear_faults()
    caches["default"].clear()
    assert press(browser).status_code == 200
    assert created(sandbox) == 1
    assert IdempotentRequest.objects.count() == 0


# Reconnecting and disconnecting


def connected(browser: Client, user: User, sandbox: Sandbox) -> Connection:
    press(browser)
    browser.get(sandbox.complete(SetupLink.objects.latest("pk").url, phone_number="+442071838750"))
    return Connection.objects.get(customer=customer_of(user))


def test_number_is_reconnected(browser: Client, ada: User, sandbox: Sandbox) -> None:
    number = connected(browser, ada, sandbox)
    for _ in range(2):
        response = press(browser, "reconnect", connection=number.pk)
    latest = customer_of(ada).latest_setup_link
    assert response["Refresh"] == f"0; url={latest.url}"
    assert latest.reconnect_number == "+442071838750"
    assert created(sandbox) == 2
    browser.get(sandbox.complete(latest.url))
    press(browser, "reconnect", connection=number.pk)
    assert created(sandbox) == 3, "it may be needed again"


def test_number_that_kapso_has_removed_is_connected_anew(
    browser: Client, ada: User, sandbox: Sandbox
) -> None:
    gone = {"status": "disconnected", "disconnected_at": timezone.now()}
    number = make_connection(customer_of(ada), display_phone_number="+442071838750", **gone)
    assert press(browser, "reconnect", connection=number.pk).status_code == 200
    assert customer_of(ada).latest_setup_link.reconnect_number == ""


def test_open_link_for_another_purpose_is_replaced(
    browser: Client, ada: User, sandbox: Sandbox
) -> None:
    number = connected(browser, ada, sandbox)
    press(browser, "reconnect", connection=number.pk)
    Connection.objects.update(status="disconnected")
    press(browser)
    assert customer_of(ada).latest_setup_link.reconnect_number == ""


def test_number_is_disconnected(browser: Client, ada: User, sandbox: Sandbox) -> None:
    number = connected(browser, ada, sandbox)
    response = press(browser, "disconnect", connection=number.pk)
    assert (response.status_code, response["Location"]) == (303, "/settings/")
    number.refresh_from_db()
    assert not number.is_connected
    assert TimelineEvent.objects.get(kind="disconnected").actor == ada
    assert press(browser).status_code == 200, "it can be connected again"
    assert customer_of(ada).latest_setup_link.status == "active"
    assert created(sandbox) == 2


@pytest.mark.parametrize("action", ["reconnect", "disconnect"])
@pytest.mark.parametrize("key", ["other", "", "x", "\0", "9" * 30, "9" * 5000])
def test_only_the_customers_own_numbers(
    browser: Client, ada: User, sandbox: Sandbox, action: str, key: str
) -> None:
    other = connect_customer(phone_number="+442071838750")
    response = press(browser, action, connection=other.pk if key == "other" else key)
    assert response.status_code == 404
    other.refresh_from_db()
    assert other.is_connected


@pytest.mark.parametrize("action", ["", "delete"])
def test_unknown_action(browser: Client, action: str) -> None:
    assert press(browser, action).status_code == 400


# Who may


def test_get_leads_back(browser: Client) -> None:
    assert browser.get(URL)["Location"] == "/settings/"


def test_visitor_has_to_log_in(client: Client, sandbox: Sandbox) -> None:
    for response in (client.post(URL, {"action": "connect"}), client.get(URL)):
        assert response["Location"] == f"/admin/login/?next={URL}"
    assert Customer.objects.count() == 0


@pytest.mark.parametrize(("name", "status"), [("stranger", 404), ("refused", 403)])
def test_user_without_a_customer(client: Client, sandbox: Sandbox, name: str, status: int) -> None:
    client.force_login(make_user(name))
    assert press(client).status_code == status
    assert created(sandbox) == 0


def test_post_needs_the_csrf_token(ada: User) -> None:
    browser = Client(enforce_csrf_checks=True)
    browser.force_login(ada)
    assert press(browser).status_code == 403
    page = browser.get("/settings/")
    token = page.cookies["csrftoken"].value
    assert press(browser, csrfmiddlewaretoken=token).status_code == 200


@pytest.mark.parametrize("url", [URL, "/settings/covered/"])
def test_works_under_atomic_requests(
    browser: Client,
    monkeypatch: pytest.MonkeyPatch,
    requests_in_transaction: list[bool],
    url: str,
) -> None:
    monkeypatch.setitem(database.settings_dict, "ATOMIC_REQUESTS", True)
    assert browser.post(url, {"action": "connect"}).status_code == 200
    assert requests_in_transaction
    assert not any(requests_in_transaction)


# When it is not possible


@pytest.mark.parametrize("action", ["connect", "disconnect"])
@pytest.mark.parametrize(("fault", "again"), [(AWAY, "60"), (REFUSED, None)])
def test_error_is_a_page_that_leads_back(
    browser: Client, ada: User, sandbox: Sandbox, action: str, fault: Any, again: str | None
) -> None:
    number = connected(browser, ada, sandbox)
    if action == "connect":
        Connection.objects.update(status="disconnected")
    sandbox.faults(api=[fault])
    response = press(browser, action, connection=number.pk)
    assert response.status_code == 503
    assert response.get("Retry-After") == again
    page = response.content.decode()
    assert '<a class="kapso-button kapso-secondary" href="/settings/">Back</a>' in page
    assert "<form" not in page


def test_presses_are_limited(browser: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_limit, "CONNECT_RATE_LIMIT", 1)
    press(browser)
    response = press(browser)
    assert response.status_code == 429
    assert 'href="/settings/">Back</a>' in response.content.decode()
    assert 'href=""' not in response.content.decode()
    assert press(browser, "disconnect", connection=1).status_code == 404


def test_erased_customer_is_not_connected(browser: Client, ada: User, sandbox: Sandbox) -> None:
    erase_customer(customer_of(ada))
    response = press(browser)
    assert response.status_code in {200, 503}


def test_view_says_what_it_needs(rf: RequestFactory) -> None:
    class Bare(WhatsAppView):
        pass

    request = rf.post("/")
    request.user = User(username="ada")
    with pytest.raises(NotImplementedError, match=r"Bare must define get_customer\(\)"):
        Bare.as_view()(request)

    class Half(WhatsAppView):
        def get_customer(self) -> Customer:
            return Customer()

    with pytest.raises(ImproperlyConfigured, match="Half needs success_url"):
        Half.as_view()(request)
