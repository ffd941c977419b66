"""Who else invited the customers of a draft: the second member of staff is told of the first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db.models import QuerySet

from ..models import Customer, Invitation, InvitationBatch, TimelineEvent


@dataclass(frozen=True)
class OtherInvitation:
    """An invitation of a customer by ``user``, who is None for an automatic one. Its link was
    created at ``at``, or its batch was started then and is to create it."""

    customer: Customer
    user: Any
    at: datetime
    is_created: bool


class InvitedMeanwhile(Exception):
    """A customer of the draft was invited by somebody else in the meantime."""


class NobodyLeft(Exception):
    """All customers of the draft would be left out."""


def other_invitations(batch: InvitationBatch, since: datetime, limit: int) -> list[OtherInvitation]:
    """Return the invitations of the customers of ``batch`` since ``since``, which is as this site
    stores times, but those of ``batch`` itself: the newest first, at most ``limit``."""
    # In this order: an invitation that is no longer pending has its event.
    pending = list(_pending(batch, since)[:limit])
    created = list(_created(batch, since)[:limit])
    found = sorted(_found(pending, created), key=lambda other: other.at, reverse=True)
    return found[:limit]


def _found(pending: list[Invitation], created: list[TimelineEvent]) -> Iterator[OtherInvitation]:
    for event in created:
        if event.customer is not None:
            yield OtherInvitation(event.customer, event.actor, event.occurred_at, True)
    for row in pending:
        if row.batch.started_at is not None:
            yield OtherInvitation(row.customer, row.batch.created_by, row.batch.started_at, False)


def _pending(batch: InvitationBatch, since: datetime) -> QuerySet[Invitation]:
    return (
        Invitation.objects.pending()
        .filter(
            batch__purpose=InvitationBatch.Purpose.INVITE,
            batch__started_at__gte=since,
            setup_link=None,
            customer__in=batch.invitations.values("customer"),
        )
        .exclude(batch=batch)
        .select_related("customer", "batch__created_by")
        .order_by("-batch__started_at", "-pk")
    )


def _created(batch: InvitationBatch, since: datetime) -> QuerySet[TimelineEvent]:
    return (
        TimelineEvent.objects.filter(
            kind=TimelineEvent.Kind.SETUP_LINK_CREATED,
            occurred_at__gte=since,
            customer__in=batch.invitations.values("customer"),
        )
        .select_related("customer", "actor")
        .order_by("-occurred_at", "-pk")
    )
