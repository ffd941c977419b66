"""Every page of the admin that this package makes or changes, with something to see on each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from playwright.sync_api import Page

from kapso_connect import onboarding, outbox
from kapso_connect.kapso.setup_link_options import PARTNER_MANAGED
from kapso_connect.models import (
    OFFBOARDED,
    Connection,
    Customer,
    Funding,
    Health,
    Invitation,
    InvitationBatch,
    SetupLink,
    Source,
    TimelineEvent,
    WebhookEvent,
)
from kapso_connect.onboarding import invitations, setup_links
from kapso_connect.testing import Sandbox

from ..factories import make_connection, make_customer, make_link
from ..sites.host_site.models import Shop

PROBLEMS = [
    {
        "check": "messaging_health",
        "entity": "WABA",
        "code": "141006",
        "description": "There is an error with the payment method. This will block business "
        "initiated conversations.",
        "solution": "There was an error with your payment method. Please add a new payment method "
        "to the account.",
    },
    {
        "check": "messaging_health",
        "entity": "BUSINESS",
        "code": "141010",
        "description": "The business has not passed business verification, so the number of people "
        "that it can write to first is limited. " + "It is looked at again. " * 12,
        "solution": "Visit business settings and start or resolve the business verification "
        "request: https://business.facebook.com/settings/security?business_id=100000000000001",
    },
    {
        "check": "phone_number_connection",
        "entity": "",
        "code": "",
        "description": "DISCONNECTED",
        "solution": "",
    },
]
AWKWARD = "مخبز 🥐 <b>Ünïcode</b> " + "long" * 40


@dataclass
class StaffWorld:
    """Customers at every step, and a member of staff who may do everything."""

    shop: Shop
    customer: Customer
    number: Connection
    staff: User

    def log_in(self, page: Page, site: str) -> None:
        client = Client()
        client.force_login(self.staff)
        value = client.cookies["sessionid"].value
        page.context.add_cookies([{"name": "sessionid", "value": value, "url": site}])

    def url(self, model: Any, page: str = "changelist", *args: object) -> str:
        opts = model._meta
        return reverse(f"admin:{opts.app_label}_{opts.model_name}_{page}", args=args)

    def first(self, model: Any) -> str:
        return self.url(model, "change", model._default_manager.first().pk)

    def named(self, name: str) -> str:
        return self.url(Customer, "change", Customer.objects.get(name=name).pk)

    def number_of(self, name: str) -> str:
        number = Connection.objects.filter(customer__name=name).latest("pk")
        return self.url(Connection, "change", number.pk)

    def manage(self, page: str) -> str:
        return self.url(Shop, f"whatsapp_{page}", self.shop.pk)

    def manage_number(self, page: str) -> str:
        return self.url(Shop, f"whatsapp_{page}", self.shop.pk, self.number.pk)

    def batch(self) -> str:
        return self.url(Customer, "whatsapp_batch", self._draft().pk)

    def finished_batch(self) -> str:
        batch = self._draft()
        batch.started_at = timezone.now()
        batch.save()
        rows = batch.invitations.all()
        first = rows.first()
        assert first is not None
        link = first.customer.setup_links.first() or make_link(first.customer)
        rows.update(status=Invitation.Status.DONE, setup_link=link, next_attempt_at=None)
        rows.filter(pk__gt=first.pk).update(
            status=Invitation.Status.FAILED, last_error="Kapso is away. Try again later."
        )
        return self.url(Customer, "whatsapp_batch", batch.pk)

    def batches(self) -> str:
        self.finished_batch()
        InvitationBatch.objects.update(purpose=InvitationBatch.Purpose.REMIND, send_email=True)
        self.finished_batch()
        return self.url(InvitationBatch)

    def reminders(self) -> str:
        batch = invitations.make_reminders(Customer.objects.all(), created_by=self.staff)
        return self.url(Customer, "whatsapp_batch", batch.pk)

    def _draft(self) -> InvitationBatch:
        return invitations.make_batch(Customer.objects.all(), created_by=self.staff)


def make_staff_world(sandbox: Sandbox) -> StaffWorld:
    now = timezone.now()
    shop = Shop.objects.create(name="Ada's")
    customer = Customer.objects.for_owner(shop, name="Ada's", email="ada@example.com")
    staff = User.objects.create_superuser("staff", password="correct horse")
    onboarding.create_setup_link(customer, created_by=staff)
    customer.refresh_from_db()
    remote = sandbox.add_number(customer_id=customer.kapso_id, phone_number="+14155550123")
    number = make_connection(
        customer,
        phone_number_id=remote["phone_number_id"],
        display_phone_number="+1 415-555-0123",
        health_status=Health.UNHEALTHY,
        health_error="The token has expired.",
        health_checked_at=now,
    )
    awkward = make_customer(name=AWKWARD)
    failed = make_link(awkward, is_latest=True, expires_at=now + timedelta(days=1))
    setup_links.record_failure(failed, "link_expired")
    make_link(make_customer(name="Opened"), is_latest=True, opened_at=now)
    for fields in (
        {"display_phone_number": "+1 555-123-4567"},
        {"account_status": "restricted", "restrictions": [{"restriction_type": "X"}]},
        {"name_status": "DECLINED", "verified_name": AWKWARD},
        {
            "status": Connection.Status.DISCONNECTED,
            "connected_at": now - timedelta(days=2),
            "disconnected_at": now,
            "disconnect_reason": "partner_removed",
        },
    ):
        make_connection(make_customer(name=f"With {next(iter(fields))}"), **fields)
    WebhookEvent.objects.create(
        idempotency_key="key",
        event="whatsapp.phone_number.created",
        payload={"text": AWKWARD},
        status=WebhookEvent.Status.FAILED,
        last_error="It failed: " + AWKWARD,
        next_attempt_at=None,
    )
    TimelineEvent.objects.create(
        kind="connected",
        source="webhook",
        customer=awkward,
        last_error="A receiver raised.",
        next_attempt_at=None,
    )
    make_numbers_in_trouble()
    return StaffWorld(shop, customer, number, staff)


def make_numbers_in_trouble() -> None:
    """Numbers that Meta has paused, that are not healthy, and that Kapso shall pay for."""
    now = timezone.now()
    for name, pause in {
        "Paused": timedelta(minutes=5),
        "Paused for long": timedelta(hours=2),
    }.items():
        make_connection(
            make_customer(name=name),
            display_phone_number="+52 55 1234 5678",
            status=Connection.Status.DISCONNECTED,
            connected_at=now - timedelta(days=2),
            disconnected_at=now - pause,
            disconnect_reason=OFFBOARDED,
        )
    make_connection(
        make_customer(name="Held"),
        display_phone_number="+54 11 2345 6789",
        verified_name="Held & Co.",
        quality_rating="YELLOW",
        health_status=Health.UNHEALTHY,
        health_problems=PROBLEMS,
        health_checked_at=now,
        health_retry_after=now + timedelta(minutes=30),
    )
    paid = make_customer(name="Paid for")
    link = make_link(paid, options={"meta_billing_mode": PARTNER_MANAGED})
    for funding in ("", *Funding.values):
        make_connection(
            paid,
            setup_link=link,
            display_phone_number="+49 30 123456",
            verified_name=f"Billing {funding}",
            connection_type="dedicated",
            health_status=Health.HEALTHY,
            health_checked_at=now,
            funding_status=funding,
            funding_checked_at=now if funding else None,
        )
    outbox.record(
        TimelineEvent.Kind.DETAILS_RECEIVED,
        source=Source.SYNC,
        customer=paid,
        connection=paid.connections.first(),
        data={"display_phone_number": "+49 30 123456", "verified_name": "Billing"},
    )


Address = Callable[[StaffWorld], str]

PAGES: dict[str, Address] = {
    "index": lambda world: "/admin/kapso_connect/",
    "customers": lambda world: world.url(Customer),
    "customers-filtered": lambda world: world.url(Customer) + "?whatsapp_status=connected&q=a",
    "customer": lambda world: world.url(Customer, "change", world.customer.pk),
    "customer-awkward": lambda world: world.url(
        Customer, "change", Customer.objects.get(name=AWKWARD).pk
    ),
    "customer-paused": lambda world: world.named("Paused"),
    "customer-paused-for-long": lambda world: world.named("Paused for long"),
    "customer-held": lambda world: world.named("Held"),
    "customer-paid-for": lambda world: world.named("Paid for"),
    "customers-paused": lambda world: world.url(Customer) + "?whatsapp_status=paused",
    "customer-new": lambda world: world.url(Customer, "add"),
    "overview": lambda world: world.url(Customer, "overview"),
    "overview-refused": lambda world: world.url(Customer, "overview") + "?days=8",
    "site-list": lambda world: world.url(Shop),
    "site-object": lambda world: world.first(Shop),
    "links": lambda world: world.url(SetupLink),
    "link": lambda world: world.first(SetupLink),
    "connections": lambda world: world.url(Connection),
    "connection": lambda world: world.url(Connection, "change", world.number.pk),
    "connection-paused": lambda world: world.number_of("Paused"),
    "connection-held": lambda world: world.number_of("Held"),
    "connection-paid-for": lambda world: world.number_of("Paid for"),
    "timeline": lambda world: world.url(TimelineEvent),
    "event": lambda world: world.first(TimelineEvent),
    "inbox": lambda world: world.url(WebhookEvent),
    "webhook": lambda world: world.first(WebhookEvent),
    "run-again": lambda world: (
        world.url(WebhookEvent, "run_again") + f"?ids={WebhookEvent.objects.get().pk}"
    ),
    "dismiss": lambda world: (
        world.url(WebhookEvent, "dismiss") + f"?ids={WebhookEvent.objects.get().pk}"
    ),
    "check-health": lambda world: (
        world.url(Connection, "whatsapp_check_health") + f"?ids={world.number.pk}"
    ),
    "erase": lambda world: world.url(Customer, "erase") + f"?ids={world.customer.pk}",
    "invite": StaffWorld.batch,
    "batch": StaffWorld.finished_batch,
    "batches": StaffWorld.batches,
    "remind": StaffWorld.reminders,
    "email": lambda world: world.manage("email"),
    "qr": lambda world: world.manage("qr"),
    "share": lambda world: world.manage("share"),
    "revoke": lambda world: world.manage("revoke"),
    "extend": lambda world: world.manage("extend"),
    "reconnect": lambda world: world.manage_number("reconnect"),
    "disconnect": lambda world: world.manage_number("disconnect"),
}
