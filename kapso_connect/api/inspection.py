"""The way from the views to what describes them; drf-spectacular may be missing."""

from __future__ import annotations

from contextvars import ContextVar
from importlib.util import find_spec
from typing import Any

from rest_framework.schemas.inspectors import DefaultSchema, ViewInspector
from rest_framework.settings import api_settings

making: ContextVar[bool] = ContextVar("making", default=False)
"""True while this API's own schema is made."""


def is_installed() -> bool:
    return find_spec("drf_spectacular") is not None


class Inspected(DefaultSchema):
    """Describes a view by ``schema.ApiSchema`` in this API's own schema, and in that of a site that
    uses drf-spectacular; as DEFAULT_SCHEMA_CLASS does it for everybody else."""

    def __get__(self, instance: Any, owner: Any) -> Any:
        found = ViewInspector.__get__(self, instance, owner)
        if found is not self:
            return found  # drf-spectacular's, for a method that the site decorated
        kind: Any = api_settings.DEFAULT_SCHEMA_CLASS
        if not (making.get() or _is_of_spectacular(kind)):
            return super().__get__(instance, owner)
        from .schema import ApiSchema

        inspector = ApiSchema()
        inspector.view = instance
        return inspector


def _is_of_spectacular(kind: type[Any]) -> bool:
    return any(base.__module__ == "drf_spectacular.openapi" for base in kind.__mro__)
