"""A running sandbox.

Nothing here needs Django: the sandbox is a process of its own and never reads your settings.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from requests import Response, Session

if TYPE_CHECKING:
    from django.test import Client

STARTED = "Kapso sandbox (this is NOT Kapso) on "
REQUEST_TIMEOUT = 70


class SandboxError(AssertionError):
    """The sandbox did not start, or refused a request of the test."""


class Sandbox:
    """A running sandbox, and the controls that Kapso does not have.

        with Sandbox(webhook_url=live_server.url + "/whatsapp/webhook/") as sandbox:
            ...  # point API_BASE_URL at sandbox.url
            location = sandbox.complete(link_url)

    ``webhook_url`` and ``webhook_secret`` are those of the project webhook that gets every event;
    ``api_key`` is the only key accepted; ``retry_scale`` multiplies Kapso's 10, 40 and 90 s
    (0 retries at once); ``rate_limit`` is how many requests a minute a key has (0: no limit);
    ``teardown_seconds`` is how long a deleted number stays readable;
    ``state`` is a file that keeps what the sandbox holds between starts;
    ``start_timeout`` is in seconds. Raise SandboxError when it does not start.
    """

    def __init__(
        self,
        *,
        webhook_url: str = "",
        webhook_secret: str = "sandbox-webhook-secret",  # noqa: S107
        api_key: str = "sandbox-api-key",
        retry_scale: float = 0.0,
        rate_limit: int = 0,
        teardown_seconds: float = 0.2,
        port: int = 0,
        state: str | Path = "",
        start_timeout: float = 20.0,
    ) -> None:
        self.api_key = api_key
        self.webhook_secret = webhook_secret
        self._posted: set[str] = set()
        self._http = Session()
        self._http.trust_env = False
        with tempfile.NamedTemporaryFile(
            prefix="kapso-sandbox-", suffix=".log", delete=False
        ) as log:
            self._log = Path(log.name)
            self._process = subprocess.Popen(  # noqa: S603  # nosec B603
                [
                    *(sys.executable, "-m", "kapso_connect.sandbox", "--stop-on-eof"),
                    *("--port", str(port), "--api-key", api_key),
                    *("--webhook-url", webhook_url, "--webhook-secret", webhook_secret),
                    *("--retry-scale", str(retry_scale), "--rate-limit", str(rate_limit)),
                    *("--teardown-seconds", str(teardown_seconds), "--state", str(state)),
                ],
                # The child stops when this pipe closes, so it never outlives a killed test run.
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            self.url = self._wait_for_url(start_timeout)
        except BaseException:
            self.stop()
            raise

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop the process. Do nothing if it has stopped already."""
        self._http.close()
        self._process.terminate()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdin:
            self._process.stdin.close()
        self._log.unlink(missing_ok=True)

    def _wait_for_url(self, timeout: float) -> str:
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            for line in self.output().splitlines(keepends=True):
                if line.startswith(STARTED) and line.endswith("\n"):
                    return line.removeprefix(STARTED).strip()
            if self._process.poll() is not None:
                raise SandboxError(
                    f"The sandbox ended with code {self._process.returncode}:\n{self.output()}"
                )
            time.sleep(0.02)
        raise SandboxError(f"The sandbox was not ready after {timeout} s:\n{self.output()}")

    def output(self) -> str:
        """Return what the process has printed so far."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def _call(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        response = self._http.request(
            method,
            self.url + path,
            json=body,
            headers={"X-API-Key": self.api_key},
            timeout=REQUEST_TIMEOUT,
            allow_redirects=False,
        )
        if not response.ok:
            raise SandboxError(f"{method} {path}: {response.status_code} {response.text}")
        result: dict[str, Any] = response.json() if response.content else {}
        return result

    def _object(self, method: str, path: str, body: object) -> dict[str, Any]:
        result: dict[str, Any] = self._call(method, path, body)["data"]
        return result

    def _list(self, path: str) -> list[dict[str, Any]]:
        result: list[dict[str, Any]] = self._call("GET", path)["data"]
        return result

    # Faults

    def faults(self, **rules: Any) -> dict[str, Any]:
        """Turn faults on and return all; those not named stay as they are.

        Names and values are in ``kapso_connect.sandbox.faults``. Raise SandboxError for others.
        """
        return self._call("POST", "/sandbox/faults", rules)

    def clear_faults(self) -> None:
        """Turn all faults off; send the deliveries that were held for a batch or another order."""
        self._call("DELETE", "/sandbox/faults")

    def set_rate_limit(self, limit: int) -> None:
        """Allow each API key ``limit`` requests a minute from now on; 0 stands for no limit."""
        self._call("POST", "/sandbox/rate_limit", {"limit": limit})

    # Objects

    def reset(self) -> None:
        """Remove everything but the webhook that the sandbox was started with."""
        self._call("POST", "/sandbox/reset")

    def seed(
        self,
        customers: int,
        numbers_per_customer: int = 0,
        *,
        prefix: str = "seed",
        webhooks: bool = False,
    ) -> dict[str, int]:
        """Create customers (external ids ``<prefix>-1`` …), each with numbers. Return counts."""
        body = {
            "customers": customers,
            "numbers_per_customer": numbers_per_customer,
            "prefix": prefix,
            "webhooks": webhooks,
        }
        return self._call("POST", "/sandbox/seed", body)

    def add_number(
        self,
        *,
        customer_id: str | None = None,
        external_customer_id: str | None = None,
        webhook: bool = False,
        **fields: Any,
    ) -> dict[str, Any]:
        """Create a number of a customer, or of the project itself when no customer is given.

        A customer with that ``external_customer_id`` is created when there is none. ``webhook``
        sends the event for it; ``fields`` are ``phone_number`` (E.164) and fields of Kapso's API.
        """
        owner = {"customer_id": customer_id, "external_customer_id": external_customer_id}
        return self._object("POST", "/sandbox/numbers", {**owner, "webhook": webhook, **fields})

    def patch_number(self, phone_number_id: str, **fields: Any) -> dict[str, Any]:
        """Change any field of a number, also those that Kapso's API cannot change; no webhook is
        sent. ``customer_id`` moves the number to another customer."""
        return self._object("PATCH", f"/sandbox/numbers/{phone_number_id}", fields)

    def delete_number(self, phone_number_id: str) -> None:
        """Delete a number, as staff do it in Kapso: the webhook is sent, and it stays readable for
        ``teardown_seconds``."""
        self._call("DELETE", f"/sandbox/numbers/{phone_number_id}")

    def change_device(self, phone_number_id: str, seconds: float = 60) -> None:
        """Let the customer's phone change: the number is offboarded now, and reconnected after
        ``seconds``."""
        path = f"/sandbox/numbers/{phone_number_id}/device_change"
        self._call("POST", path, {"seconds": seconds})

    def receive_message(
        self, phone_number_id: str, *, sender: str, body: str = "Hello"
    ) -> list[str]:
        """Let the person with the phone number ``sender`` write to a number. Return the ids of the
        deliveries to its webhooks; a webhook with ``buffer_enabled`` gets its own later."""
        path = f"/sandbox/numbers/{phone_number_id}/messages"
        answer = self._call("POST", path, {"from": sender, "body": body})
        deliveries: list[str] = answer["deliveries"]
        return deliveries

    def sent_messages(self) -> list[dict[str, Any]]:
        """Return the messages that numbers have sent, the oldest first: as Meta's API gets them
        (``to``, ``type``, ``text`` or ``template`` …), with their ``phone_number_id``."""
        sent = re.compile(r"/meta/whatsapp/v[\d.]+/(\d+)/messages")
        return [
            {**request["body"], "phone_number_id": found[1]}
            for request in self.requests()
            if request["status"] == 200 and (found := sent.fullmatch(request["path"]))
        ]

    def set_funding(self, business_account_id: str, status: str) -> None:
        """Set whether Kapso pays Meta for a WhatsApp Business account: "funded", "pending",
        "unknown", "not_funded" or "revoked". It is "not_funded" at first, and "funded" once a link
        with ``meta_billing_mode="partner_managed"`` was completed."""
        self._call("PATCH", f"/sandbox/accounts/{business_account_id}", {"funding": status})

    def patch_setup_link(self, setup_link_id: str, **fields: Any) -> dict[str, Any]:
        """Change any field of a setup link, such as ``expires_at="2020-01-01T00:00:00Z"``."""
        return self._object("PATCH", f"/sandbox/setup_links/{setup_link_id}", fields)

    def state(self) -> dict[str, Any]:
        """Return counts and all objects."""
        return self._call("GET", "/sandbox/state")

    def requests(self) -> list[dict[str, Any]]:
        """Return the API requests received: method, path, query, body, has_key, status, fault."""
        return self._list("/sandbox/requests")

    # Webhooks

    def set_webhook(self, url: str | None, secret: str | None = None) -> None:
        """Send every event to ``url`` from now on; None sends none. ``secret`` None keeps it."""
        if secret is not None:
            self.webhook_secret = secret
        self._call("POST", "/sandbox/webhook", {"url": url, "secret": self.webhook_secret})

    def send_event(
        self,
        event: str,
        *,
        phone_number_id: str | None = None,
        payload: dict[str, Any] | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        """Send any event, for a number of the sandbox or with a ``payload`` of your own.

        With ``phone_number_id`` the body is built from the number, which changes as the event says
        (unless ``apply=False``); fields of a ``payload`` replace those of that body.
        ``options``: idempotency_key, webhook_id, apply, legacy; of a disconnection also reason,
        initiated_by and source_event ("PARTNER_REMOVED", "PARTNER_APP_UNINSTALLED").
        Return ``payload`` and the ids of the ``deliveries``.
        """
        body = {"event": event, **options}
        if phone_number_id is not None:
            body["phone_number_id"] = phone_number_id
        if payload is not None:
            body["payload"] = payload
        return self._call("POST", "/sandbox/events", body)

    def send_test(self, webhook_id: str, event: str | None = None) -> list[str]:
        """Send the test delivery of a webhook, also to one that is paused. Return the ids of the
        deliveries."""
        body = {"event_type": event} if event else {}
        ids: list[str] = self._call("POST", f"/sandbox/webhooks/{webhook_id}/test", body)[
            "deliveries"
        ]
        return ids

    def deliveries(self) -> list[dict[str, Any]]:
        """Return the deliveries, oldest first, with their attempts."""
        return self._list("/deliveries.json")

    def wait_for_deliveries(self, n: int, timeout: float = 10.0) -> list[dict[str, Any]]:
        """Wait until ``n`` deliveries are done (answered 200, failed or dropped); return all.

        Raise SandboxError after ``timeout`` seconds (60 at most).
        """
        rows = self._list(f"/deliveries.json?settled={n}&timeout={max(1, round(timeout))}")
        done = sum(row["state"] in ("delivered", "failed", "dropped") for row in rows)
        if done < n:
            states = [(row["event"], row["state"], row["attempts"]) for row in rows]
            raise SandboxError(f"{done} of {n} deliveries were done after {timeout} s: {states}")
        return rows

    def hold_webhooks(self, url: str) -> None:
        """Keep webhooks for ``url`` back until ``deliver_to`` posts them."""
        self.set_webhook(url)
        self.faults(drop=True)

    def deliver_to(self, client: Client) -> list[Any]:
        """Post the deliveries since the last call with Django's test ``client``, oldest first:
        those of a number's own webhook to the path of its URL.

        The sandbox cannot do so itself, since the test has no server. Return the responses.
        """
        from .webhooks import post_webhook

        new = [row for row in self.deliveries() if row["id"] not in self._posted]
        self._posted.update(row["id"] for row in new)
        of_numbers = {
            row["id"]: row for row in self.state()["webhooks"] if row["phone_number_id"] is not None
        }
        responses = []
        for row in new:
            own = of_numbers.get(row["webhook_id"])
            responses.append(
                post_webhook(
                    client,
                    row["event"],
                    row["body"].encode(),
                    idempotency_key=row["idempotency_key"],
                    secret=own["secret_key"] if own else self.webhook_secret,
                    batch_size=row["batch_size"],
                    path=urlsplit(own["url"]).path if own else "",
                )
            )
        return responses

    def resend(self, delivery_id: str, *, new_key: bool = False) -> dict[str, Any]:
        """Send a delivery again, with its own idempotency key or with a new one. Return it."""
        path = f"/sandbox/deliveries/{delivery_id}/resend"
        return self._object("POST", path, {"new_key": new_key})

    # The hosted page

    def open_setup_page(self, link_url: str) -> Response:
        """Return the hosted page as a browser gets it, without following redirects."""
        return self._http.get(link_url, timeout=REQUEST_TIMEOUT, allow_redirects=False)

    def complete(
        self,
        link_url: str,
        *,
        outcome: str = "connect",
        connection_type: str | None = None,
        phone_number: str | None = None,
        display_name: str | None = None,
    ) -> str:
        """Submit the hosted page as the customer; return where the browser is redirected, or "".

        ``outcome`` is "connect" or one of Kapso's error codes; ``phone_number`` (E.164) is
        generated when None. Raise SandboxError when the page refuses the form.
        """
        form = {
            "outcome": outcome,
            "connection_type": connection_type,
            "phone_number": phone_number,
            "display_name": display_name,
        }
        response = self._http.post(
            link_url, data=form, timeout=REQUEST_TIMEOUT, allow_redirects=False
        )
        if response.status_code >= 400:
            raise SandboxError(f"The setup page answered {response.status_code}: {response.text}")
        return response.headers.get("Location", "")
