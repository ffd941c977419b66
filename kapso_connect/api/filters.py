"""The query parameters of lists. Unknown ones and invalid values are errors, never ignored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.db.models import Q, QuerySet
from django.utils import timezone
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.settings import api_settings

from ..models import Connection, SetupLink, TimelineEvent
from ..onboarding.status import OnboardingStatus
from .errors import ApiError, FieldErrors
from .fields import IntegerParameter, StrictCharField, StrictChoiceField, UtcDateTimeField
from .serializers import CUSTOMER_HELP

DEFAULT_PAGE_SIZE = 50
MAX_PAGE_SIZE = 100


class Filters(serializers.Serializer[Any]):
    """The query parameters of one list; each may be values once."""

    page_size = IntegerParameter(
        required=False, max_value=MAX_PAGE_SIZE, help_text="The number of results on a page."
    )

    def apply(self, rows: QuerySet[Any], values: Mapping[str, Any]) -> QuerySet[Any]:
        """Return ``rows`` filtered by ``values``, the validated parameters."""
        raise NotImplementedError


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
    status = StrictChoiceField(
        required=False,
        choices=OnboardingStatus.choices,
        help_text="The onboarding status of the customer.",
    )
    search = StrictCharField(
        required=False,
        allow_blank=True,
        max_length=200,
        help_text="A part of the name, the external id, the e-mail address or Kapso's id.",
    )

    def apply(self, rows: QuerySet[Any], values: Mapping[str, Any]) -> QuerySet[Any]:
        if "external_customer_id" in values:
            wanted = values["external_customer_id"]
            # MySQL and MariaDB ignore case in the first comparison, but not in the second.
            rows = rows.filter(external_customer_id=wanted, external_customer_id__startswith=wanted)
        if "status" in values:
            rows = rows.filter(status=values["status"])
        if text := values.get("search"):
            rows = rows.filter(
                Q(name__icontains=text)
                | Q(external_customer_id__icontains=text)
                | Q(email__icontains=text)
                | Q(kapso_id__icontains=text)
            )
        return rows


class SetupLinkFilters(PagedFilters):
    customer = IntegerParameter(required=False, help_text=CUSTOMER_HELP)
    status = StrictChoiceField(
        required=False, choices=SetupLink.Status.choices, help_text="Whether the link can be used."
    )

    def apply(self, rows: QuerySet[Any], values: Mapping[str, Any]) -> QuerySet[Any]:
        if "customer" in values:
            rows = rows.filter(customer=values["customer"])
        if "status" in values:
            rows = rows.filter(_has_link_status(values["status"]))
        return rows


def _has_link_status(status: str) -> Q:
    """Return the condition for links whose ``serializers.link_status`` is ``status``."""
    is_past_end = Q(status=SetupLink.Status.ACTIVE, expires_at__lte=timezone.now())
    if status == SetupLink.Status.EXPIRED:
        return Q(status=status) | is_past_end
    return Q(status=status) & ~is_past_end


class ConnectionFilters(PagedFilters):
    customer = IntegerParameter(required=False, help_text=CUSTOMER_HELP)
    status = StrictChoiceField(
        required=False,
        choices=Connection.Status.choices,
        help_text="Whether the number is connected.",
    )
    phone_number_id = StrictCharField(
        required=False, max_length=64, help_text="Meta's id of the number."
    )

    def apply(self, rows: QuerySet[Any], values: Mapping[str, Any]) -> QuerySet[Any]:
        names = ("customer", "status", "phone_number_id")
        return rows.filter(**{name: values[name] for name in names if name in values})


class EventFilters(Filters):
    cursor = StrictCharField(
        required=False, max_length=200, help_text="Where the page begins; from next or previous."
    )
    customer = IntegerParameter(required=False, help_text=CUSTOMER_HELP)
    connection = IntegerParameter(required=False, help_text="The id of a connection.")
    setup_link = IntegerParameter(required=False, help_text="The id of a setup link.")
    kind = StrictChoiceField(
        required=False, choices=TimelineEvent.Kind.choices, help_text="What happened."
    )
    since = UtcDateTimeField(required=False, help_text="Events at or after this time.")
    until = UtcDateTimeField(required=False, help_text="Events before this time.")

    def apply(self, rows: QuerySet[Any], values: Mapping[str, Any]) -> QuerySet[Any]:
        names = ("customer", "connection", "setup_link", "kind")
        rows = rows.filter(**{name: values[name] for name in names if name in values})
        if "since" in values:
            rows = rows.filter(occurred_at__gte=values["since"])
        if "until" in values:
            rows = rows.filter(occurred_at__lt=values["until"])
        return rows


def validate_filters(
    filters_class: type[Filters], request: Request
) -> tuple[Filters, dict[str, Any]]:
    """Return the filters and their validated values. Raises ApiError ``invalid_filter``."""
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
