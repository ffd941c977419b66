"""The bases of this package's ModelAdmins."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any, cast
from urllib.parse import urlencode

from django.apps import apps
from django.contrib import admin, messages
from django.contrib.admin import AdminSite
from django.contrib.admin.exceptions import NotRegistered
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.utils import unquote
from django.core.exceptions import FieldDoesNotExist, PermissionDenied
from django.core.paginator import Paginator
from django.db import models
from django.db.models.constants import LOOKUP_SEP
from django.forms import Media
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern, path, reverse, reverse_lazy
from django.utils.functional import Promise, cached_property
from django.views.decorators.debug import sensitive_variables
from django.views.generic.base import ContextMixin, TemplateResponseMixin, View

from ..db import non_atomic
from ..models import Customer, SetupLink
from ..translation import gettext as _
from ..utils import static_url

MAX_SELECTED = 100
"""Rows that an action may pass to a page, in the query string."""

MAX_PAGED_ROWS = 5000
"""Rows of history that a list shows page by page; filters and search find the rest."""

# Databases cannot compare with every number of 19 digits.
PRIMARY_KEY = re.compile(r"[0-9]{1,18}")


SECRETS_OF_LINKS = {(Customer, "connect_key"), (SetupLink, "url")}
"""Whoever knows one of these can connect a number for the customer."""


class AdminPages(admin.ModelAdmin):  # type: ignore[type-arg]
    """Adds pages to a ModelAdmin of this package or of the site."""

    @property
    def media(self) -> Media:
        # Not a class Media, since the Media of the site's ModelAdmin would replace it.
        styles, scripts = ["kapso_connect/admin.css"], ["kapso_connect/admin.js"]
        own = Media(
            css={"all": [path for path in styles if static_url(path)]},
            js=[path for path in scripts if static_url(path)],
        )
        return super().media + own

    def get_object(self, request: HttpRequest, object_id: str, from_field: Any = None) -> Any:
        # Databases refuse a NUL in a key, and SQLite a number of more than 64 bits.
        with suppress(OverflowError):
            if "\0" not in object_id:
                return super().get_object(request, object_id, from_field)
        return None

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest) -> bool:
        # ``?url__startswith=…`` could be used to guess a secret letter by letter.
        return not reads_secret(self.model, lookup) and super().lookup_allowed(
            lookup, value, request
        )

    def view_path(self, route: str, view: type[AdminView], name: str) -> URLPattern:
        """Return the path of a view that calls Kapso or commits before it answers. Error reports
        show none of its locals, which may be customers' URLs."""
        admin_view = self.admin_site.admin_view(view.as_view(model_admin=self))
        wrapped: Any = sensitive_variables()(admin_view)
        # LoginRequiredMiddleware redirects to it.
        wrapped.login_url = reverse_lazy("admin:login", current_app=self.admin_site.name)
        pattern: URLPattern = path(route, non_atomic(wrapped), name=self.view_name(name))
        return pattern

    def view_name(self, name: str) -> str:
        return f"{self.opts.app_label}_{self.opts.model_name}_{name}"

    def view_url(self, name: str, *args: object) -> str:
        return reverse(f"admin:{self.view_name(name)}", args=args, current_app=self.admin_site.name)

    def page_context(self, request: HttpRequest) -> dict[str, Any]:
        """Return what the template of each page needs."""
        request.current_app = self.admin_site.name
        return {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "media": self.media,
            # django-unfold shows where a page is, but not what it is called.
            "theme_hides_title": apps.is_installed("unfold"),
        }


class AdminView(TemplateResponseMixin, ContextMixin, View):
    """A page of a ModelAdmin, or what one of its buttons does; ``model_admin`` is passed to
    ``as_view()``."""

    model_admin: Any = None
    title: str | Promise = ""

    def setup(self, request: HttpRequest, *args: Any, **kwargs: Any) -> None:
        super().setup(request, *args, **kwargs)
        if not self.has_permission():
            raise PermissionDenied

    def has_permission(self) -> bool:
        """True if the user may open this page."""
        raise NotImplementedError

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        page = self.model_admin.page_context(self.request)
        return {**page, "title": self.title, **super().get_context_data(**kwargs)}

    def find_object(self, object_id: str) -> Any:
        """Return the object with this key, quoted as in the admin's URLs; None if there is none."""
        return self.model_admin.get_object(self.request, unquote(object_id))

    @property
    def actor(self) -> Any:
        """The user. Its type allows the anonymous one, which the admin does not."""
        return self.request.user

    def add_message(self, text: str, level: int = messages.WARNING) -> None:
        self.model_admin.message_user(self.request, text, level)

    def redirect_to_changelist(self) -> HttpResponseRedirect:
        return HttpResponseRedirect(self.model_admin.view_url("changelist"))


class PackageAdmin(AdminPages):
    """Base of this package's ModelAdmins."""

    show_full_result_count = False
    list_per_page = 50

    def response_action(
        self, request: HttpRequest, queryset: models.QuerySet[Any], *args: Any, **kwargs: Any
    ) -> HttpResponse | None:
        # Django answers 500 if the selection contains anything but primary keys.
        if not all(map(PRIMARY_KEY.fullmatch, request.POST.getlist(ACTION_CHECKBOX_NAME))):
            self.message_user(request, _("Select the rows in the list."), level="ERROR")
            return None
        return super().response_action(request, queryset, *args, **kwargs)


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


class ReadOnlyAdmin(PackageAdmin):
    """For tables that only ``onboarding`` may change."""

    paginator = CappedPaginator

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[Any]:
        return list(self.get_fields(request, obj))

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


def reads_secret(model: Any, lookup: str) -> bool:
    """Return whether ``lookup``, from ``model``, leads to one of the ``SECRETS_OF_LINKS``."""
    for part in lookup.split(LOOKUP_SEP):
        try:
            field = model._meta.get_field(part)
        except FieldDoesNotExist:  # "pk", a transform, or a parameter that is no lookup
            return False
        # The field of a proxy, or of a child of the model, is the model's.
        if (field.model, field.name) in SECRETS_OF_LINKS:
            return True
        model = field.related_model
        if model is None:
            return False
    return False


def list_url(site: AdminSite, request: HttpRequest, model: type[models.Model], **query: str) -> str:
    """Return the URL of a model's list in ``site``; "" if it is not there, or not for this user."""
    try:
        model_admin = site.get_model_admin(model)
    except NotRegistered:
        return ""
    if not model_admin.has_view_permission(request):
        return ""
    name = f"admin:{model._meta.app_label}_{model._meta.model_name}_changelist"
    return f"{reverse(name, current_app=site.name)}?{urlencode(query)}".rstrip("?")
