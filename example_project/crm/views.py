from __future__ import annotations

from django import forms
from django.contrib import messages
from django.contrib.admin.views.decorators import staff_member_required
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse_lazy
from django.views.decorators.cache import never_cache

from kapso_connect.branding import site_branding
from kapso_connect.models import Customer
from kapso_connect.onboarding.connect_urls import returning_customer
from kapso_connect.pages.self_service import WhatsAppView

from .models import Company

COMPANY_SESSION_KEY = "welcome_company"


@staff_member_required
def home(request: HttpRequest) -> HttpResponse:
    return render(request, "crm/home.html", {"companies": Company.objects.all()})


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
    return render(request, "crm/account.html", {"companies": companies})


class CompanyWhatsAppView(WhatsAppView):
    """What the buttons of that page do."""

    success_url = reverse_lazy("account")

    def get_customer(self) -> Customer:
        own = Company.objects.filter(members=self.request.user.pk)
        return get_object_or_404(own, pk=self.kwargs["pk"]).customer
