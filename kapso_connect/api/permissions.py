"""Who may do what: staff with this package's permissions, unless the site says otherwise."""

from __future__ import annotations

from typing import Any

from django.utils.module_loading import import_string
from rest_framework.permissions import BasePermission
from rest_framework.request import Request

from ..conf import get_conf


class StaffPermission(BasePermission):
    """Staff who have the permissions that the view names for its action, as in the admin."""

    def has_permission(self, request: Request, view: Any) -> bool:
        user: Any = request.user
        if not getattr(user, "is_staff", False) or not user.is_active:
            return False
        # What is not named (a method that is not allowed) does nothing.
        needed = view.needs.get(view.action, ())
        return all(any(user.has_perm(f"kapso_connect.{name}") for name in need) for need in needed)


def needing(*names: str) -> tuple[tuple[str, ...], ...]:
    """Return the permissions ``names``; who may change something may also view it."""
    return tuple(
        (name, name.replace("view_", "change_", 1)) if name.startswith("view_") else (name,)
        for name in names
    )


def configured() -> list[type[BasePermission]]:
    """Return the permission classes that ``API_PERMISSIONS`` names, or the default."""
    return [import_string(path) for path in get_conf().api_permissions] or [StaffPermission]
