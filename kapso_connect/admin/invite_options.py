"""The form with the options of new setup links, for the customers of a draft batch."""

from __future__ import annotations

from typing import Any

from django.contrib import messages
from django.contrib.admin import helpers
from django.core.exceptions import ImproperlyConfigured, PermissionDenied
from django.db.models import Count, Exists, OuterRef, Q, QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.http.response import HttpResponseBase
from django.urls import NoReverseMatch
from django.views.generic import FormView

from .. import exceptions
from ..conf import get_conf
from ..models import Connection, Customer, InvitationBatch, SetupLink
from ..onboarding import invitations, setup_links
from ..onboarding.messages import staff_message
from ..translation import gettext as _
from ..translation import gettext_lazy
from . import forms
from .base import AdminView
from .display import CONFIRMATION_ROWS
from .history import log_batch

BATCH_WORK_SECONDS = 4.0
"""How long one request works on a batch, if there are no task workers."""


class InvitePermissionView(AdminView):
    """Base of the pages for those who may create setup links."""

    def has_permission(self) -> bool:
        may_create: bool = self.model_admin.has_create_setup_link_permission(self.request)
        return may_create and self.model_admin.has_view_or_change_permission(self.request)


class InviteView(InvitePermissionView):
    """Makes a draft batch for the object in its URL."""

    def post(self, request: HttpRequest, object_id: str) -> HttpResponse:
        obj = self.find_object(object_id)
        if obj is None:
            self.add_message(_("The customer has been deleted."), messages.ERROR)
            return self.redirect_to_changelist()
        if not self.model_admin.has_view_or_change_permission(request, obj):
            raise PermissionDenied
        queryset = self.model_admin.get_queryset(request).filter(pk=obj.pk)
        return (
            self.model_admin.create_setup_links(request, queryset) or self.redirect_to_changelist()
        )


class OptionsView(InvitePermissionView, FormView):  # type: ignore[type-arg]
    """The options of a draft. Sent, they start the batch."""

    template_name = "admin/kapso_connect/invite/options.html"
    title = gettext_lazy("Create WhatsApp setup link")
    batch: Any = None

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        if self.batch.created_by_id != request.user.pk:
            # Its customers may be ones that this user may not view.
            raise Http404
        self.counts = count_customers(self.batch)
        if not self.counts["total"]:
            self.add_message(_("The customers have been deleted."), messages.ERROR)
            return self.redirect_to_changelist()
        try:
            setup_links.build_options(Customer(), None)
        except (ImproperlyConfigured, NoReverseMatch) as error:
            self.add_message(staff_message(error), messages.ERROR)
            return self.redirect_to_changelist()
        except exceptions.InvalidOptions:
            pass  # the form shows the option
        return super().dispatch(request, *args, **kwargs)

    def get_form(self, form_class: Any = None) -> forms.SetupLinkForm:
        can_send = self.request.user.has_perm("kapso_connect.send_setup_link")
        return forms.SetupLinkForm(
            self.request.POST if self.request.method == "POST" else None,
            get_conf().setup_link_defaults,
            recipients=self.counts["total"] - self.counts["without_email"] if can_send else None,
        )

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        context = super().get_context_data(counts=self.counts, **kwargs)
        form = context["form"]
        return {
            **context,
            "adminform": helpers.AdminForm(form, form.fieldsets(), {}),
            "rows": batch_customers(self.batch).order_by("invitations__pk")[:CONFIRMATION_ROWS],
            "more": max(self.counts["total"] - CONFIRMATION_ROWS, 0),
        }

    def form_valid(self, form: forms.SetupLinkForm) -> HttpResponse:
        invited = invitations.start(
            self.batch,
            options=form.options(),
            next_url=form.cleaned_data["next_url"],
            send_email=form.cleaned_data.get("send_email", False),
        )
        if invited:
            log_batch(
                self.model_admin, self.request, self.batch, _("Requested a WhatsApp setup link.")
            )
            work_now(self.batch)
        return HttpResponseRedirect(self.request.path)


def work_now(batch: InvitationBatch) -> None:
    """Work on the batch in this request if there are no task workers."""
    if not invitations.is_background():
        work_here(batch)


def work_here(batch: InvitationBatch) -> None:
    """Work on the batch in this request for ``BATCH_WORK_SECONDS``."""
    invitations.work(batch.pk, seconds=BATCH_WORK_SECONDS, budget=get_conf().api_budget)


def batch_customers(batch: InvitationBatch) -> QuerySet[Customer]:
    """Return the customers of a batch; ``is_connected`` and ``is_invited`` tell whether one has a
    connected number and a usable link."""
    numbers = Connection.objects.connected().filter(customer=OuterRef("pk"))
    links = SetupLink.objects.usable().filter(customer=OuterRef("pk"))
    return Customer.objects.filter(invitations__batch=batch).annotate(
        is_connected=Exists(numbers), is_invited=Exists(links)
    )


def count_customers(batch: InvitationBatch) -> dict[str, int]:
    """Return how many customers a batch has, and how many of them are connected, have a usable
    link, or have no e-mail address."""
    counts: dict[str, int] = batch_customers(batch).aggregate(
        total=Count("pk"),
        connected=Count("pk", filter=Q(is_connected=True)),
        with_link=Count("pk", filter=Q(is_invited=True)),
        without_email=Count("pk", filter=Q(email="")),
    )
    return counts
