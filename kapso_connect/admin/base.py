"""What the admin's pages share: read-only pages, badges, JSON, ids in addresses."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar, cast
from urllib.parse import urlencode

from django.contrib import admin
from django.contrib.admin import AdminSite
from django.contrib.admin.exceptions import NotRegistered
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.auth import get_permission_codename
from django.core.paginator import Paginator
from django.db import models
from django.forms import Media
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse, reverse_lazy
from django.utils.formats import date_format
from django.utils.functional import cached_property
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from ..db import non_atomic
from ..models import Connection, Health, SetupLink
from ..utils import format_phone_number, is_test_number, to_local_time

M = TypeVar("M", bound=models.Model)

if TYPE_CHECKING:
    from django.contrib.admin import ModelAdmin
else:

    class ModelAdmin(admin.ModelAdmin):
        def __class_getitem__(cls, model):
            return cls


MAX_SELECTED = 100
"""Rows that one form may name: their ids travel in an address."""

EMPTY = "-"
"""What Django writes for nothing; on a change page it would write None for a method's None."""

MOST_LISTED = 5000
"""Rows of history that a list leads through page by page; filters and the search find the rest."""

LISTED = 20
"""Rows that a page which asks for confirmation lists."""

MAX_JSON = 100_000

# A key of 19 digits may be larger than databases can compare with.
_id = re.compile(r"[0-9]{1,18}")


if TYPE_CHECKING:
    _AnyAdmin = ModelAdmin[Any]
else:
    _AnyAdmin = object


class Pages(_AnyAdmin):
    """Pages of our own in a ModelAdmin, this package's or the site's."""

    @property
    def media(self) -> Media:
        # Not a class Media: that of the site's ModelAdmin would take its place.
        own = Media(css={"all": ["kapso_connect/admin.css"]}, js=["kapso_connect/admin.js"])
        return super().media + own

    def view_path(self, route: str, view: Callable[..., Any], name: str) -> URLPattern:
        """Return the path of a view that talks to Kapso or commits before it answers."""
        wrapped: Any = self.admin_site.admin_view(view)
        # Where LoginRequiredMiddleware sends people who are not logged in.
        wrapped.login_url = reverse_lazy("admin:login", current_app=self.admin_site.name)
        pattern: URLPattern = path(route, non_atomic(wrapped), name=self.view_name(name))
        return pattern

    def view_name(self, name: str) -> str:
        return f"{self.opts.app_label}_{self.opts.model_name}_{name}"

    def view_url(self, name: str, *args: object) -> str:
        return reverse(f"admin:{self.view_name(name)}", args=args, current_app=self.admin_site.name)

    def page(
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

    def to_changelist(self) -> HttpResponseRedirect:
        return HttpResponseRedirect(self.view_url("changelist"))


class PackageAdmin(Pages, ModelAdmin[M]):
    """Base of this package's ModelAdmins."""

    show_full_result_count = False
    list_per_page = 50

    def to_view(
        self, request: HttpRequest, queryset: models.QuerySet[M], name: str
    ) -> HttpResponseRedirect | None:
        """Lead from an action to the page ``name`` for the selected rows; None where too many."""
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
        # Django answers 500 to a selection that holds no keys.
        if not all(map(_id.fullmatch, request.POST.getlist(ACTION_CHECKBOX_NAME))):
            self.message_user(request, _("Select the rows in the list."), level="ERROR")
            return None
        return super().response_action(request, queryset, *args, **kwargs)

    def selected(self, request: HttpRequest, ids: str) -> list[M]:
        """Return the rows that ``ids`` names and this user may see; say so where some are not."""
        wanted = set(ids.split(",", MAX_SELECTED))
        if len(wanted) > MAX_SELECTED or not all(map(_id.fullmatch, wanted)):
            self.message_user(
                request, _("Select one row or more in the list first."), level="ERROR"
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


class FirstPages(Paginator):  # type: ignore[type-arg]
    """Counts no further than it has to: to count a million rows takes longer than to show fifty."""

    @cached_property
    def _counted(self) -> int:
        rows = cast("models.QuerySet[Any]", self.object_list)
        return rows.order_by()[: MOST_LISTED + 1].count()

    @cached_property
    def count(self) -> int:
        return min(self._counted, MOST_LISTED)

    @property
    def is_cut(self) -> bool:
        return self._counted > MOST_LISTED


class ReadOnlyAdmin(PackageAdmin[M]):
    """History is looked at, not edited; state changes through ``onboarding`` alone."""

    paginator = FirstPages

    def get_readonly_fields(self, request: HttpRequest, obj: M | None = None) -> list[Any]:
        return list(self.get_fields(request, obj))

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: M | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: M | None = None) -> bool:
        return False


def may(request: HttpRequest, action: str, opts: Any) -> bool:
    """True where the user has Django's permission for ``action`` on a model."""
    permission = f"{opts.app_label}.{get_permission_codename(action, opts)}"
    return request.user.has_perm(permission)


def sees(request: HttpRequest, opts: Any) -> bool:
    """True where the user may look at the rows of a model."""
    return may(request, "view", opts) or may(request, "change", opts)


def may_create_setup_links(request: HttpRequest) -> bool:
    return request.user.has_perm("kapso_connect.create_setup_link")


def badge(kind: str, text: object) -> SafeString:
    """Return a label; ``kind`` is good, bad, busy or neutral."""
    return format_html('<span class="kapso-badge kapso-badge-{}">{}</span>', kind, text)


def json_block(value: Any) -> SafeString:
    try:
        text = json.dumps(value, indent=2, ensure_ascii=False, default=str)
    except (RecursionError, ValueError):
        text = _("This cannot be shown.")
    if len(text) > MAX_JSON:
        text = text[:MAX_JSON] + "\n… " + _("(shortened)")
    return format_html('<pre class="kapso-json" tabindex="0">{}</pre>', text)


def text_block(text: str) -> SafeString | str:
    return format_html('<pre class="kapso-json" tabindex="0">{}</pre>', text) if text else EMPTY


def shorten(text: str) -> str:
    return text if len(text) <= 100 else text[:99] + "…"


def localized(moment: datetime | None) -> str:
    if moment is None:
        return EMPTY
    return date_format(to_local_time(moment), "SHORT_DATETIME_FORMAT")


def phone_number(connection: Connection) -> SafeString:
    """Return the number as people write it, with a warning where it is not a real one."""
    number = connection.display_phone_number
    # In a page written from right to left the "+" stays in front.
    shown = format_html(
        "<bdi>{}</bdi>", format_phone_number(number) if number else connection.phone_number_id
    )
    if not number or not is_test_number(number):
        return shown
    return format_html("{} {}", shown, badge("busy", _("test number")))


def link_state(link: SetupLink) -> SafeString:
    if link.is_usable:
        return badge("good", link.get_status_display())
    if link.status == SetupLink.Status.ACTIVE:
        return badge("neutral", SetupLink.Status.EXPIRED.label)
    return badge("neutral", link.get_status_display())


def connection_state(connection: Connection) -> SafeString:
    kind = "good" if connection.is_connected else "neutral"
    return badge(kind, connection.get_status_display())


HEALTH_BADGES = {
    Health.HEALTHY: "good",
    Health.DEGRADED: "busy",
    Health.UNHEALTHY: "bad",
    Health.ERROR: "busy",
}


def health_state(connection: Connection) -> SafeString | str:
    if not connection.health_status:
        return EMPTY
    kind = HEALTH_BADGES[Health(connection.health_status)]
    return badge(kind, connection.get_health_status_display())


HIDDEN = gettext_lazy("hidden (needs the permission to create setup links)")


def copyable(url: str, label: object) -> SafeString:
    """Return a field from which ``url`` can be copied, with JavaScript or without."""
    return format_html(
        '<span class="kapso-copy">'
        '<input type="text" class="vURLField" readonly value="{}" aria-label="{}">'
        '<button type="button" class="button" data-kapso-copy data-copied="{}" hidden>{}</button>'
        '<span class="kapso-copied" role="status"></span>'
        "</span>",
        url,
        label,
        _("Copied"),
        _("Copy"),
    )


class Addresses:
    """The addresses, in one admin site, of what a user may see there; "" for the rest."""

    def __init__(self, site: AdminSite, request: HttpRequest) -> None:
        self._site = site
        self._request = request

    def of_list(self, model: type[models.Model], **query: str) -> str:
        url = self._of(model, "changelist")
        return f"{url}?{urlencode(query)}" if url else ""

    def of_row(self, row: models.Model) -> str:
        return self._of(type(row), "change", row.pk)

    def _of(self, model: type[models.Model], page: str, *args: object) -> str:
        try:
            model_admin = self._site.get_model_admin(model)
        except NotRegistered:
            return ""
        if not model_admin.has_view_permission(self._request):
            return ""
        opts = model._meta
        name = f"admin:{opts.app_label}_{opts.model_name}_{page}"
        return reverse(name, args=args, current_app=self._site.name)
