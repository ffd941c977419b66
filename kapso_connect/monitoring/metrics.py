"""Figures for Prometheus, counted by ``prometheus_client``.

Nothing imports this module but who wants it: ``OBSERVERS`` names ``observe``, and a URLconf mounts
``metrics``. Under ``PROMETHEUS_MULTIPROC_DIR`` the library adds up what all processes counted.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from django.contrib.auth.decorators import login_not_required
from django.db import Error
from django.http import HttpRequest, HttpResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe
from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram, multiprocess
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from . import queues

WEBHOOKS = Counter(
    "kapso_connect_webhooks", "Deliveries of Kapso's, by what became of them.", ["outcome"]
)
WEBHOOK_SECONDS = Histogram(
    "kapso_connect_webhook_seconds", "Seconds until a webhook was answered.", ["status"]
)
CHANGES = Counter(
    "kapso_connect_changes", "What happened to setup links and numbers.", ["event", "source"]
)
SIGNALS = Counter("kapso_connect_signals", "Signals, by what became of them.", ["outcome"])
SIGNAL_SECONDS = Histogram("kapso_connect_signal_seconds", "Seconds that receivers took.")
API_SECONDS = Histogram(
    "kapso_connect_api_seconds",
    "Seconds that Kapso's API took, repeats included.",
    ["operation", "outcome", "status"],
)

OUTCOMES = {"webhook.duplicate": "duplicate", "webhook.refused": "refused"}


def observe(name: str, fields: Mapping[str, Any]) -> None:
    """Count and time one event; for ``OBSERVERS``."""
    if name == "webhook.answered":
        WEBHOOK_SECONDS.labels(fields["status"]).observe(fields["seconds"])
    elif name == "webhook.stored" or (
        # One that goes on waiting was counted as pending when it was stored.
        name == "webhook.retried" and fields["outcome"] != "pending"
    ):
        WEBHOOKS.labels(fields["outcome"]).inc()
    elif name in OUTCOMES:
        WEBHOOKS.labels(OUTCOMES[name]).inc()
    elif name.startswith("timeline."):
        CHANGES.labels(name, fields["source"]).inc()
    elif name in {"signal.sent", "signal.retry_scheduled", "signal.failed"}:
        SIGNALS.labels(name.partition(".")[2]).inc()
        SIGNAL_SECONDS.observe(fields["seconds"])
    elif name == "api.called":
        API_SECONDS.labels(
            fields["operation"], fields["outcome"], fields["status"] or "none"
        ).observe(fields["seconds"])


class Backlog(Collector):
    """What waits and what failed, read from the database whenever it is asked for."""

    def describe(self) -> Iterable[Metric]:
        """Say what ``collect`` gives without asking the database: registries ask at start."""
        return _gauges()

    def collect(self) -> Iterator[Metric]:
        try:
            found = queues.read()
        except Error:
            return  # the other figures are worth having all the same
        gauges = _gauges()
        for queue in found:
            for gauge, value in zip(gauges, (queue.waiting, queue.failed, queue.lag), strict=True):
                gauge.add_metric([queue.name], value)
        yield from gauges


def _gauges() -> list[GaugeMetricFamily]:
    texts = {
        "kapso_connect_waiting": "Webhooks and signals that wait for another attempt.",
        "kapso_connect_failed": "Webhooks and signals that failed for good.",
        "kapso_connect_lag_seconds": "For how long the oldest of them has been due.",
    }
    return [GaugeMetricFamily(name, text, labels=["queue"]) for name, text in texts.items()]


@login_not_required
@never_cache
@require_safe
def metrics(request: HttpRequest) -> HttpResponse:
    """All figures of this site's default registry, and the backlog. Let nobody in from outside."""
    registry = CollectorRegistry()
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    else:
        registry.register(REGISTRY)
    registry.register(Backlog())
    encode, content_type = choose_encoder(request.headers.get("Accept", ""))
    return HttpResponse(encode(registry), content_type=content_type)
