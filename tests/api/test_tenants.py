"""A tenant's users see and change what is theirs; of the rest they cannot tell that it exists."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.http import HttpResponse
from django.urls import URLPattern
from django.utils import timezone

from kapso_connect import onboarding
from kapso_connect.api.tenants import TenantMixin
from kapso_connect.api.urls import versioned_patterns
from kapso_connect.models import (
    Connection,
    Customer,
    Invitation,
    InvitationBatch,
    SetupLink,
    TimelineEvent,
)
from kapso_connect.onboarding.numbers import Number
from kapso_connect.testing import Sandbox

from ..factories import make_connection, make_customer, make_link, remote_customer
from .support import Caller, code, make_user

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.usefixtures("unthrottled"),
    pytest.mark.urls("tests.sites.tenant_api"),
]

AT = "/tenant/v1/"


def belongings(email: str) -> dict[str, int]:
    """A customer with one of everything; the key of each."""
    customer = make_customer(email=email, connect_key=email, external_customer_id=f"id of {email}")
    link = make_link(customer, created_at=timezone.now() - timedelta(days=2))
    number = make_connection(customer, setup_link=link, display_phone_number="+1 415-555-0100")
    event = TimelineEvent.objects.create(
        kind="connected",
        source="webhook",
        customer=customer,
        connection=number,
        setup_link=link,
    )
    batch = InvitationBatch.objects.create(started_at=timezone.now())
    Invitation.objects.create(batch=batch, customer=customer, status="done", next_attempt_at=None)
    return {
        "customers": customer.pk,
        "setup-links": link.pk,
        "batches": batch.pk,
        "connections": number.pk,
        "events": event.pk,
    }


@pytest.fixture
def theirs() -> dict[str, int]:
    belongings("staff@example.com")  # so that keys of one kind are not those of another
    TimelineEvent.objects.create(kind="webhook_received", source="webhook")
    return belongings("theirs@example.com")


@pytest.fixture
def own(theirs: dict[str, int]) -> dict[str, int]:
    return belongings("own@example.com")


@pytest.fixture
def tenant() -> Caller:
    return Caller(make_user("tenant", is_staff=False, email="own@example.com"), AT)


def everything() -> dict[str, list[Any]]:
    return {
        model.__name__: list(model._default_manager.order_by("pk").values())
        for model in (
            Customer,
            SetupLink,
            InvitationBatch,
            Invitation,
            Connection,
            TimelineEvent,
        )
    }


def endpoints() -> list[tuple[str, str]]:
    """Every address of the API and every method that it allows."""
    patterns: list[URLPattern] = versioned_patterns(TenantMixin)
    return [
        (method.upper(), str(pattern.pattern))
        for pattern in patterns
        for method in pattern.callback.actions
        if method != "head"
    ]


def test_new_owner_of_a_number_sees_nothing_of_the_former_ones_time(
    tenant: Caller, own: dict[str, int], theirs: dict[str, int]
) -> None:
    Connection.objects.filter(pk=theirs["connections"]).update(
        disconnected_at=timezone.now() - timedelta(days=2),
        disconnect_reason="partner_removed",
        restrictions=[{"type": "X"}],
        account_status="restricted",
        connected_at=timezone.now() - timedelta(days=1),
        created_at=timezone.now() - timedelta(days=9),
    )
    number = Connection.objects.get(pk=theirs["connections"])
    started = timezone.now()
    onboarding.connect(
        Customer.objects.get(pk=own["customers"]),
        Number(number.phone_number_id),
        source="sync",
        asked_at=started,
    )
    seen = tenant.get(f"connections/{number.pk}/").json()
    assert (seen["disconnected_at"], seen["disconnect_reason"]) == (None, None)
    assert (seen["account_status"], seen["restrictions"]) == ("active", [])
    assert (seen["setup_link"] is None) or seen["setup_link"] == own["setup-links"]
    assert min(seen["connected_at"], seen["created_at"]) >= f"{started:%Y-%m-%dT%H:%M:%S}"
    events = tenant.get(f"events/?connection={number.pk}").json()["results"]
    assert [event["kind"] for event in events] == ["connected"]
    former = TimelineEvent.objects.filter(customer=theirs["customers"], connection=number)
    assert sorted(former.values_list("kind", flat=True)) == ["connected", "disconnected"]


LISTS = {"customers/", "setup-links/", "batches/", "connections/", "events/"}
FILTERS = {
    "customers/": {"external_customer_id": "id of theirs@example.com", "search": "theirs"},
    "setup-links/": {"customer": "customers"},
    "batches/": {"purpose": "remind"},
    "connections/": {"customer": "customers"},
    "events/": {
        "customer": "customers",
        "connection": "connections",
        "setup_link": "setup-links",
    },
}
BODIES: dict[tuple[str, str], Any] = {
    ("POST", "customers/"): {"name": "Made"},
    ("PATCH", "customers/<str:pk>/"): {"name": "Changed"},
    ("POST", "setup-links/"): {"customer": "customers"},
    ("POST", "setup-links/<str:pk>/revoke/"): {},
    ("POST", "customers/<str:pk>/send-invitation/"): {},
    ("POST", "customers/<str:pk>/send-reminder/"): {},
    ("POST", "batches/"): {"purpose": "invite", "customers": ["customers"]},
    ("POST", "batches/<str:pk>/work/"): {},
    ("POST", "batches/<str:pk>/resume/"): {},
    ("POST", "batches/<str:pk>/send-again/"): {},
    ("POST", "batches/<str:pk>/give-up/"): {},
    ("POST", "connections/<str:pk>/refresh/"): {},
    ("POST", "connections/<str:pk>/disconnect/"): {},
}


def send(caller: Caller, method: str, route: str, keys: dict[str, int]) -> HttpResponse:
    """Use an endpoint on the things that ``keys`` names."""
    kind = route.partition("/")[0]
    path = route.replace("<str:pk>", str(keys.get(kind)))
    assert "<" not in path, f"Say in this test what {route} is asked with."
    if method == "GET":
        return caller.get(path)
    body = dict(BODIES[method, route])
    if body.get("customer"):
        body["customer"] = keys["customers"]
    if body.get("customers"):
        body["customers"] = [keys["customers"]]
    return caller.send(method, path, body)


@pytest.mark.parametrize(("method", "route"), endpoints())
def test_tenants_cannot_read_or_change_others_objects(
    tenant: Caller,
    own: dict[str, int],
    theirs: dict[str, int],
    sandbox: Sandbox,
    method: str,
    route: str,
) -> None:
    before, asked = everything(), len(sandbox.requests())
    answer = send(tenant, method, route, theirs)
    assert everything() == before
    assert len(sandbox.requests()) == asked, "Kapso was asked"
    if (method, route) == ("POST", "setup-links/"):
        unknown = send(tenant, method, route, dict.fromkeys(theirs, 99))
        assert code(answer, 400) == "invalid"
        assert answer.json()["fields"]["customer"][0]["code"] == "does_not_exist"
        assert answer.content == unknown.content
        return
    if (method, route) == ("POST", "batches/"):
        unknown = send(tenant, method, route, dict.fromkeys(theirs, 99))
        assert code(answer, 400) == "invalid"
        assert answer.json()["fields"]["customers.0"][0]["code"] == "does_not_exist"
        assert answer.content == unknown.content
        return
    if "<str:pk>" in route:
        unknown = send(tenant, method, route, dict.fromkeys(theirs, 99))
        assert code(answer, 404) == code(unknown, 404) == "not_found"
        assert answer.content == unknown.content
        return
    if method == "POST":
        assert route == "customers/"
        assert code(answer, 403) == "permission_denied"
        return
    assert answer.status_code == 200
    if route == "":
        assert all(f"http://testserver{AT}" in url for url in answer.json().values())
        return
    if route == "schema/":
        assert "theirs" not in answer.content.decode()
        return
    assert route in LISTS, f"Say in this test what {route} shows."
    rows = answer.json()["results"]
    assert [row["id"] for row in rows] == [own[route.strip("/")]]
    for name, value in FILTERS[route].items():
        narrowed = tenant.get(f"{route}?{name}={theirs.get(value, value)}").json()
        assert narrowed["results"] == []


@pytest.mark.parametrize(("method", "route"), endpoints())
def test_tenants_read_and_change_their_own_objects(
    tenant: Caller, own: dict[str, int], sandbox: Sandbox, method: str, route: str
) -> None:
    customer = Customer.objects.get(pk=own["customers"])
    remote = remote_customer(sandbox)
    Customer.objects.filter(pk=remote.pk).update(kapso_id=None, external_customer_id=None)
    Customer.objects.filter(pk=customer.pk).update(
        kapso_id=remote.kapso_id, external_customer_id=remote.external_customer_id
    )
    # Kapso does not have the number, and it is no new one that Kapso may not show yet.
    Connection.objects.update(connected_at=timezone.now() - timedelta(hours=1))
    if route.endswith("/send-reminder/"):
        Customer.objects.update(status="invited")
    answer = send(tenant, method, route, own)
    if (method, route) == ("POST", "customers/"):
        assert code(answer, 403) == "permission_denied"
    else:
        assert answer.status_code in {200, 201}, answer.content


def test_anonymous_users_are_rejected(own: dict[str, int], sandbox: Sandbox) -> None:
    before = everything()
    for method, route in endpoints():
        answer = send(Caller(at=AT), method, route, own)
        assert code(answer, 403) == "not_authenticated", (method, route)
        assert everything() == before, (method, route)


def test_mixin_without_get_customers_shows_nothing(own: dict[str, int], sandbox: Sandbox) -> None:
    before = everything()
    caller = Caller(make_user("root", "superuser"), "/forgetful/v1/")
    for method, route in endpoints():
        if route in {"", "schema/"} or (method, route) == ("POST", "customers/"):
            assert send(caller, method, route, own).status_code in {200, 403}, (method, route)
        else:
            with pytest.raises(NotImplementedError):
                send(caller, method, route, own)
        assert everything() == before, (method, route)


def test_tenant_receives_own_urls(tenant: Caller, own: dict[str, int]) -> None:
    data = tenant.get(f"setup-links/{own['setup-links']}/").json()
    assert data["url"]
    assert data["connect_url"]


def test_names_of_staff_are_hidden(tenant: Caller, own: dict[str, int]) -> None:
    staff = make_user("staff")
    SetupLink.objects.update(created_by=staff)
    TimelineEvent.objects.update(actor=staff)
    assert tenant.get(f"setup-links/{own['setup-links']}/").json()["created_by"] is None
    assert tenant.get("events/").json()["results"][0]["actor"] is None
    SetupLink.objects.update(created_by=tenant.user)
    data = tenant.get(f"setup-links/{own['setup-links']}/").json()
    assert data["created_by"] == str(tenant.user.pk)


def test_error_messages_of_kapso_are_hidden(
    tenant: Caller, own: dict[str, int], sandbox: Sandbox
) -> None:
    sandbox.faults(api=[{"kind": "status", "status": 409, "match": ".*"}])
    answer = tenant.post(f"connections/{own['connections']}/refresh/")
    assert code(answer, 409) == "kapso_conflict"
    assert "Sandbox fault" not in answer.content.decode()


def test_tenants_cannot_set_external_ids(tenant: Caller, own: dict[str, int]) -> None:
    path = f"customers/{own['customers']}/"
    body = {"name": "New", "external_customer_id": "id of theirs@example.com"}
    before = Customer.objects.filter(pk=own["customers"]).values().get()
    answer = tenant.send("PATCH", path, body)
    assert code(answer, 400) == "invalid"
    assert answer.json()["fields"]["external_customer_id"][0]["code"] == "read_only"
    assert Customer.objects.filter(pk=own["customers"]).values().get() == before


@pytest.mark.parametrize("external_id", ["id of theirs@example.com", "nobody's"])
def test_tenants_do_not_learn_which_external_ids_are_taken(
    tenant: Caller, own: dict[str, int], theirs: dict[str, int], external_id: str
) -> None:
    body = {"name": "", "external_customer_id": external_id}
    for method, path in (("POST", "customers/"), ("PATCH", f"customers/{own['customers']}/")):
        fields = tenant.send(method, path, body).json()["fields"]
        assert [error["code"] for error in fields["external_customer_id"]] == ["read_only"]


def test_number_that_moved_to_another_customer_is_not_shown(
    tenant: Caller, own: dict[str, int], sandbox: Sandbox
) -> None:
    row = sandbox.add_number(external_customer_id="elsewhere")
    Connection.objects.filter(pk=own["connections"]).update(
        phone_number_id=row["phone_number_id"],
        connected_at=timezone.now() - timedelta(hours=1),
    )
    answer = tenant.post(f"connections/{own['connections']}/refresh/")
    assert code(answer, 409) == "number_moved"
    assert code(tenant.get(f"connections/{own['connections']}/"), 404) == "not_found"
    moved = Connection.objects.get(pk=own["connections"])
    assert moved.customer.external_customer_id == "elsewhere"
    assert moved.health_checked_at is None


def test_no_token_without_permission(tenant: Caller, own: dict[str, int]) -> None:
    body = {"customer": own["customers"], "include_token": True}
    assert code(tenant.post("setup-links/", body), 403) == "token_not_permitted"


def test_tenants_create_customers_if_the_site_permits(theirs: dict[str, int]) -> None:
    user = make_user("tenant", is_staff=False, email="own@example.com")
    caller = Caller(user, "/making/v1/")
    body = {"name": "A", "email": "theirs@example.com", "external_customer_id": "mine"}
    answer = caller.post("customers/", body, headers={"Idempotency-Key": "k"})
    assert answer.status_code == 201
    assert answer.json()["email"] == "own@example.com"
    assert answer.headers["Location"].startswith("http://testserver/making/v1/customers/")
    again = caller.post("customers/", body, headers={"Idempotency-Key": "k"})
    assert (again.status_code, again.json()) == (201, answer.json())
    assert [row["id"] for row in caller.get("customers/").json()["results"]] == [
        answer.json()["id"]
    ]


def test_idempotency_keys_belong_to_one_user(theirs: dict[str, int]) -> None:
    users = [
        make_user(name, is_staff=False, email=f"{name}@example.com") for name in ("one", "two")
    ]
    answers = [
        Caller(user, "/making/v1/").post(
            "customers/", {"name": "A"}, headers={"Idempotency-Key": "same"}
        )
        for user in users
    ]
    assert [answer.status_code for answer in answers] == [201, 201]
    assert answers[0].json()["id"] != answers[1].json()["id"]


def test_repeated_request_requires_access_to_the_object() -> None:
    user = make_user("tenant", is_staff=False, email="own@example.com")
    caller = Caller(user, "/making/v1/")
    made = caller.post("customers/", {"name": "A"}, headers={"Idempotency-Key": "k"})
    Customer.objects.filter(pk=made.json()["id"]).update(email="theirs@example.com")
    again = caller.post("customers/", {"name": "A"}, headers={"Idempotency-Key": "k"})
    assert code(again, 404) == "not_found"


def test_customers_can_depend_on_the_url(
    own: dict[str, int], theirs: dict[str, int], sandbox: Sandbox
) -> None:
    caller = Caller(make_user("root", "superuser"), "/of/theirs/api/v1/")
    before = everything()
    for method, route in endpoints():
        answer = send(caller, method, route, own)
        if (method, route) == ("POST", "setup-links/"):
            assert answer.json()["fields"]["customer"][0]["code"] == "does_not_exist"
        elif "<str:pk>" in route:
            assert code(answer, 404) == "not_found", (method, route)
        elif method == "GET":
            assert answer.status_code == 200, route
            assert AT not in answer.content.decode()
        assert everything() == before, (method, route)
        if method == "GET":
            assert send(caller, method, route, theirs).status_code == 200, route


def test_location_has_the_arguments_of_the_url(theirs: dict[str, int], sandbox: Sandbox) -> None:
    Customer.objects.update(kapso_id=None)
    caller = Caller(make_user("root", "superuser"), "/of/theirs/api/v1/")
    answer = caller.post("setup-links/", {"customer": theirs["customers"]})
    assert answer.status_code == 201, answer.content
    assert "/of/theirs/api/v1/setup-links/" in answer.headers["Location"]
    assert caller.client.get(answer.headers["Location"]).json()["id"] == answer.json()["id"]
    urls = caller.get("").json()
    assert urls["customers"] == "http://testserver/of/theirs/api/v1/customers/"
    assert caller.get("schema/").json()["servers"] == [{"url": "/of/theirs/api/v1"}]
