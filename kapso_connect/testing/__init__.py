"""For a site's own tests: customers who connect, signed webhooks, and a running sandbox.

``Sandbox``, ``sign`` and ``webhook_headers`` need no Django. The others are imported on first use,
and need your settings and a database. The fixtures for pytest-django are in
``kapso_connect.testing.plugin``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..sandbox.signing import sign, webhook_headers
from .sandbox import Sandbox, SandboxError

if TYPE_CHECKING:
    from .customers import (
        connect_customer,
        disconnect_customer,
        fail_setup,
        invite_customer,
        reconnect_customer,
        update_account,
    )
    from .webhooks import post_webhook, webhook_payload

__all__ = [
    "Sandbox",
    "SandboxError",
    "connect_customer",
    "disconnect_customer",
    "fail_setup",
    "invite_customer",
    "post_webhook",
    "reconnect_customer",
    "sign",
    "update_account",
    "webhook_headers",
    "webhook_payload",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        module = ".webhooks" if "webhook" in name else ".customers"
        return getattr(import_module(module, __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
