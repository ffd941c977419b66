"""Kapso's Platform API. It knows no model of this package."""

from __future__ import annotations

from .client import KapsoClient

__all__ = ["KapsoClient"]
