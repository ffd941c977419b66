from __future__ import annotations

import pytest
from django.core.checks import run_checks
from django.test import override_settings

# From Django 6.1 on some checks look at the database.
pytestmark = pytest.mark.django_db

GOOD = {"API_KEY": "k", "WEBHOOK_SECRET": "s", "PUBLIC_URL": "https://site.example"}


def ids(*, deploy: bool = False) -> set[str]:
    messages = run_checks(include_deployment_checks=deploy)
    return {m.id for m in messages if m.id and m.id.startswith("kapso_connect.")}


@pytest.mark.parametrize("deploy", [False, True])
def test_a_complete_installation_is_clean(deploy: bool) -> None:
    with override_settings(KAPSO_CONNECT=GOOD):
        assert ids(deploy=deploy) == set()


def themed(**colors: str) -> dict[str, object]:
    return {**GOOD, "SETUP_LINK_DEFAULTS": {"theme_config": colors}}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"API_KEY": 1}, {"kapso_connect.E001"}),
        ({**GOOD, "API_KEY": ""}, {"kapso_connect.W001"}),
        ({**GOOD, "WEBHOOK_SECRET": [""]}, {"kapso_connect.W002"}),
        ({**GOOD, "PUBLIC_URL": ""}, {"kapso_connect.W003"}),
        ({**GOOD, "PUBLIC_URL": "site.example"}, {"kapso_connect.E002"}),
        ({**GOOD, "SETUP_LINK_DEFAULTS": {"colour": "red"}}, {"kapso_connect.E003"}),
        ({**GOOD, "CONTACT_URL": "javascript:alert(1)"}, {"kapso_connect.E001"}),
        ({**GOOD, "NEXT_URL": "https://elsewhere.example/"}, {"kapso_connect.E004"}),
        ({**GOOD, "NEXT_URL": "//elsewhere.example/"}, {"kapso_connect.E004"}),
        ({**GOOD, "LOGO_URL": "https://elsewhere.example/logo.png"}, {"kapso_connect.E005"}),
        ({**GOOD, "LOGO_URL": "//elsewhere.example/logo.png"}, {"kapso_connect.E005"}),
        (themed(text_color="#999999"), {"kapso_connect.W007"}),
        (
            themed(primary_color="#888888", primary_foreground_color="#ffffff"),
            {"kapso_connect.W007"},
        ),
        (themed(primary_color="#888888"), set()),
        (
            {
                **GOOD,
                "LOGO_URL": f"{GOOD['PUBLIC_URL']}/media/logo.png",
                "NEXT_URL": "/welcome/",
                "CONTACT_URL": "mailto:help@example.com",
            },
            set(),
        ),
        ({**GOOD, "PUBLIC_URL": "http://site.example"}, {"kapso_connect.W005"}),
        ({**GOOD, "API_BASE_URL": "http://127.0.0.1:8900"}, {"kapso_connect.W006"}),
    ],
)
def test_what_is_wrong_is_found(settings: dict[str, object], expected: set[str]) -> None:
    with override_settings(KAPSO_CONNECT=settings):
        assert ids(deploy=True) == expected


@override_settings(ROOT_URLCONF="tests.bare_urls", KAPSO_CONNECT=GOOD)
def test_urls_that_are_not_mounted_are_found() -> None:
    from kapso_connect.checks import check_urls

    assert [m.id for m in check_urls()] == ["kapso_connect.W004"]


def test_a_worker_without_urls_is_not_told_to_mount_any(settings) -> None:
    from kapso_connect.checks import check_urls

    del settings.ROOT_URLCONF
    assert check_urls() == []
