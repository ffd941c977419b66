"""A paced client keeps below the number of requests that Kapso allows in a minute."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from kapso_connect.exceptions import KapsoRateLimited
from kapso_connect.kapso import http
from kapso_connect.kapso.client import KapsoClient
from tests.cases import slow_after
from tests.faulty_server import FaultyServer, Limited, answer

CUSTOMER = {"data": {"id": "1", "name": "Ada", "created_at": "2026-01-02T03:04:05Z"}}
THREADS = 16


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    with FaultyServer() as server:
        yield server


def ask(server: FaultyServer, count: int, *, paced: bool, budget: float = 10) -> None:
    """Make so many requests in ``THREADS`` threads, each with a client of its own."""

    def get_customer(_index: int) -> object:
        client = KapsoClient("key", base_url=server.url, budget=budget, paced=paced)
        return client.get_customer("1")

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(get_customer, range(count)))


def counts(limit: int, left: int) -> dict[str, str]:
    return {"X-RateLimit-Limit": str(limit), "X-RateLimit-Remaining": str(left)}


@pytest.mark.parametrize("allowed", slow_after(1, [(10, 30), (40, 100), (1, 5)]))
def test_paced_requests_of_many_threads_are_never_refused(
    server: FaultyServer, monkeypatch: pytest.MonkeyPatch, allowed: tuple[int, int]
) -> None:
    limit, count = allowed
    monkeypatch.setattr(http, "RATE_LIMIT_SECONDS", 0.4)
    kapso = Limited(limit, 0.4, lambda: CUSTOMER)
    server.will(kapso)
    ask(server, count, paced=True)
    assert kapso.refused == 0
    assert len(server.requests) == count
    with pytest.raises(KapsoRateLimited):
        ask(server, count, paced=False)


def test_a_tenth_is_left_to_others(server: FaultyServer) -> None:
    kapso = Limited(50, 1000, lambda: CUSTOMER)
    server.will(kapso)
    with pytest.raises(KapsoRateLimited, match=r"kept for webhooks.* in 60 seconds") as caught:
        ask(server, 100, paced=True)
    assert caught.value.retry_after == pytest.approx(60, abs=2)
    assert 45 - THREADS <= len(server.requests) <= 45
    assert kapso.refused == 0
    before = len(server.requests)
    ask(server, 5, paced=False)  # at once, as a webhook does
    assert len(server.requests) == before + 5
    assert kapso.refused == 0


def test_one_request_finds_out_what_a_new_minute_allows(server: FaultyServer) -> None:
    server.will(answer(200, CUSTOMER, counts(100, 0)))
    with pytest.raises(KapsoRateLimited):
        ask(server, 20, paced=True)
    assert len(server.requests) == 1


def test_what_kapso_names_no_limit_for_is_not_paced(server: FaultyServer) -> None:
    server.will(
        answer(404, {"error": "gone"}),
        answer(200, CUSTOMER),
        answer(200, CUSTOMER, {"X-RateLimit-Remaining": "few"}),
    )
    with pytest.raises(Exception, match="gone"):
        ask(server, 1, paced=True)
    started = time.monotonic()
    ask(server, 50, paced=True)
    assert time.monotonic() - started < 5
    assert len(server.requests) == 51


def test_other_keys_are_counted_apart(server: FaultyServer) -> None:
    server.will(answer(200, CUSTOMER, counts(100, 0)), answer(200, CUSTOMER))
    for key in ("one", "two"):
        KapsoClient(key, base_url=server.url, paced=True).get_customer("1")
    with pytest.raises(KapsoRateLimited):
        KapsoClient("one", base_url=server.url, paced=True).get_customer("1")
