from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, parse_qsl, urlsplit

import pytest
import requests

from kapso_connect.testing import Sandbox, SandboxError

if TYPE_CHECKING:
    from tests.sandbox.support import Api

pytest_plugins = ("tests.sandbox.support",)

SUCCESS = "https://site.example/ok"
FAILURE = "https://site.example/failed"
ERROR_CODES = [
    "facebook_auth_failed",
    "phone_verification_failed",
    "waba_limit_reached",
    "token_exchange_failed",
    "link_expired",
    "already_used",
]


def link_of(api: Api, customer: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    urls = {"success_redirect_url": SUCCESS, "failure_redirect_url": FAILURE}
    return api.link(customer or api.customer(), **{**urls, **fields})


def stored(box: Sandbox, link: dict[str, Any]) -> dict[str, Any]:
    return next(row for row in box.state()["setup_links"] if row["id"] == link["id"])


def numbers(box: Sandbox) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = box.state()["phone_numbers"]
    return rows


def test_connecting_redirects_with_exactly_kapsos_parameters(box: Sandbox, box_api: Api) -> None:
    customer = box_api.customer()
    link = link_of(box_api, customer)
    location = box.complete(link["url"], phone_number="+15551234567", connection_type="dedicated")
    (number,) = numbers(box)
    assert location == (
        f"{SUCCESS}?setup_link_id={link['id']}&status=completed"
        f"&phone_number_id={number['phone_number_id']}"
        f"&business_account_id={number['business_account_id']}"
        "&display_phone_number=%2B15551234567"
    )
    assert number["customer_id"] == customer["id"]
    assert number["is_coexistence"] is False
    assert number["verified_name"] == "Acme"


def test_connecting_makes_the_link_used(box: Sandbox, box_api: Api) -> None:
    link = link_of(box_api)
    box.complete(link["url"])
    row = stored(box, link)
    assert (row["status"], row["whatsapp_setup_status"]) == ("used", "completed")
    again = f"{FAILURE}?setup_link_id={link['id']}&error_code=already_used"
    assert box.complete(link["url"]) == again
    assert box.open_setup_page(link["url"]).headers["Location"] == again
    assert len(numbers(box)) == 1


def test_the_parameters_join_an_existing_query(box: Sandbox, box_api: Api) -> None:
    url = "https://site.example/ok?next=%2Fa%3Fb&plan=x+y#top"
    location = box.complete(link_of(box_api, success_redirect_url=url)["url"])
    assert location.startswith("https://site.example/ok?next=%2Fa%3Fb&plan=x+y&setup_link_id=")
    assert location.endswith("#top")


def test_a_failure_joins_an_existing_query_too(box: Sandbox, box_api: Api) -> None:
    link = link_of(box_api, failure_redirect_url=f"{FAILURE}?a=1")
    location = box.complete(link["url"], outcome="waba_limit_reached")
    expected = [("a", "1"), ("setup_link_id", link["id"]), ("error_code", "waba_limit_reached")]
    assert parse_qsl(urlsplit(location).query) == expected


@pytest.mark.parametrize("code", ERROR_CODES)
def test_each_failure_goes_to_the_failure_url(box: Sandbox, box_api: Api, code: str) -> None:
    link = link_of(box_api)
    location = box.complete(link["url"], outcome=code)
    assert location == f"{FAILURE}?setup_link_id={link['id']}&error_code={code}"
    row = stored(box, link)
    assert (row["whatsapp_setup_status"], row["whatsapp_setup_error"]) == ("failed", code)
    ended = {"link_expired": "expired", "already_used": "used"}
    assert row["status"] == ended.get(code, "active")
    assert numbers(box) == []


def test_the_customer_may_try_again_after_a_failure(box: Sandbox, box_api: Api) -> None:
    link = link_of(box_api)
    box.complete(link["url"], outcome="facebook_auth_failed")
    assert box.complete(link["url"]).startswith(SUCCESS)
    row = stored(box, link)
    assert (row["whatsapp_setup_status"], row["whatsapp_setup_error"]) == ("completed", None)


def test_an_expired_link_redirects_with_its_error_code(box: Sandbox, box_api: Api) -> None:
    link = link_of(box_api)
    box.patch_setup_link(link["id"], expires_at="2020-01-01T00:00:00Z")
    location = box.open_setup_page(link["url"]).headers["Location"]
    assert location == f"{FAILURE}?setup_link_id={link['id']}&error_code=link_expired"


def test_a_revoked_link_shows_a_page(box: Sandbox, box_api: Api) -> None:
    customer = box_api.customer()
    link = link_of(box_api, customer)
    link_of(box_api, customer)
    page = box.open_setup_page(link["url"])
    assert page.status_code == 410
    assert "revoked" in page.text


def test_an_unknown_token_is_404(box: Sandbox) -> None:
    assert box.open_setup_page(f"{box.url}/s/nothing").status_code == 404


@pytest.mark.parametrize("outcome", ["connect", "facebook_auth_failed"])
def test_without_redirect_urls_there_is_a_plain_page(
    box: Sandbox, box_api: Api, outcome: str
) -> None:
    assert box.complete(box_api.link(box_api.customer())["url"], outcome=outcome) == ""


@pytest.mark.parametrize(
    "entered",
    [
        {"outcome": "nonsense"},
        {"connection_type": "both"},
        {"phone_number": "12"},
        {"phone_number": "0151 2345678"},
    ],
)
def test_invalid_values_show_the_form_again(
    box: Sandbox, box_api: Api, entered: dict[str, str]
) -> None:
    link = link_of(box_api)
    with pytest.raises(SandboxError, match=r'422.*(?s:.*)role="alert"'):
        box.complete(link["url"], **entered)
    assert stored(box, link)["status"] == "active"
    assert numbers(box) == []


def test_only_the_allowed_types_are_offered(box: Sandbox, box_api: Api) -> None:
    link = link_of(box_api, allowed_connection_types=["coexistence"])
    page = box.open_setup_page(link["url"]).text
    assert 'value="coexistence"' in page
    assert 'value="dedicated"' not in page
    with pytest.raises(SandboxError, match="422"):
        box.complete(link["url"], connection_type="dedicated")
    box.complete(link["url"])
    assert numbers(box)[0]["is_coexistence"] is True


def test_a_number_may_be_written_with_spaces(box: Sandbox, box_api: Api) -> None:
    box.complete(link_of(box_api)["url"], phone_number="+49 (30) 901820-1", display_name="Shop")
    (number,) = numbers(box)
    assert number["display_phone_number_normalized"] == "49309018201"
    assert number["verified_name"] == "Shop"


def test_a_provisioned_number_is_named_in_redirect_and_link(box: Sandbox, box_api: Api) -> None:
    link = link_of(box_api, provision_phone_number=True)
    query = parse_qs(urlsplit(box.complete(link["url"])).query)
    provisioned = box_api.links({"id": box.state()["customers"][0]["id"]})[0][
        "provisioned_phone_number"
    ]
    assert query["provisioned_phone_number_id"] == [provisioned["id"]]
    assert query["display_phone_number"] == [provisioned["phone_number"]]


def test_a_number_of_another_customer_moves(box: Sandbox, box_api: Api) -> None:
    first, second = box_api.customer("First"), box_api.customer("Second")
    box.complete(link_of(box_api, first)["url"], phone_number="+14155550100")
    (before,) = numbers(box)
    box.complete(link_of(box_api, second)["url"], phone_number="+14155550100")
    (after,) = numbers(box)
    assert after["phone_number_id"] == before["phone_number_id"]
    assert after["customer_id"] == second["id"]


@pytest.mark.parametrize(
    ("status", "events"),
    [("DISCONNECTED", ["whatsapp.phone_number.reconnected"]), ("CONNECTED", [])],
)
@pytest.mark.parametrize("typed", [None, "+1 415-555-0100"])
def test_a_reconnect_link_renews_the_number_in_place(
    box: Sandbox, box_api: Api, status: str, events: list[str], typed: str | None
) -> None:
    customer = box_api.customer()
    number = box.add_number(
        customer_id=customer["id"],
        phone_number="+14155550100",
        status=status,
        access_error="The access token has expired",
    )
    link = link_of(box_api, customer, reconnect_phone_number="+14155550100")
    box.hold_webhooks("https://site.example/hook")
    assert "+14155550100" in box.open_setup_page(link["url"]).text
    location = box.complete(link["url"], phone_number=typed)
    assert f"phone_number_id={number['phone_number_id']}" in location
    (after,) = numbers(box)
    assert (after["phone_number_id"], after["status"]) == (number["phone_number_id"], "CONNECTED")
    assert after["created_at"] == number["created_at"]
    health = box_api("GET", f"/whatsapp/phone_numbers/{after['phone_number_id']}/health").json()
    assert health["status"] == "healthy"
    assert [row["event"] for row in box.deliveries()] == events


@pytest.mark.parametrize("change", ["another_number", "moved", "gone"])
def test_a_reconnect_link_fails_without_its_number(box: Sandbox, box_api: Api, change: str) -> None:
    customer = box_api.customer()
    number = box.add_number(customer_id=customer["id"], phone_number="+14155550100")
    link = link_of(box_api, customer, reconnect_phone_number="+14155550100")
    typed = None
    if change == "another_number":
        typed = "+14155550101"
    elif change == "moved":
        box.patch_number(number["phone_number_id"], customer_id=box_api.customer("Other")["id"])
    else:
        box_api("DELETE", f"/whatsapp/phone_numbers/{number['phone_number_id']}")
        while numbers(box):
            time.sleep(0.02)
    before = numbers(box)
    location = box.complete(link["url"], phone_number=typed)
    assert location.endswith("error_code=phone_verification_failed")
    assert numbers(box) == before
    assert stored(box, link)["status"] == "active"


def test_two_submissions_at_once_connect_once(box: Sandbox, box_api: Api) -> None:
    from concurrent.futures import ThreadPoolExecutor

    url = link_of(box_api)["url"]

    def submit(_: int) -> str:
        answer = requests.post(url, {"outcome": "connect"}, allow_redirects=False, timeout=10)
        return answer.headers["Location"].split("?")[0]

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(submit, range(4))) == [FAILURE] * 3 + [SUCCESS]


@pytest.mark.parametrize(
    ("language", "header", "expected"),
    [("pt", "es", "pt"), (None, "es-MX,en;q=0.5", "es"), (None, "tlh", "en"), ("ar", "", "ar")],
)
def test_the_page_is_in_the_language_of_the_link_or_the_browser(
    box: Sandbox, box_api: Api, language: str | None, header: str, expected: str
) -> None:
    url = link_of(box_api, language=language)["url"]
    page = requests.get(url, headers={"Accept-Language": header}, timeout=10).text
    direction = "rtl" if expected == "ar" else "ltr"
    assert f'<html lang="{expected}" dir="{direction}">' in page


def test_the_page_says_that_it_is_the_sandbox_and_has_the_theme(box: Sandbox, box_api: Api) -> None:
    customer = box_api.customer("<b>Evil & Co</b>")
    link = link_of(box_api, customer, theme_config={"primary_color": "#123456"})
    page = box.open_setup_page(link["url"])
    page.encoding = "utf-8"
    assert "This is the sandbox, not Kapso." in page.text
    assert "--primary-color: #123456" in page.text
    assert "&lt;b&gt;Evil &amp; Co&lt;/b&gt;" in page.text
    assert "<script" not in page.text
    css = requests.get(f"{box.url}/sandbox.css", timeout=10)
    assert css.headers["Content-Type"].startswith("text/css")


def test_the_overview_shows_links_and_numbers(box: Sandbox, box_api: Api) -> None:
    link = link_of(box_api)
    box.add_number(phone_number="+14155550100")
    page = requests.get(box.url, timeout=10).text
    assert f"/s/{link['token']}" in page
    assert "+1 415-555-0100" in page
