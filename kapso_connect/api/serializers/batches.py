"""Batches of invitations and reminders."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from rest_framework import serializers

from ...models import Invitation, InvitationBatch
from ...utils import MAX_URL_LENGTH
from .. import examples
from ..fields import (
    ChoiceField,
    IdField,
    NullableCharField,
    NullableChoiceField,
    StrictBooleanField,
    UtcDateTimeField,
)
from ..schema import OpenApiExample, extend_schema_serializer
from .base import CREATED_AT_HELP, CUSTOMER_HELP, ID_HELP, USER_HELP, visible_user
from .setup_links import LinkRequestSerializer, OptionsSerializer

MAX_CUSTOMERS = 1000
"""The largest number of customers in one request."""

BATCH_PURPOSE_HELP = (
    "`invite` creates setup links; `remind` reminds the customers of the links that they have."
)
EMAIL_STATUSES = [(value, label) for value, label in Invitation.Email.choices if value]

# Said in place of the words of Kapso and of the mail server to those who may not read them.
STOPPED = "Something has to be corrected by those who run this site."
NOT_DONE = "This could not be done."
NOT_SENT = "The e-mail could not be sent."
EMAIL_PROBLEMS: dict[str, str] = {
    Invitation.Email.NO_ADDRESS: "The customer has no e-mail address.",
    Invitation.Email.WAITING: "The mail server does not accept the e-mail yet.",
    Invitation.Email.UNKNOWN: "It is not known whether the e-mail was sent.",
}

NOT_FOR_REMINDERS = serializers.ErrorDetail("Only for invitations.", code="not_for_reminders")


class CustomersField(serializers.ListField):
    """The ids of customers that the request may access; the value is the customers."""

    child = IdField(help_text=CUSTOMER_HELP)
    default_error_messages = {
        "does_not_exist": "There is no such customer.",
        "repeated": "This customer is listed already.",
        "customer_erased": "The personal data of this customer were erased.",
    }

    def to_internal_value(self, data: Any) -> Any:
        if isinstance(data, list) and len(data) > MAX_CUSTOMERS:
            self.fail("max_length", max_length=MAX_CUSTOMERS)  # before anything is looked up
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
        max_length=MAX_CUSTOMERS,
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

    def refused_fields(self, data: Mapping[str, Any]) -> dict[str, Any]:
        refused = super().refused_fields(data)
        if data.get("purpose") == InvitationBatch.Purpose.REMIND:
            names = self.writable_names - {"purpose", "customers"}
            refused |= {name: [NOT_FOR_REMINDERS] for name in data if name in names}
        return refused


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
        "BatchState",
        InvitationBatch.State.choices,
        is_open=True,
        help_text="Whether it is being worked on. `waiting`: what is left can only be tried later. "
        "`stopped`: an error would affect all other customers, too; resume it once that is "
        "corrected.",
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
        help_text="Whether the customer is invited, or reminded.",
    )
    error = serializers.SerializerMethodField(
        help_text="Why it failed, has to be tried again, or was left out, for people."
    )
    email_status = NullableChoiceField(
        "EmailStatus",
        EMAIL_STATUSES,
        is_open=True,
        help_text="What became of the e-mail. `waiting`: the mail server does not accept it yet. "
        "`unknown`: it may have been sent, and is not sent again. null if none was sent.",
    )
    email_error = serializers.SerializerMethodField(
        help_text="Why the e-mail was not sent, or may not have been, for people."
    )

    def get_error(self, invitation: Invitation) -> str | None:
        is_reason = invitation.batch.is_reminder and invitation.status == Invitation.Status.DONE
        return self._shown(invitation.last_error, "" if is_reason else NOT_DONE)

    def get_email_error(self, invitation: Invitation) -> str | None:
        without_details = EMAIL_PROBLEMS.get(invitation.email_status, NOT_SENT)
        return self._shown(invitation.email_error, without_details)

    def _shown(self, error: str, without_details: str) -> str | None:
        """Return ``error``; where Kapso's and the mail server's words are not shown,
        ``without_details`` in its place, unless it is "": then ``error`` has none of their words.
        """
        if error and without_details and not self.context["view"].shows_details:
            return without_details
        return error or None
