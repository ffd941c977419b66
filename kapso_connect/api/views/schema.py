"""The OpenAPI schema of this API."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from django.urls import URLPattern
from rest_framework.renderers import BaseRenderer
from rest_framework.request import Request
from rest_framework.response import Response

from .. import serializers
from ..errors import ApiError
from ..operations import responses
from ..schema import OpenApiParameter, extend_schema, is_drf_spectacular_installed
from .base import Api


class Schema(Api):
    """The OpenAPI schema of this API; needs drf-spectacular."""

    serializer_class = serializers.EmptySerializer
    patterns: ClassVar[Sequence[URLPattern]] = ()
    """The URL patterns of this mount of the API."""

    def get_renderers(self) -> list[BaseRenderer]:
        if not is_drf_spectacular_installed():
            return super().get_renderers()
        from drf_spectacular import renderers

        return [
            renderers.OpenApiJsonRenderer2(),
            renderers.OpenApiJsonRenderer(),
            renderers.OpenApiYamlRenderer2(),
            renderers.OpenApiYamlRenderer(),
        ]

    @extend_schema(
        parameters=[
            OpenApiParameter(
                "format",
                enum=["json", "yaml"],
                description="The format of the response; takes precedence over Accept.",
            )
        ],
        responses=responses(
            {"type": "object", "additionalProperties": {}},
            "not_found",
            "openapi_not_installed",
            description="The schema.",
        ),
    )
    def describe(self, request: Request) -> Response:
        """Return the OpenAPI 3.1 schema of this API, as JSON or YAML."""
        if not is_drf_spectacular_installed():
            raise ApiError(
                "openapi_not_installed",
                "The schema needs drf-spectacular, which this site's developers can install: "
                'pip install "django-kapso-connect[openapi]"',
            )
        from ..openapi import build_document

        return Response(build_document(self.patterns, self.request.path.removesuffix("schema/")))
