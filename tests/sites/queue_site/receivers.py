"""One receiver that does what the file ``mode`` says, and writes to ``calls`` what it does."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import transaction
from django.dispatch import receiver

from kapso_connect.models import Connection, Customer, TimelineEvent
from kapso_connect.signals import whatsapp_connected


@receiver(whatsapp_connected)
def obey(connection: Connection, event: TimelineEvent, **kwargs: Any) -> None:
    mode = Path(settings.FOLDER, "mode").read_text()
    tell("begins", connection)
    if mode == "hang":
        time.sleep(30)
    elif mode == "raise":
        raise RuntimeError("receiver is broken")
    elif mode == "same rows":
        write_to_the_same_rows(connection, event)
    tell("ends", connection)


def write_to_the_same_rows(connection: Connection, event: TimelineEvent) -> None:
    with transaction.atomic():
        customer = Customer.objects.select_for_update().get(pk=connection.customer_id)
        mine = Connection.objects.select_for_update().get(pk=connection.pk)
        timeline = TimelineEvent.objects.select_for_update().filter(customer=customer)
        seen = len(timeline.order_by("pk"))
        customer.email = f"{seen}@site.example"
        customer.save()
        mine.verified_name = f"number {seen}"
        mine.save()
        event.data = {"seen": seen}
        event.save()


def tell(what: str, connection: Connection) -> None:
    line = {"what": what, "number": connection.phone_number_id, "pid": os.getpid()}
    with Path(settings.FOLDER, "calls").open("a") as calls:
        calls.write(json.dumps(line) + "\n")
