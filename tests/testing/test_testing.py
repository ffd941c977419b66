from __future__ import annotations

import hashlib
import hmac
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any
from unittest import mock

import pytest
import requests
from django.contrib.auth.models import User
from django.core.exceptions import ImproperlyConfigured
from django.test import Client, TestCase
from django.urls import get_script_prefix, reverse, set_script_prefix

from kapso_connect import onboarding
from kapso_connect.models import Connection, Customer, SetupLink, TimelineEvent, WebhookEvent
from kapso_connect.testing import (
    Sandbox,
    SandboxError,
    connect_customer,
    disconnect_customer,
    fail_setup,
    invite_customer,
    post_webhook,
    reconnect_customer,
    sign,
    update_account,
    webhook_headers,
    webhook_payload,
)
from kapso_connect.webhooks import registration

from ..factories import CREATED, DELETED, listening, make_connection
from ..faulty_server import FaultyServer, answer
from ..sites.host_site.models import Bakery

pytest_plugins = ("tests.sandbox.support", "kapso_connect.testing.plugin")


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


def test_webhook_headers_have_a_random_key_and_batch_headers() -> None:
    first, second = (webhook_headers(b"", "s", event="e", batch_size=3) for _ in range(2))
    assert first["X-Idempotency-Key"] != second["X-Idempotency-Key"]
    assert (first["X-Webhook-Batch"], first["X-Batch-Size"]) == ("true", "3")


def test_the_sandbox_needs_no_django_that_is_set_up() -> None:
    code = """
import sys
from kapso_connect.testing import Sandbox, SandboxError, sign, webhook_headers
print([name for name in sys.modules if name.startswith("django")])
import kapso_connect.testing
print(hasattr(kapso_connect.testing, "connect_nobody"))
"""
    env = {name: value for name, value in os.environ.items() if "DJANGO" not in name}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["[]", "False"]


@pytest.mark.slow
def test_a_sandbox_runs_until_it_is_stopped() -> None:
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
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(SandboxError, match=r"ended with code 1:\n.*cannot listen on"):
            Sandbox(port=port)


def test_a_sandbox_that_takes_too_long_is_stopped() -> None:
    with pytest.raises(SandboxError, match="not ready after 0"):
        Sandbox(start_timeout=0)


@pytest.mark.slow
def test_waiting_for_missing_deliveries_fails_with_the_existing_ones() -> None:
    with Sandbox() as sandbox:
        sandbox.faults(drop=True)
        sandbox.set_webhook("http://127.0.0.1:9/", "s")
        sandbox.add_number(webhook=True)
        message = r"1 of 2 deliveries.*whatsapp\.phone_number\.created.*dropped"
        with pytest.raises(SandboxError, match=message):
            sandbox.wait_for_deliveries(2, timeout=1)
        assert sandbox.webhook_secret == "s"


# Customers


@pytest.fixture(params=[False, True], ids=["in a test's transaction", "with commits"])
def _database(request: pytest.FixtureRequest) -> None:
    request.getfixturevalue("transactional_db" if request.param else "db")


@pytest.mark.usefixtures("_database")
def test_a_customer_connects_and_the_signal_is_sent() -> None:
    with listening() as signals:
        connection = connect_customer(phone_number="+1 415-555-0100", connection_type="dedicated")
    assert signals.names() == ["whatsapp_connected"]
    assert signals.only("whatsapp_connected")["connection"] == connection
    assert signals.only("whatsapp_connected")["source"] == "webhook"
    assert connection.is_connected
    assert connection.display_phone_number == "+1 415-555-0100"
    assert connection.connection_type == "dedicated"
    assert connection.verified_name == connection.customer.name == "Ada's Bakery"
    assert connection.phone_number_id.isdecimal()
    assert connection.business_account_id.isdecimal()
    assert connection.customer.kapso_id


@pytest.mark.usefixtures("_database")
def test_every_step_of_a_customer_sends_its_signal() -> None:
    with listening() as signals:
        link = invite_customer(name="Bäckerei Süß", options={"language": "es"}, next_url="/next/")
        assert fail_setup(link, "waba_limit_reached").last_error_code == "waba_limit_reached"
        connection = connect_customer(setup_link=link, source="redirect", verified_name="Süß")
        update_account(connection, "restricted", restrictions=[{"type": "X"}])
        update_account(connection, "violation", violation={"type": "SPAM"})
        disconnect_customer(connection, reason="left")
        reconnect_customer(connection, source="sync")
    assert signals.names() == [
        "setup_link_created",
        "whatsapp_setup_failed",
        "whatsapp_connected",
        "whatsapp_account_updated",
        "whatsapp_account_updated",
        "whatsapp_disconnected",
        "whatsapp_reconnected",
    ]
    assert (link.options["language"], link.next_url) == ("es", "/next/")
    assert link.customer.name == "Bäckerei Süß"
    assert signals.only("whatsapp_setup_failed")["error_code"] == "waba_limit_reached"
    assert signals.only("whatsapp_setup_failed")["source"] == "redirect"
    assert signals.only("whatsapp_connected")["setup_link"] == link
    assert signals.only("whatsapp_connected")["source"] == "redirect"
    restricted, violation = (signals[index][1]["event"].data for index in (3, 4))
    assert (restricted["event"], restricted["restrictions"]) == ("restricted", [{"type": "X"}])
    assert (violation["event"], violation["violation"]) == ("violation", {"type": "SPAM"})
    assert signals.only("whatsapp_disconnected")["event"].data["reason"] == "left"
    assert signals.only("whatsapp_reconnected")["source"] == "sync"
    assert connection.is_connected
    assert connection.account_status == "restricted"
    assert (connection.verified_name, connection.customer.name) == ("Süß", "Bäckerei Süß")
    link.refresh_from_db()
    assert link.setup_status == "completed"


@pytest.mark.django_db
def test_the_returned_object_is_up_to_date() -> None:
    connection = connect_customer()
    assert disconnect_customer(connection) is connection
    assert (connection.is_connected, connection.disconnect_reason) == (False, "deleted")
    assert reconnect_customer(connection) is connection
    assert connection.is_connected
    assert update_account(connection, "disabled") is connection
    assert connection.account_status == "disabled"
    disconnect_customer(connection)
    assert disconnect_customer(connection) is connection
    kinds = TimelineEvent.objects.filter(kind="disconnected")
    assert kinds.count() == 2


@pytest.mark.django_db
def test_a_test_may_stop_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    noon = datetime(2026, 1, 1, 12, tzinfo=timezone.utc)
    monkeypatch.setattr("django.utils.timezone.now", lambda: noon)
    connection = connect_customer()
    assert not disconnect_customer(connection).is_connected
    assert reconnect_customer(connection).is_connected
    assert update_account(connection, "restricted").account_status == "restricted"
    assert update_account(connection, "reinstated").account_status == "active"


@pytest.mark.django_db
def test_the_customer_can_be_chosen() -> None:
    bakery = Bakery.objects.create(title="Süß")
    customer = Customer.objects.for_owner(bakery)
    assert invite_customer(owner=bakery).customer == customer
    connection = connect_customer(owner=bakery)
    assert connection.customer == customer
    assert connection.setup_link == SetupLink.objects.get(), "the open link is how they came"
    other = Customer.objects.create(name="Other")
    assert invite_customer(other).customer == other
    assert connect_customer(other).customer == other
    with listening() as signals:
        connect_customer(other, phone_number_id=connection.phone_number_id)
    assert signals.names() == ["whatsapp_disconnected", "whatsapp_connected"]
    connection.refresh_from_db()
    assert connection.customer == other


@pytest.mark.django_db
def test_two_customers_at_once_are_refused() -> None:
    bakery = Bakery.objects.create(title="Süß")
    link, other = invite_customer(), Customer.objects.create(name="Other")
    before = Customer.objects.count()
    for wrong in (
        {"customer": other, "owner": bakery},
        {"customer": other, "setup_link": link},
        {"owner": bakery, "setup_link": link},
    ):
        with pytest.raises(ValueError, match="customer"):
            connect_customer(**wrong)  # type: ignore[arg-type]
    assert connect_customer(link.customer, setup_link=link).setup_link == link
    assert Customer.objects.count() == before


@pytest.mark.django_db
def test_an_invitation_records_who_created_it() -> None:
    staff = User.objects.create(username="staff")
    link = invite_customer(created_by=staff)
    assert link.created_by == staff
    assert link.is_usable
    assert link.customer.kapso_id


class OfDjangosOwn(TestCase):
    def test_it_works_without_pytest(self) -> None:
        with listening() as signals:
            disconnect_customer(connect_customer())
        assert signals.names() == ["whatsapp_connected", "whatsapp_disconnected"]


# Webhooks


@pytest.mark.usefixtures("_database")
def test_a_webhook_is_delivered_to_the_test_client(client: Client) -> None:
    customer = connect_customer().customer
    payload = webhook_payload(CREATED, customer, "100000000000009")
    with listening("whatsapp_connected", "webhook_received") as signals:
        answers = [post_webhook(client, CREATED, payload, idempotency_key="k") for _ in range(2)]
    assert [answer.json() for answer in answers] == [
        {"received": 1, "duplicates": 0},
        {"received": 0, "duplicates": 1},
    ]
    assert signals.names() == ["webhook_received", "whatsapp_connected"]
    assert customer.connections.filter(phone_number_id="100000000000009").exists()


@pytest.mark.django_db
def test_a_webhook_is_signed_with_the_given_secret(client: Client, configure: Any) -> None:
    configure(WEBHOOK_SECRET=["one", "two"])
    for secret, status in ((None, 200), ("two", 200), ("three", 401)):
        assert post_webhook(client, "a.b", {}, secret=secret).status_code == status
    configure(WEBHOOK_SECRET="")
    with pytest.raises(ImproperlyConfigured, match="WEBHOOK_SECRET"):
        post_webhook(client, "a.b", {})


@pytest.mark.django_db
def test_a_webhook_comes_by_https(client: Client, settings: Any) -> None:
    settings.SECURE_SSL_REDIRECT = True
    assert post_webhook(client, "a.b", {}).status_code == 200


@pytest.mark.django_db
def test_bytes_and_batches_are_sent_unchanged(client: Client) -> None:
    assert post_webhook(client, "a.b", b"no JSON").status_code == 400
    batch = b'{"type": "a.b", "data": [{}, {}]}'
    assert post_webhook(client, "a.b", batch, batch_size=2).json()["received"] == 2


@pytest.fixture
def script_name(settings: Any) -> Iterator[None]:
    """A site below a path of its domain, as after ``django.setup()``."""
    settings.FORCE_SCRIPT_NAME = "/shop"
    before = get_script_prefix()
    set_script_prefix("/shop/")
    yield
    set_script_prefix(before)


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("script_name")
def test_a_webhook_is_delivered_to_a_site_below_a_path(client: Client, live_server: Any) -> None:
    assert reverse("kapso_connect:webhook") == "/shop/whatsapp/webhook/"
    for site in (client, live_server.url):
        assert post_webhook(site, "a.b", {}).status_code == 200


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyServer]:
    """A proxy in the environment, also for this machine's own addresses."""
    with FaultyServer() as server:
        server.will(answer(502, {"error": "the proxy"}))
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, server.url)
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        yield server


@pytest.mark.django_db(transaction=True)
def test_no_proxy_gets_requests_for_this_machine(
    proxy: FaultyServer, kapso_live_sandbox: Sandbox, live_server: Any
) -> None:
    assert post_webhook(live_server.url, "a.b", {}).status_code == 200
    link = onboarding.create_setup_link(Customer.objects.create(name="Ada"))
    assert kapso_live_sandbox.complete(link.url).startswith(live_server.url)
    assert Connection.objects.connected().count() == 1
    url = live_server.url + "/whatsapp/webhook/"
    assert registration.check_signature(url, kapso_live_sandbox.webhook_secret).accepted
    assert proxy.requests == []


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("path", ["", "/", "/whatsapp/webhook/"])
def test_a_webhook_is_delivered_to_a_running_site(live_server: Any, path: str) -> None:
    response = post_webhook(live_server.url + path, "a.b", {})
    assert (response.status_code, response.json()["received"]) == (200, 1)


@pytest.mark.django_db
def test_numbers_of_unknown_accounts_are_not_of_one_account() -> None:
    known, other = (make_connection(business_account_id="") for _ in range(2))
    assert update_account(known, "disabled").account_status == "disabled"
    other.refresh_from_db()
    assert other.account_status == "active"
    assert not other.events.exists()


@pytest.mark.django_db
@pytest.mark.parametrize(
    "event",
    [
        CREATED,
        DELETED,
        "whatsapp.phone_number.offboarded",
        "whatsapp.phone_number.disconnected",
        "whatsapp.account.restricted",
    ],
)
def test_payloads_have_the_fields_of_the_sandboxs(box: Sandbox, event: str) -> None:
    remote = box.add_number(external_customer_id="a")
    sent = box.send_event(event, phone_number_id=remote["phone_number_id"])["payload"]
    made = webhook_payload(event, Customer(kapso_id="1", external_customer_id="a"), "100", x=1)
    assert made.pop("x") == 1
    optional = {"connection_type", "disconnection", "restrictions"}
    assert set(made) == set(sent) - optional
    if "source" in sent:
        assert made["source"]["event"] == sent["source"]["event"]
    if event == "whatsapp.account.restricted":
        assert made["id"][:4] == sent["id"][:4] == "wae_"
    assert type(made["project"]) is type(sent["project"])
    if "customer" in made:
        assert made["customer"] == {"id": "1", "external_id": "a"}
        assert made["phone_number_id"] == "100"
        assert set(sent["customer"]) == set(made["customer"])
    else:
        assert made["phone_numbers"][0]["id"] == "100"


@pytest.mark.django_db
def test_payloads_are_processed(client: Client) -> None:
    connection = connect_customer()
    whose, number = connection.customer, connection.phone_number_id
    waba = {"business_account_id": connection.business_account_id}
    for event, more in (
        ("whatsapp.account.restricted", waba),
        ("whatsapp.phone_number.disconnected", {"disconnection": {"reason": "left"}}),
    ):
        post_webhook(client, event, webhook_payload(event, whose, number, **more))
    connection.refresh_from_db()
    assert connection.account_status == "restricted"
    assert (connection.is_connected, connection.disconnect_reason) == (False, "left")
    assert set(WebhookEvent.objects.values_list("status", flat=True)) == {"processed"}


# Fixtures


@pytest.mark.django_db
def test_the_sandbox_delivers_to_the_test_client(
    kapso_sandbox: Sandbox,
    client: Client,
) -> None:
    link = onboarding.create_setup_link(Customer.objects.create(name="Ada"))
    assert kapso_sandbox.deliver_to(client) == []
    location = kapso_sandbox.complete(link.url, phone_number="+14155550100")
    assert not Connection.objects.exists()
    with listening("whatsapp_connected") as signals:
        (answer,) = kapso_sandbox.deliver_to(client)
    assert answer.json() == {"received": 1, "duplicates": 0}
    assert signals.names() == ["whatsapp_connected"]
    assert kapso_sandbox.deliver_to(client) == []
    assert location.startswith("https://testserver/whatsapp/success/?")
    assert client.get(location, secure=True).status_code == 200
    assert Connection.objects.get().display_phone_number.startswith("+1 415")
    kapso_sandbox.resend(kapso_sandbox.deliveries()[0]["id"])
    (again,) = kapso_sandbox.deliver_to(client)
    assert again.json() == {"received": 0, "duplicates": 1}


@pytest.mark.django_db
def test_a_batch_is_delivered_as_one(kapso_sandbox: Sandbox, client: Client) -> None:
    kapso_sandbox.faults(batch=2)
    for _ in range(2):
        kapso_sandbox.send_event("project.event", payload={"a": 1})
    with mock.patch.object(Client, "post", autospec=True, side_effect=Client.post) as posted:
        (answer,) = kapso_sandbox.deliver_to(client)
    assert answer.json()["received"] == 2
    assert posted.call_args.kwargs["headers"]["X-Batch-Size"] == "2"


@pytest.mark.django_db
def test_customers_connect_without_kapso_also_with_a_webhook_for_messages(
    configure: Any, django_assert_num_queries: Any
) -> None:
    with FaultyServer() as kapso:
        kapso.will(answer(500))
        configure(API_BASE_URL=kapso.url, NUMBER_WEBHOOK={"url": "/messages/", "secret": "s" * 20})
        connection = connect_customer()
        disconnect_customer(connection)
        reconnect_customer(connection)
        assert kapso.requests == []
    assert not TimelineEvent.objects.undelivered().exists()


@pytest.mark.django_db
def test_the_sandbox_delivers_messages_to_the_sites_own_view(
    kapso_sandbox: Sandbox, client: Client, configure: Any
) -> None:
    configure(NUMBER_WEBHOOK={"url": "/messages/", "secret": "the secret of messages"})
    kapso_sandbox.complete(onboarding.create_setup_link(Customer.objects.create(name="Ada")).url)
    kapso_sandbox.deliver_to(client)
    number = Connection.objects.get().phone_number_id
    kapso_sandbox.receive_message(number, sender="15551234567")
    with mock.patch.object(Client, "post", autospec=True, side_effect=Client.post) as posted:
        kapso_sandbox.deliver_to(client)
    _client, path, body = posted.call_args.args
    assert path == "/messages/"
    signature = posted.call_args.kwargs["headers"]["X-Webhook-Signature"]
    assert signature == sign(body, "the secret of messages")


@pytest.mark.django_db(transaction=True)
def test_the_sandbox_delivers_to_a_live_server(
    kapso_live_sandbox: Sandbox,
    live_server: Any,
) -> None:
    link = onboarding.create_setup_link(Customer.objects.create(name="Ada"))
    location = kapso_live_sandbox.complete(link.url)
    assert Connection.objects.get().is_connected, "the webhook comes before the browser"
    assert location.startswith(f"{live_server.url}/whatsapp/success/?")
    assert requests.get(location, timeout=10).status_code == 200
    assert [row["state"] for row in kapso_live_sandbox.deliveries()] == ["delivered"]


@pytest.mark.django_db
def test_each_test_gets_an_empty_sandbox(
    kapso_sandbox: Sandbox,
    settings: Any,
) -> None:
    state = kapso_sandbox.state()
    assert (state["counts"]["customers"], state["counts"]["deliveries"]) == (0, 0)
    assert (state["faults"]["drop"], state["faults"]["webhook_first"]) == (True, False)
    assert settings.KAPSO_CONNECT["PUBLIC_URL"] == "https://testserver"
