"""The buttons at the top of the page of a setup link or connection (Django's "object tools")."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from django.contrib.admin.exceptions import NotRegistered
from django.http import HttpRequest, HttpResponse

from ..models import Customer
from .base import ModelT, ReadOnlyAdmin
from .customer_actions import NUMBER_PAGES, POST_BUTTONS, CustomerActions


class ObjectToolsAdmin(ReadOnlyAdmin[ModelT]):
    """Links the page of a setup link or connection to its customer's action pages."""

    change_form_template = "admin/kapso_connect/object_tools.html"

    def get_object_tools(self, obj: ModelT) -> Mapping[str, object]:
        """Return the buttons of ``obj``: the label for each of ``PAGE_PERMISSIONS`` to show."""
        raise NotImplementedError

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> HttpResponse:
        obj = context.get("original")
        if obj is not None:
            context["customer_tools"] = list(self._object_tools(request, obj))
        return super().render_change_form(request, context, *args, **kwargs)

    def _object_tools(self, request: HttpRequest, obj: Any) -> Iterator[dict[str, Any]]:
        try:
            customer_admin = self.admin_site.get_model_admin(Customer)
        except NotRegistered:
            return
        customer = obj.customer
        if not isinstance(
            customer_admin, CustomerActions
        ) or not customer_admin.has_view_or_change_permission(request, customer):
            return
        for name, label in self.get_object_tools(obj).items():
            if customer_admin.has_action_permission(request, name):
                number = [obj.pk] if name in NUMBER_PAGES else []
                url = customer_admin.view_url(f"whatsapp_{name}", customer.pk, *number)
                yield {"label": label, "url": url, "is_post": name in POST_BUTTONS}
