"""How pages and lists fare with many rows: python -m tests.benchmarks.pages

Builds a site of 100 customers and one of 100,000 with 1,000,000 rows of the timeline, and asks both
for the same pages of the admin and lists of the REST API in turn, through Django's test client. The
small site is the base: a ratio of 1 means that the page does not care how many rows there are.

Where the small site has too few to fill a list, the large one shows as many, and once more a full
page.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import date, timedelta
from typing import Any
from unittest import mock

import django

from .measuring import Row, finish, in_turn, parser
from .routing import Router, own_databases

APP = "/admin/kapso_connect"
API = "/api/whatsapp/v1"
STATUSES = (
    *("not_invited", "invited", "opened", "confirming", "failed"),
    *("connected", "disconnected"),
)
TODAY = date.today()
LAST_YEAR = f"start={TODAY - timedelta(days=364)}&end={TODAY}"
PAGES = {
    "admin: customers": f"{APP}/customer/",
    **{f"admin: customers, {one}": f"{APP}/customer/?whatsapp_status={one}" for one in STATUSES},
    "admin: customers, needing attention": f"{APP}/customer/?attention=any",
    "admin: customers, not healthy": f"{APP}/customer/?attention=health",
    "admin: customers, searched": f"{APP}/customer/?q=company+0000",
    "admin: customers, searched by number": f"{APP}/customer/?q=0415+00",
    "admin: customers, invited in a year": f"{APP}/customer/?funnel=invited&{LAST_YEAR}",
    "admin: customers, failed in a year": (
        # Those who have connected since: each row has a number to show.
        f"{APP}/customer/?funnel=failed&whatsapp_status=connected&{LAST_YEAR}"
    ),
    "admin: customers, idle": f"{APP}/customer/?idle=3",
    "admin: companies": "/admin/crm/company/",
    "admin: companies, connected": "/admin/crm/company/?whatsapp_status=connected",
    "admin: companies, not invited": "/admin/crm/company/?whatsapp_status=not_invited",
    "admin: companies, needing attention": "/admin/crm/company/?attention=any",
    "admin: setup links": f"{APP}/setuplink/",
    "admin: connections": f"{APP}/connection/",
    "admin: timeline": f"{APP}/timelineevent/",
    "admin: timeline, one kind": f"{APP}/timelineevent/?kind__exact=connected",
    "admin: inbox": f"{APP}/webhookevent/",
    "admin: app index": f"{APP}/",
    "admin: one customer": f"{APP}/customer/1/change/",
    "admin: overview, 30 days": f"{APP}/customer/overview/",
    "admin: overview, a year": f"{APP}/customer/overview/?days=365",
    "API: customers": f"{API}/customers/",
    **{f"API: customers, {one}": f"{API}/customers/?status={one}" for one in STATUSES},
    "API: customers, searched": f"{API}/customers/?search=company+0000",
    "API: one by external id": f"{API}/customers/?external_customer_id=crm-7",
    "API: status of one": f"{API}/customers/7/status/",
    "API: setup links": f"{API}/setup-links/",
    "API: setup links, active": f"{API}/setup-links/?status=active",
    "API: setup links of one": f"{API}/setup-links/?customer=7",
    "API: connections": f"{API}/connections/",
    "API: connections, connected": f"{API}/connections/?status=connected",
    "API: timeline": f"{API}/events/",
    "API: timeline, second page": f"{API}/events/ next",
    "API: timeline, one kind": f"{API}/events/?kind=connected",
    "API: timeline of one": f"{API}/events/?customer=1",
}
"""The address of each page; " next" stands for the page that it leads on to."""


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    options = parser("pages")
    options.add_argument("--customers", type=int, help="By default 100,000.")
    options.add_argument("--rounds", type=int, help="By default 15.")
    options.add_argument("--only", default="", help="Pages that have this in their names.")
    options = options.parse_args(arguments)
    few, many = (100, 200) if options.quick else (100, 100_000)
    many = options.customers or many
    rounds = options.rounds or (1 if options.quick else 15)
    with own_databases(options.database_url, "kapso_bench_small", "kapso_bench_large") as urls:
        os.environ.update(zip(["KAPSO_BENCH_SMALL", "KAPSO_BENCH_LARGE"], urls, strict=True))
        os.environ["DJANGO_SETTINGS_MODULE"] = "tests.benchmarks.settings"
        django.setup()
        from django.db import connections

        try:
            sizes = {
                f"{customers:,} customers": database
                for database, customers in (("small", few), ("large", many))
            }
            build("small", few)
            build("large", many)
            rows = list(measure(sizes, rounds, options.only))
        finally:
            connections.close_all()
    return finish(rows, options.json)


def build(database: str, customers: int) -> None:
    from django.contrib.auth.models import User
    from django.core.management import call_command

    from .data import Population

    started = time.monotonic()
    Router.chosen = database
    call_command("migrate", database=database, verbosity=0)
    User.objects.create_superuser("staff")
    Population(customers, 10 * customers).insert()
    took = time.monotonic() - started
    print(f"{customers:,} customers, {10 * customers:,} events, made in {took:.0f} s", flush=True)


def measure(sizes: dict[str, str], rounds: int, only: str) -> Iterator[Row]:
    from django.core.cache import cache

    sites = {size: Site(database) for size, database in sizes.items()}
    base, large = sites
    for page, address in PAGES.items():
        if only not in page:
            continue
        cache.clear()  # the API counts requests there
        asks = {size: Ask(site, site.url_of(address)) for size, site in sites.items()}
        few, many = (len_of(ask()) for ask in asks.values())
        if few < many:
            asks = {
                base: asks[base],
                large: replace(asks[large], rows=max(few, 1)),
                f"{large}, a full page": asks[large],
            }
        remarks = [f"{rows} rows" if rows else "" for rows in (few, min(few, many), many)]
        yield from in_turn(
            page,
            {who: ask.timed for who, ask in asks.items()},
            rounds=rounds,
            base=base,
            facts={
                who: {"queries": ask.queries(), "remark": remark}
                for (who, ask), remark in zip(asks.items(), remarks, strict=False)
            },
        )


class Site:
    """One of the two sites, and its member of staff, whose browser has a session."""

    def __init__(self, database: str) -> None:
        from django.contrib.auth.models import User
        from django.test import Client

        self.database = Router.chosen = database
        self.client = Client()
        self.client.force_login(User.objects.get())

    def url_of(self, address: str) -> str:
        url, _, leads_on = address.partition(" ")
        return self.get(url).json()[leads_on] if leads_on else url

    def get(self, url: str) -> Any:
        Router.chosen = self.database
        response = self.client.get(url)
        assert response.status_code == 200, f"{url}: {response.status_code}"
        return response


@dataclass(frozen=True)
class Ask:
    """Asks a site for a page; a list shows at most ``rows``, or as many as it does by itself."""

    site: Site
    url: str
    rows: int | None = None

    def __call__(self) -> Any:
        with ExitStack() as stack:
            for kind, name in lists() if self.rows else ():
                stack.enter_context(mock.patch.object(kind, name, self.rows))
            return self.site.get(self.url)

    def timed(self) -> None:
        self()

    def queries(self) -> int:
        from django.db import connections
        from django.test.utils import CaptureQueriesContext

        self()  # what is remembered from then on is not counted
        with CaptureQueriesContext(connections[self.site.database]) as captured:
            self()
        return len(captured)


def lists() -> Iterator[tuple[object, str]]:
    """Yield where each list has the number of its rows."""
    from django.contrib import admin

    from kapso_connect.api.pagination import NumberedPagination, TimelinePagination

    for model_admin in admin.site._registry.values():
        yield model_admin, "list_per_page"
    yield from ((kind, "page_size") for kind in (NumberedPagination, TimelinePagination))


def len_of(response: Any) -> int:
    """Return how many rows are shown; 0 for what is no list."""
    if response.headers["Content-Type"].startswith("text/html"):
        shown = response.context_data.get("cl")
        return len(shown.result_list) if shown else 0
    return len(response.json().get("results", ()))


if __name__ == "__main__":
    main(sys.argv[1:])
