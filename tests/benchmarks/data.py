"""Many customers, as a site has them that invited them over two years."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from random import Random
from typing import Any

from django.contrib.contenttypes.models import ContentType
from django.db import connections, transaction
from django.db.models import Model
from django.utils import timezone

from example_project.crm.models import Company
from kapso_connect.kapso.error_codes import SETUP_ERRORS
from kapso_connect.models import Connection, Customer, SetupLink, TimelineEvent, WebhookEvent
from kapso_connect.onboarding.status import OnboardingStatus, find_wrong_statuses
from kapso_connect.phone_numbers import only_digits

from .routing import Router

# How 20 customers in a row fare.
FATES = [
    *["none"] * 5,
    *["invited"] * 3,
    *["opened"] * 2,
    *["failed"] * 2,
    *["connected"] * 7,
    "lost",
]
STATUSES = {
    "none": OnboardingStatus.NOT_INVITED,
    "invited": OnboardingStatus.INVITED,
    "opened": OnboardingStatus.OPENED,
    "failed": OnboardingStatus.FAILED,
    "connected": OnboardingStatus.CONNECTED,
    "lost": OnboardingStatus.DISCONNECTED,
}
CODES = [*SETUP_ERRORS, "something_new"]


def insert(rows: Iterable[Model], model: type[Model]) -> None:
    """Write ``rows`` as they are, the fastest way that the database has."""
    connection: Any = connections[Router.chosen]
    if connection.vendor != "postgresql":
        model._default_manager.bulk_create(rows, batch_size=500)
        return
    fields = model._meta.concrete_fields
    columns = ", ".join(f'"{field.column}"' for field in fields)
    with (
        connection.cursor() as cursor,
        cursor.cursor.copy(f'COPY "{model._meta.db_table}" ({columns}) FROM STDIN') as copy,
    ):
        for row in rows:
            copy.write_row(
                [
                    field.get_db_prep_save(getattr(row, field.attname), connection)
                    for field in fields
                ]
            )


class Population:
    """``customers`` customers and companies, with ``events`` rows of the timeline in all."""

    def __init__(self, customers: int, events: int) -> None:
        self.size = customers
        self.events = events
        self.now = timezone.now()
        self.random = Random(1)
        self.company_type = ContentType.objects.get_for_model(Company)

    def insert(self) -> None:
        insert(self.companies(), Company)
        # Customers and links refer to each other.
        with transaction.atomic(using=Router.chosen):
            insert(self.customers(), Customer)
            insert(self.links(), SetupLink)
        insert(self.connections(), Connection)
        insert(self.webhooks(), WebhookEvent)
        insert(self.timeline(), TimelineEvent)
        with connections[Router.chosen].cursor() as cursor:
            is_postgres = connections[Router.chosen].vendor == "postgresql"
            cursor.execute("VACUUM ANALYZE" if is_postgres else "ANALYZE")
        assert not any(find_wrong_statuses())

    def fate(self, number: int) -> str:
        return FATES[number * 7 % 20]

    def status(self, number: int) -> OnboardingStatus:
        is_confirming = self.is_confirming(number)
        return OnboardingStatus.CONFIRMING if is_confirming else STATUSES[self.fate(number)]

    def is_confirming(self, number: int) -> bool:
        return self.fate(number) == "failed" and number % 30 == 0

    def since(self, number: int) -> datetime:
        """When a customer came: one after the other, over two years."""
        return self.now - timedelta(days=730) * (1 - number / (self.size + 1))

    def invited(self, number: int) -> datetime:
        return min(
            self.since(number) + timedelta(hours=number % 100), self.now - timedelta(minutes=1)
        )

    def companies(self) -> Iterator[Company]:
        for number in range(1, self.size + 1):
            yield Company(pk=number, name=f"Company {number:06}", email=f"c{number}@example.com")

    def customers(self) -> Iterator[Customer]:
        for number in range(1, self.size + 1):
            yield Customer(
                pk=number,
                name=f"Company {number:06}",
                external_customer_id=f"crm-{number}",
                kapso_id=str(uuid.UUID(int=number)),
                owner_type=self.company_type,
                owner_id=str(number),
                email=f"c{number}@example.com",
                status=self.status(number),
                status_changed_at=self.invited(number),
                latest_setup_link_id=None if self.fate(number) == "none" else 2 * number + 1,
                created_at=self.since(number),
                updated_at=self.since(number),
            )

    def links(self) -> Iterator[SetupLink]:
        status, setup = SetupLink.Status, SetupLink.SetupStatus
        for number in range(1, self.size + 1):
            fate = self.fate(number)
            if fate == "none":
                continue
            made = self.invited(number)
            if number % 2:
                yield self.link(2 * number, number, created_at=made, status=status.REVOKED)
            ends = made + timedelta(days=30)
            fields: dict[str, Any] = {"expires_at": ends, "created_at": made}
            if fate in {"connected", "lost"}:
                fields |= {"status": status.USED, "setup_status": setup.COMPLETED}
            elif ends < self.now:
                fields["status"] = status.EXPIRED
            if fate != "invited":
                fields["opened_at"] = made + timedelta(hours=1)
            if fate == "failed":
                fields |= {"setup_status": setup.FAILED, "last_error_code": self.code(number)}
            if self.is_confirming(number):
                fields |= {
                    "unconfirmed_since": self.now,
                    "unconfirmed_phone_number_id": str(number),
                }
            yield self.link(2 * number + 1, number, **fields)

    def link(self, pk: int, number: int, **fields: Any) -> SetupLink:
        return SetupLink(
            pk=pk,
            customer_id=number,
            kapso_id=f"link-{pk}",
            url=f"https://setup.example/{pk:040}",
            options={"allowed_connection_types": ["coexistence", "dedicated"]},
            **fields,
        )

    def code(self, number: int) -> str:
        return CODES[number % len(CODES)]

    def connections(self) -> Iterator[Connection]:
        for number in range(1, self.size + 1):
            fate = self.fate(number)
            if fate not in {"connected", "lost"}:
                continue
            yield self.connection(number, number, fate)
            if number % 10 == 0:
                yield self.connection(self.size + number, number, fate)

    def connection(self, pk: int, number: int, fate: str) -> Connection:
        connected_at = self.invited(number) + timedelta(minutes=self.random.randrange(3, 9000))
        lot = self.random.randrange(1000)
        number_shown = f"+1 {555 if lot < 10 else 415}-{pk % 1000:03}-{pk % 10000:04}"
        return Connection(
            pk=pk,
            phone_number_id=str(10**14 + pk),
            customer_id=number,
            setup_link_id=2 * number + 1,
            business_account_id=str(2 * 10**14 + number),
            display_phone_number=number_shown,
            phone_digits=only_digits(number_shown),
            verified_name=f"Company {number:06}",
            connection_type="coexistence" if number % 2 else "dedicated",
            status="disconnected" if fate == "lost" else "connected",
            connected_at=min(connected_at, self.now),
            disconnected_at=self.now - timedelta(days=lot) if fate == "lost" else None,
            disconnect_reason="partner_removed" if fate == "lost" else "",
            name_status="DECLINED" if 10 <= lot < 20 else "APPROVED",
            account_status="restricted" if 20 <= lot < 25 else "active",
            health_status="unhealthy" if 30 <= lot < 40 else "healthy",
            created_at=connected_at,
            updated_at=connected_at,
        )

    def webhooks(self) -> Iterator[WebhookEvent]:
        payload = {"phone_number": {"display_phone_number": "+1 415-555-0123"}, "note": "x" * 700}
        for number in range(1, self.events // 5 + 1):
            when = self.now - timedelta(days=90) * (1 - number * 5 / self.events)
            yield WebhookEvent(
                pk=number,
                idempotency_key=f"key-{number}",
                event="whatsapp.phone_number.created",
                payload=payload,
                status="failed" if number % 500 == 0 else "processed",
                attempts=1,
                next_attempt_at=None,
                received_at=when,
                processed_at=when,
            )

    def timeline(self) -> Iterator[TimelineEvent]:
        """The stories of the customers, each with everyday rows after it; the first customer has
        one of a hundred of those."""
        pk = 0
        for number in range(1, self.size + 1):
            for event in self.story(number):
                pk += 1
                if pk > self.events:
                    return
                event.pk = pk
                yield event
            while pk < self.events * number // self.size:
                pk += 1
                yield self.event(
                    1 if pk % 100 == 0 else self.random.randrange(1, number + 1),
                    "health_checked" if pk % 3 else "account_updated",
                    self.since(number),
                    pk=pk,
                )

    def story(self, number: int) -> Iterator[TimelineEvent]:
        fate = self.fate(number)
        if fate == "none":
            return
        when, link = self.invited(number), 2 * number + 1
        yield self.event(number, "setup_link_created", when, setup_link_id=link)
        yield self.event(number, "setup_link_sent", when, setup_link_id=link)
        if fate == "invited":
            return
        when += timedelta(hours=1)
        yield self.event(number, "setup_link_opened", when, setup_link_id=link)
        if fate == "failed" or number % 6 == 0:
            data = {"error_code": self.code(number)}
            yield self.event(number, "setup_failed", when, setup_link_id=link, data=data)
        if fate in {"connected", "lost"}:
            when += timedelta(minutes=self.random.randrange(3, 9000))
            fields = {"setup_link_id": link, "connection_id": number}
            yield self.event(number, "connected", min(when, self.now), **fields)
            if fate == "lost":
                yield self.event(number, "disconnected", self.now, **fields)

    def event(self, number: int, kind: str, when: datetime, **fields: Any) -> TimelineEvent:
        return TimelineEvent(
            kind=kind,
            customer_id=number,
            source="webhook",
            occurred_at=when,
            delivered_at=when,
            attempts=1,
            next_attempt_at=None,
            **fields,
        )
