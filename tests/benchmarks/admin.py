"""How the admin's pages fare with many rows: python -m tests.benchmarks.admin

Builds a site of 100 customers and one of 100,000 with 1,000,000 rows of the timeline, asks both
for the same pages in turn through Django's test client, and prints the median time and the number
of queries of each page.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import django

from .routing import Router, own_databases

SIZES = ("small", "large")
APP = "/admin/kapso_connect"
PAGES = {
    "customers": f"{APP}/customer/",
    **{
        f"customers, {standing}": f"{APP}/customer/?whatsapp_status={standing}"
        for standing in (
            "not_invited",
            "invited",
            "opened",
            "waiting",
            "failed",
            "connected",
            "disconnected",
        )
    },
    "customers, searched": f"{APP}/customer/?q=company+0000",
    "companies": "/admin/crm/company/",
    "companies, connected": "/admin/crm/company/?whatsapp_status=connected",
    "companies, not invited": "/admin/crm/company/?whatsapp_status=not_invited",
    "setup links": f"{APP}/setuplink/",
    "connections": f"{APP}/connection/",
    "timeline": f"{APP}/connectionevent/",
    "timeline, one kind": f"{APP}/connectionevent/?kind__exact=connected",
    "inbox": f"{APP}/webhookevent/",
    "one customer": f"{APP}/customer/1/change/",
    "overview, 30 days": f"{APP}/customer/overview/",
    "overview, a year": f"{APP}/customer/overview/?days=365",
}


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    given = arguments_of(arguments)
    names = ["kapso_bench_small", "kapso_bench"]
    with own_databases(given.database_url, *names) as urls:
        os.environ.update(zip(["KAPSO_BENCH_SMALL", "KAPSO_BENCH_LARGE"], urls, strict=True))
        os.environ["DJANGO_SETTINGS_MODULE"] = "tests.benchmarks.settings"
        django.setup()
        from django.db import connections

        try:
            build("small", 100, 1000)
            build("large", given.customers, given.events)
            results = list(measure(given.rounds))
        finally:
            connections.close_all()
    show(results, given)
    if given.json:
        Path(given.json).write_text(json.dumps(results, indent=2) + "\n")
    return results


def arguments_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.admin")
    parser.add_argument(
        "--database-url",
        default="postgres://postgres@127.0.0.1:5432/postgres",
        help="A PostgreSQL server on which databases may be created, or sqlite://.",
    )
    parser.add_argument("--customers", type=int, default=100_000)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--json", help="A file to write the figures to.")
    return parser.parse_args(arguments)


def build(size: str, customers: int, events: int) -> None:
    from django.contrib.auth.models import User
    from django.core.management import call_command

    from .data import Population

    started = time.monotonic()
    Router.chosen = size
    call_command("migrate", database=size, verbosity=0)
    User.objects.create_superuser("staff")
    Population(customers, events).insert()
    took = time.monotonic() - started
    print(f"{size}: {customers:,} customers, {events:,} events, made in {took:.0f} s", flush=True)


def measure(rounds: int) -> Iterator[dict[str, Any]]:
    from django.contrib.auth.models import User
    from django.db import connections
    from django.test import Client
    from django.test.utils import CaptureQueriesContext

    clients = {}
    for size in SIZES:
        Router.chosen = size
        clients[size] = Client()
        clients[size].force_login(User.objects.get())

    def get(size: str, url: str) -> float:
        Router.chosen = size
        started = time.perf_counter()
        response = clients[size].get(url)
        took = time.perf_counter() - started
        assert response.status_code == 200, f"{url}: {response.status_code}"
        return took

    for page, url in PAGES.items():
        queries = {}
        for size in SIZES:
            get(size, url)
            with CaptureQueriesContext(connections[size]) as captured:
                get(size, url)
            queries[size] = len(captured)
        times: dict[str, list[float]] = {size: [] for size in SIZES}
        for turn in range(rounds):
            for size in SIZES if turn % 2 else SIZES[::-1]:
                times[size].append(get(size, url))
        seconds = {size: statistics.median(times[size]) for size in SIZES}
        yield {"page": page, "url": url, "seconds": seconds, "queries": queries}


def show(results: list[dict[str, Any]], given: argparse.Namespace) -> None:
    print(f"\nmedian of {given.rounds}, ms; load of the machine {os.getloadavg()[0]:.1f}")
    print(f"{'':24}{'100':>9}{given.customers:>10,}{'ratio':>8}{'queries':>10}")
    for row in results:
        small, large = (1000 * row["seconds"][size] for size in SIZES)
        few, many = (row["queries"][size] for size in SIZES)
        queries = f"{few}" if few == many else f"{few} → {many}"
        print(f"{row['page']:24}{small:9.1f}{large:10.1f}{large / small:8.2f}{queries:>10}")


if __name__ == "__main__":
    main(sys.argv[1:])
