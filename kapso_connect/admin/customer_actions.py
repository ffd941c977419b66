"""What the pages that act on one customer share: permissions, lookups, errors, and protection
against forms sent twice.

Each page acts on the customer's latest setup link or on one of its numbers. A form carries the
state its reader saw (``Target.version``) and is refused when anything has changed since, so a form
that is sent twice, or by two members of staff, acts once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.contrib import messages
from django.contrib.admin.utils import quote, unquote
from django.core.exceptions import ImproperlyConfigured, PermissionDenied
from django.db import DatabaseError
from django.http import (
    Http404,
    HttpRequest,
    HttpResponse,
    HttpResponseNotAllowed,
    HttpResponseRedirect,
)
from django.urls import NoReverseMatch, URLPattern
from django.utils.translation import gettext as _

from .. import exceptions
from ..exceptions import KapsoError
from ..models import Connection, Customer, SetupLink
from ..onboarding import customers
from ..onboarding.messages import staff_message
from .customer_data import CustomerDataMixin
from .history import log_change

DOUBLE_CLICK = timedelta(seconds=10)
"""The same action by the same person within this time counts once."""


@dataclass(frozen=True)
class Target:
    """What a page acts on: the ModelAdmin's object, its customer, the customer's latest setup link,
    and the number in the URL, if any."""

    obj: Any
    customer: Customer
    link: SetupLink | None
    connection: Connection | None = None

    @property
    def version(self) -> str:
        """A text that changes whenever the customer, the link or the number changes."""
        link, number = self.link, self.connection
        parts: list[object] = [self.customer.updated_at]
        parts += [link.pk, link.status, link.expires_at] if link else []
        parts += [number.status, number.connected_at] if number else []
        return " ".join(str(part) for part in parts)

    @property
    def is_sendable(self) -> bool:
        """True if the customer's URL leads to a usable setup link."""
        return self.link is not None and self.link.is_usable and bool(self.customer.connect_key)


PAGE_PERMISSIONS = {
    "email": ["send_setup_link"],
    "qr": ["send_setup_link", "create_setup_link"],
    "share": ["send_setup_link", "create_setup_link"],
    "copied": ["create_setup_link"],
    "revoke": ["revoke_setup_link"],
    "extend": ["extend_setup_link"],
    "reconnect": ["reconnect_number"],
    "health": ["check_health"],
    "disconnect": ["disconnect_number"],
}
"""The permissions each page needs. Customers' URLs are shown only with ``create_setup_link``."""

NUMBER_PAGES = {"reconnect", "health", "disconnect"}
"""Pages whose URL ends with the primary key of a connection."""

POST_ONLY = {"copied", "health"}

POST_BUTTONS = {"qr", "share", *POST_ONLY}
"""Pages that a button opens by POST, since opening them is recorded."""


class CustomerActions(CustomerDataMixin):
    """Base of the ModelAdmin mixins whose pages act on one customer: ``_<name>_view`` answers
    for the page ``name`` of ``PAGE_PERMISSIONS``."""

    def get_urls(self) -> list[URLPattern]:
        return [*(self._action_path(name) for name in PAGE_PERMISSIONS), *super().get_urls()]

    def _action_path(self, name: str) -> URLPattern:
        route = f"whatsapp/<str:object_id>/{name}/"
        if name in NUMBER_PAGES:
            route += "<int:connection>/"

        def view(request: HttpRequest, object_id: str, connection: int = 0) -> HttpResponse:
            return self._dispatch_action(request, name, object_id, connection)

        return self.view_path(route, view, f"whatsapp_{name}")

    def has_action_permission(self, request: HttpRequest, name: str) -> bool:
        """True if the user has the permissions of the page ``name``, besides that to view."""
        return request.user.has_perms(
            [f"kapso_connect.{codename}" for codename in PAGE_PERMISSIONS[name]]
        )

    def _dispatch_action(
        self, request: HttpRequest, name: str, object_id: str, connection_pk: int
    ) -> HttpResponse:
        if not self.has_action_permission(request, name):
            raise PermissionDenied
        if request.method != "POST" and name in POST_ONLY:
            return HttpResponseNotAllowed(["POST"])
        # Databases refuse a NUL in a key.
        obj = None if "\0" in object_id else self.get_object(request, unquote(object_id))
        if obj is None:
            raise Http404
        if not self.has_view_or_change_permission(request, obj):
            raise PermissionDenied
        customer = self.find_customer(obj)
        if customer is None:
            self.message_user(
                request, _("This customer has not been invited yet."), messages.WARNING
            )
            return self.redirect_to_object(obj)
        link = customer.latest_setup_link
        target = Target(obj, customer, link)
        if name in NUMBER_PAGES:
            number = customer.connections.filter(pk=connection_pk).first()
            if number is None:
                return self.render_action_page(
                    request, target, "missing", _("Number not found"), status=404
                )
            target = Target(obj, customer, link, number)
        return self._call_view(request, name, target)

    def _call_view(self, request: HttpRequest, name: str, target: Target) -> HttpResponse:
        view: Callable[[HttpRequest, Target], HttpResponse] = getattr(self, f"_{name}_view")
        try:
            return view(request, target)
        except exceptions.TryLater:
            problem = _("The number has just changed. Check it before you continue.")
        except (
            KapsoError,
            exceptions.InvalidOptions,
            ImproperlyConfigured,
            NoReverseMatch,
            Customer.DoesNotExist,
        ) as error:
            problem = staff_message(error)
        except DatabaseError:
            if Customer.objects.filter(pk=target.customer.pk).exists():
                raise
            problem = _("The customer has been deleted.")
        self.message_user(request, problem, messages.ERROR)
        if not Customer.objects.filter(pk=target.customer.pk).exists():
            return self.redirect_to_changelist()
        if name in POST_ONLY or request.method != "POST":
            return self.redirect_to_object(target.obj)
        return HttpResponseRedirect(request.path)

    def redirect_to_object(self, obj: Any) -> HttpResponseRedirect:
        return HttpResponseRedirect(self.view_url("change", quote(obj.pk)))

    def render_action_page(
        self, request: HttpRequest, target: Target, template: str, title: str, **context: Any
    ) -> HttpResponse:
        """Return the page ``customer_actions/<template>.html``; ``status`` in ``context`` is the
        status of the response."""
        status = context.pop("status", 200)
        response = self.render_page(
            request,
            f"customer_actions/{template}",
            title,
            target=target,
            back_url=self.view_url("change", quote(target.obj.pk)),
            **context,
        )
        response.status_code = status
        return response

    def accept_action_form(self, request: HttpRequest, target: Target) -> bool:
        """Return True if nothing has changed since the form was shown; otherwise add a message.

        If a form is sent several times, even at the same moment, only one gets True.
        """
        is_current = request.POST.get("version") == target.version
        if is_current and customers.touch_if_unchanged(target.customer):
            return True
        self.message_user(
            request,
            _(
                "Nothing was changed: this has already been done, or something has changed since "
                "you opened the page. Check the details before you continue."
            ),
            messages.WARNING,
        )
        return False

    def finish_action(
        self, request: HttpRequest, target: Target, entry: str, text: str
    ) -> HttpResponse:
        """Record ``entry`` in the customer's history, and redirect to the object's page with the
        message ``text``."""
        log_change(request, target.customer, entry)
        self.message_user(request, text, messages.SUCCESS)
        return self.redirect_to_object(target.obj)

    def redirect_with_warning(
        self, request: HttpRequest, target: Target, text: str
    ) -> HttpResponse:
        self.message_user(request, text, messages.WARNING)
        return self.redirect_to_object(target.obj)


def current_user(request: HttpRequest) -> Any:
    """Return the user as an actor; its type allows the anonymous user, which the admin does not."""
    return request.user
