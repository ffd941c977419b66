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
from datetime import timedelta
from typing import Any
from urllib.parse import urlencode

from django.conf import settings
from django.contrib.auth.decorators import login_not_required
from django.core.exceptions import SuspiciousOperation
from django.core.signing import BadSignature
from django.http import (
    Http404,
    HttpRequest,
    HttpResponse,
    HttpResponseBase,
    HttpResponseRedirect,
    QueryDict,
)
from django.shortcuts import render
from django.template.loader import render_to_string
from django.utils import timezone, translation
from django.utils.cache import patch_vary_headers
from django.utils.decorators import method_decorator
from django.utils.translation.trans_real import parse_accept_lang_header
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.debug import sensitive_variables
from django.views.generic import View

from .. import exceptions, languages, theme
from ..branding import branding
from ..conf import get_conf
from ..db import OUTAGE_ERRORS, non_atomic
from ..exceptions import InvalidOptions, KapsoRateLimited, KapsoUnavailable
from ..kapso.client import KapsoClient
from ..kapso.error_codes import SETUP_ERRORS, UNKNOWN_ERROR, Action
from ..kapso.languages import Language
from ..log import log_event
from ..models import Connection, Customer, OnboardingStatus, SetupLink, Source
from ..onboarding import numbers, redirects, renewal, setup_links
from ..onboarding.connect_urls import (
    connect_path,
    customer_from_token,
    has_visit_cookie,
    set_visit_cookie,
    with_customer_token,
)
from ..phone_numbers import format_phone_number
from ..translation import gettext
from ..utils import reverse_path, time_since, validate_same_site_url
from . import questions
from .rate_limit import seconds_until_allowed

REFRESH_SECONDS = 3
"""How often the waiting page refreshes at first."""
SLOW_REFRESH_AFTER = timedelta(minutes=1)
"""From then on it says that the customer can leave, and refreshes less often."""
SLOW_REFRESH_SECONDS = 30
STOP_REFRESH_AFTER = timedelta(minutes=30)

_id = _code = re.compile(r"[0-9A-Za-z_-]{1,64}")
_digits = re.compile(r"[0-9]{1,64}")
_kept = re.compile(r"[0-9A-Za-z_.:+ -]{1,200}")
_not_in_a_code = re.compile(r"[^0-9A-Za-z_-]")

ABSENT = {"", "null", "none", "undefined"}
"""What a parameter without a value may be written as, in any case."""

NO_ERROR_CODE = "unknown"
"""What is recorded for a failure without an error code."""

TOKEN = re.compile(r"(?<![0-9A-Za-z])[0-9A-Za-z]{1,32}\.[0-9A-Za-z_-]{43}(?![0-9A-Za-z])")
"""The token of a customer's own URL, wherever it stands in what a mail program made of it."""

LANGUAGE_PARAMETER = "language"
"""The query parameter with the language that the visitor chose on the page."""

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
        with translation.override(_visitor_language(request)):
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
            context["connect_path"] = _with_chosen_language(self.request, context["connect_path"])
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
        _activate_language(self.request, link.customer, link)
        return link

    def success(
        self, link: SetupLink | None, connections: list[Connection], *, is_customer: bool
    ) -> HttpResponse:
        """Return the success page. The link to the site's next page identifies the visitor only if
        ``is_customer`` is true."""
        connection = connections[0]
        next_url = self.get_next_url(connection, link)
        if next_url and is_customer:
            next_url = with_customer_token(next_url, connection.customer)
        return self.page(
            "success",
            customer=connection.customer,
            link=link,
            connection=connection,
            phone_numbers=[format_phone_number(c.display_phone_number) for c in connections],
            next_url=next_url,
        )

    def get_next_url(self, connection: Connection, link: SetupLink | None) -> str:
        """Return the page of this site that the success page links to, or "".

        It is the ``next_url`` of the link, or else the result of the owner's
        ``get_whatsapp_next_url(connection)``, or else ``NEXT_URL``.
        """
        owner: Any = connection.customer.get_owner()
        url = link.next_url if link else ""
        try:
            if not url and hasattr(owner, "get_whatsapp_next_url"):
                url = owner.get_whatsapp_next_url(connection) or ""
            return validate_same_site_url(url or get_conf().next_url)
        except InvalidOptions:
            log_event("page.next_url_refused", customer_id=connection.customer_id)
        except Exception as error:
            log_event(
                "page.next_url_error",
                customer_id=connection.customer_id,
                owner=type(owner).__name__,
                error=type(error).__name__,
                exc_info=True,
            )
        return ""


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
        _activate_language(request, customer, link)
        connected = Connection.objects.connected().filter(customer=customer)
        connections = list(connected.order_by("-connected_at", "-pk"))
        if connections and renewal.is_onboarded(customer, link):
            return self.success(link, connections, is_customer=True)
        return self.page(
            "connect",
            customer=customer,
            link=link,
            connect_path=connect_path(customer),
            reconnect_number=format_phone_number(
                str(link.options.get("reconnect_phone_number") or "")
            ),
            has_failed=link.setup_status == SetupLink.SetupStatus.FAILED,
            is_waiting=link.unconfirmed_since is not None,
            is_paused=customer.status == OnboardingStatus.PAUSED,
        )

    def redirect_to_token_in(self, text: str) -> HttpResponse:
        """Redirect to the customer's own URL if ``text`` is its token and what a mail program or a
        person put around it; raise BadSignature if it is not."""
        found = TOKEN.search(text)
        if found is None or found[0] == text:
            raise BadSignature
        customer_from_token(found[0])
        path = reverse_path("kapso_connect:connect", args=[found[0]])
        return HttpResponseRedirect(_with_chosen_language(self.request, path))

    def post(self, request: HttpRequest, token: str) -> HttpResponse:
        customer = customer_from_token(token)
        if customer is None:
            return self.page("withdrawn", status=410)
        latest = customer.latest_setup_link
        _activate_language(request, customer, latest)
        context = {
            "customer": customer,
            "link": latest,
            "connect_path": connect_path(customer),
        }
        if seconds := seconds_until_allowed(customer):
            log_event("page.rate_limited", customer_id=customer.pk)
            response = self.page("busy", status=429, minutes=math.ceil(seconds / 60), **context)
            response.headers["Retry-After"] = str(seconds)
            return response
        try:
            with questions.noting_slowness():
                may_ask = not questions.is_slow()
                client = KapsoClient.from_settings(budget=get_conf().request_budget)
                link = renewal.usable_setup_link(customer, may_ask=may_ask, client=client)
                if language := _chosen_language(request):
                    setup_links.set_language(link, language, client if may_ask else None)
        except (exceptions.InvitationWithdrawn, Customer.DoesNotExist):
            return self.page("withdrawn", status=410)
        except exceptions.AlreadyConnected:
            path = _with_chosen_language(request, connect_path(customer))
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


class MistypedView(ConnectView):
    """Any URL that begins like that of a page: friendly, and not in Django's log. It leads on where
    a page can be recognized."""

    def get(  # nosec B107
        self, request: HttpRequest, token: str = "", page: str = ""
    ) -> HttpResponse:
        if page:  # Only the slash at the end is missing.
            query = request.META.get("QUERY_STRING", "")
            url = reverse_path(f"kapso_connect:{page}")
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
                return self.waiting(link)
            case redirects.Rejected():
                return self.page("invalid", status=404)

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

    def waiting(self, link: SetupLink) -> HttpResponse:
        """Return the page that reloads itself, less often after a minute, until the number is
        confirmed."""
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
        )
        if not takes_long:
            # For browsers without JavaScript; pages.js cancels it.
            response.headers["Refresh"] = str(max(5, seconds))
        return response


class FailedView(PageView):
    """The target of ``failure_redirect_url``: the customer could not connect a number."""

    def get(self, request: HttpRequest) -> HttpResponse:
        link = self.setup_link()
        code = self.error_code()
        is_visitor = has_visit_cookie(request, link.customer)
        if request.method == "GET":  # HEAD changes nothing
            setup_links.record_failure(link, code, by_visitor=is_visitor)
            link.refresh_from_db(fields=["setup_status"])
        failure = SETUP_ERRORS.get(code, UNKNOWN_ERROR)
        is_completed = link.setup_status == SetupLink.SetupStatus.COMPLETED
        # The customer's permanent URL and the link's URL are secret. The id in this page's URL is
        # not: it is in logs and browser histories. So the button is shown only to a browser with
        # the cookie that the permanent URL sets; others are asked to open that URL again.
        may_retry = not is_completed and is_visitor
        return self.page(
            "failed",
            customer=link.customer,
            link=link,
            failure=failure,
            is_completed=is_completed,
            label=failure.action.label,
            contact_first=failure.action == Action.CONTACT,
            connect_path=connect_path(link.customer) if may_retry else "",
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


def language_links(request: HttpRequest) -> list[dict[str, Any]]:
    """Return the links of the page to itself in each language: ``url``, ``language`` (a tag of
    HTML), ``direction``, ``name`` and ``is_current``. None with USE_I18N off.

    The URLs have the other parameters of the page, without malformed ones.
    """
    if not settings.USE_I18N:
        return []
    kept = [
        (name, value)
        for name, values in _parameters(request).lists()
        for value in values
        if name != LANGUAGE_PARAMETER and _kept.fullmatch(name) and _kept.fullmatch(value)
    ]
    return [
        {
            "url": f"?{urlencode([*kept, (LANGUAGE_PARAMETER, code)])}",
            "language": languages.html_language(code),
            "direction": languages.direction(code),
            "name": languages.native_name(code),
            "is_current": code == languages.current_language(),
        }
        for code in languages.page_languages()
    ]


def _parameters(request: HttpRequest) -> QueryDict:
    try:
        return request.GET
    except SuspiciousOperation:  # too many: the page says that its URL is invalid
        return QueryDict()


def _chosen_language(request: HttpRequest) -> str:
    """Return the language that the visitor chose by one of ``language_links``, or ""."""
    return languages.find_page_language(_parameters(request).get(LANGUAGE_PARAMETER))


def _with_chosen_language(request: HttpRequest, path: str) -> str:
    """Return the path of a page with the language that the visitor chose."""
    language = _chosen_language(request)
    return f"{path}?{urlencode({LANGUAGE_PARAMETER: language})}" if language else path


def _visitor_language(request: HttpRequest) -> str:
    """Return the language for a visitor who is not known as a customer yet."""
    if not settings.USE_I18N:
        return Language.ENGLISH.value
    wanted = parse_accept_lang_header(request.headers.get("Accept-Language", ""))
    codes = [
        _parameters(request).get(LANGUAGE_PARAMETER),
        *(code for code, weight in wanted if weight),
    ]
    codes.append(translation.get_language())
    known = (found for code in codes if (found := languages.find_page_language(code)))
    return next(known, languages.default_language())


def _activate_language(request: HttpRequest, customer: Customer, link: SetupLink | None) -> None:
    """Switch to the language of the link, or else the customer's, until ``dispatch`` resets it;
    unless the visitor chose one."""
    codes = [link.options.get("language") if link else "", customer.language]
    known = [found for code in codes if (found := languages.find_page_language(code))]
    if known and not _chosen_language(request):
        translation.activate(known[0])
