"""Connections, which are numbers that are or were connected."""

from __future__ import annotations

from typing import Any

from rest_framework import serializers

from ...kapso.types import ConnectionType
from ...models import AccountStatus, Connection, Funding, Health
from .. import examples
from ..fields import ChoiceField, IdField, NullableCharField, NullableChoiceField, UtcDateTimeField
from ..schema import OpenApiExample, extend_schema_serializer
from .base import CREATED_AT_HELP, CUSTOMER_HELP, ID_HELP, UPDATED_AT_HELP


class StatusConnectionSerializer(serializers.Serializer[Connection]):
    """A summary of a number."""

    id = IdField(help_text=ID_HELP)
    phone_number_id = serializers.CharField(help_text="Meta's id of the number.")
    display_phone_number = NullableCharField(
        help_text="The number, formatted for people; null until Kapso has told it."
    )
    verified_name = NullableCharField(
        help_text="The name that WhatsApp displays; null until Kapso has told it."
    )
    connection_type = NullableChoiceField(
        "ConnectionType",
        ConnectionType.choices,
        is_open=True,
        help_text="How the number is connected; null if Kapso did not say.",
    )
    status = ChoiceField(
        "ConnectionStatus", Connection.Status.choices, help_text="Whether the number is connected."
    )
    connected_at = UtcDateTimeField(
        allow_null=True, help_text="When the number was last connected."
    )
    disconnected_at = UtcDateTimeField(
        allow_null=True, help_text="When the number was last disconnected."
    )
    disconnect_reason = NullableCharField(
        help_text="Why the number was last disconnected: `offboarded` by Meta, which is a pause; "
        "`staff` if a user of the site did it."
    )


class HealthProblemSerializer(serializers.Serializer[Any]):
    """One thing that is wrong with a number, in Kapso's and Meta's words."""

    check = NullableCharField(
        help_text="The check that found it: phone_number_access, phone_number_connection, "
        "messaging_health, webhook_subscription, webhook_verified, token_validity, or a new one."
    )
    entity = NullableCharField(
        help_text="What Meta finds fault with: PHONE_NUMBER, WABA, BUSINESS, APP, MESSAGE_TEMPLATE."
    )
    code = NullableCharField(
        help_text="Meta's error code; 141006 is a payment problem, to be solved at Meta."
    )
    description = NullableCharField(help_text="What is wrong.")
    solution = NullableCharField(help_text="What Meta advises.")


@extend_schema_serializer(examples=[OpenApiExample("example", examples.CONNECTION)])
class ConnectionSerializer(StatusConnectionSerializer):
    """A number that is or was connected."""

    customer = IdField(source="customer_id", help_text=CUSTOMER_HELP)
    setup_link = IdField(
        source="setup_link_id",
        allow_null=True,
        help_text="The id of the setup link that it was connected with.",
    )
    is_test_number = serializers.BooleanField(
        help_text="Whether it is one of Meta's test numbers, which have only a display name."
    )
    business_account_id = NullableCharField(
        help_text="Meta's id of the WhatsApp Business Account that has the number."
    )
    kapso_phone_number_id = NullableCharField(
        source="provisioned_phone_number_id",
        help_text="Kapso's id of the number, if Kapso provided it.",
    )
    quality_rating = NullableCharField(help_text="Meta's quality rating: GREEN, YELLOW or RED.")
    name_status = NullableCharField(help_text="Whether Meta approved the display name.")
    health_status = NullableChoiceField(
        "Health",
        Health.choices,
        is_open=True,
        help_text="The result of Kapso's last health check; null before the first one.",
    )
    health_error = NullableCharField(help_text="The error of the last health check.")
    health_problems = HealthProblemSerializer(
        many=True, help_text="What the last health check found wrong; empty if nothing."
    )
    health_checked_at = UtcDateTimeField(
        allow_null=True, help_text="When Kapso last checked the health."
    )
    health_retry_after = UtcDateTimeField(
        allow_null=True,
        help_text="After repeated errors, Kapso repeats its last result until then, and is not "
        "asked again.",
    )
    funding_status = NullableChoiceField(
        "Funding",
        Funding.choices,
        is_open=True,
        help_text="Whether Kapso pays Meta, which a completed setup does not say. null unless the "
        "number was connected with the meta_billing_mode partner_managed.",
    )
    funding_checked_at = UtcDateTimeField(
        allow_null=True, help_text="When Kapso was last asked whether it pays Meta."
    )
    account_status = ChoiceField(
        "AccountStatus",
        AccountStatus.choices,
        is_open=True,
        help_text="What Meta allows the WhatsApp Business Account to do.",
    )
    restrictions = serializers.ListField(
        child=serializers.DictField(),
        help_text="Meta's restrictions of the account, as Kapso reports them.",
    )
    account_updated_at = UtcDateTimeField(
        allow_null=True, help_text="When Meta last changed the status of the account."
    )
    created_at = UtcDateTimeField(help_text=CREATED_AT_HELP)
    updated_at = UtcDateTimeField(help_text=UPDATED_AT_HELP)
