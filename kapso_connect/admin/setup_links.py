"""The flow "Create WhatsApp setup link": choose, confirm, create, show; each safe to repeat."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypedDict

from django.contrib import admin, messages
from django.contrib.admin import helpers
from django.contrib.sessions.backends.base import UpdateError
from django.contrib.sessions.exceptions import SessionInterrupted
from django.core.exceptions import ImproperlyConfigured, PermissionDenied
from django.db import DatabaseError
from django.db.models import F, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import NoReverseMatch, URLPattern
from django.utils.crypto import get_random_string
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from .. import onboarding
from ..client import KapsoClient
from ..conf import get_conf
from ..exceptions import KapsoCredentialsError, KapsoError, KapsoPlanError, KapsoRateLimited
from ..models import Customer, SetupLink
from ..options import InvalidOptions
from ..transactions import retrying
from .base import LISTED, PackageAdmin, copyable, link_state, may_create_setup_links
from .explanations import explain
from .forms import SetupLinkForm

logger = logging.getLogger("kapso_connect")

KEPT_BATCHES = 5
SESSION_KEY = "kapso_connect_setup_links"
WAITING_SECONDS = 120
"""How long the result page believes that a batch without an end is still being worked on."""

COMMON_TO_ALL = (
    KapsoCredentialsError,
    KapsoPlanError,
    KapsoRateLimited,
    ImproperlyConfigured,
    NoReverseMatch,
)
"""Errors the next customer would meet as well."""


class Batch(TypedDict):
    """What one form led to, as the session keeps it: keys and words, never an address."""

    pks: list[int]
    links: dict[str, int]
    errors: dict[str, str]
    stopped: str
    finished: bool
    started: float


def stored_batches(request: HttpRequest) -> dict[str, Batch]:
    """Return the batches as they are stored now: another request may have added one since this
    one began."""
    session = type(request.session)(request.session.session_key)
    batches: dict[str, Batch] = session.load().get(SESSION_KEY, {})
    return batches


def keep(request: HttpRequest, key: str, batch: Batch) -> None:
    batches = stored_batches(request)
    batches.pop(key, None)
    batches[key] = batch
    request.session[SESSION_KEY] = dict(list(batches.items())[-KEPT_BATCHES:])
    try:
        request.session.save()
    except UpdateError:
        # The user logged out in another tab: Django answers 400, and nothing more is created.
        raise SessionInterrupted("The session ended before the links were created.") from None


def claim(request: HttpRequest, key: str, customers: list[Customer]) -> Batch | None:
    """Return a new batch for the form with ``key``; None where that form was posted before.

    Sessions know no locks. The same form names the same customers, so the row of one of them
    makes the second click wait until the first one's batch is stored.
    """
    batch: Batch = {
        "pks": [customer.pk for customer in customers],
        "links": {},
        "errors": {},
        "stopped": "",
        "finished": False,
        "started": time.time(),
    }

    def store() -> Batch | None:
        # Writes nothing new, and locks on every database, SQLite included.
        Customer.objects.filter(pk=customers[0].pk).update(kapso_id=F("kapso_id"))
        if key in stored_batches(request):
            return None
        keep(request, key, batch)
        return batch

    return retrying(store)


if TYPE_CHECKING:
    _Base = PackageAdmin[Customer]
else:
    _Base = object


class CreateSetupLinks(_Base):
    """The part of CustomerAdmin that creates setup links."""

    def has_create_setup_link_permission(self, request: HttpRequest) -> bool:
        return may_create_setup_links(request)

    @admin.action(
        description=gettext_lazy("Create WhatsApp setup link"), permissions=["create_setup_link"]
    )
    def create_setup_links(
        self, request: HttpRequest, queryset: QuerySet[Customer]
    ) -> HttpResponseRedirect | None:
        return self.to_view(request, queryset, "create_setup_links")

    def get_urls(self) -> list[URLPattern]:
        route = "create-setup-links/"
        return [
            self.view_path(route, self.create_setup_links_view, "create_setup_links"),
            self.view_path(f"{route}<slug:key>/", self.setup_links_view, "setup_links"),
            *super().get_urls(),
        ]

    def _check(self, request: HttpRequest) -> None:
        allowed = self.has_create_setup_link_permission(request)
        if not allowed or not self.has_view_or_change_permission(request):
            raise PermissionDenied

    def create_setup_links_view(self, request: HttpRequest) -> HttpResponse:
        """Ask for the options (GET), then create the links and lead to them (POST)."""
        self._check(request)
        data = request.POST if request.method == "POST" else request.GET
        key = data.get("key", "") if request.method == "POST" else get_random_string(22)
        if request.method == "POST" and key in stored_batches(request):
            return HttpResponseRedirect(self.view_url("setup_links", key))
        customers = self.selected(request, data.get("ids", ""))
        if not customers:
            return self.to_changelist()
        try:
            defaults = get_conf().setup_link_defaults
            onboarding.link_options(customers[0], None)
        except (ImproperlyConfigured, NoReverseMatch) as error:
            self.message_user(request, explain(error), messages.ERROR)
            return self.to_changelist()
        except InvalidOptions:
            pass  # The form says at which option.
        form = SetupLinkForm(request.POST if request.method == "POST" else None, defaults)
        if request.method == "POST" and is_key(key) and form.is_valid():
            batch = claim(request, key, customers)
            if batch is not None:
                self.create_batch(request, key, batch, customers, form.options())
            return HttpResponseRedirect(self.view_url("setup_links", key))
        return self.confirm_page(request, customers, form, key if is_key(key) else "")

    def confirm_page(
        self, request: HttpRequest, rows: list[Any], form: SetupLinkForm, key: str
    ) -> HttpResponse:
        fieldsets = [
            (None, {"fields": ["connection_types", "language"]}),
            (
                _("A new number"),
                {
                    "fields": [
                        "provision_phone_number",
                        "phone_number_country_isos",
                        "phone_number_area_code",
                    ]
                },
            ),
        ]
        return self.page(
            request,
            "customer/create_setup_links",
            _("Create WhatsApp setup link"),
            media=self.media + form.media,
            form=form,
            adminform=helpers.AdminForm(form, fieldsets, {}),  # type: ignore[arg-type]
            rows=rows[:LISTED],
            more=max(len(rows) - LISTED, 0),
            total=len(rows),
            with_link=sum(row.is_invited for row in rows),
            connected=sum(row.is_connected for row in rows),
            ids=",".join(str(row.pk) for row in rows),
            key=key or get_random_string(22),
        )

    def create_batch(
        self,
        request: HttpRequest,
        key: str,
        batch: Batch,
        customers: list[Customer],
        options: Mapping[str, Any],
    ) -> None:
        """Create the links one after the other; what is done is kept as soon as it is."""
        started = time.monotonic()
        with KapsoClient.from_settings() as client:
            for customer in customers:
                # The half that is left is for the one that is begun last.
                if time.monotonic() - started > get_conf().api_budget / 2:
                    batch["stopped"] = _("Time ran out. Go on with those that have no link yet.")
                    break
                try:
                    link = onboarding.create_setup_link(
                        customer, options=options, created_by=request.user, client=client
                    )
                except COMMON_TO_ALL as error:
                    batch["stopped"] = explain(error)
                    break
                except (
                    KapsoError,
                    InvalidOptions,
                    Customer.DoesNotExist,
                    DatabaseError,
                ) as error:
                    logger.warning("No setup link for customer %s: %s", customer.pk, error)
                    batch["errors"][str(customer.pk)] = explain(error)[:500]
                else:
                    batch["links"][str(customer.pk)] = link.pk
                    self.log_link(request, customer)
                keep(request, key, batch)
        batch["finished"] = True
        keep(request, key, batch)

    def log_link(self, request: HttpRequest, customer: Customer) -> None:
        try:
            self.log_change(request, customer, _("Created a WhatsApp setup link."))
        except DatabaseError:
            # The link is there all the same, and says itself who created it.
            logger.exception("Could not log the setup link of customer %s", customer.pk)

    def setup_links_view(self, request: HttpRequest, key: str) -> HttpResponse:
        """Show what a batch led to; loading it again creates nothing."""
        self._check(request)
        batch = stored_batches(request).get(key)
        if batch is None:
            self.message_user(
                request,
                _("This result is no longer kept. The customers' pages show their links."),
                messages.WARNING,
            )
            return self.to_changelist()
        rows = list(self.result_rows(request, batch))
        without = [row["customer"].pk for row in rows if not row["link"]]
        is_running = not batch["finished"] and time.time() - batch["started"] < WAITING_SECONDS
        again = self.view_url("create_setup_links") + f"?ids={','.join(map(str, without))}"
        response = self.page(
            request,
            "customer/setup_links",
            _("WhatsApp setup links"),
            rows=rows,
            stopped=batch["stopped"],
            is_running=is_running,
            is_broken=not batch["finished"] and not is_running,
            without=len(without),
            again_url=again if without and not is_running else "",
        )
        if is_running:
            response.headers["Refresh"] = "3"
        return response

    def result_rows(self, request: HttpRequest, batch: Batch) -> Iterator[dict[str, Any]]:
        links = SetupLink.objects.in_bulk(list(batch["links"].values()))
        customers = self.get_queryset(request).in_bulk(batch["pks"])
        for pk in batch["pks"]:
            customer = customers.get(pk)
            if customer is None:
                continue
            link = links.get(batch["links"].get(str(pk), 0))
            yield {
                "customer": customer,
                "link": link,
                "address": copyable(
                    link.url, _("Setup link for %(customer)s") % {"customer": customer}
                )
                if link and link.is_alive
                else "",
                "state": link_state(link) if link else "",
                "error": batch["errors"].get(str(pk), ""),
            }


def is_key(key: str) -> bool:
    return len(key) == 22 and key.isascii() and key.isalnum()
