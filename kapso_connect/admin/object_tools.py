"""The buttons at the top of the page of a setup link or connection (Django's "object tools")."""

from __future__ import annotations

from typing import Any

from django.contrib.admin.exceptions import NotRegistered
from django.http import HttpRequest, HttpResponse

from ..models import Customer
from .base import ModelT, ReadOnlyAdmin
from .panel import StatusPanel


class ObjectToolsAdmin(ReadOnlyAdmin[ModelT]):
    """Tells the template of a setup link or connection whether its customer has pages to link."""

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> HttpResponse:
        obj = context.get("original")
        context["has_customer_pages"] = obj is not None and self._has_pages(request, obj.customer)
        return super().render_change_form(request, context, *args, **kwargs)

    def _has_pages(self, request: HttpRequest, customer: Customer) -> bool:
        try:
            customer_admin = self.admin_site.get_model_admin(Customer)
        except NotRegistered:
            return False
        return isinstance(
            customer_admin, StatusPanel
        ) and customer_admin.has_view_or_change_permission(request, customer)
