"""For a host's own tests: customers who connect, signed webhooks, and a running sandbox.

``Sandbox``, ``sign`` and ``webhook_headers`` need no Django; the others are loaded when they are
first asked for, and need your settings and a database. The fixtures for pytest-django are in
``kapso_connect.testing.plugin``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..sandbox.signing import sign
from .sandbox import Sandbox, SandboxError, webhook_headers

if TYPE_CHECKING:
    from .customers import (
        connect_customer,
        disconnect_customer,
        fail_setup,
        invite_customer,
        post_webhook,
        reconnect_customer,
        update_account,
        webhook_payload,
    )

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
        return getattr(import_module(".customers", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
