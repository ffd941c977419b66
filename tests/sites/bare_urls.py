"""A site that forgot to mount kapso_connect."""

from __future__ import annotations

urlpatterns: list[object] = []
