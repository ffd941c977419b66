"""The actions that create setup links and send reminders, and their pages. Each makes a draft of a
batch; the page of the batch asks for what is missing, and then shows the progress."""

from __future__ import annotations

from typing import Any

from django.contrib import admin, messages
from django.core.exceptions import ImproperlyConfigured
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponseRedirect
from django.http.response import HttpResponseBase
from django.shortcuts import get_object_or_404
from django.urls import URLPattern

from ..models import Customer, InvitationBatch
from ..onboarding import invitations
from ..translation import gettext as _
from ..translation import gettext_lazy, ngettext
from .base import AdminView
from .batch_progress import ProgressView
from .customer_data import CustomerDataMixin
from .display import CONFIRMATION_ROWS
from .invite_options import InviteView, OptionsView
from .permissions import can_create_setup_links
from .remind import RemindView, RemindWaitingView
from .status import owners_of


class BatchView(AdminView):
    """Asks for the options of a draft; shows the progress of a batch that was started."""

    def has_permission(self) -> bool:
        return True  # the views below decide

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        batches = InvitationBatch.objects.select_related("created_by")
        batch = get_object_or_404(batches, pk=kwargs["pk"])
        if batch.started_at:
            view: Any = ProgressView
        else:
            view = RemindView if batch.is_reminder else OptionsView
        response: HttpResponseBase = view.as_view(model_admin=self.model_admin, batch=batch)(
            request
        )
        return response


class InviteMixin(CustomerDataMixin):
    """Adds the actions that create setup links and send reminders, and their pages, to a
    ModelAdmin."""

    def has_create_setup_link_permission(self, request: HttpRequest) -> bool:
        return can_create_setup_links(request)

    def has_send_setup_link_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("kapso_connect.send_setup_link")

    @admin.action(
        description=gettext_lazy("Create WhatsApp setup link"), permissions=["create_setup_link"]
    )
    def create_setup_links(
        self, request: HttpRequest, queryset: QuerySet[Any]
    ) -> HttpResponseRedirect | None:
        """Redirect to a new batch for ``queryset``; return None, with a message, if it is empty."""
        try:
            pks, problems = self.make_customers(queryset)
        except ImproperlyConfigured as error:  # get_customer_data returned something else
            self.message_user(request, str(error), messages.ERROR)
            return None
        for problem in problems[:CONFIRMATION_ROWS]:
            self.message_user(request, problem, messages.WARNING)
        batch = invitations.make_batch(pks, created_by=request.user)
        if not batch.invitations.exists():
            batch.delete()
            self.message_user(
                request, _("Select one or more rows in the list first."), messages.ERROR
            )
            return None
        return HttpResponseRedirect(self.view_url("whatsapp_batch", batch.pk))

    @admin.action(
        description=gettext_lazy("Send a WhatsApp reminder"), permissions=["send_setup_link"]
    )
    def send_reminders(
        self, request: HttpRequest, queryset: QuerySet[Any]
    ) -> HttpResponseRedirect | None:
        """Redirect to a new batch that reminds the customers of ``queryset``; return None, with a
        message, if it would be empty. No customers are created."""
        is_of_customers = queryset.model is Customer
        invited = queryset if is_of_customers else owners_of(Customer.objects.all(), queryset)
        try:
            pks, problems = self.make_customers(invited)
        except ImproperlyConfigured as error:
            self.message_user(request, str(error), messages.ERROR)
            return None
        batch = invitations.make_reminders(pks, created_by=request.user)
        count = batch.invitations.count()
        if not count:
            batch.delete()
            self.message_user(request, _("There is nobody to remind."), messages.WARNING)
            return None
        for problem in problems[:CONFIRMATION_ROWS]:
            self.message_user(request, problem, messages.WARNING)
        if not is_of_customers and (others := queryset.count() - invited.count()):
            text = ngettext(
                "%(count)s of your selection was never invited, and is left out.",
                "%(count)s of your selection were never invited, and are left out.",
                others,
            )
            self.message_user(request, text % {"count": others}, messages.WARNING)
        return HttpResponseRedirect(self.view_url("whatsapp_batch", batch.pk))

    def get_urls(self) -> list[URLPattern]:
        return [
            self.view_path("whatsapp/<str:object_id>/invite/", InviteView, "whatsapp_invite"),
            self.view_path("whatsapp/batch/<int:pk>/", BatchView, "whatsapp_batch"),
            self.view_path("whatsapp/remind/", RemindWaitingView, "whatsapp_remind"),
            *super().get_urls(),
        ]
