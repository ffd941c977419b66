"""Customers whose personal data are erased, against a running sandbox."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.apps import apps
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.auth.models import User
from django.core import mail
from django.db import transaction
from django.utils import timezone

from kapso_connect import exceptions, onboarding
from kapso_connect.models import (
    Connection,
    Customer,
    IdempotentRequest,
    Invitation,
    SetupLink,
    TimelineEvent,
    WebhookEvent,
    new_connect_key,
)
from kapso_connect.monitoring import reports
from kapso_connect.onboarding import invitations, setup_links
from kapso_connect.onboarding.numbers import Number, connect_new
from kapso_connect.signals import whatsapp_disconnected
from kapso_connect.sync import run
from kapso_connect.testing import Sandbox

from ..factories import (
    CREATED,
    DELETED,
    listening,
    make_connection,
    make_customer,
    payload_for,
    post,
    queue_without_worker,
    remote_customer,
)
from ..sites.host_site.models import Bakery
from .support import (
    check_no_transaction_during,
    during_request,
    events,
    reload,
    wait_until_deleted,
)

pytestmark = pytest.mark.django_db(transaction=True)

PERSONAL = ["Süß", "ada@example.com", "ext-süß", "415555", "415-555", "Ada's WhatsApp", "secret"]
"""What must be found in no table afterwards."""


@pytest.fixture
def bakery() -> Bakery:
    return Bakery.objects.create(title="Host's own", contact="x@example.com", locale="es")


@pytest.fixture
def customer(sandbox: Sandbox, bakery: Bakery, configure: Any) -> Customer:
    """A customer of long standing: invited, failed, connected; and known to all tables."""
    configure(API_BUDGET=2.0)
    customer = Customer.objects.for_owner(
        bakery,
        name="Süß",
        email="ada@example.com",
        language="es",
        external_customer_id="ext-süß",
    )
    first = onboarding.create_setup_link(customer, next_url="/secret/")
    remote = sandbox.add_number(
        customer_id=customer.kapso_id, phone_number="+14155550123", verified_name="Ada's WhatsApp"
    )
    post(payload_for(customer, remote["phone_number_id"], note="Süß"))
    number = Connection.objects.get()
    Connection.objects.update(
        connected_at=timezone.now() - timedelta(hours=1),
        display_phone_number="+1 415-555-0123",
        phone_digits="14155550123",
        verified_name="Ada's WhatsApp",
        health_error="Süß cannot pay",
        health_problems=[{"description": "Süß"}],
        restrictions=[{"type": "Süß"}],
    )
    link = onboarding.create_setup_link(
        customer, options={"reconnect_phone_number": "+14155550123"}
    )
    setup_links.record_failure(link, "facebook_auth_failed")
    onboarding.send_invitation(customer, link)
    batch = invitations.make_batch([customer.pk])
    batch.options = {"reconnect_phone_number": "+14155550123"}
    batch.save()
    Invitation.objects.update(email_error="ada@example.com", last_error="Süß", status="failed")
    IdempotentRequest.objects.create(
        digest="d", fingerprint="f", customer=customer, response={"name": "Süß"}
    )
    TimelineEvent.objects.filter(kind="setup_failed").update(
        data={"error_code": "facebook_auth_failed", "name": "Süß"}, last_error="Süß"
    )
    for status in ("ignored", "failed"):
        WebhookEvent.objects.create(
            idempotency_key=status,
            event="whatsapp.message.received",
            payload={"phone_number_id": number.phone_number_id, "text": "From ada@example.com"},
            status=status,
            last_error="Süß",
            next_attempt_at=None,
        )
    staff = User.objects.create_user("staff")
    text = "E-mailed the WhatsApp setup link to ada@example.com."
    LogEntry.objects.log_actions(staff.pk, [customer, bakery, first], CHANGE, text)
    return customer


def everything() -> str:
    """The rows of all tables of this package, and of the admin's history, as a text."""
    models = [*apps.get_app_config("kapso_connect").get_models(), LogEntry]
    rows = [list(model._default_manager.values()) for model in models]
    return json.dumps(rows, default=str, ensure_ascii=False)


def late_webhook(customer: Customer, number_id: str, event: str) -> None:
    payload = payload_for(customer, number_id)
    payload["customer"]["external_id"] = "ext-süß"
    assert post(payload, event=event).status_code == 200


def test_nothing_personal_is_left_in_any_table(customer: Customer, sandbox: Sandbox) -> None:
    assert all(text in everything() for text in PERSONAL)
    erasure = onboarding.erase_customer(customer)
    assert (erasure.numbers, erasure.links, erasure.left_at_kapso) == (1, 1, "")
    assert [text for text in PERSONAL if text in everything()] == []
    assert customer.erased_at is not None
    assert str(customer) == f"Erased customer {customer.pk}"
    assert customer.owner is None
    assert customer.connect_key is None
    assert not IdempotentRequest.objects.exists()
    assert sandbox.state()["customers"] == []


def test_what_is_counted_and_what_recognizes_late_reports_stays(customer: Customer) -> None:
    def statistics() -> Any:
        now = timezone.now()
        period = reports.Period(now - timedelta(days=1), now + timedelta(days=1))
        return reports.funnel(period), reports.failures(period), reports.time_to_connect(period)

    before, kapso_id = statistics(), customer.kapso_id
    number_id = Connection.objects.get().phone_number_id
    counts = [WebhookEvent.objects.count(), SetupLink.objects.count(), Invitation.objects.count()]
    onboarding.erase_customer(customer)
    assert statistics() == before
    assert before[1].codes[0].code == "facebook_auth_failed"
    assert customer.kapso_id == kapso_id
    assert Connection.objects.get().phone_number_id == number_id
    assert [
        WebhookEvent.objects.count(),
        SetupLink.objects.count(),
        Invitation.objects.count(),
    ] == counts
    assert set(WebhookEvent.objects.values_list("status", flat=True)) == {"processed", "ignored"}


def test_number_is_disconnected_and_links_are_revoked_at_kapso_by_the_actor(
    customer: Customer, sandbox: Sandbox
) -> None:
    actor = User.objects.create_user("ada")
    onboarding.erase_customer(customer, actor=actor)
    assert [(row.actor, row.data) for row in events("disconnected")] == [
        (actor, {"reason": "staff"})
    ]
    assert not SetupLink.objects.active().exists()
    assert "active" not in {link["status"] for link in sandbox.state()["setup_links"]}
    deleted = [row["path"] for row in sandbox.requests() if row["method"] == "DELETE"]
    number = Connection.objects.get()
    assert [path.rpartition("/")[2] for path in deleted] == [
        number.phone_number_id,
        customer.kapso_id,
    ]


def test_number_that_only_kapso_knows_is_disconnected_too(sandbox: Sandbox) -> None:
    customer = remote_customer(sandbox)
    assert onboarding.erase_customer(customer).numbers == 1
    assert not Connection.objects.get().is_connected
    assert Connection.objects.get().display_phone_number == ""


def test_customer_who_was_never_invited_is_erased_without_a_request(sandbox: Sandbox) -> None:
    customer = make_customer(kapso_id=None, email="ada@example.com")
    onboarding.erase_customer(customer)
    assert (customer.email, customer.name) == ("", f"#{customer.pk}")
    assert sandbox.requests() == []


def test_rows_of_other_customers_are_not_touched(customer: Customer) -> None:
    other = make_customer(name="Other", email="other@example.com")
    make_connection(other, display_phone_number="+49 30 1234", business_account_id="1")
    Connection.objects.update(business_account_id="1")
    kept = WebhookEvent.objects.create(
        idempotency_key="k", event=CREATED, payload={"business_account_id": "1"}, status="failed"
    )
    onboarding.erase_customer(customer)
    other.refresh_from_db()
    kept.refresh_from_db()
    assert (other.name, other.erased_at, kept.status) == ("Other", None, "failed")
    assert other.connections.get().display_phone_number == "+49 30 1234"


def test_failed_webhook_about_an_account_that_others_share_is_kept(customer: Customer) -> None:
    payload = {"business_account_id": Connection.objects.get().business_account_id}
    rows = {
        status: WebhookEvent.objects.create(
            idempotency_key=f"account-{status}",
            event="whatsapp.account.restriction",
            payload=payload,
            status=status,
        )
        for status in ("failed", "processed")
    }
    onboarding.erase_customer(customer)
    left = {status: WebhookEvent.objects.get(pk=row.pk).payload for status, row in rows.items()}
    assert left == {"failed": payload, "processed": {}}


def test_late_webhooks_re_create_nothing(customer: Customer) -> None:
    number_id = Connection.objects.get().phone_number_id
    onboarding.erase_customer(customer)
    for event in (CREATED, DELETED, "whatsapp.phone_number.offboarded"):
        late_webhook(customer, number_id, event)
    assert Customer.objects.count() == 1
    assert not Connection.objects.get().is_connected
    assert Connection.objects.get().display_phone_number == ""


def test_new_connection_of_an_erased_customer_is_not_lost_but_its_number_is_not_stored(
    customer: Customer, sandbox: Sandbox
) -> None:
    sandbox.faults(api=[{"match": "^DELETE .*/customers/", "kind": "status", "status": 401}])
    assert "API key" in onboarding.erase_customer(customer).left_at_kapso
    remote = sandbox.add_number(customer_id=customer.kapso_id, phone_number="+4930111222")
    with listening() as heard:
        late_webhook(customer, remote["phone_number_id"], CREATED)
    assert heard.only("whatsapp_connected")["customer"] == customer
    number = Connection.objects.connected().get()
    assert (number.customer, number.display_phone_number) == (customer, "")
    onboarding.connect(
        customer,
        Number(number.phone_number_id, display_phone_number="+4930111222", verified_name="Ada"),
        source="sync",
        asked_at=timezone.now(),
    )
    assert (reload(number).display_phone_number, reload(number).verified_name) == ("", "")
    sandbox.clear_faults()
    # Erasing again ends it.
    erasure = onboarding.erase_customer(customer)
    assert (erasure.numbers, erasure.left_at_kapso) == (1, "")
    assert not reload(number).is_connected


def test_sync_stores_no_number_of_an_erased_customer() -> None:
    customer = make_customer(erased_at=timezone.now())
    number = Number("1" * 15, display_phone_number="+4930111222", verified_name="Ada")
    connect_new([(customer, number)], source="sync")
    row = Connection.objects.get()
    assert (row.is_connected, row.display_phone_number, row.phone_digits) == (True, "", "")


def test_sync_finds_nothing_to_do_afterwards(customer: Customer) -> None:
    onboarding.erase_customer(customer)
    before = everything()
    report = run()
    assert (report.connected, report.disconnected, report.repaired) == (0, 0, 0)
    assert json.loads(before)[0] == json.loads(everything())[0]


@pytest.mark.parametrize("match", ["^GET .*/phone_numbers", "^PATCH", "^DELETE .*/phone_numbers"])
def test_outage_leaves_a_clear_error_and_running_it_again_finishes(
    customer: Customer, sandbox: Sandbox, match: str
) -> None:
    sandbox.faults(api=[{"match": match, "kind": "status", "status": 503}])
    with pytest.raises(exceptions.KapsoUnavailable):
        onboarding.erase_customer(customer)
    customer.refresh_from_db()
    assert (customer.name, customer.erased_at) == ("Süß", None)
    sandbox.clear_faults()
    onboarding.erase_customer(customer)
    assert [text for text in PERSONAL if text in everything()] == []


def test_what_kapso_keeps_is_told_and_deleted_the_next_time(
    customer: Customer, sandbox: Sandbox
) -> None:
    sandbox.faults(api=[{"match": "^DELETE .*/customers/", "kind": "status", "status": 503}])
    assert "safe to try again" in onboarding.erase_customer(customer).left_at_kapso
    erased_at = customer.erased_at
    assert sandbox.state()["customers"] != []
    sandbox.clear_faults()
    assert onboarding.erase_customer(customer).left_at_kapso == ""
    assert customer.erased_at == erased_at
    assert sandbox.state()["customers"] == []


def test_kapso_keeps_its_record_while_it_shows_another_number(
    customer: Customer, sandbox: Sandbox
) -> None:
    def add_number() -> None:
        sandbox.add_number(customer_id=customer.kapso_id, phone_number="+14155550999")

    erasure = during_request(
        sandbox,
        "^PATCH .*/setup_links/",
        add_number,
        lambda: onboarding.erase_customer(customer),
    )
    assert erasure.left_at_kapso == "Kapso shows another number of this customer."
    assert [row["id"] for row in sandbox.state()["customers"]] == [customer.kapso_id]
    assert onboarding.erase_customer(Customer.objects.get()).left_at_kapso == ""
    assert sandbox.state()["customers"] == []


def test_number_of_an_erased_customer_is_disconnected_by_staff_though_the_webhook_was_first(
    customer: Customer, sandbox: Sandbox, configure: Any
) -> None:
    configure(API_BUDGET=10.0)
    staff = User.objects.get(username="staff")
    number = Connection.objects.get()

    def deliver() -> None:
        sandbox.delete_number(number.phone_number_id)
        wait_until_deleted(sandbox, number)
        late_webhook(customer, number.phone_number_id, DELETED)

    during_request(
        sandbox,
        "^DELETE .*/phone_numbers/",
        deliver,
        lambda: onboarding.erase_customer(customer, actor=staff),
        kind="hang",
    )
    (event,) = events("disconnected")
    assert (event.source, event.actor) == ("webhook", staff)
    assert event.data == {"reason": "staff", "event": DELETED}
    assert reload(number).disconnect_reason == "staff"
    assert reload(number).removal_requested_by is None


def test_receivers_get_the_signals_with_the_data(customer: Customer, bakery: Bakery) -> None:
    heard = []

    def receiver(connection: Connection, customer: Customer, **kwargs: Any) -> None:
        heard.append((connection.display_phone_number, customer.name, customer.owner))

    whatsapp_disconnected.connect(receiver)
    try:
        with queue_without_worker():  # which sends no signal by itself
            onboarding.erase_customer(customer)
    finally:
        whatsapp_disconnected.disconnect(receiver)
    assert heard == [("+1 415-555-0123", "Süß", bakery)]


@pytest.fixture
def broken_receiver() -> Iterator[list[Exception]]:
    errors: list[Exception] = [RuntimeError("broken")]

    def receiver(**kwargs: Any) -> None:
        if errors:
            raise errors[0]

    whatsapp_disconnected.connect(receiver)
    yield errors
    whatsapp_disconnected.disconnect(receiver)


def test_undelivered_signal_keeps_the_data_until_it_is_delivered(
    customer: Customer, broken_receiver: list[Exception]
) -> None:
    with pytest.raises(exceptions.NotErased, match="1 signal about this customer"):
        onboarding.erase_customer(customer)
    customer.refresh_from_db()
    assert (customer.name, customer.erased_at) == ("Süß", None)
    assert Connection.objects.get().display_phone_number
    broken_receiver.clear()
    onboarding.erase_customer(customer)
    assert customer.erased_at is not None
    assert not TimelineEvent.objects.undelivered().exists()


def test_dismissed_signal_does_not_keep_the_data(
    customer: Customer, broken_receiver: list[Exception]
) -> None:
    with pytest.raises(exceptions.NotErased):
        onboarding.erase_customer(customer)
    TimelineEvent.objects.undelivered().update(
        dismissed_at=timezone.now(), dismissed_because="Süß left"
    )
    onboarding.erase_customer(customer)
    assert [text for text in PERSONAL if text in everything()] == []


def test_waiting_webhook_keeps_its_body(customer: Customer) -> None:
    number_id = Connection.objects.get().phone_number_id
    waiting = WebhookEvent.objects.create(
        idempotency_key="k", event=DELETED, payload={"phone_number_id": number_id}
    )
    onboarding.erase_customer(customer)
    waiting.refresh_from_db()
    assert (waiting.payload, waiting.status) == ({"phone_number_id": number_id}, "pending")


def test_number_that_is_connected_meanwhile_is_not_left_behind(
    customer: Customer, sandbox: Sandbox
) -> None:
    def connect() -> None:
        onboarding.connect(
            Customer.objects.get(), Number("9" * 15), source="sync", asked_at=timezone.now()
        )

    with pytest.raises(exceptions.NotErased, match="just changed"):
        during_request(
            sandbox,
            "^DELETE .*/customers/",
            connect,
            lambda: onboarding.erase_customer(customer),
            kind="hang",
        )
    assert Customer.objects.get().erased_at is None


def test_kapso_is_asked_outside_of_transactions(customer: Customer, sandbox: Sandbox) -> None:
    with transaction.atomic(), pytest.raises(exceptions.CalledInTransaction):
        onboarding.erase_customer(customer)
    check_no_transaction_during(
        sandbox, "^GET .*/phone_numbers", lambda: onboarding.erase_customer(customer)
    )


def test_erased_customer_cannot_be_invited_or_e_mailed(
    customer: Customer, sandbox: Sandbox
) -> None:
    onboarding.erase_customer(customer)
    made = len(sandbox.requests())
    with pytest.raises(exceptions.CustomerErased, match="its personal data were erased"):
        onboarding.create_setup_link(customer)
    mail.outbox.clear()
    link = customer.setup_links.latest("pk")
    with pytest.raises(exceptions.CustomerErased):
        onboarding.send_invitation(customer, link)
    batch = invitations.make_batch([customer.pk])
    invitations.start(batch, send_email=True)
    invitations.work(batch.pk)
    (row,) = batch.invitations.all()
    assert (row.status, "were erased" in row.last_error) == ("failed", True)
    assert len(sandbox.requests()) == made
    assert mail.outbox == []


def test_link_that_is_created_meanwhile_is_revoked(sandbox: Sandbox, customer: Customer) -> None:
    def erase() -> None:
        Customer.objects.update(erased_at=timezone.now(), connect_key=None)

    with pytest.raises(exceptions.CustomerErased):
        during_request(
            sandbox,
            "^POST .*/setup_links",
            erase,
            lambda: onboarding.create_setup_link(customer),
        )
    assert Customer.objects.get().connect_key is None
    assert {link["status"] for link in sandbox.state()["setup_links"]} == {"revoked"}


def test_owner_of_an_erased_customer_gets_a_new_one(customer: Customer, bakery: Bakery) -> None:
    onboarding.erase_customer(customer)
    new = Customer.objects.for_owner(bakery, external_customer_id="ext-süß")
    assert new != customer
    onboarding.create_setup_link(new)
    assert new.kapso_id != customer.kapso_id
    with pytest.raises(exceptions.ExternalIdTaken):
        Customer.objects.for_owner(
            Bakery.objects.create(title="Another"), kapso_id=customer.kapso_id
        )


def test_personal_link_leads_nowhere(customer: Customer, client: Any) -> None:
    Customer.objects.update(connect_key=new_connect_key())
    customer.refresh_from_db()
    path = onboarding.connect_path(customer)
    onboarding.erase_customer(customer)
    assert "Süß" not in client.get(path).content.decode()
    assert not Customer.objects.exclude(connect_key=None).exists()
