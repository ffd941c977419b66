"""The package kapso-whatsapp-cloud-api, which other sites use, drives the sandbox unchanged."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

import pytest

from kapso_connect.testing import Sandbox

if TYPE_CHECKING:
    from tests.sandbox.support import Receiver

pytestmark = pytest.mark.slow
pytest_plugins = ("tests.sandbox.support",)

CREATED = "whatsapp.phone_number.created"
RECEIVED = "whatsapp.message.received"

Use = Callable[[Callable[[Any], Coroutine[Any, Any, None]]], None]


@pytest.fixture
def use(box: Sandbox) -> Use:
    """Run a coroutine function with a client of the package."""
    kapso_whatsapp = pytest.importorskip("kapso_whatsapp")

    def use(steps: Callable[[Any], Coroutine[Any, Any, None]]) -> None:
        async def run() -> None:
            url = f"{box.url}/platform/v1"
            async with kapso_whatsapp.KapsoPlatformClient(
                api_key=box.api_key, base_url=url, max_retries=0
            ) as client:
                await steps(client)

        asyncio.run(run())

    return use


def test_customers(use: Use) -> None:
    async def steps(client: Any) -> None:
        made = [
            await client.customers.create(name=f"Bakery {i}", external_customer_id=f"bakery-{i}")
            for i in range(5)
        ]
        assert [c.id async for c in client.customers.iter(per_page=2)] == [
            c.id for c in reversed(made)
        ]
        (found,) = await client.customers.list(external_customer_id="bakery-3")
        assert found == await client.customers.get(made[3].id)
        assert len(await client.customers.list(name_contains="bakery")) == 5
        renamed = await client.customers.update(made[0].id, name="Patisserie")
        assert (renamed.name, renamed.external_customer_id) == ("Patisserie", "bakery-0")
        await client.customers.delete(made[0].id)
        assert made[0].id not in [c.id for c in await client.customers.list()]

    use(steps)


def test_setup_links(use: Use, box: Sandbox) -> None:
    async def steps(client: Any) -> None:
        customer = await client.customers.create(name="Bakery")
        minimal = await client.setup_links.create(customer.id)
        assert minimal.status == "active"
        assert sorted(minimal.allowed_connection_types) == ["coexistence", "dedicated"]
        full = await client.setup_links.create(
            customer.id,
            success_redirect_url="https://shop.example/ok",
            failure_redirect_url="https://shop.example/no",
            allowed_connection_types=["dedicated"],
            theme_config={"primary_color": "#22c55e"},
            provision_phone_number=True,
            phone_number_country_isos=["US"],
            phone_number_area_code="415",
            language="pt",
        )
        assert full.theme_config.primary_color == "#22c55e"
        statuses = {row.id: row.status for row in await client.setup_links.list(customer.id)}
        assert statuses == {minimal.id: "revoked", full.id: "active"}
        changed = await client.setup_links.update(
            customer.id, full.id, success_redirect_url="https://shop.example/thanks"
        )
        assert changed.success_redirect_url == "https://shop.example/thanks"
        revoked = await client.setup_links.update(customer.id, full.id, status="revoked")
        assert revoked.status == "revoked"

    use(steps)


def test_numbers(use: Use, box: Sandbox) -> None:
    async def steps(client: Any) -> None:
        customer = await client.customers.create(name="Bakery")
        link = await client.setup_links.create(customer.id)
        await asyncio.to_thread(box.complete, link.url)
        connected = await client.phone_numbers.connect(
            customer.id,
            name="Second line",
            kind="production",
            phone_number_id="123456789012345",
            business_account_id="987654321",
            access_token="EAAG-token",
            calls_enabled=True,
        )
        assert (connected.phone_number_id, connected.calls_enabled) == ("123456789012345", True)
        numbers = await client.phone_numbers.list(customer_id=customer.id)
        assert len(numbers) == 2
        renamed = await client.phone_numbers.update(connected.id, name="Orders")
        assert renamed.name == "Orders"
        health = await client.phone_numbers.check_health(numbers[-1].id)
        assert (health.status, health.error) == ("healthy", None)
        await client.phone_numbers.delete(connected.id)

    use(steps)


def test_project_webhooks_and_deliveries(use: Use, box: Sandbox, box_receiver: Receiver) -> None:
    async def steps(client: Any) -> None:
        made = await client.project_webhooks.create(
            url=box_receiver.url, events=[CREATED], secret_key="s3cret", payload_version="v2"
        )
        assert made.headers == {}
        paused = await client.project_webhooks.update(made.id, active=False)
        assert paused.active is False
        await client.project_webhooks.update(made.id, active=True, headers={"X-Shop": "1"})
        assert (await client.project_webhooks.get(made.id)).headers == {"X-Shop": "1"}
        assert made.id in [row.id async for row in client.project_webhooks.iter(per_page=1)]
        result = await client.project_webhooks.test(made.id, event_type=CREATED)
        assert result.success is True
        await asyncio.to_thread(box.wait_for_deliveries, 1)
        (delivery,) = await client.webhook_deliveries.list(webhook_id=made.id)
        assert (delivery.event, delivery.status, delivery.response_status) == (
            CREATED,
            "delivered",
            200,
        )
        assert [row.id async for row in client.webhook_deliveries.iter()] == [delivery.id]
        assert await client.webhook_deliveries.list(errors_only=True) == []
        await client.project_webhooks.delete(made.id)
        assert made.id not in [row.id for row in await client.project_webhooks.list()]

    use(steps)


def test_number_webhooks(use: Use, box: Sandbox, box_receiver: Receiver) -> None:
    async def steps(client: Any) -> None:
        customer = await client.customers.create(name="Bakery")
        link = await client.setup_links.create(customer.id)
        await asyncio.to_thread(box.complete, link.url)
        (number,) = await client.phone_numbers.list()
        made = await client.webhooks.create(
            number.id,
            url=box_receiver.url,
            events=[RECEIVED],
            secret_key="s3cret",
            buffer_enabled=True,
            buffer_window_seconds=10,
        )
        assert made.buffer_window_seconds == 10
        changed = await client.webhooks.update(
            number.id, made.id, events=[RECEIVED, "whatsapp.message.failed"]
        )
        assert len(changed.events) == 2
        assert (await client.webhooks.get(number.id, made.id)).phone_number_id == number.id
        assert [row.id for row in await client.webhooks.list(number.id)] == [made.id]
        await client.webhooks.delete(number.id, made.id)
        assert await client.webhooks.list(number.id) == []

    use(steps)


def test_errors_are_told_as_those_of_kapso(use: Use) -> None:
    exceptions = pytest.importorskip("kapso_whatsapp.exceptions")

    async def steps(client: Any) -> None:
        with pytest.raises(exceptions.NotFoundError):
            await client.customers.get("00000000-0000-0000-0000-000000000000")
        with pytest.raises(exceptions.ValidationError, match="unsupported events"):
            await client.project_webhooks.create(url="https://a.example/", events=["made.up"])

    use(steps)
