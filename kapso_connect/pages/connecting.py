"""What the button of an invitation and that of a site's own page have in common: both lead to
Kapso's hosted page."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from django.http import HttpResponse, HttpResponseRedirect
from django.utils import timezone

from .. import exceptions
from ..conf import get_conf
from ..exceptions import KapsoRateLimited, KapsoUnavailable
from ..kapso.client import KapsoClient
from ..log import log_event
from ..models import Customer, SetupLink, Source
from ..onboarding import setup_links
from ..onboarding.connect_urls import set_visit_cookie
from ..utils import to_local_time
from . import questions
from .base import PageView
from .language import chosen_language
from .rate_limit import seconds_until_allowed

NO_ANSWER_NOW = (
    exceptions.RenewalInProgress,
    exceptions.TryLater,
    KapsoUnavailable,
    KapsoRateLimited,
)
"""What helps against these errors is to try again in a minute."""


class ConnectingView(PageView):
    """Base class of the views whose POST leads a customer to Kapso's hosted page."""

    def lead_to_kapso(
        self,
        customer: Customer,
        find_setup_link: Callable[..., SetupLink],
        connected_url: str,
        **context: Any,
    ) -> HttpResponse:
        """Return the page that leads to the link that ``find_setup_link(may_ask=…, client=…)``
        returns; or else a page that says why not, and what to do, with ``context``. Redirect to
        ``connected_url`` if the customer has connected a number already."""
        context["customer"] = customer
        if seconds := seconds_until_allowed(customer):
            return self.busy_page(seconds, **context)
        try:
            with questions.noting_slowness():
                may_ask = not questions.is_slow()
                client = KapsoClient.from_settings(budget=get_conf().request_budget)
                link = find_setup_link(may_ask=may_ask, client=client)
                if language := chosen_language(self.request):
                    setup_links.set_language(link, language, client if may_ask else None)
        except (exceptions.InvitationWithdrawn, Customer.DoesNotExist):
            return self.page("withdrawn", status=410)
        except exceptions.AlreadyConnected:
            return HttpResponseRedirect(connected_url, status=303)
        except Exception as error:
            return self.unavailable_page(error, **context)
        setup_links.record_opened(link, source=Source.REDIRECT)
        # Not a redirect: under the Content-Security-Policy ``form-action 'self'``, browsers follow
        # no form to another site.
        response = self.page("leaving", customer=customer, link=link, url=link.url)
        response.headers["Refresh"] = f"0; url={link.url}"
        set_visit_cookie(self.request, response, customer)
        return response

    def busy_page(self, seconds: int, *, customer: Customer, **context: Any) -> HttpResponse:
        """Return the page that asks the customer to wait for ``seconds``."""
        log_event("page.rate_limited", customer_id=customer.pk)
        response = self.page(
            "busy",
            status=429,
            minutes=math.ceil(seconds / 60),
            retry_at=to_local_time(timezone.now() + timedelta(seconds=seconds)),
            customer=customer,
            **context,
        )
        response.headers["Retry-After"] = str(seconds)
        return response

    def unavailable_page(
        self, error: Exception, *, customer: Customer, **context: Any
    ) -> HttpResponse:
        """Log ``error`` and return the page for it: the customer can try again in a minute, or can
        do nothing about wrong settings or a refusal of Kapso's."""
        is_refused = not isinstance(error, NO_ANSWER_NOW)
        if is_refused:
            name = type(error).__name__
            log_event("page.unavailable", customer_id=customer.pk, error=name, exc_info=True)
        else:
            text = str(error) or repr(error)
            log_event("page.try_again_later", customer_id=customer.pk, error=text)
        response = self.page(
            "unavailable", status=503, is_refused=is_refused, customer=customer, **context
        )
        if not is_refused:
            response.headers["Retry-After"] = "60"
        return response
