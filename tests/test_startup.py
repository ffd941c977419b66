"""What a process loads as it starts: no more than it takes to know what there is."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests import ROOT

SETUP = "import django; django.setup()"
URLCONF = f"{SETUP}; from django.urls import get_resolver; get_resolver()._populate()"
CHECK = f"{URLCONF}; from django.core.management import call_command; call_command('check')"

SPEAKS_WITH_KAPSO = ["kapso_connect.kapso.client", "requests", "urllib3"]
OPTIONAL = ["drf_spectacular", "jsonschema", "prometheus_client", "segno"]
PAGES = [
    "kapso_connect.admin.forms",
    "kapso_connect.admin.overview",
    "kapso_connect.monitoring.reports",
]
ELSEWHERE = [
    "kapso_connect.monitoring.doctor",
    "kapso_connect.monitoring.metrics",
    "kapso_connect.sandbox",
]
FOR_SOME = ["phonenumbers", *OPTIONAL, *PAGES, *ELSEWHERE]


def loaded(code: str) -> set[str]:
    """Return what a fresh interpreter with the example's settings has loaded after ``code``."""
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
    [
        pytest.param(
            SETUP,
            [*FOR_SOME, *SPEAKS_WITH_KAPSO, "kapso_connect.onboarding", "kapso_connect.tasks"],
            id="setup",
        ),
        pytest.param(URLCONF, FOR_SOME, id="URLconf"),
        pytest.param(CHECK, FOR_SOME, id="check"),
    ],
)
def test_starting_loads_nothing_for_the_few_who_use_it(code: str, unused: list[str]) -> None:
    modules = loaded(code)
    assert "kapso_connect.admin.customers" in modules
    assert modules.intersection(unused) == set()
