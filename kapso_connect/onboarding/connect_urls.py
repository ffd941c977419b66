"""Signed URLs and cookies that identify a customer.

A customer's connect URL stays the same when its setup link is renewed. All of these values are
signed. They become invalid when the customer's ``connect_key`` changes, except the token in a
failure URL: Kapso gets it before the customer has a key.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode, urlsplit, urlunsplit

from django.core.signing import BadSignature, Signer, TimestampSigner
from django.http import HttpRequest, HttpResponseBase

from ..conf import get_conf
from ..exceptions import InvalidOptions
from ..log import log_event
from ..models import Connection, Customer, SetupLink
from ..utils import reverse_path, time_since, validate_same_site_url
from .arguments import check_customer

VISIT_COOKIE = "kapso_connect_token"
"""The cookie of a browser in which a customer's connect URL was opened. Django's error reports hide
the value of a cookie with "token" in its name."""

VISIT_SECONDS = 2 * 60 * 60
"""How long a browser in which a connect URL was opened counts as the customer's."""

CUSTOMER_PARAMETER = "kapso_connect"
"""The query parameter that identifies the customer to the page after the success page."""

RETURN_SECONDS = 60 * 60
"""How long that parameter is valid."""

SEPARATOR = "."
"""It occurs in no key or signature, and programs that find URLs in a text keep it."""


# Made when they are used: SECRET_KEY may be missing while an image is built, and may be rotated.
def _url_signer() -> Signer:
    return Signer(salt="kapso_connect.connect", sep=SEPARATOR)


def _visit_signer() -> TimestampSigner:
    return TimestampSigner(salt="kapso_connect.visit", sep=SEPARATOR)


def _failure_signer() -> Signer:
    return Signer(salt="kapso_connect.failure", sep=SEPARATOR)


def _return_signer() -> TimestampSigner:
    return TimestampSigner(salt="kapso_connect.return", sep=SEPARATOR)


def connect_url(customer: Customer) -> str:
    """Return the URL to give to ``customer``: it leads to a setup link that can be used now.

    Return "" if the customer was not invited yet, or the invitation was withdrawn. Whoever has
    the URL can connect a number for the customer.
    """
    check_customer(customer, "connect_url", is_saved=False)
    path = connect_path(customer)
    return path and get_conf().public_url + path


def connect_path(customer: Customer) -> str:
    """Return the path of ``connect_url``, without this site's origin."""
    check_customer(customer, "connect_path", is_saved=False)
    return _path("connect", customer)


def connect_qr_path(customer: Customer) -> str:
    """Return the path of a picture with ``connect_url`` as a QR code; "" as for ``connect_url``."""
    return _path("connect_qr", customer)


def _path(name: str, customer: Customer) -> str:
    if not customer.connect_key:
        return ""
    token = _url_signer().sign(customer.connect_key)
    return reverse_path(f"kapso_connect:{name}", args=[token])


def customer_from_token(token: str) -> Customer | None:
    """Return the customer whose connect URL has this ``token``; None if it was withdrawn.

    Raise BadSignature for a token that this site never issued.
    """
    return _customer_by_key(_url_signer().unsign(token))


def set_visit_cookie(request: HttpRequest, response: HttpResponseBase, customer: Customer) -> None:
    """Set the cookie by which ``has_visit_cookie`` recognizes the browser of ``customer``."""
    if customer.connect_key:
        response.set_cookie(
            VISIT_COOKIE,
            _visit_signer().sign(customer.connect_key),
            max_age=VISIT_SECONDS,
            secure=request.is_secure(),
            httponly=True,
            # Not Strict: the customer comes back from Kapso's page.
            samesite="Lax",
        )


def has_visit_cookie(request: HttpRequest, customer: Customer) -> bool:
    """Return whether the connect URL of ``customer`` was opened in this browser within
    ``VISIT_SECONDS``."""
    try:
        key = _visit_signer().unsign(request.COOKIES.get(VISIT_COOKIE, ""), max_age=VISIT_SECONDS)
    except BadSignature:
        return False
    return key == customer.connect_key


def failure_token(customer: Customer) -> str:
    """Return the part of a link's ``failure_redirect_url`` by which ``has_failure_token``
    recognizes a browser that comes back from Kapso without a cookie."""
    return _failure_signer().sign(str(customer.pk))


def has_failure_token(token: str, link: SetupLink) -> bool:
    """Return whether ``token`` is that of the link's customer, and the button of the invitation led
    to ``link`` within ``VISIT_SECONDS``."""
    try:
        pk = _failure_signer().unsign(token)
    except BadSignature:
        return False
    since = link.last_opened_at
    is_recent = since is not None and time_since(since).total_seconds() < VISIT_SECONDS
    return is_recent and pk == str(link.customer_id)


def find_next_url(connection: Connection, link: SetupLink | None) -> str:
    """Return the page of this site that its customer continues to after connecting, or "".

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


def with_customer_token(url: str, customer: Customer) -> str:
    """Add the parameter that ``returning_customer`` reads to ``url``, a page of this site."""
    if not customer.connect_key:
        return url
    parts = urlsplit(url)
    added = urlencode({CUSTOMER_PARAMETER: _return_signer().sign(customer.connect_key)})
    query = f"{parts.query}&{added}" if parts.query else added
    return urlunsplit((parts.scheme, parts.netloc, parts.path, query, parts.fragment))


def returning_customer(request: HttpRequest) -> Customer | None:
    """Return the customer who comes from the success page to this site's own next page.

    Return None if the URL has no valid parameter, or one older than ``RETURN_SECONDS``: then let
    the customer log in, for example. URLs end up in logs and histories, so store the result in the
    session, and redirect to the URL without the parameter.
    """
    try:
        token = request.GET.get(CUSTOMER_PARAMETER, "")
        key = _return_signer().unsign(token, max_age=RETURN_SECONDS)
    except BadSignature:
        return None
    return _customer_by_key(key)


def _customer_by_key(key: str) -> Customer | None:
    return Customer.objects.select_related("latest_setup_link").filter(connect_key=key).first()
