"""The actions "Run again" and "Dismiss" for rows whose processing failed."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern
from django.utils.formats import localize
from django.utils.html import format_html
from django.utils.safestring import SafeString

from ..translation import gettext_lazy
from ..utils import to_local_time
from .base import ReadOnlyAdmin
from .dismiss import DismissView, dismissal
from .display import EMPTY, shorten, text_block
from .permissions import has_model_permission
from .run_again import RunAgainView
from .selected_rows import open_page, page_url


class FailedWorkAdmin(ReadOnlyAdmin):
    """Adds the actions "Run again" and "Dismiss". Each leads to a page that asks first, and works
    outside a transaction."""

    actions = ["run_again", "dismiss"]
    change_list_template = "admin/kapso_connect/failed_work/change_list.html"
    change_form_template = "admin/kapso_connect/failed_work/change_form.html"
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
