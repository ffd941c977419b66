"""Metrics for Prometheus.

Only sites that want them import this module: name ``observe`` in ``OBSERVERS``, and mount the
view ``metrics`` in a URLconf. With ``PROMETHEUS_MULTIPROC_DIR``, ``prometheus_client`` adds up the
counts of all processes.
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

from .. import log
from .queues import read_queues

WEBHOOKS = Counter("kapso_connect_webhooks", "Webhooks received, by outcome.", ["outcome"])
WEBHOOK_SECONDS = Histogram(
    "kapso_connect_webhook_seconds", "Seconds taken to answer a webhook.", ["status"]
)
CHANGES = Counter(
    "kapso_connect_changes", "Changes of setup links and numbers.", ["event", "source"]
)
SIGNALS = Counter("kapso_connect_signals", "Signals, by outcome.", ["outcome"])
SIGNAL_SECONDS = Histogram(
    "kapso_connect_signal_seconds", "Seconds taken by signal receivers.", ["outcome"]
)
API_SECONDS = Histogram(
    "kapso_connect_api_seconds",
    "Seconds taken by Kapso's API, including repeats.",
    ["operation", "outcome", "status"],
)


def observe(name: str, fields: Mapping[str, Any]) -> None:
    """Count and time one log event. Name this function in ``OBSERVERS``.

    With ``PROMETHEUS_MULTIPROC_DIR``, a process that runs one of this package's commands counts
    nothing: each run would leave files there that every page of metrics has to read.
    """
    if log.is_short_lived and "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        return
    if name == "webhook.answered":
        WEBHOOK_SECONDS.labels(fields["status"]).observe(fields["seconds"])
    elif name == "webhook.stored" or (
        # A webhook that stays pending was counted when it was stored.
        name == "webhook.retried" and fields["outcome"] != "pending"
    ):
        WEBHOOKS.labels(fields["outcome"]).inc()
    elif name in {"webhook.duplicate", "webhook.refused"}:
        WEBHOOKS.labels(name.partition(".")[2]).inc(fields.get("count", 1))
    elif name.startswith("timeline."):
        CHANGES.labels(name, fields["source"]).inc()
    elif name in {"signal.sent", "signal.retry_scheduled", "signal.failed"}:
        outcome = name.partition(".")[2]
        SIGNALS.labels(outcome).inc()
        SIGNAL_SECONDS.labels(outcome).observe(fields["seconds"])
    elif name == "api.called":
        API_SECONDS.labels(
            fields["operation"], fields["outcome"], fields["status"] or "none"
        ).observe(fields["seconds"])


class QueueCollector(Collector):
    """Reads the sizes of the queues from the database whenever metrics are collected."""

    def describe(self) -> Iterable[Metric]:
        """Return the metrics without values: registries ask for them before there is a database."""
        return _gauges()

    def collect(self) -> Iterator[Metric]:
        try:
            queues = read_queues()
        except Error:
            return  # the other metrics are useful without a database
        gauges = _gauges()
        for queue in queues:
            for gauge, value in zip(gauges, (queue.waiting, queue.failed, queue.lag), strict=True):
                gauge.add_metric([queue.name], value)
        yield from gauges


def _gauges() -> list[GaugeMetricFamily]:
    texts = {
        "kapso_connect_waiting": "Webhooks and signals waiting for another attempt.",
        "kapso_connect_failed": "Webhooks and signals that have failed permanently.",
        "kapso_connect_lag_seconds": "Seconds for which the oldest waiting one has been due.",
    }
    return [GaugeMetricFamily(name, text, labels=["queue"]) for name, text in texts.items()]


@login_not_required
@never_cache
@require_safe
def metrics(request: HttpRequest) -> HttpResponse:
    """Show all metrics of the default registry, and the queues.

    Anybody may see this page: restrict access to it in your web server.
    """
    registry = CollectorRegistry()
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    else:
        registry.register(REGISTRY)
    registry.register(QueueCollector())
    encode, content_type = choose_encoder(request.headers.get("Accept", ""))
    return HttpResponse(encode(registry), content_type=content_type)
