"""Permissions: staff with this package's permissions, unless ``API_PERMISSIONS`` says otherwise."""

from __future__ import annotations

from typing import Any

from django.utils.module_loading import import_string
from rest_framework.permissions import BasePermission
from rest_framework.request import Request

from ..conf import get_conf


class StaffPermission(BasePermission):
    """Allows staff with the permissions in the view's ``required_permissions``, as in the admin."""

    def has_permission(self, request: Request, view: Any) -> bool:
        user: Any = request.user
        if not getattr(user, "is_staff", False) or not user.is_active:
            return False
        # An action without an entry is a method that is not allowed, which gets 405.
        required = view.required_permissions.get(view.action, ())
        return all(
            any(user.has_perm(f"kapso_connect.{name}") for name in alternatives)
            for alternatives in required
        )


def required(*names: str) -> tuple[tuple[str, ...], ...]:
    """Return the required permissions, each with its alternatives: a user who may change something
    may also view it."""
    return tuple(
        (name, name.replace("view_", "change_", 1)) if name.startswith("view_") else (name,)
        for name in names
    )


def configured_permission_classes() -> list[type[BasePermission]]:
    """Return the permission classes named in ``API_PERMISSIONS``, or the default."""
    return [import_string(path) for path in get_conf().api_permissions] or [StaffPermission]
