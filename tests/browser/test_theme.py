"""The admin's pages in a popular admin theme, in a process with that site's settings."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest

from .support import chromium


@pytest.mark.skipif(
    importlib.util.find_spec("jazzmin") is None, reason="django-jazzmin is not installed"
)
def test_every_page_is_whole_in_jazzmin() -> None:
    chromium()
    run = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider"),
            *("--ds", "tests.sites.theme_settings", "tests/browser/themed.py"),
        ],
        env={
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "tests.sites.theme_settings",
            "PYTEST_ADDOPTS": "",  # no coverage of this run alone
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-5000:]
