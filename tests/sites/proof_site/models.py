from __future__ import annotations

from django.db import models


class ReceivedSignal(models.Model):
    """One call of a receiver. ``event`` is the primary key of the TimelineEvent."""

    signal = models.CharField(max_length=64)
    event = models.BigIntegerField()
    number = models.CharField(max_length=64, blank=True)

    def __str__(self) -> str:
        return f"{self.signal} {self.number}"
