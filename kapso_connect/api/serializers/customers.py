"""Customers, their onboarding status, and the e-mails that are sent to them."""

from __future__ import annotations

from typing import Any

from rest_framework import serializers

from ...kapso.error_codes import SETUP_ERRORS, Action, find_error
from ...kapso.languages import Language
from ...languages import language_choices, page_languages
from ...models import Customer, TimelineEvent
from ...onboarding.status import CustomerStatus, OnboardingStatus
from .. import examples
from ..fields import (
    ChoiceField,
    IdField,
    NameField,
    NullableCharField,
    NullableChoiceField,
    NullableEmailField,
    StrictCharField,
    UtcDateTimeField,
)
from ..schema import OpenApiExample, extend_schema_serializer
from .base import CREATED_AT_HELP, CUSTOMER_HELP, ID_HELP, UPDATED_AT_HELP, StrictSerializer
from .connections import StatusConnectionSerializer
from .setup_links import StatusLinkSerializer

STATUS_HELP = (
    "The onboarding status of the customer. `paused` means that Meta took the number off, after a "
    "change of phone for example: it is usually back within minutes. If it is not after an hour, "
    "the customer has to reconnect it."
)


@extend_schema_serializer(
    examples=[
        OpenApiExample("example", examples.NEW_CUSTOMER, request_only=True),
        OpenApiExample("example", examples.CUSTOMER, response_only=True),
    ]
)
class CustomerSerializer(StrictSerializer):
    """A customer of this site, who connects a number or has connected one."""

    id = IdField(read_only=True, help_text=ID_HELP)
    name = NameField(max_length=255, help_text="The name of the customer.")
    external_customer_id = StrictCharField(
        max_length=255,
        required=False,
        allow_null=True,
        help_text="This site's own id for the customer; generated if none is given.",
    )
    email = NullableEmailField(
        max_length=254, required=False, help_text="The address that invitations are sent to."
    )
    language = NullableChoiceField(
        "CustomerLanguage",
        Language.choices,
        required=False,
        is_open=True,
        help_text="The language of pages and e-mails; null for that of the customer's browser.",
    )
    kapso_id = serializers.CharField(
        read_only=True,
        allow_null=True,
        help_text="Kapso's id of the customer; set when the first setup link is created.",
    )
    status = ChoiceField(
        "OnboardingStatus", OnboardingStatus.choices, read_only=True, help_text=STATUS_HELP
    )
    created_at = UtcDateTimeField(read_only=True, help_text=CREATED_AT_HELP)
    updated_at = UtcDateTimeField(read_only=True, help_text=UPDATED_AT_HELP)

    def get_fields(self) -> dict[str, serializers.Field[Any, Any, Any, Any]]:
        fields = super().get_fields()
        if not self.context["view"].sets_external_ids:
            fields["external_customer_id"].read_only = True
        language: Any = fields["language"]
        language.choices = language_choices()
        language.error_messages["invalid_choice"] = (
            f"Must be one of: {', '.join(page_languages())}."
        )
        return fields


class CustomerPatchSerializer(CustomerSerializer):
    """What to change of a customer. What is left out stays as it is."""

    def get_fields(self) -> dict[str, serializers.Field[Any, Any, Any, Any]]:
        fields = super().get_fields()
        fields["name"].required = False
        return fields


class FailureSerializer(serializers.Serializer[Any]):
    """Why connecting failed, with texts for the customer in the language of the request."""

    code = ChoiceField(
        "FailureCode",
        [
            *((code, error.title) for code, error in SETUP_ERRORS.items()),
            ("unknown", "Something else"),
        ],
        is_open=True,
        help_text="Kapso's error code; unknown for one that this version does not know.",
    )
    kapso_code = NullableCharField(
        help_text="The error code as it came from Kapso or the customer's browser."
    )
    title = serializers.CharField(help_text="What happened, for the customer.")
    cause = serializers.CharField(help_text="Why it happened, for the customer.")
    advice = serializers.CharField(help_text="What to do next, for the customer.")
    action = ChoiceField(
        "FailureAction",
        Action.choices,
        is_open=True,
        help_text="The best next step of the customer.",
    )


@extend_schema_serializer(examples=[OpenApiExample("example", examples.STATUS)])
class StatusSerializer(serializers.Serializer[Any]):
    """The onboarding status of a customer."""

    customer = IdField(help_text=CUSTOMER_HELP)
    status = ChoiceField("OnboardingStatus", OnboardingStatus.choices, help_text=STATUS_HELP)
    connection = StatusConnectionSerializer(
        allow_null=True, help_text="The number that is connected, or was connected last."
    )
    more_connections = serializers.IntegerField(
        min_value=0, help_text="How many other numbers are connected."
    )
    setup_link = StatusLinkSerializer(allow_null=True, help_text="The latest setup link.")
    failure = FailureSerializer(
        allow_null=True, help_text="Why connecting failed; null unless status is failed."
    )


def status_body(customer: Customer, status: CustomerStatus) -> dict[str, Any]:
    """Return the body of the response about the onboarding status of ``customer``."""
    link = status.link
    failed = link is not None and status.status == OnboardingStatus.FAILED
    return StatusSerializer(
        {
            "customer": customer.pk,
            "status": status.status,
            "connection": status.connection,
            "more_connections": status.more_connections,
            "setup_link": link,
            "failure": failure_body(link.last_error_code) if link is not None and failed else None,
        }
    ).data


def failure_body(kapso_code: str) -> dict[str, Any]:
    """Return how a failed setup is explained to the customer, by the error code from Kapso."""
    known = find_error(kapso_code)
    return {
        "code": kapso_code if kapso_code in SETUP_ERRORS else "unknown",
        "kapso_code": kapso_code,
        "title": str(known.title),
        "cause": str(known.cause),
        "advice": str(known.advice),
        "action": known.action,
    }


@extend_schema_serializer(examples=[OpenApiExample("example", examples.SENT_EMAIL)])
class SentEmailSerializer(serializers.Serializer[TimelineEvent]):
    """An e-mail with the customer's personal link, which the mail server accepted."""

    customer = IdField(source="customer_id", help_text=CUSTOMER_HELP)
    setup_link = IdField(
        source="setup_link_id", help_text="The id of the customer's latest setup link."
    )
    to = serializers.CharField(source="data.to", help_text="The address that it was sent to.")
    sent_at = UtcDateTimeField(source="occurred_at", help_text="When it was sent.")
