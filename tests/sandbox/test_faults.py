from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import requests

from kapso_connect.testing import Sandbox

if TYPE_CHECKING:
    from tests.sandbox.support import Api, Receiver

pytest_plugins = ("tests.sandbox.support",)

NO_FAULTS = {
    "duplicate": 0,
    "delay": 0.0,
    "reorder": 0,
    "batch": 0,
    "envelope": False,
    "drop": False,
    "webhook_first": False,
    "lag": 0.0,
    "api": [],
}


def rule(kind: str, **fields: Any) -> dict[str, Any]:
    return {"match": "/customers$", "kind": kind, **fields}


def test_there_are_no_faults_by_default(box: Sandbox) -> None:
    assert box.faults() == NO_FAULTS


def test_faults_add_up_until_they_are_cleared(box: Sandbox) -> None:
    box.faults(duplicate=1)
    on = box.faults(envelope="type", api=[rule("close")])
    assert (on["duplicate"], on["envelope"], on["api"][0]["kind"]) == (1, "type", "close")
    box.clear_faults()
    assert box.faults() == NO_FAULTS


def test_a_reset_clears_them_too(box: Sandbox) -> None:
    box.faults(drop=True)
    box.reset()
    assert box.faults() == NO_FAULTS


@pytest.mark.parametrize(
    ("faults", "text"),
    [
        ({"duplicates": 1}, "unknown: duplicates. Known are: duplicate, delay"),
        ({"duplicate": "1"}, "duplicate must be a whole number"),
        ({"duplicate": -1}, "duplicate must be between 0 and"),
        ({"delay": "soon"}, "delay must be a number of seconds"),
        ({"drop": 1}, "drop must be true or false"),
        ({"envelope": "data"}, 'envelope must be true, false or "type"'),
        ({"envelope": 1}, 'envelope must be true, false or "type"'),
        ({"api": {}}, "api must be a list"),
        ({"api": ["close"]}, "api[0] must be an object"),
        ({"api": [{"match": "x"}]}, "api[0]: kind is missing"),
        ({"api": [{"kind": "explode"}]}, "api[0]: kind is not included in the list"),
        ({"api": [{"kind": "close", "match": "("}]}, "match is not a regular expression"),
        ({"api": [{"kind": "status", "status": 99}]}, "status must be between 200 and 599"),
        ({"api": [{"kind": "close", "when": 1}]}, "api[0]: unknown: when"),
        ({"api": [{"kind": "status", "retry_after": "a\nb"}]}, "retry_after must be printable"),
    ],
)
def test_a_fault_that_does_not_exist_is_422_and_changes_nothing(
    box: Sandbox, faults: dict[str, Any], text: str
) -> None:
    answer = requests.post(f"{box.url}/sandbox/faults", json=faults, timeout=10)
    assert answer.status_code == 422
    assert text in answer.json()["error"]
    assert box.faults() == NO_FAULTS


@pytest.mark.parametrize("status", [401, 402, 429, 500, 503])
def test_the_api_can_answer_any_status(box: Sandbox, box_api: Api, status: int) -> None:
    box.faults(api=[rule("status", status=status, retry_after=7)])
    response = box_api.raw("GET", "/customers")
    assert response.status_code == status
    assert response.headers["Retry-After"] == "7"
    assert set(response.json()) == {"error"}


def test_a_fault_starts_after_some_requests_and_ends(box: Sandbox, box_api: Api) -> None:
    box.faults(api=[rule("status", after=1, times=2)])
    statuses = [box_api("GET", "/customers").status_code for _ in range(5)]
    assert statuses == [200, 500, 500, 200, 200]


def test_a_fault_affects_only_matching_requests(box: Sandbox, box_api: Api) -> None:
    box.faults(api=[{"match": "^POST /platform/v1/customers$", "kind": "status"}])
    assert box_api("GET", "/customers").status_code == 200
    assert box_api("POST", "/customers", {"customer": {"name": "x"}}).status_code == 500
    assert box.state()["customers"] == []


def test_a_proxy_can_answer_in_html(box: Sandbox, box_api: Api) -> None:
    box.faults(api=[rule("html")])
    response = box_api.raw("GET", "/customers")
    assert response.status_code == 502
    assert response.headers["Content-Type"] == "text/html"


@pytest.mark.parametrize(
    ("kind", "content_type", "text"),
    [
        ("cloudflare", "text/html; charset=UTF-8", "Error 1010"),
        ("cloudflare_1010", "text/plain; charset=UTF-8", "error code: 1010"),
    ],
)
def test_cloudflare_can_refuse_before_the_key_is_looked_at(
    box: Sandbox, box_api: Api, kind: str, content_type: str, text: str
) -> None:
    box.faults(api=[rule(kind)])
    response = box_api.raw("GET", "/customers", headers={"X-API-Key": "wrong"})
    assert response.status_code == 403
    assert response.headers["Content-Type"] == content_type
    assert response.headers["Server"] == "cloudflare"
    assert text in response.text


def test_the_api_can_lag_behind_the_event(
    box: Sandbox, box_api: Api, box_receiver: Receiver
) -> None:
    old = box.add_number(created_at="2020-01-01T00:00:00Z")["phone_number_id"]
    box.faults(lag=0.6)
    new = box.add_number(webhook=True)["phone_number_id"]
    box.wait_for_deliveries(1)
    path = f"/whatsapp/phone_numbers/{new}"
    for about in (path, f"{path}/health"):
        answer = box_api("GET", about)
        assert answer.status_code == 404
        assert answer.json() == {"error": "WhatsApp configuration not found"}
    listed = box_api("GET", "/whatsapp/phone_numbers").json()["data"]
    assert [row["id"] for row in listed] == [old]
    assert box_api("GET", f"/whatsapp/phone_numbers/{old}").status_code == 200
    time.sleep(0.7)
    assert box_api("GET", path).status_code == 200
    assert len(box_api("GET", "/whatsapp/phone_numbers").json()["data"]) == 2


def test_the_api_can_lag_for_some_requests(box: Sandbox, box_api: Api) -> None:
    number = box.add_number()["phone_number_id"]
    path = f"/whatsapp/phone_numbers/{number}"
    box.faults(api=[{"match": f"GET .*{path}$", "kind": "status", "status": 404, "times": 1}])
    first, second = box_api("GET", path), box_api("GET", path)
    assert first.json() == {"error": "WhatsApp configuration not found"}
    assert (first.status_code, second.status_code) == (404, 200)


def test_the_answer_can_be_an_error_of_metas(box: Sandbox, box_api: Api) -> None:
    box.faults(api=[rule("meta_error")])
    response = box_api.raw("GET", "/customers")
    assert response.status_code == 400
    assert response.json()["error"]["message"]


def test_the_answer_can_be_garbage_or_nothing(box: Sandbox, box_api: Api) -> None:
    box.faults(api=[rule("garbage", times=1), rule("empty")])
    garbage, empty = (box_api.raw("GET", "/customers") for _ in range(2))
    assert garbage.status_code == empty.status_code == 200
    with pytest.raises(requests.JSONDecodeError):
        garbage.json()
    assert empty.content == b""


def test_the_connection_can_break(box: Sandbox, box_api: Api) -> None:
    box.faults(api=[rule("close", times=1)])
    with pytest.raises(requests.ConnectionError):
        box_api.raw("POST", "/customers", {"customer": {"name": "x"}})
    assert box.state()["customers"] == []
    assert box_api("GET", "/customers").status_code == 200


def test_a_request_can_be_executed_and_its_answer_lost(box: Sandbox, box_api: Api) -> None:
    box.faults(api=[rule("apply_then_close", times=1), rule("apply_then_500", times=1)])
    with pytest.raises(requests.ConnectionError):
        box_api.raw("POST", "/customers", {"customer": {"name": "first"}})
    assert box_api("POST", "/customers", {"customer": {"name": "second"}}).status_code == 500
    assert [row["name"] for row in box.state()["customers"]] == ["first", "second"]


def test_the_answer_can_be_slow(box: Sandbox, box_api: Api) -> None:
    box.seed(3)
    whole = box_api("GET", "/customers").json()
    box.faults(api=[rule("slow", seconds=0.4)])
    started = time.monotonic()
    assert box_api("GET", "/customers").json() == whole
    assert 0.3 < time.monotonic() - started < 3


def test_a_request_can_hang(box: Sandbox, box_api: Api) -> None:
    box.faults(api=[rule("hang")])
    with pytest.raises(requests.ReadTimeout):
        box_api.raw("GET", "/customers", timeout=0.3)
    assert box.requests()[-1]["status"] is None


@pytest.mark.parametrize("end", [Sandbox.clear_faults, Sandbox.reset])
def test_a_hanging_request_breaks_when_the_fault_ends(
    box: Sandbox, box_api: Api, end: Callable[[Sandbox], None]
) -> None:
    box.faults(api=[rule("hang")])
    ending = threading.Timer(0.3, end, [box])
    ending.start()
    with pytest.raises(requests.ConnectionError):
        box_api.raw("GET", "/customers", timeout=5)
    ending.join()


def test_a_redirect_leads_to_a_page_that_is_logged(box: Sandbox, box_api: Api) -> None:
    box.faults(api=[rule("redirect")])
    response = box_api.raw("GET", "/customers")
    assert response.status_code == 302
    assert response.headers["Location"] == f"{box.url}/elsewhere"
    requests.get(response.headers["Location"], timeout=10)
    entry = box.requests()[-1]
    assert (entry["path"], entry["has_key"], entry["status"]) == ("/elsewhere", False, 200)


def test_the_log_has_the_request_and_not_the_key(box: Sandbox, box_api: Api) -> None:
    box.faults(api=[rule("status", times=1)])
    box_api("POST", "/customers", {"customer": {"name": "x"}})
    box_api("GET", "/customers?page=2")
    first, second = box.requests()
    del first["at"], second["at"]
    assert first == {
        "method": "POST",
        "path": "/platform/v1/customers",
        "query": "",
        "body": {"customer": {"name": "x"}},
        "has_key": True,
        "status": 500,
        "fault": "status",
    }
    assert (second["query"], second["status"], second["fault"]) == ("page=2", 200, None)
    assert box.api_key not in str(box.requests())


# The other switches


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "text"),
    [
        ("POST", "seed", {"customers": "many"}, 422, "customers must be a whole number"),
        ("POST", "seed", {"customers": 10**6, "numbers_per_customer": 10}, 422, "more than"),
        ("POST", "seed", {"count": 5}, 422, "unknown: count"),
        ("POST", "seed", [], 400, "must be a JSON object"),
        ("POST", "numbers", {"phone_number": "123"}, 422, "E.164"),
        ("POST", "numbers", {"customer_id": "none"}, 404, "Customer not found"),
        ("PATCH", "numbers/1", {}, 404, "Phone number not found"),
        ("PATCH", "setup_links/1", {}, 404, "Setup link not found"),
        ("POST", "events", {}, 422, "event is missing"),
        ("POST", "events", {"event": "x"}, 422, "payload is missing"),
        ("POST", "events", {"event": "x", "phone_number_id": "1"}, 404, "not found"),
        ("POST", "events", {"event": "x", "payload": "text"}, 422, "payload must be an object"),
        ("POST", "webhook", {}, 422, "url is missing"),
        ("POST", "webhook", {"url": "nowhere"}, 422, "url is not a valid URL"),
        ("POST", "state", {}, 405, "use GET"),
        ("GET", "nothing", None, 404, "Not found"),
    ],
)
def test_invalid_controls_are_refused_with_a_reason(
    box: Sandbox, method: str, path: str, body: object, status: int, text: str
) -> None:
    answer = requests.request(method, f"{box.url}/sandbox/{path}", json=body, timeout=10)
    assert answer.status_code == status
    assert text in answer.json()["error"]


@pytest.mark.slow
def test_ten_thousand_customers_can_be_seeded(box: Sandbox, box_api: Api) -> None:
    box.seed(10_000, 1, prefix="big")
    counts = box.state()["counts"]
    assert (counts["customers"], counts["phone_numbers"]) == (10_000, 10_000)
    numbers = {row["display_phone_number"] for row in box.state()["phone_numbers"]}
    assert len(numbers) == 10_000
    found = box_api("GET", "/customers?external_customer_id=big-10000").json()["data"]
    assert len(found) == 1
    assert box.deliveries() == []


def test_seeding_again_adds(box: Sandbox) -> None:
    box.seed(2, prefix="a")
    box.seed(2, prefix="a")
    ids = [row["external_customer_id"] for row in box.state()["customers"]]
    assert ids == ["a-1", "a-2", "a-3", "a-4"]


def test_a_number_creates_its_customer(box: Sandbox) -> None:
    first, second = (box.add_number(external_customer_id="new") for _ in range(2))
    (customer,) = box.state()["customers"]
    assert customer["external_customer_id"] == "new"
    assert first["customer_id"] == second["customer_id"] == customer["id"]


def test_a_number_can_be_moved_between_customers(box: Sandbox, box_api: Api) -> None:
    first, second = box_api.customer("First"), box_api.customer("Second")
    number = box.add_number(customer_id=first["id"])["phone_number_id"]
    moved = box.patch_number(number, customer_id=second["id"], status="RESTRICTED")
    assert (moved["customer_id"], moved["status"]) == (second["id"], "RESTRICTED")
    assert box.patch_number(number, customer_id=None)["customer_id"] is None


def test_bad_form_data_is_400(box: Sandbox, box_api: Api) -> None:
    url = box_api.link(box_api.customer())["url"]
    headers = {"Content-Type": "multipart/form-data"}
    answer = requests.post(url, data=b"x", headers=headers, timeout=10)
    assert answer.status_code == 400
    assert "could not be read" in answer.json()["error"]
