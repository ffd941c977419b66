"""SQL statements that are compiled once, for the queries that every webhook needs.

Django's ORM compiles a query each time, which takes longer than the database does
(docs/benchmarks.md). The SQL is Django's own, for the database in use; only the values are filled
in later.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NamedTuple

from django.db import connections, models
from django.db.models.expressions import Expression
from django.db.models.signals import post_save, pre_save
from django.db.models.sql import InsertQuery, Query, UpdateQuery

from .db import alias


def insert(row: models.Model) -> None:
    """Insert ``row`` and set its primary key, as ``row.save(force_insert=True)`` does.

    If ``pre_save`` or ``post_save`` of the model has receivers, ``save`` is called.
    """
    model = type(row)
    if pre_save.has_listeners(model) or post_save.has_listeners(model):
        row.save(force_insert=True)
        return
    using = alias()
    database = connections[using]
    sql, columns, returns_pk = _insert_statement(model, using)
    values = []
    for field, is_text, is_plain in columns:
        value = getattr(row, field.attname) if is_plain else field.pre_save(row, True)
        # Most values are strings or None, which need no conversion.
        if not (value is None or (is_text and type(value) is str)):
            value = field.get_db_prep_save(value, database)
        values.append(value)
    with database.cursor() as cursor:
        cursor.execute(sql, values)
        # MySQL cannot return columns, but its driver knows the key.
        row.pk = cursor.fetchone()[0] if returns_pk else cursor.lastrowid
    row._state.adding = False
    row._state.db = using


class Column(NamedTuple):
    field: models.Field[Any, Any]
    is_text: bool
    is_plain: bool
    """The row's value is written, not one that the field computes, as with ``auto_now``."""


@lru_cache(maxsize=32)
def _insert_statement(model: type[models.Model], using: str) -> tuple[str, Sequence[Column], bool]:
    database = connections[using]
    key = model._meta.pk
    fields = [field for field in model._meta.local_concrete_fields if field is not key]
    query = InsertQuery(model)
    query.insert_values(fields, [model()])
    compiler = query.get_compiler(using=using)
    returns_pk = database.features.can_return_columns_from_insert
    compiler.returning_fields = [key] if returns_pk else None
    [(sql, _)] = compiler.as_sql()
    columns = [
        Column(
            field,
            is_text=isinstance(field, (models.CharField, models.TextField)),
            is_plain=type(field).pre_save is models.Field.pre_save,
        )
        for field in fields
    ]
    return sql, columns, returns_pk


class Slot(Expression):
    """A placeholder in a query, for a value that is filled in when the statement is executed."""

    def __init__(self, name: str, field: models.Field[Any, Any]) -> None:
        super().__init__(output_field=field)
        self.name = name

    def as_sql(self, compiler: Any, connection: Any) -> Any:
        return "%s", (self,)


class Compiled:
    """A statement that is compiled once for each database, with a slot for each of ``fields``."""

    def __init__(self, build: Callable[..., Any], **fields: models.Field[Any, Any]) -> None:
        self.build = build
        self.slots = {name: Slot(name, field) for name, field in fields.items()}
        self.compiled: dict[str, tuple[str, tuple[Any, ...], list[Any]]] = {}

    def query(self) -> Query:
        raise NotImplementedError

    @contextmanager
    def executed(self, values: Mapping[str, Any]) -> Iterator[tuple[Any, list[Any]]]:
        """Execute the statement. Yield the cursor and the columns of its rows."""
        using = alias()
        database = connections[using]
        if using not in self.compiled:
            compiler = self.query().get_compiler(using)
            sql, parameters = compiler.as_sql()
            columns = [column for column, *_ in compiler.select or ()]
            self.compiled[using] = (sql, parameters, columns)
        sql, parameters, columns = self.compiled[using]
        with database.cursor() as cursor:
            cursor.execute(
                sql,
                [
                    p.output_field.get_db_prep_save(values[p.name], database)
                    if isinstance(p, Slot)
                    else p
                    for p in parameters
                ],
            )
            yield cursor, columns


class Lookup(Compiled):
    """A compiled SELECT, built from a queryset of tuples."""

    def query(self) -> Query:
        queryset: models.QuerySet[Any, Any] = self.build(**self.slots)
        return queryset.query

    def first(self, **values: Any) -> tuple[Any, ...] | None:
        """Return the first row, or None."""
        with self.executed(values) as (cursor, columns):
            row = cursor.fetchone()
        if row is None:
            return None
        database = connections[alias()]
        return tuple(map(_converted, row, columns, itertools.repeat(database)))


def _converted(value: Any, column: Any, database: Any) -> Any:
    """Convert a value of the database's driver to that of the model field."""
    for convert in database.ops.get_db_converters(column):
        value = convert(value, column, database)
    for convert in column.get_db_converters(database):
        value = convert(value, column, database)
    return value


class Update(Compiled):
    """A compiled UPDATE, built from a queryset and the changes of its rows."""

    def query(self) -> Query:
        queryset, changes = self.build(**self.slots)
        query: UpdateQuery = queryset.query.chain(UpdateQuery)
        query.add_update_values(changes)
        return query

    def execute(self, **values: Any) -> int:
        """Execute the statement. Return the number of rows it matched."""
        with self.executed(values) as (cursor, _):
            count: int = cursor.rowcount
        return count
