"""Numbers through the REST API: read, asked about, disconnected."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection as database
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from kapso_connect import outbox, sync
from kapso_connect.models import Connection, Customer, TimelineEvent
from kapso_connect.testing import Sandbox

from ..factories import (
    DELETED,
    listening,
    make_connection,
    make_customer,
    make_link,
    new_number_id,
    payload_for,
    post,
    queue_without_worker,
    remote_customer,
)
from ..onboarding.support import during_request, wait_until_deleted
from .support import Caller, code

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("unthrottled")]


def remote_connection(sandbox: Sandbox, **fields: Any) -> Connection:
    """A number that is connected here and at Kapso."""
    row = sandbox.add_number(external_customer_id="acme", phone_number="+14155550100")
    customer, _made = Customer.objects.get_or_create(
        kapso_id=row["customer_id"], defaults={"external_customer_id": "acme", "name": "Acme"}
    )
    number = row["phone_number_id"]
    return make_connection(customer, **{"phone_number_id": number, **fields})


def test_connection_representation(caller: Caller) -> None:
    link = make_link()
    now = timezone.now()
    number = make_connection(
        link.customer,
        setup_link=link,
        display_phone_number="+1 555-123-4567",
        connected_at=now,
        health_status="degraded",
        restrictions=[{"type": "X", "expires_at": None}],
    )
    data = caller.get(f"connections/{number.pk}/").json()
    assert data["phone_number_id"] == number.phone_number_id
    assert (data["customer"], data["setup_link"]) == (link.customer_id, link.pk)
    assert data["is_test_number"] is True
    assert data["connected_at"] == now.isoformat().replace("+00:00", "Z")
    assert data["health_status"] == "degraded"
    assert data["restrictions"] == [{"type": "X", "expires_at": None}]
    assert caller.get("connections/").json()["results"] == [data]


def test_list_is_filtered(caller: Caller) -> None:
    one = make_connection()
    other = make_connection(status="disconnected")

    def ids(query: str) -> list[int]:
        return [row["id"] for row in caller.get(f"connections/?{query}").json()["results"]]

    assert ids("") == [other.pk, one.pk]
    assert ids(f"customer={one.customer_id}") == [one.pk]
    assert ids("status=disconnected") == [other.pk]
    assert ids(f"phone_number_id={one.phone_number_id}") == [one.pk]
    assert ids(f"phone_number_id={one.phone_number_id[:-1]}") == []
    assert ids(f"phone_number_id={one.phone_number_id}&status=disconnected") == []


def test_list_takes_a_constant_number_of_queries(caller: Caller) -> None:
    def queries() -> int:
        with CaptureQueriesContext(database) as captured:
            assert caller.get("connections/?page_size=100").status_code == 200
        return len(captured)

    make_connection()
    one = queries()
    for _ in range(20):
        make_connection(setup_link=make_link())
    assert queries() == one == 4  # two of them for the session and the user


# A number that only a webhook has told of


def names_of(caller: Caller, customer: Customer) -> set[tuple[str | None, str | None]]:
    """Return the number and the name of the customer's only connection, as each resource says."""
    (listed,) = caller.get(f"connections/?customer={customer.pk}").json()["results"]
    shown = [
        listed,
        caller.get(f"connections/{listed['id']}/").json(),
        caller.get(f"customers/{customer.pk}/status/").json()["connection"],
    ]
    assert {row["status"] for row in shown} == {"connected"}
    return {(row["display_phone_number"], row["verified_name"]) for row in shown}


@pytest.fixture
def announced(sandbox: Sandbox) -> tuple[Customer, dict[str, Any], tuple[str, str]]:
    """A customer, the webhook that its number is connected, and the number and name at Kapso."""
    customer = remote_customer(sandbox)
    (number,) = sandbox.state()["phone_numbers"]
    names = (number["display_phone_number"], number["verified_name"])
    assert all(names)
    return customer, payload_for(customer, number["phone_number_id"]), names


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("signals", [["whatsapp_connected"], ["whatsapp_disconnected"]])
def test_number_known_by_a_webhook_alone_has_its_number_and_name(
    caller: Caller, announced: Any, signals: list[str]
) -> None:
    customer, webhook, names = announced
    with listening(*signals):
        post(webhook)
    assert names_of(caller, customer) == {names}


@pytest.mark.django_db(transaction=True)
def test_number_and_name_follow_with_the_first_sync_after_an_outage(
    caller: Caller, sandbox: Sandbox, announced: Any
) -> None:
    customer, webhook, names = announced
    sandbox.faults(api=[{"kind": "status", "status": 401}])
    post(webhook)
    assert names_of(caller, customer) == {(None, None)}
    path = f"customers/{customer.pk}/status/"
    etag = caller.get(path).headers["ETag"]
    assert caller.get(path, headers={"if-none-match": etag}).status_code == 304
    sandbox.clear_faults()
    sync.run()
    assert names_of(caller, customer) == {names}
    assert caller.get(path, headers={"if-none-match": etag}).status_code == 200


@pytest.mark.django_db(transaction=True)
def test_number_and_name_follow_by_a_queue_alone_after_an_outage(
    caller: Caller, sandbox: Sandbox, announced: Any
) -> None:
    customer, webhook, names = announced
    sandbox.faults(api=[{"kind": "status", "status": 401}])
    with listening("whatsapp_connected"), queue_without_worker():
        post(webhook)
        results = outbox.deliver_event.get_backend().results
        results[0].task.call(*results[0].args)
        assert names_of(caller, customer) == {(None, None)}
        sandbox.clear_faults()
        results[1].task.call(*results[1].args)
    assert names_of(caller, customer) == {names}


# Asking Kapso


def test_refresh_gets_the_number_and_its_health_from_kapso(
    caller: Caller, sandbox: Sandbox
) -> None:
    number = remote_connection(sandbox, quality_rating="RED")
    sandbox.patch_number(number.phone_number_id, quality_rating="GREEN", verified_name="Acme")
    answer = caller.post(f"connections/{number.pk}/refresh/")
    assert answer.status_code == 200
    data = answer.json()
    assert (data["quality_rating"], data["verified_name"]) == ("GREEN", "Acme")
    assert data["health_status"] == "healthy"
    assert data["health_checked_at"] is not None
    event = TimelineEvent.objects.get(kind="health_checked")
    assert event.actor == caller.user


def test_health_is_not_checked_again_at_once(caller: Caller, sandbox: Sandbox) -> None:
    number = remote_connection(sandbox)
    path = f"connections/{number.pk}/refresh/"
    assert caller.post(path).status_code == caller.post(path).status_code == 200
    assert TimelineEvent.objects.filter(kind="health_checked").count() == 1
    Connection.objects.update(health_checked_at=timezone.now() - timedelta(seconds=11))
    assert caller.post(path).status_code == 200
    assert TimelineEvent.objects.filter(kind="health_checked").count() == 2


def test_health_says_what_is_wrong_and_is_not_asked_for_while_it_is_held(
    caller: Caller, sandbox: Sandbox
) -> None:
    number = remote_connection(sandbox)
    sandbox.patch_number(number.phone_number_id, access_error="Token expired")
    path = f"connections/{number.pk}/refresh/"
    data = caller.post(path).json()
    assert data["health_problems"] == [
        {
            "check": "phone_number_access",
            "entity": None,
            "code": None,
            "description": "Token expired",
            "solution": None,
        }
    ]
    assert data["health_retry_after"] > data["health_checked_at"]
    Connection.objects.update(health_checked_at=timezone.now() - timedelta(minutes=1))
    again = caller.post(path).json()
    assert again["health_problems"] == data["health_problems"]
    assert sum(row["path"].endswith("/health") for row in sandbox.requests()) == 1


def test_funding_is_represented(caller: Caller) -> None:
    number = make_connection(funding_status="pending", funding_checked_at=timezone.now())
    data = caller.get(f"connections/{number.pk}/").json()
    assert data["funding_status"] == "pending"
    assert data["funding_checked_at"] is not None


def test_refresh_disconnects_a_number_that_kapso_no_longer_has(
    caller: Caller, sandbox: Sandbox
) -> None:
    number = make_connection(connected_at=timezone.now() - timedelta(hours=1))
    answer = caller.post(f"connections/{number.pk}/refresh/")
    assert answer.status_code == 200
    assert (answer.json()["status"], answer.json()["disconnect_reason"]) == (
        "disconnected",
        "not_found",
    )


def test_refresh_of_a_number_that_was_just_disconnected_is_a_conflict(
    caller: Caller, sandbox: Sandbox
) -> None:
    number = remote_connection(
        sandbox, status="disconnected", disconnected_at=timezone.now() + timedelta(seconds=5)
    )
    answer = caller.post(f"connections/{number.pk}/refresh/")
    assert code(answer, 409) == "changed_meanwhile"
    assert answer.headers["Retry-After"] == "30"


# Disconnecting


def test_a_number_is_disconnected_at_kapso_and_here(caller: Caller, sandbox: Sandbox) -> None:
    number = remote_connection(sandbox, connected_at=timezone.now() - timedelta(hours=1))
    answer = caller.post(f"connections/{number.pk}/disconnect/")
    assert answer.status_code == 200
    assert (answer.json()["status"], answer.json()["disconnect_reason"]) == (
        "disconnected",
        "staff",
    )
    asked = [(one["method"], one["path"]) for one in sandbox.requests()]
    assert ("DELETE", f"/platform/v1/whatsapp/phone_numbers/{number.phone_number_id}") in asked
    assert TimelineEvent.objects.get(kind="disconnected").actor == caller.user
    again = caller.post(f"connections/{number.pk}/disconnect/")
    assert (again.status_code, again.json()) == (200, answer.json())
    assert TimelineEvent.objects.filter(kind="disconnected").count() == 1


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("is_webhook_first", [False, True])
def test_disconnection_by_staff_says_so_in_the_event_as_in_the_connection(
    caller: Caller, sandbox: Sandbox, is_webhook_first: bool
) -> None:
    number = remote_connection(sandbox, connected_at=timezone.now() - timedelta(hours=1))

    def deliver() -> None:
        wait_until_deleted(sandbox, number)
        post(payload_for(number.customer, number.phone_number_id), event=DELETED)

    def delete_and_deliver() -> None:
        sandbox.delete_number(number.phone_number_id)
        deliver()

    def disconnect() -> Any:
        return caller.post(f"connections/{number.pk}/disconnect/")

    if is_webhook_first:
        answer = during_request(sandbox, "^DELETE", delete_and_deliver, disconnect, kind="hang")
    else:
        answer = disconnect()
        deliver()
    assert answer.status_code == 200
    shown = caller.get(f"connections/{number.pk}/").json()
    assert shown == answer.json()
    (event,) = caller.get("events/?kind=disconnected").json()["results"]
    assert event["connection"] == number.pk
    assert event["actor"] == str(caller.user.pk)
    assert event["data"]["reason"] == shown["disconnect_reason"] == "staff"
    assert event["occurred_at"] == shown["disconnected_at"]
    assert event["source"] == ("webhook" if is_webhook_first else "manual")


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("action", ["refresh", "disconnect"])
def test_number_that_moved_at_kapso_is_not_touched_for_its_former_customer(
    caller: Caller, sandbox: Sandbox, action: str
) -> None:
    number = remote_connection(sandbox, connected_at=timezone.now() - timedelta(hours=1))
    former = number.customer
    link = make_link(former)
    new = sandbox.add_number(external_customer_id="new")["customer_id"]
    sandbox.patch_number(number.phone_number_id, customer_id=new)
    asked = len(sandbox.requests())
    with listening() as heard:
        answer = caller.post(f"connections/{number.pk}/{action}/")
    assert code(answer, 409) == "number_moved"
    assert heard.names() == ["whatsapp_disconnected", "whatsapp_connected"]
    number.refresh_from_db()
    assert (number.customer.kapso_id, number.is_connected) == (new, True)
    assert number.health_status == ""
    made = sandbox.requests()[asked:]
    assert {row["method"] for row in made} == {"GET"}
    assert not [row for row in made if row["path"].endswith("/health")]
    link.refresh_from_db()
    assert link.status == "active"
    # The one who has it now can.
    assert caller.post(f"connections/{number.pk}/{action}/").status_code == 200


def test_disconnect_ends_in_time_however_many_requests_it_takes(
    caller: Caller, sandbox: Sandbox, configure: Any
) -> None:
    number = remote_connection(sandbox)
    for _ in range(3):
        make_link(number.customer)
    configure(API_BUDGET=0.5)
    sandbox.faults(api=[{"match": "^PATCH", "kind": "hang", "seconds": 20}])
    started = time.monotonic()
    assert code(caller.post(f"connections/{number.pk}/disconnect/"), 503) == "kapso_unavailable"
    assert time.monotonic() - started < 3
    number.refresh_from_db()
    assert number.is_connected


@pytest.mark.parametrize("action", ["refresh", "disconnect"])
def test_nothing_changes_while_kapso_is_unreachable(
    caller: Caller, sandbox: Sandbox, configure: Any, action: str
) -> None:
    configure(API_BUDGET=0.3)
    number = make_connection(phone_number_id=new_number_id(), customer=make_customer())
    before = Connection.objects.values().get()
    sandbox.faults(api=[{"kind": "status", "status": 503}])
    assert code(caller.post(f"connections/{number.pk}/{action}/"), 503) == "kapso_unavailable"
    assert Connection.objects.values().get() == before
    assert not TimelineEvent.objects.exists()


@pytest.mark.parametrize("action", ["refresh", "disconnect"])
def test_actions_reject_a_body(caller: Caller, sandbox: Sandbox, action: str) -> None:
    number = make_connection()
    assert (
        code(caller.post(f"connections/{number.pk}/{action}/", {"force": True}), 400) == "invalid"
    )
    number.refresh_from_db()
    assert number.is_connected
