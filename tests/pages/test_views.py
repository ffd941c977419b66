from __future__ import annotations

import re
import time
import uuid
from datetime import timedelta
from html import unescape
from typing import Any
from unittest import mock
from urllib.parse import urlencode

import pytest
from django.contrib.contenttypes.models import ContentType
from django.db import connection as database
from django.http import HttpResponse
from django.test import Client, RequestFactory
from django.utils import timezone
from hypothesis import given
from hypothesis import strategies as st

from kapso_connect import onboarding
from kapso_connect.kapso.error_codes import SETUP_ERRORS
from kapso_connect.models import Connection, Customer, SetupLink, TimelineEvent, new_connect_key
from kapso_connect.onboarding.connect_urls import (
    VISIT_SECONDS,
    connect_path,
    failure_token,
    set_visit_cookie,
)
from kapso_connect.sandbox.hosted import SETUP_ERROR_TEXTS
from kapso_connect.testing import Sandbox

from ..cases import combinations
from ..factories import (
    allow_questions,
    listening,
    make_connection,
    make_customer,
    make_link,
    remote_customer,
)
from ..faults import around_api_requests

pytestmark = pytest.mark.django_db(transaction=True)

SUCCESS = "/whatsapp/success/"
FAILED = "/whatsapp/failed/"


def success(link: SetupLink, number: str, **more: str) -> str:
    parameters = {
        "setup_link_id": link.kapso_id,
        "status": "completed",
        "phone_number_id": number,
        **more,
    }
    return f"{SUCCESS}?{urlencode(parameters)}"


def failed(link: SetupLink, code: str) -> str:
    return f"{FAILED}?{urlencode({'setup_link_id': link.kapso_id, 'error_code': code})}"


def visit(customer: Customer) -> str:
    """The cookie of a browser that followed the customer's address."""
    response = HttpResponse()
    set_visit_cookie(RequestFactory().get("/"), response, customer)
    return response.cookies["kapso_connect_token"].value


def text(response: HttpResponse) -> str:
    return response.content.decode()


@pytest.fixture
def claimable(sandbox: Sandbox) -> tuple[SetupLink, str]:
    link = make_link(remote_customer(sandbox))
    number = sandbox.add_number(customer_id=link.customer.kapso_id, phone_number="+442071838750")
    return link, number["phone_number_id"]


# Success


def test_redirect_with_all_six_parameters_connects(claimable, client: Client) -> None:
    link, number = claimable
    url = success(
        link,
        number,
        business_account_id="9876",
        provisioned_phone_number_id=str(uuid.uuid4()),
        display_phone_number="+442071838750",
        whatsapp_config_id="old-extra",
    )
    assert "%2B44" in url
    with listening() as heard:
        response = client.get(url)
    assert response.status_code == 200
    assert heard.only("whatsapp_connected")["source"] == "redirect"
    assert "WhatsApp is connected" in text(response)
    assert "+44 20 7183 8750" in text(response)
    assert link.customer.name in text(response)


def test_values_come_from_the_api_not_from_the_redirect(client: Client) -> None:
    known = make_connection(display_phone_number="+442071838750")
    link = make_link(known.customer)
    url = success(link, known.phone_number_id, business_account_id="somebody-elses")
    assert client.get(url).status_code == 200
    known.refresh_from_db()
    assert known.business_account_id == ""


def test_plus_decoded_to_a_space_is_accepted(claimable, client: Client) -> None:
    link, number = claimable
    url = success(link, number) + "&display_phone_number=+442071838750"
    assert client.get(url).status_code == 200


def test_loading_the_page_again_changes_nothing(claimable, client: Client) -> None:
    link, number = claimable
    client.get(success(link, number))
    with listening() as heard:
        assert client.get(success(link, number)).status_code == 200
    assert heard == []
    assert TimelineEvent.objects.count() == 1


def test_redirect_of_the_sandbox(sandbox: Sandbox, client: Client) -> None:
    link = onboarding.create_setup_link(make_customer(kapso_id=None))
    location = sandbox.complete(link.url, phone_number="+442071838750")
    assert location.startswith("https://site.example" + SUCCESS)
    response = client.get(location.removeprefix("https://site.example"))
    assert "+44 20 7183 8750" in text(response)
    assert Connection.objects.get().setup_link == link


def test_while_the_api_is_away_the_customer_waits(claimable, sandbox, client: Client) -> None:
    link, number = claimable
    sandbox.faults(api=[{"match": ".*", "kind": "status", "status": 401}])
    response = client.get(success(link, number))
    assert response.status_code == 202
    assert response["Refresh"] == "5"
    assert "Almost there" in text(response)
    assert not Connection.objects.exists()

    sandbox.clear_faults()
    allow_questions()
    assert "WhatsApp is connected" in text(client.get(success(link, number)))


def test_waiting_customer_may_leave_after_a_while(claimable, sandbox, client: Client) -> None:
    link, number = claimable
    sandbox.faults(api=[{"match": ".*", "kind": "status", "status": 401}])
    client.get(success(link, number))
    SetupLink.objects.update(unconfirmed_since=timezone.now() - timedelta(minutes=3))
    response = client.get(success(link, number))
    assert "Refresh" not in response
    assert "You can close this page" in text(response)


def test_number_that_the_customer_reports_starts_the_wait_anew(
    claimable, sandbox, client: Client
) -> None:
    link, number = claimable
    link.customer.connect_key = new_connect_key()
    link.customer.save(update_fields=["connect_key"])
    since = timezone.now() - timedelta(minutes=3)
    SetupLink.objects.update(unconfirmed_phone_number_id="100200300", unconfirmed_since=since)
    sandbox.faults(api=[{"match": ".*", "kind": "status", "status": 503}])
    client.cookies["kapso_connect_token"] = visit(link.customer)
    assert "there is nothing you need to do" in text(client.get(success(link, number)))
    link.refresh_from_db()
    assert link.unconfirmed_phone_number_id == number


def test_missing_link(claimable, client: Client) -> None:
    link, number = claimable
    response = client.get(success(link, number, setup_link_id=""))
    assert response.status_code == 400
    assert "ask us for a new one" in text(response)


@pytest.mark.parametrize(
    "parameters",
    [
        {"phone_number_id": "abc"},
        {"phone_number_id": "1" * 100_000},
        {"phone_number_id": "\x00"},
        {"phone_number_id": "1\n"},
        {"setup_link_id": "<script>alert(1)</script>"},
        {"setup_link_id": "' OR 1=1 --"},
        {"status": "failed"},
        {"status": "\ufeff"},
    ],
)
def test_malformed_parameters(claimable, client: Client, parameters: dict[str, str]) -> None:
    link, number = claimable
    with listening() as heard:
        response = client.get(success(link, number, **parameters))
    assert response.status_code == 400
    assert "We cannot find this connection" in text(response)
    assert "alert" not in text(response)
    assert heard == []
    assert not Connection.objects.exists()


def test_broken_percent_encoding(claimable, client: Client) -> None:
    link, number = claimable
    assert client.get(success(link, number) + "%ff%zz").status_code == 400


def test_an_unknown_link(client: Client) -> None:
    response = client.get(success(SetupLink(kapso_id=str(uuid.uuid4())), "1"))
    assert response.status_code == 404


def test_foreign_numbers_show_and_change_nothing(claimable, sandbox, client: Client) -> None:
    link, _number = claimable
    other = sandbox.add_number(external_customer_id="other", phone_number="+4930901820")
    owner = make_customer(name="Someone else", kapso_id=other["customer_id"])
    Connection.objects.create(
        phone_number_id=other["phone_number_id"],
        customer=owner,
        status="connected",
        display_phone_number="+49 30 901820",
    )
    with listening() as heard:
        response = client.get(success(link, other["phone_number_id"]))
    assert response.status_code == 404
    assert "901820" not in text(response)
    assert "Someone else" not in text(response)
    assert heard == []
    assert Connection.objects.get().customer == owner


def test_names_are_escaped(claimable, client: Client) -> None:
    link, number = claimable
    Customer.objects.update(name="<script>alert(1)</script>")
    page = text(client.get(success(link, number)))
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


# Failure


def test_every_error_code_has_its_own_texts() -> None:
    assert set(SETUP_ERRORS) == set(SETUP_ERROR_TEXTS)
    assert len({str(failure.title) for failure in SETUP_ERRORS.values()}) == 6


@pytest.mark.parametrize("code", SETUP_ERRORS)
def test_failure_is_explained_and_recorded(client: Client, code: str) -> None:
    link = make_link()
    with listening() as heard:
        response = client.get(failed(link, code))
    assert response.status_code == 200
    failure = SETUP_ERRORS[code]
    for words in (failure.title, failure.cause, failure.advice):
        assert str(words) in unescape(text(response))
    assert f'Reference for support: <bdi dir="ltr">{link.kapso_id[:8]}<' in text(response)
    assert heard.only("whatsapp_setup_failed")["error_code"] == code
    link.refresh_from_db()
    assert link.last_error_code == code


def test_retry_button_requires_the_visit_cookie(client: Client) -> None:
    link = make_link(make_customer(connect_key="mine"))
    other = make_link(make_customer(connect_key="others"))
    for visited in (None, other):
        if visited:
            client.cookies["kapso_connect_token"] = visit(visited.customer)
        page = text(client.get(failed(link, "facebook_auth_failed")))
        assert "<form" not in page
        assert link.url not in page
        assert "reopen your invitation" in page
    client.cookies["kapso_connect_token"] = visit(link.customer)
    page = text(client.get(failed(link, "facebook_auth_failed")))
    assert f'action="{connect_path(link.customer)}"' in page
    assert link.url not in page


def test_visit_cookie_expires_and_ends_with_the_invitation(client: Client) -> None:
    link = make_link(make_customer(connect_key="mine"))
    client.cookies["kapso_connect_token"] = cookie = visit(link.customer)
    in_two_hours = time.time() + VISIT_SECONDS + 1
    with mock.patch("django.core.signing.time.time", return_value=in_two_hours):
        assert "<form" not in text(client.get(failed(link, "link_expired")))
    assert "<form" in text(client.get(failed(link, "link_expired")))
    client.cookies["kapso_connect_token"] = cookie[:-1]
    assert "<form" not in text(client.get(failed(link, "link_expired")))
    client.cookies["kapso_connect_token"] = cookie
    Customer.objects.update(connect_key=None)
    assert "<form" not in text(client.get(failed(link, "link_expired")))


@pytest.mark.parametrize("code", ["already_used", "link_expired", "facebook_auth_failed"])
@pytest.mark.parametrize("is_latest", [True, False])
def test_connected_customer_sees_success(client: Client, code: str, is_latest: bool) -> None:
    """Also from a link of theirs that was replaced."""
    customer = make_customer(connect_key="mine")
    old = make_link(customer, status="revoked")
    link = make_link(customer, setup_status="completed", status="used")
    make_connection(customer, setup_link=link, display_phone_number="+442071838750")
    client.cookies["kapso_connect_token"] = visit(customer)
    response = client.get(failed(link if is_latest else old, code))
    assert response.status_code == 200
    assert "WhatsApp is connected" in text(response)
    assert "+44 20 7183 8750" in text(response)
    assert "used already" not in text(response)


@pytest.mark.parametrize("problem", [{}, {"name_status": "PENDING_REVIEW"}])
def test_whoever_knows_only_the_id_of_a_link_sees_no_number_or_name(
    client: Client, problem: dict[str, str]
) -> None:
    """Ids of links are in logs and browser histories."""
    customer = make_customer(connect_key="mine", email="ada@example.com")
    old = make_link(customer, status="revoked")
    link = make_link(customer, setup_status="completed", status="used")
    number = make_connection(
        customer,
        setup_link=link,
        display_phone_number="+442071838750",
        verified_name="Süß Ltd.",
        **problem,
    )
    without_number = f"{SUCCESS}?setup_link_id={link.kapso_id}&status=completed"
    known = [without_number, *(failed(one, "already_used") for one in (old, link))]
    secrets = ("7183", customer.name, "Süß Ltd.", customer.email, number.phone_number_id)
    for url in known:
        page = text(client.get(url))
        assert "WhatsApp is connected" in page
        assert [secret for secret in secrets if secret in unescape(page)] == []
    assert "+44 20 7183 8750" in text(client.get(success(link, number.phone_number_id)))
    client.cookies["kapso_connect_token"] = visit(customer)
    for url in known:
        assert "+44 20 7183 8750" in text(client.get(url))


def test_link_whose_number_is_being_confirmed_has_not_failed(
    client: Client, sandbox: Sandbox
) -> None:
    sandbox.faults(api=[{"match": ".*", "kind": "status", "status": 503}])
    link = make_link(
        make_customer(connect_key="mine"),
        unconfirmed_phone_number_id="1",
        unconfirmed_since=timezone.now(),
    )
    response = client.get(failed(link, "already_used"))
    assert response.status_code == 202
    assert "We are waiting for WhatsApp to confirm" in text(response)
    link.refresh_from_db()
    assert link.setup_status == "pending"


def test_former_customer_sees_the_failure(client: Client) -> None:
    link = make_link(make_customer(connect_key="mine"), setup_status="completed", status="used")
    client.cookies["kapso_connect_token"] = visit(link.customer)
    page = text(client.get(failed(link, "already_used")))
    assert "This link has been used already" in page
    assert "<form" in page


# Without cookies, the failure URL that Kapso was given has a token.


def test_kapso_gets_a_failure_url_with_a_token_that_is_not_stored(sandbox: Sandbox) -> None:
    link = onboarding.create_setup_link(remote_customer(sandbox))
    sent = sandbox.requests()[-1]["body"]["setup_link"]["failure_redirect_url"]
    assert sent == f"https://site.example{FAILED}{failure_token(link.customer)}/"
    assert link.options["failure_redirect_url"] == f"https://site.example{FAILED}"
    other = onboarding.create_setup_link(
        link.customer, options={"failure_redirect_url": "https://elsewhere.example/"}
    )
    sent = sandbox.requests()[-1]["body"]["setup_link"]["failure_redirect_url"]
    assert sent == other.options["failure_redirect_url"] == "https://elsewhere.example/"


def test_browser_without_cookies_can_try_again_soon_after_it_left(client: Client) -> None:
    link = make_link(make_customer(connect_key="mine"))
    other = make_link(make_customer(connect_key="others"), last_opened_at=timezone.now())

    def page(token: str) -> str:
        url = failed(link, "facebook_auth_failed").replace(FAILED, f"{FAILED}{token}/")
        return text(client.get(url))

    token = failure_token(link.customer)
    assert "<form" not in page(token), "nobody left for Kapso"
    link.last_opened_at = timezone.now()
    link.save()
    assert f'action="{connect_path(link.customer)}"' in page(token)
    for wrong in (failure_token(other.customer), token[:-1], "x"):
        assert "<form" not in page(wrong)
    link.last_opened_at = timezone.now() - timedelta(seconds=VISIT_SECONDS + 1)
    link.save()
    assert "<form" not in page(token)


def test_unknown_code_has_general_texts_and_is_stored(client: Client) -> None:
    link = make_link()
    response = client.get(failed(link, "meta_on_strike"))
    assert "WhatsApp could not be connected" in text(response)
    assert "meta_on_strike" not in re.sub(r"<[^>]*>", "", text(response))
    link.refresh_from_db()
    assert link.last_error_code == "meta_on_strike"


@pytest.mark.parametrize("code", ["meta_on_strike", "phone_verification_failed"])
def test_failure_page_offers_contact_once(client: Client, code: str, configure: Any) -> None:
    configure(CONTACT_URL="mailto:help@crumb.example")
    link = make_link()
    page = text(client.get(failed(link, code)))
    assert page.count("mailto:help@crumb.example") == 1
    assert link.reference in page


def test_failure_of_an_unknown_link(client: Client) -> None:
    assert client.get(failed(SetupLink(kapso_id="nobody"), "already_used")).status_code == 404


# Both


MANIFEST = "django.contrib.staticfiles.storage.ManifestStaticFilesStorage"


def test_static_files_without_a_url_cost_no_page(
    client: Client, settings: Any, configure: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """As after an upgrade without collectstatic."""
    settings.STORAGES = {**settings.STORAGES, "staticfiles": {"BACKEND": MANIFEST}}
    logo = f"crm/{uuid.uuid4()}.svg"
    configure(LOGO_URL=logo)
    link = make_link()
    link.options = {"theme_config": {"primary_color": "#004488"}}
    link.save()
    for _again in range(2):
        page = client.get(failed(link, "already_used"))
        assert page.status_code == 200
        assert "<img" not in text(page)
        assert "/whatsapp/theme/" in text(page), "the theme is no static file"
    logged = [r.path for r in caplog.records if r.kapso_event == "page.static_file_missing"]
    assert logged.count(logo) == 1


def test_logo_that_a_storage_has_is_shown(client: Client, configure: Any) -> None:
    configure(LOGO_URL="crm/logo.svg")
    page = client.get(failed(make_link(), "already_used"))
    assert '<img src="/static/crm/logo.svg" alt="">' in text(page)


@pytest.mark.parametrize(
    ("model", "owner_id"),
    combinations(["bakery", "shop", "seat", "removed"], ["abc", "9" * 200, "", "1"]),
)
def test_owner_that_cannot_be_looked_up_costs_no_page(
    claimable, client: Client, model: str, owner_id: str
) -> None:
    link, number = claimable
    kind, _ = ContentType.objects.get_or_create(app_label="host_site", model=model)
    Customer.objects.filter(pk=link.customer_id).update(owner_type=kind, owner_id=owner_id)
    with listening() as heard:
        assert client.get(success(link, number)).status_code == 200
    assert len(heard) == 1
    Customer.objects.filter(pk=link.customer_id).update(connect_key="key")
    url = connect_path(Customer.objects.get(pk=link.customer_id))
    assert client.get(url).status_code == 200
    assert client.get(failed(link, "already_used")).status_code == 200


@pytest.mark.parametrize("url", [SUCCESS, FAILED])
@pytest.mark.parametrize("method", ["post", "put", "delete", "patch"])
def test_only_get(client: Client, url: str, method: str) -> None:
    assert getattr(client, method)(url).status_code == 405


def test_head_asks_and_records_nothing(claimable, sandbox: Sandbox, client: Client) -> None:
    link, number = claimable
    asked = len(sandbox.requests())
    with listening() as heard:
        for url, status in ((success(link, number), 202), (failed(link, "link_expired"), 200)):
            response = client.head(url)
            assert (response.status_code, response.content) == (status, b"")
            assert client.options(url)["Allow"] == "GET, HEAD, OPTIONS"
        assert client.head(SUCCESS).status_code == client.head(FAILED).status_code == 400
    assert heard == []
    assert len(sandbox.requests()) == asked
    assert not TimelineEvent.objects.exists()
    before = SetupLink.objects.values().get()
    assert (before["setup_status"], before["next_question_at"]) == ("pending", None)

    client.get(success(link, number))
    assert client.head(success(link, number)).status_code == 200


@pytest.mark.parametrize("url", [SUCCESS, FAILED])
def test_pages_are_not_cached_indexed_or_leaked(client: Client, url: str) -> None:
    response = client.get(url)
    assert response.status_code == 400
    assert "no-store" in response["Cache-Control"]
    assert "noindex" in response["X-Robots-Tag"]
    assert response["Referrer-Policy"] == "no-referrer"


def test_the_api_is_asked_outside_atomic_requests(claimable, client, monkeypatch) -> None:
    link, number = claimable
    monkeypatch.setitem(database.settings_dict, "ATOMIC_REQUESTS", True)
    in_transaction = []
    with around_api_requests(before=lambda: in_transaction.append(database.in_atomic_block)):
        assert client.get(success(link, number)).status_code == 200
    assert in_transaction
    assert not any(in_transaction)


def test_pages_have_nothing_inline(claimable, client: Client) -> None:
    link, number = claimable
    for url in (success(link, number), failed(link, "waba_limit_reached"), SUCCESS):
        page = text(client.get(url))
        assert "<style" not in page
        assert "<script>" not in page
        assert "style=" not in page


parameters = st.dictionaries(
    st.sampled_from(
        ["setup_link_id", "phone_number_id", "status", "error_code", "display_phone_number", "x"]
    ),
    st.text(max_size=80) | st.sampled_from(["completed", "1", "already_used", "LINK"]),
)


@given(parameters=parameters, page=st.sampled_from([SUCCESS, FAILED]))
def test_no_parameters_are_ever_an_error(
    parameters: dict[str, str], page: str, configure: Any
) -> None:
    configure(REQUEST_BUDGET=0.01)
    link = SetupLink.objects.first() or make_link()
    given = {
        name: link.kapso_id if value == "LINK" else value.encode("utf-8", "replace")
        for name, value in parameters.items()
    }
    response = Client().get(f"{page}?{urlencode(given)}")
    assert response.status_code in {200, 202, 400, 404}
    assert not Connection.objects.exists()


def test_phone_numbers_are_formatted() -> None:
    from kapso_connect.phone_numbers import format_phone_number, is_test_number

    assert format_phone_number("+14155552671") == "+1 415-555-2671"
    assert format_phone_number("5511987654321") == "+55 11 98765-4321"
    for mexican in ("+5215512345678", "5215512345678", "+52 1 55 1234 5678", "52 155 1234 5678"):
        assert format_phone_number(mexican) == "+52 1 55 1234 5678"
    assert format_phone_number("+525512345678") == "+52 55 1234 5678"
    assert format_phone_number("+5491123456789") == "+54 9 11 2345-6789"
    assert format_phone_number("not a number") == "not a number"
    assert format_phone_number("") == ""
    assert is_test_number("+1 555-123-4567")
    assert not is_test_number("+1 415-555-2671")
