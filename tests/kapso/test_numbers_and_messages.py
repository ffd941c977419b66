"""The client's methods for numbers, their webhooks and messages, at the sandbox."""

from __future__ import annotations

from typing import Any

import pytest
from pytest_django.live_server_helper import LiveServer

from kapso_connect.exceptions import KapsoConflict, KapsoNotFound, KapsoValidationError
from kapso_connect.kapso.client import KapsoClient
from kapso_connect.testing import Sandbox
from kapso_connect.webhooks.registration import webhook_url
from tests.conftest import WEBHOOK_SECRET
from tests.factories import listening

PERSON = "15551234567"
RECEIVED = "whatsapp.message.received"
SENT = "whatsapp.message.sent"


@pytest.fixture
def client(sandbox: Sandbox) -> KapsoClient:
    return KapsoClient(sandbox.api_key, base_url=sandbox.url, budget=10)


def test_a_number_is_connected_changed_and_used(sandbox: Sandbox, client: KapsoClient) -> None:
    customer = client.create_customer(name="Ada")
    credentials = {
        "name": "Main",
        "phone_number_id": "123456789012345",
        "business_account_id": "42",
        "access_token": "EAAG",
    }
    number = client.create_phone_number(customer.id, **credentials)
    with pytest.raises(KapsoConflict):
        client.create_phone_number(customer.id, **credentials)
    pk = number.phone_number_id
    assert client.update_phone_number(pk, {"name": "New"}).phone_number_id == pk
    assert client.get_funding("42").status == "not_funded"
    sandbox.receive_message(pk, sender=PERSON)
    assert client.send_text(pk, to=PERSON, body="Hi").id.startswith("wamid.")
    with pytest.raises(KapsoValidationError, match="Send an approved template") as caught:
        client.send_text(pk, to="15557654321", body="Hi")
    assert caught.value.meta_code == 131047
    assert client.send_template(pk, to="15557654321", name="ready", language="en_US").id
    with pytest.raises(KapsoNotFound):
        client.send_text("1", to=PERSON, body="Hi")


def test_webhooks_of_a_number_and_their_deliveries(sandbox: Sandbox, client: KapsoClient) -> None:
    pk = sandbox.add_number()["phone_number_id"]
    webhook = client.create_number_webhook(
        pk, url="http://127.0.0.1:1/hook", secret_key="s", events=[SENT]
    )
    assert [row.id for row in client.list_number_webhooks(pk)] == [webhook.id]
    client.send_template(pk, to=PERSON, name="ready", language="en_US")
    sandbox.wait_for_deliveries(1)
    [delivery] = client.list_webhook_deliveries(status="failed", webhook_id=webhook.id, event=SENT)
    assert (delivery.attempt_count, delivery.response_status) == (4, None)
    assert (delivery.webhook_url, delivery.phone_number_id) == (webhook.url, pk)
    assert list(client.list_webhook_deliveries(status="delivered")) == []
    assert not client.update_number_webhook(pk, webhook.id, {"active": False}).active
    client.delete_number_webhook(pk, webhook.id)
    assert list(client.list_number_webhooks(pk)) == []
    other = client.create_webhook(url="https://x.example", secret_key="s", events=["project.event"])
    client.delete_webhook(other.id)
    assert list(client.list_webhooks()) == []


def test_deliveries_of_many_pages_come_once(sandbox: Sandbox, client: KapsoClient) -> None:
    sandbox.hold_webhooks("http://127.0.0.1:1/hook")
    sandbox.seed(250, 1, webhooks=True)
    found = [row.id for row in client.list_webhook_deliveries()]
    assert len(found) == len(set(found)) == 250


@pytest.mark.django_db(transaction=True)
def test_messages_reach_the_receivers_of_webhook_received(
    sandbox: Sandbox, client: KapsoClient, live_server: LiveServer, configure: Any
) -> None:
    """As docs/how-to/messages.md says."""
    configure(PUBLIC_URL=live_server.url)
    pk = sandbox.add_number()["phone_number_id"]
    client.create_number_webhook(
        pk,
        url=webhook_url(),
        secret_key=WEBHOOK_SECRET,
        events=[RECEIVED],
        options={"buffer_enabled": True, "max_buffer_size": 2},
    )
    with listening("webhook_received") as heard:
        for text in ("one", "two"):
            sandbox.receive_message(pk, sender=PERSON, body=text)
        [delivery] = sandbox.wait_for_deliveries(1)
    assert delivery["state"] == "delivered"
    messages = [(arguments["event_name"], arguments["payload"]) for _, arguments in heard]
    assert [name for name, _ in messages] == [RECEIVED, RECEIVED]
    assert {payload["phone_number_id"] for _, payload in messages} == {pk}
    assert [payload["message"]["text"]["body"] for _, payload in messages] == ["one", "two"]
