"""The "Run again" action and its page, for rows whose processing failed."""

from __future__ import annotations

import time
from typing import Any

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from .base import ModelT, ReadOnlyAdmin
from .display import CONFIRMATION_ROWS
from .permissions import has_model_permission

RUN_AGAIN_BUDGET = 15
"""Seconds after which no further row is started: web servers end requests after about 30."""


class RunAgainAdmin(ReadOnlyAdmin[ModelT]):
    """Adds the action "Run again", which leads to a confirmation page that runs the rows outside a
    transaction."""

    actions = ["run_again"]
    change_form_template = "admin/kapso_connect/run_again_tool.html"
    run_again_title: Any = ""
    run_again_help: Any = ""

    def run_row_again(self, row: ModelT) -> bool | None:
        """Return True if it succeeded, False if it failed again, None if it was not run: it is done
        already, or another process is working on it."""
        raise NotImplementedError

    def can_run_again(self, row: ModelT) -> bool:
        """True if ``row`` is not done yet."""
        raise NotImplementedError

    def has_run_again_permission(self, request: HttpRequest) -> bool:
        return has_model_permission(request, "change", self.opts)

    @admin.action(description=gettext_lazy("Run again"), permissions=["run_again"])
    def run_again(
        self, request: HttpRequest, queryset: QuerySet[ModelT]
    ) -> HttpResponseRedirect | None:
        return self.redirect_to_page(request, queryset, "run_again")

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> HttpResponse:
        row = context.get("original")
        if row is not None and self.has_run_again_permission(request) and self.can_run_again(row):
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
        rows = self.selected_rows(request, ids)
        if not rows:
            return self.redirect_to_changelist()
        if request.method == "POST":
            self.run(request, rows)
            return self.redirect_to_changelist()
        return self.render_page(
            request,
            "run_again",
            self.run_again_title,
            help=self.run_again_help,
            rows=rows[:CONFIRMATION_ROWS],
            more=max(len(rows) - CONFIRMATION_ROWS, 0),
            ids=",".join(str(row.pk) for row in rows),
        )

    def run(self, request: HttpRequest, rows: list[ModelT]) -> None:
        started = time.monotonic()
        done = failed = skipped = 0
        for row in rows:
            if time.monotonic() - started > RUN_AGAIN_BUDGET:
                self.message_user(
                    request,
                    _(
                        "There was not enough time to run all of them. Select the remaining ones "
                        "and run them again."
                    ),
                    level="WARNING",
                )
                break
            outcome = self.run_row_again(row)
            if outcome is None:
                skipped += 1
                continue
            self.log_change(request, row, _("Run again."))
            done += outcome
            failed += not outcome
        self._report(request, done, failed, skipped)

    def _report(self, request: HttpRequest, done: int, failed: int, skipped: int) -> None:
        if done:
            text = ngettext("%(count)s succeeded.", "%(count)s succeeded.", done)
            self.message_user(request, text % {"count": done}, level="SUCCESS")
        if failed:
            text = ngettext(
                "%(count)s failed again. See its error for the reason.",
                "%(count)s failed again. See their errors for the reasons.",
                failed,
            )
            self.message_user(request, text % {"count": failed}, level="ERROR")
        if skipped:
            text = ngettext(
                "%(count)s was skipped: it is already done, or is being processed right now.",
                "%(count)s were skipped: they are already done, or are being processed right now.",
                skipped,
            )
            self.message_user(request, text % {"count": skipped}, level="WARNING")
