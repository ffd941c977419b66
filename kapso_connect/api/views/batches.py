"""Batches: many customers are invited, or reminded, at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from django.core.exceptions import PermissionDenied
from django.db.models import Exists, OuterRef, Q, QuerySet
from rest_framework.request import Request
from rest_framework.response import Response

from ...db import retry_on_conflict
from ...models import Customer, Invitation, InvitationBatch
from ...onboarding import invitations
from ...onboarding.other_invitations import NobodyLeft
from .. import examples, idempotency, serializers
from ..errors import ApiError
from ..filters import BatchFilters, InvitationFilters
from ..operations import BODY_ERRORS, CREATE_HEADERS, IDEMPOTENCY_ERRORS, describe_reads, responses
from ..permissions import required
from ..schema import extend_schema
from .base import Api

ACTION_ERRORS = ("not_found", *BODY_ERRORS)
ACTION_RESPONSES = responses(serializers.BatchSerializer, *ACTION_ERRORS)


class BatchApi(Api):
    """Base of the views of batches."""

    tag = "Kapso batches"

    def visible_batches(self) -> QuerySet[InvitationBatch]:
        """Return the batches whose customers are all among those that the request may access."""
        batches = InvitationBatch.objects.started()
        everybody = Customer.objects.all()
        customers = self.limit(everybody, "pk")
        if customers is everybody:  # then also those whose customers were all deleted
            return batches
        rows = Invitation.objects.filter(batch=OuterRef("pk")).order_by()
        is_own = Q(customer__in=customers.values("pk"))
        return batches.filter(Exists(rows.filter(is_own)), ~Exists(rows.exclude(is_own)))

    def find_batch(self, pk: int) -> InvitationBatch:
        """Return a batch. Raise Http404 and PermissionDenied."""
        batch: InvitationBatch = self.get_permitted(self.visible_batches().filter(pk=pk))
        method = str(self.request.method)
        may_see = self.is_permitted("invite", method=method) or (
            batch.is_reminder and self.is_permitted("email", method=method)
        )
        if not may_see:
            raise PermissionDenied
        return batch

    def check_permitted(self, *, is_reminder: bool, sends_email: bool) -> None:
        """Raise PermissionDenied unless the user may do what a batch does."""
        may_invite = is_reminder or self.is_permitted("invite")
        may_send = not (is_reminder or sends_email) or self.is_permitted("email")
        if not (may_invite and may_send):
            raise PermissionDenied


@describe_reads
class Batches(BatchApi):
    """Invitations and reminders of many customers, newest first."""

    example = examples.NEW_BATCH
    filters = BatchFilters
    serializer_class = serializers.BatchSerializer
    serializer_classes = {
        "create": serializers.BatchRequestSerializer,
        "work": serializers.EmptySerializer,
        "resume": serializers.EmptySerializer,
        "send_again": serializers.EmptySerializer,
        "give_up": serializers.EmptySerializer,
    }
    required_permissions = {
        "list": required("view_customer", "create_setup_link"),
        **dict.fromkeys(
            ("create", "retrieve", "work", "resume", "send_again", "give_up"),
            required("view_customer"),
        ),
        # What a batch does decides which of these is needed, too.
        "invite": required("create_setup_link"),
        "email": required("send_setup_link"),
    }
    throttle_kinds = {
        "create": "kapso",
        "work": "kapso",
        "resume": "kapso",
        "send_again": "write",
        "give_up": "write",
    }

    def get_queryset(self) -> QuerySet[InvitationBatch]:
        return self.visible_batches()

    def get_object(self) -> InvitationBatch:
        return self.find_batch(self.pk)

    def represent(self, rows: Sequence[Any]) -> Sequence[Any]:
        progress = invitations.progress_of_many(rows)
        for batch in rows:
            batch.state = invitations.find_state(batch, progress[batch.pk])
            left_out = progress[batch.pk].left_out if batch.send_email else 0
            batch.progress = replace(progress[batch.pk], left_out=left_out)
        return super().represent(rows)

    @extend_schema(
        summary="New batch",
        parameters=CREATE_HEADERS,
        responses=responses(
            serializers.BatchSerializer,
            *ACTION_ERRORS,
            *IDEMPOTENCY_ERRORS,
            "nobody_left",
            "not_configured",
            status=201,
            description="The new object.",
            invalid=examples.CUSTOMERS_UNKNOWN,
        ),
    )
    def create(self, request: Request) -> Response:
        """Invite or remind up to 1,000 customers. Task workers do the work; on a site without them,
        some of it is done before the response, and more by each request to work/. With an
        Idempotency-Key, the request can be repeated without creating a second batch: the response
        is the present state of the first one."""
        values = self.validated_body()
        is_reminder = values["purpose"] == InvitationBatch.Purpose.REMIND
        self.check_permitted(is_reminder=is_reminder, sends_email=values.get("send_email", False))
        with idempotency.attempt(request, self.get_idempotency_owner) as attempt:
            earlier = attempt.row.response
            if earlier is not None:
                batch = self.find_batch(earlier["id"])
            else:
                batch = retry_on_conflict(lambda: self._create(values, attempt))
        if earlier is None:
            invitations.work_unless_background(batch)
            batch.refresh_from_db()
        body = self.represent([batch])[0]
        return self.created_response("batch", batch.pk, body, replayed=earlier is not None)

    def _create(self, values: Mapping[str, Any], attempt: idempotency.Attempt) -> InvitationBatch:
        batch = invitations.make_batch(
            [customer.pk for customer in values["customers"]],
            created_by=self.actor,
            purpose=values["purpose"],
        )
        try:
            invitations.start(
                batch,
                options=values.get("options"),
                next_url=values.get("next_url", ""),
                send_email=values.get("send_email", False),
                leave_out_connected=values.get("leave_out_connected", False),
                leave_out_invited=values.get("leave_out_invited", False),
            )
        except NobodyLeft:
            raise ApiError("nobody_left") from None
        attempt.finish({"id": batch.pk})
        return batch

    @extend_schema(request=None, responses=ACTION_RESPONSES)
    def work(self, request: Request, pk: str) -> Response:
        """Work on the batch for some seconds, on a site without task workers. Elsewhere, nothing is
        done here: they do the work."""
        batch = self.get_object()
        self.validated_body()
        invitations.work_unless_background(batch)
        return self.object_response(self.get_object())

    @extend_schema(request=None, responses=ACTION_RESPONSES)
    def resume(self, request: Request, pk: str) -> Response:
        """Continue a batch that stopped, and try again what failed. An e-mail that may have been
        sent is not sent again."""
        batch = self._get_permitted_object()
        invitations.resume(batch)
        invitations.work_unless_background(batch)
        return self.object_response(self.get_object())

    @extend_schema(request=None, responses=ACTION_RESPONSES)
    def send_again(self, request: Request, pk: str) -> Response:
        """Send the e-mails that failed again. No links are created, and an e-mail that may have
        been sent is not sent again."""
        batch = self._get_permitted_object()
        invitations.send_failed_emails_again(batch)
        invitations.work_unless_background(batch)
        return self.object_response(self.get_object())

    @extend_schema(
        request=None,
        responses=responses(serializers.BatchSerializer, *ACTION_ERRORS, "batch_not_stopped"),
    )
    def give_up(self, request: Request, pk: str) -> Response:
        """Give up what is left of a batch that stopped; resuming it takes that back."""
        batch = self._get_permitted_object()
        if not batch.stopped and invitations.progress(batch).left:
            raise ApiError("batch_not_stopped")
        invitations.give_up(batch)
        return self.object_response(self.get_object())

    def _get_permitted_object(self) -> InvitationBatch:
        """Return the batch in the URL, if the user may do what it does."""
        batch = self.get_object()
        self.validated_body()
        self.check_permitted(is_reminder=batch.is_reminder, sends_email=batch.send_email)
        return batch


@describe_reads
class BatchInvitations(BatchApi):
    """The invitations of a batch, or its reminders: one for each customer, in the order of the
    request."""

    filters = InvitationFilters
    serializer_class = serializers.InvitationSerializer
    required_permissions = {
        "list": required("view_customer"),
        "invite": required("create_setup_link"),
        "email": required("send_setup_link"),
    }

    def get_queryset(self) -> QuerySet[Invitation]:
        batch = self.find_batch(self.pk)
        # The batch is visible, and so are all of its customers.
        return Invitation.objects.filter(batch=batch).select_related("batch").order_by("pk")

    def list(self, request: Request, pk: str = "") -> Response:
        return super().list(request)
