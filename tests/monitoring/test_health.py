"""The check for django-health-check."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.decorators import login_not_required
from django.db import OperationalError
from django.test import Client
from django.urls import path
from django.utils import timezone
from health_check.views import HealthCheckView

from kapso_connect.models import TimelineEvent, WebhookEvent
from kapso_connect.monitoring.health import KapsoConnect

from ..factories import make_customer

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.urls("tests.monitoring.test_health"),
]

CHECK = "kapso_connect.monitoring.health.KapsoConnect"
LENIENT = {"max_lag": timedelta(hours=2), "max_failed": 1}
urlpatterns = [
    path("health/", login_not_required(HealthCheckView.as_view(checks=[CHECK]))),
    path("lenient/", login_not_required(HealthCheckView.as_view(checks=[(CHECK, LENIENT)]))),
]


def ask(client: Client, page: str = "health") -> tuple[int, str]:
    response = client.get(f"/{page}/", {"format": "json"})
    ((check, word),) = response.json().items()
    assert check.startswith("KapsoConnect(")
    return response.status_code, word


def waiting(minutes: int) -> WebhookEvent:
    return WebhookEvent.objects.create(
        event="a.b",
        payload={},
        idempotency_key="k",
        next_attempt_at=timezone.now() - timedelta(minutes=minutes),
    )


def test_an_installation_where_all_is_well_is_healthy(client: Client) -> None:
    waiting(9)
    assert ask(client) == (200, "OK")


def test_a_webhook_that_waits_for_long_is_found(client: Client) -> None:
    waiting(11)
    status, word = ask(client)
    assert status == 500
    assert "The oldest of the webhooks has been due for 66" in word
    assert ask(client, "lenient") == (200, "OK")


def test_a_signal_that_waits_for_long_is_found(client: Client) -> None:
    TimelineEvent.objects.create(
        kind="connected",
        source="sync",
        customer=make_customer(),
        next_attempt_at=timezone.now() - timedelta(hours=1),
    )
    status, word = ask(client)
    assert status == 500
    assert "The oldest of the signals has been due for 36" in word


def test_what_failed_for_good_is_found(client: Client) -> None:
    WebhookEvent.objects.create(
        event="a.b", payload={}, idempotency_key="k", status="failed", next_attempt_at=None
    )
    assert ask(client, "lenient") == (200, "OK")
    TimelineEvent.objects.create(kind="connected", source="sync", next_attempt_at=None)
    message = "2 webhooks or signals failed for good: see the admin."
    assert ask(client) == (500, f"Unavailable: {message}")
    assert ask(client, "lenient")[0] == 500


@pytest.mark.parametrize("name", ["API_KEY", "WEBHOOK_SECRET", "PUBLIC_URL"])
def test_a_setting_that_is_missing_is_found(client: Client, settings: Any, name: str) -> None:
    settings.KAPSO_CONNECT = {**settings.KAPSO_CONNECT, name: ""}
    assert ask(client) == (500, f"Unavailable: KAPSO_CONNECT['{name}'] is not set.")


def test_settings_that_cannot_be_read_are_found(client: Client, settings: Any) -> None:
    settings.KAPSO_CONNECT = {"WEBHOOK_SECRET": {"hidden": "s3cret"}}
    status, word = ask(client)
    assert (status, "is not usable" in word, "s3cret" in word) == (500, True, False)


def test_a_database_that_is_away_is_found(client: Client, monkeypatch: Any) -> None:
    def away() -> None:
        raise OperationalError("password=s3cret")

    monkeypatch.setattr("kapso_connect.monitoring.queues.read", away)
    assert ask(client) == (500, "Unavailable: The database does not answer.")


def test_it_asks_little(django_assert_num_queries: Any) -> None:
    with django_assert_num_queries(6):
        assert KapsoConnect().problems() == []
