"""Setup links: listed, created, revoked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.core.exceptions import PermissionDenied
from django.utils.functional import cached_property
from rest_framework.request import Request
from rest_framework.response import Response

from ... import onboarding
from ...kapso.client import KapsoClient
from ...models import Customer, SetupLink
from ...onboarding import setup_links
from ...onboarding.connect_urls import connect_url
from .. import examples, idempotency, serializers
from ..errors import ApiError
from ..filters import SetupLinkFilters
from ..operations import (
    BODY_ERRORS,
    CREATE_HEADERS,
    IDEMPOTENCY_ERRORS,
    KAPSO_ERRORS,
    describe_reads,
    responses,
)
from ..permissions import required
from ..schema import extend_schema
from .base import Api


@describe_reads
class SetupLinks(Api):
    """Invitations to connect a number, newest first."""

    rows = SetupLink.objects.select_related("customer")
    example = examples.NEW_SETUP_LINK
    tag = "Kapso setup links"
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
            *BODY_ERRORS,
            *IDEMPOTENCY_ERRORS,
            *KAPSO_ERRORS,
            "token_not_permitted",
            "customer_erased",
            status=201,
            description="The new object.",
            invalid=examples.CUSTOMER_UNKNOWN,
        ),
    )
    def create(self, request: Request) -> Response:
        """Create a setup link at Kapso for a customer and end the customer's older one. Give the
        customer connect_url, which keeps working when the link is renewed. With an
        Idempotency-Key, the request can be repeated without creating a second link."""
        values = self.validated_body()
        customer, options = values["customer"], values.get("options", {})
        with_token = values.get("include_token", False)
        self._check_permitted(customer, options, with_token=with_token)
        with idempotency.attempt(request, self.get_idempotency_owner) as attempt:
            link = attempt.row.setup_link or self._create(customer, options, values, attempt)
            body = dict(attempt.row.response or self.represent([link])[0])
        # These are not stored with the key.
        body |= {"url": link.url, "connect_url": connect_url(link.customer) or None, "token": None}
        if with_token:
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
            next_url=values.get("next_url", ""),
            created_by=self.actor,
            since=attempt.since,
            on_recorded=store_body,
        )
        with KapsoClient.from_settings() as client:
            return setup_links.create(link_request, client)

    @extend_schema(
        request=None,
        responses=responses(
            serializers.SetupLinkSerializer,
            "not_found",
            *BODY_ERRORS,
            *KAPSO_ERRORS,
            "setup_link_used",
        ),
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
        return self.object_response(self.get_object())
