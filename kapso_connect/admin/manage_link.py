"""Revoking and extending a customer's setup link."""

from __future__ import annotations

from typing import Any

from django import forms
from django.http import HttpResponse
from django.utils.formats import date_format

from .. import onboarding
from ..models import SetupLink
from ..translation import gettext as _
from ..translation import gettext_lazy
from .customer_actions import ConfirmView
from .forms import ExtendForm, end_of_day

EXTENSION_DAYS = (7, 30)
"""One-click extensions, in days."""


class RevokeView(ConfirmView):
    link: SetupLink
    permissions = ["kapso_connect.revoke_setup_link"]
    template_name = "admin/kapso_connect/customer_actions/revoke.html"
    title = gettext_lazy("Revoke the setup link")

    def find_obstacle(self) -> str:
        is_possible = self.link and self.link.is_revocable
        return "" if is_possible else _("There is no setup link to revoke.")

    def act(self, form: forms.Form) -> HttpResponse:
        if not onboarding.revoke_setup_link(self.link, actor=self.actor):
            return self.go_back(
                _("The setup link was not revoked: it has just been used or has ended.")
            )
        return self.finish(
            _("Revoked the WhatsApp setup link."),
            _("The setup link was revoked. The personal link no longer works."),
        )


class ExtendView(ConfirmView):
    link: SetupLink
    permissions = ["kapso_connect.extend_setup_link"]
    template_name = "admin/kapso_connect/customer_actions/extend.html"
    title = gettext_lazy("Extend the setup link")

    def find_obstacle(self) -> str:
        if not self.link or not self.link.is_usable:
            return _("There is no active setup link. Create a new one first.")
        return "" if self.link.expires_at else _("This setup link does not expire.")

    def get_form(self, form_class: Any = None) -> ExtendForm:
        data = self.request.POST if self.request.method == "POST" else None
        expires_at: Any = self.link.expires_at  # find_obstacle() refuses None
        return ExtendForm(data, expires_at=expires_at)

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        context = super().get_context_data(**kwargs)
        form = context["form"]
        extensions = [(days, form.day_after(days)) for days in EXTENSION_DAYS]
        return {**context, "extensions": extensions}

    def act(self, form: forms.Form) -> HttpResponse:
        until = form.cleaned_data["until"]
        if not onboarding.extend_setup_link(self.link, end_of_day(until), actor=self.actor):
            return self.go_back(
                _("The setup link has ended and cannot be extended. Create a new one.")
            )
        shown = {"date": date_format(until)}
        return self.finish(
            _("Extended the WhatsApp setup link until %(date)s.") % shown,
            _("The setup link now works until %(date)s.") % shown,
        )
