"""Sends the webhooks: signed, from its own threads, and again when not answered 200."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import timedelta
from queue import SimpleQueue
from typing import Any

import requests

from . import payloads, signing
from .state import Delivery, Webhook, new_id, now, store

DELIVERY_TIMEOUT = 10
DELIVERY_RETRY_DELAYS = (10, 40, 90)
SENDER_THREADS = 16
DEFAULT_WINDOW_SECONDS = 5
DEFAULT_BATCH_SIZE = 50
PAUSE_WINDOW = timedelta(minutes=15)


class Sender:
    def __init__(self) -> None:
        self._queue: SimpleQueue[list[Delivery]] = SimpleQueue()
        self._in_flight = 0
        self._held: dict[str, list[Delivery]] = {}  # by webhook, the newest first
        # Payloads by webhook, event and conversation; the fault's have no conversation.
        self._batches: dict[tuple[str, str, str], list[Any]] = {}

    def start(self) -> None:
        for _ in range(SENDER_THREADS):
            threading.Thread(target=self._work, daemon=True).start()

    def clear(self) -> None:
        """Forget what is held, and wait up to two seconds for deliveries that are being sent.

        Queued deliveries are not sent, since they are no longer in the store.
        """
        self._held.clear()
        self._batches.clear()
        store.wait_for(lambda: self._in_flight == 0, timeout=2)

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
        targets = [only] if only else list(_subscribers(event, payload))
        return [d for webhook in targets for d in self._emit_to(webhook, event, payload, key)]

    def emit_in_order(
        self, webhook: Webhook, events: Iterable[tuple[str, dict[str, Any]]]
    ) -> list[Delivery]:
        """Send events to one webhook, each after the one before was tried; return the deliveries.

        A message that is held for a batch is in none of them yet.
        """
        chain: list[Delivery] = []
        deliveries = [
            delivery
            for event, payload in events
            for delivery in self._emit_to(webhook, event, payload, None, chain)
        ]
        if chain:
            self._schedule(chain, store.faults.delay)
        return deliveries

    def _emit_to(
        self,
        webhook: Webhook,
        event: str,
        payload: dict[str, Any],
        key: str | None,
        chain: list[Delivery] | None = None,
    ) -> list[Delivery]:
        faults = store.faults
        if webhook.kind == "meta":
            body = _dump(payload)
            key = key or hashlib.sha256(body).hexdigest()
            return self._enqueue(Delivery(webhook.id, event, body, key), chain)
        is_buffered = webhook.buffer_enabled and event == payloads.MESSAGE_RECEIVED_EVENT
        if is_buffered or faults.batch:
            conversation_id = _conversation_id(payload) if is_buffered else ""
            limit = (webhook.max_buffer_size or DEFAULT_BATCH_SIZE) if is_buffered else faults.batch
            batch = (webhook.id, event, conversation_id)
            collected = self._batches.setdefault(batch, [])
            collected.append(payload)
            if len(collected) >= limit:
                return self._send_batch(batch, chain)
            if is_buffered and len(collected) == 1:
                _start_timer(_window_seconds(webhook), self._send_due_batch, batch, collected)
            return []
        wrapped: dict[str, Any] = payload
        if faults.envelope:
            wrapped = {"type" if faults.envelope == "type" else "event": event, "data": payload}
        delivery = Delivery(webhook.id, event, _dump(wrapped), key or new_id())
        return self._enqueue(delivery, chain)

    def _send_batch(
        self, batch: tuple[str, str, str], chain: list[Delivery] | None = None
    ) -> list[Delivery]:
        webhook_id, event, conversation_id = batch
        data = self._batches.pop(batch)
        webhook = store.webhooks.get(webhook_id)
        window = _window_seconds(webhook) if webhook else DEFAULT_WINDOW_SECONDS
        info: dict[str, Any] = {"size": len(data), "window_ms": window * 1000}
        if conversation_id:
            info["conversation_id"] = conversation_id
        body = {"type": event, "batch": True, "data": data, "batch_info": info}
        delivery = Delivery(webhook_id, event, _dump(body), new_id(), len(data))
        return self._enqueue(delivery, chain)

    def _send_due_batch(self, batch: tuple[str, str, str], collected: list[Any]) -> None:
        """Send a batch whose time is over, unless it was full and sent before."""
        with store.lock:
            if self._batches.get(batch) is collected:
                self._send_batch(batch)

    def _enqueue(self, first: Delivery, chain: list[Delivery] | None = None) -> list[Delivery]:
        """Send a delivery and its duplicates, or append them to ``chain``, which is sent later."""
        faults = store.faults
        copies = [first, *(_copy(first) for _ in range(faults.duplicate))]
        for delivery in copies:
            store.deliveries[delivery.id] = delivery
            if faults.drop:
                self._finish(delivery, "dropped")
            elif faults.reorder > 1:
                delivery.state = "held"
            elif chain is None:
                self._schedule([delivery], faults.delay)
            else:
                chain.append(delivery)
        if faults.reorder > 1 and not faults.drop:
            held = self._held[first.webhook_id] = [*copies, *self._held.get(first.webhook_id, [])]
            if len(held) >= faults.reorder * len(copies):
                self._schedule(self._held.pop(first.webhook_id), faults.delay)
        return copies

    def release(self) -> None:
        """Send the deliveries that were held for a batch or for another order."""
        for batch in list(self._batches):
            self._send_batch(batch)
        for webhook_id in list(self._held):
            self._schedule(self._held.pop(webhook_id), store.faults.delay)

    def resend(self, delivery: Delivery, *, new_key: bool) -> Delivery:
        """Send the same body again, with the same idempotency key unless ``new_key``."""
        again = _copy(delivery)
        again.forced = True
        if new_key:
            again.idempotency_key = new_id()
        store.deliveries[again.id] = again
        self._schedule([again], 0)
        return again

    # When and how to send it

    def _schedule(self, chain: list[Delivery], delay: float) -> None:
        """Queue deliveries that are sent one after the other, in this order."""
        for delivery in chain:
            delivery.state = "pending"
            delivery.next_attempt_at = now() + timedelta(seconds=delay)
        if not delay:
            self._queue.put(chain)
            return
        _start_timer(delay, self._queue.put, chain)

    def _work(self) -> None:
        while True:
            for delivery in self._queue.get():
                self._attempt(delivery)

    def _attempt(self, delivery: Delivery) -> None:
        with store.lock:
            webhook = store.webhooks.get(delivery.webhook_id)
            if delivery.id not in store.deliveries:
                return  # the store was reset in the meantime
            if webhook is None or not (webhook.active or delivery.forced):
                self._finish(delivery, "failed")
                return
            url, headers = webhook.url, {**webhook.headers, **_headers(webhook, delivery)}
            self._in_flight += 1
        attempt = _post(url, headers, delivery.body)
        with store.lock:
            self._in_flight -= 1
            store.lock.notify_all()
            if delivery.id not in store.deliveries:
                return
            delivery.attempts.append(attempt)
            _record_outcome(webhook, attempt["status"] == 200)
            attempts = len(delivery.attempts)
            if attempt["status"] == 200:
                self._finish(delivery, "delivered")
            elif attempts <= len(DELIVERY_RETRY_DELAYS):
                delay = DELIVERY_RETRY_DELAYS[attempts - 1] * store.options.retry_scale
                self._schedule([delivery], delay)
            else:
                self._finish(delivery, "failed")

    def _finish(self, delivery: Delivery, state: str) -> None:
        delivery.state = state
        delivery.next_attempt_at = None
        delivery.finished_at = now()
        store.deliveries_done += 1
        store.lock.notify_all()


def _subscribers(event: str, payload: dict[str, Any]) -> Iterable[Webhook]:
    for webhook in store.webhooks.values():
        wanted = event in webhook.events or not payloads.is_known(event)
        too_old = event in payloads.EVENTS_SINCE_V2 and webhook.payload_version == "v1"
        theirs = webhook.phone_number_id in (None, payload.get("phone_number_id"))
        if webhook.active and webhook.kind == "kapso" and wanted and theirs and not too_old:
            yield webhook


def _conversation_id(payload: dict[str, Any]) -> str:
    conversation = payload.get("conversation")
    return str(conversation.get("id", "")) if isinstance(conversation, dict) else ""


def _window_seconds(webhook: Webhook) -> int:
    return webhook.buffer_window_seconds or DEFAULT_WINDOW_SECONDS


def _start_timer(seconds: float, function: Callable[..., object], *arguments: object) -> None:
    timer = threading.Timer(seconds, function, arguments)
    timer.daemon = True
    timer.start()


def _dump(payload: object) -> bytes:
    return json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode()


def _copy(delivery: Delivery) -> Delivery:
    return replace(
        delivery,
        id=new_id(),
        state="pending",
        attempts=[],
        created_at=now(),
        next_attempt_at=None,
        finished_at=None,
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


def _post(url: str, headers: dict[str, str], body: bytes) -> dict[str, Any]:
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
    seconds = round(time.monotonic() - started, 3)
    return {"at": at, "seconds": seconds, "status": status, "error": error}


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


sender = Sender()
