"""Giving a customer one of the site's own objects as its owner."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from django import forms
from django.apps import apps
from django.contrib.admin import ModelAdmin
from django.contrib.admin.sites import AdminSite
from django.core.exceptions import ValidationError
from django.db.models import Model
from django.http import HttpRequest, HttpResponse
from django.utils.text import capfirst

from ..exceptions import OwnerTaken
from ..models import Customer
from ..onboarding import assign_owner
from ..translation import gettext as _
from ..translation import gettext_lazy
from .customer_actions import ConfirmView
from .mixin import SetupLinkAdminMixin

MAX_OWNERS_SHOWN = 20
"""How many objects of each model a search shows."""

NOBODY = "-"


def owner_admins(site: AdminSite, request: HttpRequest) -> dict[str, ModelAdmin[Any]]:
    """Return the ModelAdmins in ``site`` with SetupLinkAdminMixin whose objects the user may view,
    by the names of their models."""
    found = {}
    for model in apps.get_models():
        if model is not Customer and site.is_registered(model):
            model_admin = site.get_model_admin(model)
            is_owner = isinstance(model_admin, SetupLinkAdminMixin)
            if is_owner and model_admin.has_view_permission(request):
                found[model._meta.label_lower] = model_admin
    return found


class OwnerForm(forms.Form):
    """``owner`` is the name of a model and a key, or NOBODY; cleaned, the object or None."""

    owner = forms.CharField(
        error_messages={"required": gettext_lazy("Choose one.")},
    )

    def __init__(self, data: Any, *, request: HttpRequest, site: AdminSite) -> None:
        super().__init__(data)
        self.request = request
        self.admins = owner_admins(site, request)

    def clean_owner(self) -> Model | None:
        label, _colon, key = self.cleaned_data["owner"].partition(":")
        if label == NOBODY:
            return None
        model_admin = self.admins.get(label)
        if model_admin is not None:
            owner: Model | None = model_admin.get_object(self.request, key)
            if owner is not None and model_admin.has_view_permission(self.request, owner):
                return owner
        raise ValidationError(_("This object does not exist any more, or you may not view it."))


class OwnerView(ConfirmView):
    """Finds objects of the site's by a text, as their own lists do, and makes the chosen one the
    owner of the customer."""

    permissions = ["kapso_connect.change_customer"]
    template_name = "admin/kapso_connect/customer_actions/owner.html"
    title = gettext_lazy("Choose the owner of the customer")

    def find_obstacle(self) -> str:
        if self.customer.erased_at is not None:
            return _("The personal data of this customer were erased.")
        return ""

    @property
    def retry_url(self) -> str:
        return self.request.get_full_path() if self.request.method == "POST" else self.back_url

    def get_form(self, form_class: Any = None) -> OwnerForm:
        data = self.request.POST if self.request.method == "POST" else None
        return OwnerForm(data, request=self.request, site=self.model_admin.admin_site)

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        context = super().get_context_data(**kwargs)
        # PostgreSQL refuses NUL.
        query = self.request.GET.get("q", "").replace("\0", "").strip()
        admins = context["form"].admins
        found = [row for one in admins.values() for row in self.find_owners(one, query)]
        has_owner = self.customer.owner_type_id is not None
        models = [one.opts.verbose_name_plural for one in admins.values()]
        more = {"query": query, "found": found, "has_owner": has_owner, "models": models}
        return {**context, **more, "nobody": NOBODY, "owner": self.customer.get_owner()}

    def find_owners(self, model_admin: Any, query: str) -> Iterator[dict[str, Any]]:
        """Yield the objects that ``query`` finds, and whose customer each has, if any."""
        if not query:
            return
        rows = model_admin.get_queryset(self.request)
        found: list[Any] = []
        if model_admin.get_search_fields(self.request):
            results, may_repeat = model_admin.get_search_results(self.request, rows, query)
            found = list((results.distinct() if may_repeat else results)[:MAX_OWNERS_SHOWN])
        by_key = model_admin.get_object(self.request, query)
        if by_key is not None and by_key not in found:
            found.insert(0, by_key)
        found = [obj for obj in found if model_admin.has_view_permission(self.request, obj)]
        customers = model_admin.find_customers(found)
        for obj in found:
            yield {
                "value": f"{model_admin.opts.label_lower}:{obj.pk}",
                "kind": capfirst(model_admin.opts.verbose_name),
                "object": obj,
                "customer": customers.get(obj.pk),
            }

    def act(self, form: forms.Form) -> HttpResponse:
        owner = form.cleaned_data["owner"]
        try:
            assign_owner(self.customer, owner, actor=self.actor)
        except OwnerTaken:
            self.customer.refresh_from_db()  # the version in the form that is shown again
            form.add_error("owner", _("Another customer belongs to this object already."))
            return self.form_invalid(form)
        if owner is None:
            return self.finish(
                _("Took the owner away."), _("The customer does not belong to anything any more.")
            )
        shown = {"owner": owner}
        return self.finish(
            _("Made %(owner)s the owner.") % shown, _("The customer belongs to %(owner)s.") % shown
        )
