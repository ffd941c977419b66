from __future__ import annotations

import pytest

from .support import Caller, staff


@pytest.fixture
def caller(db: None) -> Caller:
    """Staff with every permission."""
    return staff()
