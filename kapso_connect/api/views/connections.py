"""Numbers: listed, refreshed, disconnected."""

from __future__ import annotations

from datetime import timedelta

from rest_framework.request import Request
from rest_framework.response import Response

from ... import onboarding
from ...kapso.client import KapsoClient
from ...models import Connection, Source
from ...onboarding import health, remote_numbers
from ...utils import time_since
from .. import serializers
from ..filters import ConnectionFilters
from ..operations import BODY_ERRORS, KAPSO_ERRORS, describe_reads, responses
from ..permissions import required
from ..schema import extend_schema
from .base import Api

HEALTH_CHECK_INTERVAL = timedelta(seconds=10)
"""A number's health is not checked again within this time."""

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
    tag = "Kapso connections"
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

    @extend_schema(request=None, responses=CONNECTION_ACTION_RESPONSES)
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
        return self.object_response(self.get_object())

    @extend_schema(request=None, responses=CONNECTION_ACTION_RESPONSES)
    def disconnect(self, request: Request, pk: str) -> Response:
        """Disconnect the number, remove it from Kapso and end the customer's setup links.
        Disconnecting it again changes nothing."""
        connection = self.get_object()
        self.validated_body()
        onboarding.disconnect_number(connection, actor=self.actor)
        return self.object_response(self.get_object())
