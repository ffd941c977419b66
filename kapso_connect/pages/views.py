"""The customers' pages: the invitation, and the pages that Kapso's hosted page redirects to.

A site customizes them with templates, or with subclasses of the views; see ``PageView``.

A redirect is not signed: what its parameters say counts only once the API has confirmed it. None of
them is displayed. A malformed one is refused only if nothing can be done without it.
"""

from __future__ import annotations

import logging
import math
import re
import traceback
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.contrib.auth.decorators import login_not_required
from django.core.exceptions import SuspiciousOperation
from django.core.signing import BadSignature
from django.http import (
    Http404,
    HttpRequest,
    HttpResponse,
    HttpResponseBase,
    HttpResponseRedirect,
)
from django.shortcuts import render
from django.template.loader import render_to_string
from django.urls import NoReverseMatch
from django.utils import timezone, translation
from django.utils.cache import patch_vary_headers
from django.utils.decorators import method_decorator
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.debug import sensitive_variables
from django.views.generic import View

from .. import exceptions, languages, theme
from ..branding import branding, inviter_name
from ..conf import get_conf
from ..db import OUTAGE_ERRORS, non_atomic
from ..exceptions import KapsoRateLimited, KapsoUnavailable
from ..kapso.client import KapsoClient
from ..kapso.error_codes import SETUP_ERRORS, UNKNOWN_ERROR, Action
from ..log import log_event
from ..models import Connection, Customer, OnboardingStatus, SetupLink, Source
from ..onboarding import numbers, redirects, renewal, setup_links
from ..onboarding.connect_urls import (
    connect_path,
    connect_qr_path,
    connect_url,
    customer_from_token,
    find_next_url,
    has_failure_token,
    has_visit_cookie,
    set_visit_cookie,
    with_customer_token,
)
from ..onboarding.expectations import expectations
from ..phone_numbers import format_phone_number
from ..qr import has_qr_codes, qr_svg
from ..translation import gettext
from ..utils import reverse_path, time_since, to_local_time
from . import questions
from .browsers import is_in_app_browser
from .language import (
    activate_language,
    chosen_language,
    language_links,
    visitor_language,
    with_chosen_language,
)
from .rate_limit import seconds_until_allowed

REFRESH_SECONDS = 3
"""How often the waiting page refreshes at first."""
SLOW_REFRESH_AFTER = timedelta(minutes=1)
"""From then on it says that the customer can leave, and refreshes less often."""
SLOW_REFRESH_SECONDS = 30
STOP_REFRESH_AFTER = timedelta(minutes=30)

_id = _code = re.compile(r"[0-9A-Za-z_-]{1,64}")
_digits = re.compile(r"[0-9]{1,64}")
_not_in_a_code = re.compile(r"[^0-9A-Za-z_-]")

ABSENT = {"", "null", "none", "undefined"}
"""What a parameter without a value may be written as, in any case."""

NO_ERROR_CODE = "unknown"
"""What is recorded for a failure without an error code."""

TOKEN = re.compile(r"(?<![0-9A-Za-z])[0-9A-Za-z]{1,32}\.[0-9A-Za-z_-]{43}(?![0-9A-Za-z])")
"""The token of a customer's own URL, wherever it stands in what a mail program made of it."""

ENDED_LINK_CODES = {"already_used", "link_expired"}
"""The error codes of a link that may have connected a number before."""

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


@dataclass(frozen=True)
class ConnectedNumber:
    """A number on the success page."""

    phone_number: str
    """In international form; empty if it is not known yet."""
    verified_name: str
    chat_url: str
    """WhatsApp's URL that opens a chat with the number; empty for one that cannot be used."""
    problem: str
    """Why the number cannot be used as it should: "test", "restricted", "name" or "declined"."""

    @classmethod
    def of(cls, connection: Connection, *, is_named: bool) -> ConnectedNumber:
        """Return the number; unless ``is_named``, without what tells which one it is."""
        problem = ""
        if connection.is_test_number:
            problem = "test"
        elif connection.is_restricted:
            problem = "restricted"
        elif not connection.is_name_approved:
            problem = "name" if connection.name_status == "PENDING_REVIEW" else "declined"
        if not is_named:
            return cls("", "", "", problem)
        digits = connection.phone_digits
        can_chat = digits and problem not in {"test", "restricted"}
        return cls(
            format_phone_number(connection.display_phone_number),
            connection.verified_name,
            f"https://wa.me/{digits}" if can_chat else "",
            problem,
        )


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
            **branding(context.get("link")),
            "language_links": language_links(self.request),
            **context,
        }
        if context.get("connect_path"):
            context["connect_path"] = with_chosen_language(self.request, context["connect_path"])
        return context

    def parameter(self, name: str, pattern: re.Pattern[str], *, required: bool = True) -> str:
        """Return a query parameter; raise SuspiciousOperation if it is malformed, missing, or
        repeated with another value."""
        values = self.values(name)
        value = values[0] if values else ""
        if len(set(values)) > 1 or ((value or required) and not pattern.fullmatch(value)):
            raise SuspiciousOperation
        return value

    def optional_parameter(self, name: str, pattern: re.Pattern[str]) -> str:
        """Return a query parameter, or "" if it is malformed or missing."""
        return next((value for value in self.values(name) if pattern.fullmatch(value)), "")

    def values(self, name: str) -> list[str]:
        """Return the values of a query parameter, without the blanks around them."""
        values = [value.strip(" ") for value in self.request.GET.getlist(name)]
        return [value for value in values if value.lower() not in ABSENT]

    def setup_link(self) -> SetupLink:
        """Return the setup link of a redirect, and switch to its customer's language."""
        kapso_id = self.parameter("setup_link_id", _id)
        links = SetupLink.objects.select_related("customer")
        link = links.filter(kapso_id__in={kapso_id, kapso_id.lower()}).first()
        if link is None:
            raise SetupLink.DoesNotExist
        activate_language(self.request, link.customer, link)
        return link

    def success(
        self, link: SetupLink | None, connections: list[Connection], *, is_customer: bool
    ) -> HttpResponse:
        """Return the success page. Only if ``is_customer`` is true, the link to the site's next
        page identifies the visitor, and a number that cannot be used can be replaced. Others see
        only the number that they have come back with."""
        connection = connections[0]
        customer = connection.customer
        named = self.optional_parameter("phone_number_id", _digits)
        is_recognized = is_customer or named in {c.phone_number_id for c in connections}
        next_url = self.get_next_url(connection, link)
        if next_url and is_customer:
            next_url = with_customer_token(next_url, customer)
        is_usable = any(not (c.is_test_number or c.is_restricted) for c in connections)
        latest = customer.latest_setup_link
        can_replace = is_customer and not renewal.is_onboarded(customer, latest)
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
            is_usable=is_usable,
            connect_path=connect_path(customer) if can_replace else "",
            next_url=next_url,
            next_text=get_conf().next_text,
        )

    def is_connected(self, customer: Customer) -> bool:
        """Return whether ``customer`` sees the success page: a number is connected, and the latest
        link is no invitation to connect another one."""
        latest = customer.latest_setup_link
        is_invited = latest is not None and latest.is_revocable
        return not is_invited and Connection.objects.connected().filter(customer=customer).exists()

    def success_of(self, customer: Customer, link: SetupLink, *, is_customer: bool) -> HttpResponse:
        """Return the success page with all numbers of ``customer`` that are connected."""
        connected = Connection.objects.connected().filter(customer=customer)
        connections = list(connected.order_by("-connected_at", "-pk"))
        for connection in connections:
            connection.customer = customer
        return self.success(link, connections, is_customer=is_customer)

    def unconfirmed(self, link: SetupLink, *, is_customer: bool) -> HttpResponse | None:
        """Return the page for the number that a redirect from ``link`` reported, if Kapso has not
        confirmed it: asks once more, if that is allowed now. None if there is no such number."""
        if link.unconfirmed_since is None:
            return None
        number = numbers.Number(phone_number_id=link.unconfirmed_phone_number_id)
        match self.confirm(link, number, by_visitor=link.unconfirmed_by_visitor):
            case redirects.Connected(connection):
                return self.success(link, [connection], is_customer=is_customer)
            case redirects.Pending():
                return self.waiting(link, is_customer=is_customer)
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

    def waiting(self, link: SetupLink, *, is_customer: bool) -> HttpResponse:
        """Return the page that reloads itself, less often after a minute, until the number is
        confirmed. After that minute, a customer can start again."""
        link.refresh_from_db(fields=["unconfirmed_since"])
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


# The POST needs no CSRF token: it acts for whoever has the URL, not for the logged-in user, so
# another site could make a browser send nothing that it could not send itself. And it must work
# without cookies, in the in-app browsers that open links in e-mails.
@method_decorator(csrf_exempt, name="dispatch")
class ConnectView(PageView):
    """The customer's permanent URL: an invitation, whose button leads to a usable setup link.

    GET and HEAD change nothing, since mail scanners follow links, too.
    """

    http_method_names = ["get", "head", "post", "options"]

    def get(self, request: HttpRequest, token: str) -> HttpResponse:
        try:
            customer = customer_from_token(token)
        except BadSignature:
            return self.redirect_to_token_in(token)
        link = customer.latest_setup_link if customer else None
        if customer is None or link is None:
            return self.page("withdrawn", status=410)
        activate_language(request, customer, link)
        if self.is_connected(customer):
            return self.success_of(customer, link, is_customer=True)
        link.customer = customer
        return self.unconfirmed(link, is_customer=True) or self.invitation(customer, link)

    def invitation(self, customer: Customer, link: SetupLink) -> HttpResponse:
        """Return the page with the button that leads to Kapso."""
        conf = get_conf()
        is_paused = customer.status == OnboardingStatus.PAUSED and not link.is_revocable
        has_failed = link.setup_status == SetupLink.SetupStatus.FAILED
        paused = Connection.objects.paused().filter(customer=customer)
        is_paused_for_long = is_paused and any(number.is_paused_for_long for number in paused)
        return self.page(
            "connect",
            customer=customer,
            link=link,
            # Meta usually connects it again by itself.
            connect_path="" if is_paused and not is_paused_for_long else connect_path(customer),
            expectations=expectations(link),
            inviter=inviter_name(link),
            invitation_text=conf.invitation_text,
            cost_text=conf.cost_text,
            reconnect_number=format_phone_number(
                str(link.options.get("reconnect_phone_number") or "")
            ),
            failure=SETUP_ERRORS.get(link.last_error_code, UNKNOWN_ERROR) if has_failed else None,
            is_paused=is_paused,
            is_paused_for_long=is_paused_for_long,
            is_in_app_browser=is_in_app_browser(self.request.headers.get("User-Agent", "")),
            qr_url=_qr_url(customer),
        )

    def redirect_to_token_in(self, text: str) -> HttpResponse:
        """Redirect to the customer's own URL if ``text`` is its token and what a mail program or a
        person put around it; raise BadSignature if it is not."""
        found = TOKEN.search(text)
        if found is None or found[0] == text:
            raise BadSignature
        customer_from_token(found[0])
        path = reverse_path("kapso_connect:connect", args=[found[0]])
        return HttpResponseRedirect(with_chosen_language(self.request, path))

    def post(self, request: HttpRequest, token: str) -> HttpResponse:
        customer = customer_from_token(token)
        if customer is None:
            return self.page("withdrawn", status=410)
        latest = customer.latest_setup_link
        activate_language(request, customer, latest)
        context = {
            "customer": customer,
            "link": latest,
            "connect_path": connect_path(customer),
        }
        if seconds := seconds_until_allowed(customer):
            log_event("page.rate_limited", customer_id=customer.pk)
            response = self.page(
                "busy",
                status=429,
                minutes=math.ceil(seconds / 60),
                retry_at=to_local_time(timezone.now() + timedelta(seconds=seconds)),
                **context,
            )
            response.headers["Retry-After"] = str(seconds)
            return response
        try:
            with questions.noting_slowness():
                may_ask = not questions.is_slow()
                client = KapsoClient.from_settings(budget=get_conf().request_budget)
                link = renewal.usable_setup_link(customer, may_ask=may_ask, client=client)
                if language := chosen_language(request):
                    setup_links.set_language(link, language, client if may_ask else None)
        except (exceptions.InvitationWithdrawn, Customer.DoesNotExist):
            return self.page("withdrawn", status=410)
        except exceptions.AlreadyConnected:
            path = with_chosen_language(request, connect_path(customer))
            return HttpResponseRedirect(path, status=303)
        except (exceptions.RenewalInProgress, KapsoUnavailable, KapsoRateLimited) as error:
            log_event(
                "page.try_again_later", customer_id=customer.pk, error=str(error) or repr(error)
            )
            response = self.page("unavailable", status=503, **context)
            response.headers["Retry-After"] = "60"
            return response
        except Exception as error:
            # Wrong settings or an error of Kapso: nothing that the customer can change.
            log_event(
                "page.unavailable",
                customer_id=customer.pk,
                error=type(error).__name__,
                exc_info=True,
            )
            return self.page("unavailable", status=503, is_refused=True, **context)
        setup_links.record_opened(link, source=Source.REDIRECT)
        # Not a redirect: under the Content-Security-Policy ``form-action 'self'``, browsers follow
        # no form to another site.
        response = self.page("leaving", customer=customer, link=link, url=link.url)
        response.headers["Refresh"] = f"0; url={link.url}"
        set_visit_cookie(request, response, customer)
        return response


class ConnectQRView(PageView):
    """The customer's permanent URL as a QR code, to continue on a phone. Not cached, as the URL is
    secret; and without segno, there is none."""

    def get(self, request: HttpRequest, token: str) -> HttpResponse:
        customer = customer_from_token(token)
        svg = qr_svg(connect_url(customer)) if customer and customer.latest_setup_link else ""
        if not svg:
            raise Http404
        response = HttpResponse(svg, content_type="image/svg+xml")
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response

    def page(self, page: str, *, status: int = 200, **context: Any) -> HttpResponse:
        """Return an empty response instead of a page: nobody sees it."""
        return HttpResponse(status=status)


class MistypedView(ConnectView):
    """Any URL that begins like that of a page: friendly, and not in Django's log. It leads on where
    a page can be recognized."""

    def get(  # nosec B107
        self, request: HttpRequest, token: str = "", page: str = ""
    ) -> HttpResponse:
        if page:  # Only the slash at the end is missing.
            query = request.META.get("QUERY_STRING", "")
            url = reverse_path(f"kapso_connect:{page}", args=[token] if token else [])
            return HttpResponseRedirect(f"{url}?{query}" if query else url)
        return self.redirect_to_token_in(token)

    def post(  # nosec B107
        self, request: HttpRequest, token: str = "", page: str = ""
    ) -> HttpResponse:
        raise Http404


class SuccessView(PageView):
    """The target of ``success_redirect_url``: the customer has connected a number."""

    def get(self, request: HttpRequest) -> HttpResponse:
        if self.parameter("status", _code, required=False).lower() not in {"", "completed"}:
            raise SuspiciousOperation
        # What else Kapso sends (the number itself, its account) comes from the API.
        number = numbers.Number(
            phone_number_id=self.parameter("phone_number_id", _digits, required=False),
            provisioned_phone_number_id=self.optional_parameter("provisioned_phone_number_id", _id),
        )
        link = self.setup_link()
        is_visitor = has_visit_cookie(request, link.customer)
        match self.confirm(link, number, by_visitor=is_visitor):
            case redirects.Connected(connection):
                # The ids in the URL can be read in logs and browser histories, the cookie cannot.
                return self.success(link, [connection], is_customer=is_visitor)
            case redirects.Pending():
                return self.waiting(link, is_customer=is_visitor)
            case redirects.Rejected():
                return self.page("invalid", status=404)


class FailedView(PageView):
    """The target of ``failure_redirect_url``: the customer could not connect a number."""

    def get(self, request: HttpRequest, token: str = "") -> HttpResponse:  # nosec B107
        link = self.setup_link()
        code = self.error_code()
        # The customer's permanent URL and the link's URL are secret. The id in this page's URL is
        # not: it is in logs and browser histories. So the button is shown only to a browser with
        # the cookie that the permanent URL sets, and soon after it led to Kapso also to one without
        # cookies, which comes back with the token; others are asked to open that URL again.
        is_visitor = has_visit_cookie(request, link.customer) or has_failure_token(token, link)
        if code in ENDED_LINK_CODES:
            page = self.unconfirmed(link, is_customer=is_visitor)
            if page is not None:
                return page
        if request.method == "GET":  # HEAD changes nothing
            setup_links.record_failure(link, code, by_visitor=is_visitor)
        customer = link.customer
        if self.is_connected(customer):
            return self.success_of(customer, link, is_customer=is_visitor)
        failure = SETUP_ERRORS.get(code, UNKNOWN_ERROR)
        return self.page(
            "failed",
            customer=customer,
            link=link,
            failure=failure,
            label=failure.action.label,
            contact_first=failure.action == Action.CONTACT,
            connect_path=connect_path(customer) if is_visitor else "",
        )

    def error_code(self) -> str:
        """Return Kapso's error code, without what is in no code of its own."""
        codes = [_not_in_a_code.sub("", value)[:64] for value in self.values("error_code")]
        codes = [code.lower() if code.lower() in SETUP_ERRORS else code for code in codes if code]
        return codes[0] if codes else NO_ERROR_CODE


@login_not_required
def theme_css(request: HttpRequest, colors: str) -> HttpResponse:
    """The stylesheet with a theme's colours. They are all in its URL, so it never changes."""
    response = HttpResponse(theme.stylesheet(theme.from_path(colors)), content_type="text/css")
    response.headers["Cache-Control"] = "public, max-age=31536000, immutable"
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response


def _qr_url(customer: Customer) -> str:
    """Return the URL of the customer's QR code, or "" if this site has none."""
    try:
        return connect_qr_path(customer) if has_qr_codes() else ""
    except NoReverseMatch:  # the site leaves its pattern out
        return ""
