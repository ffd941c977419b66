"""The admin's pages in popular admin themes, each in a process with such a site's settings."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest

from .support import chromium

THEMES = {
    "jazzmin": "jazzmin",
    "unfold": "unfold",
    "unfold-base": "unfold",  # with this package's admin registered as the theme wants it
}


@pytest.mark.parametrize("theme", THEMES)
def test_every_page_is_whole(theme: str) -> None:
    if importlib.util.find_spec(THEMES[theme]) is None:
        pytest.skip(f"django-{THEMES[theme]} is not installed")
    chromium()
    run = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider"),
            # Unfold does not know Django 6.1's argument yet.
            *("-W", "ignore:Overriding get_action_choices"),
            *("--ds", "tests.sites.theme_settings", "tests/browser/themed.py"),
        ],
        env={
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "tests.sites.theme_settings",
            "KAPSO_TEST_THEME": theme,
            "PYTEST_ADDOPTS": "",  # no coverage of this run alone
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-5000:]
