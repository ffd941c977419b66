"""Receivers like a host's: one records its calls, one writes to the rows of the event."""

from __future__ import annotations

import os
from typing import Any

from django.dispatch import Signal
from django.utils import timezone

from kapso_connect import signals
from kapso_connect.models import Connection, Customer, TimelineEvent

from . import steps
from .models import ReceivedSignal


class Recorder:
    def __init__(self, name: str) -> None:
        self.name = name

    def record(
        self, *, event: TimelineEvent, connection: Connection | None = None, **kwargs: Any
    ) -> None:
        steps.reached("before the receiver writes")
        number = connection.phone_number_id if connection else ""
        ReceivedSignal.objects.create(signal=self.name, event=event.pk, number=number)
        steps.reached("after the receiver wrote")


def touch(
    *, customer: Customer | None = None, connection: Connection | None = None, **kwargs: Any
) -> None:
    if customer is not None:
        customer.name = f"{customer.name[:200]}."
        customer.save(update_fields=["name"])
    if connection is not None:
        Connection.objects.filter(pk=connection.pk).update(updated_at=timezone.now())


RECORDERS = {
    name: Recorder(name) for name, signal in vars(signals).items() if isinstance(signal, Signal)
}


def connect_receivers() -> None:
    only = os.environ.get("KAPSO_PROOF_SIGNAL")
    for name, recorder in RECORDERS.items():
        signal = getattr(signals, name)
        if only in {None, name}:
            signal.connect(recorder.record)
        if only is None:
            signal.connect(touch)
