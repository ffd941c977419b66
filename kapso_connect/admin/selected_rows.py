"""The base of pages that do something with the rows that were selected in a list."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlencode

from django.contrib import messages
from django.contrib.admin.templatetags.admin_urls import add_preserved_filters
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponseRedirect
from django.http.response import HttpResponseBase

from ..translation import gettext as _
from .base import MAX_SELECTED, PRIMARY_KEY, AdminPages, AdminView
from .display import CONFIRMATION_ROWS


def open_page(
    model_admin: AdminPages, request: HttpRequest, queryset: QuerySet[Any], page: str
) -> HttpResponseRedirect | None:
    """Return a redirect to the ``page`` for the selected rows; None, and add a message, if there
    are too many."""
    pks = [str(pk) for pk in queryset.values_list("pk", flat=True)[: MAX_SELECTED + 1]]
    if len(pks) > MAX_SELECTED:
        text = _("Select at most %(max)s at a time.") % {"max": MAX_SELECTED}
        model_admin.message_user(request, text, messages.ERROR)
        return None
    return HttpResponseRedirect(page_url(model_admin, request, pks, page))


def page_url(
    model_admin: AdminPages, request: HttpRequest, pks: Sequence[object], page: str
) -> str:
    """Return the URL of the ``page`` for these rows, which leads back to the list with the filters
    that it has now."""
    query = urlencode({"ids": pks}, doseq=True)
    filters = model_admin.get_preserved_filters(request)
    return f"{model_admin.view_url(page)}?{query}&{filters}".rstrip("&")


class SelectedRowsView(AdminView):
    """Acts on the rows with these ``ids``, and goes back to the list with its filters."""

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
        return super().get_context_data(
            rows=self.rows[:CONFIRMATION_ROWS],
            more=max(len(self.rows) - CONFIRMATION_ROWS, 0),
            ids=[str(row.pk) for row in self.rows],
            list_url=self.list_url,
            **kwargs,
        )

    @property
    def list_url(self) -> str:
        """The list, filtered as it was when the rows were selected."""
        filters = self.model_admin.get_preserved_filters(self.request)
        context = {"opts": self.model_admin.opts, "preserved_filters": filters}
        return add_preserved_filters(context, self.model_admin.view_url("changelist"))

    def redirect_to_changelist(self) -> HttpResponseRedirect:
        return HttpResponseRedirect(self.list_url)
