"""The API for a site's own users, limited to their own customers."""

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

    Pass a subclass to ``urls.urls_for``. Objects of other customers are answered 404. The users
    need no Django permissions; ``permission_classes`` decides who they are.
    """

    permission_classes = (IsAuthenticated,)
    schema_name = "kapso_tenant"
    shows_details = False
    sets_external_ids = False

    def get_customers(self, request: Request) -> QuerySet[Customer]:
        """Return the customers that this request may read and change."""
        raise NotImplementedError("Return the customers that this request may read and change.")

    def limit(self, rows: QuerySet[Any], to: str) -> QuerySet[Any]:
        # A subquery keeps joins, annotations and the order of the site's query out of this one.
        return rows.filter(**{f"{to}__in": self.get_customers(self.request).order_by()})

    def create_customer(self, **values: Any) -> Customer:
        """Create a customer that ``get_customers`` returns; by default this is not permitted."""
        raise PermissionDenied
