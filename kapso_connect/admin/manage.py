"""What staff do with one customer: hand out the address, end or extend a link, look after numbers.

Each page acts on the customer's newest link or on one of its numbers. What is asked for twice is
done once: a form carries what its reader saw (``Target.seen``), and the first who acts on it takes
the turn.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any
from urllib.parse import quote as url_quote

from django.contrib import messages
from django.contrib.admin.utils import quote, unquote
from django.core.exceptions import ImproperlyConfigured, PermissionDenied
from django.db import DatabaseError, IntegrityError
from django.http import (
    Http404,
    HttpRequest,
    HttpResponse,
    HttpResponseNotAllowed,
    HttpResponseRedirect,
)
from django.urls import NoReverseMatch, URLPattern
from django.utils import timezone
from django.utils.formats import date_format
from django.utils.translation import get_language_info
from django.utils.translation import gettext as _

from .. import exceptions, onboarding
from ..db import atomic
from ..exceptions import KapsoError, KapsoNotFound
from ..log import log_event
from ..models import Connection, Customer, Health, SetupLink, Source, TimelineEvent
from ..onboarding import customers, emails, renewal, setup_links
from ..onboarding.connect_urls import connect_url
from ..onboarding.messages import staff_message
from ..utils import format_phone_number, is_test_number
from .base import may_create_setup_links
from .extend import ExtendForm, end_of
from .log import log_change
from .owners import Owners
from .qr import qr_code, qr_label

DOUBLE_CLICK = timedelta(seconds=10)
"""Within which the same thing, handed out by the same person in the same way, counts once."""

STEPS = (7, 30)
"""Days that a link can be extended by with one click."""


@dataclass(frozen=True)
class Target:
    """What a page acts on: an object of the ModelAdmin, its customer, the customer's newest link,
    and the number the address names."""

    obj: Any
    customer: Customer
    link: SetupLink | None
    connection: Connection | None = None

    @property
    def seen(self) -> str:
        """What a reader of the page saw; another text as soon as anything of it changed."""
        link, number = self.link, self.connection
        parts: list[object] = [self.customer.updated_at]
        parts += [link.pk, link.status, link.expires_at] if link else []
        parts += [number.status, number.connected_at] if number else []
        return " ".join(str(part) for part in parts)

    @property
    def is_sendable(self) -> bool:
        """True where the customer's address leads to a link that still works."""
        return self.link is not None and self.link.is_usable and bool(self.customer.connect_key)


PERMISSIONS = {
    "email": ["send_setup_link"],
    "qr": ["send_setup_link", "create_setup_link"],
    "share": ["send_setup_link", "create_setup_link"],
    "copied": ["create_setup_link"],
    "revoke": ["revoke_setup_link"],
    "extend": ["extend_setup_link"],
    "reconnect": ["reconnect_number"],
    "health": ["check_health"],
    "disconnect": ["disconnect_number"],
}
"""What one must be allowed for each page. Who may not create links does not see addresses."""

OF_NUMBERS = {"reconnect", "health", "disconnect"}
POST_ONLY = {"copied", "health"}
NOTED = {"qr", "share", *POST_ONLY}
"""What is asked for by POST, without a page that asks first: it is noted."""


class ManageViews(Owners):
    """The part of a ModelAdmin that delivers and manages what a customer was given."""

    def get_urls(self) -> list[URLPattern]:
        return [*(self._manage_path(name) for name in PERMISSIONS), *super().get_urls()]

    def _manage_path(self, name: str) -> URLPattern:
        route = f"whatsapp/<str:object_id>/{name}/"
        if name in OF_NUMBERS:
            route += "<int:connection>/"

        def view(request: HttpRequest, object_id: str, connection: int = 0) -> HttpResponse:
            return self._manage(request, name, object_id, connection)

        return self.view_path(route, view, f"whatsapp_{name}")

    def may_manage(self, request: HttpRequest, name: str) -> bool:
        """True where the user has what the page ``name`` asks for, view permission aside."""
        return request.user.has_perms(
            [f"kapso_connect.{codename}" for codename in PERMISSIONS[name]]
        )

    def _manage(
        self, request: HttpRequest, name: str, object_id: str, connection_pk: int
    ) -> HttpResponse:
        if not self.may_manage(request, name):
            raise PermissionDenied
        if request.method != "POST" and name in POST_ONLY:
            return HttpResponseNotAllowed(["POST"])
        # No database takes a NUL for a key.
        obj = None if "\0" in object_id else self.get_object(request, unquote(object_id))
        if obj is None:
            raise Http404
        if not self.has_view_or_change_permission(request, obj):
            raise PermissionDenied
        customer = self.find_customer(obj)
        if customer is None:
            self.message_user(request, _("This customer was not invited yet."), messages.WARNING)
            return self._back(obj)
        link = renewal.latest_setup_link(customer)
        target = Target(obj, customer, link)
        if name in OF_NUMBERS:
            number = customer.connections.filter(pk=connection_pk).first()
            if number is None:
                return self._manage_page(
                    request, target, "missing", _("Number not found"), status=404
                )
            target = Target(obj, customer, link, number)
        return self._answer(request, name, target)

    def _answer(self, request: HttpRequest, name: str, target: Target) -> HttpResponse:
        view: Callable[[HttpRequest, Target], HttpResponse] = getattr(self, f"_{name}_view")
        try:
            return view(request, target)
        except exceptions.TryLater:
            problem = _("The number changed meanwhile. Look at it again before you go on.")
        except (
            KapsoError,
            exceptions.InvalidOptions,
            ImproperlyConfigured,
            NoReverseMatch,
            Customer.DoesNotExist,
        ) as error:
            problem = staff_message(error)
        except DatabaseError:
            if Customer.objects.filter(pk=target.customer.pk).exists():
                raise
            problem = _("The customer was deleted meanwhile.")
        self.message_user(request, problem, messages.ERROR)
        if not Customer.objects.filter(pk=target.customer.pk).exists():
            return self.to_changelist()
        if name in POST_ONLY or request.method != "POST":
            return self._back(target.obj)
        return HttpResponseRedirect(request.path)

    def _back(self, obj: Any) -> HttpResponseRedirect:
        return HttpResponseRedirect(self.view_url("change", quote(obj.pk)))

    def _manage_page(
        self, request: HttpRequest, target: Target, template: str, title: str, **context: Any
    ) -> HttpResponse:
        status = context.pop("status", 200)
        response = self.page(
            request,
            f"manage/{template}",
            title,
            target=target,
            back_url=self.view_url("change", quote(target.obj.pk)),
            **context,
        )
        response.status_code = status
        return response

    def _took_turn(self, request: HttpRequest, target: Target) -> bool:
        """True where nothing has changed since the form was shown, and nobody else acts on it."""
        if request.POST.get("seen") == target.seen and customers.touch_if_unchanged(
            target.customer
        ):
            return True
        self.message_user(
            request,
            _(
                "Nothing more was done: this was asked for already, or something changed "
                "meanwhile. Look at what is shown now before you go on."
            ),
            messages.WARNING,
        )
        return False

    def _done(self, request: HttpRequest, target: Target, entry: str, text: str) -> HttpResponse:
        log_change(request, target.customer, entry)
        self.message_user(request, text, messages.SUCCESS)
        return self._back(target.obj)

    def _lead_back(self, request: HttpRequest, target: Target, text: str) -> HttpResponse:
        self.message_user(request, text, messages.WARNING)
        return self._back(target.obj)

    # Delivering

    def _email_view(self, request: HttpRequest, target: Target) -> HttpResponse:
        if request.method == "POST":
            return self._send(request, target)
        try:
            # The address that the host's own object has by now.
            with atomic():
                customer = self.make_customer(target.obj)
            target = Target(target.obj, customer, target.link)
        except IntegrityError:
            pass  # Its external id is another customer's; inviting anew says so.
        message = None
        problem = ""
        if target.link is not None and target.is_sendable:
            try:
                message = emails.invitation_message(target.customer, target.link)
            except exceptions.CannotInvite as error:
                problem = str(error)
        context: dict[str, Any] = {"problem": problem}
        if message is not None and target.link is not None:
            code = emails.invitation_language(target.customer, target.link)
            text = str(message.body)
            if not may_create_setup_links(request):
                address = connect_url(target.customer)
                text = text.replace(address, _("[the customer's own address]"))
            context |= {
                "to": message.to[0],
                "language": language_name(code),
                "language_code": code,
                "subject": message.subject,
                "text": text,
                "sent": self._sent(target.link),
            }
        elif not problem and may_create_setup_links(request):
            context["invite_url"] = self.view_url("whatsapp_invite")
            context["quoted_pk"] = quote(target.obj.pk)
        return self._manage_page(request, target, "email", _("E-mail the link"), **context)

    def _sent(self, link: SetupLink) -> TimelineEvent | None:
        notes = link.events.filter(
            kind=TimelineEvent.Kind.SETUP_LINK_SENT, data__channel="email"
        ).select_related("actor")
        return notes.order_by("-pk").first()

    def _send(self, request: HttpRequest, target: Target) -> HttpResponse:
        here = HttpResponseRedirect(request.path)
        if target.link is None or not target.is_sendable or not self._took_turn(request, target):
            return here
        to = target.customer.email
        try:
            emails.send_invitation(target.customer, target.link, actor=staff(request))
        except DatabaseError:
            raise
        except Exception as error:  # Each mail backend has its own.
            log_event("email.failed", customer_id=target.customer.pk, error=type(error).__name__)
            self.message_user(request, emails.why_not_sent(error), messages.ERROR)
            return here
        return self._done(
            request,
            target,
            _("E-mailed the WhatsApp setup link to %(to)s.") % {"to": to},
            _("The link was e-mailed to %(to)s.") % {"to": to},
        )

    def _qr_view(self, request: HttpRequest, target: Target) -> HttpResponse:
        return self._hand_out(request, target, "qr", _("QR code"))

    def _share_view(self, request: HttpRequest, target: Target) -> HttpResponse:
        return self._hand_out(request, target, "share", _("Share the link"))

    def _hand_out(
        self, request: HttpRequest, target: Target, channel: str, title: str
    ) -> HttpResponse:
        """Note, when asked by POST, that the address is given out, and show it."""
        if target.link is None or not target.is_sendable:
            return self._lead_back(
                request, target, _("There is no link that works. Create a new one first.")
            )
        if request.method == "POST":
            self._note(request, target, target.link, channel)
            return HttpResponseRedirect(request.path)
        url = connect_url(target.customer)
        if channel == "qr":
            context: dict[str, Any] = {"qr": qr_code(url, qr_label(target.customer))}
        else:
            code = emails.invitation_language(target.customer, target.link)
            text = emails.share_text(target.customer, target.link)
            context = {
                "text": text,
                "language": language_name(code),
                "language_code": code,
                "share_url": f"https://wa.me/?text={url_quote(text, safe='')}",
            }
        return self._manage_page(request, target, channel, title, url=url, **context)

    def _copied_view(self, request: HttpRequest, target: Target) -> HttpResponse:
        if target.link is not None and target.is_sendable:
            self._note(request, target, target.link, "copy")
        return HttpResponse(status=204)

    def _note(self, request: HttpRequest, target: Target, link: SetupLink, channel: str) -> None:
        just_now = link.events.filter(
            kind=TimelineEvent.Kind.SETUP_LINK_SENT,
            data__channel=channel,
            actor=request.user.pk,
            occurred_at__gt=timezone.now() - DOUBLE_CLICK,
        )
        if just_now.exists() or not customers.touch_if_unchanged(target.customer):
            return
        setup_links.record_sent(link, channel, actor=staff(request))
        entries = {
            "qr": _("Showed the QR code of the WhatsApp setup link."),
            "share": _("Shared the WhatsApp setup link."),
            "copy": _("Copied the WhatsApp setup link."),
        }
        log_change(request, target.customer, entries[channel])

    # Managing the link

    def _revoke_view(self, request: HttpRequest, target: Target) -> HttpResponse:
        link = target.link
        if link is None or not setup_links.is_revocable(link):
            return self._lead_back(request, target, _("There is no link left to revoke."))
        if request.method != "POST":
            return self._manage_page(request, target, "revoke", _("Revoke the link"))
        if not self._took_turn(request, target):
            return HttpResponseRedirect(request.path)
        if not onboarding.revoke_setup_link(link, actor=staff(request)):
            return self._lead_back(
                request, target, _("Nothing was revoked: the link was used or ended meanwhile.")
            )
        return self._done(
            request,
            target,
            _("Revoked the WhatsApp setup link."),
            _("The link was revoked. What was sent to the customer no longer works."),
        )

    def _extend_view(self, request: HttpRequest, target: Target) -> HttpResponse:
        link = target.link
        if link is None or not link.is_usable:
            return self._lead_back(
                request, target, _("There is no link that works. Create a new one first.")
            )
        if link.expires_at is None:
            return self._lead_back(request, target, _("This link works without an end."))
        is_post = request.method == "POST"
        form = ExtendForm(request.POST if is_post else None, expires_at=link.expires_at)
        if not is_post or not form.is_valid():
            return self._manage_page(
                request,
                target,
                "extend",
                _("Extend the link"),
                form=form,
                steps=[(days, form.day_after(days)) for days in STEPS],
            )
        if not self._took_turn(request, target):
            return HttpResponseRedirect(request.path)
        until: date = form.cleaned_data["until"]
        if not onboarding.extend_setup_link(link, end_of(until), actor=staff(request)):
            return self._lead_back(
                request,
                target,
                _("The link ended meanwhile, so it cannot be extended. Create a new one."),
            )
        shown = {"date": date_format(until)}
        return self._done(
            request,
            target,
            _("Extended the WhatsApp setup link until %(date)s.") % shown,
            _("The link now works until %(date)s.") % shown,
        )

    # Looking after a number

    def _reconnect_view(self, request: HttpRequest, target: Target) -> HttpResponse:
        number = the_number(target)
        digits = "".join(c for c in number.display_phone_number if c in "0123456789")
        shown = format_phone_number(number.display_phone_number)
        if not digits:
            return self._lead_back(
                request,
                target,
                _(
                    "Kapso has not told what number this is, so it cannot be asked to reconnect "
                    "it. Create a setup link without it instead."
                ),
            )
        if request.method != "POST":
            return self._manage_page(
                request,
                target,
                "reconnect",
                _("Reconnect %(number)s") % {"number": shown},
                number=shown,
                is_test_number=is_test_number(digits),
            )
        if not self._took_turn(request, target):
            return HttpResponseRedirect(request.path)
        onboarding.create_setup_link(
            target.customer,
            options={"reconnect_phone_number": f"+{digits}"},
            created_by=staff(request),
        )
        return self._done(
            request,
            target,
            _("Created a WhatsApp setup link to reconnect %(number)s.") % {"number": shown},
            _("A link to reconnect %(number)s was created. Send it to the customer.")
            % {"number": shown},
        )

    def _health_view(self, request: HttpRequest, target: Target) -> HttpResponse:
        number = the_number(target)
        last, now = number.health_checked_at, timezone.now()
        if last is None or last < now - DOUBLE_CLICK:
            try:
                onboarding.check_health(number, actor=staff(request))
            except KapsoNotFound:
                return self._gone(request, target, now)
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
        return self._back(target.obj)

    def _gone(self, request: HttpRequest, target: Target, asked_at: datetime) -> HttpResponse:
        """Record what Kapso has just said: it does not have the number any more."""
        number = the_number(target)
        onboarding.disconnect(
            number.phone_number_id,
            source=Source.SYNC,
            asked_at=asked_at,
            data={"reason": "not_found"},
        )
        log_change(
            request,
            target.customer,
            _("Checked the health of %(number)s: Kapso does not have it any more.")
            % {"number": format_phone_number(str(number))},
        )
        return self._lead_back(
            request,
            target,
            _("Kapso does not have this number any more. It counts as disconnected now."),
        )

    def _disconnect_view(self, request: HttpRequest, target: Target) -> HttpResponse:
        number = the_number(target)
        shown = format_phone_number(str(number))
        if not number.is_connected:
            return self._lead_back(request, target, _("This number is not connected any more."))
        if request.method != "POST":
            return self._manage_page(
                request,
                target,
                "disconnect",
                _("Disconnect %(number)s") % {"number": shown},
                number=shown,
            )
        if not self._took_turn(request, target):
            return HttpResponseRedirect(request.path)
        onboarding.disconnect_number(number, actor=staff(request))
        return self._done(
            request,
            target,
            _("Disconnected %(number)s from WhatsApp.") % {"number": shown},
            _("%(number)s was disconnected and removed from Kapso.") % {"number": shown},
        )


def staff(request: HttpRequest) -> Any:
    return request.user


def the_number(target: Target) -> Connection:
    assert target.connection is not None  # noqa: S101  (these pages are found by it)  # nosec B101
    return target.connection


def language_name(code: str) -> str:
    """Return what a language is called in the reader's own."""
    try:
        return _(get_language_info(code)["name"])
    except KeyError:
        return code
