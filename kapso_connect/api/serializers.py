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
    Invitation,
    InvitationBatch,
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

MAX_BATCH_SIZE = 1000
"""The largest number of customers in one request."""

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
BATCH_PURPOSE_HELP = (
    "`invite` creates setup links; `remind` reminds the customers of the links that they have."
)
BATCH_STATE_HELP = (
    "Whether it is being worked on. `waiting`: what is left can only be tried later. `stopped`: an "
    "error would affect all other customers, too; resume it once that is corrected."
)
INVITATION_STATUS_HELP = "Whether the customer is invited, or reminded."
EMAIL_STATUS_HELP = (
    "What became of the e-mail. `waiting`: the mail server does not accept it yet. `unknown`: it "
    "may have been sent, and is not sent again."
)
EMAIL_STATUSES = [(value, label) for value, label in Invitation.Email.choices if value]
CREATED_AT_HELP = "When it was created."
UPDATED_AT_HELP = "When it was last changed."


UNKNOWN_FIELD = serializers.ErrorDetail("Unknown field.", code="unknown_field")
NOT_FOR_REMINDERS = serializers.ErrorDetail("Only for invitations.", code="not_for_reminders")
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
    batches = serializers.URLField(help_text="Batches of invitations and reminders.")
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
        help_text="Why the number was last disconnected: `offboarded` by Meta, which is a pause; "
        "`staff` if a user of the site did it."
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


class LinkRequestSerializer(StrictSerializer):
    """Base of requests with ``options`` and ``next_url``."""

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


# E-mails and batches


@extend_schema_serializer(examples=[OpenApiExample("example", examples.SENT_EMAIL)])
class SentEmailSerializer(serializers.Serializer[Any]):
    """An e-mail with the customer's personal link, which the mail server accepted."""

    customer = IdField(help_text=CUSTOMER_HELP)
    setup_link = IdField(help_text="The id of the customer's latest setup link.")
    to = serializers.CharField(help_text="The address that it was sent to.")
    sent_at = UtcDateTimeField(help_text="When it was sent.")


class CustomersField(serializers.ListField):
    """The ids of customers that the request may access; the value is the customers."""

    child = IdField(help_text=CUSTOMER_HELP)
    default_error_messages = {
        "does_not_exist": "There is no such customer.",
        "repeated": "This customer is listed already.",
        "customer_erased": "The personal data of this customer were erased.",
    }

    def to_internal_value(self, data: Any) -> Any:
        if isinstance(data, list) and len(data) > MAX_BATCH_SIZE:
            self.fail("max_length", max_length=MAX_BATCH_SIZE)  # before anything is looked up
        errors: dict[Any, Any] = {}
        try:
            super().to_internal_value(data)
        except serializers.ValidationError as error:
            if not isinstance(error.detail, dict):
                raise
            errors = dict(cast(Any, error.detail))
        ids = {index: pk for index, pk in enumerate(data) if index not in errors}
        found = self.context["view"].find_customers(list(ids.values()))
        seen = set()
        for index, pk in ids.items():
            code = ""
            if pk in seen:
                code = "repeated"
            elif pk not in found:
                code = "does_not_exist"
            elif found[pk].erased_at is not None:
                code = "customer_erased"
            if code:
                message = str(self.error_messages[code])
                errors[index] = [serializers.ErrorDetail(message, code=code)]
            seen.add(pk)
        if errors:
            raise serializers.ValidationError(errors)
        return [found[pk] for pk in data]


class BatchOptionsSerializer(OptionsSerializer):
    """The options of all links of a batch; see those of one link. A number is reconnected by a
    link of its own."""

    def get_fields(self) -> dict[str, serializers.Field[Any, Any, Any, Any]]:
        fields = super().get_fields()
        del fields["reconnect_phone_number"]
        fields[
            "allowed_connection_types"
        ].help_text = "The types that the customers can choose from; a single one is preselected."
        return fields


@extend_schema_serializer(examples=[OpenApiExample("example", examples.NEW_BATCH)])
class BatchRequestSerializer(LinkRequestSerializer):
    """Whom to invite or remind. A request for reminders has only `purpose` and `customers`."""

    purpose = ChoiceField(
        "BatchPurpose", InvitationBatch.Purpose.choices, help_text=BATCH_PURPOSE_HELP
    )
    customers = CustomersField(
        allow_empty=False,
        min_length=1,
        max_length=MAX_BATCH_SIZE,
        help_text="The ids of the customers, each once.",
    )
    options = BatchOptionsSerializer(required=False, help_text="The options of the links.")
    next_url = NullableCharField(
        max_length=MAX_URL_LENGTH,
        required=False,
        help_text="The page of this site that the success page links to, such as /welcome/.",
    )
    send_email = StrictBooleanField(
        required=False, help_text="Whether each customer is e-mailed the personal link."
    )
    leave_out_connected = StrictBooleanField(
        required=False, help_text="Whether customers who have a connected number are left out."
    )
    leave_out_invited = StrictBooleanField(
        required=False, help_text="Whether customers who have a usable setup link are left out."
    )

    def to_internal_value(self, data: Any) -> Any:
        errors: dict[str, Any] = {}
        if isinstance(data, Mapping) and data.get("purpose") == InvitationBatch.Purpose.REMIND:
            names = self._writable_names() - {"purpose", "customers"}
            errors = {name: [NOT_FOR_REMINDERS] for name in data if name in names}
        try:
            values = super().to_internal_value(data)
        except serializers.ValidationError as error:
            raise serializers.ValidationError({**cast(Any, error.detail), **errors}) from None
        if errors:
            raise serializers.ValidationError(errors)
        return values


class BatchProgressSerializer(serializers.Serializer[Any]):
    """How many customers of a batch are done, which includes the e-mail if one is sent."""

    total = serializers.IntegerField(min_value=0, help_text="All customers of the batch.")
    done = serializers.IntegerField(min_value=0, help_text="Those who are done.")
    failed = serializers.IntegerField(
        min_value=0, help_text="Those who could not be invited or reminded."
    )
    left = serializers.IntegerField(min_value=0, help_text="Those who are left.")
    emails_sent = serializers.IntegerField(min_value=0, help_text="E-mails that were sent.")
    emails_failed = serializers.IntegerField(
        min_value=0, help_text="E-mails that could not be sent."
    )
    emails_unknown = serializers.IntegerField(
        min_value=0, help_text="E-mails of which it is not known whether they were sent."
    )
    emails_waiting = serializers.IntegerField(
        min_value=0, help_text="E-mails that the mail server does not accept yet; part of left."
    )
    no_address = serializers.IntegerField(
        min_value=0, help_text="Those who have no e-mail address; part of done."
    )
    left_out = serializers.IntegerField(
        min_value=0,
        help_text="Those who were sent no e-mail, since none was needed any more or, for "
        "reminders, possible; part of done.",
    )
    next_attempt_at = UtcDateTimeField(
        source="due_at",
        allow_null=True,
        help_text="When the next of those left can be tried; null if there is none, or all of them "
        "are in progress.",
    )


@extend_schema_serializer(examples=[OpenApiExample("example", examples.BATCH)])
class BatchSerializer(serializers.Serializer[InvitationBatch]):
    """Invitations or reminders of many customers, and how far they are."""

    id = IdField(help_text=ID_HELP)
    purpose = ChoiceField(
        "BatchPurpose", InvitationBatch.Purpose.choices, help_text=BATCH_PURPOSE_HELP
    )
    state = ChoiceField(
        "BatchState", InvitationBatch.State.choices, is_open=True, help_text=BATCH_STATE_HELP
    )
    stop_reason = serializers.SerializerMethodField(
        help_text="What stopped it, for people; null unless the state is stopped."
    )
    options = serializers.DictField(help_text="The options of the links.")
    next_url = NullableCharField(
        help_text="The page of this site that the success page links to; null for the site's own "
        "choice."
    )
    send_email = serializers.BooleanField(help_text="Whether each customer is sent an e-mail.")
    progress = BatchProgressSerializer(help_text="How far it is.")
    created_at = UtcDateTimeField(help_text=CREATED_AT_HELP)
    started_at = UtcDateTimeField(help_text="When its work began.")
    created_by = serializers.SerializerMethodField(help_text=USER_HELP)

    def get_stop_reason(self, batch: Any) -> str | None:
        if batch.state != InvitationBatch.State.STOPPED:
            return None
        return batch.stopped if self.context["view"].shows_details else STOPPED

    def get_created_by(self, batch: InvitationBatch) -> str | None:
        return visible_user(batch.created_by_id, self.context)


@extend_schema_serializer(examples=[OpenApiExample("example", examples.INVITATION)])
class InvitationSerializer(serializers.Serializer[Invitation]):
    """The invitation, or the reminder, of one customer of a batch."""

    customer = IdField(source="customer_id", help_text=CUSTOMER_HELP)
    setup_link = IdField(
        source="setup_link_id",
        allow_null=True,
        help_text="The id of the setup link; null until there is one, and for those left out.",
    )
    status = ChoiceField(
        "InvitationStatus",
        Invitation.Status.choices,
        is_open=True,
        help_text=INVITATION_STATUS_HELP,
    )
    error = serializers.SerializerMethodField(
        help_text="Why it failed, has to be tried again, or was left out, for people."
    )
    email_status = NullableChoiceField(
        "EmailStatus",
        EMAIL_STATUSES,
        is_open=True,
        help_text=f"{EMAIL_STATUS_HELP} null if none was sent.",
    )
    email_error = serializers.SerializerMethodField(
        help_text="Why the e-mail was not sent, or may not have been, for people."
    )

    def get_error(self, invitation: Invitation) -> str | None:
        is_reason = invitation.batch.is_reminder and invitation.status == Invitation.Status.DONE
        return self._shown(invitation.last_error, "" if is_reason else NOT_DONE)

    def get_email_error(self, invitation: Invitation) -> str | None:
        without_details = EMAIL_ERRORS.get(invitation.email_status, NOT_SENT)
        return self._shown(invitation.email_error, without_details)

    def _shown(self, error: str, without_details: str) -> str | None:
        """Return ``error``; where Kapso's and the mail server's words are not shown,
        ``without_details`` in its place, unless it is "": then ``error`` has none of their words.
        """
        if error and without_details and not self.context["view"].shows_details:
            return without_details
        return error or None


STOPPED = "Something has to be corrected by those who run this site."
NOT_DONE = "This could not be done."
NOT_SENT = "The e-mail could not be sent."
EMAIL_ERRORS: dict[str, str] = {
    Invitation.Email.NO_ADDRESS: "The customer has no e-mail address.",
    Invitation.Email.WAITING: "The mail server does not accept the e-mail yet.",
    Invitation.Email.UNKNOWN: "It is not known whether the e-mail was sent.",
}
"""What is said in place of errors that may have words of Kapso or of the mail server."""
