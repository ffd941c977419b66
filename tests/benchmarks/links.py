"""How long it takes to make 100 setup links: python -m tests.benchmarks.links

Ours makes them as the admin's action does, as a batch, and one after the other; the peers post to
the API and keep nothing. Each round has new customers, who are known at Kapso unless the row says
otherwise, and the sandbox answers at once or after 50 ms. It takes 1 ms of one core for a link, so
at 0 ms a loop of posts waits for it a third of the time, and nothing else is delayed by it.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from kapso_connect.testing import Sandbox

from .measuring import OURS, Row, finish, in_turn, is_installed, parser
from .routing import counted_queries, site_with_sandbox

PEER = "kapso-whatsapp-cloud-api"
BATCH = f"{OURS}, a batch"
OPTIONS = {
    "success_redirect_url": "https://testserver/whatsapp/success/",
    "failure_redirect_url": "https://testserver/whatsapp/failed/",
}
KEEPS_NOTHING = "stores nothing; its customers are registered"
REGISTERS = "registers the customers first: three requests for each link"


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    options = parser("links").parse_args(arguments)
    with site_with_sandbox(options.database_url, "kapso_bench_links") as sandbox:
        links, rounds = (10, 1) if options.quick else (100, 5)
        rows = [row for ms in (0, 50) for row in compare(sandbox, links, ms, rounds)]
    return finish(rows, options.json)


def compare(sandbox: Sandbox, links: int, ms: int, rounds: int) -> list[Row]:
    """Return the rows of one latency."""
    from kapso_connect.onboarding.invitations import MAX_CONCURRENT_REQUESTS

    world = World(sandbox, links, ms / 1000)
    contests = {
        BATCH: Contest(world, as_a_batch),
        f"{BATCH}, new customers": Contest(world, as_a_batch, REGISTERS, registered=False),
        f"{OURS}, one by one": Contest(world, one_by_one),
        "requests.post in a loop": Contest(world, posts, KEEPS_NOTHING),
    }
    peer = Peer(sandbox.url) if is_installed("kapso_whatsapp") else None
    if peer:
        for at_once in sorted({MAX_CONCURRENT_REQUESTS, links}):
            way = partial(peer.gather, at_once=at_once)
            contests[f"{PEER}, {at_once} at a time"] = Contest(world, way, KEEPS_NOTHING)
    else:
        print(f"{PEER} is not installed and left out.", flush=True)
    try:
        return in_turn(
            f"{links} links, answers after {ms} ms",
            {who: contest.round for who, contest in contests.items()},
            rounds=rounds,
            base=BATCH,
            facts={who: contest.facts() for who, contest in contests.items()},
        )
    finally:
        if peer:
            peer.close()


@dataclass(frozen=True)
class Invited:
    """The customers of one round: their primary keys here, and Kapso's ids."""

    api: str
    pks: list[int]
    kapso_ids: list[str]

    def urls(self) -> Iterator[str]:
        for kapso_id in self.kapso_ids:
            yield f"{self.api}/platform/v1/customers/{kapso_id}/setup_links"


@dataclass(frozen=True)
class World:
    """The sandbox, which answers after so many seconds, and our database."""

    sandbox: Sandbox
    links: int
    seconds: float

    def invite(self, registered: bool) -> Invited:
        """Return customers without links, after deleting all others."""
        from kapso_connect.models import Customer, InvitationBatch

        InvitationBatch.objects.all().delete()
        Customer.objects.all().delete()
        self.sandbox.reset()
        self.sandbox.seed(self.links if registered else 0)
        kapso_ids: list[str] = [row["id"] for row in self.sandbox.state()["customers"]]
        if self.seconds:
            self.sandbox.faults(api=[{"kind": "slow", "seconds": self.seconds}])
        customers = Customer.objects.bulk_create(
            Customer(name=f"Customer {number}", kapso_id=kapso_ids[number] if registered else None)
            for number in range(self.links)
        )
        return Invited(self.sandbox.url, [customer.pk for customer in customers], kapso_ids)


@dataclass(frozen=True)
class Contest:
    """One way to make the links, and what there is to say of it."""

    world: World
    way: Callable[[Invited], object]
    remark: str = ""
    registered: bool = True

    def round(self) -> float:
        invited = self.world.invite(self.registered)
        started = time.perf_counter()
        self.way(invited)
        took = time.perf_counter() - started
        made = {link["customer_id"] for link in self.world.sandbox.state()["setup_links"]}
        assert len(made) == self.world.links, f"{len(made)} customers have a link"
        return took

    def facts(self) -> dict[str, Any]:
        """Return what one round asks of the database and of Kapso."""
        invited = self.world.invite(self.registered)
        with counted_queries() as queries:
            self.way(invited)
        requests = len(self.world.sandbox.requests())
        return {"queries": queries.count, "requests": requests, "remark": self.remark}


# The ways


def as_a_batch(invited: Invited) -> None:
    from kapso_connect.onboarding import invitations

    batch = invitations.make_batch(invited.pks)
    invitations.start(batch)
    invitations.work(batch.pk)


def one_by_one(invited: Invited) -> None:
    from kapso_connect import onboarding
    from kapso_connect.kapso.client import KapsoClient
    from kapso_connect.models import Customer

    with KapsoClient.from_settings(budget=3600) as client:
        for customer in Customer.objects.filter(pk__in=invited.pks):
            onboarding.create_setup_link(customer, client=client)


def posts(invited: Invited) -> None:
    import requests

    for url in invited.urls():
        answer = requests.post(
            url, json={"setup_link": OPTIONS}, headers={"X-API-Key": "benchmark"}, timeout=30
        )
        answer.raise_for_status()


class Peer:
    """The community's client, which like ours keeps its connections from one round to the next."""

    def __init__(self, api: str) -> None:
        from kapso_whatsapp import KapsoPlatformClient

        self.loop = asyncio.new_event_loop()
        self.client = KapsoPlatformClient(api_key="benchmark", base_url=f"{api}/platform/v1")

    def gather(self, invited: Invited, *, at_once: int) -> None:
        async def make_all() -> None:
            turns = asyncio.Semaphore(at_once)

            async def make(kapso_id: str) -> None:
                async with turns:
                    await self.client.setup_links.create(kapso_id, **OPTIONS)

            await asyncio.gather(*map(make, invited.kapso_ids))

        self.loop.run_until_complete(make_all())

    def close(self) -> None:
        self.loop.run_until_complete(self.client.close())
        self.loop.close()


if __name__ == "__main__":
    main(sys.argv[1:])
