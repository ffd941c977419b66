"""The site's own objects as owners of customers: of which type an owner is, and by which key.

Both are the same however an object is read: as a proxy, through multi-table inheritance, or with
its key in another spelling.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from django.apps import apps
from django.contrib.contenttypes.models import ContentType
from django.core.exceptions import ValidationError
from django.db import models
from django.db.models import Value
from django.db.models.functions import Concat, Substr

MAX_KEY_LENGTH = 255


def owner_model(model: type[models.Model]) -> type[models.Model]:
    """Return the model under which an object of ``model`` owns its customer.

    It is the topmost parent that has the same primary key, so that a row of several tables
    (multi-table inheritance) has one customer. Raise ValueError if its key has several columns.
    """
    opts = model._meta.concrete_model._meta  # type: ignore[union-attr]
    key: Any = opts.pk
    if isinstance(key, models.CompositePrimaryKey):
        raise ValueError(
            f"{opts.label} has a composite primary key, and cannot own customers: the key of an "
            "owner has one column. Let an object with such a key own the customer instead."
        )
    parent_link = key.remote_field if key.remote_field and key.remote_field.parent_link else None
    if parent_link is not None and key.target_field.primary_key:
        return owner_model(parent_link.model)
    return opts.model


def owner_type(model: type[models.Model] | models.Model) -> ContentType:
    """Return the content type that ``Customer.owner_type`` has for objects of ``model``."""
    model = model if isinstance(model, type) else model.__class__
    return ContentType.objects.get_for_model(owner_model(model))


def owner_key(model: type[models.Model], key: Any) -> str:
    """Return the primary key of an object of ``model`` as ``Customer.owner_id`` has it.

    Raise ValueError for what cannot be a key of the model, and for a key that is too long.
    """
    field = _key_field(owner_model(model)._meta.pk)
    try:
        value = field.to_python(key)
    except (ValidationError, TypeError, ArithmeticError):
        raise ValueError(f"{key!r} cannot be a primary key of {model._meta.label}.") from None
    if isinstance(field, models.DecimalField):
        text = f"{value:.{field.decimal_places}f}"
    else:
        text = str(value)
    if len(text) > MAX_KEY_LENGTH:
        raise ValueError(
            f"The primary key of {model._meta.label} is longer than {MAX_KEY_LENGTH} characters."
        )
    return text


def models_of_owner(kind: ContentType | None) -> Iterator[type[models.Model]]:
    """Yield the models whose objects may be an owner of this type: its own, and its children.

    There is none if the model was removed.
    """
    model = kind.model_class() if kind else None
    if model is None:
        return
    yield model
    for child in apps.get_models():
        if child is not model and issubclass(child, model) and owner_model(child) is model:
            yield child


def _key_field(field: Any) -> Any:
    """Return the field that has the values of a primary key, which may be a foreign key."""
    while field.remote_field:
        field = field.target_field
    return field


class OwnerKey(models.Func):
    """The primary key of an object of the site's, as ``Customer.owner_id`` has it: as a text."""

    arity = 1

    def __init__(self, key: Any) -> None:
        super().__init__(key, output_field=models.CharField())

    def as_sql(self, compiler: Any, connection: Any, *args: Any, **context: Any) -> Any:
        (key,) = self.get_source_expressions()
        field = _key_field(key.target)
        parts: list[Any] = [key, Value("")]
        if isinstance(field, models.UUIDField) and not connection.features.has_native_uuid_field:
            # This database stores the 32 digits without the hyphens.
            groups = [Substr(key, *group) for group in UUID_GROUPS]
            parts = [groups[0], *(part for group in groups[1:] for part in (Value("-"), group))]
        elif isinstance(field, models.DecimalField) and connection.vendor == "sqlite":
            # SQLite stores a number, without the zeros at its end.
            pattern = Value(f"%.{field.decimal_places}f")
            parts[0] = models.Func(pattern, key, function="printf", output_field=models.CharField())
        # Not Cast: in MariaDB the result could have another collation than the column.
        return compiler.compile(Concat(*parts, output_field=models.CharField()))


UUID_GROUPS = [(1, 8), (9, 4), (13, 4), (17, 4), (21, 12)]
"""Position and length of the groups of digits between a UUID's hyphens."""
