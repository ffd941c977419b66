"""The actions "Run again" and "Dismiss" for rows whose processing failed, and the page of the
first."""

from __future__ import annotations

import time
from typing import Any

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern
from django.utils.formats import localize
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.views.generic import TemplateView

from ..translation import gettext as _
from ..translation import gettext_lazy, ngettext
from ..utils import to_local_time
from .base import ReadOnlyAdmin
from .dismiss import DismissView, dismissal
from .display import EMPTY, shorten, text_block
from .permissions import has_model_permission
from .selected_rows import SelectedRowsView, open_page, page_url

RUN_AGAIN_BUDGET = 8
"""Seconds after which no further row is started: web servers end requests after about 30."""


class RunAgainAdmin(ReadOnlyAdmin):
    """Adds the actions "Run again" and "Dismiss". Each leads to a page that asks first, and works
    outside a transaction."""

    actions = ["run_again", "dismiss"]
    change_list_template = "admin/kapso_connect/failed_work_list.html"
    change_form_template = "admin/kapso_connect/run_again_tool.html"
    run_again_title: Any = ""
    run_again_help: Any = ""
    dismiss_title: Any = ""

    def run_row_again(self, row: Any) -> bool | None:
        """Return True if it succeeded, False if it failed again, None if it was not run: it is done
        already, or another process is working on it."""
        raise NotImplementedError

    def can_run_again(self, row: Any) -> bool:
        """True if ``row`` is not done yet."""
        raise NotImplementedError

    def dismiss_row(self, row: Any, *, by: Any, because: str) -> bool:
        """Return False if it has not failed any more, or is dismissed already."""
        raise NotImplementedError

    def has_failed(self, row: Any) -> bool:
        """True if ``row`` has failed, dismissed or not."""
        raise NotImplementedError

    def is_dismissed(self, row: Any) -> bool:
        return row.dismissed_at is not None and self.has_failed(row)

    def has_run_again_permission(self, request: HttpRequest) -> bool:
        return has_model_permission(request, "change", self.opts)

    @admin.action(description=gettext_lazy("Run again"), permissions=["run_again"])
    def run_again(
        self, request: HttpRequest, queryset: QuerySet[Any]
    ) -> HttpResponseRedirect | None:
        return open_page(self, request, queryset, "run_again")

    @admin.action(description=gettext_lazy("Dismiss"), permissions=["run_again"])
    def dismiss(self, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponseRedirect | None:
        return open_page(self, request, queryset, "dismiss")

    def get_fields(self, request: HttpRequest, obj: Any = None) -> list[Any]:
        fields = list(super().get_fields(request, obj))
        return [*fields, "dismissed"] if obj is not None and self.is_dismissed(obj) else fields

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> HttpResponse:
        row = context.get("original")
        if row is not None and self.has_run_again_permission(request):
            if self.can_run_again(row):
                context["run_again_url"] = page_url(self, request, [row.pk], "run_again")
            if self.has_failed(row) and not self.is_dismissed(row):
                context["dismiss_url"] = page_url(self, request, [row.pk], "dismiss")
        return super().render_change_form(request, context, *args, **kwargs)

    def get_urls(self) -> list[URLPattern]:
        return [
            self.view_path("run-again/", RunAgainView, "run_again"),
            self.view_path("dismiss/", DismissView, "dismiss"),
            *super().get_urls(),
        ]

    @admin.display(description=gettext_lazy("error"))
    def problem(self, row: Any) -> SafeString | str:
        error = shorten(row.last_error)
        if not self.is_dismissed(row):
            return error
        return format_html("{}<br>{}", error, dismissal(row))

    @admin.display(description=gettext_lazy("next attempt"), ordering="next_attempt_at")
    def next_attempt(self, row: Any) -> str:
        due_at = row.next_attempt_at
        return str(localize(to_local_time(due_at))) if due_at else EMPTY

    @admin.display(description=gettext_lazy("error"))
    def full_error(self, row: Any) -> SafeString | str:
        return text_block(row.last_error)

    @admin.display(description=gettext_lazy("dismissed"))
    def dismissed(self, row: Any) -> str:
        return dismissal(row)


class RunAgainView(SelectedRowsView, TemplateView):
    """Asks whether to run the rows, and runs them."""

    template_name = "admin/kapso_connect/run_again.html"

    def has_permission(self) -> bool:
        may_run: bool = self.model_admin.has_run_again_permission(self.request)
        return may_run

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        return super().get_context_data(
            title=self.model_admin.run_again_title,
            help=self.model_admin.run_again_help,
            **kwargs,
        )

    def post(self, request: HttpRequest) -> HttpResponse:
        started = time.monotonic()
        done = failed = skipped = 0
        for row in self.rows:
            if time.monotonic() - started > RUN_AGAIN_BUDGET:
                self.add_message(
                    _(
                        "There was not enough time to run all of them. Select the remaining ones "
                        "and run them again."
                    )
                )
                break
            outcome = self.model_admin.run_row_again(row)
            if outcome is None:
                skipped += 1
                continue
            self.model_admin.log_change(request, row, _("Run again."))
            done += outcome
            failed += not outcome
        self.report(done, failed, skipped)
        return self.redirect_to_changelist()

    def report(self, done: int, failed: int, skipped: int) -> None:
        if done:
            text = ngettext("%(count)s succeeded.", "%(count)s succeeded.", done)
            self.add_message(text % {"count": done}, messages.SUCCESS)
        if failed:
            text = ngettext(
                "%(count)s failed again. See its error for the reason.",
                "%(count)s failed again. See their errors for the reasons.",
                failed,
            )
            self.add_message(text % {"count": failed}, messages.ERROR)
        if skipped:
            text = ngettext(
                "%(count)s was skipped: it is already done, or is being processed right now.",
                "%(count)s were skipped: they are already done, or are being processed right now.",
                skipped,
            )
            self.add_message(text % {"count": skipped})
