"""What the lists and the overview say of batches that are not finished."""

from __future__ import annotations

from typing import Any

from django.db.models import Count, Exists, OuterRef, QuerySet, Subquery
from django.http import HttpRequest

from ..models import Invitation, InvitationBatch
from ..translation import ngettext

MAX_NOTICES = 3
"""Of how many unfinished batches a notice tells, the newest first."""


def open_batches() -> QuerySet[InvitationBatch]:
    """Return the latest batches that are not finished, with the numbers of their customers:
    ``total`` and ``left``."""
    of_batch = Invitation.objects.filter(batch=OuterRef("pk")).order_by()
    pending = of_batch.pending()
    unfinished = InvitationBatch.objects.filter(Exists(pending), started_at__isnull=False)
    return unfinished.annotate(total=count_of(of_batch), left=count_of(pending)).order_by("-pk")


def count_of(rows: QuerySet[Invitation]) -> Subquery:
    """Return the number of ``rows``, which are those of one batch, as a subquery."""
    return Subquery(rows.values("batch").annotate(count=Count("pk")).values("count"))


def batch_notices(request: HttpRequest, model_admin: Any) -> list[dict[str, Any]]:
    """Return what the batches that are not finished do, and the URLs of their pages in
    ``model_admin``; nothing for users who may not create setup links."""
    if not model_admin.has_create_setup_link_permission(request):
        return []
    return [
        {
            "text": notice_text(batch),
            "is_stopped": bool(batch.stopped),
            "url": model_admin.view_url("whatsapp_batch", batch.pk),
        }
        for batch in open_batches()[:MAX_NOTICES]
    ]


def notice_text(batch: Any) -> str:
    """Return one sentence about a batch of ``open_batches``."""
    if batch.stopped:
        text = (
            ngettext(
                "A reminder of %(total)s customer has stopped: %(reason)s",
                "A reminder of %(total)s customers has stopped: %(reason)s",
                batch.total,
            )
            if batch.is_reminder
            else ngettext(
                "An invitation of %(total)s customer has stopped: %(reason)s",
                "An invitation of %(total)s customers has stopped: %(reason)s",
                batch.total,
            )
        )
    else:
        text = (
            ngettext(
                "A reminder of %(total)s customer is running: %(done)s done.",
                "A reminder of %(total)s customers is running: %(done)s done.",
                batch.total,
            )
            if batch.is_reminder
            else ngettext(
                "An invitation of %(total)s customer is running: %(done)s done.",
                "An invitation of %(total)s customers is running: %(done)s done.",
                batch.total,
            )
        )
    counts = {"total": batch.total, "done": batch.total - batch.left}
    return text % {**counts, "reason": batch.stopped}
