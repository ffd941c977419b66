"""Reconnecting, checking and disconnecting a customer's number."""

from __future__ import annotations

from datetime import datetime

from django.contrib import messages
from django.http import (
    HttpRequest,
    HttpResponse,
    HttpResponseRedirect,
)
from django.utils import timezone
from django.utils.translation import gettext as _

from .. import onboarding
from ..exceptions import KapsoNotFound
from ..models import Connection, Health, Source
from ..phone_numbers import format_phone_number, is_test_number
from .customer_actions import DOUBLE_CLICK, CustomerActions, Target, current_user
from .history import log_change


class ManageNumberViews(CustomerActions):
    """The pages that act on one of a customer's numbers."""

    def _reconnect_view(self, request: HttpRequest, target: Target) -> HttpResponse:
        number = connection_of(target)
        digits = "".join(c for c in number.display_phone_number if c in "0123456789")
        shown = format_phone_number(number.display_phone_number)
        if not digits:
            return self.redirect_with_warning(
                request,
                target,
                _(
                    "Kapso has not reported the phone number, so it cannot be reconnected. "
                    "Create a new setup link instead."
                ),
            )
        if request.method != "POST":
            return self.render_action_page(
                request,
                target,
                "reconnect",
                _("Reconnect %(number)s") % {"number": shown},
                number=shown,
                is_test_number=is_test_number(digits),
            )
        if not self.accept_action_form(request, target):
            return HttpResponseRedirect(request.path)
        onboarding.create_setup_link(
            target.customer,
            options={"reconnect_phone_number": f"+{digits}"},
            created_by=current_user(request),
        )
        return self.finish_action(
            request,
            target,
            _("Created a WhatsApp setup link to reconnect %(number)s.") % {"number": shown},
            _("A link to reconnect %(number)s was created. Send it to the customer.")
            % {"number": shown},
        )

    def _health_view(self, request: HttpRequest, target: Target) -> HttpResponse:
        number = connection_of(target)
        last, now = number.health_checked_at, timezone.now()
        if last is None or last < now - DOUBLE_CLICK:
            try:
                onboarding.check_health(number, actor=current_user(request))
            except KapsoNotFound:
                return self._disconnect_missing_number(request, target, now)
            log_change(
                request,
                target.customer,
                _("Checked the health of %(number)s: %(health)s.")
                % {
                    "number": format_phone_number(str(number)),
                    "health": number.get_health_status_display(),
                },
            )
        levels = {Health.HEALTHY: messages.SUCCESS, Health.DEGRADED: messages.WARNING}
        text = f"{format_phone_number(str(number))}: {number.get_health_status_display()}"
        if number.health_error:
            text += f". {number.health_error}"
        level = levels.get(Health(number.health_status), messages.ERROR)
        self.message_user(request, text, level)
        return self.redirect_to_object(target.obj)

    def _disconnect_missing_number(
        self, request: HttpRequest, target: Target, asked_at: datetime
    ) -> HttpResponse:
        """Disconnect the number here: Kapso has just answered that it does not have it."""
        number = connection_of(target)
        onboarding.disconnect(
            number.phone_number_id,
            source=Source.SYNC,
            asked_at=asked_at,
            data={"reason": "not_found"},
        )
        log_change(
            request,
            target.customer,
            _("Checked the health of %(number)s: Kapso no longer has it.")
            % {"number": format_phone_number(str(number))},
        )
        return self.redirect_with_warning(
            request,
            target,
            _("Kapso no longer has this number. It is now marked as disconnected."),
        )

    def _disconnect_view(self, request: HttpRequest, target: Target) -> HttpResponse:
        number = connection_of(target)
        shown = format_phone_number(str(number))
        if not number.is_connected:
            return self.redirect_with_warning(
                request, target, _("This number is no longer connected.")
            )
        if request.method != "POST":
            return self.render_action_page(
                request,
                target,
                "disconnect",
                _("Disconnect %(number)s") % {"number": shown},
                number=shown,
            )
        if not self.accept_action_form(request, target):
            return HttpResponseRedirect(request.path)
        onboarding.disconnect_number(number, actor=current_user(request))
        return self.finish_action(
            request,
            target,
            _("Disconnected %(number)s from WhatsApp.") % {"number": shown},
            _("%(number)s was disconnected and removed from Kapso.") % {"number": shown},
        )


def connection_of(target: Target) -> Connection:
    assert target.connection is not None  # noqa: S101  (each URL of these pages names one)  # nosec B101
    return target.connection
