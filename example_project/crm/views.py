from __future__ import annotations

from typing import Any

from django import forms
from django.conf import settings
from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.contrib.auth.forms import AuthenticationForm
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse_lazy
from django.views.decorators.cache import never_cache

from example_project.demo.data import MEMBER, USERNAME
from kapso_connect.branding import site_branding
from kapso_connect.models import Customer
from kapso_connect.onboarding.connect_urls import returning_customer
from kapso_connect.pages.self_service import WhatsAppView
from kapso_connect.phone_numbers import format_phone_number

from . import start_page
from .models import Company, ReceivedMessage, WelcomeMessage

SHOWN_MESSAGES = 5
COMPANY_SESSION_KEY = "welcome_company"


class LogInForm(AuthenticationForm):
    """For a page with more than the form: a phone must not scroll to its first field."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["username"].widget.attrs.pop("autofocus", None)


@never_cache
def home(request: HttpRequest) -> HttpResponse:
    """What this site is, for everyone; for staff, how far each company has come."""
    context = {
        **site_branding(),
        # Only ``manage.py demo`` sets a password that everyone may see.
        "demo_password": settings.DEMO_PASSWORD,
        "demo_user": USERNAME,
        "demo_member": MEMBER,
        "sandbox_url": settings.DEMO_PASSWORD and settings.KAPSO_CONNECT["API_BASE_URL"],
    }
    if not request.user.is_staff:
        form = None if request.user.is_authenticated else LogInForm(request)
        return render(request, "crm/landing.html", {**context, "form": form})
    numbers = dict(Company.objects.values_list("whatsapp_phone_number_id", "name"))
    received = ReceivedMessage.objects.all()[:SHOWN_MESSAGES]
    context |= {
        "groups": start_page.groups(),
        "sent": WelcomeMessage.objects.select_related("company")[:SHOWN_MESSAGES],
        "received": [
            (row, format_phone_number(row.sender), numbers.get(row.phone_number_id, ""))
            for row in received
        ],
    }
    return render(request, "crm/home.html", context)


class WelcomeForm(forms.ModelForm):
    class Meta:
        model = Company
        fields = ["opening_hours"]


@never_cache
def welcome(request: HttpRequest) -> HttpResponse:
    """The step after connecting: this site asks the company for its opening hours."""
    customer = returning_customer(request)
    owner = customer.get_owner() if customer else None
    if isinstance(owner, Company):
        # Move the identity from the URL, where it could be seen and shared, into the session.
        request.session.cycle_key()
        request.session[COMPANY_SESSION_KEY] = owner.pk
        return redirect("welcome")
    company = Company.objects.filter(pk=request.session.get(COMPANY_SESSION_KEY)).first()
    if company is None:
        return render(request, "crm/welcome.html", site_branding(), status=403)
    form = WelcomeForm(request.POST or None, instance=company)
    is_done = request.method == "POST" and form.is_valid()
    if is_done:
        form.save()
    context = {**site_branding(), "company": company, "form": form, "is_done": is_done}
    return render(request, "crm/welcome.html", context)


@login_required
def account(request: HttpRequest) -> HttpResponse:
    """The page on which the members of a company connect WhatsApp themselves."""
    customer = returning_customer(request)
    if customer is not None:
        messages.success(request, f"Thank you! {customer} has connected WhatsApp.")
        return redirect("account")  # to a URL without the token
    companies = Company.objects.filter(members=request.user.pk)
    return render(request, "crm/account.html", {**site_branding(), "companies": companies})


class CompanyWhatsAppView(WhatsAppView):
    """What the buttons of that page do."""

    success_url = reverse_lazy("account")

    def get_customer(self) -> Customer:
        own = Company.objects.filter(members=self.request.user.pk)
        return get_object_or_404(own, pk=self.kwargs["pk"]).customer
