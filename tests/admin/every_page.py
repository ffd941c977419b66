"""One row of each model, and the address of every page of the admin about them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

from django.contrib import admin
from django.contrib.auth.models import User
from django.db.models import Model
from django.urls import URLPattern, reverse
from django.utils import timezone

from kapso_connect.models import (
    Customer,
    Invitation,
    InvitationBatch,
    SetupLink,
    TimelineEvent,
    WebhookEvent,
    new_connect_key,
)

from ..factories import make_connection, make_customer, make_link, make_user
from ..sites.host_site.models import Bakery


class EveryRow:
    """One row of each model, with ids that have separators when they are localized."""

    def __init__(self) -> None:
        pks = count(12345678)
        now = timezone.now()
        self.bakery = Bakery.objects.create(pk=next(pks), title="Ada's", contact="ada@example.com")
        self.customer = make_customer(
            pk=next(pks), owner=self.bakery, email="ada@example.com", connect_key=new_connect_key()
        )
        self.link = make_link(self.customer, pk=next(pks), expires_at=now)
        SetupLink.objects.update(expires_at=now.replace(year=now.year + 1))
        self.number = make_connection(
            self.customer,
            pk=next(pks),
            setup_link=self.link,
            display_phone_number="+442071838750",
            name_status="DECLINED",
        )
        self.event = TimelineEvent.objects.create(
            pk=next(pks),
            kind="connected",
            source="webhook",
            customer=self.customer,
            connection=self.number,
            setup_link=self.link,
            last_error="A receiver raised.",
            next_attempt_at=None,
        )
        self.webhook = WebhookEvent.objects.create(
            pk=next(pks),
            idempotency_key="key",
            event="whatsapp.phone_number.created",
            payload={},
            status=WebhookEvent.Status.FAILED,
            next_attempt_at=None,
        )
        self.staff = make_user("staff", "superuser")
        User.objects.filter(pk=self.staff.pk).update(id=next(pks))
        self.staff = User.objects.get()
        self.draft, self.batch = (
            InvitationBatch.objects.create(pk=next(pks), created_by=self.staff, started_at=started)
            for started in (None, now)
        )
        Invitation.objects.create(pk=next(pks), batch=self.draft, customer=self.customer)
        Invitation.objects.create(
            pk=next(pks),
            batch=self.batch,
            customer=self.customer,
            setup_link=self.link,
            status=Invitation.Status.DONE,
            next_attempt_at=None,
        )

    def fill_batch(self) -> None:
        """Let the batch be of more than a thousand customers."""
        rows = Customer.objects.bulk_create(Customer(name=f"Customer {n}") for n in range(1000))
        Invitation.objects.bulk_create(Invitation(batch=self.batch, customer=row) for row in rows)

    def row(self, model: type[Model]) -> Any:
        rows = (self.bakery, self.customer, self.link, self.number, self.event, self.webhook)
        return next(row for row in rows if isinstance(row, model))

    def urls(self, model: type[Model], site: admin.AdminSite = admin.site) -> Iterator[str]:
        """The address of each page of this model's admin."""
        row = self.row(model)
        for pattern in site.get_model_admin(model).get_urls():
            if not isinstance(pattern, URLPattern) or pattern.name is None:
                continue
            arguments = {"object_id": [row.pk], "connection": [self.number.pk]}
            arguments["pk"] = [self.draft.pk, self.batch.pk]
            names = list(pattern.pattern.converters)
            for value in arguments[names[-1]] if names else [None]:
                kwargs = {name: arguments[name][0] for name in names}
                if names:
                    kwargs[names[-1]] = value
                url = reverse(f"admin:{pattern.name}", kwargs=kwargs)
                if url.endswith(("run-again/", "erase/")):
                    url += f"?ids={row.pk}"
                elif url.endswith("check-health/"):
                    url += f"?ids={self.number.pk}"
                yield url
