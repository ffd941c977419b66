"""The pages customers come back to from Kapso's hosted page.

Nothing in a redirect is signed: its parameters are checked for form, looked up, and believed only
as far as the API confirms them. None of them is shown.
"""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

from django.contrib.auth.decorators import login_not_required
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import render
from django.utils import timezone
from django.utils.decorators import method_decorator
from django.views.decorators.cache import never_cache
from django.views.generic import View

from . import onboarding
from .failures import FAILURES, UNKNOWN
from .models import SetupLink
from .phones import pretty
from .transactions import outside_transactions

REFRESH_SECONDS = 5
REFRESH_FOR = timedelta(minutes=2)

_id = re.compile(r"[0-9A-Za-z_-]{1,64}")
_digits = re.compile(r"[0-9]{1,64}")
_code = re.compile(r"[0-9A-Za-z_-]{1,64}")
_phone = re.compile(r"[+ ]?[0-9 ()./-]{1,40}")


class BadParameters(Exception):
    """The page was asked for with parameters Kapso does not send."""


@method_decorator([outside_transactions, login_not_required, never_cache], name="dispatch")
class PageView(View):
    """Base of the customers' pages: looks up the setup link, and is friendly where it cannot."""

    http_method_names = ["get"]

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        try:
            response = super().dispatch(request, *args, **kwargs)
        except BadParameters:
            response = self.page("invalid", status=400)
        except SetupLink.DoesNotExist:
            response = self.page("invalid", status=404)
        # The address holds the ids of the customer's link and number.
        response.headers.setdefault("Referrer-Policy", "no-referrer")
        response.headers.setdefault("X-Robots-Tag", "noindex, nofollow")
        return response

    def page(self, name: str, *, status: int = 200, **context: Any) -> HttpResponse:
        return render(self.request, f"kapso_connect/{name}.html", context, status=status)

    def parameter(self, name: str, form: re.Pattern[str], *, required: bool = True) -> str:
        value = self.request.GET.get(name, "")
        if (value or required) and not form.fullmatch(value):
            raise BadParameters
        return value

    def setup_link(self) -> SetupLink:
        kapso_id = self.parameter("setup_link_id", _id)
        return SetupLink.objects.select_related("customer").get(kapso_id=kapso_id)


class SuccessView(PageView):
    """Where Kapso sends a customer who connected a number: ``success_redirect_url``."""

    def get(self, request: HttpRequest) -> HttpResponse:
        if self.parameter("status", _code, required=False) not in {"", "completed"}:
            raise BadParameters
        # Checked for form only: the API tells what they are.
        self.parameter("display_phone_number", _phone, required=False)
        self.parameter("business_account_id", _id, required=False)
        number = onboarding.Number(
            phone_number_id=self.parameter("phone_number_id", _digits),
            provisioned_phone_number_id=self.parameter(
                "provisioned_phone_number_id", _id, required=False
            ),
        )
        link = self.setup_link()
        try:
            connection = onboarding.claim(link, number)
        except onboarding.ClaimRefused:
            return self.page("invalid", status=404)
        if connection is None:
            return self.waiting(link)
        return self.page(
            "success",
            customer=link.customer,
            connection=connection,
            phone_number=pretty(connection.display_phone_number),
        )

    def waiting(self, link: SetupLink) -> HttpResponse:
        link.refresh_from_db(fields=["claimed_at"])
        first = link.claimed_at or timezone.now()
        is_patient = timezone.now() - first < REFRESH_FOR
        response = self.page("waiting", status=202, customer=link.customer, is_patient=is_patient)
        if is_patient:
            # Works with JavaScript off and under any Content-Security-Policy.
            response.headers["Refresh"] = str(REFRESH_SECONDS)
        return response


class FailedView(PageView):
    """Where Kapso sends a customer who could not connect: ``failure_redirect_url``."""

    def get(self, request: HttpRequest) -> HttpResponse:
        code = self.parameter("error_code", _code)
        link = self.setup_link()
        onboarding.record_failure(link, code)
        link.refresh_from_db()
        failure = FAILURES.get(code, UNKNOWN)
        can_retry = failure.can_retry and link.is_alive
        return self.page(
            "failed",
            customer=link.customer,
            failure=failure,
            retry_url=link.url if can_retry else "",
        )
