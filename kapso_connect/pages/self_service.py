"""Self-service: the view behind the buttons of ``{% whatsapp_connection %}``, to be subclassed.

A logged-in user of the site's connects, reconnects and disconnects the numbers of a customer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from django.contrib.auth.base_user import AbstractBaseUser
from django.contrib.auth.mixins import AccessMixin
from django.core.exceptions import ImproperlyConfigured, SuspiciousOperation
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase, HttpResponseRedirect

from ..conf import get_conf
from ..db import non_atomic
from ..exceptions import NumberMoved
from ..kapso.client import KapsoClient
from ..models import Connection, Customer
from ..onboarding import renewal
from ..onboarding.connect_urls import connect_path, set_visit_cookie
from ..onboarding.removal import disconnect_number
from .connecting import ConnectingView
from .language import activate_language
from .rate_limit import seconds_until_allowed

__all__ = ["WhatsAppView"]


class WhatsAppView(AccessMixin, ConnectingView):
    """Connect, reconnect and disconnect the WhatsApp numbers of a customer, for a logged-in user.

    Subclass it, define ``get_customer`` and set ``success_url``. The buttons of the template tag
    ``{% whatsapp_connection %}`` post to it. A user who is not logged in is led to the login page,
    and a GET to ``success_url``.
    """

    http_method_names = ["get", "head", "post", "options"]

    success_url: str = ""
    """The page of the site that the user comes from and ends in; see ``get_success_url``."""

    @classmethod
    def as_view(cls, **initkwargs: Any) -> Callable[..., HttpResponseBase]:
        # Not on ``dispatch``, which the mixins of a subclass may cover.
        return non_atomic(super().as_view(**initkwargs))

    def get_customer(self) -> Customer:
        """Return the customer for which ``self.request.user`` may connect numbers, such as
        ``Customer.objects.for_owner(company)``. Raise Http404 or PermissionDenied if there is
        none."""
        raise NotImplementedError(f"{type(self).__name__} must define get_customer().")

    def get_success_url(self) -> str:
        """Return the page of the site that the user ends in, by default ``success_url``: a path, or
        a URL that begins with ``PUBLIC_URL``."""
        if not self.success_url:
            raise ImproperlyConfigured(
                f"{type(self).__name__} needs success_url, or get_success_url()."
            )
        return str(self.success_url)  # it may be lazy

    def get_setup_link_options(self) -> Mapping[str, Any]:
        """Return Kapso's options for a new setup link, which override ``SETUP_LINK_DEFAULTS``; by
        default none. A link that the customer can use already keeps its own."""
        return {}

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        # Outside of what the customers' pages catch: who may not do this gets the site's own pages.
        if not request.user.is_authenticated:
            return self.handle_no_permission()
        self.customer = self.get_customer()
        self.back_url = self.get_success_url()
        return super().dispatch(request, *args, **kwargs)

    def get(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        """Redirect to the page with the buttons: the login page leads here."""
        return HttpResponseRedirect(self.back_url)

    def post(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        activate_language(request, self.customer, self.customer.latest_setup_link)
        match request.POST.get("action"):
            case "connect":
                return self.connect()
            case "reconnect":
                return self.connect(reconnect=self.get_connection())
            case "disconnect":
                return self.disconnect(self.get_connection())
        raise SuspiciousOperation

    def get_connection(self) -> Connection:
        """Return the number that the form names; raise Http404 if it is not the customer's."""
        key = self.request.POST.get("connection", "")
        numbers = Connection.objects.filter(customer=self.customer)
        try:
            connection = numbers.filter(pk=key).first()
        except ValueError:  # no number, or one with thousands of digits
            connection = None
        if connection is None:
            raise Http404
        connection.customer = self.customer
        return connection

    def connect(self, reconnect: Connection | None = None) -> HttpResponse:
        """Lead the user to Kapso's page, to connect any number, or ``reconnect`` again."""
        customer = self.customer
        latest = customer.latest_setup_link
        path = connect_path(customer)
        if reconnect is None and latest is not None and latest.unconfirmed_since and path:
            # The page that waits until Kapso has confirmed the number.
            response = HttpResponseRedirect(path, status=303)
            set_visit_cookie(self.request, response, customer)
            return response
        find_setup_link = partial(
            renewal.self_service_link,
            customer,
            reconnect=reconnect,
            options=self.get_setup_link_options(),
            next_url=self.back_url,
            created_by=self.request.user,
        )
        return self.lead_to_kapso(
            customer,
            find_setup_link,
            self.back_url,
            link=latest,
            connect_path="",
            back_url=self.back_url,
        )

    def disconnect(self, connection: Connection) -> HttpResponse:
        """Remove the number from Kapso, and go back to the page with the buttons."""
        customer, user = self.customer, self.request.user
        if seconds := seconds_until_allowed(customer):
            return self.busy_page(seconds, customer=customer, back_url=self.back_url)
        try:
            client = KapsoClient.from_settings(budget=get_conf().request_budget)
            actor = user if isinstance(user, AbstractBaseUser) else None
            disconnect_number(connection, actor=actor, client=client)
        except NumberMoved:
            pass  # Not the customer's any more: the page shows that.
        except Exception as error:
            return self.unavailable_page(error, customer=customer, back_url=self.back_url)
        return HttpResponseRedirect(self.back_url, status=303)
