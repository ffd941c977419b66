"""Every error code of the reference, provoked by a request."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from types import ModuleType
from typing import Any

import pytest
from django.db import OperationalError
from django.http import HttpResponse
from django.urls import include, path
from django.utils import timezone
from rest_framework.authentication import BasicAuthentication

from kapso_connect import onboarding
from kapso_connect.api import urls
from kapso_connect.api.errors import ERRORS
from kapso_connect.api.openapi import build_document
from kapso_connect.models import (
    Connection,
    Customer,
    Invitation,
    InvitationBatch,
    SetupLink,
)
from kapso_connect.testing import Sandbox
from tests import ROOT

from ..factories import make_connection, make_customer, make_link, make_user
from ..faults import ProcessKilled, around_api_requests, failing_statement, kill_process
from ..sites.host_site.models import Bakery
from ..smtp_server import SMTPServer, use_mail_server
from .support import API, Caller, code, make_invited, staff

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("unthrottled")]

KEY = {"Idempotency-Key": "k"}
WRONG_PASSWORD = {"Authorization": "Basic YTpi"}
CREATE_LINK = "^POST .*/setup_links"
FIND_LINK = "^GET .*/setup_links"


@dataclass
class Site:
    caller: Caller
    sandbox: Sandbox
    configure: Any
    settings: Any

    def create_link(self, **body: Any) -> HttpResponse:
        return self.caller.post(
            "setup-links/", {"customer": make_customer(kapso_id=None).pk, **body}, headers=KEY
        )

    def create_link_with_faults(self, *faults: dict[str, Any]) -> HttpResponse:
        self.configure(API_BUDGET=1)
        self.sandbox.faults(api=list(faults))
        return self.create_link()

    def create_customer(self, body: Any, **options: Any) -> HttpResponse:
        return self.caller.post("customers/", body, **options)

    def number(self, **fields: Any) -> Connection:
        """A number that is connected here and at Kapso."""
        row = self.sandbox.add_number(external_customer_id="acme")
        customer = make_customer(kapso_id=row["customer_id"], external_customer_id="acme")
        return make_connection(customer, phone_number_id=row["phone_number_id"], **fields)

    def refresh(self, fault: dict[str, Any]) -> HttpResponse:
        number = self.number()
        self.configure(API_BUDGET=0.7)
        self.sandbox.faults(api=[{"match": ".*", **fault}])
        return self.caller.post(f"connections/{number.pk}/refresh/")

    def authenticated_by(self, kind: type[Any], headers: dict[str, str]) -> HttpResponse:
        """Ask an API whose only way to authenticate has a WWW-Authenticate header."""
        mixin = type("Mixin", (), {"authentication_classes": [kind]})
        urlconf = ModuleType("basic_authentication_urls")
        urlconf.urlpatterns = [path("api/whatsapp/", include(urls.urls_for(mixin)))]  # type: ignore[attr-defined]
        self.settings.ROOT_URLCONF = urlconf
        return Caller().get("customers/", headers=headers)


@pytest.fixture
def site(caller: Caller, sandbox: Sandbox, configure: Any, settings: Any) -> Site:
    return Site(caller, sandbox, configure, settings)


def key_in_use(site: Site) -> HttpResponse:
    body = {"customer": make_customer(kapso_id=None).pk}
    with around_api_requests(before=kill_process), pytest.raises(ProcessKilled):
        site.caller.post("setup-links/", body, headers=KEY)
    return site.caller.post("setup-links/", body, headers=KEY)


def key_reused(site: Site) -> HttpResponse:
    site.create_customer({"name": "A"}, headers=KEY)
    return site.create_customer({"name": "B"}, headers=KEY)


def external_id_taken(site: Site) -> HttpResponse:
    make_customer(external_customer_id="x")
    return site.create_customer({"name": "A", "external_customer_id": "x"})


def owner_taken(site: Site) -> HttpResponse:
    Customer.objects.for_owner(Bakery.objects.create(title="Ada's", reference="b-1"))
    site.settings.ROOT_URLCONF = "tests.api.test_owners"
    caller = Caller(site.caller.user, at="/owned/v1/")
    return caller.post("customers/", {"name": "Ada's", "external_customer_id": "b-1"})


def link_used(site: Site) -> HttpResponse:
    link = onboarding.create_setup_link(make_customer(kapso_id=None))
    site.sandbox.patch_setup_link(link.kapso_id, status="used")
    return site.caller.post(f"setup-links/{link.pk}/revoke/")


def number_moved(site: Site) -> HttpResponse:
    number = site.number(connected_at=timezone.now() - timedelta(hours=1))
    new = site.sandbox.add_number(external_customer_id="new")["customer_id"]
    site.sandbox.patch_number(number.phone_number_id, customer_id=new)
    return site.caller.post(f"connections/{number.pk}/disconnect/")


def just_disconnected(site: Site) -> HttpResponse:
    number = site.number(
        status="disconnected", disconnected_at=timezone.now() + timedelta(seconds=5)
    )
    return site.caller.post(f"connections/{number.pk}/refresh/")


def token_not_permitted(site: Site) -> HttpResponse:
    viewer = Caller(make_user("viewer", "create_setup_link"))
    return viewer.post("setup-links/", {"customer": make_customer().pk, "include_token": True})


def token_not_valid(site: Site) -> HttpResponse:
    authentication = pytest.importorskip("rest_framework_simplejwt.authentication")
    headers = {"Authorization": "Bearer wrong"}
    return site.authenticated_by(authentication.JWTAuthentication, headers)


def csrf_failed(site: Site) -> HttpResponse:
    site.caller.client.handler.enforce_csrf_checks = True
    return site.create_customer({"name": "A"})


def throttled(site: Site) -> HttpResponse:
    site.configure(API_THROTTLE_RATES={"read": "1/min"})
    site.caller.get("customers/")
    return site.caller.get("customers/")


def without_drf_spectacular(site: Site) -> HttpResponse:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "drf_spectacular", None)
        return site.caller.get("schema/")


def without_settings(site: Site) -> HttpResponse:
    site.configure(PUBLIC_URL="")
    return site.create_link()


def without_database(site: Site) -> HttpResponse:
    away = OperationalError("server closed the connection unexpectedly")
    with failing_statement("SELECT", "kapso_connect_customer", away):
        return site.caller.get("customers/")


def email(
    site: Site, action: str = "invitation", answer: tuple[str, str] = ("", ""), **fields: Any
) -> HttpResponse:
    """Send a customer who was invited two days ago an e-mail, over a mail server with this
    ``answer`` to one of its commands."""
    return send(site, make_invited(**fields), action, answer)


def send(site: Site, link: SetupLink, action: str, answer: tuple[str, str]) -> HttpResponse:
    with SMTPServer(answer=lambda command, to: answer[1] * (command == answer[0])) as server:
        use_mail_server(site.settings, server)
        return site.caller.post(f"customers/{link.customer_id}/send-{action}/")


def already_connected(site: Site) -> HttpResponse:
    link = make_link(make_customer(connect_key="a"), setup_status="completed")
    make_connection(link.customer, setup_link=link)
    return send(site, link, "invitation", ("", ""))


def emailed_recently(site: Site) -> HttpResponse:
    assert email(site).status_code == 200
    return send(site, SetupLink.objects.get(), "reminder", ("", ""))


def not_waiting(site: Site) -> HttpResponse:
    link = make_link(make_customer(connect_key="a"))
    Customer.objects.update(status="failed")
    return send(site, link, "reminder", ("", ""))


def nobody_left(site: Site) -> HttpResponse:
    body = {"purpose": "invite", "customers": [make_link().customer_id], "leave_out_invited": True}
    return site.caller.post("batches/", body)


def batch_not_stopped(site: Site) -> HttpResponse:
    batch = InvitationBatch.objects.create(started_at=timezone.now())
    Invitation.objects.create(batch=batch, customer=make_customer())
    return site.caller.post(f"batches/{batch.pk}/give-up/")


PROVOKED: dict[tuple[int, str], Callable[[Site], HttpResponse]] = {
    (400, "invalid"): lambda site: site.create_customer({"nam": "A"}),
    (400, "invalid_filter"): lambda site: site.caller.get("customers/?page=x"),
    (400, "invalid_cursor"): lambda site: site.caller.get("events/?cursor=x"),
    (400, "invalid_idempotency_key"): lambda site: site.create_customer(
        {"name": "A"}, HTTP_IDEMPOTENCY_KEY=""
    ),
    (400, "bad_request"): lambda site: site.caller.get(
        "customers/?" + "&".join(f"a{number}=1" for number in range(1001))
    ),
    (400, "parse_error"): lambda site: site.create_customer(b"{"),
    (401, "not_authenticated"): lambda site: site.authenticated_by(BasicAuthentication, {}),
    (403, "not_authenticated"): lambda site: Caller().get("customers/"),
    (401, "authentication_failed"): lambda site: site.authenticated_by(
        BasicAuthentication, WRONG_PASSWORD
    ),
    (401, "token_not_valid"): token_not_valid,
    (403, "authentication_failed"): lambda site: Caller().get("customers/", headers=WRONG_PASSWORD),
    (403, "csrf_failed"): csrf_failed,
    (403, "permission_denied"): lambda site: Caller(make_user("nobody")).get("customers/"),
    (403, "token_not_permitted"): token_not_permitted,
    (404, "not_found"): lambda site: site.caller.get("customers/99/"),
    (404, "missing_slash"): lambda site: site.caller.post("customers"),
    (405, "method_not_allowed"): lambda site: site.caller.send("DELETE", "customers/"),
    (406, "not_acceptable"): lambda site: site.caller.get(
        "customers/", headers={"Accept": "image/png"}
    ),
    (409, "customer_erased"): lambda site: site.caller.post(
        "setup-links/", {"customer": make_customer(erased_at=timezone.now()).pk}, headers=KEY
    ),
    (409, "external_customer_id_taken"): external_id_taken,
    (409, "owner_taken"): owner_taken,
    (409, "already_connected"): already_connected,
    (409, "batch_not_stopped"): batch_not_stopped,
    (409, "emailed_recently"): emailed_recently,
    (409, "no_email_address"): lambda site: email(site, email=""),
    (409, "no_personal_link"): lambda site: email(site, connect_key=None),
    (409, "not_waiting"): not_waiting,
    (409, "nobody_left"): nobody_left,
    (409, "setup_link_used"): link_used,
    (409, "changed_meanwhile"): just_disconnected,
    (409, "number_moved"): number_moved,
    (409, "idempotency_key_in_use"): key_in_use,
    (409, "kapso_conflict"): lambda site: site.refresh({"kind": "status", "status": 409}),
    (409, "kapso_not_found"): lambda site: site.create_link_with_faults(
        {"kind": "status", "status": 404, "match": CREATE_LINK}
    ),
    (413, "too_large"): lambda site: site.create_customer(b" " * 65537),
    (415, "unsupported_media_type"): lambda site: site.create_customer(
        b"a", content_type="text/plain"
    ),
    (422, "idempotency_key_reused"): key_reused,
    (422, "kapso_refused"): lambda site: site.refresh({"kind": "status", "status": 422}),
    (429, "throttled"): throttled,
    (501, "openapi_not_installed"): without_drf_spectacular,
    (502, "email_refused"): lambda site: email(site, answer=("RCPT", "550 No such user")),
    (503, "email_not_accepted_yet"): lambda site: email(site, answer=("RCPT", "451 Greylisted")),
    (503, "email_outcome_unknown"): lambda site: email(site, answer=("END", "hang up")),
    (502, "kapso_credentials"): lambda site: site.refresh({"kind": "status", "status": 401}),
    (502, "kapso_plan"): lambda site: site.refresh({"kind": "status", "status": 402}),
    (502, "kapso_unexpected"): lambda site: site.refresh({"kind": "garbage"}),
    (503, "kapso_unavailable"): lambda site: site.refresh({"kind": "close"}),
    (503, "kapso_blocked"): lambda site: site.refresh({"kind": "html", "status": 403}),
    (503, "kapso_rate_limited"): lambda site: site.refresh({"kind": "status", "status": 429}),
    (503, "kapso_outcome_unknown"): lambda site: site.create_link_with_faults(
        {"kind": "apply_then_close", "match": CREATE_LINK, "times": 1},
        {"kind": "status", "status": 503, "match": FIND_LINK},
    ),
    (503, "not_configured"): without_settings,
    (503, "unavailable"): without_database,
}


@pytest.mark.parametrize(("status", "expected"), PROVOKED)
def test_every_documented_error_can_be_provoked(site: Site, status: int, expected: str) -> None:
    answer = PROVOKED[status, expected](site)
    assert code(answer, status) == expected
    assert (status == 401) == ("WWW-Authenticate" in answer.headers)
    if status in {429, 503}:
        assert int(answer.headers["Retry-After"]) >= 1


def documented() -> set[tuple[int, str]]:
    page = (ROOT / "docs" / "reference" / "api.md").read_text()
    return {
        (int(status), documented_code)
        for statuses, documented_code in re.findall(
            r"^\| ([\d, ]+) \| `(\w+)` \|", page, re.MULTILINE
        )
        for status in statuses.split(", ")
    }


def test_reference_has_every_error() -> None:
    assert documented() == set(PROVOKED)
    assert {(status, name) for name, (status, _message) in ERRORS.items()} <= documented()


def test_schema_has_every_error() -> None:
    in_schema = {
        (int(status), name)
        for methods in build_document(urls.versioned_patterns(), API)["paths"].values()
        for operation in methods.values()
        for status, answer in operation["responses"].items()
        for name in re.findall(r"`(\w+)`:", answer["description"])
    }
    assert in_schema == set(PROVOKED) - {(404, "missing_slash"), (405, "method_not_allowed")}


@pytest.mark.parametrize(("seconds", "expected"), [(3, "3"), (0, "1"), (None, "30")])
def test_retry_after_comes_from_kapso(site: Site, seconds: int | None, expected: str) -> None:
    fault = {"kind": "status", "status": 429, "retry_after": seconds}
    answer = site.refresh({name: value for name, value in fault.items() if value is not None})
    assert code(answer, 503) == "kapso_rate_limited"
    assert answer.headers["Retry-After"] == expected


@pytest.mark.parametrize(
    ("status", "is_shown"), [(409, True), (422, True), (429, True), (401, False)]
)
def test_staff_read_what_kapso_says_about_their_request(
    site: Site, status: int, is_shown: bool
) -> None:
    answer = site.refresh({"kind": "status", "status": status})
    assert (f"({status})" in answer.json()["message"]) == is_shown


def test_unknown_errors_are_left_to_the_site() -> None:
    failing = failing_statement("SELECT", "kapso_connect_customer", ZeroDivisionError())
    with failing, pytest.raises(ZeroDivisionError):
        staff().get("customers/")
