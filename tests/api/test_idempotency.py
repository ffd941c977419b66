"""An ``Idempotency-Key``: asked for twice, made once, answered alike."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import pytest
from django.conf import settings
from django.contrib.auth.models import AnonymousUser
from django.test import override_settings
from django.utils import timezone

from kapso_connect.models import Customer, IdempotentRequest, SetupLink, TimelineEvent
from kapso_connect.testing import Sandbox

from ..clock import FakeClock
from ..factories import make_customer
from ..faults import ProcessKilled, around_api_requests, failing_statement, kill_process
from ..faulty_server import FaultyServer, hung
from .support import Caller, code, make_user

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("unthrottled")]

KEY = {"Idempotency-Key": "8e03978e-40d5-43e8-bc93-6894a57f9324"}
AWAY = {"kind": "status", "status": 503}
CREATE_LINK = "^POST .*/setup_links"
LOST = {"kind": "apply_then_close", "match": CREATE_LINK}


@pytest.fixture
def body() -> dict[str, Any]:
    return {"customer": make_customer(kapso_id=None).pk}


def post(caller: Caller, body: Any, path: str = "setup-links/") -> Any:
    return caller.post(path, body, headers=KEY)


def remote_links(sandbox: Sandbox) -> list[str]:
    return [row["id"] for row in sandbox.state()["setup_links"]]


def age(seconds: float) -> None:
    """End the lease of the only attempt, and make the attempt older."""
    row = IdempotentRequest.objects.get()
    row.created_at -= timedelta(seconds=seconds)
    row.leased_until = timezone.now()
    row.save()


# The same again


def test_repeated_request_creates_no_second_link(
    caller: Caller, sandbox: Sandbox, body: dict[str, Any]
) -> None:
    first = post(caller, body)
    again = post(caller, body)
    assert first.status_code == again.status_code == 201
    assert first.json() == again.json()
    assert again.headers["Location"] == first.headers["Location"]
    assert again.headers["Idempotent-Replayed"] == "true"
    assert "Idempotent-Replayed" not in first.headers
    assert len(remote_links(sandbox)) == SetupLink.objects.count() == 1
    assert TimelineEvent.objects.filter(kind="setup_link_created").count() == 1


def test_repeated_request_gets_the_first_response(
    caller: Caller, sandbox: Sandbox, body: dict[str, Any]
) -> None:
    first = post(caller, body)
    SetupLink.objects.update(status="used")
    Customer.objects.update(latest_setup_link=None)
    assert post(caller, body).json() == first.json()


def test_revoked_url_is_not_returned_again(
    caller: Caller, sandbox: Sandbox, body: dict[str, Any]
) -> None:
    first = post(caller, body).json()
    assert caller.post(f"setup-links/{first['id']}/revoke/").status_code == 200
    assert post(caller, body).json() == {**first, "connect_url": None}


def test_repeated_request_creates_no_second_customer(caller: Caller) -> None:
    body = {"name": "A", "external_customer_id": "x"}
    first, again = post(caller, body, "customers/"), post(caller, body, "customers/")
    assert first.status_code == again.status_code == 201
    assert first.json() == again.json()
    assert again.headers["Location"] == first.headers["Location"]
    assert again.headers["Idempotent-Replayed"] == "true"
    assert Customer.objects.count() == 1


def test_spaces_and_order_do_not_change_the_body(caller: Caller) -> None:
    first = post(caller, b'{"name": "A", "email": "a@example.com"}', "customers/")
    again = post(caller, b'{"email":"a@example.com",\n"name":"A"}', "customers/")
    assert again.json() == first.json()


def test_without_a_key_every_request_creates(
    caller: Caller, sandbox: Sandbox, body: dict[str, Any]
) -> None:
    links = {caller.post("setup-links/", body).json()["id"] for _ in range(2)}
    assert len(links) == 2
    assert not IdempotentRequest.objects.exists()


# Another body, another place, another user


def test_key_belongs_to_one_body(caller: Caller, sandbox: Sandbox, body: dict[str, Any]) -> None:
    post(caller, body)
    answer = post(caller, {**body, "next_url": "/x/"})
    assert code(answer, 422) == "idempotency_key_reused"
    assert len(remote_links(sandbox)) == 1


def test_key_belongs_to_one_url_and_one_user(
    caller: Caller, sandbox: Sandbox, body: dict[str, Any]
) -> None:
    assert post(caller, body).status_code == 201
    assert post(caller, {"name": "A"}, "customers/").status_code == 201
    other = Caller(make_user("other", "superuser"))
    answer = post(other, body)
    assert answer.status_code == 201
    assert "Idempotent-Replayed" not in answer.headers
    assert SetupLink.objects.count() == 2


@pytest.mark.parametrize("key", ["", "x" * 256, "ä", "a\tb", "a\x7fb"])
def test_invalid_keys_are_rejected(caller: Caller, key: str) -> None:
    answer = caller.post("customers/", {"name": "A"}, HTTP_IDEMPOTENCY_KEY=key)
    assert code(answer, 400) == "invalid_idempotency_key"
    assert list(answer.json()["fields"]) == ["Idempotency-Key"]
    assert not Customer.objects.exists()


def test_longest_key(caller: Caller) -> None:
    for _ in range(2):
        answer = caller.post("customers/", {"name": "A"}, HTTP_IDEMPOTENCY_KEY="x" * 255)
        assert answer.status_code == 201
    assert Customer.objects.count() == 1


def test_keys_differ_by_case(caller: Caller) -> None:
    for key in ("Ab", "aB"):
        answer = caller.post("customers/", {"name": "A"}, HTTP_IDEMPOTENCY_KEY=key)
        assert "Idempotent-Replayed" not in answer.headers
    assert Customer.objects.count() == 2


def test_anonymous_users_cannot_use_keys(configure: Any) -> None:
    configure(API_PERMISSIONS=["rest_framework.permissions.AllowAny"])
    answer = post(Caller(), {"name": "A"}, "customers/")
    assert code(answer, 400) == "invalid_idempotency_key"
    assert Caller().post("customers/", {"name": "A"}).status_code == 201
    assert AnonymousUser.pk is None


def test_keys_are_stored_hashed(caller: Caller) -> None:
    post(caller, {"name": "A"}, "customers/")
    assert KEY["Idempotency-Key"] not in str(IdempotentRequest.objects.values().get())


# What failed


def test_rejected_body_frees_the_key(caller: Caller) -> None:
    make_customer(external_customer_id="x")
    taken = post(caller, {"name": "A", "external_customer_id": "x"}, "customers/")
    assert code(taken, 409) == "external_customer_id_taken"
    assert post(caller, {"name": "A", "external_customer_id": "y"}, "customers/").status_code == 201


@pytest.mark.parametrize("status", [401, 402, 409, 422, 429])
def test_rejection_by_kapso_frees_the_key(
    caller: Caller, sandbox: Sandbox, configure: Any, body: dict[str, Any], status: int
) -> None:
    configure(API_BUDGET=0.5)
    sandbox.faults(api=[{**LOST, "kind": "status", "status": status, "times": 9}])
    assert post(caller, body).status_code >= 400
    assert not IdempotentRequest.objects.exists()
    sandbox.faults(api=[])
    assert post(caller, {**body, "next_url": "/x/"}).status_code == 201
    assert len(remote_links(sandbox)) == 1


def test_a_link_whose_answer_was_lost_is_found_by_the_next_request(
    caller: Caller, sandbox: Sandbox, configure: Any, body: dict[str, Any]
) -> None:
    configure(API_BUDGET=1)
    # Kapso makes the link, and can then neither say so nor be asked.
    cannot_be_asked = {**AWAY, "match": "^GET .*/setup_links"}
    sandbox.faults(api=[{**LOST, "times": 1}, cannot_be_asked])
    answer = post(caller, body)
    assert code(answer, 503) == "kapso_outcome_unknown"
    (made,) = remote_links(sandbox)
    assert not SetupLink.objects.exists()
    other = post(caller, {**body, "next_url": "/x/"})
    assert code(other, 422) == "idempotency_key_reused"
    sandbox.faults(api=[cannot_be_asked])
    assert post(caller, body).status_code == 503
    sandbox.faults(api=[])
    answer = post(caller, body)
    assert answer.status_code == 201
    assert answer.json()["kapso_id"] == made
    assert remote_links(sandbox) == [made]


# Processes that are killed


def test_key_is_in_use_while_another_request_is_processed(
    caller: Caller, sandbox: Sandbox, body: dict[str, Any]
) -> None:
    with around_api_requests(before=kill_process), pytest.raises(ProcessKilled):
        post(caller, body)
    answer = post(caller, body)
    assert code(answer, 409) == "idempotency_key_in_use"
    assert answer.headers["Retry-After"] == "1"
    assert remote_links(sandbox) == []
    age(301)
    assert post(caller, body).status_code == 201
    assert len(remote_links(sandbox)) == 1


def test_link_created_by_a_killed_process_is_adopted(
    caller: Caller, sandbox: Sandbox, body: dict[str, Any]
) -> None:
    with around_api_requests(CREATE_LINK, after=kill_process), pytest.raises(ProcessKilled):
        post(caller, body)
    (made,) = remote_links(sandbox)
    age(0)
    answer = post(caller, body)
    assert answer.json()["kapso_id"] == made
    assert remote_links(sandbox) == [made]


@pytest.mark.django_db(transaction=True)
def test_link_stored_by_a_killed_process_is_returned(
    caller: Caller, sandbox: Sandbox, body: dict[str, Any]
) -> None:
    killing = [*settings.MIDDLEWARE, "tests.faults.killing_middleware"]
    with override_settings(MIDDLEWARE=killing), pytest.raises(ProcessKilled):
        post(Caller(caller.user), body)
    (made,) = remote_links(sandbox)
    answer = post(caller, body)
    assert answer.status_code == 201
    assert answer.headers["Idempotent-Replayed"] == "true"
    assert answer.json()["kapso_id"] == made
    assert remote_links(sandbox) == [made]


@pytest.mark.django_db(transaction=True)
def test_customer_and_key_are_stored_together(caller: Caller) -> None:
    killed = failing_statement("UPDATE", "kapso_connect_idempotentrequest", ProcessKilled())
    with killed, pytest.raises(ProcessKilled):
        post(caller, {"name": "A"}, "customers/")
    assert not Customer.objects.exists()
    age(301)
    assert post(caller, {"name": "A"}, "customers/").status_code == 201
    assert Customer.objects.count() == 1


def test_key_is_free_as_soon_as_its_request_can_no_longer_run(
    caller: Caller,
    sandbox: Sandbox,
    body: dict[str, Any],
    configure: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    configure(API_BUDGET=12.0, LEASE_SECONDS=300.0)
    with around_api_requests(CREATE_LINK, after=kill_process), pytest.raises(ProcessKilled):
        post(caller, body)
    (made,) = remote_links(sandbox)
    assert code(post(caller, body), 409) == "idempotency_key_in_use"
    FakeClock(monkeypatch).advance(25)
    assert post(caller, body).json()["kapso_id"] == made
    assert remote_links(sandbox) == [made]


def test_request_to_a_hanging_kapso_ends_in_time_and_frees_its_key(
    caller: Caller, sandbox: Sandbox, body: dict[str, Any], configure: Any
) -> None:
    with FaultyServer() as server:
        server.will(hung())
        configure(API_BUDGET=0.3, API_BASE_URL=server.url)
        started = time.monotonic()
        assert code(post(caller, body), 503) == "kapso_unavailable"
        assert time.monotonic() - started < 3
    configure(API_BUDGET=12.0, API_BASE_URL=sandbox.url)
    assert post(caller, body).status_code == 201


def test_slow_request_does_not_free_the_key_of_its_successor(
    caller: Caller, sandbox: Sandbox, body: dict[str, Any]
) -> None:
    lease = timezone.now() + timedelta(minutes=5)

    def another_process_takes_over() -> None:
        IdempotentRequest.objects.update(leased_until=lease)

    sandbox.faults(api=[{"kind": "status", "status": 409, "match": CREATE_LINK}])
    with around_api_requests(CREATE_LINK, after=another_process_takes_over):
        assert code(post(caller, body), 409) == "kapso_conflict"
    assert IdempotentRequest.objects.get().leased_until == lease


def test_unknown_error_keeps_the_key_for_the_next_request(
    caller: Caller, sandbox: Sandbox, body: dict[str, Any]
) -> None:
    failing = failing_statement("INSERT", "kapso_connect_setuplink", ZeroDivisionError())
    with failing, pytest.raises(ZeroDivisionError):
        post(caller, body)
    (made,) = remote_links(sandbox)
    assert post(caller, body).json()["kapso_id"] == made
    assert remote_links(sandbox) == [made]


def test_deleting_the_object_deletes_its_key(
    caller: Caller, sandbox: Sandbox, body: dict[str, Any]
) -> None:
    """No name or address of a customer who was deleted is kept."""
    post(caller, body)
    made = post(caller, {"name": "A"}, "customers/").json()
    assert IdempotentRequest.objects.count() == 2
    Customer.objects.filter(pk__in=[body["customer"], made["id"]]).delete()
    assert not IdempotentRequest.objects.exists()


def test_earlier_link_is_not_adopted(
    caller: Caller, sandbox: Sandbox, body: dict[str, Any]
) -> None:
    """A link from before the first attempt was not created by it."""
    older = caller.post("setup-links/", body).json()
    with around_api_requests(before=kill_process), pytest.raises(ProcessKilled):
        post(caller, body)
    age(301)
    assert post(caller, body).json()["kapso_id"] != older["kapso_id"]
