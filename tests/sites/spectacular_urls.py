"""The REST API for users of a site, which overrides some of its methods."""

from __future__ import annotations

from typing import Any

from django.urls import include, path
from drf_spectacular.utils import extend_schema
from rest_framework.request import Request
from rest_framework.response import Response

from kapso_connect.api.tenants import TenantMixin
from kapso_connect.api.urls import urls_for

from ..urls import urlpatterns as site


class Overriding(TenantMixin):
    @extend_schema(summary="Whom we serve")
    def list(self, request: Request) -> Any:
        return super().list(request)  # type: ignore[misc]

    def retrieve(self, request: Request, pk: str) -> Response:
        return super().retrieve(request, pk)  # type: ignore[misc]


urlpatterns = [*site, path("mine/<slug:team>/", include(urls_for(Overriding), namespace="mine"))]
