"""The check for django-health-check."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.decorators import login_not_required
from django.db import OperationalError, connection
from django.test import Client
from django.urls import path
from django.utils import timezone
from health_check.views import HealthCheckView

from kapso_connect.models import TimelineEvent, WebhookEvent
from kapso_connect.monitoring.health import KapsoConnect

from ..factories import make_customer, read_only_database

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


def get_health(client: Client, page: str = "health") -> tuple[int, str]:
    response = client.get(f"/{page}/", {"format": "json"})
    ((check, message),) = response.json().items()
    assert check.startswith("KapsoConnect(")
    return response.status_code, message


def make_waiting_webhook(minutes: int) -> WebhookEvent:
    return WebhookEvent.objects.create(
        event="a.b",
        payload={},
        idempotency_key="k",
        next_attempt_at=timezone.now() - timedelta(minutes=minutes),
    )


def test_installation_without_problems_is_healthy(client: Client) -> None:
    make_waiting_webhook(9)
    assert get_health(client) == (200, "OK")


def test_overdue_webhook_is_unhealthy(client: Client) -> None:
    make_waiting_webhook(11)
    status, message = get_health(client)
    assert status == 500
    assert "The oldest of the webhooks has been due for 66" in message
    assert get_health(client, "lenient") == (200, "OK")


def test_overdue_signal_is_unhealthy(client: Client) -> None:
    TimelineEvent.objects.create(
        kind="connected",
        source="sync",
        customer=make_customer(),
        next_attempt_at=timezone.now() - timedelta(hours=1),
    )
    status, message = get_health(client)
    assert status == 500
    assert "The oldest of the signals has been due for 36" in message


def test_permanent_failures_are_unhealthy(client: Client) -> None:
    WebhookEvent.objects.create(
        event="a.b", payload={}, idempotency_key="k", status="failed", next_attempt_at=None
    )
    assert get_health(client, "lenient") == (200, "OK")
    TimelineEvent.objects.create(kind="connected", source="sync", next_attempt_at=None)
    message = "2 webhooks or signals have failed permanently: see the admin."
    assert get_health(client) == (500, f"Unavailable: {message}")
    assert get_health(client, "lenient")[0] == 500
    for model in (WebhookEvent, TimelineEvent):
        model.objects.failed().dismiss(by=None, because="A test.")
    assert get_health(client) == (200, "OK")


@pytest.mark.parametrize("name", ["API_KEY", "WEBHOOK_SECRET", "PUBLIC_URL"])
def test_missing_setting_is_unhealthy(client: Client, configure: Any, name: str) -> None:
    configure(**{name: ""})
    assert get_health(client) == (500, f"Unavailable: KAPSO_CONNECT['{name}'] is not set.")


def test_invalid_settings_are_unhealthy(client: Client, settings: Any) -> None:
    settings.KAPSO_CONNECT = {"WEBHOOK_SECRET": {"hidden": "s3cret"}}
    status, message = get_health(client)
    assert (status, "is invalid" in message, "s3cret" in message) == (500, True, False)


def test_unavailable_database_is_unhealthy(client: Client) -> None:
    def unavailable(*args: Any) -> None:
        raise OperationalError("password=s3cret")

    with connection.execute_wrapper(unavailable):
        assert get_health(client) == (500, "Unavailable: The database does not answer.")


def test_read_only_database_is_unhealthy(client: Client) -> None:
    message = "The database accepts no writes, so webhooks are refused."
    with read_only_database():
        assert get_health(client) == (500, f"Unavailable: {message}")
    assert get_health(client) == (200, "OK")


def test_number_of_queries(django_assert_max_num_queries: Any) -> None:
    with django_assert_max_num_queries(5):
        assert KapsoConnect().problems() == []
