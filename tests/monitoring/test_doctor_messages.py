"""manage.py kapso_doctor and NUMBER_WEBHOOK: the numbers' webhooks, and the site's own view."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from kapso_connect.exceptions import KapsoError
from kapso_connect.kapso.client import KapsoClient
from kapso_connect.models import Connection
from kapso_connect.monitoring import doctor
from kapso_connect.monitoring.doctor import Diagnosis, Finding, Level
from kapso_connect.testing import Sandbox
from kapso_connect.webhooks import number_webhooks
from kapso_connect.webhooks.signature import is_valid

from ..factories import make_connection, remote_customer
from ..faulty_server import FaultyServer, answer

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("sqlite_options")]

SECRET, OLD = "the secret of messages", "the older secret"
RECEIVED = "whatsapp.message.received"


def check(name: str = "number_webhooks") -> dict[str, Finding]:
    run = Diagnosis()
    run.findings += [Finding(done, Level.OK, "") for done in ("migrations", "kapso.key")]
    return {finding.check: finding for finding in doctor.CHECKS[name](run)}


@pytest.fixture
def view() -> Iterator[FaultyServer]:
    """The site's view: refuses what is not signed, and accepts the rest."""
    with FaultyServer() as server:
        server.will(answer(401), answer(400))
        yield server


@pytest.fixture
def number(sandbox: Sandbox, view: FaultyServer, configure: Any) -> Connection:
    configure(NUMBER_WEBHOOK={"url": view.url + "/messages/", "secret": [SECRET, OLD]})
    customer = remote_customer(sandbox)
    (number,) = sandbox.state()["phone_numbers"]
    return make_connection(customer, phone_number_id=number["phone_number_id"])


def register(connection: Connection) -> None:
    number_webhooks.register(connection, KapsoClient.from_settings(), source="sync")


def test_without_the_setting_nothing_is_said(sandbox: Sandbox) -> None:
    make_connection()
    assert check() == {}
    assert sandbox.requests() == []


def test_registered_numbers_are_right(number: Connection, view: FaultyServer) -> None:
    register(number)
    found = check()
    assert {name: finding.level for name, finding in found.items()} == {
        "number_webhooks.site": Level.OK,
        "number_webhooks": Level.OK,
    }
    unsigned, *signed = view.requests
    assert "x-webhook-signature" not in unsigned.headers
    for request, secret in zip(signed, (SECRET, OLD), strict=True):
        assert is_valid(request.body, request.headers["x-webhook-signature"], [secret])


def test_number_without_its_webhook_is_a_problem(number: Connection) -> None:
    finding = check()["number_webhooks"]
    assert finding.level is Level.PROBLEM
    assert "numbers without one: 1" in finding.message
    assert "kapso_sync" in finding.hint
    assert finding.data == {"connected": 1, "missing": 1, "changes": []}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"active": False}, "active"),
        ({"secret_key": "another"}, "secret"),
        ({"events": ["whatsapp.message.read"]}, "events"),
    ],
)
def test_webhook_that_differs_is_a_problem(
    number: Connection, changes: dict[str, Any], named: str
) -> None:
    register(number)
    client = KapsoClient.from_settings()
    number_id, pk = number.phone_number_id, number.number_webhook_id
    client.update_number_webhook(number_id, pk, changes)
    finding = check()["number_webhooks"]
    assert (finding.level, finding.data["changes"]) == (Level.PROBLEM, [named])
    register(number)
    assert check()["number_webhooks"].level is Level.OK


def test_duplicate_is_a_problem(number: Connection, view: FaultyServer) -> None:
    register(number)
    KapsoClient.from_settings().create_number_webhook(
        number.phone_number_id, url=view.url + "/messages", secret_key=SECRET, events=[RECEIVED]
    )
    assert check()["number_webhooks"].data["changes"] == ["duplicates"]


@pytest.mark.parametrize(
    ("replies", "level", "words"),
    [
        ([401, 200], Level.OK, "nothing else"),
        ([403, 422], Level.OK, "nothing else"),
        ([401, 500], Level.WARNING, "fails on a body"),
        ([200, 200], Level.PROBLEM, "does not refuse"),
        ([400, 400], Level.PROBLEM, "does not refuse"),
        ([401, 401], Level.PROBLEM, "secret 1 and 2 of the 2"),
        ([401, 200, 401], Level.PROBLEM, "secret 2 of the 2"),
        ([403, 403], Level.PROBLEM, "secret 1 and 2"),
        ([404, 404], Level.PROBLEM, "no view for messages"),
        ([405, 405], Level.PROBLEM, "no view for messages"),
        ([302, 302], Level.PROBLEM, "no view for messages"),
        ([502, 502], Level.PROBLEM, "does not refuse"),
    ],
)
def test_the_sites_view_is_tried(
    number: Connection, view: FaultyServer, replies: list[int], level: Level, words: str
) -> None:
    view.will(*map(answer, replies))
    finding = check()["number_webhooks.site"]
    assert finding.level is level
    assert words in finding.message
    assert bool(finding.hint) is (level is not Level.OK)
    assert SECRET not in str(finding)


def test_site_that_does_not_answer_is_a_problem(number: Connection, configure: Any) -> None:
    configure(NUMBER_WEBHOOK={"url": "http://127.0.0.1:9/messages/?token=hush", "secret": SECRET})
    finding = check()["number_webhooks.site"]
    assert finding.level is Level.PROBLEM
    assert "hush" not in str(finding)


def test_setting_that_cannot_work_is_a_problem(number: Connection, configure: Any) -> None:
    configure(NUMBER_WEBHOOK={"url": "/messages/", "secret": None})
    assert check()["number_webhooks.settings"].level is Level.PROBLEM


def test_webhooks_that_are_left_over_are_named(number: Connection, configure: Any) -> None:
    register(number)
    configure(NUMBER_WEBHOOK=None)
    finding = check()["number_webhooks.left"]
    assert (finding.level, finding.data) == (Level.WARNING, {"count": 1})


def test_while_kapso_is_away_the_view_is_checked(number: Connection, sandbox: Sandbox) -> None:
    sandbox.faults(api=[{"match": ".*", "kind": "status", "status": 503}])
    run = Diagnosis()
    run.findings += [Finding(done, Level.OK, "") for done in ("migrations", "kapso.key")]
    found = doctor.CHECKS["number_webhooks"](run)
    assert next(found).check == "number_webhooks.site"
    with pytest.raises((doctor.Skipped, KapsoError)):
        next(found)
    sandbox.clear_faults()


@pytest.mark.parametrize("reason", [*doctor.FAILED_DELIVERIES])
def test_each_reason_says_what_to_do_about_messages(reason: str) -> None:
    assert doctor.FAILED_MESSAGES[reason]


def test_failed_deliveries_of_messages_are_counted(configure: Any) -> None:
    created_at = (datetime.now(timezone.utc) - timedelta(minutes=1)).isoformat()
    url = "https://site.example/messages/"
    failed = [
        {
            **{"id": str(pk), "event": RECEIVED, "status": "failed", "attempt_count": 4},
            **{"response_status": status, "created_at": created_at, "webhook_url": url},
        }
        for pk, status in enumerate((500, 500, 404))
    ]
    with FaultyServer() as kapso:
        kapso.will(answer(200, {"data": failed, "paging": {"cursors": {}, "next": None}}))
        configure(
            API_BASE_URL=kapso.url,
            PUBLIC_URL="https://site.example",
            NUMBER_WEBHOOK={"url": "/messages/", "secret": SECRET},
        )
        found = check("deliveries")
    assert set(found) == {"deliveries.messages.server_error", "deliveries.messages.not_found"}
    assert found["deliveries.messages.server_error"].data["count"] == 2
    assert "no view" in found["deliveries.messages.not_found"].message
    assert "deliveries" not in found


def test_webhook_hint_of_messages_is_not_that_of_connections() -> None:
    assert not any("kapso_webhook" in hint for hint in doctor.FAILED_MESSAGES.values())
