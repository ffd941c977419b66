"""Reminding customers who were invited and did nothing: the choice, and the page that confirms."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django import forms
from django.contrib import messages
from django.db.models import Count, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.utils.functional import cached_property
from django.views.generic import TemplateView

from .. import exceptions
from ..models import Customer, SetupLink
from ..onboarding import emails, invitations
from ..onboarding.connect_urls import connect_url
from ..onboarding.reminders import REMINDED_STATUSES, Obstacle, with_obstacle
from ..translation import gettext as _
from ..translation import gettext_lazy
from .base import AdminView
from .display import CONFIRMATION_ROWS
from .drafts import DraftView
from .forms import DayField, idle_before, period_problem, start_of_day
from .send_link import language_context
from .status import owners_of


class RemindPermissionView(AdminView):
    """Base of the pages for those who may send customers their links."""

    def has_permission(self) -> bool:
        may_send: bool = self.model_admin.has_send_setup_link_permission(self.request)
        return may_send and self.model_admin.has_view_or_change_permission(self.request)


class WaitingForm(forms.Form):
    """Which of the customers who were invited are to be reminded: those with a ``status``, whose
    latest setup link was created from ``start`` to ``end``, and who have done nothing for
    ``idle_days``."""

    status = forms.MultipleChoiceField(
        choices=[(status.value, status.label) for status in REMINDED_STATUSES], required=False
    )
    start = DayField(required=False)
    end = DayField(required=False)
    idle_days = forms.IntegerField(min_value=1, max_value=365, required=False)

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or {}
        for name in ("start", "end"):
            day = cleaned.get(name)
            if day is not None and (problem := period_problem(day, day)):
                self.add_error(name, problem)
        return cleaned

    def customers(self) -> QuerySet[Customer]:
        data = self.cleaned_data
        customers = Customer.objects.filter(status__in=data["status"] or REMINDED_STATUSES)
        if data["idle_days"]:
            customers = customers.idle_since(idle_before(data["idle_days"]))
        links = SetupLink.objects.all()
        if data["start"]:
            links = links.filter(created_at__gte=start_of_day(data["start"]))
        if data["end"]:
            links = links.filter(created_at__lt=start_of_day(data["end"] + timedelta(days=1)))
        if data["start"] or data["end"]:
            customers = customers.filter(latest_setup_link__in=links)
        return customers


class RemindWaitingView(RemindPermissionView):
    """Makes a draft for all who were invited and did nothing, or those whom the form chooses."""

    def get(self, request: HttpRequest) -> HttpResponse:
        return self.redirect_to_changelist()

    def post(self, request: HttpRequest) -> HttpResponse:
        form = WaitingForm(request.POST)
        if not form.is_valid():
            for errors in form.errors.values():
                self.add_message(" ".join(str(error) for error in errors), messages.ERROR)
            return self.redirect_to_changelist()
        customers = form.customers()
        rows = self.model_admin.get_queryset(request)
        if self.model_admin.model is Customer:
            rows = rows.filter(pk__in=customers.values("pk"))
        else:
            rows = owners_of(customers, rows)
        return self.model_admin.send_reminders(request, rows) or self.redirect_to_changelist()


class RemindView(RemindPermissionView, DraftView, TemplateView):
    """Says who of a draft is reminded, who is left out, and what is sent. Confirmed, it starts."""

    template_name = "admin/kapso_connect/invite/remind.html"
    title = gettext_lazy("Send a reminder")

    @cached_property
    def customers(self) -> QuerySet[Any]:
        customers = Customer.objects.filter(invitations__batch=self.batch)
        return with_obstacle(customers).order_by("invitations__pk")

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        to_remind = self.customers.filter(obstacle="").select_related("latest_setup_link")
        shown = list(to_remind[:CONFIRMATION_ROWS])
        left_out = list(self.customers.exclude(obstacle="")[:CONFIRMATION_ROWS])
        counts = dict(self.customers.order_by().values_list("obstacle").annotate(count=Count("pk")))
        count = counts.pop("", 0)
        count_left_out = sum(counts.values())
        return {
            **super().get_context_data(**kwargs),
            "count": count,
            "rows": shown,
            "more": count - len(shown),
            "count_left_out": count_left_out,
            "reasons": [(reason.label, counts[reason]) for reason in Obstacle if reason in counts],
            "left_out": [(row, Obstacle(row.obstacle).label) for row in left_out],
            "more_left_out": count_left_out - len(left_out),
            **(self.preview(shown[0]) if shown else {}),
        }

    def preview(self, customer: Any) -> dict[str, Any]:
        """Return the e-mail to ``customer`` as the page shows it."""
        link = customer.latest_setup_link
        try:
            message = emails.reminder_message(customer, link)
        except exceptions.CannotInvite as error:
            return {"problem": str(error)}
        text = str(message.body)
        if not self.model_admin.has_create_setup_link_permission(self.request):
            text = text.replace(connect_url(customer), _("[the customer's personal link]"))
        return {
            **language_context(emails.invitation_language(customer, link)),
            "to": message.to[0],
            "subject": message.subject,
            "text": text,
        }

    def post(self, request: HttpRequest) -> HttpResponse:
        if invitations.start(self.batch):
            self.record_start(_("Requested a reminder by e-mail."))
        return HttpResponseRedirect(request.path)
