"""What is remembered: who was invited, what is connected, what arrived, what happened.

Rows change only in ``onboarding`` (state), ``webhooks`` (the inbox) and ``delivery`` (the outbox).
"""

from __future__ import annotations

import uuid
from typing import Any, ClassVar

from django.conf import settings
from django.contrib.contenttypes.fields import GenericForeignKey
from django.contrib.contenttypes.models import ContentType
from django.core.serializers.json import DjangoJSONEncoder
from django.db import models
from django.db.models import Q
from django.utils import timezone
from django.utils.crypto import get_random_string
from django.utils.translation import gettext_lazy as _

from .kapso.types import ConnectionType, Language
from .retries import Retryable


def new_external_id() -> str:
    return str(uuid.uuid4())


def new_connect_key() -> str:
    return get_random_string(22)


class Source(models.TextChoices):
    """Which channel told us."""

    WEBHOOK = "webhook", _("Webhook")
    REDIRECT = "redirect", _("Redirect")
    SYNC = "sync", _("Sync")
    MANUAL = "manual", _("Manual")


class AccountStatus(models.TextChoices):
    """What Meta's decisions leave of the WhatsApp Business Account a number belongs to."""

    ACTIVE = "active", _("Active")
    RESTRICTED = "restricted", _("Restricted")
    DISABLED = "disabled", _("Disabled")


class Health(models.TextChoices):
    """What Kapso says when it has looked at a number."""

    HEALTHY = "healthy", _("Healthy")
    DEGRADED = "degraded", _("Degraded")
    UNHEALTHY = "unhealthy", _("Unhealthy")
    ERROR = "error", _("Could not be checked")


class CustomerManager(models.Manager["Customer"]):
    def for_owner(self, owner: models.Model, **defaults: Any) -> Customer:
        """Return the customer linked to ``owner``, one of the host's own saved objects.

        A missing one is made with ``defaults`` (``name`` is ``str(owner)`` unless given).
        Raises ValueError for an object that was never saved.
        """
        if owner.pk is None:
            raise ValueError("Save the owner before asking for its customer.")
        customer, _created = self.get_or_create(
            owner_type=ContentType.objects.get_for_model(owner),
            owner_id=str(owner.pk),
            defaults={"name": str(owner)[:255], **defaults},
        )
        return customer

    def for_owners(self, owners: models.QuerySet[Any]) -> models.QuerySet[Customer]:
        """Return the customers linked to ``owners``, some of the host's own objects; make none."""
        return self.filter(
            owner_type=ContentType.objects.get_for_model(owners.model),
            owner_id__in=[str(key) for key in owners.values_list("pk", flat=True)],
        )


class Customer(models.Model):
    """A business that may connect WhatsApp numbers; a customer in Kapso's terms."""

    name = models.CharField(_("name"), max_length=255)
    external_customer_id = models.CharField(
        _("external customer id"),
        max_length=255,
        unique=True,
        null=True,
        blank=True,
        default=new_external_id,
        help_text=_("This site's own id for the customer; Kapso hands it back with its webhooks."),
    )
    kapso_id = models.CharField(
        _("Kapso id"),
        max_length=64,
        unique=True,
        null=True,
        blank=True,
        editable=False,
        help_text=_("Kapso's id for the customer; set when the first setup link is created."),
    )
    owner_type = models.ForeignKey(
        ContentType,
        on_delete=models.SET_NULL,
        null=True,
        blank=True,
        related_name="+",
        verbose_name=_("owner type"),
    )
    owner_id = models.CharField(_("owner id"), max_length=255, null=True, blank=True)
    owner = GenericForeignKey("owner_type", "owner_id")
    email = models.EmailField(_("e-mail"), blank=True)
    language = models.CharField(
        _("language"),
        max_length=2,
        choices=Language.choices,
        blank=True,
        help_text=_("Language of the hosted page; empty means that of the customer's browser."),
    )
    connect_key = models.CharField(
        _("connect key"),
        max_length=32,
        unique=True,
        null=True,
        blank=True,
        editable=False,
        help_text=_("The secret part of the customer's own address; empty where there is none."),
    )
    created_at = models.DateTimeField(_("created"), auto_now_add=True)
    updated_at = models.DateTimeField(_("updated"), auto_now=True)

    objects: ClassVar[CustomerManager] = CustomerManager()

    class Meta:
        verbose_name = _("customer")
        verbose_name_plural = _("customers")
        ordering = ["-pk"]
        constraints = [
            models.UniqueConstraint(
                fields=["owner_type", "owner_id"], name="kapso_connect_one_customer_per_owner"
            ),
        ]
        permissions = [("create_setup_link", _("Can create WhatsApp setup links"))]

    def __str__(self) -> str:
        return self.name


class SetupLinkQuerySet(models.QuerySet["SetupLink"]):
    def usable(self) -> SetupLinkQuerySet:
        """The links that a customer can still use: active, and not past ``expires_at``."""
        return self.filter(
            Q(expires_at=None) | Q(expires_at__gt=timezone.now()), status=SetupLink.Status.ACTIVE
        )

    def past_end(self) -> SetupLinkQuerySet:
        """The active links past ``expires_at``, which ``kapso_sync`` marks as expired."""
        return self.filter(status=SetupLink.Status.ACTIVE, expires_at__lte=timezone.now())


class SetupLink(models.Model):
    """An invitation: the address of Kapso's hosted page on which a customer connects a number."""

    class Status(models.TextChoices):
        ACTIVE = "active", _("Active")
        USED = "used", _("Used")
        EXPIRED = "expired", _("Expired")
        REVOKED = "revoked", _("Revoked")

    class SetupStatus(models.TextChoices):
        PENDING = "pending", _("Pending")
        PROCESSING = "processing", _("Processing")
        COMPLETED = "completed", _("Completed")
        FAILED = "failed", _("Failed")

    customer = models.ForeignKey(
        Customer, on_delete=models.CASCADE, related_name="setup_links", verbose_name=_("customer")
    )
    kapso_id = models.CharField(_("Kapso id"), max_length=64, unique=True)
    url = models.URLField(
        _("URL"),
        max_length=2000,
        help_text=_("Whoever has this address can connect a number for the customer."),
    )
    status = models.CharField(
        _("status"), max_length=16, choices=Status.choices, default=Status.ACTIVE
    )
    setup_status = models.CharField(
        _("setup status"), max_length=16, choices=SetupStatus.choices, default=SetupStatus.PENDING
    )
    options = models.JSONField(
        _("options"), default=dict, blank=True, help_text=_("What Kapso was asked for.")
    )
    is_latest = models.BooleanField(
        _("latest"),
        default=False,
        editable=False,
        help_text=_("The customer's newest link: that which says where the customer stands."),
    )
    next_url = models.CharField(
        _("afterwards"),
        max_length=2000,
        blank=True,
        help_text=_("The page of this site that the success page leads on to."),
    )
    opened_at = models.DateTimeField(
        _("opened"), null=True, blank=True, help_text=_("When the customer first followed it.")
    )
    expires_at = models.DateTimeField(_("expires"), null=True, blank=True)
    last_error_code = models.CharField(_("last error code"), max_length=64, blank=True)
    unconfirmed_phone_number_id = models.CharField(
        _("claimed phone number id"),
        max_length=64,
        blank=True,
        help_text=_("The number a returning browser named; not confirmed by Kapso's API yet."),
    )
    unconfirmed_since = models.DateTimeField(_("claimed"), null=True, blank=True)
    checked_at = models.DateTimeField(
        _("checked"), null=True, blank=True, help_text=_("When the API was last asked about it.")
    )
    renewing_at = models.DateTimeField(
        _("being renewed"),
        null=True,
        blank=True,
        editable=False,
        help_text=_("Since when a request of the customer's makes a newer link."),
    )
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        on_delete=models.SET_NULL,
        null=True,
        blank=True,
        related_name="+",
        verbose_name=_("created by"),
    )
    created_at = models.DateTimeField(
        _("created"), default=timezone.now, help_text=_("When Kapso created the link.")
    )

    objects = SetupLinkQuerySet.as_manager()

    token: str | None = None
    """Kapso's secret for a browser SDK: on the object that ``create_setup_link`` returns, never in
    the database."""

    class Meta:
        verbose_name = _("setup link")
        verbose_name_plural = _("setup links")
        ordering = ["-pk"]
        permissions = [
            ("send_setup_link", _("Can send WhatsApp setup links to customers")),
            ("extend_setup_link", _("Can extend WhatsApp setup links")),
            ("revoke_setup_link", _("Can revoke WhatsApp setup links")),
            ("receive_setup_token", "Can receive the tokens of WhatsApp setup links"),
        ]
        indexes = [
            models.Index(fields=["customer", "status"], name="kapso_connect_link_status"),
            # The overview looks for those that end soon, and expiry for those past their end.
            models.Index(fields=["status", "expires_at"], name="kapso_connect_link_expires"),
            models.Index(fields=["created_at"], name="kapso_connect_link_created"),
            # Sync checks the active links, those first that were checked longest ago.
            models.Index(fields=["status", "checked_at"], name="kapso_connect_link_checked"),
            # Sync looks for the claims that wait.
            models.Index(fields=["unconfirmed_since"], name="kapso_connect_link_claimed"),
        ]

    def __str__(self) -> str:
        # The URL stays out: it is as good as a password.
        return _("Setup link for %(customer)s") % {"customer": self.customer}

    @property
    def is_usable(self) -> bool:
        """True while the customer can still use the link: active and not past ``expires_at``."""
        return self.status == self.Status.ACTIVE and (
            self.expires_at is None or self.expires_at > timezone.now()
        )

    @property
    def reference(self) -> str:
        """What a customer tells staff to be helped: the admin's search finds the link by it."""
        return self.kapso_id[:8]


class Connection(models.Model):
    """A WhatsApp number of a customer, connected now or once."""

    class Status(models.TextChoices):
        CONNECTED = "connected", _("Connected")
        DISCONNECTED = "disconnected", _("Disconnected")

    phone_number_id = models.CharField(
        _("phone number id"), max_length=64, unique=True, help_text=_("Meta's id of the number.")
    )
    customer = models.ForeignKey(
        Customer, on_delete=models.CASCADE, related_name="connections", verbose_name=_("customer")
    )
    setup_link = models.ForeignKey(
        SetupLink,
        on_delete=models.SET_NULL,
        null=True,
        blank=True,
        related_name="connections",
        verbose_name=_("setup link"),
    )
    business_account_id = models.CharField(
        _("business account id"),
        max_length=64,
        blank=True,
        db_index=True,
        help_text=_("The WhatsApp Business Account (WABA) that holds the number."),
    )
    provisioned_phone_number_id = models.CharField(
        _("provisioned phone number id"), max_length=64, blank=True
    )
    display_phone_number = models.CharField(_("phone number"), max_length=64, blank=True)
    verified_name = models.CharField(_("verified name"), max_length=255, blank=True)
    connection_type = models.CharField(
        _("connection type"), max_length=16, choices=ConnectionType.choices, blank=True
    )
    status = models.CharField(
        _("status"), max_length=16, choices=Status.choices, default=Status.DISCONNECTED
    )
    connected_at = models.DateTimeField(_("connected"), null=True, blank=True)
    disconnected_at = models.DateTimeField(
        _("last disconnected"),
        null=True,
        blank=True,
        help_text=_("Kept when the number is connected again."),
    )
    disconnect_reason = models.CharField(
        _("why disconnected"),
        max_length=64,
        blank=True,
        help_text=_("Why it was last disconnected."),
    )
    quality_rating = models.CharField(
        _("quality rating"), max_length=32, blank=True, help_text=_("Meta's: GREEN, YELLOW, RED.")
    )
    name_status = models.CharField(
        _("display name status"),
        max_length=64,
        blank=True,
        help_text=_("Meta's: whether it approved the name that people see."),
    )
    health_status = models.CharField(_("health"), max_length=16, choices=Health.choices, blank=True)
    health_error = models.TextField(_("what is wrong"), blank=True)
    health_checked_at = models.DateTimeField(_("health checked"), null=True, blank=True)
    account_status = models.CharField(
        _("account status"),
        max_length=16,
        choices=AccountStatus.choices,
        default=AccountStatus.ACTIVE,
    )
    restrictions = models.JSONField(
        _("restrictions"), default=list, blank=True, help_text=_("Meta's, as Kapso reports them.")
    )
    account_updated_at = models.DateTimeField(_("account updated"), null=True, blank=True)
    created_at = models.DateTimeField(_("created"), auto_now_add=True)
    updated_at = models.DateTimeField(_("updated"), auto_now=True)

    class Meta:
        verbose_name = _("connection")
        verbose_name_plural = _("connections")
        ordering = ["-pk"]
        permissions = [
            ("reconnect_number", _("Can invite customers to reconnect a WhatsApp number")),
            ("check_health", _("Can check the health of WhatsApp numbers")),
            ("disconnect_number", _("Can disconnect WhatsApp numbers")),
        ]
        indexes = [
            models.Index(fields=["status", "connected_at"], name="kapso_connect_conn_status"),
        ]

    def __str__(self) -> str:
        return self.display_phone_number or self.phone_number_id

    @property
    def is_connected(self) -> bool:
        return self.status == self.Status.CONNECTED


class WebhookEventQuerySet(models.QuerySet["WebhookEvent"]):
    def waiting(self) -> WebhookEventQuerySet:
        """The deliveries that are tried again by themselves."""
        return self.filter(status=WebhookEvent.Status.PENDING)

    def failed(self) -> WebhookEventQuerySet:
        """The deliveries that are not tried again."""
        return self.filter(status=WebhookEvent.Status.FAILED)


class WebhookEvent(Retryable):
    """The inbox: every signed delivery, as it arrived, before anything followed from it."""

    class Status(models.TextChoices):
        PENDING = "pending", _("Pending")
        PROCESSED = "processed", _("Processed")
        IGNORED = "ignored", _("Ignored")
        FAILED = "failed", _("Failed")

    idempotency_key = models.CharField(_("idempotency key"), max_length=100, unique=True)
    event = models.CharField(_("event"), max_length=100)
    payload = models.JSONField(_("payload"), encoder=DjangoJSONEncoder)
    status = models.CharField(
        _("status"), max_length=16, choices=Status.choices, default=Status.PENDING
    )
    received_at = models.DateTimeField(_("received"), default=timezone.now)
    processed_at = models.DateTimeField(_("processed"), null=True, blank=True)

    PERMANENTLY_FAILED: ClassVar[dict[str, Any]] = {
        **Retryable.PERMANENTLY_FAILED,
        "status": Status.FAILED,
    }

    objects = WebhookEventQuerySet.as_manager()

    class Meta:
        verbose_name = _("webhook event")
        verbose_name_plural = _("webhook events")
        ordering = ["-pk"]
        indexes = [
            models.Index(fields=["status", "next_attempt_at"], name="kapso_connect_inbox_due"),
        ]

    def __str__(self) -> str:
        return f"{self.event} {self.idempotency_key}"


class TimelineEventQuerySet(models.QuerySet["TimelineEvent"]):
    def undelivered(self) -> TimelineEventQuerySet:
        """The events whose signal some receiver has not had."""
        return self.filter(delivered_at=None)

    def waiting(self) -> TimelineEventQuerySet:
        """The events whose signal is sent, or sent again, by itself."""
        return self.undelivered().filter(next_attempt_at__isnull=False)

    def failed(self) -> TimelineEventQuerySet:
        """The events whose signal is not sent again."""
        return self.undelivered().filter(next_attempt_at=None)


class TimelineEvent(Retryable):
    """The timeline: one row for each thing that happened, and the outbox its signal is sent from.

    ``delivered_at`` is when every receiver of the signal had returned without raising;
    ``receivers`` are those that did so far, so that a later attempt calls only the others.
    """

    class Kind(models.TextChoices):
        SETUP_LINK_CREATED = "setup_link_created", _("Setup link created")
        SETUP_LINK_REVOKED = "setup_link_revoked", _("Setup link revoked")
        SETUP_LINK_EXPIRED = "setup_link_expired", _("Setup link expired")
        SETUP_LINK_EXTENDED = "setup_link_extended", _("Setup link extended")
        SETUP_LINK_SENT = "setup_link_sent", _("Setup link sent")
        SETUP_LINK_OPENED = "setup_link_opened", _("Setup link opened")
        SETUP_FAILED = "setup_failed", _("Setup failed")
        CONNECTED = "connected", _("Connected")
        DISCONNECTED = "disconnected", _("Disconnected")
        RECONNECTED = "reconnected", _("Reconnected")
        ACCOUNT_UPDATED = "account_updated", _("Account updated")
        HEALTH_CHECKED = "health_checked", _("Health checked")
        WEBHOOK_RECEIVED = "webhook_received", _("Webhook received")

    kind = models.CharField(_("kind"), max_length=32, choices=Kind.choices)
    customer = models.ForeignKey(
        Customer,
        on_delete=models.CASCADE,
        null=True,
        blank=True,
        related_name="events",
        verbose_name=_("customer"),
    )
    connection = models.ForeignKey(
        Connection,
        on_delete=models.CASCADE,
        null=True,
        blank=True,
        related_name="events",
        verbose_name=_("connection"),
    )
    setup_link = models.ForeignKey(
        SetupLink,
        on_delete=models.CASCADE,
        null=True,
        blank=True,
        related_name="events",
        verbose_name=_("setup link"),
    )
    webhook_event = models.ForeignKey(
        WebhookEvent,
        on_delete=models.SET_NULL,
        null=True,
        blank=True,
        related_name="timeline_events",
        verbose_name=_("webhook event"),
    )
    source = models.CharField(_("source"), max_length=16, choices=Source.choices)
    actor = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        on_delete=models.SET_NULL,
        null=True,
        blank=True,
        related_name="+",
        verbose_name=_("by"),
        help_text=_("The member of staff who did it; empty where nobody of this site did."),
    )
    data = models.JSONField(_("data"), default=dict, blank=True, encoder=DjangoJSONEncoder)
    occurred_at = models.DateTimeField(_("occurred"), default=timezone.now)
    delivered_at = models.DateTimeField(_("signal delivered"), null=True, blank=True)
    receivers = models.JSONField(_("receivers done"), default=list, blank=True)

    objects = TimelineEventQuerySet.as_manager()

    class Meta:
        verbose_name = _("timeline event")
        verbose_name_plural = _("timeline")
        ordering = ["-pk"]
        indexes = [
            models.Index(fields=["customer", "occurred_at"], name="kapso_connect_timeline"),
            # The overview counts the links of one kind over a period.
            models.Index(fields=["kind", "occurred_at", "setup_link"], name="kapso_connect_kind"),
            models.Index(
                fields=["delivered_at", "next_attempt_at"], name="kapso_connect_outbox_due"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.get_kind_display()}: {self.connection or self.customer or ''}"


class InvitationBatch(models.Model):
    """Setup links that a member of staff asked for at once, for one customer or for many."""

    options = models.JSONField(
        _("options"), default=dict, blank=True, help_text=_("What Kapso is asked for.")
    )
    next_url = models.CharField(_("afterwards"), max_length=2000, blank=True)
    send_email = models.BooleanField(_("e-mail the links"), default=False)
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        on_delete=models.SET_NULL,
        null=True,
        blank=True,
        related_name="+",
        verbose_name=_("created by"),
    )
    created_at = models.DateTimeField(_("created"), default=timezone.now)
    started_at = models.DateTimeField(
        _("started"),
        null=True,
        blank=True,
        help_text=_("When its options were confirmed; before that nothing is created."),
    )
    stopped = models.TextField(
        _("stopped because"),
        blank=True,
        help_text=_("What every further customer would meet as well. Empty while it goes on."),
    )

    class Meta:
        verbose_name = _("batch of invitations")
        verbose_name_plural = _("batches of invitations")
        ordering = ["-pk"]
        default_permissions = ()

    def __str__(self) -> str:
        return str(self.pk)


class Invitation(Retryable):
    """One customer of a batch, and what came of it."""

    class Status(models.TextChoices):
        PENDING = "pending", _("To do")
        DONE = "done", _("Done")
        FAILED = "failed", _("Failed")

    class Email(models.TextChoices):
        NOT_SENT = "", _("Not sent")
        SENDING = "sending", _("Being sent")
        SENT = "sent", _("Sent")
        FAILED = "failed", _("Failed")

    batch = models.ForeignKey(
        InvitationBatch,
        on_delete=models.CASCADE,
        related_name="invitations",
        verbose_name=_("batch"),
    )
    customer = models.ForeignKey(
        Customer, on_delete=models.CASCADE, related_name="invitations", verbose_name=_("customer")
    )
    setup_link = models.ForeignKey(
        SetupLink,
        on_delete=models.SET_NULL,
        null=True,
        blank=True,
        related_name="+",
        verbose_name=_("setup link"),
    )
    status = models.CharField(
        _("status"), max_length=16, choices=Status.choices, default=Status.PENDING
    )
    email_status = models.CharField(
        _("e-mail"), max_length=16, choices=Email.choices, default=Email.NOT_SENT, blank=True
    )
    email_error = models.TextField(_("why no e-mail"), blank=True)
    PERMANENTLY_FAILED: ClassVar[dict[str, Any]] = {
        **Retryable.PERMANENTLY_FAILED,
        "status": Status.FAILED,
    }

    class Meta:
        verbose_name = _("invitation")
        verbose_name_plural = _("invitations")
        ordering = ["pk"]
        default_permissions = ()
        constraints = [
            models.UniqueConstraint(
                fields=["batch", "customer"], name="kapso_connect_invited_once_a_batch"
            ),
        ]
        indexes = [
            models.Index(fields=["status", "next_attempt_at"], name="kapso_connect_invite_due"),
            models.Index(fields=["batch", "status"], name="kapso_connect_invite_batch"),
        ]

    def __str__(self) -> str:
        return str(self.customer)


class IdempotentRequest(models.Model):
    """A creation that was asked for under an ``Idempotency-Key``, and what it was answered.

    Without ``answer`` it is under way until ``leased_until``; afterwards the next request with the
    key takes it over.
    """

    digest = models.CharField(
        max_length=64, unique=True, help_text="Of the key, of whose it is, and of where it is used."
    )
    fingerprint = models.CharField(max_length=64, help_text="Of the request's body.")
    created_at = models.DateTimeField(default=timezone.now, db_index=True)
    leased_until = models.DateTimeField()
    answer = models.JSONField(
        null=True, encoder=DjangoJSONEncoder, help_text="The body, without addresses and tokens."
    )
    customer = models.ForeignKey(Customer, on_delete=models.CASCADE, null=True, related_name="+")
    setup_link = models.ForeignKey(SetupLink, on_delete=models.CASCADE, null=True, related_name="+")

    class Meta:
        ordering = ["-pk"]
        default_permissions = ()

    def __str__(self) -> str:
        return self.digest[:8]
