"""Tags for this package's templates of the admin. Sites without the admin import them, too: Django
imports every library of tags when it checks a project."""

from __future__ import annotations

from typing import Any

from django import template
from django.contrib.auth import get_permission_codename

from ..models import TimelineEvent, WebhookEvent

register = template.Library()


@register.inclusion_tag("admin/kapso_connect/failed_work/notice.html", takes_context=True)
def failed_work(context: Any) -> dict[str, int]:
    """Say how many webhooks and signals have failed, and link to those that the user may view."""
    user = context.request.user
    counts = {}
    for name, model in (("webhooks", WebhookEvent), ("signals", TimelineEvent)):
        opts = model._meta
        may_view = any(
            user.has_perm(f"{opts.app_label}.{get_permission_codename(action, opts)}")
            for action in ("view", "change")
        )
        counts[name] = model.objects.failed().count() if may_view else 0
    return counts
