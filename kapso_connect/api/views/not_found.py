"""The answer to URLs below the API that no view has."""

from __future__ import annotations

from typing import Any

from django.http import Http404, HttpResponseBase, HttpResponsePermanentRedirect
from django.urls import Resolver404, resolve
from rest_framework.permissions import AllowAny
from rest_framework.request import Request

from .. import serializers
from ..errors import ApiError
from .base import API_VERSION, Api


class NotFound(Api):
    """Every URL below the API that no other view has.

    Django would answer a POST to a URL without the slash at its end with a redirect, which clients
    follow with a GET: nothing would be created, and the answer would look like a success.
    """

    http_method_names = ["get", "post", "put", "patch", "delete", "head"]
    authentication_classes = ()
    permission_classes = (AllowAny,)
    serializer_class = serializers.EmptySerializer
    schema = None

    def refuse(self, request: Request) -> HttpResponseBase:
        path = self.kwargs["path"]
        mount, url = request.path_info.removesuffix(path), request.path.removesuffix(path)
        if self._exists(f"{mount}{path}/"):
            url = f"{url}{path}/"
            if request.method in ("GET", "HEAD"):
                query = request.META.get("QUERY_STRING", "")
                return HttpResponsePermanentRedirect(f"{url}?{query}" if query else url)
            raise ApiError("missing_slash", f"Nothing was done: the URL ends with a slash, {url}")
        versioned = f"{API_VERSION}/{path.rstrip('/')}/"
        if self._exists(f"{mount}{versioned}"):
            raise ApiError("not_found", f"Not found: the URL has the version, {url}{versioned}")
        raise Http404

    def _exists(self, path: str) -> bool:
        """Return whether another view of this mount of the API has ``path``."""
        own: Any = self.request.resolver_match
        try:
            found = resolve(path)
        except Resolver404:
            return False
        return bool(found.namespace == own.namespace and found.url_name != own.url_name)
