"""Statements that are compiled once: what every webhook needs, without what Django's ORM takes.

Django compiles each query anew, which takes longer than the database does (docs/benchmarks.md). The
SQL is Django's own, for whichever database it is; only its values are put in afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from django.db import connections, models
from django.db.models.signals import post_save, pre_save
from django.db.models.sql import InsertQuery

from .transactions import alias


def insert(row: models.Model) -> None:
    """Write a new row and set its primary key, as ``row.save(force_insert=True)`` does.

    Where the site listens to ``pre_save`` or ``post_save`` of the model, it is ``save`` itself.
    """
    model = type(row)
    if pre_save.has_listeners(model) or post_save.has_listeners(model):
        row.save(force_insert=True)
        return
    using = alias()
    database = connections[using]
    sql, columns, returns = _insertion(model, using)
    values = [field.get_db_prep_save(field.pre_save(row, True), database) for field in columns]
    with database.cursor() as cursor:
        cursor.execute(sql, values)
        # MySQL cannot return columns; its driver knows the key.
        row.pk = cursor.fetchone()[0] if returns else cursor.lastrowid
    row._state.adding = False
    row._state.db = using


@lru_cache(maxsize=32)
def _insertion(
    model: type[models.Model], using: str
) -> tuple[str, Sequence[models.Field[Any, Any]], bool]:
    database = connections[using]
    key = model._meta.pk
    columns = [field for field in model._meta.local_concrete_fields if field is not key]
    query = InsertQuery(model)
    query.insert_values(columns, [model()])
    compiler = query.get_compiler(using=using)
    returns = database.features.can_return_columns_from_insert
    compiler.returning_fields = [key] if returns else None
    [(sql, _)] = compiler.as_sql()
    return sql, columns, returns


class Lookup:
    """A query for one row of keys, texts and truths, whose values are put in afterwards.

    ``build`` is called once with a text for each of ``names`` and returns a queryset of tuples.
    The values must be texts, too, as the database has them.
    """

    def __init__(self, build: Callable[..., models.QuerySet[Any, Any]], *names: str) -> None:
        self.build = build
        self.marks = {f"<{name}>": name for name in names}
        self.compiled: dict[str, tuple[str, tuple[Any, ...]]] = {}

    def first(self, **values: str) -> tuple[Any, ...] | None:
        """Return the first row, or None."""
        using = alias()
        if using not in self.compiled:
            marked = self.build(**{name: mark for mark, name in self.marks.items()})
            self.compiled[using] = marked.query.get_compiler(using).as_sql()
        sql, parameters = self.compiled[using]
        with connections[using].cursor() as cursor:
            cursor.execute(
                sql, [values[self.marks[p]] if p in self.marks else p for p in parameters]
            )
            row: tuple[Any, ...] | None = cursor.fetchone()
        return row
