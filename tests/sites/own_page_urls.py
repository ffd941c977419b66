"""A site with a page of its own: that of "Collect more information after connecting"."""

from __future__ import annotations

from django import forms
from django.contrib.auth.decorators import login_not_required
from django.http import HttpRequest, HttpResponse
from django.template import engines
from django.urls import path

from kapso_connect.branding import site_branding

from ..docs.support import DOCS, blocks_of
from ..urls import urlpatterns as package_urls

TEMPLATE = next(
    block.text
    for block in blocks_of(DOCS / "how-to" / "wizard.md")
    if block.path == "crm/templates/crm/welcome.html"
)


class HoursForm(forms.Form):
    opening_hours = forms.CharField(help_text="Such as 9 to 5.")
    day = forms.ChoiceField(choices=[("1", "Monday"), ("2", "Tuesday")])
    remarks = forms.CharField(widget=forms.Textarea, required=False)
    agrees = forms.BooleanField(label="I agree", required=False)


@login_not_required
def welcome(request: HttpRequest) -> HttpResponse:
    form = HoursForm(request.POST or None)
    context = {**site_branding(), "form": form, "company": {"legal_name": "Ada's Bakery"}}
    return HttpResponse(engines["django"].from_string(TEMPLATE).render(context, request))


urlpatterns = [*package_urls, path("welcome/", welcome)]
