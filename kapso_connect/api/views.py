"""The views of the API. They change setup links and connections through ``onboarding`` only."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from copy import copy
from datetime import timedelta
from typing import Any, ClassVar

from django.apps import apps
from django.contrib.auth import get_user_model
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import Http404
from django.shortcuts import get_object_or_404
from django.urls import URLPattern
from django.utils.cache import patch_vary_headers
from django.utils.functional import cached_property
from django.utils.http import parse_etags
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

from .. import onboarding
from ..db import non_atomic, retry_on_conflict
from ..kapso.client import KapsoClient
from ..models import Connection, Customer, SetupLink, Source, TimelineEvent
from ..onboarding import health, remote_numbers, setup_links
from ..onboarding.connect_urls import connect_url
from ..onboarding.status import get_statuses
from ..utils import time_since
from . import examples, idempotency, permissions, serializers
from .browsable_api import BrowsableFilters, raw_data_form
from .errors import ApiError, exception_handler, invalid_value
from .fields import is_primary_key
from .filters import (
    ConnectionFilters,
    CustomerFilters,
    EventFilters,
    Filters,
    SetupLinkFilters,
    validate_filters,
)
from .operations import (
    BODY_ERRORS,
    CREATE_HEADERS,
    IDEMPOTENCY_ERRORS,
    KAPSO_ERRORS,
    describe_reads,
    responses,
)
from .pagination import NumberedPagination, TimelinePagination
from .parsers import MAX_BODY_BYTES, BoundedJSONParser
from .permissions import required
from .schema import (
    OpenApiParameter,
    OpenApiResponse,
    default_schema,
    extend_schema,
    is_drf_spectacular_installed,
)
from .throttling import ApiThrottle

HEALTH_CHECK_INTERVAL = timedelta(seconds=10)
"""A number's health is not checked again within this time."""


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
    tag: ClassVar[str] = "WhatsApp"
    """The tag of the operations in the schema."""
    schema_name: ClassVar[str] = "whatsapp"
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
    schema = default_schema()
    body: Any = None
    """The body of the request, once it was parsed."""

    @classmethod
    def as_view(cls, *args: Any, **kwargs: Any) -> Any:
        # Kapso is called outside of transactions, and changes are committed before the response.
        # Error reports show no locals, which may be customers' URLs.
        return non_atomic(sensitive_variables()(super().as_view(*args, **kwargs)))

    # Permissions

    def get_permissions(self) -> list[BasePermission]:
        return [
            kind()
            for kind in self.permission_classes or permissions.configured_permission_classes()
        ]

    def is_permitted(self, action: str, customer: Customer) -> bool:
        """Return whether the user has permission for another ``action`` of this view, a POST, on
        ``customer``."""
        view = copy(self)
        view.action = action
        view.request = clone_request(self.request, "POST")
        try:
            return all(
                one.has_permission(view.request, view)
                and one.has_object_permission(view.request, view, customer)
                for one in view.get_permissions()
            )
        except (Http404, PermissionDenied, APIException):  # a permission may refuse so, too
            return False

    def get_renderers(self) -> list[BaseRenderer]:
        renderers = super().get_renderers()
        if apps.is_installed("rest_framework"):
            return renderers
        # There are no templates for browsable pages; a system check says so.
        return [one for one in renderers if not isinstance(one, BrowsableAPIRenderer)] or [
            JSONRenderer()
        ]

    def get_throttles(self) -> list[BaseThrottle]:
        return [ApiThrottle(self.throttle_kinds.get(self.action, "read"))]

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

    def get_customer(self, pk: Any) -> Customer:
        customer: Customer = self.get_permitted(self.limit(Customer.objects.filter(pk=pk), "pk"))
        return customer

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
        return super().dispatch(request, *args, **own_kwargs)

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

    def get_exception_handler(self) -> Any:
        return exception_handler

    def finalize_response(
        self, request: Request, response: Any, *args: Any, **kwargs: Any
    ) -> Response:
        final: Response = super().finalize_response(request, response, *args, **kwargs)
        final.headers.setdefault("Cache-Control", "no-store")
        return final

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

    def url_of(self, name: str, *args: Any) -> str:
        """Return the absolute URL of a view of this mount of the API."""
        match: Any = self.request.resolver_match
        kwargs = {key: value for key, value in self.kwargs.items() if key != "pk"}
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
        return Response(self.represent([self.get_object()])[0])


class Root(Api):
    """The URLs of the API."""

    serializer_class = serializers.RootSerializer
    pagination_class = None

    @extend_schema(responses=responses(serializers.RootSerializer, description="The URLs."))
    def list(self, request: Request) -> Response:
        """Return the URLs of this API."""
        names = ("customers", "setup-links", "connections", "events", "schema")
        return Response({name.replace("-", "_"): self.url_of(name) for name in names})


CHANGE_RESPONSES = responses(
    serializers.CustomerSerializer,
    "not_found",
    *BODY_ERRORS,
    "customer_erased",
    "external_customer_id_taken",
)


@describe_reads
class Customers(Api):
    """Customers and their onboarding status, newest first."""

    rows = Customer.objects.all()
    owned_by = "pk"
    example = examples.NEW_CUSTOMER
    tag = "WhatsApp customers"
    filters = CustomerFilters
    serializer_class = serializers.CustomerSerializer
    required_permissions = {
        "list": required("view_customer"),
        "retrieve": required("view_customer"),
        "create": required("add_customer"),
        "update": required("change_customer"),
        "partial_update": required("change_customer"),
        "status": required("view_customer", "view_setuplink", "view_connection"),
    }
    throttle_kinds = {"create": "write", "update": "write", "partial_update": "write"}

    def create_customer(self, **values: Any) -> Customer:
        """Create a customer. This runs in a transaction, which is retried on conflicts."""
        return Customer.objects.create(**values)

    @extend_schema(
        summary="New customer",
        parameters=CREATE_HEADERS,
        responses=responses(
            serializers.CustomerSerializer,
            *BODY_ERRORS,
            *IDEMPOTENCY_ERRORS,
            "external_customer_id_taken",
            status=201,
            description="The new object.",
        ),
    )
    def create(self, request: Request) -> Response:
        """Create a customer. With an Idempotency-Key, the request can be repeated without creating
        a second one."""
        values = self.validated_body()
        with idempotency.attempt(request, self.get_idempotency_owner) as attempt:
            if attempt.row.response is not None:
                customer = self.get_customer(attempt.row.customer_id)
                return self.created_response(
                    "customer", customer.pk, attempt.row.response, replayed=True
                )
            pk, body = retry_on_conflict(lambda: self._create(values, attempt))
            return self.created_response("customer", pk, body)

    def _create(self, values: Mapping[str, Any], attempt: idempotency.Attempt) -> tuple[int, Any]:
        self._check_external_id(values)
        customer = self.create_customer(**values)
        body = self.represent([customer])[0]
        attempt.finish(body, customer=customer)
        return customer.pk, body

    @extend_schema(summary="Change a customer", responses=CHANGE_RESPONSES)
    def update(self, request: Request, pk: str, **options: Any) -> Response:
        """Change a customer. Optional fields that are left out stay as they are."""
        customer_pk = self.get_object().pk
        values = self.validated_body(**options)

        def change() -> Customer:
            customer = Customer.objects.select_for_update().get(pk=customer_pk)
            if customer.erased_at is not None:
                raise ApiError("customer_erased")
            self._check_external_id(values, customer_pk=customer_pk)
            for name, value in values.items():
                setattr(customer, name, value)
            customer.save(update_fields=[*values, "updated_at"])
            return customer

        return Response(self.represent([retry_on_conflict(change)])[0])

    @extend_schema(summary="Change some fields of a customer", responses=CHANGE_RESPONSES)
    def partial_update(self, request: Request, pk: str) -> Response:
        """Change the given fields of a customer."""
        return self.update(request, pk, partial=True)

    def _check_external_id(self, values: Mapping[str, Any], customer_pk: int = 0) -> None:
        external_id = values.get("external_customer_id")
        # Compared by the database, as its unique constraint does.
        others = Customer.objects.filter(external_customer_id=external_id).exclude(pk=customer_pk)
        if external_id is not None and others.exists():
            error = {"code": "unique", "message": "Must be unique."}
            raise ApiError("external_customer_id_taken", fields={"external_customer_id": [error]})

    @extend_schema(
        parameters=[
            OpenApiParameter(
                "If-None-Match", str, "header", description="The ETag of an earlier response."
            ),
            OpenApiParameter(
                "Accept-Language",
                str,
                "header",
                description="The language of the texts in failure.",
            ),
            OpenApiParameter(
                "ETag",
                str,
                "header",
                response=[200, 304],
                description="Identifies this response.",
            ),
        ],
        responses={
            **responses(serializers.StatusSerializer, "not_found"),
            304: OpenApiResponse(
                description="Nothing has changed since the response with this ETag."
            ),
        },
    )
    def status(self, request: Request, pk: str) -> Response:
        """Return the customer's onboarding status, and why connecting failed if it did. It is cheap
        to poll: send the ETag of the last response as If-None-Match, and the response is 304
        without a body while nothing has changed."""
        customer = self.get_object()
        body = serializers.status_body(customer, get_statuses([customer])[customer.pk])
        digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        # Weak, since it is the same for every format and compression.
        etag = f'W/"{digest[:32]}"'
        client_etags = parse_etags(request.headers.get("If-None-Match", ""))
        is_unchanged = client_etags == ["*"] or etag.removeprefix("W/") in {
            client_etag.removeprefix("W/") for client_etag in client_etags
        }
        response = Response(status=304) if is_unchanged else Response(body)
        response.headers["ETag"] = etag
        response.headers["Cache-Control"] = "private, no-cache"
        # The texts in ``failure`` are translated.
        patch_vary_headers(response, ["Accept-Language"])
        return response


@describe_reads
class SetupLinks(Api):
    """Invitations to connect a number, newest first."""

    rows = SetupLink.objects.select_related("customer")
    example = examples.NEW_SETUP_LINK
    tag = "WhatsApp setup links"
    filters = SetupLinkFilters
    serializer_class = serializers.SetupLinkSerializer
    serializer_classes = {
        "create": serializers.SetupLinkRequestSerializer,
        "revoke": serializers.EmptySerializer,
    }
    required_permissions = {
        "list": required("view_setuplink"),
        "retrieve": required("view_setuplink"),
        "create": required("create_setup_link"),
        "reconnect": required("create_setup_link", "reconnect_number"),
        "revoke": required("revoke_setup_link"),
    }
    throttle_kinds = {"create": "kapso", "revoke": "kapso"}

    def shows_urls(self, customer: Customer) -> bool:
        """Return whether the user may have the URLs of the links of ``customer``: whoever may
        create one."""
        if customer.pk not in self._shows_urls:
            self._shows_urls[customer.pk] = self.is_permitted("create", customer)
        return self._shows_urls[customer.pk]

    @cached_property
    def _shows_urls(self) -> dict[Any, bool]:
        return {}

    def may_receive_token(self, request: Request) -> bool:
        """Return whether the user may receive Kapso's token for a browser SDK."""
        has_perm = getattr(request.user, "has_perm", None)
        return has_perm is not None and has_perm("kapso_connect.receive_setup_token")

    @extend_schema(
        summary="New setup link",
        parameters=CREATE_HEADERS,
        responses=responses(
            serializers.NewSetupLinkSerializer,
            "not_found",
            *BODY_ERRORS,
            *IDEMPOTENCY_ERRORS,
            *KAPSO_ERRORS,
            "token_not_permitted",
            "customer_erased",
            status=201,
            description="The new object.",
        ),
    )
    def create(self, request: Request) -> Response:
        """Create a setup link at Kapso for a customer and end the customer's older one. Give the
        customer connect_url, which keeps working when the link is renewed. With an
        Idempotency-Key, the request can be repeated without creating a second link."""
        values = self.validated_body()
        customer = self.get_customer(values["customer"])
        options = values.get("options", {})
        self._check_permitted(customer, options, with_token=values["include_token"])
        with idempotency.attempt(request, self.get_idempotency_owner) as attempt:
            link = attempt.row.setup_link or self._create(customer, options, values, attempt)
            body = dict(attempt.row.response or self.represent([link])[0])
        # These are not stored with the key.
        body |= {"url": link.url, "connect_url": connect_url(link.customer) or None, "token": None}
        if values["include_token"]:
            body["token"] = link.token
        is_replay = attempt.row.response is not None
        return self.created_response("setup-link", link.pk, body, replayed=is_replay)

    def _check_permitted(
        self, customer: Customer, options: Mapping[str, Any], *, with_token: bool
    ) -> None:
        if with_token and not self.may_receive_token(self.request):
            raise ApiError("token_not_permitted")
        reconnects = bool(options.get("reconnect_phone_number"))
        if reconnects and not self.is_permitted("reconnect", customer):
            raise PermissionDenied

    def _create(
        self,
        customer: Customer,
        options: Mapping[str, Any],
        values: Mapping[str, Any],
        attempt: idempotency.Attempt,
    ) -> SetupLink:
        def store_body(link: SetupLink) -> None:
            body = self.represent([link])[0]
            stored_body = {
                name: body[name] for name in body if name not in serializers.SECRET_FIELDS
            }
            attempt.finish(stored_body, setup_link=link)

        link_request = setup_links.prepare(
            customer,
            options=options,
            next_url=values["next_url"],
            created_by=self.actor,
            since=attempt.since,
            on_recorded=store_body,
        )
        with KapsoClient.from_settings() as client:
            return setup_links.create(link_request, client)

    @extend_schema(
        responses=responses(
            serializers.SetupLinkSerializer,
            "not_found",
            *BODY_ERRORS,
            *KAPSO_ERRORS,
            "setup_link_used",
        )
    )
    def revoke(self, request: Request, pk: str) -> Response:
        """Revoke a setup link at Kapso, and the customer's connect_url with it. Revoking it again
        changes nothing."""
        link = self.get_object()
        self.validated_body()
        if not onboarding.revoke_setup_link(link, actor=self.actor):
            link.refresh_from_db()
            if link.status != SetupLink.Status.REVOKED:
                raise ApiError("setup_link_used")
        return Response(self.represent([self.get_object()])[0])


CONNECTION_ACTION_RESPONSES = responses(
    serializers.ConnectionSerializer,
    "not_found",
    *BODY_ERRORS,
    *KAPSO_ERRORS,
    "changed_meanwhile",
    "number_moved",
)


@describe_reads
class Connections(Api):
    """Numbers that are or were connected, newest first."""

    rows = Connection.objects.all()
    tag = "WhatsApp connections"
    filters = ConnectionFilters
    serializer_class = serializers.ConnectionSerializer
    serializer_classes = {
        "refresh": serializers.EmptySerializer,
        "disconnect": serializers.EmptySerializer,
    }
    required_permissions = {
        "list": required("view_connection"),
        "retrieve": required("view_connection"),
        "refresh": required("check_health"),
        "disconnect": required("disconnect_number"),
    }
    throttle_kinds = {"refresh": "kapso", "disconnect": "kapso"}

    @extend_schema(responses=CONNECTION_ACTION_RESPONSES)
    def refresh(self, request: Request, pk: str) -> Response:
        """Get the number and its health from Kapso, and return the result. Until
        health_retry_after, Kapso is not asked for the health again."""
        connection = self.get_object()
        self.validated_body()
        with KapsoClient.from_settings() as client:
            remote_numbers.refresh_number(
                connection.phone_number_id, source=Source.MANUAL, client=client
            )
            remote_numbers.check_owner(connection)
            connection = self.get_object()
            checked_at = connection.health_checked_at
            is_recent = checked_at is not None and time_since(checked_at) <= HEALTH_CHECK_INTERVAL
            if connection.is_connected and not is_recent and not health.is_held(connection):
                health.ask_and_record(connection, client, actor=self.actor)
        return Response(self.represent([self.get_object()])[0])

    @extend_schema(responses=CONNECTION_ACTION_RESPONSES)
    def disconnect(self, request: Request, pk: str) -> Response:
        """Disconnect the number, remove it from Kapso and end the customer's setup links.
        Disconnecting it again changes nothing."""
        connection = self.get_object()
        self.validated_body()
        onboarding.disconnect_number(connection, actor=self.actor)
        return Response(self.represent([self.get_object()])[0])


@describe_reads
class Events(Api):
    """What happened to customers, links and numbers, newest first. Follow next: pages do not shift
    when new events arrive."""

    rows = TimelineEvent.objects.all()
    tag = "WhatsApp timeline"
    filters = EventFilters
    pagination_class = TimelinePagination
    serializer_class = serializers.EventSerializer
    required_permissions = {"list": required("view_timelineevent")}


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
        from .openapi import build_document

        return Response(build_document(self.patterns, self.request.path.removesuffix("schema/")))
