"""The inbox and the timeline: what arrived, what happened, and what has to be run again."""

from __future__ import annotations

import time
from typing import Any

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.db.models import Q, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from .. import outbox
from ..models import TimelineEvent, WebhookEvent
from ..webhooks import inbox
from .base import EMPTY, LISTED, M, ReadOnlyAdmin, badge, json_block, may, shorten, text_block

RUN_SECONDS = 15
"""No further row is begun after so long: web servers end requests at 30 seconds."""


class RunAgainAdmin(ReadOnlyAdmin[M]):
    """Adds "Run again": the action leads to a page that asks, and posts outside a transaction."""

    actions = ["run_again"]
    change_form_template = "admin/kapso_connect/run_again_form.html"
    run_again_title: Any = ""
    run_again_help: Any = ""

    def run_one(self, row: M) -> bool | None:
        """True: it is done. False: it failed again. None: it was not due for another run."""
        raise NotImplementedError

    def is_open(self, row: M) -> bool:
        """True where there is something left to run."""
        raise NotImplementedError

    def has_run_again_permission(self, request: HttpRequest) -> bool:
        return may(request, "change", self.opts)

    @admin.action(description=gettext_lazy("Run again"), permissions=["run_again"])
    def run_again(self, request: HttpRequest, queryset: QuerySet[M]) -> HttpResponseRedirect | None:
        return self.to_view(request, queryset, "run_again")

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> HttpResponse:
        row = context.get("original")
        if row is not None and self.has_run_again_permission(request) and self.is_open(row):
            context["run_again_url"] = f"{self.view_url('run_again')}?ids={row.pk}"
        return super().render_change_form(request, context, *args, **kwargs)

    def get_urls(self) -> list[URLPattern]:
        return [
            self.view_path("run-again/", self.run_again_view, "run_again"),
            *super().get_urls(),
        ]

    def run_again_view(self, request: HttpRequest) -> HttpResponse:
        if not self.has_run_again_permission(request):
            raise PermissionDenied
        ids = (request.POST if request.method == "POST" else request.GET).get("ids", "")
        rows = self.selected(request, ids)
        if not rows:
            return self.to_changelist()
        if request.method == "POST":
            self.run(request, rows)
            return self.to_changelist()
        return self.page(
            request,
            "run_again",
            self.run_again_title,
            help=self.run_again_help,
            rows=rows[:LISTED],
            more=max(len(rows) - LISTED, 0),
            ids=",".join(str(row.pk) for row in rows),
        )

    def run(self, request: HttpRequest, rows: list[M]) -> None:
        started = time.monotonic()
        done = failed = skipped = 0
        for row in rows:
            if time.monotonic() - started > RUN_SECONDS:
                self.message_user(
                    request,
                    _("Time ran out before all were run. Select the others and run them again."),
                    level="WARNING",
                )
                break
            outcome = self.run_one(row)
            if outcome is None:
                skipped += 1
                continue
            self.log_change(request, row, _("Run again."))
            done += outcome
            failed += not outcome
        self.tell(request, done, failed, skipped)

    def tell(self, request: HttpRequest, done: int, failed: int, skipped: int) -> None:
        if done:
            text = ngettext("%(count)s is done.", "%(count)s are done.", done)
            self.message_user(request, text % {"count": done}, level="SUCCESS")
        if failed:
            text = ngettext(
                "%(count)s could not be done; its error says why.",
                "%(count)s could not be done; their errors say why.",
                failed,
            )
            self.message_user(request, text % {"count": failed}, level="ERROR")
        if skipped:
            text = ngettext(
                "%(count)s was left alone: it is done already, or is being worked on right now.",
                "%(count)s were left alone: they are done already, or are being worked on right "
                "now.",
                skipped,
            )
            self.message_user(request, text % {"count": skipped}, level="WARNING")


INBOX_BADGES = {
    WebhookEvent.Status.PENDING: "busy",
    WebhookEvent.Status.PROCESSED: "good",
    WebhookEvent.Status.IGNORED: "neutral",
    WebhookEvent.Status.FAILED: "bad",
}


@admin.register(WebhookEvent)
class WebhookEventAdmin(RunAgainAdmin[WebhookEvent]):
    list_display = ["event", "state", "problem", "received_at", "attempts", "next_attempt_at"]
    list_filter = ["status", "received_at"]
    search_fields = ["=idempotency_key", "^event"]
    search_help_text = gettext_lazy("Whole idempotency key, or the beginning of an event's name.")
    fields = [
        "event",
        "state",
        "full_error",
        "attempts",
        "next_attempt_at",
        "received_at",
        "processed_at",
        "idempotency_key",
        "body",
    ]
    run_again_title = gettext_lazy("Run webhook events again")
    run_again_help = gettext_lazy(
        "Each event that failed or waits is acted on now. What is done already stays as it is."
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[WebhookEvent]:
        # A list of bodies of up to a megabyte each is not read to show their names.
        return super().get_queryset(request).defer("payload")

    def run_one(self, row: WebhookEvent) -> bool | None:
        return inbox.run_again(row)

    def is_open(self, row: WebhookEvent) -> bool:
        return row.status in {WebhookEvent.Status.PENDING, WebhookEvent.Status.FAILED}

    @admin.display(description=gettext_lazy("status"), ordering="status")
    def state(self, event: WebhookEvent) -> SafeString:
        kind = INBOX_BADGES.get(WebhookEvent.Status(event.status), "neutral")
        return badge(kind, event.get_status_display())

    @admin.display(description=gettext_lazy("why"))
    def problem(self, event: WebhookEvent) -> str:
        return shorten(event.last_error)

    @admin.display(description=gettext_lazy("why"))
    def full_error(self, event: WebhookEvent) -> SafeString | str:
        return text_block(event.last_error)

    @admin.display(description=gettext_lazy("payload"))
    def body(self, event: WebhookEvent) -> SafeString:
        return json_block(event.payload)


class SignalFilter(admin.SimpleListFilter):
    title = gettext_lazy("signal")
    parameter_name = "signal"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [
            ("delivered", _("Delivered")),
            ("waiting", _("Waiting")),
            ("failed", _("Failed")),
        ]

    def queryset(
        self, request: HttpRequest, queryset: QuerySet[TimelineEvent]
    ) -> QuerySet[TimelineEvent]:
        conditions = {
            "delivered": Q(delivered_at__isnull=False),
            "waiting": Q(delivered_at=None, next_attempt_at__isnull=False),
            "failed": Q(delivered_at=None, next_attempt_at=None),
        }
        return queryset.filter(conditions.get(self.value() or "", Q()))


def signal_state(event: TimelineEvent) -> SafeString:
    if event.delivered_at is not None:
        return badge("good", _("Delivered"))
    if event.next_attempt_at is not None:
        return badge("busy", _("Waiting"))
    return badge("bad", _("Failed"))


@admin.register(TimelineEvent)
class TimelineEventAdmin(RunAgainAdmin[TimelineEvent]):
    list_display = [
        "what",
        "signal",
        "problem",
        "customer",
        "connection",
        "occurred_at",
        "source",
        "by",
        "attempts",
    ]
    list_filter = [SignalFilter, "kind", "source", "occurred_at"]
    list_select_related = ["customer", "connection", "actor"]
    search_fields = [
        "customer__name",
        "=customer__external_customer_id",
        "=connection__phone_number_id",
    ]
    search_help_text = gettext_lazy("Customer's name or external id, or Meta's id of the number.")
    fields = [
        "what",
        "customer",
        "connection",
        "setup_link",
        "webhook_event",
        "source",
        "actor",
        "occurred_at",
        "details",
        "signal",
        "delivered_at",
        "attempts",
        "next_attempt_at",
        "full_error",
        "receivers_done",
    ]
    run_again_title = gettext_lazy("Send signals again")
    run_again_help = gettext_lazy(
        "Each signal that failed or waits is sent now, to the receivers that have not had it."
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[TimelineEvent]:
        return super().get_queryset(request).select_related("customer", "connection", "actor")

    def run_one(self, row: TimelineEvent) -> bool | None:
        return outbox.resend(row)

    def is_open(self, row: TimelineEvent) -> bool:
        return row.delivered_at is None

    @admin.display(description=gettext_lazy("what"), ordering="kind")
    def what(self, event: TimelineEvent) -> str:
        return event.get_kind_display()

    @admin.display(description=gettext_lazy("by"))
    def by(self, event: TimelineEvent) -> str | None:
        return str(event.actor) if event.actor else None

    @admin.display(description=gettext_lazy("signal"))
    def signal(self, event: TimelineEvent) -> SafeString:
        return signal_state(event)

    @admin.display(description=gettext_lazy("error"))
    def problem(self, event: TimelineEvent) -> str:
        return shorten(event.last_error)

    @admin.display(description=gettext_lazy("error"))
    def full_error(self, event: TimelineEvent) -> SafeString | str:
        return text_block(event.last_error)

    @admin.display(description=gettext_lazy("data"))
    def details(self, event: TimelineEvent) -> SafeString | str:
        return json_block(event.data) if event.data else EMPTY

    @admin.display(description=gettext_lazy("receivers done"))
    def receivers_done(self, event: TimelineEvent) -> SafeString | str:
        return text_block("\n".join(str(name) for name in event.receivers))
