"""The answer to URLs below the API that no view has."""

from __future__ import annotations

from typing import Any

from django.http import (
    Http404,
    HttpResponseBase,
    HttpResponsePermanentRedirect,
    HttpResponseRedirect,
)
from django.urls import Resolver404, resolve
from rest_framework.permissions import AllowAny
from rest_framework.request import Request

from .. import serializers
from ..errors import ApiError
from .base import API_VERSION, Api


class NotFound(Api):
    """Every URL below the API that no other view has. GET without the version, and without anything
    after it, is redirected to the root.

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
            if request.method in ("GET", "HEAD"):
                # Escaped: a "?" in the path is not where the query begins.
                return HttpResponsePermanentRedirect(request.get_full_path(force_append_slash=True))
            raise ApiError(
                "missing_slash", f"Nothing was done: the URL ends with a slash, {url}{path}/"
            )
        versioned = f"{API_VERSION}/{path.rstrip('/')}/" if path else f"{API_VERSION}/"
        if self._exists(f"{mount}{versioned}"):
            if not path and request.method in ("GET", "HEAD"):
                return HttpResponseRedirect(versioned)
            raise ApiError("not_found", f"Not found: the URL has the version, {url}{versioned}")
        raise Http404

    def _exists(self, path: str) -> bool:
        """Return whether another view has ``path``: one of this API, or of a site that has the API
        at its root."""
        own: Any = self.request.resolver_match
        try:
            return bool(resolve(path).url_name != own.url_name)
        except Resolver404:
            return False
