"""The REST API for a site's own users: each of them sees the customers whose e-mail is theirs."""

from __future__ import annotations

from typing import Any

from django.db.models import QuerySet
from django.urls import include, path
from rest_framework.request import Request

from kapso_connect.api.tenants import TenantMixin
from kapso_connect.api.urls import urls_for
from kapso_connect.models import Customer

from ..urls import urlpatterns as site


class OwnCustomers(TenantMixin):
    def get_customers(self, request: Request) -> QuerySet[Customer]:
        return Customer.objects.filter(email=request.user.email)


class MakingCustomers(OwnCustomers):
    sets_external_ids = True

    def create_customer(self, **values: Any) -> Customer:
        return Customer.objects.create(**{**values, "email": self.request.user.email})


class Forgetful(TenantMixin):
    """Says nothing of its customers."""


class CustomersOfTheTeam(TenantMixin):
    def get_customers(self, request: Request) -> QuerySet[Customer]:
        return Customer.objects.filter(email=f"{self.kwargs['team']}@example.com")


urlpatterns = [
    *site,
    path("tenant/", include(urls_for(OwnCustomers), namespace="tenant")),
    path("making/", include(urls_for(MakingCustomers), namespace="making")),
    path("of/<slug:team>/api/", include(urls_for(CustomersOfTheTeam), namespace="team")),
    path("forgetful/", include(urls_for(Forgetful), namespace="forgetful")),
]
