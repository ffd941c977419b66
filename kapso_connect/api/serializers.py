"""The bodies of requests and responses. ``help_text`` is the description in the schema."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from rest_framework import serializers
from rest_framework.fields import empty

from .. import theme
from ..exceptions import InvalidOptions
from ..kapso.error_codes import SETUP_ERRORS, Action, find_error
from ..kapso.languages import Language
from ..kapso.setup_link_options import (
    AREA_CODE_PATTERN,
    BILLING_MODES,
    COLOR_PATTERN,
    PHONE_NUMBER_PATTERN,
    THEME_COLORS,
    provisioning_problem,
)
from ..kapso.types import ConnectionType
from ..languages import language_choices, page_languages
from ..models import (
    AccountStatus,
    Connection,
    Customer,
    Funding,
    Health,
    SetupLink,
    Source,
    TimelineEvent,
)
from ..onboarding.connect_urls import connect_url
from ..onboarding.setup_links import validate
from ..onboarding.status import CustomerStatus, OnboardingStatus
from ..utils import MAX_URL_LENGTH
from . import examples
from .fields import (
    ChoiceField,
    IdField,
    NameField,
    NullableCharField,
    NullableChoiceField,
    NullableEmailField,
    StrictBooleanField,
    StrictCharField,
    UtcDateTimeField,
)
from .schema import OpenApiExample, extend_schema_serializer

ID_HELP = "The id of this object."
CUSTOMER_HELP = "The id of a customer."
CONNECTION_HELP = "The id of a connection."
SETUP_LINK_HELP = "The id of a setup link."
USER_HELP = "The primary key of a user of this site."
STATUS_HELP = (
    "The onboarding status of the customer. `paused` means that Meta took the number off, after a "
    "change of phone for example: it is usually back within minutes. If it is not after an hour, "
    "the customer has to reconnect it."
)
SETUP_LINK_STATUS_HELP = "Whether the link can be used."
CONNECTION_STATUS_HELP = "Whether the number is connected."
PHONE_NUMBER_ID_HELP = "Meta's id of the number."
EVENT_KIND_HELP = "What happened."
CREATED_AT_HELP = "When it was created."
UPDATED_AT_HELP = "When it was last changed."


UNKNOWN_FIELD = serializers.ErrorDetail("Unknown field.", code="unknown_field")
READ_ONLY = serializers.ErrorDetail("This field cannot be changed.", code="read_only")


class StrictSerializer(serializers.Serializer[Any]):
    """Rejects unknown and read-only fields, so that nothing that was sent is silently ignored."""

    def to_internal_value(self, data: Any) -> Any:
        errors: dict[str, Any] = {}
        if isinstance(data, Mapping):
            for name in [name for name in data if name not in self._writable_names()][:20]:
                is_known = name in self.fields
                errors[name] = [READ_ONLY if is_known else UNKNOWN_FIELD]
        try:
            values = super().to_internal_value(data)
        except serializers.ValidationError as error:
            raise serializers.ValidationError({**errors, **cast(Any, error.detail)}) from None
        if errors:
            raise serializers.ValidationError(errors)
        return values

    def _writable_names(self) -> set[str]:
        return {name for name, field in self.fields.items() if not field.read_only}


@extend_schema_serializer(examples=[OpenApiExample("example", {})])
class EmptySerializer(StrictSerializer):
    """An empty object, or no body at all."""


class ErrorFieldSerializer(serializers.Serializer[Any]):
    """An error of one value."""

    code = serializers.CharField(help_text="Does not change between releases.")
    message = serializers.CharField(help_text="For people; compare with code instead.")


@extend_schema_serializer(many=False)
class ErrorSerializer(ErrorFieldSerializer):
    """The body of every error."""

    fields = serializers.DictField(  # type: ignore[assignment]
        child=ErrorFieldSerializer(many=True),
        help_text="The errors of each invalid value, by its path.",
    )


@extend_schema_serializer(many=False)
class RootSerializer(serializers.Serializer[Any]):
    """The URLs of this API."""

    customers = serializers.URLField(help_text="Customers.")
    setup_links = serializers.URLField(help_text="Setup links.")
    connections = serializers.URLField(help_text="Connections.")
    events = serializers.URLField(help_text="The timeline.")
    schema = serializers.URLField(help_text="This schema.")


# Customers


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


class StatusConnectionSerializer(serializers.Serializer[Connection]):
    """A summary of a number."""

    id = IdField(help_text=ID_HELP)
    phone_number_id = serializers.CharField(help_text=PHONE_NUMBER_ID_HELP)
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
        "ConnectionStatus", Connection.Status.choices, help_text=CONNECTION_STATUS_HELP
    )
    connected_at = UtcDateTimeField(
        allow_null=True, help_text="When the number was last connected."
    )
    disconnected_at = UtcDateTimeField(
        allow_null=True, help_text="When the number was last disconnected."
    )
    disconnect_reason = NullableCharField(
        help_text="Why the number was last disconnected: `offboarded` by Meta, which is a pause."
    )


class StatusLinkSerializer(serializers.Serializer[SetupLink]):
    """A summary of a setup link."""

    id = IdField(help_text=ID_HELP)
    status = ChoiceField(
        "SetupLinkStatus",
        SetupLink.Status.choices,
        source="current_status",
        help_text=SETUP_LINK_STATUS_HELP,
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


# Setup links


class CustomerField(IdField):
    """The id of a customer that the request may access; the value is the customer."""

    default_error_messages = {"does_not_exist": "There is no such customer."}

    def run_validation(self, data: Any = empty) -> Any:
        customer = self.context["view"].find_customer(super().run_validation(data))
        if customer is None:
            self.fail("does_not_exist")
        return customer


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


@extend_schema_serializer(examples=[OpenApiExample("example", examples.NEW_SETUP_LINK)])
class SetupLinkRequestSerializer(StrictSerializer):
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

    def to_internal_value(self, data: Any) -> Any:
        try:
            return super().to_internal_value(data)
        except serializers.ValidationError as error:
            if not isinstance(data, Mapping):
                raise
            errors = cast("dict[str, Any]", error.detail)
        # What only the link itself would show is said with the rest.
        values: dict[str, Any] = {}
        for name, field in cast("dict[str, Any]", self.fields).items():
            if name in data and name not in errors:
                values[name] = field.run_validation(data[name])
        try:
            options = None if "options" in errors else values.get("options")
            validate(values.get("customer", Customer()), options, values.get("next_url", ""))
        except InvalidOptions as error:
            for name, message in error.errors.items():
                found = [serializers.ErrorDetail(message, code="invalid")]
                if name in ("next_url", "options"):
                    errors[name] = found
                else:
                    errors.setdefault("options", {})[name] = found
        raise serializers.ValidationError(errors)


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


def visible_user(key: Any, context: Mapping[str, Any]) -> str | None:
    """Return a user's primary key if the requesting user is staff or that user, else None."""
    if key is None:
        return None
    own = getattr(context["request"].user, "pk", None)
    return str(key) if context["view"].shows_details or key == own else None


# Connections


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


# The timeline


@extend_schema_serializer(examples=[OpenApiExample("example", examples.EVENT)])
class EventSerializer(serializers.Serializer[TimelineEvent]):
    """An event of the timeline."""

    id = IdField(help_text=ID_HELP)
    kind = ChoiceField(
        "EventKind", TimelineEvent.Kind.choices, is_open=True, help_text=EVENT_KIND_HELP
    )
    customer = IdField(source="customer_id", allow_null=True, help_text=CUSTOMER_HELP)
    connection = IdField(source="connection_id", allow_null=True, help_text=CONNECTION_HELP)
    setup_link = IdField(source="setup_link_id", allow_null=True, help_text=SETUP_LINK_HELP)
    source = ChoiceField(  # type: ignore[assignment]
        "Source", Source.choices, is_open=True, help_text="Where the information came from."
    )
    actor = serializers.SerializerMethodField(help_text=USER_HELP)
    data = serializers.DictField(  # type: ignore[assignment]
        help_text="Details, which depend on the kind."
    )
    occurred_at = UtcDateTimeField(help_text="When it happened.")

    def get_actor(self, event: TimelineEvent) -> str | None:
        return visible_user(event.actor_id, self.context)
