"""Tags for this package's templates of the admin."""

from __future__ import annotations

from typing import Any

from django import template

from ..admin.permissions import can_view
from ..models import TimelineEvent, WebhookEvent

register = template.Library()


@register.inclusion_tag("admin/kapso_connect/failed_work/notice.html", takes_context=True)
def failed_work(context: Any) -> dict[str, int]:
    """Say how many webhooks and signals have failed, and link to those that the user may view."""
    counts = {}
    for name, model in (("webhooks", WebhookEvent), ("signals", TimelineEvent)):
        is_allowed = can_view(context.request, model._meta)
        counts[name] = model.objects.failed().count() if is_allowed else 0
    return counts
