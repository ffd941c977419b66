"""Customers and the status of their onboarding."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any, cast

from django.core.exceptions import ImproperlyConfigured
from django.db import Error
from django.db.models import Model
from django.urls import NoReverseMatch
from django.utils.cache import patch_vary_headers
from django.utils.http import parse_etags
from rest_framework.exceptions import APIException, ErrorDetail, ValidationError
from rest_framework.request import Request
from rest_framework.response import Response

from ... import onboarding
from ...db import retry_on_conflict
from ...exceptions import CannotInvite
from ...log import log_event
from ...models import Customer, SetupLink, TimelineEvent
from ...onboarding import reminders, renewal
from ...onboarding.mailer import SendFailure, classify_error
from ...onboarding.status import get_statuses
from .. import examples, idempotency, serializers
from ..errors import ApiError, field_errors
from ..filters import CustomerFilters
from ..operations import (
    BODY_ERRORS,
    CREATE_HEADERS,
    IDEMPOTENCY_ERRORS,
    SEND_ERRORS,
    SEND_HEADERS,
    describe_reads,
    responses,
)
from ..permissions import required
from ..schema import OpenApiParameter, OpenApiResponse, extend_schema
from .base import Api

CHANGE_RESPONSES = responses(
    serializers.CustomerSerializer,
    "not_found",
    *BODY_ERRORS,
    "customer_erased",
    "external_customer_id_taken",
    invalid=examples.NAME_BLANK,
)


StoreEvent = Callable[[TimelineEvent], None]
SendEmail = Callable[[Customer, "SetupLink | None", StoreEvent], None]

OBSTACLE_CODES: dict[str, str] = {
    reminders.Obstacle.CONNECTED: "already_connected",
    reminders.Obstacle.NO_URL: "no_personal_link",
    reminders.Obstacle.STATUS: "not_waiting",
    reminders.Obstacle.NO_EMAIL: "no_email_address",
    reminders.Obstacle.RECENT: "emailed_recently",
}
SEND_FAILURE_CODES = {
    SendFailure.TEMPORARY: "email_not_accepted_yet",
    SendFailure.UNKNOWN: "email_outcome_unknown",
    SendFailure.PERMANENT: "email_refused",
}
NOT_OF_THE_MAIL_SERVER = (
    APIException,
    CannotInvite,
    Error,
    ImproperlyConfigured,
    NoReverseMatch,
)
"""Errors that say nothing about the mail server."""

NOT_UNIQUE = ErrorDetail("Must be unique.", code="unique")


@describe_reads
class Customers(Api):
    """Customers and their onboarding status, newest first."""

    rows = Customer.objects.all()
    owned_by = "pk"
    example = examples.NEW_CUSTOMER
    tag = "Kapso customers"
    filters = CustomerFilters
    serializer_class = serializers.CustomerSerializer
    serializer_classes = {
        "partial_update": serializers.CustomerPatchSerializer,
        "send_invitation": serializers.EmptySerializer,
        "send_reminder": serializers.EmptySerializer,
    }
    required_permissions = {
        "list": required("view_customer"),
        "retrieve": required("view_customer"),
        "create": required("add_customer"),
        "partial_update": required("change_customer"),
        "status": required("view_customer", "view_setuplink", "view_connection"),
        "send_invitation": required("view_customer", "send_setup_link"),
        "send_reminder": required("view_customer", "send_setup_link"),
    }
    throttle_kinds = {
        "create": "write",
        "partial_update": "write",
        "send_invitation": "write",
        "send_reminder": "write",
    }

    def validated_body(self, **options: Any) -> dict[str, Any]:
        try:
            return super().validated_body(**options)
        except ValidationError as error:
            # An external id that is taken is a conflict by itself, and here one error of several.
            detail = cast("dict[str, Any]", error.detail)
            value = self.body.get("external_customer_id") if isinstance(self.body, dict) else None
            is_valid = isinstance(value, str) and "external_customer_id" not in detail
            customer_pk = self.pk if "pk" in self.kwargs else 0
            if is_valid and self._is_taken(str(value).strip(), customer_pk):
                detail["external_customer_id"] = [NOT_UNIQUE]
            raise

    def create_customer(self, **values: Any) -> Customer:
        """Create a customer. This runs in a transaction, which is retried on conflicts."""
        return Customer.objects.create(**values)

    def get_owner(self, request: Request, **values: Any) -> Model | None:
        """Return the object of the site's that owns the customer which is created with ``values``,
        or None if there is none. It runs in the transaction that creates the customer."""
        return None

    @extend_schema(
        summary="New customer",
        parameters=CREATE_HEADERS,
        responses=responses(
            serializers.CustomerSerializer,
            *BODY_ERRORS,
            *IDEMPOTENCY_ERRORS,
            "external_customer_id_taken",
            "owner_taken",
            status=201,
            description="The new object.",
            invalid=examples.NAME_MISSING,
        ),
    )
    def create(self, request: Request) -> Response:
        """Create a customer. With an Idempotency-Key, the request can be repeated without creating
        a second one."""
        values = self.validated_body()
        with idempotency.attempt(request, self.get_idempotency_owner) as attempt:
            if attempt.row.response is not None:
                customer = self.get_permitted(
                    self.get_queryset().filter(pk=attempt.row.customer_id)
                )
                return self.created_response(
                    "customer", customer.pk, attempt.row.response, replayed=True
                )
            pk, body = retry_on_conflict(lambda: self._create(values, attempt))
            return self.created_response("customer", pk, body)

    def _create(self, values: Mapping[str, Any], attempt: idempotency.Attempt) -> tuple[int, Any]:
        self._check_external_id(values)
        customer = self.create_customer(**values)
        owner = self.get_owner(self.request, **values)
        if owner is not None:
            onboarding.assign_owner(customer, owner, actor=self.actor)
        body = self.represent([customer])[0]
        attempt.finish(body, customer=customer)
        return customer.pk, body

    @extend_schema(summary="Change a customer", responses=CHANGE_RESPONSES)
    def partial_update(self, request: Request, pk: str) -> Response:
        """Change the given fields of a customer. What they are already is no change."""
        customer_pk = self.get_object().pk
        values = self.validated_body()

        def change() -> Customer:
            customer = Customer.objects.select_for_update().get(pk=customer_pk)
            if customer.erased_at is not None:
                raise ApiError("customer_erased")
            self._check_external_id(values, customer_pk=customer_pk)
            changed = [name for name in values if getattr(customer, name) != values[name]]
            for name in changed:
                setattr(customer, name, values[name])
            if changed:
                customer.save(update_fields=[*changed, "updated_at"])
            return customer

        return self.object_response(retry_on_conflict(change))

    def _check_external_id(self, values: Mapping[str, Any], customer_pk: int = 0) -> None:
        external_id = values.get("external_customer_id")
        if external_id is not None and self._is_taken(external_id, customer_pk):
            fields = dict(field_errors({"external_customer_id": [NOT_UNIQUE]}))
            raise ApiError("external_customer_id_taken", fields=fields)

    def _is_taken(self, external_id: str, customer_pk: int) -> bool:
        # Compared by the database, as its unique constraint does.
        others = Customer.objects.filter(external_customer_id=external_id).exclude(pk=customer_pk)
        return others.exists()

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

    @extend_schema(
        request=None,
        parameters=SEND_HEADERS,
        responses=responses(
            serializers.SentEmailSerializer,
            *SEND_ERRORS,
            description="The e-mail.",
        ),
    )
    def send_invitation(self, request: Request, pk: str) -> Response:
        """E-mail the customer's personal link to the customer. With an Idempotency-Key, the request
        can be repeated without sending it twice."""

        def send(customer: Customer, link: SetupLink | None, store: StoreEvent) -> None:
            if link is None or not renewal.leads_to_setup(customer, link):
                is_onboarded = renewal.is_onboarded(customer, link)
                raise ApiError("already_connected" if is_onboarded else "no_personal_link")
            onboarding.send_invitation(customer, link, actor=self.actor, on_recorded=store)

        return self._send_email(send)

    @extend_schema(
        request=None,
        parameters=SEND_HEADERS,
        responses=responses(
            serializers.SentEmailSerializer,
            *SEND_ERRORS,
            "not_waiting",
            "emailed_recently",
            description="The e-mail.",
        ),
    )
    def send_reminder(self, request: Request, pk: str) -> Response:
        """Remind the customer of the invitation by e-mail: whoever was invited, has not connected a
        number and was not e-mailed the personal link within a day. With an Idempotency-Key, the
        request can be repeated without sending it twice."""

        def send(customer: Customer, link: SetupLink | None, store: StoreEvent) -> None:
            if link is None:
                raise ApiError("no_personal_link")
            obstacle = reminders.remind(customer, link, actor=self.actor, on_recorded=store)
            if obstacle:
                raise ApiError(OBSTACLE_CODES[obstacle])

        return self._send_email(send)

    def _send_email(self, send: SendEmail) -> Response:
        customer = self.get_object()
        self.validated_body()
        with idempotency.attempt(self.request, self.get_idempotency_owner) as attempt:
            if attempt.row.response is not None:
                headers = {idempotency.REPLAYED_HEADER: "true"}
                return Response(attempt.row.response, headers=headers)
            if attempt.since is not None:
                # The process of the earlier attempt may have died after it had sent the e-mail.
                raise ApiError("email_outcome_unknown")
            if customer.erased_at is not None:
                raise ApiError("customer_erased")
            link = customer.latest_setup_link
            body: dict[str, Any] = {}

            def store(event: TimelineEvent) -> None:
                body.update(serializers.SentEmailSerializer(event).data)
                attempt.finish(body, customer=customer)

            failure: SendFailure | None = None
            try:
                send(customer, link, store)
            except NOT_OF_THE_MAIL_SERVER:
                raise
            except Exception as error:  # each mail backend raises its own
                log_event("email.failed", customer_id=customer.pk, error=type(error).__name__)
                failure = classify_error(error)
            if failure is not None:
                # Raised here, it has no context: mail servers repeat the customer's address.
                raise ApiError(SEND_FAILURE_CODES[failure])
        return Response(body)
