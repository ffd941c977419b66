"""Kapso's Platform API. It does not use this package's models."""

from __future__ import annotations

from .client import KapsoClient

__all__ = ["KapsoClient"]
