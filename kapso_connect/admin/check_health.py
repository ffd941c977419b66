"""The action "Check health" and its page, which checks the numbers of the selected rows.

Kapso is asked about one number after the other, for a few seconds; a button continues.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from datetime import timezone as zones
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import ImproperlyConfigured
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern
from django.views.generic import TemplateView

from .. import onboarding
from ..exceptions import (
    KapsoCredentialsError,
    KapsoError,
    KapsoPlanError,
    KapsoRateLimited,
    KapsoUnavailable,
    NumberGone,
    NumberMoved,
    TryLater,
)
from ..kapso.client import KapsoClient
from ..models import Connection, ConnectionQuerySet
from ..onboarding.health import is_held
from ..onboarding.messages import staff_message
from ..phone_numbers import format_phone_number
from ..translation import gettext as _
from ..translation import gettext_lazy
from ..utils import as_instant, utc_now
from .base import MAX_SELECTED, PRIMARY_KEY, AdminPages
from .display import (
    CONFIRMATION_ROWS,
    badge,
    connection_badge,
    health_badge,
    health_details,
    plain_number_html,
)
from .history import log_change
from .selected_rows import SelectedRowsView, page_url

CHECK_BUDGET = 8
"""Seconds after which no further number is checked: web servers end requests after about 30."""

STOPPING_ERRORS = (
    KapsoCredentialsError,
    KapsoPlanError,
    KapsoRateLimited,
    KapsoUnavailable,
    ImproperlyConfigured,
)
"""Errors that would happen for the other numbers, too."""


class CheckHealthMixin(AdminPages):
    """Adds the action to a ModelAdmin whose rows have numbers."""

    def find_numbers(self, rows: Sequence[Any]) -> ConnectionQuerySet:
        """Return the numbers of ``rows``."""
        raise NotImplementedError

    def find_rows_of_numbers(
        self, request: HttpRequest, numbers: Sequence[Connection]
    ) -> dict[int, tuple[Any, str]]:
        """Return the row and the name of each number, by the number's primary key. Numbers of rows
        that the user may not view are left out."""
        raise NotImplementedError

    def has_check_health_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("kapso_connect.check_health")

    @admin.action(description=gettext_lazy("Check health"), permissions=["check_health"])
    def check_health(
        self, request: HttpRequest, queryset: QuerySet[Any]
    ) -> HttpResponseRedirect | None:
        """Redirect to the page for the connected numbers of ``queryset``; return None, with a
        message, if there are none or too many."""
        rows = list(queryset[: MAX_SELECTED + 1])
        numbers = self.find_numbers(rows).connected().values_list("pk", flat=True)
        pks = list(numbers[: MAX_SELECTED + 1])
        if max(len(rows), len(pks)) > MAX_SELECTED:
            text = _("Select at most %(max)s at a time.") % {"max": MAX_SELECTED}
        elif not pks:
            text = _("None of the selected rows has a connected number.")
        else:
            url = page_url(self, request, pks, "whatsapp_check_health")
            return HttpResponseRedirect(url)
        self.message_user(request, text, messages.ERROR)
        return None

    def get_urls(self) -> list[URLPattern]:
        page = self.view_path("whatsapp/check-health/", CheckHealthView, "whatsapp_check_health")
        return [page, *super().get_urls()]


def check_number(
    request: HttpRequest, number: Connection, client: KapsoClient | None = None
) -> None:
    """Check the health of ``number``, and add that to its customer's history. Raise what
    ``onboarding.check_health`` raises."""
    shown = {"number": format_phone_number(str(number))}
    actor: Any = request.user
    try:
        onboarding.check_health(number, actor=actor, client=client)
    except NumberGone:
        entry = _("Checked the health of %(number)s: Kapso no longer has it.")
        log_change(request, number.customer, entry % shown)
        raise
    entry = _("Checked the health of %(number)s: %(health)s.")
    shown["health"] = number.get_health_status_display()
    log_change(request, number.customer, entry % shown)


class RunForm(forms.Form):
    since = forms.FloatField(min_value=0, max_value=10**10)
    """When the user opened the page, in seconds since 1970: a number that was checked since is
    done, also if the form is sent twice."""


class CheckHealthView(SelectedRowsView, TemplateView):
    """Asks whether to check the numbers with these ``ids``, checks them, and shows the results."""

    template_name = "admin/kapso_connect/check_health.html"
    title = gettext_lazy("Check health")

    since: datetime
    has_run = False
    problem = ""
    """Why no further number was checked, if that was not for lack of time."""

    def setup(self, request: HttpRequest, *args: Any, **kwargs: Any) -> None:
        super().setup(request, *args, **kwargs)
        self.since = utc_now()
        self.errors: dict[int, str] = {}

    def has_permission(self) -> bool:
        may_check: bool = self.model_admin.has_check_health_permission(self.request)
        return may_check

    def find_rows(self, ids: list[str]) -> list[Connection]:
        """Return the connections with these ``ids``, in their order; add a message if some are
        missing."""
        self.ids = list(dict.fromkeys(pk.lstrip("0") for pk in ids))
        if not (0 < len(self.ids) <= MAX_SELECTED and all(map(PRIMARY_KEY.fullmatch, self.ids))):
            self.add_message(_("Select one or more rows in the list first."), messages.ERROR)
            return []
        found = self.read_numbers()
        if len(found) < len(self.ids):
            self.add_message(_("Some of the selected rows no longer exist."))
        return found

    def read_numbers(self) -> list[Connection]:
        keys = [int(pk) for pk in self.ids]
        numbers = Connection.objects.select_related("customer", "setup_link").in_bulk(keys)
        self.shown = self.model_admin.find_rows_of_numbers(self.request, list(numbers.values()))
        return [numbers[pk] for pk in keys if pk in self.shown]

    def post(self, request: HttpRequest) -> HttpResponse:
        form = RunForm(request.POST)
        if form.is_valid():
            self.since = datetime.fromtimestamp(form.cleaned_data["since"], zones.utc)
        self.has_run = True
        self.run()
        self.rows = self.read_numbers()
        return self.render_to_response(self.get_context_data())

    def run(self) -> None:
        started = time.monotonic()
        client = KapsoClient.from_settings()
        for number in self.rows:
            if self.is_done(number):
                continue
            if time.monotonic() - started > CHECK_BUDGET:
                break
            try:
                check_number(self.request, number, client)
            except STOPPING_ERRORS as error:
                self.problem = staff_message(error)
                break
            except NumberGone:
                text = _("Kapso no longer has this number. It is now marked as disconnected.")
                self.errors[number.pk] = text
            except NumberMoved:
                # Its row may be one that the user may not view.
                self.ids.remove(str(number.pk))
                text = _("%(number)s: Kapso says that it is not this customer's any more.")
                shown = {"number": format_phone_number(str(number))}
                self.add_message(text % shown, messages.ERROR)
            except TryLater:
                self.errors[number.pk] = _("The number has just changed. Try again in a minute.")
            except KapsoError as error:
                self.errors[number.pk] = staff_message(error)

    def is_done(self, number: Connection) -> bool:
        """True if the number was checked in this run, or could not be: it is not connected any
        more, or Kapso would only repeat its last result."""
        checked_at = number.health_checked_at
        is_checked = checked_at is not None and as_instant(checked_at) >= self.since
        return is_checked or is_held(number) or not number.is_connected

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        left = [number for number in self.rows if not self.is_done(number)]
        done = [number for number in self.rows if number not in left]
        needing = [number for number in done if number.attention or not number.is_connected]
        # What could not be checked goes last, so that it does not keep the others waiting.
        left.sort(key=lambda number: number.pk in self.errors)
        return {
            **super().get_context_data(**kwargs),
            "title": self.title,
            "has_run": self.has_run,
            "problem": self.problem,
            "since": repr(self.since.timestamp()),
            "ids": [str(number.pk) for number in [*left, *done]],
            "done": len(done),
            "left": len(left),
            "needing": len(needing),
            "results": list(self.results()) if self.has_run else [],
            "numbers": [
                (plain_number_html(number), self.shown[number.pk][1])
                for number in self.rows[:CONFIRMATION_ROWS]
            ],
        }

    def results(self) -> Iterator[dict[str, Any]]:
        """Yield each number with what is known about it now."""
        for number in self.rows:
            row, name = self.shown[number.pk]
            is_done = self.is_done(number)
            health = health_badge(number) if is_done else badge("neutral", _("To do"))
            yield {
                "pk": row.pk,
                "name": name,
                "number": plain_number_html(number),
                "badges": [connection_badge(number), *([health] if number.is_connected else [])],
                "error": self.errors.get(number.pk, ""),
                "details": health_details(number) if is_done and number.is_connected else [],
            }
