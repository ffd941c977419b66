from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
import requests

from kapso_connect.testing import Sandbox

if TYPE_CHECKING:
    from tests.sandbox.support import Api

pytest_plugins = ("tests.sandbox.support",)


def properties(schema: str) -> set[str]:
    from tests.sandbox.support import CONTRACT

    return set(CONTRACT["components"]["schemas"][schema]["properties"])


def error(response: Any) -> str:
    return response.json()["error"]


def test_its_lists_are_those_of_the_contract() -> None:
    from kapso_connect.sandbox import payloads
    from kapso_connect.sandbox.accounts import FUNDING_STATUSES
    from kapso_connect.sandbox.api import BILLING_MODE_NAMES, LINK_STATUSES, THEME_COLOR_NAMES
    from kapso_connect.sandbox.hosted import CONNECTION_TYPE_LABELS, HEADINGS_BY_LANGUAGE
    from kapso_connect.sandbox.state import ALL_CONNECTION_TYPES
    from kapso_connect.sandbox.subscriptions import WEBHOOK_KINDS
    from tests.sandbox.support import CONTRACT

    schemas = CONTRACT["components"]["schemas"]
    assert [*HEADINGS_BY_LANGUAGE, None] == schemas["Language"]["enum"]
    assert [*ALL_CONNECTION_TYPES] == schemas["ConnectionTypes"]["items"]["enum"]
    assert [*CONNECTION_TYPE_LABELS] == [*ALL_CONNECTION_TYPES]
    assert [*BILLING_MODE_NAMES] == schemas["BillingMode"]["enum"]
    assert [*FUNDING_STATUSES] == schemas["Funding"]["properties"]["status"]["enum"]
    assert [*LINK_STATUSES] == schemas["LinkStatus"]["enum"]
    assert set(THEME_COLOR_NAMES) == properties("Theme")
    assert [*WEBHOOK_KINDS] == schemas["WebhookKind"]["enum"]
    assert [*payloads.PROJECT_EVENTS] == schemas["ProjectEventName"]["enum"]
    assert [*payloads.NUMBER_EVENTS] == schemas["NumberEventName"]["enum"]


# Authentication and errors


@pytest.mark.parametrize("key", [None, "", "wrong"])
def test_no_key_or_a_wrong_one_is_401(box_api: Api, key: str | None) -> None:
    response = box_api("GET", "/customers", headers={"X-API-Key": key})
    assert response.status_code == 401


def test_any_key_is_accepted_when_none_is_configured() -> None:
    from tests.sandbox.support import Api

    with Sandbox(api_key="") as sandbox:
        api = Api(sandbox)
        with api.http:
            statuses = [
                api("GET", "/customers", headers={"X-API-Key": key}).status_code
                for key in ("anything", "")
            ]
    assert statuses == [200, 401]


UNKNOWN_ID = "6f1f7c0e-6f0a-4d0e-9d3c-0b5a3f9f2c11"
UNKNOWN = [
    ("GET", f"/customers/{UNKNOWN_ID}"),
    ("PATCH", f"/customers/{UNKNOWN_ID}"),
    ("DELETE", f"/customers/{UNKNOWN_ID}"),
    ("GET", f"/customers/{UNKNOWN_ID}/setup_links"),
    ("POST", f"/customers/{UNKNOWN_ID}/setup_links"),
    ("PATCH", f"/customers/{UNKNOWN_ID}/setup_links/{UNKNOWN_ID}"),
    ("GET", "/whatsapp/phone_numbers/123456789012345"),
    ("DELETE", "/whatsapp/phone_numbers/123456789012345"),
    ("GET", "/whatsapp/phone_numbers/123456789012345/health"),
    ("GET", f"/whatsapp/webhooks/{UNKNOWN_ID}"),
    ("PATCH", f"/whatsapp/webhooks/{UNKNOWN_ID}"),
    ("DELETE", f"/whatsapp/webhooks/{UNKNOWN_ID}"),
    ("POST", f"/whatsapp/webhooks/{UNKNOWN_ID}/test"),
    ("GET", "/nothing/here"),
]


@pytest.mark.parametrize(("method", "path"), UNKNOWN)
def test_unknown_objects_are_404(box_api: Api, method: str, path: str) -> None:
    assert box_api(method, path).status_code == 404


def test_other_methods_are_405_with_the_allowed_ones(box_api: Api) -> None:
    response = box_api("PUT", "/customers")
    assert response.status_code == 405
    assert response.headers["Allow"] == "GET, POST"


WRAPPED = [  # and whether an empty object is refused
    ("POST", "/customers", "customer", True),
    ("PATCH", "/customers/{customer}", "customer", True),
    ("POST", "/customers/{customer}/setup_links", "setup_link", False),
    ("PATCH", "/customers/{customer}/setup_links/{link}", "setup_link", True),
    ("POST", "/whatsapp/webhooks", "whatsapp_webhook", True),
]


@pytest.mark.parametrize(("method", "path", "name", "refuses_empty"), WRAPPED)
@pytest.mark.parametrize("inner", [None, {}, "text", []])
def test_an_unwrapped_request_is_400_with_kapsos_text(
    box_api: Api, method: str, path: str, name: str, refuses_empty: bool, inner: object
) -> None:
    customer = box_api.customer()
    path = path.format(customer=customer["id"], link=box_api.link(customer)["id"])
    body = {"name": "unwrapped"} if inner is None else {name: inner}
    response = box_api(method, path, body)
    if inner == {} and not refuses_empty:
        assert response.status_code == 201
        return
    assert response.status_code == 400
    assert error(response) == f"param is missing or the value is empty or invalid: {name}"


@pytest.mark.parametrize(
    "data", [b"{", b"\xff", b'{"customer": {"name": "\\ud800"}}', b"[" * 100_000, b"9" * 5000]
)
def test_malformed_json_is_400(box_api: Api, data: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    assert box_api("POST", "/customers", data=data, headers=headers).status_code == 400


def test_a_form_is_refused(box_api: Api) -> None:
    assert box_api("POST", "/customers", data={"customer": "x"}).status_code == 400


def test_a_body_over_one_mebibyte_is_413(box_api: Api) -> None:
    big = {"customer": {"name": "x" * 3 * 1024 * 1024}}
    refused = box_api("POST", "/customers", big)
    assert refused.status_code == 413
    assert "larger than" in error(refused)
    # The rest of the body is not taken for the next request of the connection.
    assert box_api("GET", "/customers").json()["data"] == []


# Customers


def test_a_customer_is_created_read_changed_and_deleted(box_api: Api) -> None:
    customer = box_api.customer("Acme", external_customer_id="company-1")
    path = f"/customers/{customer['id']}"
    assert set(customer) == properties("Customer")
    assert box_api("GET", path).json()["data"] == customer
    changed = box_api("PATCH", path, {"customer": {"name": "Acme Ltd"}}).json()["data"]
    assert (changed["name"], changed["external_customer_id"]) == ("Acme Ltd", "company-1")
    assert changed["updated_at"] > customer["updated_at"]
    assert box_api("DELETE", path).status_code == 204
    assert box_api("GET", path).status_code == 404
    box_api.customer("Acme again", external_customer_id="company-1")


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"external_customer_id": "x"}, "name can't be blank"),
        ({"name": ""}, "name can't be blank"),
        ({"name": "  "}, "name can't be blank"),
        ({"name": None}, "name must be a string"),
        ({"name": 7}, "name must be a string"),
        ({"name": "x" * 3000}, "name is too long"),
        ({"name": "x", "external_customer_id": 7}, "external_customer_id must be a string"),
        ({"name": "x", "external_customer_id": "taken"}, "has already been taken"),
    ],
)
def test_a_customer_that_is_not_valid_is_422(
    box_api: Api, fields: dict[str, Any], text: str
) -> None:
    box_api.customer("First", external_customer_id="taken")
    response = box_api("POST", "/customers", {"customer": fields})
    assert response.status_code == 422
    assert text in error(response)


def test_an_external_id_is_unique_when_changed_too(box_api: Api) -> None:
    box_api.customer("First", external_customer_id="taken")
    path = f"/customers/{box_api.customer('Second')['id']}"
    change = {"customer": {"external_customer_id": "taken"}}
    assert box_api("PATCH", path, change).status_code == 422


def test_customers_are_found_by_external_id_and_by_name(box_api: Api) -> None:
    acme = box_api.customer("Acme", external_customer_id="a")
    box_api.customer("Globex", external_customer_id="g")
    for query in ("external_customer_id=a", "name_contains=ACM"):
        assert box_api("GET", f"/customers?{query}").json()["data"] == [acme]
    assert box_api("GET", "/customers?external_customer_id=none").json()["data"] == []


def test_customers_are_found_by_time(box_api: Api) -> None:
    first, second = box_api.customer("First"), box_api.customer("Second")

    def names(**params: str) -> list[str]:
        rows = box_api("GET", "/customers", params=params).json()["data"]
        return [row["name"] for row in rows]

    assert names(created_after=second["created_at"]) == ["Second"]
    assert names(created_before=first["created_at"]) == ["First"]


def test_pages_hold_everything_once(box: Sandbox, box_api: Api) -> None:
    box.seed(250)
    ids: list[str] = []
    for page in range(1, 5):
        answer = box_api("GET", f"/customers?page={page}&per_page=100").json()
        assert answer["meta"] == {
            "page": page,
            "per_page": 100,
            "total_pages": 3,
            "total_count": 250,
        }
        ids += [row["id"] for row in answer["data"]]
    assert len(ids) == len(set(ids)) == 250
    assert len(box_api("GET", "/customers").json()["data"]) == 20


def test_a_list_has_its_counts_and_links_in_headers(box: Sandbox, box_api: Api) -> None:
    box.seed(5)
    answer = box_api("GET", "/customers?page=2&per_page=2&name_contains=seed")
    names = ("X-Total", "X-Total-Pages", "X-Per-Page", "X-Page")
    assert [answer.headers[name] for name in names] == ["5", "3", "2", "2"]
    pages = {}
    for relation in ("first", "prev", "next", "last"):
        url = answer.links[relation]["url"]
        assert url.startswith(f"{box.url}/platform/v1/customers?")
        assert "name_contains=seed" in url
        pages[relation] = requests.get(url, headers={"X-API-Key": box.api_key}, timeout=10).json()[
            "meta"
        ]["page"]
    assert pages == {"first": 1, "prev": 1, "next": 3, "last": 3}


@pytest.mark.parametrize(
    ("query", "relations"),
    [
        ("page=1", {"first", "last"}),
        ("per_page=2", {"first", "next", "last"}),
        ("page=9&per_page=2", {"first", "prev", "last"}),
        ("name_contains=nobody", {"first", "last"}),
    ],
)
def test_a_list_links_to_the_pages_there_are(
    box: Sandbox, box_api: Api, query: str, relations: set[str]
) -> None:
    box.seed(5)
    assert set(box_api("GET", f"/customers?{query}").links) == relations


@pytest.mark.parametrize(
    "query",
    [
        "customers?page=0",
        "customers?page=",
        "customers?page=x",
        "customers?page=-1",
        "customers?page=1000000000",
        "customers?per_page=1.5",
        "customers?per_page=0",
        "customers?per_page=101",
        "customers?created_after=yesterday",
        "customers?created_before=",
        "whatsapp/phone_numbers?customer_id=1",
        "whatsapp/phone_numbers?messaging_enabled=yes",
        "whatsapp/webhooks?kind=other",
    ],
)
def test_an_invalid_query_is_422(box_api: Api, query: str) -> None:
    assert box_api("GET", f"/{query}").status_code == 422


# Setup links


def test_a_new_link_has_kapsos_defaults_and_a_token_once(box: Sandbox, box_api: Api) -> None:
    customer = box_api.customer()
    link = box_api.link(customer)
    assert set(link) <= properties("SetupLink") | {"token"}
    assert link["url"] == f"{box.url}/s/{link.pop('token')}"
    assert link["status"] == "active"
    assert link["whatsapp_setup_status"] == "pending"
    assert link["phone_number_country_isos"] == ["US"]
    assert link["expires_at"][:10] > link["created_at"][:10]
    assert box_api.links(customer) == [link]


def test_a_new_link_revokes_the_previous_one(box_api: Api) -> None:
    customer, other = box_api.customer(), box_api.customer("Other")
    untouched = box_api.link(other)
    first, second = box_api.link(customer), box_api.link(customer)
    statuses = {link["id"]: link["status"] for link in box_api.links(customer)}
    assert statuses == {first["id"]: "revoked", second["id"]: "active"}
    assert [link["id"] for link in box_api.links(other)] == [untouched["id"]]
    path = f"/customers/{customer['id']}/setup_links"
    revoked = box_api("GET", f"{path}?status=revoked").json()["data"]
    assert [link["id"] for link in revoked] == [first["id"]]
    assert box_api("GET", f"{path}?status=nonsense").status_code == 422


LINK_OPTIONS = {
    "success_redirect_url": "https://site.example/ok",
    "failure_redirect_url": "https://site.example/failed",
    "allowed_origins": ["https://site.example"],
    "allowed_connection_types": ["coexistence"],
    "meta_billing_mode": "partner_managed",
    "theme_config": {"primary_color": "#A1B2C3", "text_color": "#000000"},
    "provision_phone_number": True,
    "phone_number_area_code": "415",
    "phone_number_country_isos": ["US", "MX"],
    "language": "pt",
}


def test_a_link_keeps_its_options(box_api: Api) -> None:
    link = box_api.link(box_api.customer(), **LINK_OPTIONS)
    assert {name: link[name] for name in LINK_OPTIONS} == LINK_OPTIONS


@pytest.mark.parametrize(
    "fields",
    [
        {"success_redirect_url": "not a url"},
        {"success_redirect_url": "javascript:alert(1)"},
        {"failure_redirect_url": 7},
        {"failure_redirect_url": "https://[broken"},
        {"allowed_origins": "https://site.example"},
        {"allowed_origins": ["http://site.example"]},
        {"allowed_origins": ["https://site.example/"]},
        {"allowed_origins": ["https://user@site.example"]},
        {"allowed_connection_types": ["both"]},
        {"allowed_connection_types": "dedicated"},
        {"meta_billing_mode": "free"},
        {"theme_config": {"primary_color": "red"}},
        {"theme_config": {"primary_color": "#12345"}},
        {"theme_config": "dark"},
        {"provision_phone_number": "yes"},
        {"phone_number_country_isos": ["usa"]},
        {"phone_number_area_code": "415", "phone_number_country_isos": ["MX"]},
        {"reconnect_phone_number": "0151 123"},
        {"language": "tlh"},
    ],
)
def test_a_link_that_is_not_valid_is_422_and_revokes_nothing(
    box_api: Api, fields: dict[str, Any]
) -> None:
    customer = box_api.customer()
    before = box_api.link(customer)
    path = f"/customers/{customer['id']}/setup_links"
    response = box_api("POST", path, {"setup_link": fields})
    assert response.status_code == 422
    assert next(iter(fields)) in error(response)
    assert [(link["id"], link["status"]) for link in box_api.links(customer)] == [
        (before["id"], "active")
    ]


def test_a_link_needs_no_options(box_api: Api) -> None:
    path = f"/customers/{box_api.customer()['id']}/setup_links"
    link = box_api("POST", path, {"setup_link": {}}).json()["data"]
    assert link["meta_billing_mode"] == "customer_managed"
    assert link["allowed_connection_types"] == ["coexistence", "dedicated"]


@pytest.mark.parametrize("phone_number", ["+14155550100", "14155550100"])
@pytest.mark.parametrize("types", [{}, {"allowed_connection_types": ["coexistence"]}])
def test_a_link_reconnects_a_number_of_the_customer(
    box: Sandbox, box_api: Api, phone_number: str, types: dict[str, Any]
) -> None:
    customer = box_api.customer()
    box.add_number(customer_id=customer["id"], phone_number="+14155550100", is_coexistence=True)
    link = box_api.link(customer, reconnect_phone_number=phone_number, **types)
    assert link["reconnect_phone_number"] == "14155550100"
    assert link["provision_phone_number"] is False
    assert link["allowed_connection_types"] == ["coexistence"]
    for change in (
        {"provision_phone_number": True},
        {"allowed_connection_types": ["dedicated"]},
    ):
        assert patch_link(box_api, customer, link, **change).status_code == 422


SANDBOX_NUMBER = {"reconnect_phone_number": "that of a sandbox number"}


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        (
            {"reconnect_phone_number": "+14155550199"},
            "reconnect_phone_number must match an existing WhatsApp config for this customer",
        ),
        (
            {"reconnect_phone_number": "+14155550101"},
            "reconnect_phone_number must match an existing WhatsApp config for this customer",
        ),
        (
            SANDBOX_NUMBER,
            "reconnect_phone_number must match an existing WhatsApp config for this customer",
        ),
        ({"provision_phone_number": True}, "provision_phone_number can't be combined"),
        ({"allowed_connection_types": ["coexistence"]}, "allowed_connection_types must be"),
        (
            {"allowed_connection_types": ["coexistence", "dedicated"]},
            "allowed_connection_types must be",
        ),
    ],
    ids=[
        "unknown",
        "another_customers",
        "sandbox_number",
        "provisioning",
        "another_type",
        "both_types",
    ],
)
def test_a_link_that_cannot_reconnect_is_422_and_revokes_nothing(
    box: Sandbox, box_api: Api, fields: dict[str, Any], text: str
) -> None:
    customer = box_api.customer()
    box.add_number(customer_id=customer["id"], phone_number="+14155550100")
    box.add_number(customer_id=box_api.customer("Other")["id"], phone_number="+14155550101")
    if fields == SANDBOX_NUMBER:
        ids = dict.fromkeys(("phone_number_id", "business_account_id", "access_token"), "sandbox")
        body = {"whatsapp_phone_number": {"name": "Sandbox", "kind": "sandbox", **ids}}
        answer = box_api("POST", f"/customers/{customer['id']}/whatsapp/phone_numbers", body)
        digits = answer.json()["data"]["display_phone_number_normalized"]
        fields = {"reconnect_phone_number": digits}
    before = box_api.link(customer)
    options = {"reconnect_phone_number": "+14155550100", **fields}
    path = f"/customers/{customer['id']}/setup_links"
    response = box_api("POST", path, {"setup_link": options})
    assert response.status_code == 422
    assert error(response).startswith(text)
    assert [(row["id"], row["status"]) for row in box_api.links(customer)] == [
        (before["id"], "active")
    ]


def patch_link(api: Api, customer: dict[str, Any], link: dict[str, Any], **fields: Any) -> Any:
    path = f"/customers/{customer['id']}/setup_links/{link['id']}"
    return api("PATCH", path, {"setup_link": fields})


def test_a_link_is_revoked_extended_and_rethemed_by_patch(box_api: Api) -> None:
    customer = box_api.customer()
    link = box_api.link(customer)
    changes = {
        "expires_at": "2040-01-01T00:00:00.000000Z",
        "theme_config": {"card_color": "#FFFFFF"},
        "success_redirect_url": None,
        "status": "revoked",
    }
    changed = patch_link(box_api, customer, link, **changes).json()["data"]
    assert {name: changed[name] for name in changes} == changes
    assert "token" not in changed


@pytest.mark.parametrize(
    "fields",
    [
        {"expires_at": "soon"},
        {"status": "gone"},
        {"status": "used"},
        {"theme_config": {"card_color": "x"}},
    ],
)
def test_a_patch_that_is_not_valid_is_422(box_api: Api, fields: dict[str, Any]) -> None:
    customer = box_api.customer()
    assert patch_link(box_api, customer, box_api.link(customer), **fields).status_code == 422


def test_what_is_fixed_at_creation_is_ignored_in_a_patch(box_api: Api) -> None:
    customer = box_api.customer()
    link = box_api.link(customer)
    changes = {"meta_billing_mode": "partner_managed", "reconnect_phone_number": "+14155550100"}
    changed = patch_link(box_api, customer, link, **changes).json()["data"]
    assert {name: changed[name] for name in changes} == {name: link[name] for name in changes}


def test_empty_lists_stand_for_the_defaults(box: Sandbox, box_api: Api) -> None:
    customer = box_api.customer()
    link = box_api.link(customer, allowed_connection_types=["dedicated"])
    empty: dict[str, Any] = {"allowed_connection_types": [], "phone_number_country_isos": []}
    changed = patch_link(box_api, customer, link, **empty).json()["data"]
    assert changed["allowed_connection_types"] == ["coexistence", "dedicated"]
    assert changed["phone_number_country_isos"] == ["US"]
    assert box.open_setup_page(link["url"]).status_code == 200


def test_a_link_belongs_to_its_customer(box_api: Api) -> None:
    link = box_api.link(box_api.customer())
    stranger = box_api.customer("Stranger")
    assert patch_link(box_api, stranger, link, status="revoked").status_code == 404


def test_a_link_past_its_time_reads_as_expired_and_can_be_extended(
    box: Sandbox, box_api: Api
) -> None:
    customer = box_api.customer()
    old = box_api.link(customer)
    box.patch_setup_link(old["id"], expires_at="2020-01-01T00:00:00Z")
    assert box_api.links(customer)[0]["status"] == "expired"
    new = box_api.link(customer)
    extended = patch_link(box_api, customer, old, expires_at="2040-01-01T00:00:00Z")
    assert extended.json()["data"]["status"] == "active"
    statuses = {link["id"]: link["status"] for link in box_api.links(customer)}
    assert statuses == {old["id"]: "active", new["id"]: "revoked"}


def test_a_used_link_stays_used(box: Sandbox, box_api: Api) -> None:
    customer = box_api.customer()
    link = box_api.link(customer)
    box.complete(link["url"])
    for status in ("active", "expired", "revoked"):
        assert patch_link(box_api, customer, link, status=status).status_code == 422
    patch_link(box_api, customer, link, expires_at="2040-01-01T00:00:00Z")
    assert box_api.links(customer)[0]["status"] == "used"
    assert box.open_setup_page(link["url"]).status_code == 200


# Phone numbers


def test_a_number_is_formatted_like_metas(box: Sandbox, box_api: Api) -> None:
    customer = box_api.customer(external_customer_id="c")
    added = box.add_number(external_customer_id="c", phone_number="+15551234567")
    number = box_api("GET", f"/whatsapp/phone_numbers/{added['phone_number_id']}").json()["data"]
    assert set(number) <= properties("PhoneNumber")
    assert number["customer_id"] == customer["id"]
    assert number["display_phone_number"] == "+1 555-123-4567"
    assert number["display_phone_number_normalized"] == "15551234567"
    assert number["phone_number_id"].isdigit()
    assert len(number["phone_number_id"]) in (15, 16)


def test_numbers_can_be_filtered(box: Sandbox, box_api: Api) -> None:
    box.seed(3, 1)
    customer = box_api.customer()
    number = box.add_number(
        customer_id=customer["id"],
        name="Support line",
        business_account_id="987",
        status="DISCONNECTED",
    )
    for query in (
        f"phone_number_id={number['phone_number_id']}",
        f"customer_id={customer['id']}",
        "business_account_id=987",
        "name_contains=support",
        "messaging_enabled=false",
    ):
        rows = box_api("GET", f"/whatsapp/phone_numbers?{query}").json()["data"]
        assert [row["phone_number_id"] for row in rows] == [number["phone_number_id"]], query
    everything = box_api("GET", "/whatsapp/phone_numbers?messaging_enabled=true").json()
    assert everything["meta"]["total_count"] == 3


def test_a_deleted_number_is_readable_for_a_moment(box: Sandbox, box_api: Api) -> None:
    number = box.add_number()
    path = f"/whatsapp/phone_numbers/{number['phone_number_id']}"
    assert box_api("DELETE", path).status_code == 204
    assert box_api("GET", path).status_code == 200
    time.sleep(0.25)
    assert box_api("GET", path).status_code == 404
    assert box_api("DELETE", path).status_code == 404


def test_a_number_that_is_added_again_keeps_metas_id(box: Sandbox, box_api: Api) -> None:
    first = box.add_number(phone_number="+14155550100")
    box_api("DELETE", f"/whatsapp/phone_numbers/{first['phone_number_id']}")
    again = box.add_number(phone_number="+14155550100")
    assert again["phone_number_id"] == first["phone_number_id"]
    time.sleep(0.25)
    path = f"/whatsapp/phone_numbers/{first['phone_number_id']}"
    assert box_api("GET", path).status_code == 200
