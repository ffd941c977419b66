"""Fixtures for pytest-django: ``pytest_plugins = ["kapso_connect.testing.plugin"]`` in the
``conftest.py`` beside your pytest settings.

It has no entry point, so other projects' tests do not load it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from .sandbox import Sandbox


@pytest.fixture(scope="session")
def kapso_sandbox_process() -> Iterator[Sandbox]:
    """One sandbox process for the whole run; tests use it through ``kapso_sandbox``."""
    with Sandbox() as sandbox:
        yield sandbox


@pytest.fixture
def kapso_sandbox(kapso_sandbox_process: Sandbox, settings: Any) -> Sandbox:
    """An empty sandbox; ``KAPSO_CONNECT`` has its API key, its webhook secret and its URL.

    ``PUBLIC_URL`` is the test client's. Webhooks wait until ``deliver_to(client)`` posts them.
    """
    from ..utils import reverse_path

    sandbox = kapso_sandbox_process
    sandbox.reset()
    public_url = "https://testserver"
    settings.KAPSO_CONNECT = {
        **getattr(settings, "KAPSO_CONNECT", {}),
        "API_KEY": sandbox.api_key,
        "API_BASE_URL": sandbox.url,
        "WEBHOOK_SECRET": sandbox.webhook_secret,
        "PUBLIC_URL": public_url,
    }
    sandbox.hold_webhooks(public_url + reverse_path("kapso_connect:webhook"))
    return sandbox


@pytest.fixture
def kapso_live_sandbox(kapso_sandbox: Sandbox, live_server: Any, settings: Any) -> Sandbox:
    """``kapso_sandbox`` and pytest-django's ``live_server``, each with the other's URL: webhooks
    arrive without ``deliver_to``, and before the browser is redirected back."""
    from .webhooks import webhook_path

    settings.KAPSO_CONNECT = {**settings.KAPSO_CONNECT, "PUBLIC_URL": live_server.url}
    kapso_sandbox.set_webhook(live_server.url + webhook_path())
    # A test database in memory has one connection, for one request at a time.
    kapso_sandbox.faults(drop=False, webhook_first=True)
    return kapso_sandbox
