"""Models of a site that calls its fields otherwise, and has keys of every kind."""

from __future__ import annotations

import uuid

from django.db import models

from kapso_connect.models import WhatsAppRelation


class Bakery(models.Model):
    title = models.TextField()
    contact = models.CharField(max_length=254, blank=True)
    reference = models.CharField(max_length=50, blank=True)
    locale = models.CharField(max_length=10, blank=True)
    opened = models.BooleanField(default=True)
    whatsapp = WhatsAppRelation(related_query_name="bakery")

    class Meta:
        verbose_name_plural = "bakeries"
        ordering = ["pk"]

    def __str__(self) -> str:
        return f"Bakery: {self.title}"


class Shop(models.Model):
    """Has a UUID for its key, and no e-mail."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    name = models.CharField(max_length=200)
    whatsapp = WhatsAppRelation(related_query_name="shop")

    def __str__(self) -> str:
        return self.name


class Branch(models.Model):
    """Has a text for its key, with characters that the admin quotes in addresses."""

    code = models.CharField(max_length=255, primary_key=True)
    whatsapp = WhatsAppRelation(related_query_name="branch")

    def __str__(self) -> str:
        return self.code


class Franchise(Bakery):
    """Has the key of its parent."""


class Kiosk(Franchise):
    """Has the key of its parent's parent."""


class Corner(Shop):
    """Is another view of the same rows."""

    class Meta:
        proxy = True


class Ledger(models.Model):
    """Has a decimal number for its key."""

    number = models.DecimalField(max_digits=8, decimal_places=2, primary_key=True)
    whatsapp = WhatsAppRelation()

    def __str__(self) -> str:
        return str(self.number)


class Desk(models.Model):
    """Has the key of a shop, without being one."""

    shop = models.OneToOneField(Shop, on_delete=models.CASCADE, primary_key=True)
    whatsapp = WhatsAppRelation()

    def __str__(self) -> str:
        return str(self.pk)


class Seat(models.Model):
    """Has a key of two columns."""

    pk = models.CompositePrimaryKey("row", "number")
    row = models.IntegerField()
    number = models.IntegerField()

    def __str__(self) -> str:
        return f"{self.row}-{self.number}"
