"""The webhook of each number, as NUMBER_WEBHOOK says: registered, repaired, and removed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from threading import Barrier
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.test import Client
from django.urls import reverse_lazy
from django.utils import timezone

from kapso_connect import onboarding, outbox, sync
from kapso_connect.conf import get_conf
from kapso_connect.db import atomic
from kapso_connect.exceptions import CalledInTransaction, KapsoUnavailable, KapsoValidationError
from kapso_connect.kapso.client import KapsoClient
from kapso_connect.models import OFFBOARDED, Connection, Customer, TimelineEvent
from kapso_connect.onboarding.numbers import Number
from kapso_connect.signals import whatsapp_connected
from kapso_connect.testing import Sandbox, post_webhook, webhook_payload
from kapso_connect.webhooks import number_webhooks

from ..factories import (
    listening,
    make_connection,
    make_customer,
    payload_for,
    post,
    queue_without_worker,
    remote_customer,
)
from ..faults import around_api_requests

pytestmark = pytest.mark.django_db(transaction=True)

Kind = TimelineEvent.Kind
URL = "https://site.example/messages/"
SECRET = "the secret of messages"
RECEIVED, FAILED = "whatsapp.message.received", "whatsapp.message.failed"
SETTING = {"url": "/messages/", "secret": SECRET, "events": [RECEIVED, FAILED]}
KINDS = ("number_webhook_created", "number_webhook_updated", "number_webhook_deleted")


@pytest.fixture
def kapso(sandbox: Sandbox, configure: Callable[..., None]) -> Sandbox:
    """A sandbox, and a site with NUMBER_WEBHOOK."""
    configure(NUMBER_WEBHOOK=SETTING)
    return sandbox


def client() -> KapsoClient:
    return KapsoClient.from_settings(budget=10)


def webhooks(sandbox: Sandbox) -> list[dict[str, Any]]:
    return [row for row in sandbox.state()["webhooks"] if row["phone_number_id"]]


def only(sandbox: Sandbox) -> dict[str, Any]:
    (webhook,) = webhooks(sandbox)
    return webhook


def number_of(sandbox: Sandbox, customer: Customer) -> str:
    """The id of the number that the sandbox has for a customer."""
    (number,) = [
        row["phone_number_id"]
        for row in sandbox.state()["phone_numbers"]
        if row["customer_id"] == customer.kapso_id
    ]
    return str(number)


def known(sandbox: Sandbox, **fields: Any) -> Connection:
    """A connected number of which no signal was sent."""
    customer = remote_customer(sandbox)
    return make_connection(customer, phone_number_id=number_of(sandbox, customer), **fields)


def connect(sandbox: Sandbox, **options: Any) -> Connection:
    """Connect a number as the API reports it: the signal is sent."""
    customer = remote_customer(sandbox)
    return onboarding.connect(
        customer,
        Number(number_of(sandbox, customer)),
        **{"source": "redirect", "asked_at": timezone.now(), **options},
    )


def register(connection: Connection) -> bool:
    connection.refresh_from_db()
    return number_webhooks.register(connection, client(), source="sync")


def kinds() -> list[str]:
    """The kinds of the timeline's events about webhooks of numbers."""
    events = TimelineEvent.objects.filter(kind__in=KINDS).order_by("pk")
    return [kind.removeprefix("number_webhook_") for kind in events.values_list("kind", flat=True)]


def create(connection: Connection, **fields: Any) -> str:
    """A webhook of the number that somebody else registered."""
    values = {"url": URL, "secret_key": SECRET, "events": [RECEIVED, FAILED], **fields}
    return client().create_number_webhook(connection.phone_number_id, **values).id


@contextmanager
def away(sandbox: Sandbox, status: int = 503, match: str = "/webhooks") -> Iterator[None]:
    sandbox.faults(api=[{"match": match, "kind": "status", "status": status}])
    yield
    sandbox.clear_faults()


# When a number is connected


def test_connected_number_gets_its_webhook(kapso: Sandbox) -> None:
    connection = connect(kapso)
    webhook = only(kapso)
    assert webhook["url"] == URL
    assert sorted(webhook["events"]) == sorted([RECEIVED, FAILED])
    assert (webhook["kind"], webhook["active"], webhook["payload_version"]) == (
        *("kapso", True),
        "v2",
    )
    assert webhook["phone_number_id"] == connection.phone_number_id
    connection.refresh_from_db()
    assert connection.number_webhook_id == webhook["id"]
    event = TimelineEvent.objects.get(kind="number_webhook_created")
    assert (event.customer, event.connection, event.source) == (
        connection.customer,
        connection,
        "redirect",
    )
    assert event.data == {"url": URL, "kind": "kapso", "events": [RECEIVED, FAILED]}


def test_number_connected_by_the_webhook_gets_its_own(kapso: Sandbox) -> None:
    customer = remote_customer(kapso)
    assert post(payload_for(customer, number_of(kapso, customer))).status_code == 200
    assert only(kapso)["url"] == URL
    assert kinds() == ["created"]


def test_number_that_is_connected_twice_has_one_webhook(kapso: Sandbox) -> None:
    connection = connect(kapso)
    connect_again = {"asked_at": timezone.now(), "source": "redirect"}
    onboarding.connect(connection.customer, Number(connection.phone_number_id), **connect_again)
    onboarding.disconnect(
        connection.phone_number_id,
        source="webhook",
        asked_at=timezone.now(),
        data={"reason": OFFBOARDED},
    )
    onboarding.connect(
        connection.customer,
        Number(connection.phone_number_id),
        source="webhook",
        asked_at=timezone.now() + timedelta(seconds=1),
        kind=Kind.RECONNECTED,
    )
    assert only(kapso)["url"] == URL
    assert kinds() == ["created"]


def test_webhook_in_metas_form_has_no_events(kapso: Sandbox, configure: Any) -> None:
    configure(NUMBER_WEBHOOK={"url": URL, "secret": SECRET, "kind": "meta"})
    connection = connect(kapso)
    assert (only(kapso)["kind"], only(kapso)["events"]) == ("meta", [])
    assert not register(connection)


def test_without_the_setting_no_number_gets_a_webhook(sandbox: Sandbox) -> None:
    connect(sandbox)
    assert webhooks(sandbox) == []
    assert not any("webhooks" in request["path"] for request in sandbox.requests())


def test_site_receivers_are_called_first_and_are_not_replaced(kapso: Sandbox) -> None:
    seen: list[int] = []

    def receiver(connection: Connection, **kwargs: Any) -> None:
        seen.append(len(webhooks(kapso)))

    whatsapp_connected.connect(receiver, dispatch_uid="the site's")
    try:
        connect(kapso)
    finally:
        whatsapp_connected.disconnect(dispatch_uid="the site's")
    assert seen == [0], "before the webhook is registered"
    event = TimelineEvent.objects.get(kind="connected")
    assert event.receivers == ["the site's", outbox.NUMBER_WEBHOOK_RECEIVER]


def test_own_receivers_are_not_those_of_the_site(kapso: Sandbox, configure: Any) -> None:
    configure(EMAIL_CONNECTED=True)
    assert outbox.has_receivers(Kind.CONNECTED)
    assert not outbox.has_site_receivers(Kind.CONNECTED)
    connect(kapso)
    event = TimelineEvent.objects.get(kind="connected")
    assert event.receivers == [*outbox.OWN_RECEIVERS]
    assert TimelineEvent.objects.filter(outbox.heard_by_nobody(), kind="connected").count() == 1


def test_receivers_follow_the_setting(configure: Any) -> None:
    for webhook, is_connected in ((SETTING, True), (None, False), ({"url": ""}, False)):
        configure(NUMBER_WEBHOOK=webhook)
        for kind in (Kind.CONNECTED, Kind.RECONNECTED, Kind.DISCONNECTED):
            assert outbox.has_receivers(kind) is is_connected


def test_while_kapso_is_away_it_is_tried_again(kapso: Sandbox) -> None:
    with away(kapso), listening("whatsapp_connected") as heard:
        connection = connect(kapso)
    assert heard.names() == ["whatsapp_connected"], "the site hears of it all the same"
    assert connection.is_connected
    event = TimelineEvent.objects.get(kind="connected")
    assert event.delivered_at is None
    assert event.last_error.startswith("kapso_connect.number_webhook: NumberWebhookError")
    with listening("whatsapp_connected") as again:
        assert outbox.resend(event)
    assert again.names() == [], "only the receiver that raised"
    assert kinds() == ["created"]


@pytest.mark.parametrize("has_site_receiver", [True, False])
def test_setting_that_is_taken_out_leaves_no_signal_that_fails(
    kapso: Sandbox, configure: Any, has_site_receiver: bool
) -> None:
    with listening("whatsapp_connected") if has_site_receiver else nullcontext():
        with away(kapso):
            connect(kapso)
        configure(NUMBER_WEBHOOK=None)
        event = TimelineEvent.objects.get(kind="connected")
        assert outbox.deliver(event.pk, needs_receiver=True) is False, "it is not due yet"
        TimelineEvent.objects.update(next_attempt_at=timezone.now())
        assert outbox.deliver(event.pk)
    event.refresh_from_db()
    assert (event.delivered_at is not None, event.last_error) == (True, "")


def test_setting_that_is_taken_out_does_not_hide_another_receiver(
    kapso: Sandbox, configure: Any
) -> None:
    def fail(**kwargs: Any) -> None:
        raise ValueError

    whatsapp_connected.connect(fail, dispatch_uid="the site's")
    with listening("whatsapp_connected"):
        with away(kapso):
            connect(kapso)
        whatsapp_connected.disconnect(dispatch_uid="the site's")
        configure(NUMBER_WEBHOOK=None)
        TimelineEvent.objects.update(next_attempt_at=timezone.now())
        assert not outbox.deliver(TimelineEvent.objects.get(kind="connected").pk)
    assert TimelineEvent.objects.get(kind="connected").last_error == outbox.NO_RECEIVER


def test_email_that_was_not_sent_is_not_forgotten_with_the_setting(
    kapso: Sandbox, configure: Any
) -> None:
    connection = connect(kapso)
    event = TimelineEvent.objects.get(kind="connected", connection=connection)
    errors = [f"{name}: ValueError" for name in outbox.OWN_RECEIVERS]
    TimelineEvent.objects.filter(pk=event.pk).update(
        delivered_at=None,
        needs_site_receiver=False,
        last_error="\n".join(errors),
        next_attempt_at=timezone.now(),
    )
    configure(NUMBER_WEBHOOK=None)
    assert not outbox.deliver(event.pk)


def test_site_without_receivers_of_disconnections_is_not_warned(
    kapso: Sandbox, caplog: Any
) -> None:
    with listening("whatsapp_connected"):
        disconnect(connect(kapso))
    logged = [vars(row).get("kapso_event") for row in caplog.records]
    assert "signal.unheard" not in logged


@pytest.mark.parametrize("url", ["  ", reverse_lazy("no such page"), 5, ["/messages/"]])
def test_url_that_is_no_text_connects_no_receiver(configure: Any, url: Any) -> None:
    configure(NUMBER_WEBHOOK={**SETTING, "url": url})
    assert not outbox.has_receivers(Kind.CONNECTED)
    with nullcontext() if isinstance(url, str) else pytest.raises(ImproperlyConfigured):
        assert get_conf().number_webhook is None


@pytest.mark.parametrize(
    "webhook",
    [
        {**SETTING, "events": ["whatsapp.message.unheard_of"]},
        {**SETTING, "secret": ""},
        {**SETTING, "url": "https://"},
    ],
)
def test_broken_setting_costs_no_connection(
    kapso: Sandbox, configure: Any, caplog: Any, webhook: dict[str, Any]
) -> None:
    configure(NUMBER_WEBHOOK=webhook)
    with listening("whatsapp_connected") as heard:
        assert connect(kapso).is_connected
    assert heard.names() == ["whatsapp_connected"]
    event = TimelineEvent.objects.get(kind="connected")
    assert event.delivered_at is not None, "it would fail again, so it is not repeated"
    (record,) = [
        row for row in caplog.records if vars(row).get("kapso_event") == "number_webhook.failed"
    ]
    assert SECRET not in record.getMessage()
    assert webhooks(kapso) == []


def test_slow_api_costs_two_seconds_at_most(kapso: Sandbox) -> None:
    kapso.faults(api=[{"match": "/webhooks", "kind": "slow", "seconds": 6}])
    started = timezone.now()
    connect(kapso)
    assert timezone.now() - started < timedelta(seconds=4)
    kapso.clear_faults()


def test_numbers_of_one_delivery_share_the_time(kapso: Sandbox) -> None:
    connections = [known(kapso) for _ in range(3)]
    kapso.faults(api=[{"match": "/webhooks", "kind": "slow", "seconds": 6}])
    started = timezone.now()
    with number_webhooks.shared_budget():
        for connection in connections:
            with pytest.raises(number_webhooks.NumberWebhookError):
                number_webhooks.register_connected(connection, "webhook")
    assert timezone.now() - started < timedelta(seconds=4)
    kapso.clear_faults()


def test_delivery_of_many_numbers_is_answered_in_time(kapso: Sandbox) -> None:
    created = "whatsapp.phone_number.created"
    customers = [remote_customer(kapso) for _ in range(4)]
    numbers = [
        webhook_payload(created, customer, phone_number_id=number_of(kapso, customer))
        for customer in customers
    ]
    kapso.faults(api=[{"match": "/webhooks", "kind": "slow", "seconds": 6}])
    started = timezone.now()
    answer = post_webhook(Client(), created, {"type": created, "batch": True, "data": numbers})
    assert timezone.now() - started < timedelta(seconds=6)
    kapso.clear_faults()
    assert answer.json() == {"received": 4, "duplicates": 0}
    assert Connection.objects.connected().count() == 4


def test_number_that_kapso_does_not_show_yet_is_tried_again(kapso: Sandbox) -> None:
    connection = make_connection(make_customer())
    with pytest.raises(number_webhooks.NumberWebhookError):
        number_webhooks.register_connected(connection, "webhook")
    Connection.objects.update(connected_at=timezone.now() - timedelta(hours=1))
    number_webhooks.register_connected(connection, "webhook")  # only logged


def test_nothing_is_asked_in_a_transaction(
    kapso: Sandbox, requests_in_transaction: list[bool]
) -> None:
    connection = known(kapso)
    for change in (number_webhooks.register, number_webhooks.remove):
        with pytest.raises(CalledInTransaction), atomic():
            change(connection, client(), source="sync")
    connect(kapso)
    assert requests_in_transaction
    assert not any(requests_in_transaction)


# One webhook, and right


def test_registering_again_changes_nothing(kapso: Sandbox) -> None:
    connection = known(kapso)
    assert register(connection)
    assert not register(connection)
    assert kinds() == ["created"]


def test_webhook_that_was_registered_by_hand_is_adopted(kapso: Sandbox) -> None:
    connection = known(kapso)
    webhook_id = create(connection)
    assert register(connection)
    connection.refresh_from_db()
    assert (connection.number_webhook_id, only(kapso)["id"]) == (webhook_id, webhook_id)
    assert kinds() == ["created"]


def test_webhooks_with_other_urls_are_left_alone(kapso: Sandbox) -> None:
    connection = known(kapso)
    create(connection, url="https://elsewhere.example/messages/", events=[RECEIVED])
    register(connection)
    assert sorted(row["url"] for row in webhooks(kapso)) == [
        "https://elsewhere.example/messages/",
        URL,
    ]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("url", "https://old.example/messages/"),
        ("events", [RECEIVED]),
        ("events", [RECEIVED, FAILED, "whatsapp.message.read"]),
        ("active", False),
        ("payload_version", "v1"),
        ("secret_key", "another secret"),
    ],
)
def test_what_differs_is_repaired(kapso: Sandbox, field: str, value: Any) -> None:
    connection = known(kapso)
    register(connection)
    before = only(kapso)
    connection.refresh_from_db()
    client().update_number_webhook(connection.phone_number_id, before["id"], {field: value})
    assert register(connection)
    assert not register(connection)
    after = only(kapso)
    # The sandbox shows no secret on this page.
    assert {**after, "updated_at": ""} == {**before, "updated_at": ""}
    event = TimelineEvent.objects.get(kind="number_webhook_updated")
    assert event.data["changed"] == [field.removesuffix("_key")]
    assert "another secret" not in str(event.data)


def test_change_that_kapso_does_not_take_is_no_event(kapso: Sandbox, monkeypatch: Any) -> None:
    connection = known(kapso)
    register(connection)
    create_again = {"url": URL, "secret_key": SECRET, "events": [RECEIVED]}
    target = number_webhooks.find_target()
    assert target is not None
    listed = list(client().list_number_webhooks(connection.phone_number_id))
    client().update_number_webhook(connection.phone_number_id, listed[0].id, {"active": False})
    (paused,) = client().list_number_webhooks(connection.phone_number_id)
    assert create_again["url"] == paused.url

    class Deaf(KapsoClient):
        def update_number_webhook(self, *args: Any, **kwargs: Any) -> Any:
            return paused

    connection.refresh_from_db()
    with pytest.raises(number_webhooks.NumberWebhookError, match="active"):
        number_webhooks.register(connection, Deaf.from_settings(), source="sync")
    assert kinds() == ["created"]


def test_another_kind_needs_another_webhook(kapso: Sandbox, configure: Any) -> None:
    connection = known(kapso)
    register(connection)
    configure(NUMBER_WEBHOOK={"url": "/messages/", "secret": SECRET, "kind": "meta"})
    assert register(connection)
    assert only(kapso)["kind"] == "meta"
    connection.refresh_from_db()
    assert connection.number_webhook_id == only(kapso)["id"]
    assert kinds() == ["created", "updated"]


def test_webhook_of_another_kind_stays_until_there_is_another(
    kapso: Sandbox, configure: Any
) -> None:
    connection = known(kapso)
    register(connection)
    configure(NUMBER_WEBHOOK={"url": URL, "secret": SECRET, "kind": "meta"})
    with away(kapso, 422, "POST .*/webhooks"), pytest.raises(KapsoValidationError):
        register(connection)
    assert only(kapso)["kind"] == "kapso", "messages still arrive"
    configure(NUMBER_WEBHOOK=SETTING)
    assert not register(connection), "as if nothing had been tried"


def test_webhook_with_another_query_is_another(kapso: Sandbox, configure: Any) -> None:
    configure(NUMBER_WEBHOOK={**SETTING, "url": f"{URL}?site=a"})
    connection = known(kapso)
    other = create(connection, url=f"{URL}?site=b")
    register(connection)
    listed = {row["url"]: row["id"] for row in webhooks(kapso)}
    assert sorted(listed) == [f"{URL}?site=a", f"{URL}?site=b"]
    assert listed[f"{URL}?site=b"] == other
    configure(NUMBER_WEBHOOK={**SETTING, "url": f"{URL}?site=c"})
    assert register(connection)
    assert sorted(row["url"] for row in webhooks(kapso)) == [f"{URL}?site=b", f"{URL}?site=c"]


def test_duplicates_are_removed(kapso: Sandbox) -> None:
    connection = known(kapso)
    oldest = create(connection)
    create(connection, url=URL.removesuffix("/"))
    assert register(connection)
    assert only(kapso)["id"] == oldest


def test_webhook_whose_creation_was_not_confirmed_is_found(kapso: Sandbox) -> None:
    connection = known(kapso)
    kapso.faults(api=[{"match": "POST .*/webhooks", "kind": "apply_then_close"}])
    assert register(connection)
    kapso.clear_faults()
    connection.refresh_from_db()
    assert connection.number_webhook_id == only(kapso)["id"]


def test_creation_that_did_not_happen_is_an_error(kapso: Sandbox) -> None:
    connection = known(kapso)
    with away(kapso, match="POST .*/webhooks"), pytest.raises(KapsoUnavailable):
        register(connection)
    assert webhooks(kapso) == []
    assert register(connection)
    assert only(kapso)["url"] == URL


def test_two_processes_at_once_leave_one_webhook(kapso: Sandbox) -> None:
    connection = known(kapso)
    others: list[bool] = []

    def other_process() -> None:
        """Do the same between this process's look and its creation."""
        if not others:
            others.append(True)
            register(connection)

    with around_api_requests("POST .*/webhooks", before=other_process):
        register(Connection.objects.get(pk=connection.pk))
    connection.refresh_from_db()
    assert connection.number_webhook_id == only(kapso)["id"]
    assert kinds() == ["created"]


def test_two_processes_that_see_both_remove_the_same_one(kapso: Sandbox) -> None:
    connection = known(kapso)
    others: list[bool] = []

    def other_process() -> None:
        if not others:
            others.append(True)
            register(connection)

    with around_api_requests("POST .*/webhooks", after=other_process):
        register(Connection.objects.get(pk=connection.pk))
    connection.refresh_from_db()
    assert connection.number_webhook_id == only(kapso)["id"]


@pytest.mark.parametrize("attempt", range(3))
def test_many_processes_at_the_same_instant_leave_one_webhook(kapso: Sandbox, attempt: int) -> None:
    connection = known(kapso)
    ready = Barrier(4)

    def process() -> None:
        try:
            row = Connection.objects.get(pk=connection.pk)
            ready.wait(timeout=20)
            number_webhooks.register(row, client(), source="sync")
        finally:
            connections.close_all()

    with ThreadPoolExecutor(4) as executor:
        for future in [executor.submit(process) for _ in range(4)]:
            future.result()
    connection.refresh_from_db()
    assert connection.number_webhook_id == only(kapso)["id"]
    # One that looks in between finds two, and removes one, which it records.
    assert kinds().count("created") == 1


def test_secret_that_kapso_hides_goes_with_other_changes(kapso: Sandbox) -> None:
    connection = known(kapso)
    target = number_webhooks.find_target()
    assert target is not None
    create(connection)
    (webhook,) = client().list_number_webhooks(connection.phone_number_id)
    hidden = type(webhook)(**{**vars(webhook), "secret_key": None})
    assert number_webhooks.differences(hidden, target) == {}
    paused = type(webhook)(**{**vars(hidden), "active": False})
    assert number_webhooks.differences(paused, target) == {"active": True, "secret_key": SECRET}


@pytest.mark.parametrize(
    ("webhook", "words"),
    [
        ({**SETTING, "secret": None}, "no secret"),
        ({**SETTING, "url": "https://10.0.0.1/messages/"}, "private network"),
        ({**SETTING, "url": "http://site.example/m/?token=hush"}, "only to https"),
    ],
)
def test_target_that_cannot_work_says_why(
    configure: Any, webhook: dict[str, Any], words: str
) -> None:
    configure(NUMBER_WEBHOOK=webhook, API_BASE_URL="https://api.kapso.ai")
    with pytest.raises(ImproperlyConfigured, match=words) as raised:
        number_webhooks.find_target()
    assert "hush" not in str(raised.value)


def test_path_needs_the_origin(configure: Any) -> None:
    configure(NUMBER_WEBHOOK=SETTING, PUBLIC_URL=None)
    with pytest.raises(ImproperlyConfigured, match="PUBLIC_URL"):
        number_webhooks.find_target()


# When a number goes


def disconnect(connection: Connection, reason: str = "deleted", **options: Any) -> None:
    onboarding.disconnect(
        connection.phone_number_id,
        source="webhook",
        asked_at=timezone.now() + timedelta(seconds=1),
        data={"reason": reason},
        **options,
    )


def test_webhook_of_a_number_that_is_gone_is_removed(kapso: Sandbox) -> None:
    connection = connect(kapso)
    disconnect(connection, "partner_removed")
    assert webhooks(kapso) == []
    connection.refresh_from_db()
    assert connection.number_webhook_id == ""
    assert kinds() == ["created", "deleted"]


def test_paused_number_keeps_its_webhook(kapso: Sandbox) -> None:
    connection = connect(kapso)
    disconnect(connection, OFFBOARDED)
    assert only(kapso)["url"] == URL
    assert sync.run().number_webhooks == 0
    disconnect(connection, "deleted", is_gone=True)
    assert webhooks(kapso) == []


def test_number_that_kapso_no_longer_has_needs_no_removal(kapso: Sandbox) -> None:
    connection = connect(kapso)
    kapso.delete_number(connection.phone_number_id)
    disconnect(connection)
    connection.refresh_from_db()
    assert connection.number_webhook_id == ""
    assert kinds() == ["created", "deleted"]


def test_staff_disconnect_a_number_and_its_webhook_goes(kapso: Sandbox) -> None:
    connection = connect(kapso)
    connection.refresh_from_db()
    onboarding.disconnect_number(connection)
    assert webhooks(kapso) == []
    connection.refresh_from_db()
    assert connection.number_webhook_id == ""


def test_site_that_hears_of_no_disconnection_is_not_warned(
    kapso: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    """Our own receiver needs the signal; a site need not."""
    with listening("whatsapp_connected"):
        connection = connect(kapso)
        onboarding.disconnect_number(connection)
    assert webhooks(kapso) == []
    assert "signal.unheard" not in [row.kapso_event for row in caplog.records]


def test_erased_customer_has_no_webhook(kapso: Sandbox) -> None:
    connection = connect(kapso)
    onboarding.erase_customer(connection.customer)
    assert webhooks(kapso) == []
    connection.refresh_from_db()
    assert connection.number_webhook_id == ""


def test_number_that_moves_to_another_customer_keeps_one_webhook(kapso: Sandbox) -> None:
    connection = connect(kapso)
    onboarding.connect(
        make_customer(),
        Number(connection.phone_number_id),
        source="redirect",
        asked_at=timezone.now() + timedelta(seconds=1),
    )
    assert only(kapso)["url"] == URL
    assert kinds() == ["created"]


def test_number_of_another_site_loses_the_webhook(kapso: Sandbox) -> None:
    connection = connect(kapso)
    disconnect(connection, "moved", is_elsewhere=True, is_gone=True)
    assert webhooks(kapso) == []


def test_removal_is_tried_again(kapso: Sandbox) -> None:
    connection = connect(kapso)
    with away(kapso), listening("whatsapp_disconnected") as heard:
        disconnect(connection)
    assert heard.names() == ["whatsapp_disconnected"]
    assert only(kapso)["url"] == URL
    event = TimelineEvent.objects.get(kind="disconnected")
    assert event.delivered_at is None
    with listening("whatsapp_disconnected"):
        assert outbox.resend(event)
    assert webhooks(kapso) == []


def test_late_signal_of_a_disconnection_removes_nothing(kapso: Sandbox) -> None:
    connection = connect(kapso)
    number_webhooks.remove_disconnected(connection, "webhook")
    assert only(kapso)["url"] == URL


def test_late_signal_of_a_connection_registers_nothing(kapso: Sandbox) -> None:
    connection = known(kapso, status="disconnected", disconnected_at=timezone.now())
    number_webhooks.register_connected(connection, "webhook")
    assert webhooks(kapso) == []


# kapso_sync


def test_sync_registers_repairs_and_removes(kapso: Sandbox) -> None:
    right, missing, paused, changed, gone = (known(kapso) for _ in range(5))
    for connection in (right, paused, changed, gone):
        register(connection)
    ids = {
        connection.pk: Connection.objects.get(pk=connection.pk).number_webhook_id
        for connection in (right, paused, changed, gone)
    }
    number = paused.phone_number_id
    client().update_number_webhook(number, ids[paused.pk], {"active": False})
    number = changed.phone_number_id
    client().update_number_webhook(number, ids[changed.pk], {"secret_key": "changed"})
    Connection.objects.filter(pk=gone.pk).update(
        status="disconnected", disconnected_at=timezone.now(), disconnect_reason="deleted"
    )
    kapso.patch_number(gone.phone_number_id, status="DISCONNECTED")
    assert sync.run(dry_run=True).number_webhooks == 4
    before = len(kapso.requests())
    report = sync.run()
    assert (report.number_webhooks, report.errors) == (4, [])
    after = kapso.requests()[before:]
    listings = [r for r in after if r["path"].endswith("/whatsapp/webhooks")]
    assert len(listings) == 1
    assert not any(right.phone_number_id in r["path"] for r in after if "webhooks" in r["path"])
    assert sorted(row["phone_number_id"] for row in webhooks(kapso)) == sorted(
        c.phone_number_id for c in (right, missing, paused, changed)
    )
    assert all(row["active"] for row in webhooks(kapso))
    assert sync.run().number_webhooks == 0


def test_sync_registers_one_that_was_deleted_at_kapso(kapso: Sandbox) -> None:
    connection = connect(kapso)
    connection.refresh_from_db()
    client().delete_number_webhook(connection.phone_number_id, connection.number_webhook_id)
    assert sync.run().number_webhooks == 1
    connection.refresh_from_db()
    assert connection.number_webhook_id == only(kapso)["id"]
    assert kinds() == ["created", "updated"]


def test_sync_removes_all_once_the_setting_is_taken_out(kapso: Sandbox, configure: Any) -> None:
    connect(kapso)
    connect(kapso)
    configure(NUMBER_WEBHOOK=None)
    assert sync.run().number_webhooks == 2
    assert webhooks(kapso) == []
    assert sync.run().number_webhooks == 0


def test_sync_follows_a_changed_url_and_secret(kapso: Sandbox, configure: Any) -> None:
    connection = connect(kapso)
    new = {**SETTING, "url": "https://new.example/messages/", "secret": ["new secret", SECRET]}
    configure(NUMBER_WEBHOOK=new)
    assert sync.run().number_webhooks == 1
    assert only(kapso)["url"] == "https://new.example/messages/"
    (webhook,) = client().list_number_webhooks(connection.phone_number_id)
    assert webhook.secret_key is not None
    assert webhook.secret_key.is_same("new secret")
    assert sync.run().number_webhooks == 0


def test_sync_registers_what_the_signal_could_not(kapso: Sandbox) -> None:
    with away(kapso):
        connect(kapso)
    TimelineEvent.objects.update(next_attempt_at=timezone.now())
    report = sync.run()
    assert (report.number_webhooks, report.errors) == (1, [])
    assert TimelineEvent.objects.get(kind="connected").delivered_at is not None
    assert only(kapso)["url"] == URL


def test_sync_registers_for_the_numbers_that_it_finds(kapso: Sandbox) -> None:
    kapso.add_number(external_customer_id="crm-1")
    report = sync.run()
    assert (report.connected, report.number_webhooks) == (1, 1)
    assert kinds() == ["created"]


def test_error_for_one_number_does_not_stop_the_others(kapso: Sandbox) -> None:
    one, other = known(kapso), known(kapso)
    match = f"POST .*{one.phone_number_id}/webhooks"
    with away(kapso, 422, match):
        report = sync.run()
    assert report.number_webhooks == 1
    assert [one.phone_number_id in error for error in report.errors] == [True]
    assert only(kapso)["phone_number_id"] == other.phone_number_id
    assert sync.run().number_webhooks == 1


def test_sync_reports_a_setting_that_cannot_work(kapso: Sandbox, configure: Any) -> None:
    known(kapso)
    configure(NUMBER_WEBHOOK={**SETTING, "secret": None})
    (error,) = sync.run().errors
    assert "NUMBER_WEBHOOK" in error


def test_list_that_kapso_does_not_give_costs_only_this_step(kapso: Sandbox) -> None:
    link = onboarding.create_setup_link(known(kapso).customer)
    with away(kapso, 422, "GET .*/whatsapp/webhooks"):
        (error,) = sync.run().errors
    assert "list webhooks" in error
    link.refresh_from_db()
    assert link.checked_at is not None, "the steps after it were done"


def test_number_that_goes_while_it_is_registered_loses_its_webhook(kapso: Sandbox) -> None:
    connection = known(kapso)

    def go() -> None:
        disconnect(connection)
        kapso.patch_number(connection.phone_number_id, status="DISCONNECTED")

    with around_api_requests("POST .*/webhooks", after=go):
        register(connection)
    assert sync.run().number_webhooks == 1
    assert webhooks(kapso) == []
    connection.refresh_from_db()
    assert (connection.number_webhook_id, connection.is_connected) == ("", False)


def test_number_that_goes_during_a_run_gets_no_webhook(kapso: Sandbox) -> None:
    numbers = [known(kapso), known(kapso)]

    def disconnect_all() -> None:
        for connection in numbers:
            disconnect(connection)

    with around_api_requests("GET .*/whatsapp/webhooks", after=disconnect_all):
        assert sync.run().number_webhooks == 0
    assert webhooks(kapso) == []
    assert kinds() == []


def test_number_that_comes_back_during_a_run_keeps_its_webhook(kapso: Sandbox) -> None:
    connection, other = connect(kapso), known(kapso)
    Connection.objects.filter(pk=connection.pk).update(
        status="disconnected", disconnected_at=timezone.now(), disconnect_reason="deleted"
    )
    kapso.patch_number(connection.phone_number_id, status="DISCONNECTED")

    def reconnect() -> None:
        Connection.objects.filter(pk=connection.pk).update(
            status="connected", connected_at=timezone.now()
        )

    with around_api_requests("GET .*/whatsapp/webhooks", after=reconnect):
        assert sync.run().number_webhooks == 1
    numbers = {row["phone_number_id"] for row in webhooks(kapso)}
    assert numbers == {connection.phone_number_id, other.phone_number_id}


def test_what_is_right_costs_a_request_for_each_hundred(kapso: Sandbox) -> None:
    for _ in range(120):
        register(known(kapso))
    before = len(kapso.requests())
    assert sync.run().number_webhooks == 0
    paths = [row["path"] for row in kapso.requests()[before:] if "webhooks" in row["path"]]
    assert len(paths) == 2


def test_one_run_is_bounded(kapso: Sandbox, monkeypatch: Any) -> None:
    monkeypatch.setattr(sync, "MAX_NUMBER_WEBHOOKS_PER_RUN", 2)
    for _ in range(3):
        known(kapso)
    assert [sync.run().number_webhooks for _ in range(3)] == [2, 1, 0]


def test_queue_registers_outside_of_the_request(kapso: Sandbox) -> None:
    with queue_without_worker():
        connect(kapso)
    assert webhooks(kapso) == []
    outbox.deliver(TimelineEvent.objects.get(kind="connected").pk)
    assert only(kapso)["url"] == URL


def test_validation_error_names_no_secret(kapso: Sandbox, configure: Any) -> None:
    configure(NUMBER_WEBHOOK={**SETTING, "events": [SECRET]})
    with pytest.raises(KapsoValidationError) as raised:
        register(known(kapso))
    assert SECRET not in str(raised.value)
