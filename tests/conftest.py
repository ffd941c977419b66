from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from kapso_connect.testing import Sandbox

from .proof_support import KINDS, new_database

WEBHOOK_SECRET = "test-webhook-secret"
API_KEY = "test-api-key"


@pytest.fixture(scope="session")
def sandbox_process() -> Iterator[Sandbox]:
    """One sandbox process for the whole run; tests take it through ``sandbox``."""
    with Sandbox(api_key=API_KEY, webhook_secret=WEBHOOK_SECRET, retry_scale=0.01) as sandbox:
        yield sandbox


@pytest.fixture
def sandbox(sandbox_process: Sandbox, settings: Any) -> Sandbox:
    """A sandbox that knows nothing yet, and the site's settings pointing at it."""
    sandbox_process.reset()
    settings.KAPSO_CONNECT = {**settings.KAPSO_CONNECT, "API_BASE_URL": sandbox_process.url}
    return sandbox_process


@pytest.fixture(scope="session", params=KINDS)
def proof_database(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Iterator[str]:
    """The URL of a database with the proof site's tables, one of each kind that is reachable."""
    with new_database(request.param, tmp_path_factory.mktemp(request.param)) as url:
        yield url
