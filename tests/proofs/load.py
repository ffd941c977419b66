"""Load: signed deliveries over keep-alive connections against gunicorn; nothing lost or doubled.

    python -m tests.proofs.load [--deliveries 20000] [--database postgres] …

Starts the proof site on a new database and posts from another process. A third of the
deliveries repeat an earlier one, under its key. Fails unless every answer is 200, each delivery is
stored once, each number is connected once, and each signal is received once. The site has one
receiver, of whatsapp_connected, which writes a row.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.proofs.support import DATABASES, Request, Site, delivery, new_database


@dataclass(frozen=True)
class Figures:
    deliveries: int
    distinct: int
    seconds: float
    latencies: list[float]  # seconds, sorted
    statuses: Counter[int]

    def percentile(self, share: float) -> float:
        return self.latencies[min(int(len(self.latencies) * share), len(self.latencies) - 1)]

    def __str__(self) -> str:
        return (
            f"{self.deliveries} deliveries ({self.distinct} distinct) in {self.seconds:.1f} s: "
            f"{self.deliveries / self.seconds:.0f}/s, p50 {self.percentile(0.5) * 1000:.1f} ms, "
            f"p99 {self.percentile(0.99) * 1000:.1f} ms, longest {self.latencies[-1] * 1000:.0f} "
            f"ms; answers {dict(self.statuses)}"
        )


def plan(deliveries: int, seed: int) -> list[Request]:
    """Return the deliveries: two thirds distinct, each other one a repeat of one of those."""
    distinct = deliveries - deliveries // 3
    customers = [str(uuid.uuid4()) for _ in range(max(1, distinct // 3))]
    requests = [
        delivery(
            {"phone_number_id": str(10**14 + n), "customer": {"id": customers[n % len(customers)]}},
            event="whatsapp.phone_number.created",
            key=f"delivery-{n}",
        )
        for n in range(distinct)
    ]
    chance = random.Random(seed)
    requests += chance.sample(requests, min(distinct, deliveries - distinct))
    chance.shuffle(requests)
    return requests


def post_all(port: int, requests: Sequence[Request], connections: int) -> dict[str, Any]:
    """Post over this many keep-alive connections; return the time, latencies and statuses."""
    latencies: list[float] = []
    statuses: Counter[int] = Counter()
    waiting = iter(requests)
    lock = threading.Lock()

    def post() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        while True:
            with lock:
                request = next(waiting, None)
            if request is None:
                break
            started = time.perf_counter()
            connection.request(request.method, request.target, request.body, request.headers)
            response = connection.getresponse()
            response.read()
            latency = time.perf_counter() - started
            with lock:
                latencies.append(latency)
                statuses[response.status] += 1
        connection.close()

    threads = [threading.Thread(target=post) for _ in range(connections)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {
        "seconds": time.perf_counter() - started,
        "latencies": latencies,
        "statuses": dict(statuses),
    }


def run(
    database_url: str, *, deliveries: int, workers: int, threads: int, connections: int, seed: int
) -> Figures:
    """Run it on the site and return the figures. Raise AssertionError if something is wrong."""
    variables = {"KAPSO_PROOF_CONN_MAX_AGE": "60", "KAPSO_PROOF_SIGNAL": "whatsapp_connected"}
    with Site(database_url, workers=workers, threads=threads, **variables) as site:
        site.reset()
        job = {"port": site.port, "count": deliveries, "seed": seed, "connections": connections}
        poster = subprocess.run(
            [sys.executable, "-m", "tests.proofs.load", "--post", json.dumps(job)],
            stdout=subprocess.PIPE,
            check=True,
            text=True,
        )
        result = json.loads(poster.stdout)
        statuses = Counter({int(status): n for status, n in result["statuses"].items()})
        distinct = deliveries - deliveries // 3
        figures = Figures(
            deliveries, distinct, result["seconds"], sorted(result["latencies"]), statuses
        )
        assert statuses == {200: deliveries}, (figures, site.output()[-5000:])
        rows = site.rows()
    assert rows.inbox == {"processed": distinct}
    numbers = {str(10**14 + n) for n in range(distinct)}
    assert rows.connections == dict.fromkeys(numbers, "connected")
    assert rows.kinds() == {"connected": distinct}
    assert Counter(number for name, _, number in rows.received if name == "whatsapp_connected") == (
        dict.fromkeys(numbers, 1)
    )
    rows.assert_each_signal_received_once()
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--deliveries", type=int, default=20_000)
    parser.add_argument("--database", choices=DATABASES, default="postgres")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=4, help="of each worker")
    parser.add_argument("--connections", type=int, default=8, help="kept open by the poster")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--post", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.post:
        job = json.loads(options.post)
        requests = plan(job["count"], job["seed"])
        print(json.dumps(post_all(job["port"], requests, job["connections"])))
        return
    with (
        tempfile.TemporaryDirectory() as folder,
        new_database(options.database, Path(folder)) as url,
    ):
        print(
            f"{options.database}, gunicorn with {options.workers} workers of {options.threads} "
            f"threads, {options.connections} connections"
        )
        print(
            run(
                url,
                deliveries=options.deliveries,
                workers=options.workers,
                threads=options.threads,
                connections=options.connections,
                seed=options.seed,
            )
        )


if __name__ == "__main__":
    main()
