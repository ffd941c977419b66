"""How long it takes to invite many customers: python -m tests.benchmarks.invitations

Creates the links of 1,000 customers one after the other, and those of 1,000 others as a batch,
against a sandbox that answers after 50 ms, and prints both times.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import django

from kapso_connect.testing import Sandbox

from .routing import own_databases


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    given = arguments_of(arguments)
    with (
        own_databases(given.database_url, "kapso_bench_invitations") as [url],
        Sandbox(api_key="benchmark") as sandbox,
    ):
        os.environ |= {
            "KAPSO_BENCH_SMALL": url,
            "KAPSO_BENCH_API": sandbox.url,
            "DJANGO_SETTINGS_MODULE": "tests.benchmarks.settings",
        }
        django.setup()
        from django.core.management import call_command
        from django.db import connections

        try:
            call_command("migrate", database="small", verbosity=0)
            sandbox.faults(api=[{"kind": "slow", "seconds": given.answer_ms / 1000}])
            ways = {"one by one": one_by_one, "as a batch": as_a_batch}
            seconds = {name: timed(way, given.links) for name, way in ways.items()}
        finally:
            connections.close_all()
    ratio = seconds["one by one"] / seconds["as a batch"]
    print(f"{given.links:,} links, the API answers after {given.answer_ms} ms")
    print(f"load of the machine {os.getloadavg()[0]:.1f}")
    for name, took in seconds.items():
        print(f"{name}: {took:.1f} s, {given.links / took:.0f} links a second")
    print(f"{ratio:.1f} times as fast")
    result = {**seconds, "ratio": ratio}
    if given.json:
        Path(given.json).write_text(json.dumps(result, indent=2) + "\n")
    return result


def arguments_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.invitations")
    parser.add_argument(
        "--database-url",
        default="postgres://postgres@127.0.0.1:5432/postgres",
        help="A PostgreSQL server on which databases may be created, or sqlite://.",
    )
    parser.add_argument("--links", type=int, default=1000)
    parser.add_argument("--answer-ms", type=int, default=50)
    parser.add_argument("--json", help="A file to write the figures to.")
    return parser.parse_args(arguments)


def timed(way: Callable[[list[int]], None], count: int) -> float:
    from kapso_connect.models import Customer, SetupLink

    prefix = way.__name__
    Customer.objects.bulk_create(
        Customer(name=f"{prefix} {number}", external_customer_id=f"{prefix}-{number}")
        for number in range(count)
    )
    customers = Customer.objects.filter(external_customer_id__startswith=prefix)
    pks = list(customers.values_list("pk", flat=True))
    started = time.monotonic()
    way(pks)
    took = time.monotonic() - started
    made = SetupLink.objects.filter(customer__in=customers)
    assert made.count() == made.values("customer").distinct().count() == count
    return took


def one_by_one(pks: list[int]) -> None:
    from kapso_connect import onboarding
    from kapso_connect.client import KapsoClient
    from kapso_connect.models import Customer

    with KapsoClient.from_settings(budget=3600) as client:
        for customer in Customer.objects.filter(pk__in=pks):
            onboarding.create_setup_link(customer, client=client)


def as_a_batch(pks: list[int]) -> None:
    from kapso_connect import invitations

    batch = invitations.make_batch(pks)
    invitations.start(batch)
    invitations.work(batch.pk)


if __name__ == "__main__":
    main(sys.argv[1:])
