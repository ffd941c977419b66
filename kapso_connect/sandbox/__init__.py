"""A local stand-in for Kapso: ``python -m kapso_connect.sandbox``. It is not Kapso."""

from __future__ import annotations
