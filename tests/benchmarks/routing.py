"""Which of the benchmark's databases is used, and how they come and go."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import django

from kapso_connect.testing import Sandbox


class Router:
    """Everything happens in the database named by ``chosen``."""

    chosen = "small"

    def db_for_read(self, model: Any, **hints: Any) -> str:
        return Router.chosen

    db_for_write = db_for_read

    def allow_relation(self, *objs: Any, **hints: Any) -> bool:
        return True


@dataclass
class Queries:
    count: int = 0

    def __call__(self, execute: Any, *asked: Any) -> Any:
        self.count += 1
        return execute(*asked)


@contextmanager
def counted_queries() -> Iterator[Queries]:
    """Yield how many statements were sent to the chosen database, kept nowhere: but for those that
    begin and end transactions."""
    from django.db import connections

    queries = Queries()
    with connections[Router.chosen].execute_wrapper(queries):
        yield queries


@contextmanager
def own_databases(server: str, *names: str) -> Iterator[list[str]]:
    """Yield the URLs of new, empty databases, dropped afterwards.

    ``server`` is the URL of a PostgreSQL database, beside which they are made, or "sqlite://".
    """
    if server.startswith("sqlite"):
        with TemporaryDirectory(prefix="kapso-bench-") as folder:
            yield [f"sqlite:///{Path(folder) / name}.sqlite3" for name in names]
        return
    import psycopg

    def execute(sql: str) -> None:
        with psycopg.connect(server, autocommit=True) as connection:
            connection.execute(sql.encode())

    for name in names:
        execute(f'DROP DATABASE IF EXISTS "{name}"')
        execute(f'CREATE DATABASE "{name}"')
    try:
        yield [f"{server.rpartition('/')[0]}/{name}" for name in names]
    finally:
        for name in names:
            execute(f'DROP DATABASE "{name}" WITH (FORCE)')


@contextmanager
def site_with_sandbox(server: str, name: str) -> Iterator[Sandbox]:
    """Set up the example site on a new database, with a sandbox in place of Kapso."""
    with own_databases(server, name) as [url], Sandbox(api_key="benchmark") as sandbox:
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
            yield sandbox
        finally:
            connections.close_all()
