"""The "Run again" action and its page, for rows whose processing failed."""

from __future__ import annotations

import time
from typing import Any
from urllib.parse import urlencode

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.http.response import HttpResponseBase
from django.urls import URLPattern
from django.utils.formats import localize
from django.utils.safestring import SafeString
from django.views.generic import TemplateView

from ..translation import gettext as _
from ..translation import gettext_lazy, ngettext
from ..utils import to_local_time
from .base import MAX_SELECTED, PRIMARY_KEY, AdminView, ReadOnlyAdmin
from .display import CONFIRMATION_ROWS, EMPTY, shorten, text_block
from .permissions import has_model_permission

RUN_AGAIN_BUDGET = 8
"""Seconds after which no further row is started: web servers end requests after about 30."""


class RunAgainAdmin(ReadOnlyAdmin):
    """Adds the action "Run again", which leads to a confirmation page that runs the rows outside a
    transaction."""

    actions = ["run_again"]
    change_form_template = "admin/kapso_connect/run_again_tool.html"
    run_again_title: Any = ""
    run_again_help: Any = ""

    def run_row_again(self, row: Any) -> bool | None:
        """Return True if it succeeded, False if it failed again, None if it was not run: it is done
        already, or another process is working on it."""
        raise NotImplementedError

    def can_run_again(self, row: Any) -> bool:
        """True if ``row`` is not done yet."""
        raise NotImplementedError

    def has_run_again_permission(self, request: HttpRequest) -> bool:
        return has_model_permission(request, "change", self.opts)

    @admin.action(description=gettext_lazy("Run again"), permissions=["run_again"])
    def run_again(
        self, request: HttpRequest, queryset: QuerySet[Any]
    ) -> HttpResponseRedirect | None:
        pks = [str(pk) for pk in queryset.values_list("pk", flat=True)[: MAX_SELECTED + 1]]
        if len(pks) > MAX_SELECTED:
            text = _("Select at most %(max)s at a time.") % {"max": MAX_SELECTED}
            self.message_user(request, text, messages.ERROR)
            return None
        query = urlencode({"ids": pks}, doseq=True)
        return HttpResponseRedirect(f"{self.view_url('run_again')}?{query}")

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> HttpResponse:
        row = context.get("original")
        context["can_run_again"] = (
            row is not None and self.has_run_again_permission(request) and self.can_run_again(row)
        )
        return super().render_change_form(request, context, *args, **kwargs)

    def get_urls(self) -> list[URLPattern]:
        return [self.view_path("run-again/", RunAgainView, "run_again"), *super().get_urls()]

    @admin.display(description=gettext_lazy("error"))
    def problem(self, row: Any) -> str:
        return shorten(row.last_error)

    @admin.display(description=gettext_lazy("next attempt"), ordering="next_attempt_at")
    def next_attempt(self, row: Any) -> str:
        due_at = row.next_attempt_at
        return str(localize(to_local_time(due_at))) if due_at else EMPTY

    @admin.display(description=gettext_lazy("error"))
    def full_error(self, row: Any) -> SafeString | str:
        return text_block(row.last_error)


class RunAgainView(AdminView, TemplateView):
    """Asks whether to run the rows with these ``ids``, and runs them."""

    template_name = "admin/kapso_connect/run_again.html"

    def has_permission(self) -> bool:
        may_run: bool = self.model_admin.has_run_again_permission(self.request)
        return may_run

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        ids = (request.POST if request.method == "POST" else request.GET).getlist("ids")
        self.rows = self.find_rows(ids)
        if not self.rows:
            return self.redirect_to_changelist()
        return super().dispatch(request, *args, **kwargs)

    def find_rows(self, ids: list[str]) -> list[Any]:
        """Return the rows that the user may view; add a message if some are missing."""
        wanted = set(ids)
        are_keys = all(map(PRIMARY_KEY.fullmatch, wanted))
        if not (are_keys and 0 < len(wanted) <= MAX_SELECTED):
            self.add_message(_("Select one or more rows in the list first."), messages.ERROR)
            return []
        rows = self.model_admin.get_queryset(self.request).filter(pk__in=map(int, wanted))
        may_view = self.model_admin.has_view_permission
        found = [row for row in rows.order_by("-pk") if may_view(self.request, row)]
        if len(found) < len(wanted):
            self.add_message(_("Some of the selected rows no longer exist."))
        return found

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        return {
            **super().get_context_data(**kwargs),
            "title": self.model_admin.run_again_title,
            "help": self.model_admin.run_again_help,
            "rows": self.rows[:CONFIRMATION_ROWS],
            "more": max(len(self.rows) - CONFIRMATION_ROWS, 0),
            "ids": [str(row.pk) for row in self.rows],
        }

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
