"""Sends the webhooks: signed, from threads of its own, again when not answered 200."""

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
from .state import Attempt, Delivery, Webhook, World, new_id, now, world

TIMEOUT = 10
RETRY_DELAYS = (10, 40, 90)
THREADS = 16
PAUSE_WINDOW = timedelta(minutes=15)


class Sender:
    """The queue of deliveries, in order of when they are due."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._order = itertools.count()
        self._in_flight = 0
        self.forget()

    def start(self) -> None:
        for _ in range(THREADS):
            threading.Thread(target=self._work, daemon=True).start()

    def forget(self) -> None:
        """Let go of all that is queued, and wait a little for what is being sent."""
        with self.world.changed:
            self._queue: list[tuple[float, int, list[Delivery]]] = []
            self._reordering: dict[str, list[list[Delivery]]] = {}
            self._batching: dict[tuple[str, str], list[Any]] = {}
            self.world.changed.wait_for(lambda: self._in_flight == 0, timeout=2)

    def wait(self, ready: Callable[[], bool], timeout: float) -> bool:
        with self.world.changed:
            return self.world.changed.wait_for(ready, timeout)

    # What is to be sent

    def emit(
        self,
        event: str,
        payload: dict[str, Any],
        *,
        key: str | None = None,
        only: Webhook | None = None,
    ) -> list[Delivery]:
        """Send ``event`` to all webhooks that want it, or to one; return the new deliveries."""
        with self.world.lock:
            targets = [only] if only else list(self._subscribers(event, payload))
            return [d for webhook in targets for d in self._emit_to(webhook, event, payload, key)]

    def _subscribers(self, event: str, payload: dict[str, Any]) -> Iterable[Webhook]:
        known = payloads.is_known(event)
        for webhook in self.world.webhooks.values():
            wanted = event in webhook.events or not known
            too_old = event in payloads.V2_ONLY and webhook.payload_version == "v1"
            theirs = webhook.phone_number_id in (None, payload.get("phone_number_id"))
            if webhook.active and webhook.kind == "kapso" and wanted and theirs and not too_old:
                yield webhook

    def _emit_to(
        self, webhook: Webhook, event: str, payload: dict[str, Any], key: str | None
    ) -> list[Delivery]:
        faults = self.world.faults
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
        faults = self.world.faults
        copies = [first, *(_copy(first) for _ in range(faults.duplicate))]
        for delivery in copies:
            self.world.log_delivery(delivery)
        if faults.drop:
            for delivery in copies:
                self._settle(delivery, "dropped")
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
        self._schedule([d for copies in reversed(held) for d in copies], self.world.faults.delay)

    def release(self) -> None:
        """Send what was held back for a batch or for another order."""
        with self.world.lock:
            for webhook_id, event in list(self._batching):
                self._send_batch(webhook_id, event)
            for webhook_id in list(self._reordering):
                self._send_reversed(webhook_id)

    def resend(self, delivery: Delivery, *, new_key: bool = False) -> Delivery:
        """Send the same body again, under the same idempotency key unless ``new_key``."""
        with self.world.lock:
            again = _copy(delivery)
            again.forced = True
            again.idempotency_key = new_id() if new_key else delivery.idempotency_key
            self.world.log_delivery(again)
            self._schedule([again], 0)
            return again

    # When and how it is sent

    def _schedule(self, chain: list[Delivery], delay: float) -> None:
        """Queue deliveries that go out one after the other, in this order."""
        for delivery in chain:
            delivery.state = "pending"
            delivery.next_attempt_at = now() + timedelta(seconds=delay)
        heapq.heappush(self._queue, (time.monotonic() + delay, next(self._order), chain))
        self.world.changed.notify_all()

    def _take(self) -> list[Delivery]:
        with self.world.changed:
            while not self._queue or self._queue[0][0] > time.monotonic():
                due = self._queue[0][0] if self._queue else None
                self.world.changed.wait(None if due is None else max(0, due - time.monotonic()))
            self._in_flight += 1
            return heapq.heappop(self._queue)[2]

    def _work(self) -> None:
        while True:
            chain = self._take()
            try:
                for delivery in chain:
                    self._attempt(delivery)
            finally:
                with self.world.changed:
                    self._in_flight -= 1
                    self.world.changed.notify_all()

    def _attempt(self, delivery: Delivery) -> None:
        with self.world.lock:
            webhook = self.world.webhooks.get(delivery.webhook_id)
            if delivery.id not in self.world.deliveries:
                return  # the world was reset meanwhile
            if webhook is None or not (webhook.active or delivery.forced):
                self._settle(delivery, "failed")
                return
            url, headers = webhook.url, {**(webhook.headers or {}), **_headers(webhook, delivery)}
        attempt = _post(url, headers, delivery.body)
        with self.world.lock:
            if delivery.id not in self.world.deliveries:
                return
            delivery.attempts.append(attempt)
            _note(webhook, attempt.status == 200)
            tried = len(delivery.attempts)
            if attempt.status == 200:
                self._settle(delivery, "delivered")
            elif tried <= len(RETRY_DELAYS):
                delay = RETRY_DELAYS[tried - 1] * self.world.options.retry_scale
                self._schedule([delivery], delay)
            else:
                self._settle(delivery, "failed")

    def _settle(self, delivery: Delivery, state: str) -> None:
        delivery.state = state
        delivery.next_attempt_at = None
        self.world.settled += 1
        self.world.changed.notify_all()


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
    return signing.headers(
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
        # A connection of its own, without the machine's proxies: what arrives is what was sent.
        with requests.Session() as session:
            session.trust_env = False
            response = session.post(
                url,
                data=body,
                headers=headers,
                timeout=TIMEOUT,
                allow_redirects=False,
                stream=True,
            )
            status = response.status_code
            response.close()
    except (requests.RequestException, OSError, ValueError) as failure:
        error = f"{type(failure).__name__}: {failure}"
    return Attempt(at, round(time.monotonic() - started, 3), status, error)


def _note(webhook: Webhook, success: bool) -> None:
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


sender = Sender(world)
