"""A receiver that acts as the file ``mode`` says, and writes its calls to ``calls``."""

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
def act(connection: Connection, event: TimelineEvent, **kwargs: Any) -> None:
    mode = Path(settings.FOLDER, "mode").read_text()
    record_call("begins", connection)
    if mode == "hang":
        time.sleep(30)
    elif mode == "raise":
        raise RuntimeError("receiver is broken")
    elif mode == "same rows":
        write_to_the_same_rows(connection, event)
    record_call("ends", connection)


def write_to_the_same_rows(connection: Connection, event: TimelineEvent) -> None:
    with transaction.atomic():
        customer = Customer.objects.select_for_update().get(pk=connection.customer_id)
        mine = Connection.objects.select_for_update().get(pk=connection.pk)
        timeline = TimelineEvent.objects.select_for_update().filter(customer=customer)
        count = len(timeline.order_by("pk"))
        customer.email = f"{count}@site.example"
        customer.save()
        mine.verified_name = f"number {count}"
        mine.save()
        event.data = {"count": count}
        event.save()


def record_call(what: str, connection: Connection) -> None:
    line = {"what": what, "number": connection.phone_number_id, "pid": os.getpid()}
    with Path(settings.FOLDER, "calls").open("a") as calls:
        calls.write(json.dumps(line) + "\n")
