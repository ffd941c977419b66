from __future__ import annotations

from django.db import models


class Heard(models.Model):
    """One call of a receiver. ``event`` is the key of the TimelineEvent it was told of."""

    signal = models.CharField(max_length=64)
    event = models.BigIntegerField()
    number = models.CharField(max_length=64, blank=True)

    def __str__(self) -> str:
        return f"{self.signal} {self.number}"
