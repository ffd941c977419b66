"""What all views of the API share."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from copy import copy
from typing import Any, ClassVar

from django.apps import apps
from django.contrib.auth import get_user_model
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import Http404
from django.shortcuts import get_object_or_404
from django.utils.functional import cached_property
from django.views.decorators.debug import sensitive_variables
from rest_framework.exceptions import APIException
from rest_framework.permissions import BasePermission
from rest_framework.renderers import BaseRenderer, BrowsableAPIRenderer, JSONRenderer
from rest_framework.request import Request, clone_request
from rest_framework.response import Response
from rest_framework.reverse import reverse
from rest_framework.serializers import BaseSerializer, Serializer
from rest_framework.throttling import BaseThrottle
from rest_framework.viewsets import GenericViewSet

from ...db import non_atomic
from ...log import log_event, logging_request_id
from ...models import Customer
from .. import idempotency, permissions
from ..browsable_api import BrowsableFilters, raw_data_form
from ..errors import ApiError, exception_handler, invalid_value
from ..fields import is_primary_key
from ..filters import Filters, validate_filters
from ..pagination import NumberedPagination
from ..parsers import MAX_BODY_BYTES, BoundedJSONParser
from ..request_ids import REQUEST_ID_HEADER, request_id_of
from ..schema import default_schema
from ..throttling import ApiThrottle

API_VERSION = "v1"
"""The version of the API in its URLs. What the documentation promises of it does not change; an
incompatible one would be mounted beside it."""


class Api(GenericViewSet[Any]):
    """Base class of the API's views.

    A site limits or changes them with a mixin; see ``tenants.TenantMixin`` and ``urls.urls_for``.
    Renderers and authentication are those of the site's REST_FRAMEWORK setting.
    """

    rows: ClassVar[QuerySet[Any]]
    owned_by: ClassVar[str] = "customer"
    """The lookup from a row to its customer."""
    filters: ClassVar[type[Filters]]
    serializer_classes: ClassVar[Mapping[str, type[Serializer[Any]]]] = {}
    """By action, the serializer of the request's body if it is not ``serializer_class``."""
    required_permissions: ClassVar[Mapping[str, Sequence[Sequence[str]]]] = {}
    """By action, the permissions that staff need, each with its alternatives."""
    throttle_kinds: ClassVar[Mapping[str, str]] = {}
    """By action, the key of ``API_THROTTLE_RATES`` if it is not ``read``."""

    example: ClassVar[Mapping[str, Any]] = {}
    """The body in the form of a browsable page."""
    tag: ClassVar[str] = "Kapso"
    """The tag of the operations in the schema."""
    schema_name: ClassVar[str] = "kapso"
    """The beginning of operation ids. Each mount of the API needs its own."""

    shows_details: ClassVar[bool] = True
    """Whether users may read Kapso's error messages, and who created links and caused events."""
    sets_external_ids: ClassVar[bool] = True
    """Whether users may set external ids, by which customers are matched with Kapso's."""

    http_method_names = ["get", "post", "put", "patch", "head"]
    permission_classes: Any = ()
    parser_classes = (BoundedJSONParser,)
    pagination_class: Any = NumberedPagination
    filter_backends: Any = (BrowsableFilters,)
    versioning_class = None
    metadata_class = None
    schema: Any = default_schema()
    body: Any = None
    """The body of the request, once it was parsed."""

    @classmethod
    def as_view(cls, *args: Any, **kwargs: Any) -> Any:
        # Kapso is called outside of transactions, and changes are committed before the response.
        # Error reports show no locals, which may be customers' URLs.
        return non_atomic(sensitive_variables()(super().as_view(*args, **kwargs)))

    # Permissions and limits

    def get_permissions(self) -> list[BasePermission]:
        return [
            kind()
            for kind in self.permission_classes or permissions.configured_permission_classes()
        ]

    def is_permitted(self, action: str, *customers: Customer, method: str = "POST") -> bool:
        """Return whether the user has permission for another ``action`` of this view, on each of
        ``customers``."""
        view = copy(self)
        view.action = action
        view.request = clone_request(self.request, method)
        try:
            view.check_permissions(view.request)
            for customer in customers:
                view.check_object_permissions(view.request, customer)
        except (Http404, PermissionDenied, APIException):  # a permission may raise its own
            return False
        return True

    def get_throttles(self) -> list[BaseThrottle]:
        return [self._api_throttle]

    @cached_property
    def _api_throttle(self) -> ApiThrottle:
        return ApiThrottle(self.throttle_kinds.get(self.action, "read"))

    def get_idempotency_owner(self, request: Request) -> str:
        """Return whose an ``Idempotency-Key`` is: other users may use the same key."""
        key = getattr(request.user, "pk", None)
        if key is None:
            raise invalid_value(
                idempotency.IDEMPOTENCY_KEY_HEADER,
                "Only authenticated users can use an Idempotency-Key.",
                code="invalid_idempotency_key",
            )
        return str(key)

    @property
    def actor(self) -> Any:
        """The user, or None if ``request.user`` is not an instance of the user model."""
        user = self.request.user
        return user if isinstance(user, get_user_model()) else None

    # Objects

    def limit(self, rows: QuerySet[Any], to: str) -> QuerySet[Any]:
        """Return those of ``rows`` that the request may access; ``to`` is the lookup of their
        customer."""
        return rows

    def get_queryset(self) -> QuerySet[Any]:
        return self.limit(self.rows.all(), self.owned_by)

    def get_object(self) -> Any:
        return self.get_permitted(self.get_queryset().filter(pk=self.pk))

    def find_customers(self, pks: Collection[Any]) -> dict[Any, Customer]:
        """Return, by primary key, those of these customers that the request may access. Check the
        object permissions."""
        found = self.limit(Customer.objects.filter(pk__in=pks), "pk")
        customers = {customer.pk: customer for customer in found}
        for customer in customers.values():
            self.check_object_permissions(self.request, customer)
        return customers

    def get_permitted(self, rows: QuerySet[Any]) -> Any:
        """Return the only one of ``rows``. Raise Http404 if there is none, and check the object
        permissions."""
        row = get_object_or_404(rows)
        self.check_object_permissions(self.request, row)
        return row

    @property
    def pk(self) -> int:
        """The primary key in the URL. Raise Http404 if it cannot be one."""
        text: str = self.kwargs["pk"]
        if not is_primary_key(text):
            raise Http404
        return int(text)

    # Requests and responses

    def dispatch(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        # The prefix that the site includes this API under may have arguments, too. The actions do
        # not take them, but a mixin can read them from ``kwargs``.
        self.url_kwargs = kwargs
        own_kwargs = {name: value for name, value in kwargs.items() if name == "pk"}
        self.request_id = request_id_of(request)
        status, began_at = 500, time.monotonic()
        with logging_request_id(self.request_id):
            try:
                response = super().dispatch(request, *args, **own_kwargs)
                status = response.status_code
            finally:
                log_event(
                    "rest.answered",
                    method=request.method,
                    route=request.resolver_match.view_name,
                    status=status,
                    seconds=time.monotonic() - began_at,
                )
        return response

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        self.kwargs = self.url_kwargs
        # Before anything reads the body.
        try:
            length = int(request.META.get("CONTENT_LENGTH") or 0)
        except ValueError:
            length = 0
        if length > MAX_BODY_BYTES:
            raise ApiError("too_large", f"The body is larger than {MAX_BODY_BYTES} bytes.")
        if "HTTP_TRANSFER_ENCODING" in request.META and not length:
            # Django would read an empty body.
            raise ApiError("parse_error", "Content-Length is required.")
        request.get_host()  # raises DisallowedHost before anything is created
        super().initial(request, *args, **kwargs)

    def get_renderers(self) -> list[BaseRenderer]:
        renderers = super().get_renderers()
        if apps.is_installed("rest_framework"):
            return renderers
        # There are no templates for browsable pages; a system check says so.
        return [one for one in renderers if not isinstance(one, BrowsableAPIRenderer)] or [
            JSONRenderer()
        ]

    def get_exception_handler(self) -> Any:
        return exception_handler

    def finalize_response(
        self, request: Request, response: Any, *args: Any, **kwargs: Any
    ) -> Response:
        final: Response = super().finalize_response(request, response, *args, **kwargs)
        final.headers.setdefault("Cache-Control", "no-store")
        final.headers[REQUEST_ID_HEADER] = self.request_id
        for name, value in self._rate_limit_headers(request, final).items():
            final.headers[name] = value
        return final

    def _rate_limit_headers(self, request: Request, response: Response) -> dict[str, str]:
        if not self._api_throttle.is_read and response.status_code >= 500:
            return {}  # the database, which knows the user, may be away
        try:
            throttles = self.get_throttles()
        except Exception:
            return {}  # one of the site may need the user that the request does not have
        own = [one for one in throttles if isinstance(one, ApiThrottle)]
        return own[0].headers(request, self) if own else {}

    def get_serializer_class(self) -> type[BaseSerializer[Any]]:
        return self.serializer_classes.get(self.action) or super().get_serializer_class()

    def get_serializer(self, *args: Any, **kwargs: Any) -> Any:
        if "data" not in kwargs and hasattr(self, "response"):  # for the form of a browsable page
            return raw_data_form(self, kwargs.get("instance"))
        return super().get_serializer(*args, **kwargs)

    def validated_body(self, **options: Any) -> dict[str, Any]:
        """Return the validated data of the request's body."""
        self.body = self.request.data
        serializer = self.get_serializer(data=self.body, **options)
        serializer.is_valid(raise_exception=True)
        return serializer.validated_data  # type: ignore[no-any-return]

    def represent(self, rows: Sequence[Any]) -> Sequence[Any]:
        """Return ``rows`` serialized, with a fixed number of queries."""
        context = self.get_serializer_context()
        serializer_class: Any = self.serializer_class
        return [serializer_class(row, context=context).data for row in rows]

    def object_response(self, row: Any) -> Response:
        """Return the response with one object."""
        return Response(self.represent([row])[0])

    def url_of(self, name: str, *args: Any) -> str:
        """Return the absolute URL of a view of this mount of the API."""
        match: Any = self.request.resolver_match
        kwargs = dict(self.kwargs)
        if args:
            (kwargs["pk"],) = args
        return reverse(f"{match.namespace}:{name}", kwargs=kwargs, request=self.request)

    def created_response(
        self, name: str, pk: Any, body: Mapping[str, Any], *, replayed: bool = False
    ) -> Response:
        """Return a 201 with the URL of the new object, marked if it repeats an earlier response."""
        headers = {"Location": self.url_of(name, pk)}
        if replayed:
            headers[idempotency.REPLAYED_HEADER] = "true"
        return Response(body, status=201, headers=headers)

    # Actions

    def list(self, request: Request) -> Response:
        filters, values = validate_filters(self.filters, request)
        page = self.paginate_queryset(filters.apply(self.get_queryset(), values))
        return self.get_paginated_response(self.represent(page or []))

    def retrieve(self, request: Request, pk: str) -> Response:
        """Return one object by its id."""
        return self.object_response(self.get_object())
