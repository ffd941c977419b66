"""What lists can be asked for; anything that is not understood is refused, never ignored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.db.models import Q, QuerySet
from django.utils import timezone
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.settings import api_settings

from ..models import Connection, SetupLink, TimelineEvent
from ..onboarding.status import OnboardingStatus, has_status
from .errors import Fields, invalid
from .fields import ChoiceField, MomentField, NumberParameter, TextField

PAGE_SIZE = 50
MAX_PAGE_SIZE = 100


class Filters(serializers.Serializer[Any]):
    """The parameters of one list; each may be given once."""

    page_size = NumberParameter(required=False, max_value=MAX_PAGE_SIZE)

    def narrow(self, rows: QuerySet[Any], given: Mapping[str, Any]) -> QuerySet[Any]:
        """Return those of ``rows`` that the checked parameters ``given`` ask for."""
        raise NotImplementedError


class Paged(Filters):
    page = NumberParameter(required=False, max_value=1_000_000)


class CustomerFilters(Paged):
    external_customer_id = TextField(required=False, max_length=255, trim_whitespace=False)
    standing = ChoiceField(required=False, choices=OnboardingStatus.choices)
    search = TextField(
        required=False,
        allow_blank=True,
        max_length=200,
        help_text="Part of the name, the external id, the e-mail address or Kapso's id.",
    )

    def narrow(self, rows: QuerySet[Any], given: Mapping[str, Any]) -> QuerySet[Any]:
        if "external_customer_id" in given:
            wanted = given["external_customer_id"]
            # MySQL and MariaDB take "Ab3" for "aB3" in the first comparison, not in the second.
            rows = rows.filter(external_customer_id=wanted, external_customer_id__startswith=wanted)
        if "standing" in given:
            rows = rows.filter(has_status(given["standing"]))
        if text := given.get("search"):
            rows = rows.filter(
                Q(name__icontains=text)
                | Q(external_customer_id__icontains=text)
                | Q(email__icontains=text)
                | Q(kapso_id__icontains=text)
            )
        return rows


class SetupLinkFilters(Paged):
    customer = NumberParameter(required=False)
    status = ChoiceField(required=False, choices=SetupLink.Status.choices)

    def narrow(self, rows: QuerySet[Any], given: Mapping[str, Any]) -> QuerySet[Any]:
        if "customer" in given:
            rows = rows.filter(customer=given["customer"])
        if "status" in given:
            rows = rows.filter(_stands(given["status"]))
        return rows


def _stands(status: str) -> Q:
    """The condition for links that stand at ``status`` now, as ``link_status`` says it."""
    over = Q(status=SetupLink.Status.ACTIVE, expires_at__lte=timezone.now())
    if status == SetupLink.Status.EXPIRED:
        return Q(status=status) | over
    return Q(status=status) & ~over


class ConnectionFilters(Paged):
    customer = NumberParameter(required=False)
    status = ChoiceField(required=False, choices=Connection.Status.choices)
    phone_number_id = TextField(required=False, max_length=64)

    def narrow(self, rows: QuerySet[Any], given: Mapping[str, Any]) -> QuerySet[Any]:
        names = ("customer", "status", "phone_number_id")
        return rows.filter(**{name: given[name] for name in names if name in given})


class EventFilters(Filters):
    cursor = TextField(required=False, max_length=200)
    customer = NumberParameter(required=False)
    connection = NumberParameter(required=False)
    setup_link = NumberParameter(required=False)
    kind = ChoiceField(required=False, choices=TimelineEvent.Kind.choices)
    since = MomentField(required=False, help_text="What happened then or later.")
    until = MomentField(required=False, help_text="What happened before.")

    def narrow(self, rows: QuerySet[Any], given: Mapping[str, Any]) -> QuerySet[Any]:
        names = ("customer", "connection", "setup_link", "kind")
        rows = rows.filter(**{name: given[name] for name in names if name in given})
        if "since" in given:
            rows = rows.filter(occurred_at__gte=given["since"])
        if "until" in given:
            rows = rows.filter(occurred_at__lt=given["until"])
        return rows


def checked(kind: type[Filters], request: Request) -> tuple[Filters, dict[str, Any]]:
    """Return the filters and what they were given. Raises ApiError ``invalid_filter``."""
    filters = kind(data=request.query_params.dict())
    wrong: Fields = {}
    known = {*filters.fields, api_settings.URL_FORMAT_OVERRIDE}
    for name, values in request.query_params.lists():
        if name not in known:
            wrong[name[:100]] = [{"code": "unknown_filter", "message": "There is no such filter."}]
        elif len(values) > 1:
            wrong[name] = [{"code": "repeated", "message": "Give this once."}]
    if not filters.is_valid():
        for name, problems in filters.errors.items():
            wrong[name] = [{"code": problem.code, "message": problem} for problem in problems]
    if wrong:
        raise invalid(wrong, code="invalid_filter")
    return filters, filters.validated_data
