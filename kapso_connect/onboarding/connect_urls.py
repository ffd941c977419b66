"""Who somebody is, by what they bring: the customer's own address, which outlives any one of
Kapso's links, and what a browser that came by it is given.

All of it is signed, and ends with the customer's ``connect_key``.
"""

from __future__ import annotations

from urllib.parse import urlencode, urlsplit

from django.core.signing import BadSignature, Signer, TimestampSigner
from django.http import HttpRequest, HttpResponseBase
from django.urls import reverse

from ..conf import get_conf
from ..models import Customer

NAME = "kapso_connect"
"""Of the cookie, and of the parameter of the page that the success page leads on to."""

VISIT_SECONDS = 2 * 60 * 60
"""How long a browser that followed the customer's address counts as the customer's."""

RETURN_SECONDS = 60 * 60
"""How long the address of the page after the success page says whose it is."""

# Not among the characters of a key or a signature, and left alone by what makes links of text.
_signer = Signer(salt="kapso_connect.connect", sep=".")
_visits = TimestampSigner(salt="kapso_connect.visit", sep=".")
_returns = TimestampSigner(salt="kapso_connect.return", sep=".")


def connect_url(customer: Customer) -> str:
    """Return the address that is given to ``customer``: it leads to the setup link of the day.

    "" where there is none: nobody was invited yet, or the invitation was withdrawn. Whoever has the
    address can connect a number for the customer.
    """
    path = connect_path(customer)
    return path and get_conf().public_url + path


def connect_path(customer: Customer) -> str:
    """Return ``connect_url`` without this site's origin."""
    if not customer.connect_key:
        return ""
    return reverse("kapso_connect:connect", args=[_signer.sign(customer.connect_key)])


def customer_from_token(token: str) -> Customer | None:
    """Return the customer whose address ends in ``token``; None where it was withdrawn.

    Raises BadSignature where it was never anybody's.
    """
    return _customer_with(_signer.unsign(token))


def set_visit_cookie(request: HttpRequest, response: HttpResponseBase, customer: Customer) -> None:
    """Give the browser a cookie that says, for ``VISIT_SECONDS``, that ``customer`` is using it."""
    if customer.connect_key:
        response.set_cookie(
            NAME,
            _visits.sign(customer.connect_key),
            max_age=VISIT_SECONDS,
            secure=request.is_secure(),
            httponly=True,
            # Not Strict: the customer comes back from Kapso's page.
            samesite="Lax",
        )


def has_visit_cookie(request: HttpRequest, customer: Customer) -> bool:
    """True where ``customer``'s own address was followed in this browser a short while ago."""
    try:
        key = _visits.unsign(request.COOKIES.get(NAME, ""), max_age=VISIT_SECONDS)
    except BadSignature:
        return False
    return key == customer.connect_key


def with_customer_token(url: str, customer: Customer) -> str:
    """Return ``url``, a page of this site, with the parameter that ``returning_customer`` reads."""
    if not customer.connect_key:
        return url
    parts = urlsplit(url)
    added = urlencode({NAME: _returns.sign(customer.connect_key)})
    query = f"{parts.query}&{added}" if parts.query else added
    return parts._replace(query=query).geturl()


def returning_customer(request: HttpRequest) -> Customer | None:
    """Return the customer who comes from the success page, for this site's own next page.

    None where the address says nothing that can be believed, or says it for more than
    ``RETURN_SECONDS``: ask who it is, then. It is in the address, so keep what follows from it in
    the session, and redirect to an address without it.
    """
    try:
        key = _returns.unsign(request.GET.get(NAME, ""), max_age=RETURN_SECONDS)
    except BadSignature:
        return None
    return _customer_with(key)


def _customer_with(key: str) -> Customer | None:
    return Customer.objects.filter(connect_key=key).first()
