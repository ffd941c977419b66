"""The bases of this package's ModelAdmins."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast
from urllib.parse import urlencode

from django.contrib import admin
from django.contrib.admin import AdminSite
from django.contrib.admin.exceptions import NotRegistered
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.core.paginator import Paginator
from django.db import models
from django.forms import Media
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse, reverse_lazy
from django.utils.functional import cached_property
from django.utils.translation import gettext as _

from ..db import non_atomic

ModelT = TypeVar("ModelT", bound=models.Model)

if TYPE_CHECKING:
    from django.contrib.admin import ModelAdmin
else:

    class ModelAdmin(admin.ModelAdmin):
        def __class_getitem__(cls, model):
            return cls


MAX_SELECTED = 100
"""Rows that an action may pass to a page, in the query string."""

MAX_PAGED_ROWS = 5000
"""Rows of history that a list shows page by page; filters and search find the rest."""

# Databases cannot compare with every number of 19 digits.
_primary_key = re.compile(r"[0-9]{1,18}")


if TYPE_CHECKING:
    _AnyAdmin = ModelAdmin[Any]
else:
    _AnyAdmin = object


class AdminPages(_AnyAdmin):
    """Adds pages to a ModelAdmin of this package or of the site."""

    @property
    def media(self) -> Media:
        # Not a class Media, since the Media of the site's ModelAdmin would replace it.
        own = Media(css={"all": ["kapso_connect/admin.css"]}, js=["kapso_connect/admin.js"])
        return super().media + own

    def view_path(self, route: str, view: Callable[..., Any], name: str) -> URLPattern:
        """Return the path of a view that calls Kapso or commits before it answers."""
        wrapped: Any = self.admin_site.admin_view(view)
        # LoginRequiredMiddleware redirects to it.
        wrapped.login_url = reverse_lazy("admin:login", current_app=self.admin_site.name)
        pattern: URLPattern = path(route, non_atomic(wrapped), name=self.view_name(name))
        return pattern

    def view_name(self, name: str) -> str:
        return f"{self.opts.app_label}_{self.opts.model_name}_{name}"

    def view_url(self, name: str, *args: object) -> str:
        return reverse(f"admin:{self.view_name(name)}", args=args, current_app=self.admin_site.name)

    def render_page(
        self, request: HttpRequest, template: str, title: object, **context: Any
    ) -> TemplateResponse:
        request.current_app = self.admin_site.name
        context = {
            **self.admin_site.each_context(request),
            "title": title,
            "opts": self.opts,
            "media": self.media,
            **context,
        }
        return TemplateResponse(request, f"admin/kapso_connect/{template}.html", context)

    def redirect_to_changelist(self) -> HttpResponseRedirect:
        return HttpResponseRedirect(self.view_url("changelist"))


class PackageAdmin(AdminPages, ModelAdmin[ModelT]):
    """Base of this package's ModelAdmins."""

    show_full_result_count = False
    list_per_page = 50

    def redirect_to_page(
        self, request: HttpRequest, queryset: models.QuerySet[ModelT], name: str
    ) -> HttpResponseRedirect | None:
        """Redirect from an action to the page ``name`` for the selected rows; return None, with a
        message, if there are too many."""
        pks = [str(pk) for pk in queryset.values_list("pk", flat=True)[: MAX_SELECTED + 1]]
        if len(pks) > MAX_SELECTED:
            self.message_user(
                request,
                _("Select at most %(max)s at a time.") % {"max": MAX_SELECTED},
                level="ERROR",
            )
            return None
        return HttpResponseRedirect(f"{self.view_url(name)}?ids={','.join(pks)}")

    def response_action(
        self, request: HttpRequest, queryset: models.QuerySet[Any], *args: Any, **kwargs: Any
    ) -> HttpResponse | None:
        # Django answers 500 if the selection contains anything but primary keys.
        if not all(map(_primary_key.fullmatch, request.POST.getlist(ACTION_CHECKBOX_NAME))):
            self.message_user(request, _("Select the rows in the list."), level="ERROR")
            return None
        return super().response_action(request, queryset, *args, **kwargs)

    def selected_rows(self, request: HttpRequest, ids: str) -> list[ModelT]:
        """Return the rows with these ``ids``, separated by commas, that the user may view; add a
        message if some are missing."""
        wanted = set(ids.split(",", MAX_SELECTED))
        if len(wanted) > MAX_SELECTED or not all(map(_primary_key.fullmatch, wanted)):
            self.message_user(
                request, _("Select one or more rows in the list first."), level="ERROR"
            )
            return []
        queryset = self.get_queryset(request).filter(pk__in=[int(pk) for pk in wanted])
        found = [row for row in queryset.order_by("-pk") if self.has_view_permission(request, row)]
        if len(found) < len(wanted):
            self.message_user(
                request,
                _("Some of the selected rows no longer exist."),
                level="WARNING",
            )
        return found


class CappedPaginator(Paginator):  # type: ignore[type-arg]
    """Counts at most ``MAX_PAGED_ROWS``, since counting a million rows is slow."""

    @cached_property
    def _counted(self) -> int:
        rows = cast("models.QuerySet[Any]", self.object_list)
        return rows.order_by()[: MAX_PAGED_ROWS + 1].count()

    @cached_property
    def count(self) -> int:
        return min(self._counted, MAX_PAGED_ROWS)

    @property
    def is_truncated(self) -> bool:
        return self._counted > MAX_PAGED_ROWS


class ReadOnlyAdmin(PackageAdmin[ModelT]):
    """For tables that only ``onboarding`` may change."""

    paginator = CappedPaginator

    def get_readonly_fields(self, request: HttpRequest, obj: ModelT | None = None) -> list[Any]:
        return list(self.get_fields(request, obj))

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: ModelT | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: ModelT | None = None) -> bool:
        return False


class AdminUrls:
    """URLs of pages in one admin site; "" for pages the user may not view, and models not there."""

    def __init__(self, site: AdminSite, request: HttpRequest) -> None:
        self._site = site
        self._request = request

    def list_url(self, model: type[models.Model], **query: str) -> str:
        url = self._url(model, "changelist")
        return f"{url}?{urlencode(query)}" if url else ""

    def row_url(self, row: models.Model) -> str:
        return self._url(type(row), "change", row.pk)

    def _url(self, model: type[models.Model], page: str, *args: object) -> str:
        try:
            model_admin = self._site.get_model_admin(model)
        except NotRegistered:
            return ""
        if not model_admin.has_view_permission(self._request):
            return ""
        opts = model._meta
        name = f"admin:{opts.app_label}_{opts.model_name}_{page}"
        return reverse(name, args=args, current_app=self._site.name)
