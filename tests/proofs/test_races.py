"""Everything at the same instant, on each database: recorded once, signalled once, answered 200."""

from __future__ import annotations

import json
import random
import time
import uuid
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from kapso_connect.testing import Sandbox

from ..conftest import API_KEY
from ..factories import CREATED, DELETED, new_number_id
from ..sites.proof_site.apps import NOT_SHOWN_YET_SECONDS
from .support import Answer, Request, Site, delivery, form

SIMULTANEOUS = 50
RESTRICTED = "whatsapp.account.restricted"


@pytest.fixture(scope="module")
def kapso() -> Iterator[Sandbox]:
    """An API that sends no webhooks: the tests send them."""
    with Sandbox(api_key=API_KEY, webhook_secret="unused", teardown_seconds=0) as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def running_site(proof_database: str, kapso: Sandbox) -> Iterator[Site]:
    with Site(proof_database, KAPSO_PROOF_API_URL=kapso.url) as site:
        yield site


@pytest.fixture
def site(running_site: Site, kapso: Sandbox) -> Iterator[Site]:
    running_site.reset()
    kapso.reset()
    start = len(running_site.output())
    yield running_site
    log = running_site.output()[start:].lower()
    for sign in ("traceback", "deadlock", "database is locked"):
        assert sign not in log, log[-5000:]


def payload(customer_id: str, number: str) -> dict[str, Any]:
    return {"phone_number_id": number, "project": {"id": "p"}, "customer": {"id": customer_id}}


def assert_all_ok(answers: list[Answer]) -> None:
    assert {answer.status for answer in answers} == {200}
    assert max(answer.seconds for answer in answers) < 10, "Kapso does not wait longer"


def test_the_same_delivery_50_times(site: Site) -> None:
    number = new_number_id()
    same = delivery(payload(str(uuid.uuid4()), number), event=CREATED, key="the-same")
    answers = site.send_at_once([same] * SIMULTANEOUS)
    assert_all_ok(answers)
    assert sum(answer.json["received"] for answer in answers) == 1
    rows = site.rows()
    assert rows.inbox == {"processed": 1}
    assert rows.connections == {number: "connected"}
    assert rows.kinds() == rows_of(connected=1)
    assert rows.signals() == {"whatsapp_connected": 1}
    rows.assert_each_signal_received_once()


def test_the_same_event_under_50_keys(site: Site) -> None:
    body = payload(str(uuid.uuid4()), new_number_id())
    answers = site.send_at_once([delivery(body, event=CREATED) for _ in range(SIMULTANEOUS)])
    assert_all_ok(answers)
    rows = site.rows()
    assert rows.inbox == {"processed": sum(answer.json["received"] for answer in answers)}
    assert len(rows.connections) == len(rows.customers) == 1
    assert rows.signals() == {"whatsapp_connected": 1}
    rows.assert_each_signal_received_once()


def test_50_numbers_of_one_unknown_customer(site: Site) -> None:
    customer = str(uuid.uuid4())
    numbers = [new_number_id() for _ in range(SIMULTANEOUS)]
    assert_all_ok(
        site.send_at_once(
            [delivery(payload(customer, number), event=CREATED) for number in numbers]
        )
    )
    rows = site.rows()
    assert rows.customers == [customer]
    assert rows.connections == dict.fromkeys(numbers, "connected")
    assert rows.kinds() == rows_of(connected=SIMULTANEOUS)
    assert rows.signals() == {"whatsapp_connected": SIMULTANEOUS}
    rows.assert_each_signal_received_once()


@pytest.mark.parametrize("attempt", range(3))
def test_webhook_redirect_and_sync_for_one_connection(
    site: Site, kapso: Sandbox, attempt: int
) -> None:
    external_id = str(uuid.uuid4())
    invited = site.send(form("/proof/invite/", external_customer_id=external_id)).json
    returns_to = urlsplit(kapso.complete(invited["url"]))
    (number,) = kapso.state()["phone_numbers"]
    body = payload(number["customer_id"], number["phone_number_id"])
    redirect = Request("GET", f"{returns_to.path}?{returns_to.query}")
    sync = Request("POST", "/proof/sync/")
    requests = [redirect] * 5 + [sync] * 3 + [delivery(body, event=CREATED) for _ in range(5)]
    random.Random(attempt).shuffle(requests)
    answers = site.send_at_once(requests)
    # One view of the page asks Kapso; others may wait.
    assert_all_ok([answer for answer in answers if answer.status != 202])
    assert [answer.status for answer in answers].count(202) <= 4
    rows = site.rows()
    assert rows.connections == {number["phone_number_id"]: "connected"}
    assert rows.kinds() == rows_of(setup_link_created=1, connected=1)
    assert rows.signals() == {"setup_link_created": 1, "whatsapp_connected": 1}
    assert [link["status"] for link in rows.links] == ["used"]
    rows.assert_each_signal_received_once()


def test_two_invitations_of_one_customer(site: Site, kapso: Sandbox) -> None:
    external_id = str(uuid.uuid4())
    invite = form("/proof/invite/", external_customer_id=external_id)
    answers = site.send_at_once([invite] * 2)
    assert_all_ok(answers)
    rows = site.rows()
    (customer,) = kapso.state()["customers"]
    assert rows.customers == [customer["id"]]
    active = [link["id"] for link in kapso.state()["setup_links"] if link["status"] == "active"]
    assert [link["kapso_id"] for link in rows.links if link["status"] == "active"] == active
    assert len(active) == 1
    assert rows.signals() == {"setup_link_created": len(rows.links)}
    rows.assert_each_signal_received_once()


def test_created_and_deleted_at_once(site: Site) -> None:
    # Kapso no longer has the number: whatever comes last, it ends disconnected.
    body = payload(str(uuid.uuid4()), new_number_id())
    requests = [delivery(body, event=event) for event in (CREATED, DELETED) * (SIMULTANEOUS // 2)]
    answers = site.send_at_once(requests)
    assert {answer.status for answer in answers} <= {200, 429}
    wait_until_the_api_is_believed()
    site.sync()
    rows = site.rows()
    assert list(rows.connections.values()) == ["disconnected"]
    kinds = rows.kinds()
    assert kinds in ({}, rows_of(connected=1, disconnected=1))
    # A deletion waits while the API may not show the new number yet; ``kapso_sync`` does not.
    assert "failed" not in rows.inbox
    rows.assert_each_signal_received_once()


def test_an_account_is_restricted_while_its_numbers_are_connected(site: Site) -> None:
    customer = str(uuid.uuid4())
    numbers = [new_number_id() for _ in range(20)]
    chance = random.Random(1)

    def restricted() -> Request:
        named = [{"id": number} for number in chance.sample(numbers, len(numbers))]
        return delivery(
            {
                "id": "one-and-the-same",
                "event": RESTRICTED,
                "business_account_id": "waba",
                "occurred_at": "2999-01-01T00:00:00Z",  # which is taken for now
                "phone_numbers": named,
                "restrictions": [{"type": "RESTRICTED_BIZ_INITIATED_MESSAGING"}],
            },
            event=RESTRICTED,
        )

    requests = [
        delivery({**payload(customer, number), "business_account_id": "waba"}, event=CREATED)
        for number in numbers
    ]
    requests += [restricted() for _ in range(SIMULTANEOUS - len(numbers))]
    chance.shuffle(requests)
    assert_all_ok(site.send_at_once(requests))
    rows = site.rows()
    assert rows.connections == dict.fromkeys(numbers, "connected")
    kinds = rows.kinds()
    assert kinds["connected"] == len(numbers)
    updated = [number for _, kind, _, number in rows.timeline if kind == "account_updated"]
    assert len(updated) == len(set(updated)), "one event, body to a number twice"
    rows.assert_each_signal_received_once()
    # Now that all are connected, the event is applied to the numbers that it missed.
    assert_all_ok(site.send_at_once([restricted() for _ in range(10)]))
    rows = site.rows()
    assert rows.kinds() == rows_of(connected=len(numbers), account_updated=len(numbers))
    rows.assert_each_signal_received_once()


def test_a_failure_page_that_is_loaded_20_times(site: Site, kapso: Sandbox) -> None:
    invited = site.send(form("/proof/invite/", external_customer_id=str(uuid.uuid4()))).json
    returns_to = urlsplit(kapso.complete(invited["url"], outcome="facebook_auth_failed"))
    page = Request("GET", f"{returns_to.path}?{returns_to.query}")
    assert_all_ok(site.send_at_once([page] * 20))
    rows = site.rows()
    assert rows.signals() == {"setup_link_created": 1, "whatsapp_setup_failed": 1}
    rows.assert_each_signal_received_once()


def test_ten_clicks_on_a_connect_url_whose_link_has_expired(site: Site, kapso: Sandbox) -> None:
    invited = site.send(form("/proof/invite/", external_customer_id=str(uuid.uuid4()))).json
    kapso.complete(invited["url"], outcome="link_expired")
    answers = site.send_at_once([Request("POST", invited["connect_path"])] * 10)
    assert {answer.status for answer in answers} == {200}
    active = [link["url"] for link in kapso.state()["setup_links"] if link["status"] == "active"]
    assert {answer.location for answer in answers} == set(active[-1:])
    rows = site.rows()
    assert len(rows.links) == len(kapso.state()["setup_links"]) == 2
    assert rows.kinds()["setup_link_opened"] == 2  # one for each link
    rows.assert_each_signal_received_once()


def ask(path: str, body: Any, key: str = "") -> Request:
    headers = {"Content-Type": "application/json"}
    if key:
        headers["Idempotency-Key"] = key
    return Request("POST", f"/api/whatsapp/v1/{path}", json.dumps(body).encode(), headers)


def test_a_link_is_asked_for_ten_times_under_one_key(site: Site, kapso: Sandbox) -> None:
    customer = site.send(ask("customers/", {"name": "A"})).json["id"]
    wanted = ask("setup-links/", {"customer": customer}, "the-same")
    answers = site.send_at_once([wanted] * 10)
    assert {answer.status for answer in answers} <= {201, 409}
    made = [answer.json for answer in answers if answer.status == 201]
    busy = [answer.json["code"] for answer in answers if answer.status == 409]
    assert set(busy) <= {"idempotency_key_in_use"}
    assert made
    (link,) = kapso.state()["setup_links"]
    # Whoever comes later is body the same.
    made.append(site.send(wanted).json)
    assert {answer["kapso_id"] for answer in made} == {link["id"]}
    assert len({answer["id"] for answer in made}) == 1
    rows = site.rows()
    assert (len(rows.links), rows.keys) == (1, 1)
    assert rows.signals() == {"setup_link_created": 1}
    rows.assert_each_signal_received_once()


def test_a_customer_is_asked_for_ten_times_under_one_key(site: Site) -> None:
    wanted = ask("customers/", {"name": "A"}, "the-same")
    answers = site.send_at_once([wanted] * 10)
    assert {answer.status for answer in answers} <= {201, 409}
    made = {answer.json["id"] for answer in [*answers, site.send(wanted)] if answer.status == 201}
    assert len(made) == 1
    rows = site.rows()
    assert (len(rows.customers), rows.keys) == (1, 1)


def test_an_external_id_is_asked_for_ten_times(site: Site) -> None:
    wanted = ask("customers/", {"name": "A", "external_customer_id": "acme"})
    answers = site.send_at_once([wanted] * 10)
    assert sorted(answer.status for answer in answers) == [201] + [409] * 9
    taken = [answer.json["code"] for answer in answers if answer.status == 409]
    assert set(taken) == {"external_customer_id_taken"}
    assert len(site.rows().customers) == 1


def test_a_number_is_disconnected_ten_times(site: Site, kapso: Sandbox) -> None:
    external_id = str(uuid.uuid4())
    invited = site.send(form("/proof/invite/", external_customer_id=external_id)).json
    returns_to = urlsplit(kapso.complete(invited["url"]))
    site.send(Request("GET", f"{returns_to.path}?{returns_to.query}"))
    listed = Request("GET", "/api/whatsapp/v1/connections/")
    (number,) = site.send(listed).json["results"]
    wait_until_the_api_is_believed()
    answers = site.send_at_once([ask(f"connections/{number['id']}/disconnect/", {})] * 10)
    assert {answer.status for answer in answers} == {200}
    assert {answer.json["status"] for answer in answers} == {"disconnected"}
    rows = site.rows()
    assert rows.kinds()["disconnected"] == 1
    rows.assert_each_signal_received_once()


def wait_until_the_api_is_believed() -> None:
    """Wait until a number that the API does not show is gone, and not too new."""
    time.sleep(NOT_SHOWN_YET_SECONDS + 0.2)


def rows_of(**kinds: int) -> dict[str, int]:
    return kinds
