"""Which of Django's permissions the user of a request has."""

from __future__ import annotations

from typing import Any

from django.contrib.auth import get_permission_codename
from django.http import HttpRequest


def has_model_permission(request: HttpRequest, action: str, opts: Any) -> bool:
    """True if the user has Django's permission for ``action`` ("view", "change", …) on a model."""
    permission = f"{opts.app_label}.{get_permission_codename(action, opts)}"
    return request.user.has_perm(permission)


def can_view(request: HttpRequest, opts: Any) -> bool:
    """True if the user may view the rows of a model, as Django's admin decides it."""
    return has_model_permission(request, "view", opts) or has_model_permission(
        request, "change", opts
    )


def can_create_setup_links(request: HttpRequest) -> bool:
    return request.user.has_perm("kapso_connect.create_setup_link")
