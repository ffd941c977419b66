"""Many customers are invited or reminded at once, through the REST API."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import pytest
from django.core import mail as outbox
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from rest_framework.permissions import BasePermission

from kapso_connect import sync
from kapso_connect.models import (
    Customer,
    IdempotentRequest,
    Invitation,
    InvitationBatch,
    SetupLink,
    TimelineEvent,
    new_connect_key,
)
from kapso_connect.onboarding import invitations
from kapso_connect.testing import Sandbox
from kapso_connect.utils import utc_now

from ..factories import make_connection, make_customer, make_link, make_user, queue_without_worker
from ..faults import ProcessKilled, failing_statement
from ..smtp_server import SMTPServer, use_mail_server
from .support import Caller, code, make_invited

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("unthrottled")]

KEY = {"Idempotency-Key": "8e03978e-40d5-43e8-bc93-6894a57f9324"}
DONE = {"status": "done", "next_attempt_at": None}
FAILED = {"status": "failed", "next_attempt_at": None, "last_error": "Kapso (422) says no."}
CREATE_LINK = "^POST .*/setup_links$"


def customers(count: int, **fields: Any) -> list[int]:
    made = Customer.objects.bulk_create(
        Customer(name=f"Customer {n}", email=f"c{n}@example.com", **fields) for n in range(count)
    )
    return [customer.pk for customer in made]


def waiting(name: str = "ada", **fields: Any) -> Customer:
    """A customer who was invited two days ago and did nothing."""
    return make_invited(**{"name": name, "email": f"{name}@example.com", **fields}).customer


def batch(*rows: dict[str, Any], **fields: Any) -> InvitationBatch:
    """A batch that was started, with an invitation for each of ``rows``."""
    made = InvitationBatch.objects.create(**{"started_at": timezone.now(), **fields})
    for row in rows:
        Invitation.objects.create(**{"batch": made, "customer": make_customer(), **row})
    return made


def invite(caller: Caller, pks: list[int], **body: Any) -> Any:
    headers = body.pop("headers", {})
    return caller.post("batches/", {"purpose": "invite", "customers": pks, **body}, headers=headers)


def problems(answer: Any) -> dict[str, list[str]]:
    """The codes of the invalid values, by path."""
    assert code(answer, 400) == "invalid"
    fields = answer.json()["fields"]
    return {path: [error["code"] for error in errors] for path, errors in fields.items()}


@pytest.fixture
def without_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests do not work on batches: they have no time for it."""
    monkeypatch.setattr(invitations, "REQUEST_SECONDS", 0)


# Created


def test_each_customer_gets_a_link(caller: Caller, sandbox: Sandbox) -> None:
    pks = customers(20)
    answer = invite(caller, pks, options={"language": "es"}, next_url="/welcome/", send_email=True)
    assert answer.status_code == 201, answer.content
    body = answer.json()
    assert answer.headers["Location"].endswith(f"/api/whatsapp/v1/batches/{body['id']}/")
    assert caller.client.get(answer.headers["Location"]).json() == body
    assert (body["purpose"], body["state"], body["stop_reason"]) == ("invite", "finished", None)
    assert (body["options"], body["next_url"]) == ({"language": "es"}, "/welcome/")
    assert (body["send_email"], body["created_by"]) == (True, str(caller.user.pk))
    assert body["progress"] == {
        "total": 20,
        "done": 20,
        "failed": 0,
        "left": 0,
        "emails_sent": 20,
        "emails_failed": 0,
        "emails_unknown": 0,
        "emails_waiting": 0,
        "no_address": 0,
        "left_out": 0,
        "next_attempt_at": None,
    }
    assert len(outbox.outbox) == 20
    rows = caller.get(f"batches/{body['id']}/invitations/?page_size=100").json()["results"]
    assert [row["customer"] for row in rows] == pks
    for row in rows:
        link = SetupLink.objects.get(pk=row.pop("setup_link"))
        assert (link.customer_id, link.created_by) == (row.pop("customer"), caller.user)
        assert (link.options["language"], link.next_url) == ("es", "/welcome/")
        assert row == {
            "status": "done",
            "error": None,
            "email_status": "sent",
            "email_error": None,
        }


def test_customers_are_reminded(caller: Caller) -> None:
    pks = [waiting("ada").pk, waiting("bob").pk, waiting("eve", email="").pk]
    answer = caller.post("batches/", {"purpose": "remind", "customers": pks})
    assert answer.status_code == 201, answer.content
    body = answer.json()
    assert (body["purpose"], body["send_email"], body["options"]) == ("remind", True, {})
    counts = {name: count for name, count in body["progress"].items() if count}
    assert counts == {"total": 3, "done": 3, "emails_sent": 2, "left_out": 1}
    assert sorted(message.to[0] for message in outbox.outbox) == [
        "ada@example.com",
        "bob@example.com",
    ]
    rows = caller.get(f"batches/{body['id']}/invitations/").json()["results"]
    assert [row["email_status"] for row in rows] == ["sent", "sent", None]
    assert [row["error"] for row in rows] == [None, None, "has no e-mail address"]
    assert rows[0]["setup_link"] == Customer.objects.get(pk=pks[0]).latest_setup_link_id


def test_customers_are_left_out_if_requested(caller: Caller, sandbox: Sandbox) -> None:
    connected, invited = make_connection().customer, make_link().customer
    pks = [connected.pk, invited.pk, *customers(1)]
    left = invite(caller, pks, leave_out_connected=True, leave_out_invited=True).json()
    rows = caller.get(f"batches/{left['id']}/invitations/").json()["results"]
    assert [row["customer"] for row in rows] == pks[2:]
    for name, pk in (("leave_out_connected", connected.pk), ("leave_out_invited", invited.pk)):
        count = InvitationBatch.objects.count()
        assert code(invite(caller, [pk], **{name: True}), 409) == "nobody_left"
        assert InvitationBatch.objects.count() == count
        assert invite(caller, [pk], **{name: False}).status_code == 201


def test_batch_sends_no_emails_unless_asked_to(caller: Caller, sandbox: Sandbox) -> None:
    body = invite(caller, customers(1)).json()
    assert not outbox.outbox
    assert (body["send_email"], body["next_url"]) == (False, None)
    assert body["progress"]["left_out"] == 0
    assert (
        caller.get(f"batches/{body['id']}/invitations/").json()["results"][0]["email_status"]
        is None
    )


# Refused


def test_all_errors_are_reported_at_once(caller: Caller) -> None:
    pk, other, erased = customers(3)
    Customer.objects.filter(pk=erased).update(erased_at=timezone.now())
    answer = invite(
        caller,
        [pk, 0, 99999, other, pk, "7", True, erased],  # type: ignore[list-item]
        options={"language": "xx", "phone_number_area_code": "4"},
        next_url="https://elsewhere.example/",
        send_email="yes",
        leave_out=True,
    )
    assert problems(answer) == {
        "customers.1": ["min_value"],
        "customers.2": ["does_not_exist"],
        "customers.4": ["repeated"],
        "customers.5": ["invalid"],
        "customers.6": ["invalid"],
        "customers.7": ["customer_erased"],
        "options.language": ["invalid_choice"],
        "next_url": ["invalid"],
        "send_email": ["invalid"],
        "leave_out": ["unknown_field"],
    }
    assert not InvitationBatch.objects.exists()


def test_options_that_kapso_would_refuse_start_no_batch(caller: Caller) -> None:
    answer = invite(caller, customers(1), options={"phone_number_area_code": "4"})
    assert problems(answer) == {"options.phone_number_area_code": ["invalid"]}
    assert not InvitationBatch.objects.exists()


def test_number_is_not_reconnected_by_a_batch(caller: Caller) -> None:
    answer = invite(caller, customers(1), options={"reconnect_phone_number": "+14155550100"})
    assert problems(answer) == {"options.reconnect_phone_number": ["unknown_field"]}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, {"purpose": ["required"], "customers": ["required"]}),
        (
            {"purpose": "erase", "customers": []},
            {"purpose": ["invalid_choice"]} | {"customers": ["empty"]},
        ),
        ({"purpose": "invite", "customers": 7}, {"customers": ["not_a_list"]}),
        ({"purpose": "invite", "customers": [1] * 1001}, {"customers": ["max_length"]}),
        ({"purpose": None, "customers": None}, {"purpose": ["null"], "customers": ["null"]}),
        ([], {"body": ["invalid"]}),
        (7, {"body": ["invalid"]}),
    ],
)
def test_invalid_bodies_are_refused(caller: Caller, body: Any, expected: Any) -> None:
    assert problems(caller.post("batches/", body)) == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("options", {}),
        ("next_url", None),
        ("send_email", True),
        ("leave_out_connected", False),
        ("leave_out_invited", False),
    ],
)
def test_reminders_have_no_options(caller: Caller, name: str, value: Any) -> None:
    body = {"purpose": "remind", "customers": [waiting().pk], name: value}
    assert problems(caller.post("batches/", body)) == {name: ["not_for_reminders"]}
    body["customers"] = [99]
    assert problems(caller.post("batches/", body)) == {
        "customers.0": ["does_not_exist"],
        name: ["not_for_reminders"],
    }


def test_missing_settings_start_no_batch(caller: Caller, configure: Any) -> None:
    configure(PUBLIC_URL="")
    assert code(invite(caller, customers(1)), 503) == "not_configured"
    assert not InvitationBatch.objects.exists()


# Work


def test_site_without_workers_works_in_requests(
    caller: Caller, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not invitations.is_background()
    monkeypatch.setattr(invitations, "REQUEST_SECONDS", 0)
    made = invite(caller, customers(3)).json()
    assert (made["state"], made["progress"]["left"]) == ("running", 3)
    assert made["progress"]["next_attempt_at"]
    monkeypatch.undo()
    answer = caller.post(f"batches/{made['id']}/work/")
    assert answer.status_code == 200
    assert (answer.json()["state"], answer.json()["progress"]["done"]) == ("finished", 3)
    assert caller.post(f"batches/{made['id']}/work/").json() == answer.json()
    assert len(sandbox.state()["setup_links"]) == 3


def test_site_with_workers_leaves_the_work_to_them(caller: Caller, sandbox: Sandbox) -> None:
    with queue_without_worker():
        made = invite(caller, customers(3)).json()
        worked = caller.post(f"batches/{made['id']}/work/").json()
        resumed = caller.post(f"batches/{made['id']}/resume/").json()
    assert [one["state"] for one in (made, worked, resumed)] == ["running"] * 3
    assert sandbox.state()["setup_links"] == []


@pytest.mark.django_db(transaction=True)
def test_batch_is_enqueued_where_there_are_workers(caller: Caller, sandbox: Sandbox) -> None:
    with queue_without_worker():
        made = invite(caller, customers(3)).json()
        (queued,) = invitations.work_invitations.get_backend().results
        assert queued.args == [made["id"]]
        assert queued.task.name.endswith("work_invitations")
        queued.task.call(*queued.args)
    assert caller.get(f"batches/{made['id']}/").json()["state"] == "finished"


def test_sync_continues_a_batch(caller: Caller, sandbox: Sandbox, without_work: None) -> None:
    made = invite(caller, customers(3)).json()
    sync.run()
    assert caller.get(f"batches/{made['id']}/").json()["state"] == "finished"


def test_thousand_customers_take_few_queries(
    caller: Caller, sandbox: Sandbox, without_work: None
) -> None:
    pks = customers(1000)
    started = time.monotonic()
    with CaptureQueriesContext(connection) as queries:
        made = invite(caller, pks, headers=KEY)
    seconds = time.monotonic() - started
    assert made.status_code == 201, made.content
    assert made.json()["progress"]["left"] == 1000
    assert len(queries) <= 45
    assert seconds < 10
    with CaptureQueriesContext(connection) as queries:
        page = caller.get(f"batches/{made.json()['id']}/invitations/?page_size=100&page=10")
    assert [row["customer"] for row in page.json()["results"]] == pks[900:]
    assert len(queries) <= 8


def test_emails_that_failed_are_sent_again(caller: Caller, sandbox: Sandbox, settings: Any) -> None:
    pks = customers(2)
    refused = ["550 No"]
    with SMTPServer(
        answer=lambda command, to: refused[0] if command == "RCPT" and "c0" in to else ""
    ) as server:
        use_mail_server(settings, server)
        made = invite(caller, pks, send_email=True).json()
        assert (made["state"], made["progress"]["emails_failed"]) == ("finished", 1)
        url = f"batches/{made['id']}/"
        rows = caller.get(f"{url}invitations/?email_status=failed").json()["results"]
        assert [row["customer"] for row in rows] == pks[:1]
        assert "550" in rows[0]["email_error"]
        refused[0] = ""
        answer = caller.post(f"{url}send-again/")
        assert answer.status_code == 200
        assert answer.json()["progress"]["emails_sent"] == 2
        assert caller.post(f"{url}send-again/").json() == answer.json()
        assert sorted(server.recipients) == ["c0@example.com", "c1@example.com"]
    assert len(sandbox.state()["setup_links"]) == 2


def test_batch_waits_for_the_mail_server(caller: Caller, sandbox: Sandbox, settings: Any) -> None:
    with SMTPServer(answer=lambda command, to: "451 Later" if command == "RCPT" else "") as server:
        use_mail_server(settings, server)
        made = invite(caller, customers(1), send_email=True).json()
    assert (made["state"], made["progress"]["emails_waiting"]) == ("waiting", 1)
    assert made["progress"]["next_attempt_at"] > made["started_at"]


def stop(caller: Caller, sandbox: Sandbox, count: int = 3) -> dict[str, Any]:
    """A batch that stopped since Kapso refused the API key."""
    sandbox.faults(api=[{"kind": "status", "status": 401, "match": ".*"}])
    made = invite(caller, customers(count)).json()
    sandbox.faults(api=[])
    assert made["state"] == "stopped"
    return made  # type: ignore[no-any-return]


def test_batch_that_stopped_is_resumed(caller: Caller, sandbox: Sandbox) -> None:
    made = stop(caller, sandbox)
    assert "API key" in made["stop_reason"]
    assert caller.post(f"batches/{made['id']}/work/").json() == made
    answer = caller.post(f"batches/{made['id']}/resume/")
    assert answer.status_code == 200
    body = answer.json()
    assert (body["state"], body["stop_reason"], body["progress"]["done"]) == ("finished", None, 3)
    assert caller.post(f"batches/{made['id']}/resume/").json() == body
    assert len(sandbox.state()["setup_links"]) == 3


def test_what_failed_is_tried_again(caller: Caller, sandbox: Sandbox) -> None:
    sandbox.faults(api=[{"kind": "status", "status": 422, "match": CREATE_LINK}])
    made = invite(caller, customers(2)).json()
    assert (made["state"], made["progress"]["failed"]) == ("finished", 2)
    rows = caller.get(f"batches/{made['id']}/invitations/?status=failed").json()["results"]
    assert "(422)" in rows[0]["error"]
    sandbox.faults(api=[])
    assert caller.post(f"batches/{made['id']}/resume/").json()["progress"]["done"] == 2


def test_rest_of_a_batch_is_given_up(caller: Caller, sandbox: Sandbox) -> None:
    made = stop(caller, sandbox)
    answer = caller.post(f"batches/{made['id']}/give-up/")
    assert answer.status_code == 200
    body = answer.json()
    assert (body["state"], body["stop_reason"], body["progress"]["failed"]) == ("finished", None, 3)
    assert caller.post(f"batches/{made['id']}/give-up/").json() == body


def test_batch_that_has_not_stopped_is_not_given_up(
    caller: Caller, sandbox: Sandbox, without_work: None
) -> None:
    made = invite(caller, customers(3)).json()
    answer = caller.post(f"batches/{made['id']}/give-up/")
    assert code(answer, 409) == "batch_not_stopped"
    assert caller.get(f"batches/{made['id']}/").json() == made


ACTIONS = ["work", "resume", "send-again", "give-up"]


@pytest.mark.parametrize("action", ACTIONS)
def test_actions_take_no_body(caller: Caller, action: str) -> None:
    made = batch(DONE)
    assert problems(caller.post(f"batches/{made.pk}/{action}/", {"seconds": 9})) == {
        "seconds": ["unknown_field"]
    }
    assert caller.post(f"batches/{made.pk}/{action}/", {}).status_code == 200


# Idempotency


def test_repeated_request_creates_no_second_batch(caller: Caller, sandbox: Sandbox) -> None:
    pks = customers(3)
    first, again = (invite(caller, pks, send_email=True, headers=KEY) for _ in range(2))
    assert first.status_code == again.status_code == 201
    assert first.json() == again.json()
    assert again.headers["Location"] == first.headers["Location"]
    assert again.headers["Idempotent-Replayed"] == "true"
    assert "Idempotent-Replayed" not in first.headers
    assert InvitationBatch.objects.count() == 1
    assert len(outbox.outbox) == 3
    other = invite(caller, pks[:2], send_email=True, headers=KEY)
    assert code(other, 422) == "idempotency_key_reused"


def test_refused_batch_frees_the_key(caller: Caller, sandbox: Sandbox) -> None:
    pks = [make_link().customer_id]
    answer = invite(caller, pks, leave_out_invited=True, headers=KEY)
    assert code(answer, 409) == "nobody_left"
    assert not IdempotentRequest.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_batch_and_key_are_stored_together(caller: Caller, sandbox: Sandbox) -> None:
    pks = customers(3)
    statements: list[str] = []

    def kill_at_the_response(execute: Any, sql: str, *args: Any) -> Any:
        statements.append(sql)
        has_started = any("UPDATE" in one and "invitationbatch" in one for one in statements)
        if has_started and sql.startswith("UPDATE") and "idempotentrequest" in sql:
            raise ProcessKilled
        return execute(sql, *args)

    with connection.execute_wrapper(kill_at_the_response), pytest.raises(ProcessKilled):
        invite(caller, pks, headers=KEY)
    assert not InvitationBatch.objects.exists()
    IdempotentRequest.objects.update(leased_until=utc_now())
    assert invite(caller, pks, headers=KEY).status_code == 201
    assert InvitationBatch.objects.count() == 1


@pytest.mark.django_db(transaction=True)
def test_batch_of_a_process_that_died_while_it_worked_is_returned(
    caller: Caller, sandbox: Sandbox
) -> None:
    pks = customers(3)
    killed = failing_statement("INSERT", "kapso_connect_setuplink", ProcessKilled())
    with killed, pytest.raises(ProcessKilled):
        invite(caller, pks, headers=KEY)
    answer = invite(caller, pks, headers=KEY)
    assert answer.status_code == 201
    assert answer.headers["Idempotent-Replayed"] == "true"
    assert answer.json()["state"] == "running"
    Invitation.objects.update(leased_until=utc_now(), next_attempt_at=utc_now())
    done = caller.post(f"batches/{answer.json()['id']}/work/").json()
    assert (done["state"], done["progress"]["done"]) == ("finished", 3)
    assert len(sandbox.state()["setup_links"]) == SetupLink.objects.count() == 3


# Lists


def test_batches_are_listed_newest_first(caller: Caller) -> None:
    later = {"next_attempt_at": utc_now() + timedelta(minutes=5)}
    made = {
        "finished": batch(DONE, FAILED),
        "reminded": batch(DONE, purpose="remind", send_email=True),
        "running": batch(DONE, {}),
        "leased": batch({**later, "leased_until": utc_now() + timedelta(minutes=1)}),
        "waiting": batch(DONE, later),
        "stopped": batch(DONE, {}, stopped="The API key is wrong."),
    }
    batch(DONE, started_at=None)
    names = {row.pk: name for name, row in made.items()}

    def found(query: str = "") -> list[str]:
        answer = caller.get(f"batches/{query}").json()
        assert answer["count"] == len(answer["results"])
        return [names[row["id"]] for row in answer["results"]]

    assert found() == list(reversed(made))
    assert found("?purpose=remind") == ["reminded"]
    assert found("?state=finished") == ["reminded", "finished"]
    assert found("?state=running") == ["leased", "running"]
    assert found("?state=waiting") == ["waiting"]
    assert found("?state=stopped") == ["stopped"]
    assert found("?state=finished&purpose=invite") == ["finished"]
    assert found("?state=waiting&state=stopped") == ["stopped", "waiting"]
    assert found("?purpose=remind&purpose=invite") == list(reversed(made))
    states = {names[row["id"]]: row["state"] for row in caller.get("batches/").json()["results"]}
    assert states == {
        "finished": "finished",
        "reminded": "finished",
        "running": "running",
        "leased": "running",
        "waiting": "waiting",
        "stopped": "stopped",
    }
    for query in ("state=failures", "purpose=", "customer=1"):
        assert code(caller.get(f"batches/?{query}"), 400) == "invalid_filter"


def test_list_takes_a_fixed_number_of_queries(caller: Caller) -> None:
    counts = []
    for _ in range(2):
        batch(DONE, {}), batch(FAILED)
        with CaptureQueriesContext(connection) as queries:
            assert caller.get("batches/").status_code == 200
        counts.append(len(queries))
    assert counts[0] == counts[1] <= 5


def test_invitations_are_filtered(caller: Caller) -> None:
    made = batch(
        {**DONE, "email_status": "sent"},
        {**DONE, "email_status": "unknown", "email_error": "Who knows?"},
        FAILED,
        {},
        send_email=True,
    )
    batch(DONE)
    url = f"batches/{made.pk}/invitations/"

    def found(query: str) -> list[tuple[Any, Any]]:
        rows = caller.get(f"{url}?{query}").json()["results"]
        return [(row["status"], row["email_status"]) for row in rows]

    assert len(found("")) == 4
    assert found("status=failed") == [("failed", None)]
    assert found("status=pending") == [("pending", None)]
    assert found("status=done&email_status=sent") == [("done", "sent")]
    assert found("email_status=unknown") == [("done", "unknown")]
    assert found("email_status=unknown&email_status=sent") == [
        ("done", "sent"),
        ("done", "unknown"),
    ]
    assert found("status=failed&status=pending") == [("failed", None), ("pending", None)]
    assert found("page=2&page_size=3") == [("pending", None)]
    assert code(caller.get(f"{url}?email_status="), 400) == "invalid_filter"
    assert code(caller.get(f"{url}?page=2"), 404) == "not_found"


def test_draft_of_the_admin_is_not_there(caller: Caller) -> None:
    draft = batch({}, started_at=None)
    assert code(caller.get(f"batches/{draft.pk}/"), 404) == "not_found"
    assert code(caller.get(f"batches/{draft.pk}/invitations/"), 404) == "not_found"
    for action in ACTIONS:
        assert code(caller.post(f"batches/{draft.pk}/{action}/"), 404) == "not_found"
    assert caller.get("batches/").json()["results"] == []


def test_batch_of_deleted_customers_is_finished(caller: Caller) -> None:
    made = batch({}, {})
    Customer.objects.all().delete()
    body = caller.get(f"batches/{made.pk}/").json()
    assert (body["state"], body["progress"]["total"]) == ("finished", 0)


# Permissions


def test_what_a_batch_does_needs_its_permission(sandbox: Sandbox) -> None:
    creator = Caller(make_user("creator", "view_customer", "create_setup_link"))
    sender = Caller(make_user("sender", "view_customer", "send_setup_link"))
    both = Caller(make_user("both", "view_customer", "create_setup_link", "send_setup_link"))
    reminder = {"purpose": "remind", "customers": [waiting().pk]}
    pks = customers(1)
    assert code(invite(creator, pks, send_email=True), 403) == "permission_denied"
    assert code(creator.post("batches/", reminder), 403) == "permission_denied"
    for body in ({}, {"send_email": True}):
        assert code(invite(sender, pks, **body), 403) == "permission_denied"
    assert not InvitationBatch.objects.exists()
    assert invite(creator, pks).status_code == 201
    assert sender.post("batches/", reminder).status_code == 201
    assert invite(both, pks, send_email=True).status_code == 201


def test_batch_is_shown_to_those_who_could_create_it(db: None) -> None:
    invited = batch(DONE)
    emailed = batch(DONE, send_email=True)
    reminded = batch(DONE, send_email=True, purpose="remind")
    creator = Caller(make_user("creator", "change_customer", "create_setup_link"))
    sender = Caller(make_user("sender", "view_customer", "send_setup_link"))
    for made, caller, may_see, may_change in (
        (invited, creator, True, True),
        (emailed, creator, True, False),
        (reminded, creator, True, False),
        (invited, sender, False, False),
        (emailed, sender, False, False),
        (reminded, sender, True, True),
    ):
        statuses = {True: 200, False: 403}
        url = f"batches/{made.pk}/"
        assert caller.get(url).status_code == statuses[may_see]
        assert caller.get(f"{url}invitations/").status_code == statuses[may_see]
        assert caller.post(f"{url}work/").status_code == statuses[may_see]
        for action in ("resume", "send-again", "give-up"):
            assert caller.post(f"{url}{action}/").status_code == statuses[may_change]
    assert creator.get("batches/").status_code == 200
    assert code(sender.get("batches/"), 403) == "permission_denied"


class NotForEve(BasePermission):
    def has_object_permission(self, request: Any, view: Any, obj: Any) -> bool:
        return getattr(obj, "name", "") != "eve"


def test_object_permissions_are_asked_for_each_customer(caller: Caller, configure: Any) -> None:
    configure(API_PERMISSIONS=["tests.api.test_batches.NotForEve"])
    ada, eve = waiting("ada"), waiting("eve")
    body = {"purpose": "remind", "customers": [ada.pk, eve.pk]}
    assert code(caller.post("batches/", body), 403) == "permission_denied"
    assert not InvitationBatch.objects.exists()
    assert caller.post("batches/", {**body, "customers": [ada.pk]}).status_code == 201


class OnlyReads(BasePermission):
    def has_permission(self, request: Any, view: Any) -> bool:
        return bool(request.method == "GET")


def test_permission_to_read_suffices_to_see_batches(caller: Caller, configure: Any) -> None:
    configure(API_PERMISSIONS=["tests.api.test_batches.OnlyReads"])
    made = batch(DONE)
    assert caller.get(f"batches/{made.pk}/").status_code == 200
    assert caller.get(f"batches/{made.pk}/invitations/").status_code == 200
    assert code(caller.post(f"batches/{made.pk}/resume/"), 403) == "permission_denied"


def test_batches_are_limited_as_what_calls_kapso(
    caller: Caller, configure: Any, sandbox: Sandbox
) -> None:
    made = batch(DONE)
    configure(API_THROTTLE_RATES={"kapso": "1/min", "write": "1/min", "read": "1/min"})
    assert caller.post(f"batches/{made.pk}/work/").status_code == 200
    assert code(caller.post(f"batches/{made.pk}/resume/"), 429) == "throttled"
    assert code(invite(caller, customers(1)), 429) == "throttled"
    assert caller.post(f"batches/{made.pk}/send-again/").status_code == 200
    assert code(caller.post(f"batches/{made.pk}/give-up/"), 429) == "throttled"
    assert caller.get("batches/").status_code == 200
    assert code(caller.get(f"batches/{made.pk}/invitations/"), 429) == "throttled"


# Tenants


@pytest.fixture
def tenant(settings: Any) -> Caller:
    settings.ROOT_URLCONF = "tests.sites.tenant_api"
    user = make_user("tenant", is_staff=False, email="own@example.com")
    return Caller(user, "/tenant/v1/")


def test_tenants_see_batches_of_their_customers_alone(tenant: Caller) -> None:
    own, theirs = make_customer(email="own@example.com"), make_customer(email="b@example.com")
    mine = batch({"customer": own})
    batch({"customer": own}, {"customer": theirs})
    batch({"customer": theirs})
    batch()
    answer = tenant.get("batches/").json()
    assert [row["id"] for row in answer["results"]] == [mine.pk]
    assert answer["count"] == 1
    for one in InvitationBatch.objects.exclude(pk=mine.pk):
        unknown = tenant.get("batches/999/")
        for path in (f"batches/{one.pk}/", f"batches/{one.pk}/invitations/"):
            assert code(tenant.get(path), 404) == "not_found"
            assert tenant.get(path).content == unknown.content
        for action in ACTIONS:
            assert code(tenant.post(f"batches/{one.pk}/{action}/"), 404) == "not_found"


def test_tenants_invite_their_own_customers(tenant: Caller, sandbox: Sandbox) -> None:
    own, theirs = make_customer(email="own@example.com"), make_customer(email="b@example.com")
    Customer.objects.update(kapso_id=None)
    answer = invite(tenant, [own.pk, theirs.pk, 999])
    assert problems(answer) == {
        "customers.1": ["does_not_exist"],
        "customers.2": ["does_not_exist"],
    }
    errors = answer.json()["fields"]
    assert errors["customers.1"] == errors["customers.2"]
    assert not InvitationBatch.objects.exists()
    made = invite(tenant, [own.pk], headers=KEY)
    assert made.status_code == 201
    assert made.json()["created_by"] == str(tenant.user.pk)
    assert "/tenant/v1/batches/" in made.headers["Location"]
    (link,) = own.setup_links.all()
    (row,) = tenant.get(f"batches/{made.json()['id']}/invitations/").json()["results"]
    assert (row["customer"], row["setup_link"]) == (own.pk, link.pk)
    assert invite(tenant, [own.pk], headers=KEY).json() == made.json()


def test_repeated_request_requires_access_to_the_batch(tenant: Caller, sandbox: Sandbox) -> None:
    own = make_customer(email="own@example.com", kapso_id=None)
    made = invite(tenant, [own.pk], headers=KEY).json()
    Invitation.objects.create(
        batch_id=made["id"], customer=make_customer(email="b@example.com"), **DONE
    )
    assert code(invite(tenant, [own.pk], headers=KEY), 404) == "not_found"


def test_tenants_read_no_details_of_kapso_and_the_mail_server(tenant: Caller) -> None:
    details = {"last_error": "Kapso (422): secret", "email_error": "550 secret"}
    own = [make_customer(email="own@example.com") for _ in range(5)]
    staff = make_user("staff")
    stopped = batch(
        {"customer": own[0], **details},
        {"customer": own[1], **DONE, **details, "last_error": "", "email_status": "failed"},
        {"customer": own[2], **DONE, **details, "last_error": "", "email_status": "unknown"},
        {"customer": own[3], **DONE, "email_status": "no_address", "email_error": "No address."},
        {"customer": own[4], **DONE, "email_status": "sent"},
        stopped="The API key is secret.",
        created_by=staff,
    )
    body = tenant.get(f"batches/{stopped.pk}/").json()
    assert (body["state"], body["created_by"]) == ("stopped", None)
    assert body["stop_reason"]
    rows = tenant.get(f"batches/{stopped.pk}/invitations/").json()["results"]
    assert "secret" not in f"{body} {rows}"
    assert [bool(row["error"]) for row in rows] == [True, False, False, False, False]
    assert [bool(row["email_error"]) for row in rows] == [True, True, True, True, False]


def test_tenants_read_why_a_customer_was_not_reminded(tenant: Caller) -> None:
    own = make_customer(email="own@example.com", connect_key=new_connect_key())
    made = tenant.post("batches/", {"purpose": "remind", "customers": [own.pk]})
    assert made.json()["state"] == "finished"
    (row,) = tenant.get(f"batches/{made.json()['id']}/invitations/").json()["results"]
    assert row["error"] == "has no personal link"


def test_staff_read_the_details(caller: Caller) -> None:
    made = batch({**FAILED, "email_error": "550 No", "email_status": "failed"}, {}, stopped="Why")
    assert caller.get(f"batches/{made.pk}/").json()["stop_reason"] == "Why"
    (row, _left) = caller.get(f"batches/{made.pk}/invitations/").json()["results"]
    assert (row["error"], row["email_error"]) == (FAILED["last_error"], "550 No")


def test_links_of_a_batch_have_their_events(caller: Caller, sandbox: Sandbox) -> None:
    pks = customers(2)
    invite(caller, pks, send_email=True)
    for kind in ("setup_link_created", "setup_link_sent"):
        events = TimelineEvent.objects.filter(kind=kind, actor=caller.user)
        assert sorted(events.values_list("customer_id", flat=True)) == pks
