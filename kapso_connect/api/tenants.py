"""The API for a site's own users, each of them to their own customers and no others'."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from rest_framework.permissions import IsAuthenticated
from rest_framework.request import Request

from ..models import Customer

if TYPE_CHECKING:
    from .views import Api as _Base
else:
    _Base = object


class TenantMixin(_Base):
    """Limits every view to the customers that ``get_customers`` returns.

    Give a subclass to ``urls.urls_for``. What belongs to others is answered as what does not exist.
    Its users need no permissions of Django's; ``permission_classes`` says who they are.
    """

    permission_classes = (IsAuthenticated,)
    schema_name = "whatsapp_tenant"
    shows_details = False
    sets_external_ids = False

    def get_customers(self, request: Request) -> QuerySet[Customer]:
        """Return the customers that this request may see and act for."""
        raise NotImplementedError("Say which customers this request may see.")

    def limit(self, rows: QuerySet[Any], to: str) -> QuerySet[Any]:
        # In a subquery, where no join, annotation or order of the site's own gets in the way.
        return rows.filter(**{f"{to}__in": self.get_customers(self.request).order_by()})

    def create_customer(self, **values: Any) -> Customer:
        """Make a customer that ``get_customers`` will return; by default tenants make none."""
        raise PermissionDenied
