"""The action that creates setup links, and the URLs of its pages."""

from __future__ import annotations

from typing import Any

from django.contrib import admin, messages
from django.core.exceptions import ImproperlyConfigured
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponseRedirect
from django.urls import URLPattern

from ..onboarding import invitations
from ..translation import gettext as _
from ..translation import gettext_lazy
from .batches import BatchView
from .customer_data import CustomerDataMixin
from .display import CONFIRMATION_ROWS
from .invite_options import InviteView
from .permissions import can_create_setup_links


class InviteMixin(CustomerDataMixin):
    """Adds the action that creates setup links, and its pages, to a ModelAdmin."""

    def has_create_setup_link_permission(self, request: HttpRequest) -> bool:
        return can_create_setup_links(request)

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

    def get_urls(self) -> list[URLPattern]:
        return [
            self.view_path("whatsapp/<str:object_id>/invite/", InviteView, "whatsapp_invite"),
            self.view_path("whatsapp/batch/<int:pk>/", BatchView, "whatsapp_batch"),
            *super().get_urls(),
        ]
