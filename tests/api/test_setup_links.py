"""Setup links through the REST API: made for a customer, read, revoked."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.db import connection as database
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from kapso_connect.models import IdempotentRequest, SetupLink, TimelineEvent
from kapso_connect.onboarding.connect_urls import connect_url
from kapso_connect.testing import Sandbox

from ..factories import listening, make_connection, make_customer, make_link
from .support import API, Caller, code, staff

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("unthrottled")]

SECRETS = ("connect_url", "url", "token")


def created(caller: Caller, body: Any, **options: Any) -> Any:
    answer = caller.post("setup-links/", body, **options)
    assert answer.status_code == 201, answer.content
    return answer.json()


# Making


@pytest.mark.django_db(transaction=True)
def test_link_is_created_with_the_customers_permanent_url(caller: Caller, sandbox: Sandbox) -> None:
    customer = make_customer(kapso_id=None)
    body = {"customer": customer.pk, "next_url": "/welcome/", "options": {"language": "pt"}}
    with listening() as heard:
        answer = caller.post("setup-links/", body)
    assert answer.status_code == 201
    link = SetupLink.objects.get()
    customer.refresh_from_db()
    data = answer.json()
    assert data["connect_url"] == connect_url(customer)
    assert data["url"] == link.url
    assert data["token"] is None
    assert (link.next_url, link.options["language"]) == ("/welcome/", "pt")
    assert link.created_by == caller.user
    assert heard.only("setup_link_created")["event"].actor == caller.user
    assert data["created_by"] == str(caller.user.pk)
    assert answer.headers["Location"] == f"http://testserver{API}setup-links/{link.pk}/"
    known = caller.get(f"setup-links/{link.pk}/").json()
    assert {**known, "token": None} == data
    (remote,) = sandbox.state()["setup_links"]
    assert remote["id"] == data["kapso_id"]


def test_all_options(caller: Caller, sandbox: Sandbox) -> None:
    options = {
        "allowed_connection_types": ["dedicated"],
        "language": "es",
        "meta_billing_mode": "partner_managed",
        "provision_phone_number": True,
        "phone_number_country_isos": ["US", "MX"],
        "phone_number_area_code": "415",
        "theme_config": {"primary_color": "#112233"},
    }
    data = created(caller, {"customer": make_customer(kapso_id=None).pk, "options": options})
    assert options.items() <= data["options"].items()


def test_colours_that_are_hard_to_read_get_warnings(caller: Caller, sandbox: Sandbox) -> None:
    customer = make_customer(kapso_id=None)
    colors = {"primary_color": "#ffd400", "primary_foreground_color": "#ffffff"}
    body = {"customer": customer.pk, "options": {"theme_config": colors}}
    data = created(caller, body)
    assert data["options"]["theme_config"] == colors
    assert data["warnings"] == [
        "primary_foreground_color #ffffff on primary_color #ffd400 has a contrast of 1.4, below "
        "4.5. Kapso's page may be hard to read. The pages of this site use other colours where "
        "they have to."
    ]
    assert caller.get(f"setup-links/{data['id']}/").json()["warnings"] == data["warnings"]
    assert created(caller, {"customer": customer.pk})["warnings"] == []


def test_null_removes_a_default(caller: Caller, sandbox: Sandbox, configure: Any) -> None:
    defaults = {"language": "es", "meta_billing_mode": "partner_managed"}
    configure(SETUP_LINK_DEFAULTS=defaults)
    customer = make_customer(kapso_id=None)
    data = created(caller, {"customer": customer.pk, "options": {"language": None}})
    assert "language" not in data["options"]
    assert data["options"]["meta_billing_mode"] == "partner_managed"


@pytest.mark.parametrize(
    ("options", "path"),
    [
        ({"language": "xx"}, "options.language"),
        ({"language": 7}, "options.language"),
        ({"languages": "en"}, "options.languages"),
        ({"success_redirect_url": "https://evil.example/"}, "options.success_redirect_url"),
        ({"failure_redirect_url": "https://evil.example/"}, "options.failure_redirect_url"),
        ({"allowed_origins": ["https://evil.example"]}, "options.allowed_origins"),
        ({"allowed_connection_types": []}, "options.allowed_connection_types"),
        ({"allowed_connection_types": "dedicated"}, "options.allowed_connection_types"),
        ({"allowed_connection_types": ["both"]}, "options.allowed_connection_types.0"),
        ({"allowed_connection_types": [["dedicated"]]}, "options.allowed_connection_types.0"),
        ({"allowed_connection_types": ["dedicated"] * 11}, "options.allowed_connection_types"),
        ({"provision_phone_number": "true"}, "options.provision_phone_number"),
        ({"provision_phone_number": 1}, "options.provision_phone_number"),
        ({"phone_number_country_isos": ["XX"]}, "options.phone_number_country_isos.0"),
        ({"phone_number_country_isos": ["us"]}, "options.phone_number_country_isos.0"),
        ({"phone_number_area_code": "415"}, "options.phone_number_area_code"),
        ({"phone_number_area_code": 415}, "options.phone_number_area_code"),
        ({"phone_number_area_code": "abc"}, "options.phone_number_area_code"),
        (
            {"provision_phone_number": True, "allowed_connection_types": ["coexistence"]},
            "options.provision_phone_number",
        ),
        ({"meta_billing_mode": "me"}, "options.meta_billing_mode"),
        ({"theme_config": "dark"}, "options.theme_config"),
        ({"theme_config": {"primary": "#112233"}}, "options.theme_config.primary"),
        ({"theme_config": {"primary_color": "blue"}}, "options.theme_config"),
        ({"theme_config": {"primary_color": 7}}, "options.theme_config.primary_color"),
        ({"reconnect_phone_number": "nonsense"}, "options.reconnect_phone_number"),
        ([], "options"),
        ("x", "options"),
        (None, "options"),
    ],
)
def test_invalid_options_are_rejected_before_kapso_is_called(
    caller: Caller, sandbox: Sandbox, options: Any, path: str
) -> None:
    customer = make_customer(kapso_id=None)
    answer = caller.post(
        "setup-links/",
        {"customer": customer.pk, "options": options},
        headers={"Idempotency-Key": "k"},
    )
    assert code(answer, 400) == "invalid"
    assert path in answer.json()["fields"]
    assert sandbox.state()["customers"] == []
    assert not SetupLink.objects.exists()
    assert not IdempotentRequest.objects.exists()


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({}, "customer"),
        ({"customer": None}, "customer"),
        ({"customer": "1"}, "customer"),
        ({"customer": 1.0}, "customer"),
        ({"customer": True}, "customer"),
        ({"customer": 0}, "customer"),
        ({"customer": -1}, "customer"),
        ({"customer": 10**18}, "customer"),
        ({"customer": 10**100}, "customer"),
        ({"customer": [1]}, "customer"),
        ({"customer": {"id": 1}}, "customer"),
        ({"next_url": 7}, "next_url"),
        ({"next_url": ""}, "next_url"),
        ({"next_url": "/" * 2001}, "next_url"),
        ({"next_url": "https://evil.example/"}, "next_url"),
        ({"next_url": "//evil.example/"}, "next_url"),
        ({"include_token": "yes"}, "include_token"),
        ({"include_token": None}, "include_token"),
        ({"url": "https://evil.example/"}, "url"),
    ],
)
def test_rest_of_the_body_is_validated(
    caller: Caller, sandbox: Sandbox, body: Any, path: str
) -> None:
    if body and "customer" not in body:
        body["customer"] = make_customer(kapso_id=None).pk
    answer = caller.post("setup-links/", body)
    assert code(answer, 400) == "invalid"
    assert path in answer.json()["fields"]
    assert sandbox.state()["customers"] == []


def test_unknown_customer_is_named(caller: Caller, sandbox: Sandbox) -> None:
    answer = caller.post("setup-links/", {"customer": 99})
    assert code(answer, 400) == "invalid"
    (problem,) = answer.json()["fields"]["customer"]
    assert problem == {"code": "does_not_exist", "message": "There is no such customer."}
    assert sandbox.state()["customers"] == []


def test_all_errors_are_said_at_once(caller: Caller, sandbox: Sandbox) -> None:
    make_connection(display_phone_number="+1 415-555-0100")
    own = make_customer(kapso_id=None)
    body = {
        "customer": own.pk,
        "next_url": "https://evil.example/",
        "options": {"reconnect_phone_number": "+14155550100"},
    }
    fields = caller.post("setup-links/", body).json()["fields"]
    assert set(fields) == {"next_url", "options.reconnect_phone_number"}
    # Also where what the link itself would show is not all.
    more = {**body, "customr": 1, "include_token": "yes"}
    fields = caller.post("setup-links/", more).json()["fields"]
    assert set(fields) == {
        "next_url",
        "options.reconnect_phone_number",
        "customr",
        "include_token",
    }
    fields = caller.post(
        "setup-links/", {**body, "customer": 99, "options": {"language": "xx", "a": 1}}
    ).json()["fields"]
    assert set(fields) == {"next_url", "customer", "options.language", "options.a"}
    assert sandbox.state()["customers"] == []


def test_next_url_may_be_null(caller: Caller, sandbox: Sandbox) -> None:
    data = created(caller, {"customer": make_customer(kapso_id=None).pk, "next_url": None})
    assert data["next_url"] is None


def test_a_newer_link_ends_the_older_one(caller: Caller, sandbox: Sandbox) -> None:
    customer = make_customer(kapso_id=None)
    older = created(caller, {"customer": customer.pk})
    created(caller, {"customer": customer.pk})
    known = caller.get(f"setup-links/{older['id']}/").json()
    assert (known["status"], known["is_latest"], known["connect_url"]) == ("revoked", False, None)


# Reconnecting


def test_own_number_can_be_reconnected(caller: Caller, sandbox: Sandbox) -> None:
    row = sandbox.add_number(external_customer_id="acme", phone_number="+14155550100")
    customer = make_customer(kapso_id=None, external_customer_id="acme")
    make_connection(
        customer,
        phone_number_id=row["phone_number_id"],
        display_phone_number=row["display_phone_number"],
    )
    options = {"reconnect_phone_number": "+14155550100"}
    data = created(caller, {"customer": customer.pk, "options": options})
    assert data["options"]["reconnect_phone_number"] == "+14155550100"


def test_other_customers_number_cannot_be_reconnected(caller: Caller, sandbox: Sandbox) -> None:
    make_connection(display_phone_number="+1 415-555-0100")
    options = {"reconnect_phone_number": "+14155550100"}
    answer = caller.post("setup-links/", {"customer": make_customer().pk, "options": options})
    assert code(answer, 400) == "invalid"
    assert list(answer.json()["fields"]) == ["options.reconnect_phone_number"]


# The token


@pytest.mark.django_db(transaction=True)
def test_token_is_returned_once_and_stored_nowhere(
    caller: Caller, sandbox: Sandbox, caplog: Any
) -> None:
    caplog.set_level("DEBUG")
    body = {"customer": make_customer(kapso_id=None).pk, "include_token": True}
    key = {"Idempotency-Key": "k"}
    with listening() as heard:
        first = created(caller, body, headers=key)
    token = first["token"]
    assert token
    again = created(caller, body, headers=key)
    assert {**again, "token": token} == first
    assert again["token"] is None
    link = SetupLink.objects.get()
    assert caller.get(f"setup-links/{link.pk}/").json().get("token") is None
    (remembered,) = IdempotentRequest.objects.values()
    stored = [SetupLink.objects.values().get(), *TimelineEvent.objects.values(), remembered]
    for row in stored:
        # The sandbox's address ends in the token, as Kapso's may.
        assert token not in str({name: row[name] for name in row if name != "url"})
    assert token not in caplog.text
    assert heard.only("setup_link_created")["setup_link"].token is None
    assert token not in repr(link)
    for secret in SECRETS:
        assert secret not in remembered["response"]


def test_no_token_unless_requested(caller: Caller, sandbox: Sandbox) -> None:
    assert created(caller, {"customer": make_customer(kapso_id=None).pk})["token"] is None


def test_no_token_without_permission(sandbox: Sandbox) -> None:
    caller = staff("create_setup_link")
    body = {"customer": make_customer(kapso_id=None).pk, "include_token": True}
    assert code(caller.post("setup-links/", body), 403) == "token_not_permitted"
    assert sandbox.state()["setup_links"] == []


def test_token_with_permission(sandbox: Sandbox) -> None:
    caller = staff("create_setup_link", "receive_setup_token")
    body = {"customer": make_customer(kapso_id=None).pk, "include_token": True}
    assert created(caller, body)["token"]


# Reading


def test_urls_require_permission_to_create_links(sandbox: Sandbox) -> None:
    link = make_link(make_customer(connect_key="k" * 22))
    viewer = staff("view_setuplink")
    for data in (
        viewer.get(f"setup-links/{link.pk}/").json(),
        viewer.get("setup-links/").json()["results"][0],
    ):
        assert (data["url"], data["connect_url"]) == (None, None)
        assert data["kapso_id"] == link.kapso_id
    link.customer.refresh_from_db()
    for secret in ("secret-token", connect_url(link.customer)):
        assert secret not in viewer.get("setup-links/").content.decode()


def test_urls_with_permission(caller: Caller) -> None:
    link = make_link(make_customer(connect_key="k" * 22))
    data = caller.get(f"setup-links/{link.pk}/").json()
    assert data["url"] == link.url
    assert data["connect_url"] == connect_url(link.customer)


def test_list_is_filtered(caller: Caller) -> None:
    now = timezone.now()
    customer = make_customer()

    def ids(query: str) -> list[int]:
        return [row["id"] for row in caller.get(f"setup-links/?{query}").json()["results"]]

    active = make_link(customer, expires_at=now + timedelta(days=1)).pk
    endless = make_link(expires_at=None).pk
    over = make_link(expires_at=now - timedelta(days=1)).pk
    expired = make_link(status="expired").pk
    revoked = make_link(status="revoked", expires_at=now - timedelta(days=1)).pk
    assert ids("") == [revoked, expired, over, endless, active]
    assert ids(f"customer={customer.pk}") == [active]
    assert ids("status=active") == [endless, active]
    assert ids("status=expired") == [expired, over]
    assert ids("status=revoked") == [revoked]
    assert ids("status=used") == []
    assert ids(f"customer={customer.pk}&status=revoked") == []


def test_list_takes_a_constant_number_of_queries(caller: Caller) -> None:
    def queries() -> int:
        with CaptureQueriesContext(database) as captured:
            assert caller.get("setup-links/?page_size=100").status_code == 200
        return len(captured)

    make_link()
    one = queries()
    for _ in range(20):
        make_link(make_customer(connect_key=str(_)))
    assert queries() == one == 4  # two of them for the session and the user


# Revoking


def test_revoking_a_link_revokes_the_permanent_url(caller: Caller, sandbox: Sandbox) -> None:
    customer = make_customer(kapso_id=None)
    link = created(caller, {"customer": customer.pk})
    answer = caller.post(f"setup-links/{link['id']}/revoke/")
    assert answer.status_code == 200
    assert (answer.json()["status"], answer.json()["connect_url"]) == ("revoked", None)
    assert [row["status"] for row in sandbox.state()["setup_links"]] == ["revoked"]
    event = TimelineEvent.objects.get(kind="setup_link_revoked")
    assert event.actor == caller.user
    again = caller.post(f"setup-links/{link['id']}/revoke/", {})
    assert (again.status_code, again.json()) == (200, answer.json())
    assert TimelineEvent.objects.filter(kind="setup_link_revoked").count() == 1


def test_used_link_cannot_be_revoked(caller: Caller) -> None:
    link = make_link(status="used", setup_status="completed")
    assert code(caller.post(f"setup-links/{link.pk}/revoke/"), 409) == "setup_link_used"
    link.refresh_from_db()
    assert link.status == "used"


@pytest.mark.parametrize("body", [{"reason": "x"}, [], "x", 7])
def test_actions_reject_a_body(caller: Caller, sandbox: Sandbox, body: Any) -> None:
    link = make_link()
    assert code(caller.post(f"setup-links/{link.pk}/revoke/", body), 400) == "invalid"
    link.refresh_from_db()
    assert link.status == "active"
