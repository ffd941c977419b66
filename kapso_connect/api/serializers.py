"""What the API takes and what it answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.utils import timezone
from rest_framework import serializers

from ..kapso.error_codes import FAILURES, UNKNOWN, Action
from ..kapso.setup_link_options import BILLING_MODES, THEME_COLORS
from ..kapso.types import ConnectionType, Language
from ..models import AccountStatus, Connection, Customer, Health, SetupLink, Source, TimelineEvent
from ..onboarding.connect_urls import connect_url
from ..onboarding.status import OnboardingStatus, Status
from ..utils import MAX_URL_LENGTH, is_test_number
from .fields import ChoiceField, EmailField, FlagField, IdField, MomentField, TextField


class Body(serializers.Serializer[Any]):
    """Takes what it names and refuses the rest: a slip of the pen is not ignored."""

    def to_internal_value(self, data: Any) -> Any:
        if isinstance(data, Mapping):
            unknown = [name for name in data if name not in self.fields]
            if unknown:
                problem = serializers.ErrorDetail("There is no such field.", code="unknown_field")
                raise serializers.ValidationError({name: [problem] for name in unknown[:20]})
        return super().to_internal_value(data)


class Nothing(Body):
    """The body of an action: an empty object, or none."""


class ErrorFieldSerializer(serializers.Serializer[Any]):
    """What is wrong with one value."""

    code = serializers.CharField()
    message = serializers.CharField()


class ErrorSerializer(serializers.Serializer[Any]):
    """The body of every error."""

    code = serializers.CharField(help_text="Stays as it is from release to release.")
    message = serializers.CharField(help_text="For people; do not compare with it.")
    fields = serializers.DictField(  # type: ignore[assignment]
        child=ErrorFieldSerializer(many=True),
        help_text="What is wrong where, by the path of the value.",
    )


# Customers


class CustomerSerializer(Body):
    """Who connects a number, or has one."""

    id = IdField(read_only=True)
    name = TextField(max_length=255)
    external_customer_id = TextField(
        max_length=255,
        required=False,
        allow_null=True,
        help_text="This site's own id for the customer; made up where none is given.",
    )
    email = EmailField(max_length=254, required=False, allow_blank=True)
    language = ChoiceField(
        choices=Language.choices,
        required=False,
        allow_blank=True,
        help_text="Of the hosted page; empty means that of the customer's browser.",
    )
    kapso_id = serializers.CharField(
        read_only=True, allow_null=True, help_text="Set when the first setup link is created."
    )
    standing = serializers.SerializerMethodField()
    created_at = MomentField(read_only=True)
    updated_at = MomentField(read_only=True)

    def get_fields(self) -> dict[str, serializers.Field[Any, Any, Any, Any]]:
        fields = super().get_fields()
        if not self.context["view"].sets_external_ids:
            fields["external_customer_id"].read_only = True
        return fields

    def get_standing(self, customer: Customer) -> str:
        get_statuses: Mapping[int, Status] = self.context["standings"]
        return get_statuses[customer.pk].standing.value


class StatusConnectionSerializer(serializers.Serializer[Connection]):
    """A number, in short."""

    id = IdField()
    phone_number_id = serializers.CharField()
    display_phone_number = serializers.CharField()
    verified_name = serializers.CharField()
    connection_type = serializers.ChoiceField(choices=["", *ConnectionType.values])
    status = serializers.ChoiceField(choices=Connection.Status.choices)
    connected_at = MomentField(allow_null=True)
    disconnected_at = MomentField(allow_null=True)
    disconnect_reason = serializers.CharField()


class StatusLinkSerializer(serializers.Serializer[SetupLink]):
    """A setup link, in short."""

    id = IdField()
    status = serializers.SerializerMethodField()
    setup_status = serializers.ChoiceField(choices=SetupLink.SetupStatus.choices)
    opened_at = MomentField(allow_null=True)
    expires_at = MomentField(allow_null=True)

    def get_status(self, link: SetupLink) -> str:
        return link_status(link)


class FailureSerializer(serializers.Serializer[Any]):
    """Why connecting failed, in words for the customer."""

    code = serializers.ChoiceField(choices=[*FAILURES, "unknown"])
    kapso_code = serializers.CharField(help_text="As Kapso or the browser told it.")
    title = serializers.CharField(help_text="For the customer, in the request's language.")
    cause = serializers.CharField()
    advice = serializers.CharField()
    action = serializers.ChoiceField(choices=Action.choices)


class StatusSerializer(serializers.Serializer[Any]):
    """Where a customer stands."""

    customer = IdField()
    standing = serializers.ChoiceField(choices=OnboardingStatus.choices)
    connection = StatusConnectionSerializer(allow_null=True)
    more_connections = serializers.IntegerField()
    setup_link = StatusLinkSerializer(allow_null=True)
    failure = FailureSerializer(allow_null=True)


def status_body(customer: Customer, status: Status) -> dict[str, Any]:
    """Return what is answered about where ``customer`` stands."""
    link = status.link
    failed = link is not None and status.standing == OnboardingStatus.FAILED
    return StatusSerializer(
        {
            "customer": customer.pk,
            "standing": status.standing,
            "connection": status.connection,
            "more_connections": status.more,
            "setup_link": link,
            "failure": failure(link.last_error_code) if link is not None and failed else None,
        }
    ).data


def failure(kapso_code: str) -> dict[str, Any]:
    known = FAILURES.get(kapso_code, UNKNOWN)
    return {
        "code": kapso_code if kapso_code in FAILURES else "unknown",
        "kapso_code": kapso_code,
        "title": str(known.title),
        "cause": str(known.cause),
        "advice": str(known.advice),
        "action": known.action,
    }


# Setup links


class ThemeSerializer(Body):
    """Colours of the hosted page."""

    def get_fields(self) -> dict[str, serializers.Field[Any, Any, Any, Any]]:
        return {
            name: TextField(required=False, max_length=7, help_text="As #rrggbb.")
            for name in THEME_COLORS
        }


class OptionsSerializer(Body):
    """What may be decided for one link; the rest is the site's ``SETUP_LINK_DEFAULTS``.

    null takes back what the site's defaults say.
    """

    allowed_connection_types = serializers.ListField(
        child=ChoiceField(choices=ConnectionType.values),
        required=False,
        allow_null=True,
        allow_empty=False,
        max_length=10,
    )
    language = ChoiceField(choices=Language.choices, required=False, allow_null=True)
    theme_config = ThemeSerializer(required=False, allow_null=True)
    provision_phone_number = FlagField(required=False, allow_null=True)
    phone_number_area_code = TextField(max_length=3, required=False, allow_null=True)
    meta_billing_mode = ChoiceField(choices=BILLING_MODES, required=False, allow_null=True)
    reconnect_phone_number = TextField(
        max_length=40,
        required=False,
        allow_null=True,
        help_text="A number of this customer's, as +15551234567.",
    )

    def get_fields(self) -> dict[str, serializers.Field[Any, Any, Any, Any]]:
        import phonenumbers  # its metadata takes long to load

        countries = serializers.ListField(
            child=ChoiceField(choices=sorted(phonenumbers.SUPPORTED_REGIONS)),
            required=False,
            allow_null=True,
            allow_empty=False,
            max_length=300,
        )
        return {**super().get_fields(), "phone_number_country_isos": countries}

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        types = attrs.get("allowed_connection_types")
        if attrs.get("provision_phone_number") and types and "dedicated" not in types:
            # It is in no WhatsApp Business app yet.
            problem = "A new number needs the connection type dedicated."
            raise serializers.ValidationError({"provision_phone_number": [problem]})
        return attrs


class SetupLinkRequestSerializer(Body):
    """A setup link that is wanted; the customer's older one ends."""

    customer = IdField()
    options = OptionsSerializer(required=False)
    next_url = TextField(
        max_length=MAX_URL_LENGTH,
        required=False,
        allow_blank=True,
        default="",
        help_text="The page of this site that the success page leads on to, such as /welcome/.",
    )
    include_token = FlagField(
        required=False,
        default=False,
        help_text="Answer with Kapso's token for a browser SDK, this once.",
    )


class SetupLinkSerializer(serializers.Serializer[SetupLink]):
    """An invitation to connect a number."""

    id = IdField()
    customer = IdField(source="customer_id")
    kapso_id = serializers.CharField()
    reference = serializers.CharField(help_text="What a customer tells to be helped.")
    connect_url = serializers.SerializerMethodField(
        help_text="The customer's own address: it leads to the link of the day. null where it was "
        "withdrawn, for older links, and for those who may not create links."
    )
    url = serializers.SerializerMethodField(
        help_text="Kapso's page. null for those who may not create links."
    )
    status = serializers.SerializerMethodField()
    setup_status = serializers.ChoiceField(choices=SetupLink.SetupStatus.choices)
    error_code = serializers.CharField(source="last_error_code")
    is_latest = serializers.BooleanField()
    options = serializers.DictField()
    next_url = serializers.CharField()
    opened_at = MomentField(allow_null=True)
    expires_at = MomentField(allow_null=True)
    created_at = MomentField()
    created_by = serializers.SerializerMethodField(help_text="The key of a user of this site.")

    def get_connect_url(self, link: SetupLink) -> str | None:
        if not self.context["shows_addresses"] or not link.is_latest:
            return None
        return connect_url(link.customer) or None

    def get_url(self, link: SetupLink) -> str | None:
        return link.url if self.context["shows_addresses"] else None

    def get_status(self, link: SetupLink) -> str:
        return link_status(link)

    def get_created_by(self, link: SetupLink) -> str | None:
        return shown_user(link.created_by_id, self.context)


class NewSetupLinkSerializer(SetupLinkSerializer):
    """A link that was just made."""

    token = serializers.CharField(
        allow_null=True,
        help_text="Kapso's, where it was asked for; never shown again. null where Kapso gave none.",
    )


ADDRESSES = ("connect_url", "url", "token")
"""What is as good as a password: stored nowhere but in the link's own row, ``token`` not even
there."""


def link_status(link: SetupLink) -> str:
    """Return how ``link`` stands now: one past its end has expired, noted or not."""
    is_over = link.expires_at is not None and link.expires_at <= timezone.now()
    if link.status == SetupLink.Status.ACTIVE and is_over:
        return SetupLink.Status.EXPIRED.value
    return str(link.status)


def shown_user(key: Any, context: Mapping[str, Any]) -> str | None:
    """Return a user's key for those who may know it: staff, and the user."""
    if key is None:
        return None
    own = getattr(context["request"].user, "pk", None)
    return str(key) if context["view"].shows_details or key == own else None


# Connections


class ConnectionSerializer(serializers.Serializer[Connection]):
    """A number that is connected or was once."""

    id = IdField()
    customer = IdField(source="customer_id")
    setup_link = IdField(source="setup_link_id", allow_null=True)
    phone_number_id = serializers.CharField(help_text="Meta's id of the number.")
    display_phone_number = serializers.CharField()
    is_test_number = serializers.SerializerMethodField(
        help_text="True for Meta's display-name-only test numbers, which are nobody's real ones."
    )
    business_account_id = serializers.CharField()
    provisioned_phone_number_id = serializers.CharField()
    verified_name = serializers.CharField()
    connection_type = serializers.ChoiceField(choices=["", *ConnectionType.values])
    status = serializers.ChoiceField(choices=Connection.Status.choices)
    connected_at = MomentField(allow_null=True)
    disconnected_at = MomentField(allow_null=True)
    disconnect_reason = serializers.CharField()
    quality_rating = serializers.CharField(help_text="Meta's: GREEN, YELLOW, RED.")
    name_status = serializers.CharField()
    health_status = serializers.ChoiceField(choices=["", *Health.values])
    health_error = serializers.CharField()
    health_checked_at = MomentField(allow_null=True)
    account_status = serializers.ChoiceField(choices=AccountStatus.choices)
    restrictions = serializers.ListField(child=serializers.DictField())
    account_updated_at = MomentField(allow_null=True)
    created_at = MomentField()
    updated_at = MomentField()

    def get_is_test_number(self, connection: Connection) -> bool:
        return is_test_number(connection.display_phone_number)


# The timeline


class EventSerializer(serializers.Serializer[TimelineEvent]):
    """Something that happened."""

    id = IdField()
    kind = serializers.ChoiceField(choices=TimelineEvent.Kind.choices)
    customer = IdField(source="customer_id", allow_null=True)
    connection = IdField(source="connection_id", allow_null=True)
    setup_link = IdField(source="setup_link_id", allow_null=True)
    source = serializers.ChoiceField(choices=Source.choices)  # type: ignore[assignment]
    actor = serializers.SerializerMethodField(help_text="The key of a user of this site.")
    data = serializers.DictField()  # type: ignore[assignment]
    occurred_at = MomentField()

    def get_actor(self, event: TimelineEvent) -> str | None:
        return shown_user(event.actor_id, self.context)
