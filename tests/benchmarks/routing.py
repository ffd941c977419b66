"""Which of the benchmark's databases is used, and how they come and go."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any


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
    """Yield how many statements were sent to the chosen database: any number, kept nowhere."""
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
