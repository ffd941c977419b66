"""Figures for Prometheus: counted by an observer, read from the database, and nobody's burden."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.db import OperationalError
from django.test import Client
from django.urls import path
from django.utils import timezone
from prometheus_client import REGISTRY, CollectorRegistry, generate_latest

from kapso_connect import signals
from kapso_connect.kapso.client import KapsoClient
from kapso_connect.models import TimelineEvent, WebhookEvent
from kapso_connect.monitoring import metrics
from kapso_connect.onboarding import setup_links
from kapso_connect.testing import Sandbox
from tests import ROOT

from ..factories import make_customer, make_link, new_number_id, payload_for, post

pytestmark = pytest.mark.django_db(transaction=True)

urlpatterns = [path("metrics/", metrics.metrics)]


@pytest.fixture(autouse=True)
def _counted(configure: Any) -> None:
    observers = ["kapso_connect.monitoring.metrics.observe"]
    configure(OBSERVERS=observers)


class Counted:
    """By how much the figures have grown since this was made."""

    def __init__(self) -> None:
        self.before = self.now()

    def now(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        return {
            (sample.name.removeprefix("kapso_connect_"), frozenset(sample.labels.items())): (
                sample.value
            )
            for family in REGISTRY.collect()
            if family.name.startswith("kapso_connect_")
            for sample in family.samples
        }

    def __call__(self, name: str, **labels: str) -> float:
        key = name, frozenset(labels.items())
        return self.now().get(key, 0.0) - self.before.get(key, 0.0)


def broken(**kwargs: Any) -> None:
    raise RuntimeError


def test_webhooks_and_what_follows_from_them_are_counted() -> None:
    counted = Counted()
    payload = payload_for(make_customer(), new_number_id())
    post(payload, key="once")
    post(payload, key="once")
    post({}, secret="wrong")
    assert counted("webhooks_total", outcome="processed") == 1
    assert counted("webhooks_total", outcome="duplicate") == 1
    assert counted("webhooks_total", outcome="refused") == 1
    assert counted("webhook_seconds_count", status="200") == 2
    assert counted("webhook_seconds_count", status="401") == 1
    assert 0 < counted("webhook_seconds_sum", status="200") < 10
    assert counted("changes_total", event="timeline.connected", source="webhook") == 1


def test_a_delivery_that_waits_on_is_not_counted_anew() -> None:
    counted = Counted()
    metrics.observe("webhook.stored", {"outcome": "pending"})
    metrics.observe("webhook.retried", {"outcome": "pending"})
    metrics.observe("webhook.retried", {"outcome": "processed"})
    assert counted("webhooks_total", outcome="pending") == 1
    assert counted("webhooks_total", outcome="processed") == 1


def test_failures_are_counted_by_their_source() -> None:
    counted = Counted()
    setup_links.record_failure(make_link(), "link_expired")
    assert counted("changes_total", event="timeline.setup_failed", source="redirect") == 1


def test_signals_are_counted(configure: Any) -> None:
    counted = Counted()
    signals.whatsapp_connected.connect(broken)
    try:
        for limit in (10, 1):
            configure(RETRY_LIMIT=limit)
            post(payload_for(make_customer(), new_number_id()))
    finally:
        signals.whatsapp_connected.disconnect(broken)
    assert counted("signals_total", outcome="put_off") == 1
    assert counted("signals_total", outcome="given_up") == 1
    assert counted("signal_seconds_count") == 2


def test_questions_to_the_api_are_counted(sandbox: Sandbox, configure: Any) -> None:
    counted = Counted()
    with KapsoClient.from_settings() as client:
        client.find_customer("nobody")
    configure(API_KEY="")
    with KapsoClient.from_settings() as client, pytest.raises(Exception, match="no API key"):
        client.find_customer("nobody")
    labels = {"operation": "find customer"}
    assert counted("api_seconds_count", outcome="ok", status="200", **labels) == 1
    assert counted("api_seconds_sum", outcome="ok", status="200", **labels) > 0
    failed = {"outcome": "KapsoCredentialsError", "status": "none"}
    assert counted("api_seconds_count", **failed, **labels) == 1


# The backlog


def backlog() -> dict[str, float]:
    registry = CollectorRegistry()
    registry.register(metrics.Backlog())
    return {
        f"{sample.name.removeprefix('kapso_connect_')} {sample.labels['queue']}": sample.value
        for family in registry.collect()
        for sample in family.samples
    }


def inbox(key: str, status: str, due: timedelta | None) -> None:
    moment = None if due is None else timezone.now() + due
    WebhookEvent.objects.create(
        event="a.b", payload={}, idempotency_key=key, status=status, next_attempt_at=moment
    )


def test_what_waits_and_what_failed_is_read_from_the_database(
    django_assert_num_queries: Any,
) -> None:
    inbox("1", "pending", -timedelta(minutes=5))
    inbox("2", "pending", timedelta(hours=1))
    inbox("3", "failed", None)
    inbox("4", "processed", None)
    for due, delivered in ((-60, None), (None, None), (None, timezone.now())):
        moment = due and timezone.now() + timedelta(seconds=due)
        TimelineEvent.objects.create(
            kind="connected", source="sync", next_attempt_at=moment, delivered_at=delivered
        )
    with django_assert_num_queries(6):
        figures = backlog()
    lags = figures.pop("lag_seconds webhooks"), figures.pop("lag_seconds signals")
    assert figures == {
        "waiting webhooks": 2,
        "failed webhooks": 1,
        "waiting signals": 1,
        "failed signals": 1,
    }
    assert [round(lag, -1) for lag in lags] == [300, 60]


def test_what_is_due_later_is_not_late() -> None:
    inbox("1", "pending", timedelta(hours=1))
    figures = backlog()
    assert (figures["waiting webhooks"], figures["lag_seconds webhooks"]) == (1, 0)


def test_a_database_that_is_away_costs_the_other_figures_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def away() -> None:
        raise OperationalError

    monkeypatch.setattr("kapso_connect.monitoring.queues.read", away)
    assert backlog() == {}


@pytest.mark.django_db(databases=[])
def test_a_registry_takes_the_backlog_without_a_database() -> None:
    registry = CollectorRegistry(auto_describe=True)
    registry.register(metrics.Backlog())
    with pytest.raises(ValueError, match="Duplicated"):
        registry.register(metrics.Backlog())


# The page


@pytest.mark.urls("tests.monitoring.test_metrics")
def test_the_page_shows_everything_to_a_scraper(client: Client) -> None:
    inbox("3", "failed", None)
    post_seconds = {"status": 200, "seconds": 0.01}
    metrics.observe("webhook.answered", post_seconds)
    response = client.get("/metrics/")
    assert response.status_code == 200
    assert response["Content-Type"].startswith("text/plain")
    assert "no-store" in response["Cache-Control"]
    page = response.content.decode()
    assert 'kapso_connect_failed{queue="webhooks"} 1.0\n' in page
    assert re.search(r'kapso_connect_webhook_seconds_count\{status="200"\} [1-9]', page)
    names = re.findall("^# TYPE ([a-z_]+)", page, re.MULTILINE)
    assert len(names) == len(set(names))
    openmetrics = client.get("/metrics/", headers={"Accept": "application/openmetrics-text"})
    assert openmetrics["Content-Type"].startswith("application/openmetrics-text")
    assert openmetrics.content.endswith(b"# EOF\n")
    assert client.post("/metrics/").status_code == 405


PROCESS = """
import django
django.setup()
from django.conf import settings
from kapso_connect.log import note
note("webhook.refused", status=401, reason="x")
"""

PAGE = """
import django
django.setup()
from django.core.management import call_command
from django.test import RequestFactory
from kapso_connect.monitoring.metrics import metrics
call_command("migrate", verbosity=0)
print(metrics(RequestFactory().get("/metrics/")).content.decode())
"""

SETTINGS = """
from tests.settings import *
KAPSO_CONNECT = {**KAPSO_CONNECT, "OBSERVERS": ["kapso_connect.monitoring.metrics.observe"]}
"""


def run(code: str, folder: Path, **more: str) -> str:
    (folder / "counted_settings.py").write_text(SETTINGS)
    env = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "counted_settings",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)]),
        "KAPSO_TEST_DATABASE_URL": "sqlite://:memory:",
        **more,
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_several_processes_are_added_up(tmp_path: Path) -> None:
    figures = tmp_path / "figures"
    figures.mkdir()
    for _ in range(2):
        run(PROCESS, tmp_path, PROMETHEUS_MULTIPROC_DIR=str(figures))
    page = run(PAGE, tmp_path, PROMETHEUS_MULTIPROC_DIR=str(figures))
    assert 'kapso_connect_webhooks_total{outcome="refused"} 2.0\n' in page
    assert 'kapso_connect_failed{queue="webhooks"} 0.0\n' in page


WITHOUT = """
import sys
for name in ("prometheus_client", "health_check"):
    sys.modules[name] = None
import django
django.setup()
from django.core.checks import run_checks
from django.conf import settings
from kapso_connect.log import note
note("webhook.refused", status=401, reason="x")
print("kapso_connect.monitoring.metrics" in sys.modules)
print([m.id for m in run_checks() if m.id.startswith("kapso_connect")])
"""


def test_without_the_library_nothing_breaks(tmp_path: Path) -> None:
    assert run(WITHOUT, tmp_path).splitlines()[0] == "False"


IMPORTED = """
import sys
import django
django.setup()
from django.urls import reverse
from kapso_connect.log import note
note("webhook.refused", status=401, reason="x")
print(reverse("kapso_connect:webhook"))
print([name for name in ("prometheus_client", "health_check") if name in sys.modules])
"""


def test_nothing_is_imported_that_nobody_asked_for(tmp_path: Path) -> None:
    output = run(IMPORTED, tmp_path, DJANGO_SETTINGS_MODULE="tests.settings")
    assert output.splitlines() == ["/whatsapp/webhook/", "[]"]


def test_the_text_of_the_default_registry_is_valid() -> None:
    assert b"kapso_connect_webhooks_total" in generate_latest(REGISTRY)
