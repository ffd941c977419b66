"""The process is killed with SIGKILL at every step, one step at a time, and then recovered.

Between the first byte of a request and its last signal a process is killed before each SQL
statement, on each side of each COMMIT, in the middle of the body, and inside the receivers. Kapso
repeats what was not answered 200, and ``kapso_sync`` runs once.

KAPSO_TEST_CRASHES=1 runs every scenario on every database, which takes some minutes.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

import pytest

from kapso_connect.testing import Sandbox

from ..conftest import API_KEY
from ..factories import CREATED, DELETED, new_number_id
from .support import Request, Rows, delivery, environment

LEASE = 0.02
LONG_AGO = "2026-01-01T00:00:00Z"
WROTE = "after the receiver wrote"
RECORDS = 'UPDATE "kapso_connect_timelineevent"'


class Process:
    """The process of ``proof_site.crashing``."""

    def __init__(self, database_url: str, api_url: str) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        fd = self._socket.fileno()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.sites.proof_site.crashing", str(fd)],
            env=environment(
                database_url,
                KAPSO_PROOF_API_URL=api_url,
                KAPSO_PROOF_LEASE=str(LEASE),
                KAPSO_PROOF_FAST_SQLITE="1" if database_url.startswith("sqlite") else "",
            ),
            pass_fds=[fd],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._process.communicate()  # it ends with its input
        self._socket.close()

    def ask(self, **command: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        assert not answer["failed"], "see standard error"
        return answer

    def do(self, **command: Any) -> dict[str, Any]:
        self.ask(**command)
        return self.answer()

    def serve(self, request: Request, die_at: int = 0) -> tuple[int | None, dict[str, Any]]:
        """Return the status of the response (None if the process died before it) and the trace."""
        self.ask(do="serve", die_at=die_at)
        connection = http.client.HTTPConnection(*self._socket.getsockname(), timeout=30)
        status = None
        try:
            connection.request(request.method, request.target, request.body, request.headers)
            status = connection.getresponse().status
        except (OSError, http.client.HTTPException):
            pass
        finally:
            connection.close()
        return status, self.answer()


@dataclass
class Scenario:
    """The rows at the start, the request, and the rows that are expected at the end."""

    request: Request | None  # None: kapso_sync itself is killed
    connections: dict[str, str]
    timeline: dict[tuple[str, str], int]  # by kind and source
    inbox: dict[str, int]
    there: dict[str, Any] = field(default_factory=dict)
    is_delivery: bool = True


@pytest.fixture(scope="module")
def kapso() -> Iterator[Sandbox]:
    with Sandbox(api_key=API_KEY, webhook_secret="unused", teardown_seconds=0) as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def process(proof_database: str, kapso: Sandbox) -> Iterator[Process]:
    with Process(proof_database, kapso.url) as process:
        yield process


def payload(customer: str, number: str) -> dict[str, Any]:
    return {"phone_number_id": number, "customer": {"id": customer}}


def connected(kapso: Sandbox, customer: str, number: str) -> Scenario:
    kapso.add_number(customer_id=customer, phone_number_id=number)
    return Scenario(
        delivery(payload(customer, number), event=CREATED),
        connections={number: "connected"},
        timeline={("connected", "webhook"): 1, ("webhook_received", "webhook"): 1},
        inbox={"processed": 1},
    )


def batch(kapso: Sandbox, customer: str, number: str) -> Scenario:
    numbers = [number, new_number_id()]
    for each in numbers:
        kapso.add_number(customer_id=customer, phone_number_id=each)
    body = {"type": CREATED, "batch": True, "data": [payload(customer, each) for each in numbers]}
    return Scenario(
        delivery(body, event=CREATED),
        connections=dict.fromkeys(numbers, "connected"),
        timeline={("connected", "webhook"): 2, ("webhook_received", "webhook"): 2},
        inbox={"processed": 2},
    )


def disconnected(kapso: Sandbox, customer: str, number: str) -> Scenario:
    return Scenario(
        delivery(payload(customer, number), event=DELETED),
        connections={number: "disconnected"},
        timeline={("disconnected", "webhook"): 1, ("webhook_received", "webhook"): 1},
        inbox={"processed": 1},
        there={"connection": {"status": "connected", "connected_at": LONG_AGO}},
    )


def confirmed(kapso: Sandbox, customer: str, number: str) -> Scenario:
    """The API has to confirm it, so the delivery is acted on after it was stored."""
    kapso.add_number(customer_id=customer, phone_number_id=number)
    return Scenario(
        delivery(payload(customer, number), event=CREATED),
        connections={number: "connected"},
        timeline={("connected", "webhook"): 1, ("webhook_received", "webhook"): 1},
        inbox={"processed": 1},
        there={"connection": {"status": "disconnected", "disconnected_at": LONG_AGO}},
    )


def redirected(kapso: Sandbox, customer: str, number: str) -> Scenario:
    """A browser does not repeat its request: ``kapso_sync`` finds the number by the API."""
    kapso.add_number(customer_id=customer, phone_number_id=number)
    query = urlencode({"setup_link_id": "link", "status": "completed", "phone_number_id": number})
    return Scenario(
        Request("GET", f"/whatsapp/success/?{query}"),
        connections={number: "connected"},
        timeline={("connected", "*"): 1},
        inbox={},
        there={"link": "link"},
        is_delivery=False,
    )


def recovered(kapso: Sandbox, customer: str, number: str) -> Scenario:
    """``kapso_sync`` itself dies, and runs again."""
    other = new_number_id()
    for each in (number, other):
        kapso.add_number(customer_id=customer, phone_number_id=each)
    stored = {"event": CREATED, "payload": payload(customer, number)}
    return Scenario(
        None,
        connections={number: "connected", other: "connected"},
        timeline={("connected", "webhook"): 1, ("connected", "sync"): 1},
        inbox={"processed": 1},
        there={"stored": [stored]},
    )


SCENARIOS = [connected, disconnected, confirmed, redirected, batch, recovered]
QUICK_SCENARIOS = {"sqlite": SCENARIOS[:2], "postgres": SCENARIOS[:1], "mysql": SCENARIOS[:1]}


@pytest.mark.parametrize("make_scenario", SCENARIOS)
def test_killed_at_every_step(
    request: pytest.FixtureRequest, kapso: Sandbox, proof_database: str, make_scenario: Any
) -> None:
    kind = proof_database.partition(":")[0]
    if os.environ.get("KAPSO_TEST_CRASHES") != "1" and make_scenario not in QUICK_SCENARIOS.get(
        kind, []
    ):
        pytest.skip("takes long: KAPSO_TEST_CRASHES=1")
    process: Process = request.getfixturevalue("process")
    kapso.reset()
    kapso.seed(1)
    (customer,) = kapso.state()["customers"]
    number = new_number_id()
    scenario = make_scenario(kapso, customer["id"], number)
    there = {"customer": customer["id"], "number": number, "connection": None, "stored": []}
    there |= {"link": "", **scenario.there}
    die_at, killed, repeats = 0, True, 0
    process.do(do="prepare", **{"with": there})
    while killed:
        die_at += 1
        trace = die(process, scenario, die_at)
        after = process.do(do="recover", **{"with": there})["result"]
        assert after["errors"] == []
        killed = trace["killed"]
        repeats += check(Rows(**after["rows"]), scenario, trace["steps"] if killed else [])
    assert die_at > 15, "the steps are not recorded"
    assert repeats, "no crash was between a signal's delivery and its record"


def die(process: Process, scenario: Scenario, die_at: int) -> dict[str, Any]:
    """Kill the process at a step, repeat the delivery as Kapso does, and return the trace."""
    if scenario.request is None:
        return process.do(do="sync", die_at=die_at)
    status, trace = process.serve(scenario.request, die_at)
    assert status == 200 or trace["killed"]
    if status is None and scenario.is_delivery:
        assert process.serve(scenario.request)[0] == 200, "Kapso's second attempt"
    return trace


def check(rows: Rows, scenario: Scenario, steps: list[str]) -> int:
    """Compare the rows with the scenario; return how many signals were rightly repeated."""
    at = f"killed at step {len(steps)}: {steps[-3:]}"
    assert rows.connections == scenario.connections, at
    assert rows.inbox == scenario.inbox, at
    anywhere = {source for _, source in scenario.timeline} == {"*"}
    timeline = Counter((kind, "*" if anywhere else source) for _, kind, source, _ in rows.timeline)
    assert timeline == scenario.timeline, at
    assert rows.undelivered == [], at
    received = Counter(event for _, event, _ in rows.received)
    assert set(received) == {row[0] for row in rows.timeline}, at
    repeats = sum(received.values()) - len(received)
    assert repeats == is_between_delivery_and_record(steps), at
    return repeats


def is_between_delivery_and_record(steps: list[str]) -> bool:
    received = recorded = False
    for step in steps:
        received = (received and not recorded) or step == WROTE
        recorded = received and step.replace("`", '"').startswith(RECORDS)
    return received
