"""Signed webhook requests, as Kapso would send them."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

import requests
from django.core.exceptions import ImproperlyConfigured
from django.test import Client, TestCase
from django.urls import get_script_prefix

from ..conf import get_conf
from ..db import alias
from ..models import Customer
from ..sandbox.payloads import ACCOUNT_SOURCES, LIFECYCLE_SOURCES
from ..sandbox.signing import webhook_headers
from ..sandbox.state import new_meta_id
from ..utils import is_loopback, reverse_path

LIVE_SERVER_TIMEOUT = 30.0


@contextmanager
def run_on_commit_callbacks() -> Iterator[None]:
    """Run the block's ``on_commit`` callbacks at its end, also in a test that never commits."""
    with TestCase.captureOnCommitCallbacks(using=alias(), execute=True):
        yield


def webhook_payload(
    event: str, customer: Customer, phone_number_id: str = "", **more: Any
) -> dict[str, Any]:
    """Return the payload of ``whatsapp.phone_number.*`` or ``whatsapp.account.*``.

    It has the fields that Kapso sends today; ``more`` adds or replaces fields.
    ``phone_number_id`` is random where it is not given.
    """
    number = phone_number_id or new_meta_id()
    payload: dict[str, Any] = {"project": {"id": str(uuid.uuid4())}}
    if event not in {"whatsapp.phone_number.created", "whatsapp.phone_number.deleted"}:
        payload["id"] = str(uuid.uuid4())
        payload["event"] = event
        payload["occurred_at"] = datetime.now().astimezone().isoformat()
    if source_event := {**ACCOUNT_SOURCES, **LIFECYCLE_SOURCES}.get(event):
        payload["source"] = {"provider": "meta", "event": source_event}
    if event.startswith("whatsapp.account."):
        payload["id"] = f"wae_{uuid.uuid4().hex}"
        payload["business_account_id"] = new_meta_id()
        payload["phone_numbers"] = [{"id": number}]
    else:
        external_id = customer.external_customer_id
        payload["phone_number_id"] = number
        payload["customer"] = {"id": customer.kapso_id, "external_id": external_id}
    return {**payload, **more}


def webhook_path() -> str:
    """Return the path of the webhook for a request to Django itself: without the prefix that
    ``FORCE_SCRIPT_NAME`` puts in front of it, which a server in front of Django takes off."""
    return "/" + reverse_path("kapso_connect:webhook").removeprefix(get_script_prefix())


def post_webhook(
    to: Client | str,
    event: str,
    payload: Mapping[str, Any] | bytes,
    *,
    idempotency_key: str | None = None,
    secret: str | None = None,
    batch_size: int = 0,
    path: str = "",
) -> Any:
    """Deliver ``payload`` as Kapso would, signed, and return the response.

    ``to`` is Django's test client, or the URL of a running site (``live_server.url``), to which
    the webhook's path is added if the URL has none. A ``payload`` of bytes is sent unchanged.
    ``idempotency_key`` is random when None; give one to deliver the same thing twice. ``secret``
    defaults to the first of your ``WEBHOOK_SECRET``. Raise ImproperlyConfigured without a secret.
    ``path`` is that of another view, such as your own for messages, together with its ``secret``.
    """
    if secret is None:
        secret = next(iter(get_conf().webhook_secret), None)
    if not secret:
        raise ImproperlyConfigured("KAPSO_CONNECT['WEBHOOK_SECRET'] is not set.")
    body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    headers = webhook_headers(
        body, secret, event=event, idempotency_key=idempotency_key, batch_size=batch_size
    )
    path = path or webhook_path()
    if isinstance(to, str):
        url = to if urlsplit(to).path.strip("/") else to.rstrip("/") + path
        with requests.Session() as session:
            session.trust_env = not is_loopback(url)  # no proxy for a live server
            return session.post(url, data=body, headers=headers, timeout=LIVE_SERVER_TIMEOUT)
    with run_on_commit_callbacks():
        # Kapso delivers to https only, and a site may redirect http.
        return to.post(path, body, content_type="application/json", headers=headers, secure=True)
