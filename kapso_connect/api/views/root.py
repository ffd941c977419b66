"""The root of the API."""

from __future__ import annotations

from rest_framework.request import Request
from rest_framework.response import Response

from .. import serializers
from ..operations import responses
from ..schema import extend_schema
from .base import Api


class Root(Api):
    """The URLs of the API."""

    serializer_class = serializers.RootSerializer
    pagination_class = None

    @extend_schema(responses=responses(serializers.RootSerializer, description="The URLs."))
    def list(self, request: Request) -> Response:
        """Return the URLs of this API."""
        names = ("customers", "setup-links", "batches", "connections", "events", "schema")
        return Response({name.replace("-", "_"): self.url_of(name) for name in names})
