"""``{% load whatsapp %}``: the state of a customer's WhatsApp, on a page of the site's own."""

from __future__ import annotations

from types import NoneType
from typing import Any

from django import template
from django.contrib.auth.models import AnonymousUser
from django.db.models import Model
from django.shortcuts import resolve_url

from ..models import Customer
from ..pages.self_service_state import self_service_state
from ..utils import static_url

register = template.Library()


@register.inclusion_tag("kapso_connect/connection.html")
def whatsapp_connection(owner: Model | None, url: str, popup: bool = False) -> dict[str, Any]:
    """Show whether ``owner`` has connected WhatsApp, and the buttons to change that.

    ``owner`` is an object of the site's that owns a customer, a Customer, or None; a visitor who is
    not logged in counts as None. ``url`` is the path, or the name of the URL pattern, of the site's
    subclass of ``WhatsAppView``. With ``popup=True``, Kapso's page opens in a window of its own.
    Nothing is created or asked.
    """
    if isinstance(owner, (AnonymousUser, NoneType)):  # or a lazy object that is one of them
        owner = None
    elif not isinstance(owner, Model):
        raise template.TemplateSyntaxError(
            f"whatsapp_connection: the owner is {owner!r}. It has to be an object of a model that "
            "owns a customer, a Customer, or None. Is the variable's name right?"
        )
    if not url:
        raise template.TemplateSyntaxError(
            "whatsapp_connection: url is empty. It has to be the path, or the name of the URL "
            "pattern, of this site's subclass of kapso_connect.pages.self_service.WhatsAppView."
        )
    if owner is None or isinstance(owner, Customer):
        customer = owner
    else:
        customer = Customer.objects.find_for_owner(owner)
    return {
        **self_service_state(customer),
        "url": resolve_url(url),
        "popup": popup,
        "styles_url": static_url("kapso_connect/connection.css"),
        "script_url": static_url("kapso_connect/popup.js") if popup else "",
    }
