"""Which modules a process loads when it starts."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests import ROOT

pytestmark = pytest.mark.slow

SETUP = "import django; django.setup()"
URLCONF = f"{SETUP}; from django.urls import get_resolver; get_resolver()._populate()"
CHECK = f"{URLCONF}; from django.core.management import call_command; call_command('check')"

WITH_URLCONF = ["requests", "urllib3", "drf_spectacular"]
"""Django REST framework imports the first two together with the URLconf, the REST API the third, if
they are installed."""

UNUSED = [
    "phonenumbers",
    "jsonschema",
    "prometheus_client",
    "segno",
    "kapso_connect.monitoring.doctor",
    "kapso_connect.monitoring.metrics",
    "kapso_connect.sandbox",
]


def loaded_modules(code: str) -> set[str]:
    """Run ``code`` in a new interpreter with the example's settings; return its modules."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; import sys; print(*sys.modules)"],
        env={
            **{k: v for k, v in os.environ.items() if not k.startswith(("COV_", "COVERAGE_"))},
            "DJANGO_SETTINGS_MODULE": "example_project.settings",
            "DATABASE_URL": "sqlite://:memory:",
        },
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("code", "unused"),
    [(SETUP, [*UNUSED, *WITH_URLCONF]), (URLCONF, UNUSED), (CHECK, UNUSED)],
    ids=["setup", "URLconf", "check"],
)
def test_unused_modules_are_not_loaded(code: str, unused: list[str]) -> None:
    modules = loaded_modules(code)
    assert "kapso_connect.admin.customers" in modules
    assert modules.intersection(unused) == set()
