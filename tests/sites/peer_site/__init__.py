"""A site with this package and its peers in it."""

from __future__ import annotations

WEBHOOK_SECRET = "benchmark-webhook-secret"
