"""What all of the customers' pages have in common.

No page displays a parameter of its URL.
"""

from __future__ import annotations

import logging
import traceback
from datetime import timedelta
from typing import Any

from django.contrib.auth.decorators import login_not_required
from django.core.exceptions import SuspiciousOperation
from django.core.signing import BadSignature
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import render
from django.template.loader import render_to_string
from django.utils import timezone, translation
from django.utils.cache import patch_vary_headers
from django.utils.decorators import method_decorator
from django.views.decorators.cache import never_cache
from django.views.decorators.debug import sensitive_variables
from django.views.generic import View

from .. import languages
from ..branding import base_context
from ..conf import get_conf
from ..db import OUTAGE_ERRORS, non_atomic
from ..log import log_event
from ..models import Connection, Customer, SetupLink
from ..onboarding import numbers, redirects, renewal
from ..onboarding.connect_urls import connect_path, find_next_url, with_customer_token
from ..translation import gettext
from ..utils import time_since
from . import questions
from .connected_number import ConnectedNumber
from .language import activate_language, language_links, visitor_language, with_chosen_language
from .parameters import DIGITS, ID, optional_parameter, parameter

REFRESH_SECONDS = 3
"""How often the waiting page refreshes at first."""
SLOW_REFRESH_AFTER = timedelta(minutes=1)
"""From then on it says that the customer can leave, and refreshes less often."""
SLOW_REFRESH_SECONDS = 30
STOP_REFRESH_AFTER = timedelta(minutes=30)

IS_PAGE = "kapso_connect.is_page"
"""The key in ``request.META`` of requests for the customers' pages."""


def _hide_url(record: logging.LogRecord) -> bool:
    """Keep the URL of a customers' page, which may be secret, out of Django's log and its mails to
    ADMINS. Return False for the line about a page that was answered with an error; an exception of
    a middleware is logged without the request."""
    request = getattr(record, "request", None)
    if IS_PAGE not in getattr(request, "META", {}):
        return True
    record.msg, record.args = "An exception outside of a customers' page", ()
    record.request = None
    return bool(record.exc_info)


logging.getLogger("django.request").addFilter(_hide_url)


# Error reports show no locals of the frames below ``dispatch``: they contain the request.
@method_decorator(
    [non_atomic, login_not_required, never_cache, sensitive_variables()], name="dispatch"
)
class PageView(View):
    """Base class of the customers' pages: shows them in the customer's language, and a friendly
    page for an invalid or unknown URL, and after any error.

    To add to the context of a template, override ``get_context_data`` in a subclass of one of the
    views below, and mount it above ``include("kapso_connect.urls")`` with the same URL.
    """

    http_method_names = ["get", "head", "options"]

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        request.META[IS_PAGE] = True
        with translation.override(visitor_language(request)):
            try:
                response = self.respond(request, *args, **kwargs)
            except Exception as error:
                response = self.error_page(error)
            language = languages.html_language(languages.current_language())
            response.headers.setdefault("Content-Language", language)
        # The URL contains the ids of the customer's link and number, or is secret itself.
        response.headers.setdefault("Referrer-Policy", "no-referrer")
        response.headers.setdefault("X-Robots-Tag", "noindex, nofollow")
        patch_vary_headers(response, ["Accept-Language", "Cookie"])
        return response

    def respond(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        """Return the page, or the one for an invalid or unknown URL."""
        try:
            return super().dispatch(request, *args, **kwargs)
        except SuspiciousOperation:
            return self.page("invalid", status=400)
        except (BadSignature, Http404, Customer.DoesNotExist, SetupLink.DoesNotExist):
            return self.page("invalid", status=404)

    def error_page(self, error: Exception) -> HttpResponse:
        """Log ``error`` without the request, whose URL may be secret, and return the page for it.

        The page needs neither the database nor the site's context processors.
        """
        chained: BaseException | None = error
        while chained is not None:
            # A mail to ADMINS may show the local variables of all functions that have ended.
            traceback.clear_frames(chained.__traceback__)
            chained = chained.__cause__ or chained.__context__
        log_event("page.error", page=type(self).__name__, error=type(error).__name__, exc_info=True)
        is_temporary = isinstance(error, OUTAGE_ERRORS)
        try:
            context = PageView.get_context_data(self, "unavailable", is_refused=True)
            response = HttpResponse(render_to_string("kapso_connect/unavailable.html", context))
        except Exception:
            text = gettext("Not possible right now")
            response = HttpResponse(text, content_type="text/plain; charset=utf-8")
        response.status_code = 503 if is_temporary else 500
        if is_temporary:
            response.headers["Retry-After"] = "60"
        return response

    def page(self, page: str, *, status: int = 200, **context: Any) -> HttpResponse:
        """Return the template ``kapso_connect/<page>.html``, with the context of
        ``get_context_data``."""
        context = self.get_context_data(page, **context)
        return render(self.request, f"kapso_connect/{page}.html", context, status=status)

    def get_context_data(self, page: str, **context: Any) -> dict[str, Any]:
        """Return the context of the template ``kapso_connect/<page>.html``.

        ``page`` is connect, leaving, success, waiting, failed, unavailable, busy, withdrawn or
        invalid. ``context`` is what the view passes: ``customer`` and ``link`` (the setup link) on
        all pages but the last two. Extend it in a subclass; not called for the page after an error.
        """
        context = {
            **base_context(context.get("link")),
            "language_links": language_links(self.request),
            **context,
        }
        if context.get("connect_path"):
            context["connect_path"] = with_chosen_language(self.request, context["connect_path"])
        return context

    def setup_link(self) -> SetupLink:
        """Return the setup link of a redirect, and switch to its customer's language."""
        kapso_id = parameter(self.request, "setup_link_id", ID)
        links = SetupLink.objects.select_related("customer")
        link = links.filter(kapso_id__in={kapso_id, kapso_id.lower()}).first()
        if link is None:
            raise SetupLink.DoesNotExist
        activate_language(self.request, link.customer, link)
        return link

    def success_page(
        self, link: SetupLink, connections: list[Connection], *, is_customer: bool
    ) -> HttpResponse:
        """Return the page that shows these ``connections`` of the customer of ``link``. Only if
        ``is_customer`` is true, the URL of the site's next page identifies the visitor, and a
        number that cannot be used can be replaced. Others see only the number that they have come
        back with."""
        customer, connection = link.customer, connections[0]
        named = optional_parameter(self.request, "phone_number_id", DIGITS)
        is_recognized = is_customer or named in {c.phone_number_id for c in connections}
        next_url = self.get_next_url(connection, link)
        if next_url and is_customer:
            next_url = with_customer_token(next_url, customer)
        usable = [connection for connection in connections if connection.is_usable]
        can_replace = (
            is_customer
            and len(usable) < len(connections)
            and not renewal.is_onboarded(customer, customer.latest_setup_link)
        )
        return self.page(
            "success",
            customer=customer,
            link=link,
            connection=connection,
            numbers=[
                ConnectedNumber.of(c, is_named=is_customer or c.phone_number_id == named)
                for c in connections
            ],
            is_recognized=is_recognized,
            is_usable=bool(usable),
            connect_path=connect_path(customer) if can_replace else "",
            next_url=next_url,
            next_text=get_conf().next_text,
        )

    def connected_numbers(self, customer: Customer) -> list[Connection]:
        """Return the numbers that are connected, the latest first; none if the latest link is an
        invitation to connect another one."""
        latest = customer.latest_setup_link
        if latest is not None and latest.is_revocable:
            return []
        connected = Connection.objects.connected().filter(customer=customer)
        connections = list(connected.order_by("-connected_at", "-pk"))
        for connection in connections:
            connection.customer = customer
        return connections

    def unconfirmed_page(self, link: SetupLink, *, is_customer: bool) -> HttpResponse | None:
        """Return the page for the number that a redirect from ``link`` reported and Kapso has not
        confirmed yet; ask Kapso once more, if that is allowed now. Return None if there is no such
        number."""
        if link.unconfirmed_since is None:
            return None
        number = numbers.Number(phone_number_id=link.unconfirmed_phone_number_id)
        match self.confirm(link, number, by_visitor=link.unconfirmed_by_visitor):
            case redirects.Connected(connection):
                return self.success_page(link, [connection], is_customer=is_customer)
            case redirects.Pending():
                return self.waiting_page(link, is_customer=is_customer)
            case redirects.Rejected():
                return None

    def confirm(
        self, link: SetupLink, number: numbers.Number, *, by_visitor: bool
    ) -> redirects.Connected | redirects.Pending | redirects.Rejected:
        """Return what the redirect means. Kapso is asked only if that is needed and allowed now."""
        outcome = redirects.outcome_without_api(link, number)
        if outcome is not None:
            return outcome
        if self.request.method == "GET":  # HEAD changes nothing
            with questions.question_about(link, by_visitor=by_visitor) as may_ask:
                if may_ask:
                    return redirects.confirm_redirect(link, number, by_visitor=by_visitor)
        known = redirects.connected_number(link, number)
        return redirects.Connected(known) if known else redirects.Pending()

    def waiting_page(self, link: SetupLink, *, is_customer: bool) -> HttpResponse:
        """Return the page that reloads itself, less often after a minute, until the number is
        confirmed. After that minute, a customer can start again."""
        waited = time_since(link.unconfirmed_since or timezone.now())
        takes_long = waited >= SLOW_REFRESH_AFTER
        seconds = SLOW_REFRESH_SECONDS if takes_long else REFRESH_SECONDS
        response = self.page(
            "waiting",
            status=202,
            customer=link.customer,
            link=link,
            state="long" if takes_long else "short",
            takes_long=takes_long,
            refresh_seconds=seconds if waited < STOP_REFRESH_AFTER else 0,
            connect_path=connect_path(link.customer) if takes_long and is_customer else "",
        )
        if not takes_long:
            # For browsers without JavaScript; pages.js cancels it.
            response.headers["Refresh"] = str(max(5, seconds))
        return response

    def get_next_url(self, connection: Connection, link: SetupLink | None) -> str:
        """Return the page of this site that the success page links to, or "".

        It is the ``next_url`` of the link, or else the result of the owner's
        ``get_whatsapp_next_url(connection)``, or else ``NEXT_URL``.
        """
        return find_next_url(connection, link)
