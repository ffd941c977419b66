"""The views of the API. What they change, they change through ``onboarding``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from copy import copy
from datetime import timedelta
from typing import Any, ClassVar

from django.contrib.auth import get_user_model
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import Http404
from django.urls import URLPattern
from django.utils import timezone
from django.utils.cache import patch_vary_headers
from django.utils.http import parse_etags
from rest_framework.permissions import BasePermission
from rest_framework.renderers import BaseRenderer
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
from ..onboarding import numbers, setup_links
from ..onboarding.connect_urls import connect_url
from ..onboarding.status import get_status, get_statuses
from ..onboarding.steps import run
from . import idempotency, operations, permissions, serializers
from .browsing import FilterLinks, form_for
from .errors import ApiError, handle, invalid_value
from .fields import is_key
from .filters import (
    ConnectionFilters,
    CustomerFilters,
    EventFilters,
    Filters,
    SetupLinkFilters,
    checked,
)
from .inspection import Inspected, is_installed
from .operations import Operation
from .pagination import Pages, Timeline
from .parsers import MAX_BYTES, BoundedJSONParser
from .permissions import needing
from .throttling import Throttle

JUST_NOW = timedelta(seconds=10)
"""Within which a number's health is not asked for again."""


class Api(GenericViewSet[Any]):
    """What all views of the API share.

    Hosts limit or change them with a mixin (see ``tenants.TenantMixin`` and ``urls.urls_for``).
    Renderers and authentication are the site's own, as REST_FRAMEWORK says.
    """

    rows: ClassVar[QuerySet[Any]]
    owned_by: ClassVar[str] = "customer"
    """The path from a row to its customer."""
    filters: ClassVar[type[Filters]]
    serializer_classes: ClassVar[Mapping[str, type[Serializer[Any]]]] = {}
    """By action, where it is not ``serializer_class``: of the request's body."""
    needs: ClassVar[Mapping[str, Sequence[Sequence[str]]]] = {}
    """By action, the permissions that staff need, each of them with its alternatives."""
    throttle_kinds: ClassVar[Mapping[str, str]] = {}
    """By action, the key of ``API_THROTTLE_RATES``, where it is not ``read``."""

    operations: ClassVar[Mapping[str, Operation]] = {}
    """By action, what is said of it."""
    tag: ClassVar[str] = "WhatsApp"
    """The group of these operations in the schema."""
    schema_name: ClassVar[str] = "whatsapp"
    """What operations' ids begin with: another one where this API is mounted again."""

    shows_details: ClassVar[bool] = True
    """Whether these users may read Kapso's own words, and who of the staff did what."""
    sets_external_ids: ClassVar[bool] = True
    """Whether these users choose customers' external ids, by which Kapso's customers are found."""

    http_method_names = ["get", "post", "put", "patch", "head"]
    permission_classes: Any = ()
    parser_classes = (BoundedJSONParser,)
    pagination_class: Any = Pages
    filter_backends: Any = (FilterLinks,)
    versioning_class = None
    metadata_class = None
    schema = Inspected()

    @classmethod
    def as_view(cls, *args: Any, **kwargs: Any) -> Any:
        # Kapso is asked, and what is written is committed before it is answered.
        return non_atomic(super().as_view(*args, **kwargs))

    # Who may

    def get_permissions(self) -> list[BasePermission]:
        return [kind() for kind in self.permission_classes or permissions.configured()]

    def may(self, action: str) -> bool:
        """True where this user is permitted another ``action`` of this view, a POST."""
        asked = copy(self)
        asked.action = action
        asked.request = clone_request(self.request, "POST")
        return all(one.has_permission(asked.request, asked) for one in asked.get_permissions())

    def get_throttles(self) -> list[BaseThrottle]:
        return [Throttle(self.throttle_kinds.get(self.action, "read"))]

    def get_idempotency_owner(self, request: Request) -> str:
        """Return whose an ``Idempotency-Key`` is: others may use the same one."""
        key = getattr(request.user, "pk", None)
        if key is None:
            raise invalid_value(
                idempotency.HEADER,
                "Keys can be used by those only who are known by name.",
                code="invalid_idempotency_key",
            )
        return str(key)

    @property
    def actor(self) -> Any:
        """The user of this site who asks; None for one that is no row of the user model."""
        user = self.request.user
        return user if isinstance(user, get_user_model()) else None

    # What there is

    def limit(self, rows: QuerySet[Any], to: str) -> QuerySet[Any]:
        """Return those of ``rows`` that this request may see; ``to`` leads to their customer."""
        return rows

    def get_queryset(self) -> QuerySet[Any]:
        return self.limit(self.rows.all(), self.owned_by)

    def get_customer(self, pk: int) -> Customer:
        found: Customer | None = self.limit(Customer.objects.filter(pk=pk), "pk").first()
        if found is None:
            raise Http404
        self.check_object_permissions(self.request, found)
        return found

    def get_object(self) -> Any:
        row = self.get_queryset().filter(pk=self.key).first()
        if row is None:
            raise Http404
        self.check_object_permissions(self.request, row)
        return row

    @property
    def key(self) -> int:
        """The key of the row that the address names. Raises Http404 for what can be none."""
        text: str = self.kwargs["pk"]
        if not is_key(text):
            raise Http404
        return int(text)

    # Requests and answers

    def dispatch(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        # What else is in the address is the mount's, for a mixin to read in ``kwargs``.
        self.in_address = kwargs
        own = {name: value for name, value in kwargs.items() if name == "pk"}
        return super().dispatch(request, *args, **own)

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        self.kwargs = self.in_address
        # Before anything looks into the body.
        try:
            length = int(request.META.get("CONTENT_LENGTH") or 0)
        except ValueError:
            length = 0
        if length > MAX_BYTES:
            raise ApiError(413, "too_large", f"The body is larger than {MAX_BYTES} bytes.")
        if "HTTP_TRANSFER_ENCODING" in request.META and not length:
            # It would be taken for an empty one, and a change for done.
            raise ApiError(400, "parse_error", "The body comes without its Content-Length.")
        request.get_host()  # before something is made whose address cannot be told
        super().initial(request, *args, **kwargs)

    def get_exception_handler(self) -> Any:
        return handle

    def finalize_response(
        self, request: Request, response: Any, *args: Any, **kwargs: Any
    ) -> Response:
        answer = super().finalize_response(request, response, *args, **kwargs)
        answer.headers.setdefault("Cache-Control", "no-store")
        return answer

    def get_serializer_class(self) -> type[BaseSerializer[Any]]:
        return self.serializer_classes.get(self.action) or super().get_serializer_class()

    def get_serializer(self, *args: Any, **kwargs: Any) -> Any:
        if "data" not in kwargs:  # it is for the form on a page
            return form_for(self, kwargs.get("instance"))
        return super().get_serializer(*args, **kwargs)

    def checked_body(self, **options: Any) -> dict[str, Any]:
        """Return the request's body as this action's serializer understands it."""
        serializer = self.get_serializer(data=self.request.data, **options)
        serializer.is_valid(raise_exception=True)
        return serializer.validated_data  # type: ignore[no-any-return]

    def represent(self, rows: Sequence[Any]) -> Sequence[Any]:
        """Return what is answered for ``rows``, in a fixed number of queries."""
        context = {**self.get_serializer_context(), **self.context_of(rows)}
        kind: Any = self.serializer_class
        return [kind(row, context=context).data for row in rows]

    def context_of(self, rows: Sequence[Any]) -> Mapping[str, Any]:
        """Return what the serializer needs to know of all ``rows`` together."""
        return {}

    def url_of(self, name: str, *args: Any) -> str:
        """Return the address of a view where this API is mounted."""
        match: Any = self.request.resolver_match
        kwargs = {key: value for key, value in self.kwargs.items() if key != "pk"}
        if args:
            (kwargs["pk"],) = args
        return reverse(f"{match.namespace}:{name}", kwargs=kwargs, request=self.request)

    def created(
        self, name: str, key: Any, body: Mapping[str, Any], *, replayed: bool = False
    ) -> Response:
        headers = {"Location": self.url_of(name, key)}
        if replayed:
            headers[idempotency.REPLAYED] = "true"
        return Response(body, status=201, headers=headers)

    # The actions that most views have

    def list(self, request: Request) -> Response:
        filters, given = checked(self.filters, request)
        page = self.paginate_queryset(filters.narrow(self.get_queryset(), given))
        return self.get_paginated_response(self.represent(page or []))

    def retrieve(self, request: Request, pk: str) -> Response:
        return Response(self.represent([self.get_object()])[0])


class Root(Api):
    """Where everything is."""

    serializer_class = serializers.Nothing
    operations = operations.ROOT
    answer_schema: ClassVar[dict[str, Any]] = {
        "type": "object",
        "additionalProperties": {"type": "string", "format": "uri"},
    }

    def list(self, request: Request) -> Response:
        names = ("customers", "setup-links", "connections", "events", "schema")
        return Response({name.replace("-", "_"): self.url_of(name) for name in names})


class Customers(Api):
    """Customers, and where each of them stands."""

    rows = Customer.objects.all()
    owned_by = "pk"
    operations = operations.CUSTOMERS
    tag = "WhatsApp customers"
    filters = CustomerFilters
    serializer_class = serializers.CustomerSerializer
    needs = {
        "list": needing("view_customer"),
        "retrieve": needing("view_customer"),
        "create": needing("add_customer"),
        "update": needing("change_customer"),
        "partial_update": needing("change_customer"),
        "status": needing("view_customer", "view_setuplink", "view_connection"),
    }
    throttle_kinds = {"create": "write", "update": "write", "partial_update": "write"}

    def context_of(self, rows: Sequence[Any]) -> Mapping[str, Any]:
        return {"standings": get_statuses(rows)}

    def create_customer(self, **values: Any) -> Customer:
        """Make a customer; it runs in a transaction, which may be run again."""
        return Customer.objects.create(**values)

    def create(self, request: Request) -> Response:
        values = self.checked_body()
        with idempotency.attempt(request, self.get_idempotency_owner) as attempt:
            if attempt.answer is not None:
                known = self.get_customer(attempt.customer_id)
                return self.created("customer", known.pk, attempt.answer, replayed=True)
            return self.created("customer", *retry_on_conflict(lambda: self._make(values, attempt)))

    def _make(self, values: Mapping[str, Any], attempt: idempotency.Attempt) -> tuple[int, Any]:
        self._refuse_taken(values)
        customer = self.create_customer(**values)
        body = self.represent([customer])[0]
        attempt.settle(body, customer=customer)
        return customer.pk, body

    def update(self, request: Request, pk: str) -> Response:
        return self._change()

    def partial_update(self, request: Request, pk: str) -> Response:
        return self._change(partial=True)

    def _change(self, **options: Any) -> Response:
        found = self.get_object()
        values = self.checked_body(**options)

        def change() -> Customer:
            customer = Customer.objects.select_for_update().get(pk=found.pk)
            self._refuse_taken(values, but=customer.pk)
            for name, value in values.items():
                setattr(customer, name, value)
            customer.save(update_fields=[*values, "updated_at"])
            return customer

        return Response(self.represent([retry_on_conflict(change)])[0])

    def _refuse_taken(self, values: Mapping[str, Any], but: int = 0) -> None:
        wanted = values.get("external_customer_id")
        # As the database compares, and its unique constraint with it.
        others = Customer.objects.filter(external_customer_id=wanted).exclude(pk=but)
        if wanted is not None and others.exists():
            problem = {"code": "unique", "message": "Another customer has this."}
            raise ApiError(
                409,
                "external_customer_id_taken",
                "Another customer has this external id.",
                fields={"external_customer_id": [problem]},
            )

    def status(self, request: Request, pk: str) -> Response:
        """Where the customer stands; 304 where that is what ``If-None-Match`` knows."""
        known = get_status(self.get_queryset().filter(pk=self.key))
        if known is None:
            raise Http404
        self.check_object_permissions(request, known[0])
        body = serializers.status_body(*known)
        digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        # Weak: the same in whatever format, compressed or not.
        etag = f'W/"{digest[:32]}"'
        seen = parse_etags(request.headers.get("If-None-Match", ""))
        is_known = seen == ["*"] or etag.removeprefix("W/") in {
            one.removeprefix("W/") for one in seen
        }
        response = Response(status=304) if is_known else Response(body)
        response.headers["ETag"] = etag
        response.headers["Cache-Control"] = "private, no-cache"
        # A failure is told in words, too.
        patch_vary_headers(response, ["Accept-Language"])
        return response


class SetupLinks(Api):
    """Invitations, the newest first."""

    rows = SetupLink.objects.select_related("customer")
    operations = operations.SETUP_LINKS
    tag = "WhatsApp setup links"
    filters = SetupLinkFilters
    serializer_class = serializers.SetupLinkSerializer
    serializer_classes = {
        "create": serializers.SetupLinkRequestSerializer,
        "revoke": serializers.Nothing,
    }
    needs = {
        "list": needing("view_setuplink"),
        "retrieve": needing("view_setuplink"),
        "create": needing("create_setup_link"),
        "reconnect": needing("create_setup_link", "reconnect_number"),
        "revoke": needing("revoke_setup_link"),
    }
    throttle_kinds = {"create": "kapso", "revoke": "kapso"}

    def context_of(self, rows: Sequence[Any]) -> Mapping[str, Any]:
        return {"shows_addresses": self.may("create")}

    def may_receive_token(self, request: Request) -> bool:
        """True where this user may be given Kapso's token for a browser SDK."""
        has_perm = getattr(request.user, "has_perm", None)
        return has_perm is not None and has_perm("kapso_connect.receive_setup_token")

    def create(self, request: Request) -> Response:
        values = self.checked_body()
        customer = self.get_customer(values["customer"])
        options = values.get("options", {})
        self._check_permitted(customer, options, with_token=values["include_token"])
        with idempotency.attempt(request, self.get_idempotency_owner) as attempt:
            link = attempt.setup_link or self._make(customer, options, values, attempt)
            body = dict(attempt.answer or self.represent([link])[0])
        # These are remembered nowhere else.
        body |= {"url": link.url, "connect_url": connect_url(link.customer) or None, "token": None}
        if values["include_token"]:
            body["token"] = link.token
        is_replay = attempt.answer is not None
        return self.created("setup-link", link.pk, body, replayed=is_replay)

    def _check_permitted(
        self, customer: Customer, options: Mapping[str, Any], *, with_token: bool
    ) -> None:
        if with_token and not self.may_receive_token(self.request):
            raise ApiError(403, "token_not_permitted", "You may not be given the link's token.")
        reconnect = options.get("reconnect_phone_number")
        if not reconnect:
            return
        if not self.may("reconnect"):
            raise PermissionDenied
        digits = digits_of(reconnect)
        numbers = customer.connections.values_list("display_phone_number", flat=True)
        if not any(digits == digits_of(number) for number in numbers):
            raise invalid_value(
                "options.reconnect_phone_number", "Must be a number of this customer's."
            )

    def _make(
        self,
        customer: Customer,
        options: Mapping[str, Any],
        values: Mapping[str, Any],
        attempt: idempotency.Attempt,
    ) -> SetupLink:
        def remember(link: SetupLink) -> None:
            body = self.represent([link])[0]
            kept = {name: body[name] for name in body if name not in serializers.ADDRESSES}
            attempt.settle(kept, setup_link=link)

        steps = setup_links.setup_link_steps(
            customer,
            options=options,
            next_url=values["next_url"],
            created_by=self.actor,
            since=attempt.since,
            recorded=remember,
        )
        with KapsoClient.from_settings() as client:
            return run(steps, client)

    def revoke(self, request: Request, pk: str) -> Response:
        """End a link, and the customer's address with it. One that was revoked stays so."""
        link = self.get_object()
        self.checked_body()
        if not onboarding.revoke_setup_link(link, actor=self.actor):
            link.refresh_from_db()
            if link.status != SetupLink.Status.REVOKED:
                raise ApiError(409, "setup_link_used", "This link has been used; it cannot end.")
        return Response(self.represent([self.get_object()])[0])


def digits_of(number: str) -> str:
    return "".join(char for char in number if char in "0123456789")


class Connections(Api):
    """Numbers, connected now or once."""

    rows = Connection.objects.all()
    operations = operations.CONNECTIONS
    tag = "WhatsApp connections"
    filters = ConnectionFilters
    serializer_class = serializers.ConnectionSerializer
    serializer_classes = {"refresh": serializers.Nothing, "disconnect": serializers.Nothing}
    needs = {
        "list": needing("view_connection"),
        "retrieve": needing("view_connection"),
        "refresh": needing("check_health"),
        "disconnect": needing("disconnect_number"),
    }
    throttle_kinds = {"refresh": "kapso", "disconnect": "kapso"}

    def refresh(self, request: Request, pk: str) -> Response:
        """Ask Kapso about the number, and how it is; answer what is known then."""
        connection = self.get_object()
        self.checked_body()
        with KapsoClient.from_settings() as client:
            numbers.refresh_number(connection.phone_number_id, source=Source.MANUAL, client=client)
            # It may be another customer's by now.
            connection = self.get_object()
            last = connection.health_checked_at
            if connection.is_connected and (last is None or last < timezone.now() - JUST_NOW):
                onboarding.check_health(connection, actor=self.actor, client=client)
        return Response(self.represent([self.get_object()])[0])

    def disconnect(self, request: Request, pk: str) -> Response:
        """Disconnect the number and remove it from Kapso. One that is disconnected stays so."""
        connection = self.get_object()
        self.checked_body()
        onboarding.disconnect_number(connection, actor=self.actor)
        return Response(self.represent([self.get_object()])[0])


class Events(Api):
    """The timeline, the newest first."""

    rows = TimelineEvent.objects.all()
    operations = operations.EVENTS
    tag = "WhatsApp timeline"
    filters = EventFilters
    pagination_class = Timeline
    serializer_class = serializers.EventSerializer
    needs = {"list": needing("view_timelineevent")}


class Schema(Api):
    """This API's description in OpenAPI; drf-spectacular makes it."""

    serializer_class = serializers.Nothing
    operations = operations.SCHEMA
    answer_schema: ClassVar[dict[str, Any]] = {"type": "object", "additionalProperties": {}}
    patterns: ClassVar[Sequence[URLPattern]] = ()
    """The views of this API as they are mounted."""

    def get_renderers(self) -> list[BaseRenderer]:
        if not is_installed():
            return super().get_renderers()
        from drf_spectacular import renderers

        return [
            renderers.OpenApiJsonRenderer2(),
            renderers.OpenApiJsonRenderer(),
            renderers.OpenApiYamlRenderer2(),
            renderers.OpenApiYamlRenderer(),
        ]

    def describe(self, request: Request) -> Response:
        if not is_installed():
            raise ApiError(
                501,
                "openapi_not_installed",
                "This site has no drf-spectacular, which writes the schema. Its developers can "
                'install it: pip install "django-kapso-connect[openapi]"',
            )
        from .schema import make

        return Response(make(self.patterns, self.request.path.removesuffix("schema/")))
