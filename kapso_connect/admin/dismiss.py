"""The page that dismisses rows whose processing failed."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import messages
from django.http import HttpResponse
from django.views.generic import FormView

from ..models import TimelineEvent, WebhookEvent
from ..translation import gettext as _
from ..translation import gettext_lazy, ngettext
from .display import format_datetime
from .selected_rows import SelectedRowsView


class DismissForm(forms.Form):
    reason = forms.CharField(
        label=gettext_lazy("Why"),
        max_length=200,
        widget=forms.TextInput(attrs={"class": "vTextField"}),
        help_text=gettext_lazy("Your colleagues see it with your name."),
    )


class DismissView(SelectedRowsView, FormView):  # type: ignore[type-arg]
    """Asks why the rows need no attention, and dismisses those that have failed."""

    template_name = "admin/kapso_connect/failed_work/dismiss.html"
    form_class = DismissForm

    def has_permission(self) -> bool:
        may_dismiss: bool = self.model_admin.has_run_again_permission(self.request)
        return may_dismiss

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        return super().get_context_data(**{"title": self.model_admin.dismiss_title, **kwargs})

    def form_valid(self, form: DismissForm) -> HttpResponse:
        reason = form.cleaned_data["reason"]
        entry = _("Dismissed: %(reason)s") % {"reason": reason}
        dismissed = 0
        for row in self.rows:
            if self.model_admin.dismiss_row(row, by=self.actor, because=reason):
                self.model_admin.log_change(self.request, row, entry)
                dismissed += 1
        self.report(dismissed, len(self.rows) - dismissed)
        return self.redirect_to_changelist()

    def report(self, dismissed: int, skipped: int) -> None:
        if dismissed:
            text = ngettext("%(count)s was dismissed.", "%(count)s were dismissed.", dismissed)
            self.add_message(text % {"count": dismissed}, messages.SUCCESS)
        if skipped:
            text = ngettext(
                "%(count)s was skipped: it has not failed, or is dismissed already.",
                "%(count)s were skipped: they have not failed, or are dismissed already.",
                skipped,
            )
            self.add_message(text % {"count": skipped})


DISMISSED = gettext_lazy("Dismissed")


def dismissal(row: WebhookEvent | TimelineEvent) -> str:
    """Return by whom, when and why ``row`` was dismissed."""
    return _("Dismissed by %(who)s on %(when)s: %(why)s") % {
        "who": str(row.dismissed_by or _("somebody")),
        "when": format_datetime(row.dismissed_at),
        "why": row.dismissed_because,
    }
