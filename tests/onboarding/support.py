"""What several test modules of this folder need."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from django.db import DEFAULT_DB_ALIAS, connections
from django.db.backends.base.base import BaseDatabaseWrapper

from kapso_connect.models import Connection, Customer, TimelineEvent, WebhookEvent
from kapso_connect.testing import Sandbox

ResultT = TypeVar("ResultT")


def events(kind: str) -> list[TimelineEvent]:
    return list(TimelineEvent.objects.filter(kind=kind))


def last_delivery() -> WebhookEvent:
    return WebhookEvent.objects.latest("pk")


def reload(connection: Connection) -> Connection:
    return Connection.objects.get(pk=connection.pk)


def links_at_kapso(sandbox: Sandbox) -> list[dict[str, Any]]:
    return list(sandbox.state()["setup_links"])


def at_once(*actions: Callable[[], object]) -> None:
    """Run the actions at the same moment, each with a database connection of its own."""
    barrier = threading.Barrier(len(actions))

    def run(action: Callable[[], object]) -> None:
        try:
            Customer.objects.exists()  # connects
            barrier.wait(timeout=10)
            action()
        finally:
            connections.close_all()

    with ThreadPoolExecutor(len(actions)) as executor:
        for done in [executor.submit(run, action) for action in actions]:
            done.result()


def wait_until_deleted(sandbox: Sandbox, connection: Connection) -> None:
    for _ in range(200):
        time.sleep(0.02)
        numbers = sandbox.state()["phone_numbers"]
        if connection.phone_number_id not in [n["phone_number_id"] for n in numbers]:
            return
    raise AssertionError("the sandbox still has the number")


def during_request(
    sandbox: Sandbox,
    match: str,
    action: Callable[[], object],
    call: Callable[[], ResultT],
    *,
    kind: str = "slow",
    rules_afterwards: tuple[dict[str, Any], ...] = (),
) -> ResultT:
    """Run ``call`` in a thread of its own, and ``action`` while ``call`` waits for the response to
    the API request that matches ``match``. Return what ``call`` returns, or raise what it raises.

    With the ``kind`` "slow" Kapso has carried out the request by then, and the rest of its response
    arrives after ``action``. With "hang" it breaks the connection then, and a GET, PATCH or DELETE
    is repeated; use it where the response has no body. ``rules_afterwards`` are the API faults from
    then on.
    """

    def call_and_disconnect() -> ResultT:
        try:
            return call()
        finally:
            connections.close_all()

    def is_waiting() -> bool:
        caught = [row for row in sandbox.requests() if row["fault"] == kind]
        return bool(caught) and (kind == "hang" or bool(caught[0]["status"]))

    sandbox.faults(api=[{"match": match, "kind": kind, "seconds": 30, "times": 1}])
    with ThreadPoolExecutor(1) as executor:
        result = executor.submit(call_and_disconnect)
        try:
            deadline = time.monotonic() + 10
            while not is_waiting():
                assert not result.done(), "the request was not made"
                assert time.monotonic() < deadline
                time.sleep(0.01)
            action()
        finally:
            sandbox.faults(api=list(rules_afterwards))
        return result.result()


def check_no_transaction_during(sandbox: Sandbox, match: str, call: Callable[[], object]) -> None:
    """Run ``call``, and check that it holds no transaction and no lock while it waits for the
    response to the API request that matches ``match``."""
    used: list[BaseDatabaseWrapper] = []

    def call_and_remember() -> None:
        used.append(connections[DEFAULT_DB_ALIAS])
        call()

    def check() -> None:
        # The thread may be busy with something else for a moment before it waits.
        deadline = time.monotonic() + 5
        while used[0].in_atomic_block:
            assert time.monotonic() < deadline, "a transaction is open while Kapso is asked"
            time.sleep(0.01)
        started = time.monotonic()
        Customer.objects.update(email="changed@example.com")
        assert time.monotonic() - started < 2, "a lock is held while Kapso is asked"

    during_request(sandbox, match, check, call_and_remember)
