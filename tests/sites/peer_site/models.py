"""What the hand-written view keeps: each delivery, and where each number stands."""

from __future__ import annotations

from django.db import models


class Delivery(models.Model):
    idempotency_key = models.CharField(max_length=100, unique=True)
    event = models.CharField(max_length=100)
    payload = models.JSONField()
    received_at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return self.idempotency_key


class Number(models.Model):
    phone_number_id = models.CharField(max_length=64, unique=True)
    customer_id = models.CharField(max_length=64, db_index=True)
    status = models.CharField(max_length=16)
    connected_at = models.DateTimeField()

    def __str__(self) -> str:
        return self.phone_number_id
