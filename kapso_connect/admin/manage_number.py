"""Reconnecting, checking and disconnecting a customer's number."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import messages
from django.http import HttpRequest, HttpResponse

from .. import onboarding
from ..exceptions import NumberGone
from ..models import Connection, Health
from ..onboarding.health import is_held
from ..phone_numbers import format_phone_number, only_digits
from ..translation import gettext as _
from ..utils import time_since
from .check_health import check_number
from .customer_actions import DOUBLE_CLICK, ConfirmView, CustomerActionView
from .display import health_details

HEALTH_LEVELS = {Health.HEALTHY: messages.SUCCESS, Health.DEGRADED: messages.WARNING}


class NumberActionView(CustomerActionView):
    """Base of the pages that act on the number in their URL."""

    connection: Connection

    @property
    def number(self) -> str:
        """The phone number as people write it."""
        return format_phone_number(str(self.connection))


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
        return super().get_context_data(
            title=_("Reconnect %(number)s") % {"number": self.number},
            **kwargs,
        )

    def act(self, form: forms.Form) -> HttpResponse:
        options = {"reconnect_phone_number": f"+{self.digits}"}
        onboarding.create_setup_link(self.customer, options=options, created_by=self.actor)
        shown = {"number": self.number}
        return self.finish(
            _("Created a WhatsApp setup link to reconnect %(number)s.") % shown,
            _("A link to reconnect %(number)s was created. Send it to the customer.") % shown,
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
