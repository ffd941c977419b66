from __future__ import annotations

from django.db.models import QuerySet
from rest_framework.request import Request

from kapso_connect.api.tenants import TenantMixin
from kapso_connect.models import Customer

from .models import Company


class CompanyApi(TenantMixin):
    """The REST API for members of companies: they see only their own company."""

    def get_customers(self, request: Request) -> QuerySet[Customer]:
        return Customer.objects.for_owners(Company.objects.filter(members=request.user.pk))
