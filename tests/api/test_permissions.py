"""Who may use the REST API: staff with this package's permissions, or whom the site names."""

from __future__ import annotations

import subprocess
import sys
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.http import Http404
from django.urls import URLPattern
from django.utils import timezone
from rest_framework.exceptions import NotFound
from rest_framework.permissions import BasePermission

from kapso_connect.api.urls import versioned_patterns
from kapso_connect.models import Customer, Invitation, InvitationBatch, TimelineEvent
from kapso_connect.testing import Sandbox

from ..factories import make_connection, make_customer, make_link
from .support import Caller, code, make_user, staff

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("unthrottled")]

NEEDED: dict[tuple[str, str], set[str]] = {
    ("GET", ""): set(),
    ("GET", "customers/"): {"view_customer"},
    ("POST", "customers/"): {"add_customer"},
    ("GET", "customers/<str:pk>/"): {"view_customer"},
    ("PATCH", "customers/<str:pk>/"): {"change_customer"},
    ("GET", "customers/<str:pk>/status/"): {
        "view_customer",
        "view_setuplink",
        "view_connection",
    },
    ("GET", "setup-links/"): {"view_setuplink"},
    ("POST", "setup-links/"): {"create_setup_link"},
    ("GET", "setup-links/<str:pk>/"): {"view_setuplink"},
    ("POST", "setup-links/<str:pk>/revoke/"): {"revoke_setup_link"},
    ("POST", "customers/<str:pk>/send-invitation/"): {"view_customer", "send_setup_link"},
    ("POST", "customers/<str:pk>/send-reminder/"): {"view_customer", "send_setup_link"},
    ("GET", "batches/"): {"view_customer", "create_setup_link"},
    ("POST", "batches/"): {"view_customer", "create_setup_link"},
    ("GET", "batches/<str:pk>/"): {"view_customer", "create_setup_link"},
    ("GET", "batches/<str:pk>/invitations/"): {"view_customer", "create_setup_link"},
    ("POST", "batches/<str:pk>/work/"): {"view_customer", "create_setup_link"},
    ("POST", "batches/<str:pk>/resume/"): {"view_customer", "create_setup_link"},
    ("POST", "batches/<str:pk>/send-again/"): {"view_customer", "create_setup_link"},
    ("POST", "batches/<str:pk>/give-up/"): {"view_customer", "create_setup_link"},
    ("GET", "connections/"): {"view_connection"},
    ("GET", "connections/<str:pk>/"): {"view_connection"},
    ("POST", "connections/<str:pk>/refresh/"): {"check_health"},
    ("POST", "connections/<str:pk>/disconnect/"): {"disconnect_number"},
    ("GET", "events/"): {"view_timelineevent"},
    ("GET", "schema/"): set(),
}


def endpoints() -> list[tuple[str, str]]:
    patterns: list[URLPattern] = versioned_patterns()
    return [
        (method.upper(), str(pattern.pattern))
        for pattern in patterns
        for method in pattern.callback.actions
        if method != "head"
    ]


def ask(caller: Caller, method: str, route: str) -> Any:
    body = None
    if method == "PATCH" or (method, route) == ("POST", "customers/"):
        body = {"name": "A"}
    elif route == "setup-links/" and method == "POST":
        body = {"customer": 77}
    elif route == "batches/" and method == "POST":
        body = {"purpose": "invite", "customers": [77]}
    path = route.replace("<str:pk>", "77")
    return caller.get(path) if method == "GET" else caller.send(method, path, body)


@pytest.fixture
def things(sandbox: Sandbox) -> None:
    row = sandbox.add_number(external_customer_id="acme")
    customer = make_customer(
        pk=77,
        kapso_id=row["customer_id"],
        external_customer_id="acme",
        email="acme@example.com",
        connect_key="acme",
    )
    make_link(customer, pk=77, status="expired", created_at=timezone.now() - timedelta(days=9))
    batch = InvitationBatch.objects.create(pk=77, started_at=timezone.now())
    Invitation.objects.create(batch=batch, customer=customer, status="done", next_attempt_at=None)
    make_connection(customer, pk=77, phone_number_id=row["phone_number_id"])


@pytest.mark.parametrize(("method", "route"), endpoints())
def test_staff_need_what_the_endpoint_names(things: None, method: str, route: str) -> None:
    needed = NEEDED[method, route]
    if route.endswith("/send-reminder/"):
        Customer.objects.update(status="invited")
    assert ask(staff(*needed) if needed else plain(), method, route).status_code in {200, 201}
    every = set().union(*NEEDED.values()) | {"extend_setup_link", "reconnect_number"}
    for name in needed:
        others = every - {name, name.replace("view_", "change_")}
        caller = Caller(make_user(f"without {name}", *others))
        assert code(ask(caller, method, route), 403) == "permission_denied"


def plain() -> Caller:
    """Staff who may do nothing."""
    return Caller(get_user_model().objects.create_user("plain", is_staff=True))


def test_only_staff_are_permitted(things: None) -> None:
    every = set().union(*NEEDED.values())
    customer = Caller(make_user("customer", *every, is_staff=False))
    for method, route in endpoints():
        assert code(ask(customer, method, route), 403) == "permission_denied", (method, route)
        assert code(ask(Caller(), method, route), 403) == "not_authenticated", (method, route)
    assert not TimelineEvent.objects.exists()


def test_change_permission_includes_view(things: None) -> None:
    assert staff("change_customer").get("customers/77/").status_code == 200


def test_reconnecting_needs_an_additional_permission(sandbox: Sandbox) -> None:
    row = sandbox.add_number(external_customer_id="acme", phone_number="+14155550100")
    customer = make_customer(kapso_id=row["customer_id"], external_customer_id="acme")
    make_connection(customer, display_phone_number=row["display_phone_number"])
    options = {"reconnect_phone_number": "+14155550100"}
    body = {"customer": customer.pk, "options": options}
    without = Caller(make_user("without", "create_setup_link"))
    assert code(without.post("setup-links/", body), 403) == "permission_denied"
    having = Caller(make_user("having", "create_setup_link", "reconnect_number"))
    assert having.post("setup-links/", body).status_code == 201


def test_csrf_token_is_required(things: None) -> None:
    caller = staff()
    caller.client.handler.enforce_csrf_checks = True
    answer = caller.post("customers/", {"name": "A"})
    assert code(answer, 403) == "csrf_failed"
    assert Customer.objects.count() == 1


# The site's own


class ReadOnly(BasePermission):
    def has_permission(self, request: Any, view: Any) -> bool:
        return request.method == "GET"

    def has_object_permission(self, request: Any, view: Any, obj: Any) -> bool:
        return obj.pk != 78


class Everything(ReadOnly):
    def has_permission(self, request: Any, view: Any) -> bool:
        return True


def permit(configure: Any, name: str) -> None:
    configure(API_PERMISSIONS=[f"tests.api.test_permissions.{name}"])


def test_site_sets_its_own_permission_classes(things: None, configure: Any) -> None:
    permit(configure, "ReadOnly")
    assert Caller().get("customers/").status_code == 200
    assert code(Caller().post("customers/", {"name": "A"}), 403) == "not_authenticated"


def test_urls_are_hidden_from_users_without_permission_to_create_links(
    things: None, configure: Any
) -> None:
    permit(configure, "ReadOnly")
    assert Caller().get("setup-links/77/").json()["url"] is None
    permit(configure, "Everything")
    assert Caller().get("setup-links/77/").json()["url"]


class CreatesForOne(BasePermission):
    """Lets everybody read, but create links for one customer only."""

    refusal: Any = None

    def has_object_permission(self, request: Any, view: Any, obj: Any) -> bool:
        may_create = request.method == "GET" or obj == Customer.objects.get(pk=77)
        if not may_create and self.refusal:
            raise self.refusal
        return may_create


class CreatesForOneOr404(CreatesForOne):
    refusal = Http404


class CreatesForOneOrRaises(CreatesForOne):
    refusal = NotFound


@pytest.mark.parametrize("kind", ["", "Or404", "OrRaises"])
def test_urls_are_hidden_where_links_may_not_be_created_for_the_customer(
    things: None, configure: Any, kind: str
) -> None:
    permit(configure, f"CreatesForOne{kind}")
    make_link(make_customer(pk=78, connect_key="a"), pk=78)
    Customer.objects.filter(pk=77).update(connect_key="b")
    listed = {row["id"]: row for row in Caller().get("setup-links/").json()["results"]}
    for pk, is_shown in ((77, True), (78, False)):
        for row in (listed[pk], Caller().get(f"setup-links/{pk}/").json()):
            assert [bool(row["url"]), bool(row["connect_url"])] == [is_shown, is_shown]
    refused = Caller().post("setup-links/", {"customer": 78}).json()
    assert refused["code"] in {"not_authenticated", "not_found"}


def test_object_permissions_of_the_site_apply(things: None, configure: Any) -> None:
    permit(configure, "Everything")
    customer = make_customer(pk=78)
    make_link(customer, pk=78)
    make_connection(customer, pk=78)
    InvitationBatch.objects.create(pk=78, started_at=timezone.now())
    for method, route in endpoints():
        path = route.replace("<str:pk>", "78")
        if method == "GET" and "<" in route:
            answer = Caller().get(path)
        elif "<" in route:
            answer = Caller().send(method, path, {"name": "A"})
        elif (method, route) == ("POST", "setup-links/"):
            answer = Caller().post(path, {"customer": 78})
        elif (method, route) == ("POST", "batches/"):
            answer = Caller().post(path, {"purpose": "invite", "customers": [78]})
        else:
            lists = {"customers/", "setup-links/", "batches/", "connections/", "events/"}
            assert route in lists | {"", "schema/"}
            continue
        assert code(answer, 403) == "not_authenticated", (method, route)


def test_missing_permission_class_is_an_error(configure: Any) -> None:
    permit(configure, "Missing")
    with pytest.raises(ImportError):
        staff().get("customers/")


# What it costs those who do not use it


@pytest.mark.slow
def test_api_is_not_imported_unless_mounted() -> None:
    script = (
        "import sys, django; django.setup();"
        "print([n for n in sys.modules if n.startswith(('kapso_connect.api', 'rest_framework.v'))])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
