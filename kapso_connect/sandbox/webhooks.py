"""Sends the webhooks: signed, from its own threads, and again when not answered 200."""

from __future__ import annotations

import heapq
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any

import requests

from . import payloads, signing
from .state import Attempt, Delivery, Store, Webhook, new_id, now, store

DELIVERY_TIMEOUT = 10
DELIVERY_RETRY_DELAYS = (10, 40, 90)
SENDER_THREADS = 16
PAUSE_WINDOW = timedelta(minutes=15)


class Sender:
    """A queue of deliveries, ordered by when they are due."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._order = itertools.count()
        self._in_flight = 0
        self.clear()

    def start(self) -> None:
        for _ in range(SENDER_THREADS):
            threading.Thread(target=self._work, daemon=True).start()

    def clear(self) -> None:
        """Empty the queue, and wait up to two seconds for deliveries that are being sent."""
        with self.store.changed:
            self._queue: list[tuple[float, int, list[Delivery]]] = []
            self._reordering: dict[str, list[list[Delivery]]] = {}
            self._batching: dict[tuple[str, str], list[Any]] = {}
            self.store.changed.wait_for(lambda: self._in_flight == 0, timeout=2)

    def wait(self, ready: Callable[[], bool], timeout: float) -> bool:
        with self.store.changed:
            return self.store.changed.wait_for(ready, timeout)

    # What to send

    def emit(
        self,
        event: str,
        payload: dict[str, Any],
        *,
        key: str | None = None,
        only: Webhook | None = None,
    ) -> list[Delivery]:
        """Send ``event`` to all webhooks that want it, or to one; return the new deliveries."""
        with self.store.lock:
            targets = [only] if only else list(self._subscribers(event, payload))
            return [d for webhook in targets for d in self._emit_to(webhook, event, payload, key)]

    def _subscribers(self, event: str, payload: dict[str, Any]) -> Iterable[Webhook]:
        known = payloads.is_known(event)
        for webhook in self.store.webhooks.values():
            wanted = event in webhook.events or not known
            too_old = event in payloads.EVENTS_SINCE_V2 and webhook.payload_version == "v1"
            theirs = webhook.phone_number_id in (None, payload.get("phone_number_id"))
            if webhook.active and webhook.kind == "kapso" and wanted and theirs and not too_old:
                yield webhook

    def _emit_to(
        self, webhook: Webhook, event: str, payload: dict[str, Any], key: str | None
    ) -> list[Delivery]:
        faults = self.store.faults
        if faults.batch:
            collected = self._batching.setdefault((webhook.id, event), [])
            collected.append(payload)
            return self._send_batch(webhook.id, event) if len(collected) >= faults.batch else []
        body: dict[str, Any] = payload
        if faults.envelope:
            body = {"type" if faults.envelope == "type" else "event": event, "data": payload}
        return self._enqueue(Delivery(webhook.id, event, _dump(body), key or new_id()))

    def _send_batch(self, webhook_id: str, event: str) -> list[Delivery]:
        data = self._batching.pop((webhook_id, event))
        info = {"size": len(data), "window_ms": 5000}
        body = {"type": event, "batch": True, "data": data, "batch_info": info}
        return self._enqueue(Delivery(webhook_id, event, _dump(body), new_id(), len(data)))

    def _enqueue(self, first: Delivery) -> list[Delivery]:
        faults = self.store.faults
        copies = [first, *(_copy(first) for _ in range(faults.duplicate))]
        for delivery in copies:
            self.store.log_delivery(delivery)
        if faults.drop:
            for delivery in copies:
                self._finish(delivery, "dropped")
        elif faults.reorder > 1:
            self._hold(copies, faults.reorder)
        else:
            for delivery in copies:
                self._schedule([delivery], faults.delay)
        return copies

    def _hold(self, copies: list[Delivery], limit: int) -> None:
        for delivery in copies:
            delivery.state = "held"
        held = self._reordering.setdefault(copies[0].webhook_id, [])
        held.append(copies)
        if len(held) >= limit:
            self._send_reversed(copies[0].webhook_id)

    def _send_reversed(self, webhook_id: str) -> None:
        held = self._reordering.pop(webhook_id)
        self._schedule([d for copies in reversed(held) for d in copies], self.store.faults.delay)

    def release(self) -> None:
        """Send the deliveries that were held for a batch or for another order."""
        with self.store.lock:
            for webhook_id, event in list(self._batching):
                self._send_batch(webhook_id, event)
            for webhook_id in list(self._reordering):
                self._send_reversed(webhook_id)

    def resend(self, delivery: Delivery, *, new_key: bool = False) -> Delivery:
        """Send the same body again, with the same idempotency key unless ``new_key``."""
        with self.store.lock:
            again = _copy(delivery)
            again.forced = True
            again.idempotency_key = new_id() if new_key else delivery.idempotency_key
            self.store.log_delivery(again)
            self._schedule([again], 0)
            return again

    # When and how to send it

    def _schedule(self, chain: list[Delivery], delay: float) -> None:
        """Queue deliveries that are sent one after the other, in this order."""
        for delivery in chain:
            delivery.state = "pending"
            delivery.next_attempt_at = now() + timedelta(seconds=delay)
        heapq.heappush(self._queue, (time.monotonic() + delay, next(self._order), chain))
        self.store.changed.notify_all()

    def _next_due(self) -> list[Delivery]:
        with self.store.changed:
            while not self._queue or self._queue[0][0] > time.monotonic():
                due = self._queue[0][0] if self._queue else None
                self.store.changed.wait(None if due is None else max(0, due - time.monotonic()))
            self._in_flight += 1
            return heapq.heappop(self._queue)[2]

    def _work(self) -> None:
        while True:
            chain = self._next_due()
            try:
                for delivery in chain:
                    self._attempt(delivery)
            finally:
                with self.store.changed:
                    self._in_flight -= 1
                    self.store.changed.notify_all()

    def _attempt(self, delivery: Delivery) -> None:
        with self.store.lock:
            webhook = self.store.webhooks.get(delivery.webhook_id)
            if delivery.id not in self.store.deliveries:
                return  # the store was reset in the meantime
            if webhook is None or not (webhook.active or delivery.forced):
                self._finish(delivery, "failed")
                return
            url, headers = webhook.url, {**(webhook.headers or {}), **_headers(webhook, delivery)}
        attempt = _post(url, headers, delivery.body)
        with self.store.lock:
            if delivery.id not in self.store.deliveries:
                return
            delivery.attempts.append(attempt)
            _record_outcome(webhook, attempt.status == 200)
            attempts = len(delivery.attempts)
            if attempt.status == 200:
                self._finish(delivery, "delivered")
            elif attempts <= len(DELIVERY_RETRY_DELAYS):
                delay = DELIVERY_RETRY_DELAYS[attempts - 1] * self.store.options.retry_scale
                self._schedule([delivery], delay)
            else:
                self._finish(delivery, "failed")

    def _finish(self, delivery: Delivery, state: str) -> None:
        delivery.state = state
        delivery.next_attempt_at = None
        self.store.deliveries_done += 1
        self.store.changed.notify_all()


def _dump(payload: object) -> bytes:
    return json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode()


def _copy(delivery: Delivery) -> Delivery:
    return Delivery(
        delivery.webhook_id,
        delivery.event,
        delivery.body,
        delivery.idempotency_key,
        delivery.batch_size,
    )


def _headers(webhook: Webhook, delivery: Delivery) -> dict[str, str]:
    return signing.webhook_headers(
        delivery.body,
        webhook.secret_key,
        event=delivery.event,
        idempotency_key=delivery.idempotency_key,
        payload_version=webhook.payload_version or "v2",
        batch_size=delivery.batch_size,
    )


def _post(url: str, headers: dict[str, str], body: bytes) -> Attempt:
    at, started = now(), time.monotonic()
    status = error = None
    try:
        # A new connection, without the machine's proxies.
        with requests.Session() as session:
            session.trust_env = False
            response = session.post(
                url,
                data=body,
                headers=headers,
                timeout=DELIVERY_TIMEOUT,
                allow_redirects=False,
                stream=True,
            )
            status = response.status_code
            response.close()
    except (requests.RequestException, OSError, ValueError) as failure:
        error = f"{type(failure).__name__}: {failure}"
    return Attempt(at, round(time.monotonic() - started, 3), status, error)


def _record_outcome(webhook: Webhook, success: bool) -> None:
    """Pause a webhook that fails too often: 20 deliveries, 10 failures, 85 % of them failed."""
    webhook.outcomes.append((now(), success))
    if success:
        return
    while webhook.outcomes[0][0] < now() - PAUSE_WINDOW:
        webhook.outcomes.popleft()
    total = len(webhook.outcomes)
    failures = sum(not success for _, success in webhook.outcomes)
    if total >= 20 and failures >= 10 and failures >= 0.85 * total:
        webhook.active = False


sender = Sender(store)
