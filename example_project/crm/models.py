"""The site's own data. kapso_connect does not depend on it."""

from __future__ import annotations

from django.conf import settings
from django.db import models
from django.urls import reverse

from kapso_connect.models import Connection, Customer, WhatsAppRelation


class Company(models.Model):
    name = models.CharField(max_length=200)
    email = models.EmailField("e-mail")
    # The WhatsApp number of the person in charge, who gets the first message.
    phone = models.CharField(max_length=32, blank=True)
    # Users who log in for the company: the REST API shows them their company's customer.
    members = models.ManyToManyField(settings.AUTH_USER_MODEL, blank=True, related_name="companies")
    # For queries such as Company.objects.filter(whatsapp__status="connected").
    whatsapp = WhatsAppRelation()
    # Asked for after the company has connected: the site's own next step.
    opening_hours = models.CharField(max_length=200, blank=True)
    # The number that sends messages; empty while none is connected.
    whatsapp_phone_number_id = models.CharField(max_length=64, blank=True, editable=False)
    whatsapp_connected_at = models.DateTimeField(null=True, editable=False)
    whatsapp_problem = models.CharField(max_length=64, blank=True, editable=False)

    class Meta:
        verbose_name_plural = "companies"
        ordering = ["name"]
        indexes = [models.Index(fields=["name"], name="crm_company_name")]

    def __str__(self) -> str:
        return self.name

    def get_whatsapp_next_url(self, connection: Connection) -> str:
        """Return where the success page's button leads; kapso_connect calls this."""
        return reverse("welcome")

    @property
    def customer(self) -> Customer:
        """This company's customer in kapso_connect, created on first use."""
        return Customer.objects.for_owner(self, email=self.email)

    @property
    def whatsapp_number(self) -> str:
        """The connected number as people write it, or "" while none is connected."""
        connection = Connection.objects.filter(
            phone_number_id=self.whatsapp_phone_number_id, status=Connection.Status.CONNECTED
        ).first()
        return str(connection) if connection else ""


class WelcomeMessage(models.Model):
    """The WhatsApp message that a company's new number sent to the person in charge."""

    class State(models.TextChoices):
        SENDING = "sending", "Being sent"
        SENT = "sent", "Sent"
        UNKNOWN = "unknown", "It is not known whether it was sent"

    company = models.ForeignKey(Company, models.CASCADE, related_name="welcome_messages")
    # The event of ``whatsapp_connected``: one message for each.
    event_id = models.BigIntegerField(unique=True)
    phone_number_id = models.CharField(max_length=64)
    to = models.CharField(max_length=32)
    body = models.TextField()
    # Meta's id; the events "delivered", "read" and "failed" name it.
    message_id = models.CharField(max_length=255, blank=True)
    state = models.CharField(max_length=16, choices=State.choices, default=State.SENDING)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-pk"]

    def __str__(self) -> str:
        return f"{self.to}: {self.body}"


class ReceivedMessage(models.Model):
    """A WhatsApp message that somebody wrote to a connected number."""

    # Meta's id of the message: a delivery that comes again adds nothing.
    message_id = models.CharField(max_length=255, unique=True)
    phone_number_id = models.CharField(max_length=64, db_index=True)
    sender = models.CharField(max_length=255, blank=True)
    kind = models.CharField(max_length=32)
    text = models.TextField(blank=True)
    received_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-pk"]

    def __str__(self) -> str:
        return f"{self.sender}: {self.text or self.kind}"


class HandledEvent(models.Model):
    """An event that a receiver has handled, so that a repeated signal has no effect."""

    event_id = models.BigIntegerField()
    receiver = models.CharField(max_length=100)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["event_id", "receiver"], name="crm_handled_once"),
        ]

    def __str__(self) -> str:
        return f"{self.receiver} {self.event_id}"
