"""What a list shows, as a CSV file."""

from __future__ import annotations

import csv
import html
import re
from collections.abc import Iterator, Mapping
from datetime import datetime, tzinfo
from itertools import islice
from typing import Any

from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.utils import label_for_field, lookup_field
from django.contrib.admin.views.main import ALL_VAR, ERROR_FLAG, PAGE_VAR
from django.core.exceptions import ObjectDoesNotExist
from django.db.models import ManyToOneRel, Model
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.urls import URLPattern
from django.utils import timezone, translation
from django.utils.safestring import SafeString
from django.utils.text import capfirst

from ..translation import gettext as _
from ..utils import to_local_time, today
from .base import AdminPages, AdminView
from .display import EMPTY

ROWS_PER_CHUNK = 1000

BYTE_ORDER_MARK = "\ufeff"
"""By it, Excel recognizes UTF-8."""

FORMULA_STARTS = "=+\\-@\t\r＝＋－＠"  # noqa: RUF001
"""Spreadsheets take a text for a formula that begins with one of these."""

_cell_start = re.compile(rf"""(^|;[\s"']*)(?=[{FORMULA_STARTS}])""")
_tag = re.compile("<[^>]*>")
_next_part = re.compile(r"</[^>]+>(?=\s*<[^/])")


class ExportMixin(AdminPages):
    """Adds to a ModelAdmin the button "Export as CSV", for those who may view the list."""

    change_list_template = "admin/kapso_connect/change_list.html"

    def prepare_rows(self, rows: list[Any]) -> None:
        """Read what the columns of ``rows`` show, in few queries."""

    def get_urls(self) -> list[URLPattern]:
        return [self.view_path("export/", ExportView, "export"), *super().get_urls()]

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        query = request.GET.copy()
        for name in (PAGE_VAR, ALL_VAR, ERROR_FLAG):
            query.pop(name, None)
        export_url = f"{self.view_url('export')}?{query.urlencode()}".rstrip("?")
        context = {"export_url": export_url, **(extra_context or {})}
        return super().changelist_view(request, context)


class ExportView(AdminView):
    """The rows of the list with its filters, its search and its order, on all pages."""

    def has_permission(self) -> bool:
        may_view: bool = self.model_admin.has_view_permission(self.request)
        return may_view

    def get(self, request: HttpRequest) -> HttpResponseBase:
        try:
            changelist = self.model_admin.get_changelist_instance(request)
        except IncorrectLookupParameters:
            list_url = self.model_admin.view_url("changelist")
            return HttpResponseRedirect(f"{list_url}?{ERROR_FLAG}=1")
        columns = [name for name in changelist.list_display if name != "action_checkbox"]
        model = changelist.model
        titles = [str(label_for_field(column, model, self.model_admin)) for column in columns]
        # The middleware has finished when the lines are sent.
        language, zone = translation.get_language(), timezone.get_current_timezone()
        name = f"{self.model_admin.opts.model_name}-{today().isoformat()}.csv"
        return StreamingHttpResponse(
            self.lines(changelist.queryset, columns, titles, language, zone),
            content_type="text/csv; charset=utf-8",
            headers={"Content-Disposition": f'attachment; filename="{name}"'},
        )

    def lines(
        self, rows: Any, columns: list[Any], titles: list[str], language: str, zone: tzinfo
    ) -> Iterator[str]:
        """Yield the lines of the file, ``ROWS_PER_CHUNK`` at a time."""
        writer = csv.writer(Echo())
        yield BYTE_ORDER_MARK + writer.writerow([safe_cell(capfirst(title)) for title in titles])
        remaining = rows.iterator(chunk_size=ROWS_PER_CHUNK)
        while chunk := list(islice(remaining, ROWS_PER_CHUNK)):
            with translation.override(language), timezone.override(zone):
                self.model_admin.prepare_rows(chunk)
                labels = choice_labels(rows.model)
                lines = [
                    writer.writerow(
                        [safe_cell(self.text(row, column, labels)) for column in columns]
                    )
                    for row in chunk
                ]
            yield "".join(lines)

    def text(self, row: Any, column: Any, labels: Mapping[str, Mapping[Any, str]]) -> str:
        """Return what the list shows in a ``column`` of ``row``, as plain text. ``labels`` are
        those of ``choice_labels``."""
        try:
            field, _attribute, value = lookup_field(column, row, self.model_admin)
        except ObjectDoesNotExist:
            return ""
        if field is not None and isinstance(field.remote_field, ManyToOneRel):
            value = getattr(row, field.name)
        elif field is not None and field.name in labels:
            value = labels[field.name].get(value, value)
        return plain_text(value)


def choice_labels(model: type[Model]) -> dict[str, dict[Any, str]]:
    """Return the labels of the fields of ``model`` that have choices, by the names of the fields.
    They are read once for many rows: the languages are a function."""
    return {
        field.name: {value: str(label) for value, label in field.flatchoices}
        for field in model._meta.concrete_fields
        if field.choices
    }


class Echo:
    """A file for ``csv.writer``, which returns what this returns."""

    def write(self, line: str) -> str:
        return line


def plain_text(value: Any) -> str:
    """Return ``value`` as a text without HTML; "" if there is none. Spreadsheets can read times."""
    if value is None or value == EMPTY:
        return ""
    if isinstance(value, bool):
        return _("Yes") if value else _("No")
    if isinstance(value, datetime):
        return f"{to_local_time(value):%Y-%m-%d %H:%M:%S}"
    if isinstance(value, SafeString):
        # This package's own HTML: what comes from elsewhere is escaped in it.
        text = html.unescape(_tag.sub("", _next_part.sub(" · ", value)))
        return " ".join(text.split())
    return " ".join(str(value).split())


def safe_cell(text: str) -> str:
    """Return ``text`` so that no spreadsheet takes it for a formula, or a phone number for a sum:
    with an apostrophe before it, which says that it is a text. So it is after a semicolon, at which
    spreadsheets begin a new cell in languages whose numbers have a comma."""
    return _cell_start.sub(r"\1'", text)
