"""The views of the customers' pages: the invitation, and the pages that Kapso's hosted page
redirects to.

A site customizes them with templates, or with subclasses of the views; see ``PageView``.

A redirect is not signed: what its parameters say counts only once the API has confirmed it. None of
them is displayed. A malformed one is refused only if nothing can be done without it.
"""

from __future__ import annotations

import re
from functools import partial
from typing import Any

from django.contrib.auth.decorators import login_not_required
from django.core.exceptions import SuspiciousOperation
from django.core.signing import BadSignature
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import NoReverseMatch
from django.utils.decorators import method_decorator
from django.views.decorators.csrf import csrf_exempt

from .. import theme
from ..branding import inviter_name
from ..conf import get_conf
from ..kapso.error_codes import SETUP_ERRORS, Action, find_error
from ..models import Connection, Customer, OnboardingStatus, SetupLink
from ..onboarding import numbers, redirects, renewal, setup_links
from ..onboarding.connect_urls import (
    connect_path,
    connect_qr_path,
    connect_url,
    customer_from_token,
    has_failure_token,
    has_visit_cookie,
)
from ..onboarding.expectations import expectations
from ..phone_numbers import format_phone_number
from ..qr import has_qr_codes, qr_svg
from ..utils import reverse_path
from .base import PageView
from .browsers import is_in_app_browser
from .connecting import ConnectingView
from .language import activate_language, with_chosen_language
from .parameters import (
    CODE,
    DIGITS,
    ID,
    NO_ERROR_CODE,
    error_code,
    optional_parameter,
    parameter,
)

__all__ = [
    "ConnectQRView",
    "ConnectView",
    "FailedView",
    "MistypedView",
    "PageView",
    "SuccessView",
    "theme_css",
]

TOKEN = re.compile(r"(?<![0-9A-Za-z])[0-9A-Za-z]{1,32}\.[0-9A-Za-z_-]{43}(?![0-9A-Za-z])")
"""The token of a connect URL, wherever it stands in what a mail program made of it."""

ENDED_LINK_CODES = {"already_used", "link_expired"}
"""The error codes of a link that may have connected a number before."""


# The POST needs no CSRF token: it acts for whoever has the URL, not for the logged-in user, so
# another site could make a browser send nothing that it could not send itself. And it must work
# without cookies, in the in-app browsers that open links in e-mails.
@method_decorator(csrf_exempt, name="dispatch")
class ConnectView(ConnectingView):
    """The connect URL: an invitation, whose button leads to a usable setup link.

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
        link.customer = customer
        if connections := self.connected_numbers(customer):
            return self.success_page(link, connections, is_customer=True)
        return self.unconfirmed_page(link, is_customer=True) or self.invitation_page(customer, link)

    def invitation_page(self, customer: Customer, link: SetupLink) -> HttpResponse:
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
            reconnect_number=format_phone_number(link.reconnect_number),
            failure=find_error(link.last_error_code) if has_failed else None,
            is_paused=is_paused,
            is_paused_for_long=is_paused_for_long,
            is_in_app_browser=is_in_app_browser(self.request.headers.get("User-Agent", "")),
            connect_url=connect_url(customer),
            qr_url=_qr_url(customer),
        )

    def redirect_to_token_in(self, text: str) -> HttpResponse:
        """Redirect to the connect URL whose token is in ``text``, among what a mail program or a
        person put around it; raise BadSignature if there is none."""
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
        path = connect_path(customer)
        return self.lead_to_kapso(
            customer,
            partial(renewal.usable_setup_link, customer),
            with_chosen_language(request, path),
            link=latest,
            connect_path=path,
            back_url="",
        )


class ConnectQRView(PageView):
    """The connect URL as a QR code, to continue on a phone. Browsers do not store it, as the URL is
    secret. Without segno, it is not found."""

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
        if parameter(request, "status", CODE, required=False).lower() not in {"", "completed"}:
            raise SuspiciousOperation
        # What else Kapso sends (the number itself, its account) comes from the API.
        number = numbers.Number(
            phone_number_id=parameter(request, "phone_number_id", DIGITS, required=False),
            provisioned_phone_number_id=optional_parameter(
                request, "provisioned_phone_number_id", ID
            ),
        )
        link = self.setup_link()
        is_customer = has_visit_cookie(request, link.customer)
        match self.confirm(link, number, by_visitor=is_customer):
            case redirects.Connected(connection):
                # The ids in the URL can be read in logs and browser histories, the cookie cannot.
                return self.success_page(link, [connection], is_customer=is_customer)
            case redirects.Pending():
                return self.waiting_page(link, is_customer=is_customer)
            case redirects.Rejected():
                return self.page("invalid", status=404)


class FailedView(PageView):
    """The target of ``failure_redirect_url``: the customer could not connect a number."""

    def get(self, request: HttpRequest, token: str = "") -> HttpResponse:  # nosec B107
        link = self.setup_link()
        code = error_code(request)
        # The connect URL and the setup link's URL are secret. The id in this page's URL is not: it
        # is in logs and browser histories. So the button is shown only to the customer's browser.
        # It has the visit cookie, or comes back soon with the token that Kapso was given for a
        # browser without cookies. Others are asked to open the connect URL again.
        is_customer = has_visit_cookie(request, link.customer) or has_failure_token(token, link)
        if code in ENDED_LINK_CODES:
            page = self.unconfirmed_page(link, is_customer=is_customer)
            if page is not None:
                return page
        if request.method == "GET":  # HEAD changes nothing
            setup_links.record_failure(link, code, by_visitor=is_customer)
        customer = link.customer
        if connections := self.connected_numbers(customer):
            return self.success_page(link, connections, is_customer=is_customer)
        failure = find_error(code)
        return self.page(
            "failed",
            customer=customer,
            link=link,
            failure=failure,
            error_code=code if code in SETUP_ERRORS else NO_ERROR_CODE,
            label=failure.action.label,
            contact_first=failure.action == Action.CONTACT,
            connect_path=connect_path(customer) if is_customer else "",
        )


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
