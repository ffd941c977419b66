"""The process killed with SIGKILL at every step, one step a time; then what recovery makes of it.

Between the first byte of a request and its last signal a process is killed before each SQL
statement, on each side of each COMMIT, in the middle of the body, and inside the receivers. Kapso
repeats what was not answered 200, and ``kapso_sync`` runs, once.

KAPSO_TEST_CRASHES=1 plays every story on every database: some minutes.
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
        """Return the status of the answer, None where the process died before, and its trace."""
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
class Story:
    """What is there, what is asked, and what must have come of it in the end."""

    request: Request | None  # None: kapso_sync itself is what dies
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


def connected(kapso: Sandbox, customer: str, number: str) -> Story:
    kapso.add_number(customer_id=customer, phone_number_id=number)
    return Story(
        delivery(payload(customer, number), event=CREATED),
        connections={number: "connected"},
        timeline={("connected", "webhook"): 1, ("webhook_received", "webhook"): 1},
        inbox={"processed": 1},
    )


def batch(kapso: Sandbox, customer: str, number: str) -> Story:
    numbers = [number, new_number_id()]
    for each in numbers:
        kapso.add_number(customer_id=customer, phone_number_id=each)
    body = {"type": CREATED, "batch": True, "data": [payload(customer, each) for each in numbers]}
    return Story(
        delivery(body, event=CREATED),
        connections=dict.fromkeys(numbers, "connected"),
        timeline={("connected", "webhook"): 2, ("webhook_received", "webhook"): 2},
        inbox={"processed": 2},
    )


def disconnected(kapso: Sandbox, customer: str, number: str) -> Story:
    return Story(
        delivery(payload(customer, number), event=DELETED),
        connections={number: "disconnected"},
        timeline={("disconnected", "webhook"): 1, ("webhook_received", "webhook"): 1},
        inbox={"processed": 1},
        there={"connection": {"status": "connected", "connected_at": LONG_AGO}},
    )


def confirmed(kapso: Sandbox, customer: str, number: str) -> Story:
    """The API has to confirm it, so the delivery is acted on after it was stored."""
    kapso.add_number(customer_id=customer, phone_number_id=number)
    return Story(
        delivery(payload(customer, number), event=CREATED),
        connections={number: "connected"},
        timeline={("connected", "webhook"): 1, ("webhook_received", "webhook"): 1},
        inbox={"processed": 1},
        there={"connection": {"status": "disconnected", "disconnected_at": LONG_AGO}},
    )


def redirected(kapso: Sandbox, customer: str, number: str) -> Story:
    """A browser does not come again: the API knows what it would have said."""
    kapso.add_number(customer_id=customer, phone_number_id=number)
    query = urlencode({"setup_link_id": "link", "status": "completed", "phone_number_id": number})
    return Story(
        Request("GET", f"/whatsapp/success/?{query}"),
        connections={number: "connected"},
        timeline={("connected", "*"): 1},
        inbox={},
        there={"link": "link"},
        is_delivery=False,
    )


def recovered(kapso: Sandbox, customer: str, number: str) -> Story:
    """``kapso_sync`` itself dies, and runs again."""
    other = new_number_id()
    for each in (number, other):
        kapso.add_number(customer_id=customer, phone_number_id=each)
    stored = {"event": CREATED, "payload": payload(customer, number)}
    return Story(
        None,
        connections={number: "connected", other: "connected"},
        timeline={("connected", "webhook"): 1, ("connected", "sync"): 1},
        inbox={"processed": 1},
        there={"stored": [stored]},
    )


STORIES = [connected, disconnected, confirmed, redirected, batch, recovered]
BRIEF = {"sqlite": STORIES[:2], "postgres": STORIES[:1], "mysql": STORIES[:1]}


@pytest.mark.parametrize("story", STORIES)
def test_killed_at_every_step(
    request: pytest.FixtureRequest, kapso: Sandbox, proof_database: str, story: Any
) -> None:
    kind = proof_database.partition(":")[0]
    if os.environ.get("KAPSO_TEST_CRASHES") != "1" and story not in BRIEF.get(kind, []):
        pytest.skip("takes long: KAPSO_TEST_CRASHES=1")
    process: Process = request.getfixturevalue("process")
    kapso.reset()
    kapso.seed(1)
    (customer,) = kapso.state()["customers"]
    number = new_number_id()
    told = story(kapso, customer["id"], number)
    there = {"customer": customer["id"], "number": number, "connection": None, "stored": []}
    there |= {"link": "", **told.there}
    die_at, killed, repeats = 0, True, 0
    process.do(do="prepare", **{"with": there})
    while killed:
        die_at += 1
        trace = die(process, told, die_at)
        after = process.do(do="recover", **{"with": there})["result"]
        assert after["errors"] == []
        killed = trace["killed"]
        repeats += check(Rows(**after["rows"]), told, trace["steps"] if killed else [])
    assert die_at > 15, "the steps are not seen"
    assert repeats, "no crash was between a signal's delivery and its record"


def die(process: Process, told: Story, die_at: int) -> dict[str, Any]:
    """Let the process die at a step, and Kapso do what it does then; return the trace."""
    if told.request is None:
        return process.do(do="sync", die_at=die_at)
    status, trace = process.serve(told.request, die_at)
    assert status == 200 or trace["killed"]
    if status is None and told.is_delivery:
        assert process.serve(told.request)[0] == 200, "Kapso's second attempt"
    return trace


def check(rows: Rows, told: Story, steps: list[str]) -> int:
    """Hold the rows against the story; return how many signals were repeated, rightly."""
    at = f"killed at step {len(steps)}: {steps[-3:]}"
    assert rows.connections == told.connections, at
    assert rows.inbox == told.inbox, at
    anywhere = {source for _, source in told.timeline} == {"*"}
    timeline = Counter((kind, "*" if anywhere else source) for _, kind, source, _ in rows.timeline)
    assert timeline == told.timeline, at
    assert rows.undelivered == [], at
    heard = Counter(event for _, event, _ in rows.heard)
    assert set(heard) == {row[0] for row in rows.timeline}, at
    repeats = sum(heard.values()) - len(heard)
    assert repeats == is_between_delivery_and_record(steps), at
    return repeats


def is_between_delivery_and_record(steps: list[str]) -> bool:
    told = recorded = False
    for step in steps:
        told = (told and not recorded) or step == WROTE
        recorded = told and step.replace("`", '"').startswith(RECORDS)
    return told
