"""The ``schema`` attribute of the views. drf-spectacular, which ``schema`` needs, is optional."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from rest_framework.schemas.inspectors import DefaultSchema, ViewInspector
from rest_framework.settings import api_settings


def is_drf_spectacular_installed() -> bool:
    return find_spec("drf_spectacular") is not None


class SchemaInspector(DefaultSchema):
    """Describes a view by ``schema.ApiSchema`` where the site's DEFAULT_SCHEMA_CLASS is
    drf-spectacular's, and by DEFAULT_SCHEMA_CLASS where it is another library's.

    This API's own schema always uses ``ApiSchema``; see ``schema.build_document``.
    """

    def __get__(self, instance: Any, owner: Any) -> Any:
        assigned = ViewInspector.__get__(self, instance, owner)
        if assigned is not self:
            return assigned
        default_class: Any = api_settings.DEFAULT_SCHEMA_CLASS
        if not any(base.__module__ == "drf_spectacular.openapi" for base in default_class.__mro__):
            return super().__get__(instance, owner)
        from .schema import ApiSchema

        inspector = ApiSchema()
        inspector.view = instance
        return inspector
