from __future__ import annotations

import hashlib
import hmac
import socket

import pytest
import requests

from kapso_connect.testing import Sandbox, SandboxError, sign, webhook_headers


def test_sign_is_the_hex_hmac_sha256_of_the_body() -> None:
    expected = hmac.new(b"s3cret", b"{}", hashlib.sha256).hexdigest()
    assert sign(b"{}", "s3cret") == expected


def test_webhook_headers_are_kapsos() -> None:
    headers = webhook_headers(b"{}", "s", event="project.event", idempotency_key="k")
    assert headers == {
        "Content-Type": "application/json",
        "X-Webhook-Event": "project.event",
        "X-Webhook-Signature": sign(b"{}", "s"),
        "X-Idempotency-Key": "k",
        "X-Webhook-Payload-Version": "v2",
    }


def test_webhook_headers_make_a_key_up_and_know_batches() -> None:
    first, second = (webhook_headers(b"", "s", event="e", batch_size=3) for _ in range(2))
    assert first["X-Idempotency-Key"] != second["X-Idempotency-Key"]
    assert (first["X-Webhook-Batch"], first["X-Batch-Size"]) == ("true", "3")


def test_a_sandbox_runs_and_is_gone() -> None:
    with Sandbox(api_key="key") as sandbox:
        url = f"{sandbox.url}/platform/v1/customers"
        answer = requests.get(url, headers={"X-API-Key": sandbox.api_key}, timeout=10)
        assert answer.status_code == 200
        log = sandbox._log
        assert log.exists()
    with pytest.raises(requests.ConnectionError):
        requests.get(url, timeout=10)
    assert not log.exists()
    sandbox.stop()


def test_a_sandbox_that_cannot_start_says_why() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SandboxError, match=r"ended with code 1:\n.*cannot listen on"):
            Sandbox(port=port)


def test_a_sandbox_that_takes_too_long_is_stopped() -> None:
    with pytest.raises(SandboxError, match="not ready after 0"):
        Sandbox(start_timeout=0)


def test_waiting_for_deliveries_that_do_not_come_fails_with_what_came() -> None:
    with Sandbox() as sandbox:
        sandbox.faults(drop=True)
        sandbox.set_webhook("http://127.0.0.1:9/", "s")
        sandbox.add_number(webhook=True)
        message = r"1 of 2 deliveries.*whatsapp\.phone_number\.created.*dropped"
        with pytest.raises(SandboxError, match=message):
            sandbox.wait_for_deliveries(2, timeout=1)
        assert sandbox.webhook_secret == "s"
