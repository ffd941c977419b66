"""drf-spectacular's decorators, with which views and serializers are described.

drf-spectacular is optional. Without it, all names here do nothing, and the API works the same.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeVar

from rest_framework.schemas.inspectors import DefaultSchema, ViewInspector
from rest_framework.settings import api_settings

Method = TypeVar("Method", bound=Callable[..., Any])


def is_drf_spectacular_installed() -> bool:
    return find_spec("drf_spectacular") is not None


if TYPE_CHECKING or is_drf_spectacular_installed():
    from drf_spectacular import utils
    from drf_spectacular.openapi import AutoSchema
    from drf_spectacular.utils import (
        OpenApiExample,
        OpenApiParameter,
        OpenApiResponse,
        extend_schema_serializer,
        extend_schema_view,
    )

    from .openapi import ApiSchema

    def extend_schema(**options: Any) -> Callable[[Method], Method]:
        """Describe a method of a view, as drf-spectacular's own ``extend_schema`` does, on top of
        ``ApiSchema``, whatever the site's DEFAULT_SCHEMA_CLASS is."""

        def decorator(method: Method) -> Method:
            method.schema = ApiSchema  # type: ignore[attr-defined]
            return utils.extend_schema(**options)(method)

        return decorator

    def default_schema() -> ViewInspector:
        """Return ``ApiSchema`` if the site's DEFAULT_SCHEMA_CLASS is drf-spectacular's, and else
        DEFAULT_SCHEMA_CLASS, for methods without ``extend_schema``."""
        site_default: Any = api_settings.DEFAULT_SCHEMA_CLASS
        if isinstance(site_default, type) and issubclass(site_default, AutoSchema):
            return ApiSchema()
        return DefaultSchema()

else:
    default_schema = DefaultSchema

    class _Nothing:
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            pass

        def __call__(self, decorated: Any) -> Any:
            return decorated

    OpenApiExample = OpenApiParameter = OpenApiResponse = _Nothing
    extend_schema = extend_schema_serializer = extend_schema_view = _Nothing

__all__ = [
    "OpenApiExample",
    "OpenApiParameter",
    "OpenApiResponse",
    "default_schema",
    "extend_schema",
    "extend_schema_serializer",
    "extend_schema_view",
    "is_drf_spectacular_installed",
]
