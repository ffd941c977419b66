"""Setup links, and what a request for one may contain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from rest_framework import serializers
from rest_framework.fields import empty

from ... import theme
from ...exceptions import InvalidOptions
from ...kapso.languages import Language
from ...kapso.setup_link_options import (
    AREA_CODE_PATTERN,
    BILLING_MODES,
    COLOR_PATTERN,
    PHONE_NUMBER_PATTERN,
    THEME_COLORS,
    provisioning_problem,
)
from ...kapso.types import ConnectionType
from ...models import Customer, SetupLink
from ...onboarding.connect_urls import connect_url
from ...onboarding.setup_links import validate
from ...utils import MAX_URL_LENGTH
from .. import examples
from ..errors import option_errors
from ..fields import (
    ChoiceField,
    IdField,
    NullableCharField,
    StrictBooleanField,
    StrictCharField,
    UtcDateTimeField,
)
from ..schema import OpenApiExample, extend_schema_serializer
from .base import CREATED_AT_HELP, CUSTOMER_HELP, ID_HELP, USER_HELP, StrictSerializer, visible_user


class CustomerField(IdField):
    """The id of a customer that the request may access; the value is the customer."""

    default_error_messages = {"does_not_exist": "There is no such customer."}

    def run_validation(self, data: Any = empty) -> Any:
        pk = super().run_validation(data)
        customers = self.context["view"].find_customers([pk])
        if pk not in customers:
            self.fail("does_not_exist")
        return customers[pk]


class ThemeSerializer(StrictSerializer):
    """Colours of the hosted page."""

    def get_fields(self) -> dict[str, serializers.Field[Any, Any, Any, Any]]:
        return {
            name: StrictCharField(required=False, pattern=COLOR_PATTERN, help_text="As #rrggbb.")
            for name in THEME_COLORS
        }


class OptionsSerializer(StrictSerializer):
    """The options of one link. They override the site's ``SETUP_LINK_DEFAULTS``; null removes a
    default."""

    # ``SetupLinkOptions.build`` validates the values. What is checked here as well gives an error
    # the path of one entry, or bounds the size of a list.

    allowed_connection_types = serializers.ListField(
        child=ChoiceField("ConnectionType", ConnectionType.choices),
        required=False,
        allow_null=True,
        allow_empty=False,
        min_length=1,
        max_length=10,
        help_text="The types that the customer can choose from; a single one is preselected. With "
        "reconnect_phone_number, only the type that the number has, or none.",
    )
    language = ChoiceField(
        "Language",
        Language.choices,
        required=False,
        allow_null=True,
        help_text="The language of the hosted page.",
    )
    theme_config = ThemeSerializer(
        required=False, allow_null=True, help_text="The colours of the hosted page."
    )
    provision_phone_number = StrictBooleanField(
        required=False, allow_null=True, help_text="Whether Kapso provides a number."
    )
    phone_number_area_code = StrictCharField(
        required=False,
        allow_null=True,
        pattern=AREA_CODE_PATTERN,
        help_text="The area code of the provided number, three digits; United States only.",
    )
    meta_billing_mode = ChoiceField(
        "BillingMode",
        BILLING_MODES,
        required=False,
        allow_null=True,
        help_text="Who pays Meta. "
        "With partner_managed, see funding_status of the connection: a completed setup does not "
        "say that Kapso pays.",
    )
    reconnect_phone_number = StrictCharField(
        required=False,
        allow_null=True,
        pattern=PHONE_NUMBER_PATTERN,
        help_text="One of this customer's numbers, as +15551234567. It keeps its connection type, "
        "and no other number is provided.",
    )

    def get_fields(self) -> dict[str, serializers.Field[Any, Any, Any, Any]]:
        import phonenumbers  # its metadata is slow to load

        countries = serializers.ListField(
            child=ChoiceField("Country", sorted(phonenumbers.SUPPORTED_REGIONS)),
            required=False,
            allow_null=True,
            allow_empty=False,
            min_length=1,
            max_length=300,
            help_text="The countries in which Kapso may provide a number; default US.",
        )
        return {**super().get_fields(), "phone_number_country_isos": countries}

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if problem := provisioning_problem(attrs):
            raise serializers.ValidationError({"provision_phone_number": [problem]})
        return attrs


class LinkRequestSerializer(StrictSerializer):
    """Base of requests with ``options`` and ``next_url``."""

    def to_internal_value(self, data: Any) -> Any:
        try:
            return super().to_internal_value(data)
        except serializers.ValidationError as error:
            if not isinstance(data, Mapping):
                raise
            errors = cast("dict[str, Any]", error.detail)
        # The values are also wrong in ways that only a link would show: all is said at once.
        values = {
            name: field.run_validation(data[name])
            for name, field in cast("dict[str, Any]", self.fields).items()
            if name in data and name not in errors
        }
        try:
            validate(
                values.get("customer", Customer()),
                values.get("options"),
                values.get("next_url", ""),
            )
        except InvalidOptions as error:
            errors = {**option_errors(error), **errors}
        raise serializers.ValidationError(errors)


@extend_schema_serializer(examples=[OpenApiExample("example", examples.NEW_SETUP_LINK)])
class SetupLinkRequestSerializer(LinkRequestSerializer):
    """A request for a setup link."""

    customer = CustomerField(help_text=CUSTOMER_HELP)
    options = OptionsSerializer(required=False, help_text="The options of this link.")
    next_url = NullableCharField(
        max_length=MAX_URL_LENGTH,
        required=False,
        help_text="The page of this site that the success page links to, such as /welcome/.",
    )
    include_token = StrictBooleanField(
        required=False,
        help_text="Whether the response includes Kapso's token for a browser SDK.",
    )


class StatusLinkSerializer(serializers.Serializer[SetupLink]):
    """A summary of a setup link."""

    id = IdField(help_text=ID_HELP)
    status = ChoiceField(
        "SetupLinkStatus",
        SetupLink.Status.choices,
        source="current_status",
        help_text="Whether the link can be used.",
    )
    setup_status = ChoiceField(
        "SetupStatus",
        SetupLink.SetupStatus.choices,
        is_open=True,
        help_text="How far the customer came with the link.",
    )
    opened_at = UtcDateTimeField(
        allow_null=True, help_text="When the customer first opened the link."
    )
    expires_at = UtcDateTimeField(allow_null=True, help_text="When the link expires.")


@extend_schema_serializer(examples=[OpenApiExample("example", examples.SETUP_LINK)])
class SetupLinkSerializer(StatusLinkSerializer):
    """An invitation to connect a number."""

    customer = IdField(source="customer_id", help_text=CUSTOMER_HELP)
    kapso_id = serializers.CharField(help_text="Kapso's id of the link.")
    reference = serializers.CharField(
        help_text="The reference that customers see and quote when they ask for help."
    )
    connect_url = serializers.SerializerMethodField(
        help_text="The customer's permanent URL, which leads to a link that works. null if it was "
        "revoked, for older links, and for users who may not create links."
    )
    url = serializers.SerializerMethodField(
        help_text="Kapso's hosted page. null for users who may not create links."
    )
    error_code = NullableCharField(
        source="last_error_code",
        help_text="Kapso's code of the last error; null if there was none.",
    )
    is_latest = serializers.BooleanField(help_text="Whether it is the customer's latest link.")
    options = serializers.DictField(help_text="The options that were sent to Kapso.")
    warnings = serializers.SerializerMethodField(
        help_text="What is doubtful about the options, in sentences for people: colours that make "
        "Kapso's page hard to read. Empty if nothing is."
    )
    next_url = NullableCharField(
        help_text="The page of this site that the success page links to; null for the site's own "
        "choice."
    )
    created_at = UtcDateTimeField(help_text=CREATED_AT_HELP)
    created_by = serializers.SerializerMethodField(help_text=USER_HELP)

    def get_connect_url(self, link: SetupLink) -> str | None:
        if not self.context["view"].shows_urls(link.customer) or not link.is_latest:
            return None
        return connect_url(link.customer) or None

    def get_url(self, link: SetupLink) -> str | None:
        return link.url if self.context["view"].shows_urls(link.customer) else None

    def get_warnings(self, link: SetupLink) -> list[str]:
        return [problem.warning() for problem in theme.problems(link.options.get("theme_config"))]

    def get_created_by(self, link: SetupLink) -> str | None:
        return visible_user(link.created_by_id, self.context)


@extend_schema_serializer(examples=[OpenApiExample("example", examples.CREATED_SETUP_LINK)])
class NewSetupLinkSerializer(SetupLinkSerializer):
    """A new setup link."""

    token = serializers.CharField(
        allow_null=True,
        help_text="Kapso's token, if requested; not shown again. null if there is none.",
    )


SECRET_FIELDS = ("connect_url", "url", "token")
"""Whoever has one of these can connect a number for the customer. They are stored only in the
link's own row, and ``token`` not at all."""
