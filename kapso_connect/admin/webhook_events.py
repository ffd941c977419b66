"""The admin of the inbox: the webhooks that Kapso sent, and how each was processed."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.safestring import SafeString

from ..models import WebhookEvent
from ..translation import gettext_lazy
from ..webhooks import inbox
from .dismiss import DISMISSED
from .display import badge, json_block
from .export import ExportMixin
from .failed_work import FailedWorkAdmin

WEBHOOK_EVENT_BADGES = {
    WebhookEvent.Status.PENDING: "busy",
    WebhookEvent.Status.PROCESSED: "good",
    WebhookEvent.Status.IGNORED: "neutral",
    WebhookEvent.Status.FAILED: "bad",
}


class WebhookStatusFilter(admin.SimpleListFilter):
    title = gettext_lazy("status")
    parameter_name = "status"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        return [*WebhookEvent.Status.choices, ("dismissed", DISMISSED)]

    def queryset(self, request: HttpRequest, queryset: Any) -> Any:
        if self.value() == "dismissed":
            return queryset.dismissed()
        if self.value() == WebhookEvent.Status.FAILED:
            return queryset.failed()
        if self.value() in WebhookEvent.Status.values:
            return queryset.filter(status=self.value())
        return queryset


@admin.register(WebhookEvent)
class WebhookEventAdmin(FailedWorkAdmin, ExportMixin):
    list_display = ["event", "state", "problem", "received_at", "attempts", "next_attempt"]
    list_filter = [WebhookStatusFilter, "received_at"]
    search_fields = ["=idempotency_key", "^event"]
    search_help_text = gettext_lazy("Whole idempotency key, or the beginning of an event's name.")
    fields = [
        "event",
        "state",
        "full_error",
        "attempts",
        "next_attempt",
        "received_at",
        "processed_at",
        "idempotency_key",
        "body",
    ]
    run_again_title = gettext_lazy("Run webhook events again")
    run_again_help = gettext_lazy(
        "Failed and pending events are processed now, and decisions about accounts that were "
        "ignored. Finished ones are not changed."
    )
    dismiss_title = gettext_lazy("Dismiss webhook events")

    def get_queryset(self, request: HttpRequest) -> QuerySet[WebhookEvent]:
        # A payload may be a megabyte, and the list does not show it.
        return super().get_queryset(request).select_related("dismissed_by").defer("payload")

    def run_row_again(self, row: WebhookEvent) -> bool | None:
        return inbox.process_again(row)

    def can_run_again(self, row: WebhookEvent) -> bool:
        return inbox.can_process_again(row)

    def dismiss_row(self, row: WebhookEvent, *, by: Any, because: str) -> bool:
        return inbox.dismiss(row, by=by, because=because)

    def has_failed(self, row: WebhookEvent) -> bool:
        return row.status == WebhookEvent.Status.FAILED

    @admin.display(description=gettext_lazy("status"), ordering="status")
    def state(self, event: WebhookEvent) -> SafeString:
        if self.is_dismissed(event):
            return badge("neutral", DISMISSED)
        kind = WEBHOOK_EVENT_BADGES.get(WebhookEvent.Status(event.status), "neutral")
        return badge(kind, event.get_status_display())

    @admin.display(description=gettext_lazy("payload"))
    def body(self, event: WebhookEvent) -> SafeString:
        return json_block(event.payload)
