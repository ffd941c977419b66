"""The form with the options of new setup links, for the customers of a draft."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django.contrib import messages
from django.contrib.admin import helpers
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.utils.functional import cached_property
from django.views.generic import FormView

from ..conf import get_conf
from ..models import Customer
from ..onboarding import invitations, mailer
from ..onboarding.other_invitations import InvitedMeanwhile, NobodyLeft, other_invitations
from ..translation import gettext as _
from ..translation import gettext_lazy, ngettext
from ..utils import as_stored, from_timestamp, utc_now
from . import forms
from .base import AdminView
from .display import CONFIRMATION_ROWS
from .draft_customers import DraftCustomers, batch_customers
from .drafts import DraftView

RECENTLY = timedelta(days=1)
"""How long staff are told of a link that somebody else created for a customer."""


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


class OptionsView(InvitePermissionView, DraftView, FormView):  # type: ignore[type-arg]
    """The options of a draft. Sent, they start the batch."""

    template_name = "admin/kapso_connect/invite/options.html"
    title = gettext_lazy("Create WhatsApp setup link")
    shows_options = True

    @cached_property
    def customers(self) -> DraftCustomers:
        return DraftCustomers(self.batch)

    def get_form(self, form_class: Any = None) -> forms.SetupLinkForm:
        customers = self.shown_customers
        return forms.SetupLinkForm(
            self.request.POST if self.request.method == "POST" else None,
            get_conf().setup_link_defaults,
            self.customers,
            customer=customers[0] if len(customers) == 1 else None,
            may_send=self.request.user.has_perm("kapso_connect.send_setup_link"),
            can_send=mailer.is_set_up(),
        )

    @cached_property
    def shown_customers(self) -> list[Customer]:
        return list(batch_customers(self.batch).order_by("invitations__pk")[:CONFIRMATION_ROWS])

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        context = super().get_context_data(customers=self.customers, **kwargs)
        form = context["form"]
        return {
            **context,
            **self.others(),
            "adminform": helpers.AdminForm(form, form.fieldsets(), {}),
            "texts": form.texts(),
            "rows": self.shown_customers,
            "more": max(self.customers.total - CONFIRMATION_ROWS, 0),
        }

    def others(self) -> dict[str, Any]:
        """Return who else invited the customers: since they were chosen, and shortly before."""
        chosen_at = self.batch.created_at
        told_at = utc_now()
        recently = min(chosen_at, as_stored(told_at - RECENTLY))
        found = other_invitations(self.batch, recently, CONFIRMATION_ROWS)
        return {
            "told_at": repr(told_at.timestamp()),
            "invited_meanwhile": [other for other in found if other.at >= chosen_at],
            "invited_before": [other for other in found if other.at < chosen_at],
        }

    def post(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        if request.POST.get("do") == "update":
            return self.render_to_response(self.get_context_data())
        return super().post(request, *args, **kwargs)

    def form_valid(self, form: forms.SetupLinkForm) -> HttpResponse:
        told_at = form.cleaned_data["invite_anyway"]
        try:
            invited = invitations.start(
                self.batch,
                options=form.options(),
                next_url=form.cleaned_data["next_url"],
                send_email=form.cleaned_data.get("send_email", False),
                **form.leaves_out,
                unless_invited_since=(
                    self.batch.created_at if told_at is None else as_stored(from_timestamp(told_at))
                ),
            )
        except InvitedMeanwhile:
            form.add_error(None, _("Somebody else was faster. Nothing has been created yet."))
            return self.form_invalid(form)
        except NobodyLeft:
            form.add_error(None, forms.nobody_left())
            return self.form_invalid(form)
        if invited:
            self.say_who_was_left_out()
            self.record_start(_("Requested a WhatsApp setup link."))
        return HttpResponseRedirect(self.request.path)

    def say_who_was_left_out(self) -> None:
        count = self.customers.total - self.batch.invitations.count()
        if count > 0:
            text = ngettext(
                "%(count)s customer was left out.", "%(count)s customers were left out.", count
            )
            self.add_message(text % {"count": count}, messages.INFO)
