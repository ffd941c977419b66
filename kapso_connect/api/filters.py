"""The query parameters of lists. Unknown ones and invalid values are errors, never ignored."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from operator import or_
from typing import Any

from django.db.models import F, Q, QuerySet
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.settings import api_settings

from ..models import (
    Connection,
    Invitation,
    InvitationBatch,
    SetupLink,
    TimelineEvent,
)
from ..onboarding.status import OnboardingStatus
from .errors import ApiError, FieldErrors, field_errors
from .fields import ChoiceField, IntegerParameter, StrictCharField, UtcDateTimeField
from .serializers import EMAIL_STATUSES

DEFAULT_PAGE_SIZE = 50
MAX_PAGE_SIZE = 100
MAX_VALUES = 100
"""How many values one filter takes."""
NOT_LOOKUPS = {"page", "page_size", "cursor", "search", "ordering"}
"""The parameters that are no lookups of the model."""


class ListParameter(serializers.ListField):
    """A parameter that may be repeated: rows with any of its values are found."""

    def __init__(self, child: serializers.Field[Any, Any, Any, Any], **kwargs: Any) -> None:
        super().__init__(
            child=child, required=False, allow_empty=False, max_length=MAX_VALUES, **kwargs
        )


def search_field(help_text: str) -> StrictCharField:
    """Return the parameter with which the rows' ``search`` is called."""
    return StrictCharField(required=False, allow_blank=True, max_length=200, help_text=help_text)


def ordering_field(component: str, *names: str) -> ChoiceField:
    """Return the parameter that sorts by one of ``names``, with "-" in descending order."""
    choices = {}
    for name in names:
        label = name.replace("_", " ")
        choices[name] = f"By {label}, ascending"
        choices[f"-{name}"] = f"By {label}, descending"
    return ChoiceField(
        component,
        choices,
        required=False,
        help_text=(
            "The order of the list; newest first by default. Rows without the value are last in "
            "either direction."
        ),
    )


class Filters(serializers.Serializer[Any]):
    """The query parameters of one list. Only those that are ListParameters may be repeated."""

    page_size = IntegerParameter(
        required=False, max_value=MAX_PAGE_SIZE, help_text="The number of results on a page."
    )

    def apply(self, rows: Any, values: Mapping[str, Any]) -> Any:
        """Return ``rows`` filtered and sorted by ``values``, the validated parameters."""
        rows = rows.filter(**{n: value for n, value in values.items() if n not in NOT_LOOKUPS})
        if text := values.get("search"):
            rows = rows.search(text)
        if ordering := values.get("ordering"):
            rows = _sort(rows, ordering)
        return rows


def _sort(rows: QuerySet[Any], ordering: str) -> QuerySet[Any]:
    column = F(ordering.removeprefix("-"))
    # Databases differ in where they put nulls.
    if ordering.startswith("-"):
        return rows.order_by(column.desc(nulls_last=True), "-pk")
    return rows.order_by(column.asc(nulls_last=True), "pk")


class PagedFilters(Filters):
    page = IntegerParameter(
        required=False, max_value=1_000_000, help_text="The number of the page, from 1."
    )


class CustomerFilters(PagedFilters):
    external_customer_id = ListParameter(
        StrictCharField(max_length=255, trim_whitespace=False),
        help_text="Only customers with one of these ids of this site's own; exact match.",
    )
    status = ListParameter(
        ChoiceField("OnboardingStatus", OnboardingStatus.choices),
        source="status__in",
        help_text="Only customers with one of these statuses.",
    )
    search = search_field(
        "A part of the name, the external id, the e-mail address, Kapso's id or a phone number "
        "(at least five digits, in any notation), or the reference of a setup link."
    )
    ordering = ordering_field(
        "CustomerOrdering", "created_at", "updated_at", "name", "status_changed_at"
    )

    def apply(self, rows: Any, values: Mapping[str, Any]) -> Any:
        others = dict(values)
        if wanted := others.pop("external_customer_id", None):
            # MySQL and MariaDB ignore case in the first comparison, but not in the second.
            exact = [
                Q(external_customer_id=one, external_customer_id__startswith=one) for one in wanted
            ]
            rows = rows.filter(reduce(or_, exact))
        return super().apply(rows, others)


class SetupLinkFilters(PagedFilters):
    customer = ListParameter(
        IntegerParameter(),
        source="customer__in",
        help_text="Only setup links of the customers with one of these ids.",
    )
    status = ListParameter(
        ChoiceField("SetupLinkStatus", SetupLink.Status.choices),
        help_text="Only setup links with one of these statuses.",
    )
    search = search_field(
        "The reference, a part of Kapso's id, or a part of the customer's name, external id, "
        "e-mail address or phone number (at least five digits, in any notation)."
    )
    ordering = ordering_field("SetupLinkOrdering", "created_at", "expires_at")

    def apply(self, rows: Any, values: Mapping[str, Any]) -> Any:
        others = dict(values)
        if statuses := others.pop("status", None):
            rows = rows.with_current_status(statuses)
        return super().apply(rows, others)


class ConnectionFilters(PagedFilters):
    customer = ListParameter(
        IntegerParameter(),
        source="customer__in",
        help_text="Only connections of the customers with one of these ids.",
    )
    status = ListParameter(
        ChoiceField("ConnectionStatus", Connection.Status.choices),
        source="status__in",
        help_text="Only connections with one of these statuses.",
    )
    phone_number_id = ListParameter(
        StrictCharField(max_length=64),
        source="phone_number_id__in",
        help_text="Only the numbers with one of these ids of Meta's.",
    )
    search = search_field(
        "A part of the phone number (at least five digits, in any notation), the verified "
        "name or Meta's ids, or of the customer's name, external id or e-mail address, or the "
        "reference of one of its setup links."
    )
    ordering = ordering_field("ConnectionOrdering", "connected_at", "disconnected_at")


class EventFilters(Filters):
    cursor = StrictCharField(
        required=False, max_length=200, help_text="Where the page begins; from next or previous."
    )
    customer = ListParameter(
        IntegerParameter(),
        source="customer__in",
        help_text="Only events of the customers with one of these ids.",
    )
    connection = ListParameter(
        IntegerParameter(),
        source="connection__in",
        help_text="Only events of the connections with one of these ids.",
    )
    setup_link = ListParameter(
        IntegerParameter(),
        source="setup_link__in",
        help_text="Only events of the setup links with one of these ids.",
    )
    kind = ListParameter(
        ChoiceField("EventKind", TimelineEvent.Kind.choices),
        source="kind__in",
        help_text="Only events of one of these kinds.",
    )
    since = UtcDateTimeField(
        source="occurred_at__gte", required=False, help_text="Events at or after this time."
    )
    until = UtcDateTimeField(
        source="occurred_at__lt", required=False, help_text="Events before this time."
    )


class BatchFilters(PagedFilters):
    purpose = ListParameter(
        ChoiceField("BatchPurpose", InvitationBatch.Purpose.choices),
        source="purpose__in",
        help_text="Only batches with one of these purposes.",
    )
    state = ListParameter(
        ChoiceField("BatchState", InvitationBatch.State.choices),
        help_text="Only batches in one of these states.",
    )

    def apply(self, rows: Any, values: Mapping[str, Any]) -> Any:
        others = dict(values)
        if states := others.pop("state", None):
            rows = rows.in_states(*states)
        return super().apply(rows, others)


class InvitationFilters(PagedFilters):
    status = ListParameter(
        ChoiceField("InvitationStatus", Invitation.Status.choices),
        source="status__in",
        help_text="Only invitations with one of these statuses.",
    )
    email_status = ListParameter(
        ChoiceField("EmailStatus", EMAIL_STATUSES),
        source="email_status__in",
        help_text="Only invitations whose e-mail has one of these statuses.",
    )


def validate_filters(
    filters_class: type[Filters], request: Request
) -> tuple[Filters, dict[str, Any]]:
    """Return the filters and their validated values. Raise ApiError ``invalid_filter``."""
    query = request.query_params
    fields = filters_class().fields
    filters = filters_class(
        data={
            name: query.getlist(name) if _is_list(fields.get(name)) else query[name]
            for name in query
        }
    )
    errors: FieldErrors = {}
    known = {*fields, api_settings.URL_FORMAT_OVERRIDE}
    for name, values in query.lists():
        if name not in known:
            errors[name[:100]] = [{"code": "unknown_filter", "message": "Unknown filter."}]
        elif len(values) > 1 and not _is_list(fields.get(name)):
            errors[name] = [{"code": "repeated", "message": "Must not be repeated."}]
    if not filters.is_valid():
        errors.update(field_errors(filters.errors))
    if errors:
        raise ApiError("invalid_filter", fields=errors)
    return filters, filters.validated_data


def _is_list(field: Any) -> bool:
    return isinstance(field, ListParameter)
