"""The query parameters of lists. Unknown ones and invalid values are errors, never ignored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from django.db.models import QuerySet
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.settings import api_settings

from ..models import (
    Connection,
    CustomerQuerySet,
    Invitation,
    InvitationBatch,
    InvitationBatchQuerySet,
    SetupLink,
    TimelineEvent,
)
from ..onboarding.status import OnboardingStatus
from .errors import ApiError, FieldErrors
from .fields import ChoiceField, IntegerParameter, StrictCharField, UtcDateTimeField
from .serializers import (
    BATCH_PURPOSE_HELP,
    BATCH_STATE_HELP,
    CONNECTION_HELP,
    CONNECTION_STATUS_HELP,
    CUSTOMER_HELP,
    EMAIL_STATUS_HELP,
    EMAIL_STATUSES,
    EVENT_KIND_HELP,
    INVITATION_STATUS_HELP,
    PHONE_NUMBER_ID_HELP,
    SETUP_LINK_HELP,
    SETUP_LINK_STATUS_HELP,
    STATUS_HELP,
)

DEFAULT_PAGE_SIZE = 50
MAX_PAGE_SIZE = 100
PAGING_PARAMETERS = {"page", "page_size", "cursor"}
"""The parameters that are the paginator's."""


class Filters(serializers.Serializer[Any]):
    """The query parameters of one list; each may be given once."""

    page_size = IntegerParameter(
        required=False, max_value=MAX_PAGE_SIZE, help_text="The number of results on a page."
    )

    def apply(self, rows: QuerySet[Any], values: Mapping[str, Any]) -> QuerySet[Any]:
        """Return ``rows`` filtered by ``values``, the validated parameters."""
        lookups = {name: value for name, value in values.items() if name not in PAGING_PARAMETERS}
        return rows.filter(**lookups)


class PagedFilters(Filters):
    page = IntegerParameter(
        required=False, max_value=1_000_000, help_text="The number of the page, from 1."
    )


class CustomerFilters(PagedFilters):
    external_customer_id = StrictCharField(
        required=False,
        max_length=255,
        trim_whitespace=False,
        help_text="This site's own id for the customer; exact match.",
    )
    status = ChoiceField(
        "OnboardingStatus", OnboardingStatus.choices, required=False, help_text=STATUS_HELP
    )
    search = StrictCharField(
        required=False,
        allow_blank=True,
        max_length=200,
        help_text=(
            "A part of the name, the external id, the e-mail address, Kapso's id or a phone number "
            "(at least five digits, in any notation), or the reference of a setup link."
        ),
    )

    def apply(self, rows: QuerySet[Any], values: Mapping[str, Any]) -> QuerySet[Any]:
        if "external_customer_id" in values:
            wanted = values["external_customer_id"]
            # MySQL and MariaDB ignore case in the first comparison, but not in the second.
            rows = rows.filter(external_customer_id=wanted, external_customer_id__startswith=wanted)
        if "status" in values:
            rows = rows.filter(status=values["status"])
        if text := values.get("search"):
            rows = cast("CustomerQuerySet", rows).search(text)
        return rows


class SetupLinkFilters(PagedFilters):
    customer = IntegerParameter(required=False, help_text=CUSTOMER_HELP)
    status = ChoiceField(
        "SetupLinkStatus",
        SetupLink.Status.choices,
        required=False,
        help_text=SETUP_LINK_STATUS_HELP,
    )

    def apply(self, rows: Any, values: Mapping[str, Any]) -> Any:
        # As ``SetupLink.current_status`` says it of one link.
        if "customer" in values:
            rows = rows.filter(customer=values["customer"])
        match values.get("status"):
            case None:
                return rows
            case SetupLink.Status.ACTIVE:
                return rows.usable()
            case SetupLink.Status.EXPIRED:
                return rows.expired()
            case status:
                return rows.filter(status=status)


class ConnectionFilters(PagedFilters):
    customer = IntegerParameter(required=False, help_text=CUSTOMER_HELP)
    status = ChoiceField(
        "ConnectionStatus",
        Connection.Status.choices,
        required=False,
        help_text=CONNECTION_STATUS_HELP,
    )
    phone_number_id = StrictCharField(required=False, max_length=64, help_text=PHONE_NUMBER_ID_HELP)


class EventFilters(Filters):
    cursor = StrictCharField(
        required=False, max_length=200, help_text="Where the page begins; from next or previous."
    )
    customer = IntegerParameter(required=False, help_text=CUSTOMER_HELP)
    connection = IntegerParameter(required=False, help_text=CONNECTION_HELP)
    setup_link = IntegerParameter(required=False, help_text=SETUP_LINK_HELP)
    kind = ChoiceField(
        "EventKind", TimelineEvent.Kind.choices, required=False, help_text=EVENT_KIND_HELP
    )
    since = UtcDateTimeField(
        source="occurred_at__gte", required=False, help_text="Events at or after this time."
    )
    until = UtcDateTimeField(
        source="occurred_at__lt", required=False, help_text="Events before this time."
    )


class BatchFilters(PagedFilters):
    purpose = ChoiceField(
        "BatchPurpose",
        InvitationBatch.Purpose.choices,
        required=False,
        help_text=BATCH_PURPOSE_HELP,
    )
    state = ChoiceField(
        "BatchState", InvitationBatch.State.choices, required=False, help_text=BATCH_STATE_HELP
    )

    def apply(self, rows: QuerySet[Any], values: Mapping[str, Any]) -> QuerySet[Any]:
        batches = cast("InvitationBatchQuerySet", rows)
        if "purpose" in values:
            batches = batches.filter(purpose=values["purpose"])
        return batches.in_state(values["state"]) if "state" in values else batches


class InvitationFilters(PagedFilters):
    status = ChoiceField(
        "InvitationStatus",
        Invitation.Status.choices,
        required=False,
        help_text=INVITATION_STATUS_HELP,
    )
    email_status = ChoiceField(
        "EmailStatus", EMAIL_STATUSES, required=False, help_text=EMAIL_STATUS_HELP
    )


def validate_filters(
    filters_class: type[Filters], request: Request
) -> tuple[Filters, dict[str, Any]]:
    """Return the filters and their validated values. Raise ApiError ``invalid_filter``."""
    filters = filters_class(data=request.query_params.dict())
    errors: FieldErrors = {}
    known = {*filters.fields, api_settings.URL_FORMAT_OVERRIDE}
    for name, values in request.query_params.lists():
        if name not in known:
            errors[name[:100]] = [{"code": "unknown_filter", "message": "Unknown filter."}]
        elif len(values) > 1:
            errors[name] = [{"code": "repeated", "message": "Must not be repeated."}]
    if not filters.is_valid():
        for name, details in filters.errors.items():
            errors[name] = [{"code": detail.code, "message": detail} for detail in details]
    if errors:
        raise ApiError("invalid_filter", fields=errors)
    return filters, filters.validated_data
