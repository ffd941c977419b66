"""What the helpers for customers and for webhooks share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from django.test import TestCase
from django.utils.crypto import get_random_string

from ..db import alias


@contextmanager
def run_on_commit_callbacks() -> Iterator[None]:
    """Run the block's ``on_commit`` callbacks at its end, also in a test that never commits."""
    with TestCase.captureOnCommitCallbacks(using=alias(), execute=True):
        yield


def random_meta_id() -> str:
    """Return an id as Meta gives them: 15 digits."""
    return "1" + get_random_string(14, "0123456789")
