"""Reconnecting, checking and disconnecting a customer's number."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import messages
from django.contrib.admin.utils import quote
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect

from .. import onboarding
from ..exceptions import NumberGone
from ..models import Connection, Health
from ..onboarding import customers, redirects
from ..onboarding.health import is_held
from ..onboarding.redirects import Connected, Pending, Rejected
from ..phone_numbers import format_phone_number, only_digits
from ..translation import gettext as _
from ..utils import time_since
from .check_health import check_number
from .customer_actions import DOUBLE_CLICK, ConfirmView, CustomerActionView
from .display import health_details
from .history import log_change
from .send_link import EmailView, email_entry, send_email

HEALTH_LEVELS = {Health.HEALTHY: messages.SUCCESS, Health.DEGRADED: messages.WARNING}


class NumberActionView(CustomerActionView):
    """Base of the pages that act on the number in their URL."""

    connection: Connection

    @property
    def number(self) -> str:
        """The phone number as people write it."""
        return format_phone_number(str(self.connection))


class ConfirmNumberView(CustomerActionView):
    """Asks Kapso about a number that the customer came back with and Kapso has not confirmed."""

    permissions = ["kapso_connect.check_health"]

    def find_obstacle(self) -> str:
        if self.customer.setup_links.unconfirmed().exists():
            return ""
        return _("No number of this customer is waiting to be confirmed any more.")

    def post(self, request: HttpRequest, **kwargs: Any) -> HttpResponse:
        if not customers.touch_if_unchanged(self.customer):
            return self.go_back(_("Kapso is being asked already. Look again in a moment."))
        log_change(request, self.customer, _("Asked Kapso about the number to be confirmed."))
        for link in self.customer.setup_links.unconfirmed().order_by("unconfirmed_since"):
            self.add_message(*confirmation_message(redirects.confirm_unconfirmed(link)))
        return HttpResponseRedirect(self.back_url)


def confirmation_message(outcome: Connected | Pending | Rejected) -> tuple[str, int]:
    """Return what Kapso said about a number, for staff, and the level of the message."""
    match outcome:
        case Connected(connection):
            shown = {"number": format_phone_number(str(connection))}
            text = _("Kapso has confirmed the number: %(number)s is connected.") % shown
            return text, messages.SUCCESS
        case Pending():
            text = _(
                "Kapso cannot confirm the number yet, or did not answer. Try again in a few "
                "minutes; each run of kapso_sync asks again, too."
            )
            return text, messages.WARNING
        case Rejected(reason):
            text = _(
                "Kapso did not confirm the number: %(reason)s Let the customer open the personal "
                "link and connect it again."
            )
            return text % {"reason": reason}, messages.ERROR


class ReconnectView(NumberActionView, ConfirmView):
    permissions = ["kapso_connect.reconnect_number"]
    template_name = "admin/kapso_connect/customer_actions/reconnect.html"

    @property
    def digits(self) -> str:
        return only_digits(self.connection.display_phone_number)

    def find_obstacle(self) -> str:
        if self.digits:
            return ""
        return _(
            "Kapso has not reported the phone number, so it cannot be reconnected. "
            "Create a new setup link instead."
        )

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        self.update_customer()
        return super().get_context_data(
            title=_("Reconnect %(number)s") % {"number": self.number},
            can_email=bool(self.customer.email) and self.may_email,
            **kwargs,
        )

    @property
    def may_email(self) -> bool:
        return self.request.user.has_perms(EmailView.permissions)

    def act(self, form: forms.Form) -> HttpResponse:
        options = {"reconnect_phone_number": f"+{self.digits}"}
        link = onboarding.create_setup_link(self.customer, options=options, created_by=self.actor)
        shown = {"number": self.number, "to": self.customer.email}
        entry = _("Created a WhatsApp setup link to reconnect %(number)s.") % shown
        if self.request.POST.get("do") != "email" or not self.may_email:
            text = _(
                "A setup link to reconnect %(number)s was created. Send the customer the personal "
                "link."
            )
            return self.finish(entry, text % shown)
        log_change(self.request, self.customer, entry)
        if problem := send_email(self.customer, link, self.actor):
            text = _("The setup link to reconnect %(number)s was created, but not e-mailed.")
            self.add_message(f"{text % shown} {problem}", messages.ERROR)
            url = self.model_admin.view_url("whatsapp_email", quote(self.obj.pk))
            return HttpResponseRedirect(url)
        return self.finish(
            email_entry(self.customer.email),
            _(
                "A setup link to reconnect %(number)s was created, and the personal link was "
                "e-mailed to %(to)s."
            )
            % shown,
        )


class HealthView(NumberActionView):
    permissions = ["kapso_connect.check_health"]

    def post(self, request: HttpRequest, **kwargs: Any) -> HttpResponse:
        number = self.connection
        checked_at = number.health_checked_at
        is_recent = checked_at is not None and time_since(checked_at) <= DOUBLE_CLICK
        if not is_recent and not is_held(number):
            try:
                check_number(request, number)
            except NumberGone:
                text = _("Kapso no longer has this number. It is now marked as disconnected.")
                return self.go_back(text)
        texts = [f"{self.number}: {number.get_health_status_display()}.", *health_details(number)]
        text = " ".join(texts) if texts[1:] else texts[0].removesuffix(".")
        return self.go_back(text, HEALTH_LEVELS.get(Health(number.health_status), messages.ERROR))


class DisconnectView(NumberActionView, ConfirmView):
    permissions = ["kapso_connect.disconnect_number"]
    template_name = "admin/kapso_connect/customer_actions/disconnect.html"

    def find_obstacle(self) -> str:
        return "" if self.connection.is_connected else _("This number is no longer connected.")

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        title = _("Disconnect %(number)s") % {"number": self.number}
        return super().get_context_data(title=title, **kwargs)

    def act(self, form: forms.Form) -> HttpResponse:
        onboarding.disconnect_number(self.connection, actor=self.actor)
        shown = {"number": self.number}
        return self.finish(
            _("Disconnected %(number)s from WhatsApp.") % shown,
            _("%(number)s was disconnected and removed from Kapso.") % shown,
        )
