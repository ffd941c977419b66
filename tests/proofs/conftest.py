from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from .support import DATABASES, new_database


@pytest.fixture(scope="session", params=DATABASES)
def proof_database(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Iterator[str]:
    """The URL of a database with the proof site's tables, one of each kind that is reachable."""
    with new_database(request.param, tmp_path_factory.mktemp(request.param)) as url:
        yield url
