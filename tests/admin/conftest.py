from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.test import Client

from kapso_connect.testing import Sandbox

from ..factories import make_user
from .world import World


@pytest.fixture
def staff(client: Client) -> Callable[..., Client]:
    """Log a member of staff with these permissions in, and return the client."""

    def log_in(*permissions: str) -> Client:
        client.force_login(make_user("staff", *permissions))
        return client

    return log_in


@pytest.fixture
def world(sandbox: Sandbox, client: Client, configure: Any) -> World:
    world = World(sandbox, client)
    world.allow_all()
    configure(API_BUDGET=2.0)
    return world
