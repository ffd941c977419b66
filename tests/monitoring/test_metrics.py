"""Metrics for Prometheus: counted by an observer, or read from the database."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.db import OperationalError, connection
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
def _observed(configure: Any) -> None:
    configure(OBSERVERS=["kapso_connect.monitoring.metrics.observe"])


class Increase:
    """Return by how much a metric has grown since this was created."""

    def __init__(self) -> None:
        self.before = self.read()

    def read(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
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
        return self.read().get(key, 0.0) - self.before.get(key, 0.0)


def raise_error(**kwargs: Any) -> None:
    raise RuntimeError


def test_webhooks_and_their_changes_are_counted() -> None:
    increase = Increase()
    payload = payload_for(make_customer(), new_number_id())
    post(payload, key="once")
    post(payload, key="once")
    post({}, secret="wrong")
    assert increase("webhooks_total", outcome="processed") == 1
    assert increase("webhooks_total", outcome="duplicate") == 1
    assert increase("webhooks_total", outcome="refused") == 1
    assert increase("webhook_seconds_count", status="200") == 2
    assert increase("webhook_seconds_count", status="401") == 1
    assert 0 < increase("webhook_seconds_sum", status="200") < 10
    assert increase("changes_total", event="timeline.connected", source="webhook") == 1


def test_webhook_that_stays_pending_is_counted_once() -> None:
    increase = Increase()
    metrics.observe("webhook.stored", {"outcome": "pending"})
    metrics.observe("webhook.retried", {"outcome": "pending"})
    metrics.observe("webhook.retried", {"outcome": "processed"})
    assert increase("webhooks_total", outcome="pending") == 1
    assert increase("webhooks_total", outcome="processed") == 1


def test_failures_are_counted_by_their_source() -> None:
    increase = Increase()
    setup_links.record_failure(make_link(), "link_expired")
    assert increase("changes_total", event="timeline.setup_failed", source="redirect") == 1


def test_signals_are_counted(configure: Any) -> None:
    increase = Increase()
    signals.whatsapp_connected.connect(raise_error)
    try:
        for limit in (10, 1):
            configure(RETRY_LIMIT=limit)
            post(payload_for(make_customer(), new_number_id()))
    finally:
        signals.whatsapp_connected.disconnect(raise_error)
    assert increase("signals_total", outcome="retry_scheduled") == 1
    assert increase("signals_total", outcome="failed") == 1
    assert increase("signal_seconds_count", outcome="retry_scheduled") == 1


def test_api_requests_are_counted(sandbox: Sandbox, configure: Any) -> None:
    increase = Increase()
    with KapsoClient.from_settings() as client:
        client.find_customer("nobody")
    configure(API_KEY="")
    with KapsoClient.from_settings() as client, pytest.raises(Exception, match="no API key"):
        client.find_customer("nobody")
    labels = {"operation": "find customer"}
    assert increase("api_seconds_count", outcome="ok", status="200", **labels) == 1
    assert increase("api_seconds_sum", outcome="ok", status="200", **labels) > 0
    failed = {"outcome": "KapsoCredentialsError", "status": "none"}
    assert increase("api_seconds_count", **failed, **labels) == 1


# The queues


def read_queue_metrics() -> dict[str, float]:
    registry = CollectorRegistry()
    registry.register(metrics.QueueCollector())
    return {
        f"{sample.name.removeprefix('kapso_connect_')} {sample.labels['queue']}": sample.value
        for family in registry.collect()
        for sample in family.samples
    }


def make_webhook(key: str, status: str, due: timedelta | None) -> None:
    moment = None if due is None else timezone.now() + due
    WebhookEvent.objects.create(
        event="a.b", payload={}, idempotency_key=key, status=status, next_attempt_at=moment
    )


def test_queues_are_read_from_the_database(
    django_assert_max_num_queries: Any,
) -> None:
    make_webhook("1", "pending", -timedelta(minutes=5))
    make_webhook("2", "pending", timedelta(hours=1))
    make_webhook("3", "failed", None)
    make_webhook("4", "processed", None)
    make_webhook("5", "failed", None)
    WebhookEvent.objects.filter(idempotency_key="5").dismiss(by=None, because="A test.")
    for due, delivered in ((-60, None), (None, None), (None, timezone.now())):
        moment = due and timezone.now() + timedelta(seconds=due)
        TimelineEvent.objects.create(
            kind="connected", source="sync", next_attempt_at=moment, delivered_at=delivered
        )
    with django_assert_max_num_queries(6):
        values = read_queue_metrics()
    lags = values.pop("lag_seconds webhooks"), values.pop("lag_seconds signals")
    assert values == {
        "waiting webhooks": 2,
        "failed webhooks": 1,
        "waiting signals": 1,
        "failed signals": 1,
    }
    assert [round(lag, -1) for lag in lags] == [300, 60]


def test_work_due_later_has_no_lag() -> None:
    make_webhook("1", "pending", timedelta(hours=1))
    values = read_queue_metrics()
    assert (values["waiting webhooks"], values["lag_seconds webhooks"]) == (1, 0)


@pytest.mark.urls("tests.monitoring.test_metrics")
def test_unavailable_database_does_not_affect_other_metrics(
    client: Client,
) -> None:
    def unavailable(*args: Any) -> None:
        raise OperationalError

    with connection.execute_wrapper(unavailable):
        assert read_queue_metrics() == {}
        page = client.get("/metrics/").content.decode()
    assert "kapso_connect_webhooks_total" in page
    assert "kapso_connect_waiting" not in page


@pytest.mark.django_db(databases=[])
def test_collector_is_registered_without_a_database() -> None:
    registry = CollectorRegistry(auto_describe=True)
    registry.register(metrics.QueueCollector())
    with pytest.raises(ValueError, match="Duplicated"):
        registry.register(metrics.QueueCollector())


# The page


@pytest.mark.urls("tests.monitoring.test_metrics")
def test_page_shows_all_metrics(client: Client) -> None:
    make_webhook("3", "failed", None)
    metrics.observe("webhook.answered", {"status": 200, "seconds": 0.01})
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
from kapso_connect.log import log_event
log_event("webhook.refused", status=401, reason="x")
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


def run_python(code: str, folder: Path, **more: str) -> str:
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


@pytest.mark.slow
def test_counts_of_several_processes_are_added_up(tmp_path: Path) -> None:
    folder = tmp_path / "prometheus"
    folder.mkdir()
    for _ in range(2):
        run_python(PROCESS, tmp_path, PROMETHEUS_MULTIPROC_DIR=str(folder))
    page = run_python(PAGE, tmp_path, PROMETHEUS_MULTIPROC_DIR=str(folder))
    assert 'kapso_connect_webhooks_total{outcome="refused"} 2.0\n' in page
    assert 'kapso_connect_failed{queue="webhooks"} 0.0\n' in page


@pytest.mark.slow
def test_commands_leave_no_files_behind(tmp_path: Path) -> None:
    folder = tmp_path / "prometheus"
    folder.mkdir()
    command = """
from django.core.management import execute_from_command_line
execute_from_command_line(["manage.py", "migrate", "-v0"])
execute_from_command_line(["manage.py", "kapso_prune"])
"""
    assert "kapso_prune: deleted" in run_python(
        command, tmp_path, PROMETHEUS_MULTIPROC_DIR=str(folder)
    )
    assert list(folder.iterdir()) == []


WITHOUT = """
import sys
for name in ("prometheus_client", "health_check"):
    sys.modules[name] = None
import django
django.setup()
from django.core.checks import run_checks
from django.conf import settings
from kapso_connect.log import log_event
log_event("webhook.refused", status=401, reason="x")
print("kapso_connect.monitoring.metrics" in sys.modules)
print([m.id for m in run_checks() if m.id.startswith("kapso_connect")])
"""


@pytest.mark.slow
def test_package_works_without_the_library(tmp_path: Path) -> None:
    assert run_python(WITHOUT, tmp_path).splitlines()[0] == "False"


IMPORTED = """
import sys
import django
django.setup()
from django.urls import reverse
from kapso_connect.log import log_event
log_event("webhook.refused", status=401, reason="x")
print(reverse("kapso_connect:webhook"))
print([name for name in ("prometheus_client", "health_check") if name in sys.modules])
"""


@pytest.mark.slow
def test_libraries_are_not_imported_unless_configured(tmp_path: Path) -> None:
    output = run_python(IMPORTED, tmp_path, DJANGO_SETTINGS_MODULE="tests.settings")
    assert output.splitlines() == ["/whatsapp/webhook/", "[]"]


def test_default_registry_can_be_exported() -> None:
    assert b"kapso_connect_webhooks_total" in generate_latest(REGISTRY)
