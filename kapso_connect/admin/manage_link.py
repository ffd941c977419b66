"""Revoking and extending a customer's setup link."""

from __future__ import annotations

from datetime import date

from django.http import (
    HttpRequest,
    HttpResponse,
    HttpResponseRedirect,
)
from django.utils.formats import date_format
from django.utils.translation import gettext as _

from .. import onboarding
from .customer_actions import CustomerActions, Target, current_user
from .forms import ExtendForm, end_of_day

EXTENSION_DAYS = (7, 30)
"""One-click extensions, in days."""


class ManageLinkViews(CustomerActions):
    """The pages that revoke and extend a customer's latest link."""

    def _revoke_view(self, request: HttpRequest, target: Target) -> HttpResponse:
        link = target.link
        if link is None or not link.is_revocable:
            return self.redirect_with_warning(request, target, _("There is no link to revoke."))
        if request.method != "POST":
            return self.render_action_page(request, target, "revoke", _("Revoke the link"))
        if not self.accept_action_form(request, target):
            return HttpResponseRedirect(request.path)
        if not onboarding.revoke_setup_link(link, actor=current_user(request)):
            return self.redirect_with_warning(
                request, target, _("The link was not revoked: it has just been used or has ended.")
            )
        return self.finish_action(
            request,
            target,
            _("Revoked the WhatsApp setup link."),
            _("The link was revoked. What was sent to the customer no longer works."),
        )

    def _extend_view(self, request: HttpRequest, target: Target) -> HttpResponse:
        link = target.link
        if link is None or not link.is_usable:
            return self.redirect_with_warning(
                request, target, _("There is no active link. Create a new one first.")
            )
        if link.expires_at is None:
            return self.redirect_with_warning(request, target, _("This link does not expire."))
        is_post = request.method == "POST"
        form = ExtendForm(request.POST if is_post else None, expires_at=link.expires_at)
        if not is_post or not form.is_valid():
            return self.render_action_page(
                request,
                target,
                "extend",
                _("Extend the link"),
                form=form,
                extensions=[(days, form.day_after(days)) for days in EXTENSION_DAYS],
            )
        if not self.accept_action_form(request, target):
            return HttpResponseRedirect(request.path)
        until: date = form.cleaned_data["until"]
        if not onboarding.extend_setup_link(link, end_of_day(until), actor=current_user(request)):
            return self.redirect_with_warning(
                request,
                target,
                _("The link has ended and cannot be extended. Create a new one."),
            )
        shown = {"date": date_format(until)}
        return self.finish_action(
            request,
            target,
            _("Extended the WhatsApp setup link until %(date)s.") % shown,
            _("The link now works until %(date)s.") % shown,
        )
