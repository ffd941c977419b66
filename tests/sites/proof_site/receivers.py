"""Receivers as a host has them: one keeps what it is told, one writes to the very rows."""

from __future__ import annotations

import os
from typing import Any

from django.dispatch import Signal
from django.utils import timezone

from kapso_connect import signals
from kapso_connect.models import Connection, Customer, TimelineEvent

from . import steps
from .models import Heard


class Ear:
    def __init__(self, name: str) -> None:
        self.name = name

    def hear(
        self, *, event: TimelineEvent, connection: Connection | None = None, **kwargs: Any
    ) -> None:
        steps.reached("before the receiver writes")
        number = connection.phone_number_id if connection else ""
        Heard.objects.create(signal=self.name, event=event.pk, number=number)
        steps.reached("after the receiver wrote")


def touch(
    *, customer: Customer | None = None, connection: Connection | None = None, **kwargs: Any
) -> None:
    if customer is not None:
        customer.name = f"{customer.name[:200]}."
        customer.save(update_fields=["name"])
    if connection is not None:
        Connection.objects.filter(pk=connection.pk).update(updated_at=timezone.now())


EARS = {name: Ear(name) for name, signal in vars(signals).items() if isinstance(signal, Signal)}


def listen() -> None:
    only = os.environ.get("KAPSO_PROOF_SIGNAL")
    for name, ear in EARS.items():
        signal = getattr(signals, name)
        if only in {None, name}:
            signal.connect(ear.hear)
        if only is None:
            signal.connect(touch)
