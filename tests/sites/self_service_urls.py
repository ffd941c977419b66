"""A site with pages of its own on which users connect WhatsApp: each the customer of a user, named
like the user."""

from __future__ import annotations

import ast
from typing import Any

from django.contrib.auth.decorators import login_required
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase, JsonResponse
from django.shortcuts import redirect
from django.template import engines
from django.urls import path

from kapso_connect.models import Customer
from kapso_connect.onboarding import create_setup_link
from kapso_connect.onboarding.connect_urls import returning_customer
from kapso_connect.pages.self_service import WhatsAppView

from ..docs.support import DOCS, blocks_of
from ..urls import urlpatterns as package_urls

TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Settings</title>
</head>
<body>
<main>
<h1>Settings of {{ user.username }}</h1>
<p>Back: {{ back }}</p>
{% load whatsapp %}
{% whatsapp_connection user url="whatsapp" popup=popup %}
</main>
</body>
</html>
"""


@login_required
def settings_page(request: HttpRequest) -> HttpResponse:
    if customer := returning_customer(request):
        request.session["back"] = customer.name
        return redirect("settings")
    context = {"back": request.session.get("back", "-"), "popup": "popup" in request.GET}
    return HttpResponse(engines["django"].from_string(TEMPLATE).render(context, request))


def _sdk_options() -> dict[str, Any]:
    (block,) = (one for one in POPUP_PAGE if one.language == "python")
    (assigned,) = (node for node in ast.parse(block.text).body if isinstance(node, ast.Assign))
    options: dict[str, Any] = ast.literal_eval(assigned.value)
    return options


POPUP_PAGE = blocks_of(DOCS / "how-to" / "popup.md")
SDK_OPTIONS = _sdk_options()


class OwnWhatsAppView(WhatsAppView):
    success_url = "/settings/"

    def get_customer(self) -> Customer:
        if self.request.user.get_username() == "stranger":
            raise Http404
        if self.request.user.get_username() == "refused":
            raise PermissionDenied
        return Customer.objects.for_owner(self.request.user)


class CoveredWhatsAppView(OwnWhatsAppView):
    """One whose ``dispatch`` has not the attributes that decorators have set."""

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        return super().dispatch(request, *args, **kwargs)


@transaction.non_atomic_requests
@login_required
def token(request: HttpRequest) -> JsonResponse:
    """That of the page "Connect in a window of its own", for the user's own customer."""
    customer = Customer.objects.for_owner(request.user)
    return JsonResponse({"token": create_setup_link(customer, options=SDK_OPTIONS).token})


urlpatterns = [
    *package_urls,
    path("settings/token/", token),
    path("settings/", settings_page, name="settings"),
    path("settings/whatsapp/", OwnWhatsAppView.as_view(), name="whatsapp"),
    path("settings/covered/", CoveredWhatsAppView.as_view(), name="covered"),
]
