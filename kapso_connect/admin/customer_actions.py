"""What the pages that act on one customer share: permissions, lookups, errors, and protection
against forms sent twice.

Each page acts on the customer's latest setup link or on one of its numbers. A form carries the
state its reader saw (``ConfirmView.version``) and is refused when anything has changed since, so a
form that is sent twice, or by two members of staff, acts once.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

from django import forms
from django.contrib import messages
from django.contrib.admin.utils import quote
from django.core.exceptions import ImproperlyConfigured, PermissionDenied
from django.db import DatabaseError, IntegrityError
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.http.response import HttpResponseBase
from django.template.response import TemplateResponse
from django.urls import NoReverseMatch
from django.views.generic import FormView

from .. import exceptions
from ..db import atomic
from ..models import Connection, Customer, SetupLink
from ..onboarding import customers, renewal
from ..onboarding.messages import staff_message
from ..translation import gettext as _
from .base import AdminView
from .history import log_change

DOUBLE_CLICK = timedelta(seconds=10)
"""The same action by the same person within this time counts once."""


class CustomerActionView(AdminView):
    """A page that acts on the customer of ``obj``, an object of the ModelAdmin."""

    permissions: Sequence[str]
    """What the user needs, besides the permission to view ``obj``."""

    obj: Any
    customer: Customer
    link: SetupLink | None
    connection: Connection | None = None
    """The number in the URL, if any."""

    def has_permission(self) -> bool:
        return self.request.user.has_perms(self.permissions)

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        self.obj = self.find_object(kwargs["object_id"])
        if self.obj is None:
            raise Http404
        if not self.model_admin.has_view_or_change_permission(request, self.obj):
            raise PermissionDenied
        customer = self.model_admin.find_customer(self.obj)
        if customer is None:
            return self.go_back(_("This customer has not been invited yet."))
        self.customer = customer
        self.link = customer.latest_setup_link
        if "connection" in kwargs:
            self.connection = customer.connections.filter(pk=kwargs["connection"]).first()
            if self.connection is None:
                return self.number_not_found()
        if obstacle := self.find_obstacle():
            return self.go_back(obstacle)
        try:
            return super().dispatch(request, *args, **kwargs)
        except exceptions.TryLater:
            problem = _("The number has just changed. Check it before you continue.")
        except exceptions.NumberMoved:
            self.add_message(
                _(
                    "Kapso says that this number is not this customer's any more. It was not "
                    "touched at Kapso; its status here is up to date now."
                ),
                messages.ERROR,
            )
            return HttpResponseRedirect(self.back_url)
        except (
            exceptions.KapsoError,
            exceptions.InvalidOptions,
            ImproperlyConfigured,
            NoReverseMatch,
            Customer.DoesNotExist,
        ) as error:
            problem = staff_message(error)
        except DatabaseError:
            if Customer.objects.filter(pk=customer.pk).exists():
                raise
            problem = _("The customer has been deleted.")
        self.add_message(problem, messages.ERROR)
        if not Customer.objects.filter(pk=customer.pk).exists():
            return self.redirect_to_changelist()
        return HttpResponseRedirect(self.retry_url)

    def number_not_found(self) -> HttpResponse:
        title = _("Number not found")
        context = {**self.model_admin.page_context(self.request), "title": title, "view": self}
        template = "admin/kapso_connect/customer_actions/missing.html"
        return TemplateResponse(self.request, template, context, status=404)

    def find_obstacle(self) -> str:
        """Return why the action is not possible now; "" if it is."""
        return ""

    def update_customer(self) -> None:
        """Update the customer from the site's own object, whose e-mail address may have changed. If
        another customer has its external id, a new invitation says so."""
        with suppress(IntegrityError, ImproperlyConfigured), atomic():
            self.customer = self.model_admin.make_customer(self.obj)

    @property
    def is_sendable(self) -> bool:
        """True if the customer's personal link leads to a setup link."""
        return renewal.leads_to_setup(self.customer, self.link)

    @property
    def back_url(self) -> str:
        url: str = self.model_admin.view_url("change", quote(self.obj.pk))
        return url

    @property
    def retry_url(self) -> str:
        """The page to show after an error."""
        return self.back_url

    def go_back(self, text: str, level: int = messages.WARNING) -> HttpResponseRedirect:
        """Redirect to the page of the object, with the message ``text``."""
        self.add_message(text, level)
        return HttpResponseRedirect(self.back_url)

    def finish(self, entry: str, text: str) -> HttpResponseRedirect:
        """Add ``entry`` to the customer's history, and redirect to the page of the object with the
        message ``text``."""
        log_change(self.request, self.customer, entry)
        return self.go_back(text, messages.SUCCESS)


class ConfirmView(CustomerActionView, FormView):  # type: ignore[type-arg]
    """A page that says what an action does, and does it when its form is sent."""

    form_class = forms.Form

    @property
    def version(self) -> str:
        """A text that changes whenever the customer, the link or the number changes."""
        link, number = self.link, self.connection
        parts: list[object] = [self.customer.updated_at]
        parts += [link.pk, link.status, link.expires_at] if link else []
        parts += [number.status, number.connected_at] if number else []
        return " ".join(str(part) for part in parts)

    @property
    def retry_url(self) -> str:
        return self.request.path if self.request.method == "POST" else self.back_url

    def form_valid(self, form: forms.Form) -> HttpResponse:
        """Act if nothing has changed since the form was shown. If a form is sent several times,
        even at the same moment, this happens once."""
        is_current = self.request.POST.get("version") == self.version
        if is_current and customers.touch_if_unchanged(self.customer):
            return self.act(form)
        self.add_message(
            _(
                "Nothing was changed: this has already been done, or something has changed since "
                "you opened the page. Check the details before you continue."
            )
        )
        return HttpResponseRedirect(self.request.path)

    def act(self, form: forms.Form) -> HttpResponse:
        """Do what the page is for; ``form`` is valid."""
        raise NotImplementedError
