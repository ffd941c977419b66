"""The page that processes rows again whose processing failed."""

from __future__ import annotations

import time
from typing import Any

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.views.generic import TemplateView

from ..translation import gettext as _
from ..translation import ngettext
from .selected_rows import SelectedRowsView

RUN_AGAIN_BUDGET = 8
"""Seconds after which no further row is started: web servers end requests after about 30."""


class RunAgainView(SelectedRowsView, TemplateView):
    """Asks whether to run the rows, and runs them."""

    template_name = "admin/kapso_connect/failed_work/run_again.html"

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
