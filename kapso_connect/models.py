"""The tables: who was invited, what is connected, what arrived, what happened.

State (links, numbers, the timeline) is changed only by ``onboarding``, ``webhooks`` and ``outbox``.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection
from datetime import datetime, timedelta
from functools import reduce
from operator import or_
from typing import Any, ClassVar

from django.conf import settings
from django.contrib.contenttypes.fields import (
    GenericForeignKey,
    GenericRelation,
    ReverseGenericManyToOneDescriptor,
)
from django.contrib.contenttypes.models import ContentType
from django.core.serializers.json import DjangoJSONEncoder
from django.db import DEFAULT_DB_ALIAS, IntegrityError, connections, models, router
from django.db.models import Exists, F, OuterRef, Q
from django.db.models.lookups import Exact
from django.db.models.query_utils import PathInfo
from django.utils import timezone
from django.utils.crypto import get_random_string
from django.utils.functional import cached_property

from .conf import MAX_LANGUAGE_CODE
from .exceptions import ExternalIdTaken, OwnerTaken
from .fields import InstantField
from .kapso.setup_link_options import PARTNER_MANAGED
from .kapso.types import ConnectionType
from .languages import find_page_language, language_choices, validate_language
from .log import log_event
from .owners import OwnerKey, owner_key, owner_type
from .phone_numbers import TEST_NUMBER_DIGITS, is_test_number, only_digits, searched_digits
from .querysets import PrimaryQuerySet
from .retries import (
    Dismissable,
    DismissableQuerySet,
    Leased,
    LeasedQuerySet,
    Retryable,
    RetryableQuerySet,
    not_leased,
)
from .text import one_line
from .translation import gettext_lazy as _
from .utils import MAX_URL_LENGTH, time_since, utc_now


def new_external_id() -> str:
    return str(uuid.uuid4())


def new_connect_key() -> str:
    """Return a new random connect key. It is a secret: whoever has it can connect a number."""
    return get_random_string(22)


class Source(models.TextChoices):
    """Where a change was reported from."""

    WEBHOOK = "webhook", _("Webhook")
    REDIRECT = "redirect", _("Redirect")
    SYNC = "sync", _("Sync")
    MANUAL = "manual", _("Manual")


class AccountStatus(models.TextChoices):
    """The state of a number's WhatsApp Business Account, after Meta's decisions about it."""

    ACTIVE = "active", _("Active")
    RESTRICTED = "restricted", _("Restricted")
    DISABLED = "disabled", _("Disabled")


class Health(models.TextChoices):
    """The result of Kapso's health check of a number."""

    HEALTHY = "healthy", _("Healthy")
    DEGRADED = "degraded", _("Degraded")
    UNHEALTHY = "unhealthy", _("Unhealthy")
    ERROR = "error", _("Could not be checked")


class OnboardingStatus(models.TextChoices):
    """How far a customer's onboarding has come."""

    NOT_INVITED = "not_invited", _("Not invited")
    INVITED = "invited", _("Invited")
    OPENED = "opened", _("Opened")
    CONFIRMING = "confirming", _("Being confirmed")
    FAILED = "failed", _("Failed")
    CONNECTED = "connected", _("Connected")
    PAUSED = "paused", _("Paused by Meta")
    DISCONNECTED = "disconnected", _("Disconnected")


class Funding(models.TextChoices):
    """Whether Kapso pays Meta for the WhatsApp Business account of a number."""

    FUNDED = "funded", _("Yes")
    PENDING = "pending", _("Not yet")
    UNKNOWN = "unknown", _("Unknown")
    NOT_FUNDED = "not_funded", _("No")
    REVOKED = "revoked", _("No longer")


class Attention(models.TextChoices):
    """Why a number needs attention."""

    TEST_NUMBER = "test", _("Test number")
    RESTRICTED = "restricted", _("Account restricted or disabled")
    DISCONNECTED = "disconnected", _("Disconnected, not invited since")
    NAME = "name", _("Display name not approved")
    HEALTH = "health", _("Not healthy")
    FUNDING = "funding", _("Not paid for by Kapso")


MAX_NAME_LENGTH = 255

REFERENCE_LENGTH = 8
"""Characters of a setup link's reference."""

MAX_FOUND = 1000
"""The most phone numbers, and the most references, that a search finds, the newest first."""


class NameField(models.CharField):  # type: ignore[type-arg]
    """A name that somebody else chose; stored as ``one_line`` returns it."""

    def to_python(self, value: Any) -> Any:
        value = super().to_python(value)
        return one_line(value) if isinstance(value, str) else value

    def pre_save(self, model_instance: models.Model, add: bool) -> Any:
        value = self.to_python(super().pre_save(model_instance, add))
        setattr(model_instance, self.attname, value)
        return value

    def get_prep_value(self, value: Any) -> Any:
        # Not every write calls ``pre_save``.
        return self.to_python(super().get_prep_value(value))

    def deconstruct(self) -> Any:
        name, _path, args, kwargs = super().deconstruct()
        return name, "django.db.models.CharField", args, kwargs


class OptionalIdField(models.CharField):  # type: ignore[type-arg]
    """An optional id of the customer, stored as a text; an empty one is stored as None, since ids
    are unique."""

    def pre_save(self, model_instance: models.Model, add: bool) -> Any:
        value = super().pre_save(model_instance, add)
        if not hasattr(value, "resolve_expression"):
            value = ("" if value is None else str(value)) or None
            setattr(model_instance, self.attname, value)
        return value

    def deconstruct(self) -> Any:
        name, _path, args, kwargs = super().deconstruct()
        return name, "django.db.models.CharField", args, kwargs


class CustomerQuerySet(PrimaryQuerySet["Customer"]):
    def for_owner(self, owner: models.Model, **defaults: Any) -> Customer:
        """Return the customer linked to ``owner``, a saved object of any of the site's models.

        If there is none, it is created with ``defaults``: ``name`` (by default ``str(owner)``),
        ``email``, ``language`` and ``external_customer_id``. None, and an empty text, is the same
        as leaving one out. A customer without an owner that has this ``external_customer_id`` (or
        ``kapso_id``) becomes the owner's.

        With multi-table inheritance the owner is the row of the topmost parent, whose children have
        the same customer. Raise ValueError for an object that is not saved or has a composite
        primary key, for a language that pages are not in and for a value that is too long
        (except a name, which is cut); ExternalIdTaken for the id of another owner's customer; and
        OwnerTaken if the database cannot tell the owner's key from that of another one.
        """
        if owner.pk is None:
            raise ValueError("Save the owner before you request its customer.")
        # Not type(): ``request.user`` is a lazy object.
        key = owner_key(owner.__class__, owner.pk)
        ownership = {"owner_type": owner_type(owner), "owner_id": key}
        given = {name: value for name, value in defaults.items() if value not in (None, "")}
        values = _validated({"name": str(owner), **given})
        try:
            customer, _created = self.get_or_create(**ownership, defaults=values)
        except IntegrityError:
            for field in ("external_customer_id", "kapso_id"):
                taken = self.filter(**{field: values[field]}).first() if values.get(field) else None
                if taken is not None:
                    return self._adopt(taken, field, values[field], ownership)
            raise
        if customer.owner_id != key:
            # MySQL and MariaDB take "Ab3" for "aB3", and cannot store both.
            raise OwnerTaken(
                f"This database cannot tell the owner's key {key!r} from "
                f"{customer.owner_id!r}, that of the owner of customer {customer.pk}."
            )
        return customer

    def _adopt(
        self, customer: Customer, field: str, value: str, ownership: dict[str, Any]
    ) -> Customer:
        """Give ``customer``, which was found by the ``value`` of a ``field``, its owner if it has
        none."""
        # MySQL and MariaDB take "Ab3" for "aB3".
        if getattr(customer, field) == value:
            unowned = self.filter(
                Q(owner_type=None) | Q(owner_id=None), pk=customer.pk, erased_at=None
            )
            if unowned.update(**ownership) or self.filter(pk=customer.pk, **ownership).exists():
                customer.refresh_from_db()
                return customer
            customer.refresh_from_db()
        kind = customer.owner_type.name if customer.owner_type else ""
        whose = f"belongs to {kind} {customer.owner_id}" if kind else "has no owner"
        raise ExternalIdTaken(
            f"The {field} {value!r} is that of customer {customer.pk} "
            f"({getattr(customer, field)!r}), which {whose}."
        )

    def find_for_owner(self, owner: models.Model) -> Customer | None:
        """Return the customer linked to ``owner``, or None if there is none. Nothing is created."""
        if owner.pk is None:
            return None
        key = owner_key(owner.__class__, owner.pk)
        customer = self.filter(owner_type=owner_type(owner), owner_id=key).first()
        # MySQL and MariaDB take "Ab3" for "aB3".
        return customer if customer is not None and customer.owner_id == key else None

    def for_owners(self, owners: models.QuerySet[Any]) -> CustomerQuerySet:
        """Return the customers linked to ``owners``, a queryset of one of the site's models.

        Owners without a customer are left out.
        """
        keys = owners.values_list("pk", flat=True)
        return self.filter(
            owner_type=owner_type(owners.model),
            owner_id__in=[owner_key(owners.model, key) for key in keys],
        )

    def needing_attention(self, why: str | None = None) -> CustomerQuerySet:
        """Return the customers with a number that needs attention because of ``why``, a value of
        ``Attention``, or for any reason if it is None."""
        numbers = Connection.objects.using(self.db).order_by()
        if why is not None:
            return self.filter(pk__in=numbers.needing_attention(why).values("customer"))
        # A union: with an ``OR``, PostgreSQL would join all numbers with customers and links.
        in_trouble, lost = numbers.in_trouble(), numbers.lost()
        return self.filter(pk__in=in_trouble.values("customer").union(lost.values("customer")))

    def search(self, text: str) -> CustomerQuerySet:
        """Return the customers with ``text`` in their name, external id, e-mail address or Kapso
        id, or that ``with_number_or_reference`` returns."""
        words = text.strip()
        return self.filter(
            Q(name__icontains=words)
            | Q(external_customer_id__icontains=words)
            | Q(email__icontains=words)
            | Q(kapso_id__icontains=words)
        ) | self.with_number_or_reference(text)

    def with_number_or_reference(self, text: str) -> CustomerQuerySet:
        """Return the customers that ``with_number`` or ``with_reference`` returns."""
        return self.filter(pk__in={*self._keys_by_number(text), *self._keys_by_reference(text)})

    def with_number(self, text: str) -> CustomerQuerySet:
        """Return the customers with a phone number that contains ``text``, as people write it: at
        most ``MAX_FOUND``."""
        return self.filter(pk__in=self._keys_by_number(text))

    def with_reference(self, text: str) -> CustomerQuerySet:
        """Return the customers with a setup link whose reference is ``text``: at most
        ``MAX_FOUND``."""
        return self.filter(pk__in=self._keys_by_reference(text))

    # The keys are read at once: an ``OR`` with a subquery misleads PostgreSQL's planner.

    def _keys_by_number(self, text: str) -> set[int]:
        numbers = Connection.objects.using(self.db).with_number(text)
        return set(numbers.values_list("customer", flat=True)[:MAX_FOUND])

    def _keys_by_reference(self, text: str) -> set[int]:
        links = SetupLink.objects.using(self.db).with_reference(text)
        return set(links.values_list("customer", flat=True)[:MAX_FOUND])

    def idle_since(self, moment: datetime) -> CustomerQuerySet:
        """Return the customers who were invited before ``moment``, and have neither been invited
        again nor opened their link since."""
        recent = SetupLink.objects.filter(
            Q(created_at__gte=moment) | Q(last_opened_at__gte=moment),
            pk=OuterRef("latest_setup_link"),
        )
        return self.filter(
            ~Exists(recent),
            status__in=[OnboardingStatus.INVITED, OnboardingStatus.OPENED],
            status_changed_at__lt=moment,
        )

    def locked(self) -> CustomerQuerySet:
        """Return the customers with their rows locked until the transaction ends, in the order of
        their keys.

        Whoever changes a customer's links or numbers locks the customer first, so that its changes
        happen one after the other. Rows that refer to the customer can be written meanwhile.
        Read links and numbers afterwards, not in the same statement: PostgreSQL returns joined rows
        as they were before it waited for the lock.
        """
        features = connections[self.db].features
        return self.select_for_update(
            no_key=features.has_select_for_no_key_update,
            of=("self",) if features.has_select_for_update_of else (),
        ).order_by("pk")


def _validated(values: dict[str, Any]) -> dict[str, Any]:
    """Return the ``values`` of a customer's fields as every database can store them.

    A name that is too long is cut. Raise ValueError for another one, and for a language that pages
    are not in.
    """
    values = {**values, "name": str(values["name"])[:MAX_NAME_LENGTH]}
    if "language" in values:
        values["language"] = validate_language(str(values["language"]))
    for name in {"email", "external_customer_id", "kapso_id"}.intersection(values):
        values[name] = str(values[name])
        field: Any = Customer._meta.get_field(name)
        if len(values[name]) > field.max_length:
            raise ValueError(f"The {name} is longer than {field.max_length} characters.")
    return values


class Customer(models.Model):
    """A business that may connect WhatsApp numbers; a customer in Kapso's terms."""

    name = NameField(_("name"), max_length=MAX_NAME_LENGTH)
    external_customer_id = OptionalIdField(
        _("external customer id"),
        max_length=255,
        unique=True,
        null=True,
        blank=True,
        default=new_external_id,
        help_text=_("This site's own id for the customer; Kapso returns it in its webhooks."),
    )
    kapso_id = OptionalIdField(
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
        db_index=False,  # other indexes begin with it
        verbose_name=_("owner type"),
    )
    owner_id = models.CharField(_("owner id"), max_length=255, null=True, blank=True)
    owner = GenericForeignKey("owner_type", "owner_id")
    email = models.EmailField(_("e-mail"), blank=True)
    language = models.CharField(
        _("language"),
        max_length=MAX_LANGUAGE_CODE,
        choices=language_choices,
        blank=True,
        help_text=_(
            "Language of the customer's pages and e-mails. Empty means the browser's, and in "
            "e-mails this site's."
        ),
    )
    connect_key = models.CharField(
        _("connect key"),
        max_length=32,
        unique=True,
        null=True,
        blank=True,
        editable=False,
        help_text=_("The secret part of the customer's personal link. Empty if there is none."),
    )
    status = models.CharField(
        _("status"),
        max_length=16,
        choices=OnboardingStatus.choices,
        default=OnboardingStatus.NOT_INVITED,
        editable=False,
        help_text=_("How far the onboarding has come."),
    )
    status_changed_at = models.DateTimeField(
        _("status since"), default=timezone.now, editable=False
    )
    latest_setup_link = models.ForeignKey(
        "SetupLink",
        on_delete=models.SET_NULL,
        null=True,
        blank=True,
        editable=False,
        related_name="+",
        verbose_name=_("latest setup link"),
    )
    erased_at = models.DateTimeField(
        _("erased"),
        null=True,
        blank=True,
        editable=False,
        help_text=_("When the customer's personal data were erased. Empty if they were not."),
    )
    created_at = models.DateTimeField(_("created"), auto_now_add=True)
    updated_at = models.DateTimeField(_("updated"), auto_now=True)

    WRITTEN_BY_ONBOARDING: ClassVar[frozenset[str]] = frozenset(
        {"connect_key", "status", "status_changed_at", "latest_setup_link", "erased_at"}
    )

    objects = CustomerQuerySet.as_manager()

    class Meta:
        base_manager_name = "objects"
        verbose_name = _("customer")
        verbose_name_plural = _("customers")
        ordering = ["-pk"]
        constraints = [
            models.UniqueConstraint(
                fields=["owner_type", "owner_id"], name="kapso_connect_one_customer_per_owner"
            ),
        ]
        indexes = [
            # For lists filtered by status, the newest customer first.
            models.Index(fields=["status", "id"], name="kapso_connect_customer_status"),
            # For lists of a site's own objects, filtered by their customers' status.
            models.Index(
                fields=["owner_type", "status", "owner_id"], name="kapso_connect_owner_status"
            ),
        ]
        permissions = [
            ("create_setup_link", _("Can create WhatsApp setup links")),
            ("erase_customer", _("Can erase the data of WhatsApp customers")),
        ]

    def __str__(self) -> str:
        if self.erased_at is not None:
            return _("Erased customer %(id)s") % {"id": self.pk}
        name: str = self.name
        return name

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Save the customer. An existing row keeps the fields ``WRITTEN_BY_ONBOARDING``, which may
        have changed since this object was read, unless ``update_fields`` names them; and its
        ``kapso_id``, if this object has none. Raise ValueError for a language that pages are not
        in, unless the row has it already."""
        is_new = self._state.adding or kwargs.get("force_insert")
        if not is_new and kwargs.get("update_fields") is None:
            left_out = self.WRITTEN_BY_ONBOARDING | self.get_deferred_fields()
            if "kapso_id" not in left_out and not self.kapso_id:
                left_out |= {"kapso_id"}
            kwargs["update_fields"] = [
                field.name
                for field in self._meta.concrete_fields
                if not field.primary_key and left_out.isdisjoint({field.name, field.attname})
            ]
        written = kwargs.get("update_fields")
        if written is None or "language" in written:
            try:
                self.language = validate_language(str(self.language or ""))
            except ValueError:
                # Other fields can be saved after EXTRA_LANGUAGES has lost the language of the row.
                rows = type(self).objects.filter(pk=self.pk, language=self.language)
                if is_new or not rows.exists():
                    raise
        super().save(*args, **kwargs)

    def find_language(self, link: SetupLink | None) -> str:
        """Return the language of ``link``, or else the customer's; "" if pages are in neither."""
        of_link = link.options.get("language") if link else ""
        return find_page_language(of_link) or find_page_language(self.language)

    def get_owner(self) -> models.Model | None:
        """Return the owner, or None if there is none, or none any more.

        Unlike ``owner``, it raises nothing if the owner cannot be looked up: when its model was
        removed, for example, or has another kind of key now. That is logged.
        """
        try:
            owner: models.Model | None = self.owner
        except Exception as error:
            log_event("owner.unavailable", customer_id=self.pk, error=type(error).__name__)
            return None
        return owner


class OwnedCustomers(ReverseGenericManyToOneDescriptor):
    """The attribute of an owner that has its customer."""

    @cached_property
    def related_manager_cls(self) -> Any:
        class OwnedCustomerManager(super().related_manager_cls):  # type: ignore[misc]
            def __init__(self, instance: Any = None) -> None:
                super().__init__(instance)
                self._db = router.db_for_write(Customer)  # as PrimaryQuerySet
                self.get_content_type = owner_type
                self.content_type = owner_type(instance)
                self.pk_val = owner_key(type(instance), instance.pk)
                self.core_filters = {"owner_type": self.content_type, "owner_id": self.pk_val}

        return OwnedCustomerManager


class WhatsAppRelation(GenericRelation):
    """The customer of an object, for queries: ``Merchant.objects.filter(whatsapp__status=…)``.

    Add ``whatsapp = WhatsAppRelation()`` to a model whose objects own customers. It has no column
    and needs no migration. With ``related_query_name="merchant"``, customers can be filtered by
    their merchants.

    A child of the model (multi-table inheritance) has the same customers as its parent. A model
    with a composite primary key is refused by a system check.

    A plain GenericRelation compares the two keys as they are stored, which PostgreSQL refuses for
    integers and UUIDs and SQLite cannot do for UUIDs; and it deletes the customers with their
    owner. This one compares them as texts, and a customer, whose number stays connected at Kapso,
    outlives its owner.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(
            "kapso_connect.Customer",
            object_id_field="owner_id",
            content_type_field="owner_type",
            **kwargs,
        )

    def contribute_to_class(
        self, cls: type[models.Model], name: str, private_only: bool = False, **kwargs: Any
    ) -> None:
        super().contribute_to_class(cls, name, private_only=private_only, **kwargs)
        relation: Any = self.remote_field
        setattr(cls, self.name, OwnedCustomers(relation))

    def get_content_type(self) -> ContentType:
        return owner_type(self.model)

    def get_path_info(self, filtered_relation: Any = None) -> Any:
        # An owner has at most one customer, so that a join repeats no rows.
        return [
            PathInfo(
                from_opts=path.from_opts,
                to_opts=path.to_opts,
                target_fields=path.target_fields,
                join_field=path.join_field,
                m2m=False,
                direct=path.direct,
                filtered_relation=filtered_relation,
            )
            for path in super().get_path_info(filtered_relation)
        ]

    def get_joining_fields(self, reverse_join: bool = False) -> Any:
        return ()  # the keys are compared by the restriction below

    def get_reverse_joining_fields(self) -> Any:
        return ()

    def get_extra_restriction(self, alias: Any, remote_alias: Any) -> Any:
        restriction = super().get_extra_restriction(alias, remote_alias)
        owner_id = Customer._meta.get_field("owner_id")
        key = OwnerKey(self.model._meta.pk.get_col(alias))
        restriction.add(Exact(owner_id.get_col(remote_alias), key), Q.AND)
        return restriction

    def bulk_related_objects(self, objs: Any, using: str = DEFAULT_DB_ALIAS) -> Any:
        return Customer.objects.none()  # nothing is deleted with the owner


class SetupLinkQuerySet(LeasedQuerySet["SetupLink"]):
    def active(self) -> SetupLinkQuerySet:
        """Return the links that were not used, revoked or marked as expired."""
        return self.filter(status=SetupLink.Status.ACTIVE)

    def usable(self) -> SetupLinkQuerySet:
        """Return the links that a customer can still use: active and not past ``expires_at``."""
        return self.active().filter(Q(expires_at=None) | Q(expires_at__gt=timezone.now()))

    def expired(self) -> SetupLinkQuerySet:
        """Return the links whose time is over, marked as expired or not yet."""
        return self.filter(
            Q(status=SetupLink.Status.EXPIRED)
            | Q(status=SetupLink.Status.ACTIVE, expires_at__lte=timezone.now())
        )

    def with_current_status(self, statuses: Collection[str]) -> SetupLinkQuerySet:
        """Return the links whose ``current_status`` is one of ``statuses``."""
        is_over = Q(status=SetupLink.Status.ACTIVE, expires_at__lte=timezone.now())
        if SetupLink.Status.EXPIRED in statuses:
            return self.filter(Q(status__in=statuses) | is_over)
        return self.filter(status__in=statuses).exclude(is_over)

    def search(self, text: str) -> SetupLinkQuerySet:
        """Return the links with ``text`` in Kapso's id, whose beginning is the reference, or in
        their customer's name, external id, e-mail address or phone number."""
        words = text.strip()
        # The keys are read at once: an ``OR`` with a subquery misleads PostgreSQL's planner.
        customers = Customer.objects.using(self.db).with_number(text).values_list("pk", flat=True)
        # Never the URL: a search could be used to guess it.
        return self.filter(
            Q(kapso_id__icontains=words)
            | Q(customer__name__icontains=words)
            | Q(customer__external_customer_id__icontains=words)
            | Q(customer__email__icontains=words)
            | Q(customer__in=list(customers))
        )

    def open(self) -> SetupLinkQuerySet:
        """Return the links that may have led to a number, but are not completed."""
        return self.filter(status__in=SetupLink.OPEN_STATUSES).exclude(
            setup_status=SetupLink.SetupStatus.COMPLETED
        )

    def unconfirmed(self) -> SetupLinkQuerySet:
        """Return the links whose redirect reported a number that the API has not confirmed."""
        return self.filter(unconfirmed_since__isnull=False)

    def with_reference(self, text: str) -> SetupLinkQuerySet:
        """Return the links whose reference is ``text``, in upper or lower case."""
        reference = text.strip()
        if len(reference) < REFERENCE_LENGTH:
            return self.none()
        return self.filter(
            Q(kapso_id__startswith=reference) | Q(kapso_id__startswith=reference.lower())
        )


class SetupLink(Leased):
    """An invitation: the URL of Kapso's hosted page, where a customer connects a number.

    Its lease is held by the request that renews it (``onboarding.renewal``). ``leased_at`` stays
    set while it is not known whether that request created a link.
    """

    class Status(models.TextChoices):
        ACTIVE = "active", _("Active")
        USED = "used", _("Used")
        EXPIRED = "expired", _("Expired")
        REVOKED = "revoked", _("Revoked")

    OPEN_STATUSES = (Status.ACTIVE, Status.USED)

    class SetupStatus(models.TextChoices):
        PENDING = "pending", _("Pending")
        PROCESSING = "processing", _("Processing")
        COMPLETED = "completed", _("Completed")
        FAILED = "failed", _("Failed")

    customer = models.ForeignKey(
        Customer,
        on_delete=models.CASCADE,
        db_index=False,  # another index begins with it
        related_name="setup_links",
        verbose_name=_("customer"),
    )
    kapso_id = models.CharField(_("Kapso id"), max_length=64, unique=True)
    url = models.URLField(
        _("URL"),
        max_length=MAX_URL_LENGTH,
        help_text=_("Anyone who has this URL can connect a number for the customer."),
    )
    status = models.CharField(
        _("status"), max_length=16, choices=Status.choices, default=Status.ACTIVE
    )
    setup_status = models.CharField(
        _("setup status"), max_length=16, choices=SetupStatus.choices, default=SetupStatus.PENDING
    )
    options = models.JSONField(
        _("options"), default=dict, blank=True, help_text=_("The options sent to Kapso.")
    )
    next_url = models.CharField(
        _("next page"),
        max_length=MAX_URL_LENGTH,
        blank=True,
        help_text=_("The page of this site that the success page links to."),
    )
    opened_at = models.DateTimeField(
        _("opened"), null=True, blank=True, help_text=_("When the customer first opened it.")
    )
    last_opened_at = models.DateTimeField(
        null=True,
        editable=False,
        help_text="When the button of the invitation last led to it.",
    )
    expires_at = models.DateTimeField(_("expires"), null=True, blank=True)
    last_error_code = models.CharField(_("last error code"), max_length=64, blank=True)
    unconfirmed_phone_number_id = models.CharField(
        _("unconfirmed phone number id"),
        max_length=64,
        blank=True,
        help_text=_("The number from the redirect, which Kapso's API has not confirmed yet."),
    )
    unconfirmed_since = models.DateTimeField(_("unconfirmed since"), null=True, blank=True)
    # Redirects are unsigned. Only browsers that opened the customer's connect URL have the cookie.
    unconfirmed_by_visitor = models.BooleanField(
        default=False,
        editable=False,
        help_text="Whether a browser with the visit cookie reported the unconfirmed number.",
    )
    failed_by_visitor = models.BooleanField(
        default=False,
        editable=False,
        help_text="Whether a browser with the visit cookie reported the last error code.",
    )
    next_question_at = InstantField(
        null=True,
        editable=False,
        help_text="No view of the success page asks the API about this link before.",
    )
    reminded_at = models.DateTimeField(
        _("reminded"), null=True, blank=True, help_text=_("When a reminder was last e-mailed.")
    )
    failure_emailed_at = models.DateTimeField(
        null=True,
        editable=False,
        help_text="When the e-mail about the failed attempt was sent.",
    )
    checked_at = models.DateTimeField(
        _("checked"), null=True, blank=True, help_text=_("When the API was last asked about it.")
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
    """Kapso's secret for its browser SDK. Only on the object that ``create_setup_link`` returns,
    never in the database."""

    class Meta:
        base_manager_name = "objects"
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
            # To mark links as expired.
            models.Index(fields=["status", "expires_at"], name="kapso_connect_link_expires"),
            # The overview counts the customers of links created in a period.
            models.Index(
                fields=["created_at", "customer", "opened_at", "setup_status"],
                name="kapso_connect_link_created",
            ),
            # The overview compares when customers connected with when their links were created.
            models.Index(fields=["id", "created_at"], name="kapso_connect_link_age"),
            # Sync checks the active links, starting with the one checked longest ago.
            models.Index(fields=["status", "checked_at"], name="kapso_connect_link_checked"),
            # Sync confirms the redirects that the API could not confirm.
            models.Index(fields=["unconfirmed_since"], name="kapso_connect_link_unconfirmed"),
        ]

    def __str__(self) -> str:
        # The URL stays out: it is a secret.
        return _("Setup link for %(customer)s") % {"customer": self.customer}

    @property
    def is_usable(self) -> bool:
        """True if the customer can still use the link: active and not past ``expires_at``."""
        return self.status == self.Status.ACTIVE and (
            self.expires_at is None or self.expires_at > timezone.now()
        )

    @property
    def current_status(self) -> SetupLink.Status:
        """The status, which is expired from ``expires_at`` on, marked as such or not yet."""
        if self.status == self.Status.ACTIVE and not self.is_usable:
            return self.Status.EXPIRED
        return self.Status(self.status)

    @property
    def is_open(self) -> bool:
        """True if the link may have led to a number, but is not completed."""
        is_completed = self.setup_status == self.SetupStatus.COMPLETED
        return self.status in self.OPEN_STATUSES and not is_completed

    @property
    def is_latest(self) -> bool:
        """True for the link on which the customer's status depends."""
        return self.pk is not None and self.customer.latest_setup_link_id == self.pk

    @property
    def is_revocable(self) -> bool:
        """True if the link, or a newer one that replaces it at the same connect URL, can still
        connect a number."""
        return (
            self.status != self.Status.REVOKED and self.setup_status != self.SetupStatus.COMPLETED
        )

    @property
    def reconnect_number(self) -> str:
        """The number that the link is to connect again; "" if it is not for a certain one."""
        return str(self.options.get("reconnect_phone_number") or "")

    @property
    def reference(self) -> str:
        """A short code that customers give to staff. The admin's search finds the link, and its
        customer, by it."""
        return self.kapso_id[:REFERENCE_LENGTH]


APPROVED_NAMES = ["", "NONE", "APPROVED", "AVAILABLE_WITHOUT_REVIEW"]
"""Values of Meta's ``name_status`` that need no attention. The others are DECLINED, EXPIRED and
PENDING_REVIEW."""

DISCONNECTED_BY_STAFF = "staff"
"""The reason of a disconnection that a member of staff asked for."""

OFFBOARDED = "offboarded"
"""The reason of a disconnection that was Meta's: a change of the customer's phone, for example."""

USUAL_PAUSE = timedelta(hours=1)
"""How long staff wait for Meta to connect a number again by itself. Usually it takes minutes."""

HEALTHY = ["", Health.HEALTHY]
"""Results of health checks that need no attention; "" for a number that was not checked."""

UNFUNDED = [Funding.NOT_FUNDED, Funding.REVOKED]
"""Values of ``funding_status`` that need attention."""

CONNECTED_NEEDING_ATTENTION = {
    Attention.TEST_NUMBER: Q(phone_digits__startswith=TEST_NUMBER_DIGITS),
    Attention.RESTRICTED: ~Q(account_status=AccountStatus.ACTIVE),
    Attention.NAME: ~Q(name_status__in=APPROVED_NAMES),
    Attention.HEALTH: ~Q(health_status__in=HEALTHY),
    Attention.FUNDING: Q(funding_status__in=UNFUNDED),
}
"""Which of the numbers that are connected need attention, by the reason. ``Connection.attention``
has the same rule."""


class ConnectionQuerySet(PrimaryQuerySet["Connection"]):
    def partner_managed(self) -> ConnectionQuerySet:
        """Return the numbers for which Kapso shall pay Meta: see ``is_partner_managed``."""
        return self.filter(setup_link__options__meta_billing_mode=PARTNER_MANAGED)

    def with_number(self, text: str) -> ConnectionQuerySet:
        """Return the numbers that contain ``text``, as people write phone numbers."""
        found = [Q(phone_digits__contains=digits) for digits in searched_digits(text)]
        return self.filter(reduce(or_, found)) if found else self.none()

    def search(self, text: str) -> ConnectionQuerySet:
        """Return the numbers with ``text`` in the number, as people write phone numbers, the
        verified name, Meta's ids, or their customer's name, external id or e-mail address, and
        those of customers with a setup link whose reference is ``text``."""
        words = text.strip()
        customers = (
            Customer.objects.using(self.db).with_reference(text).values_list("pk", flat=True)
        )
        found = self.filter(
            Q(display_phone_number__icontains=words)
            | Q(phone_number_id__icontains=words)
            | Q(business_account_id__icontains=words)
            | Q(verified_name__icontains=words)
            | Q(customer__name__icontains=words)
            | Q(customer__external_customer_id__icontains=words)
            | Q(customer__email__icontains=words)
            | Q(customer__in=list(customers))
        )
        return found | self.with_number(text)

    def connected(self) -> ConnectionQuerySet:
        """Return the numbers that are connected now."""
        return self.filter(status=Connection.Status.CONNECTED)

    def usable(self) -> ConnectionQuerySet:
        """Return the connected numbers that are the customers' own, and whose accounts Meta has not
        restricted or disabled."""
        needs = CONNECTED_NEEDING_ATTENTION
        unusable = needs[Attention.TEST_NUMBER] | needs[Attention.RESTRICTED]
        return self.connected().exclude(unusable)

    def ended(self) -> ConnectionQuerySet:
        """Return the numbers that were connected once, and are not now."""
        # A row without ``connected_at`` only records that the disconnection was reported first.
        return self.filter(
            status=Connection.Status.DISCONNECTED,
            connected_at__isnull=False,
            disconnected_at__isnull=False,
        )

    def paused(self) -> ConnectionQuerySet:
        """Return the numbers that Meta took off the Cloud API, and has not put back."""
        return self.filter(status=Connection.Status.DISCONNECTED, disconnect_reason=OFFBOARDED)

    def needing_attention(self, why: str | None = None) -> ConnectionQuerySet:
        """Return the numbers that need attention because of ``why``, a value of ``Attention``, or
        for any reason if it is None. ``Connection.attention`` has the reasons of a connected one.
        """
        if why is None:
            return self.in_trouble() | self.lost()
        if condition := CONNECTED_NEEDING_ATTENTION.get(Attention(why)):
            return self.connected().filter(condition)
        return self.lost()

    def in_trouble(self) -> ConnectionQuerySet:
        """Return the connected numbers that need attention, for any reason."""
        return self.connected().filter(reduce(or_, CONNECTED_NEEDING_ATTENTION.values()))

    def lost(self) -> ConnectionQuerySet:
        """Return the numbers that were disconnected, not by staff, and whose customers have neither
        connected another number nor been invited since."""
        # The customer is connected, but with a number that it had before it lost this one.
        lost_one_of_several = Q(customer__status=OnboardingStatus.CONNECTED) & ~Exists(
            Connection.objects.connected().filter(
                customer=OuterRef("customer"), connected_at__gte=OuterRef("disconnected_at")
            )
        )
        invited_since = Q(customer__latest_setup_link__created_at__gt=F("disconnected_at"))
        still_paused = Q(
            disconnect_reason=OFFBOARDED, disconnected_at__gt=timezone.now() - USUAL_PAUSE
        )
        lost = {OnboardingStatus.DISCONNECTED, OnboardingStatus.PAUSED}
        return (
            self.ended()
            .exclude(disconnect_reason=DISCONNECTED_BY_STAFF)
            .exclude(still_paused)
            .filter(Q(customer__status__in=lost) | (lost_one_of_several & ~invited_since))
        )


class Connection(models.Model):
    """A WhatsApp number of a customer that is connected, or once was."""

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
    phone_digits = models.CharField(
        max_length=64,
        blank=True,
        editable=False,
        help_text="The digits of the phone number, for searches.",
    )
    verified_name = NameField(_("verified name"), max_length=255, blank=True)
    connection_type = models.CharField(
        _("connection type"), max_length=16, choices=ConnectionType.choices, blank=True
    )
    status = models.CharField(
        _("status"), max_length=16, choices=Status.choices, default=Status.DISCONNECTED
    )
    connected_at = models.DateTimeField(_("connected"), null=True, blank=True)
    reported_connected_at = models.DateTimeField(
        null=True,
        blank=True,
        editable=False,
        help_text="The latest time at which a signed webhook says that the number was connected.",
    )
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
    removal_requested_at = models.DateTimeField(
        null=True,
        blank=True,
        editable=False,
        help_text="When staff had Kapso remove the number, until it is recorded as disconnected.",
    )
    removal_requested_by = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        on_delete=models.SET_NULL,
        null=True,
        blank=True,
        editable=False,
        related_name="+",
        help_text="On whose behalf Kapso was asked to remove it. Empty if that is not known.",
    )
    number_webhook_id = models.CharField(
        max_length=64,
        blank=True,
        editable=False,
        help_text="Kapso's id of the webhook that NUMBER_WEBHOOK registered for the number.",
    )
    quality_rating = models.CharField(
        _("quality rating"), max_length=32, blank=True, help_text=_("Meta's: GREEN, YELLOW, RED.")
    )
    name_status = models.CharField(
        _("display name status"),
        max_length=64,
        blank=True,
        help_text=_("Whether Meta has approved the name that people see."),
    )
    health_status = models.CharField(_("health"), max_length=16, choices=Health.choices, blank=True)
    health_error = models.TextField(_("health error"), blank=True)
    health_problems = models.JSONField(
        _("health problems"),
        default=list,
        blank=True,
        help_text=_("What the last health check found wrong, in Kapso's and Meta's words."),
    )
    health_checked_at = models.DateTimeField(_("health checked"), null=True, blank=True)
    health_retry_after = models.DateTimeField(
        _("next health check"),
        null=True,
        blank=True,
        help_text=_("Kapso repeats the result of the last health check until then."),
    )
    funding_status = models.CharField(
        _("Kapso pays Meta"), max_length=16, choices=Funding.choices, blank=True
    )
    funding_checked_at = models.DateTimeField(
        _("payment checked"),
        null=True,
        blank=True,
        help_text=_("When Kapso was last asked whether it pays Meta."),
    )
    account_status = models.CharField(
        _("account status"),
        max_length=16,
        choices=AccountStatus.choices,
        default=AccountStatus.ACTIVE,
    )
    restrictions = models.JSONField(
        _("restrictions"),
        default=list,
        blank=True,
        help_text=_("Meta's restrictions, as Kapso reports them."),
    )
    account_updated_at = models.DateTimeField(_("account updated"), null=True, blank=True)
    created_at = models.DateTimeField(_("created"), auto_now_add=True)
    updated_at = models.DateTimeField(_("updated"), auto_now=True)

    objects = ConnectionQuerySet.as_manager()

    class Meta:
        base_manager_name = "objects"
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

    def save(self, *args: Any, **kwargs: Any) -> None:
        self.phone_digits = only_digits(self.display_phone_number)
        fields = kwargs.get("update_fields")
        if fields is not None and "display_phone_number" in fields:
            kwargs["update_fields"] = {*fields, "phone_digits"}
        super().save(*args, **kwargs)

    @property
    def is_connected(self) -> bool:
        """True if the number is connected now; False if it once was."""
        return self.status == self.Status.CONNECTED

    @property
    def is_paused(self) -> bool:
        """True if Meta took the number off, which it often puts right within minutes, and not the
        customer: after a change of the phone, for example."""
        return not self.is_connected and self.disconnect_reason == OFFBOARDED

    @property
    def is_paused_for_long(self) -> bool:
        """True if ``USUAL_PAUSE`` is over: the customer has to connect the number again."""
        since = self.disconnected_at
        return self.is_paused and (since is None or time_since(since) >= USUAL_PAUSE)

    @property
    def is_partner_managed(self) -> bool:
        """True if Kapso shall pay Meta: the number was connected with such a link."""
        return self.setup_link is not None and (
            self.setup_link.options.get("meta_billing_mode") == PARTNER_MANAGED
        )

    @property
    def is_test_number(self) -> bool:
        """True for one of Meta's display-name-only test numbers."""
        return is_test_number(self.display_phone_number)

    @property
    def is_restricted(self) -> bool:
        """True if Meta has restricted or disabled the account of the number."""
        return self.account_status != AccountStatus.ACTIVE

    @property
    def is_usable(self) -> bool:
        """True for a number of the customer's own whose account Meta has not restricted or
        disabled."""
        return not (self.is_test_number or self.is_restricted)

    @property
    def is_name_approved(self) -> bool:
        """False if Meta has not approved the verified name, or not yet."""
        return self.name_status in APPROVED_NAMES

    @property
    def attention(self) -> list[Attention]:
        """Why the number, which is connected, needs attention; empty if it does not, and for one
        that is not connected. ``ConnectionQuerySet.needing_attention`` has the same rule."""
        needs = {
            Attention.TEST_NUMBER: self.is_test_number,
            Attention.RESTRICTED: self.is_restricted,
            Attention.NAME: not self.is_name_approved,
            Attention.HEALTH: self.health_status not in HEALTHY,
            Attention.FUNDING: self.funding_status in UNFUNDED,
        }
        return [why for why, is_needed in needs.items() if is_needed and self.is_connected]


class WebhookEventQuerySet(DismissableQuerySet["WebhookEvent"]):
    def waiting(self) -> WebhookEventQuerySet:
        """Return the deliveries that will be retried automatically."""
        return self.filter(status=WebhookEvent.Status.PENDING)

    def failed(self) -> WebhookEventQuerySet:
        """Return the deliveries that failed, will not be retried automatically, and were not
        dismissed."""
        return self.filter(status=WebhookEvent.Status.FAILED, dismissed_at=None)


class WebhookEvent(Dismissable):
    """The inbox: every signed delivery from Kapso, stored as it arrived, before it is processed."""

    class Status(models.TextChoices):
        PENDING = "pending", _("Pending")
        PROCESSED = "processed", _("Processed")
        IGNORED = "ignored", _("Ignored")
        FAILED = "failed", _("Failed")

    idempotency_key = models.CharField(_("idempotency key"), max_length=100, db_index=True)
    delivery_digest = models.CharField(
        max_length=64,
        unique=True,
        null=True,
        editable=False,
        help_text="Digest of what makes it the same delivery; see webhooks.payloads.Message.",
    )
    body_digest = models.CharField(
        max_length=64,
        blank=True,
        db_index=True,
        editable=False,
        help_text="SHA-256 of the signed body, of which it is all or one event of a batch.",
    )
    is_name_signed = models.BooleanField(
        default=False,
        editable=False,
        help_text="True if the event's name is in the signed body, not only in a header.",
    )
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
        base_manager_name = "objects"
        verbose_name = _("webhook event")
        verbose_name_plural = _("webhook events")
        ordering = ["-pk"]
        indexes = [
            models.Index(fields=["status", "next_attempt_at"], name="kapso_connect_inbox_due"),
        ]

    def __str__(self) -> str:
        return f"{self.event} {self.idempotency_key}"


class TimelineEventQuerySet(DismissableQuerySet["TimelineEvent"]):
    def undelivered(self) -> TimelineEventQuerySet:
        """Return the events whose signal has not been delivered to all receivers."""
        return self.filter(delivered_at=None)

    def waiting(self) -> TimelineEventQuerySet:
        """Return the undelivered events whose signal will be sent automatically."""
        return self.undelivered().filter(next_attempt_at__isnull=False)

    def failed(self) -> TimelineEventQuerySet:
        """Return the undelivered events whose signal will not be sent automatically, and that were
        not dismissed."""
        return self.undelivered().filter(next_attempt_at=None, dismissed_at=None)


class TimelineEvent(Dismissable):
    """The timeline: one row for each change of state. It is also the outbox of signals.

    ``delivered_at`` is when all receivers of the signal had returned without raising.
    ``receivers`` names the receivers that have done so; a retry calls the remaining ones.
    """

    class Kind(models.TextChoices):
        SETUP_LINK_CREATED = "setup_link_created", _("Setup link created")
        SETUP_LINK_REVOKED = "setup_link_revoked", _("Setup link revoked")
        SETUP_LINK_EXPIRED = "setup_link_expired", _("Setup link expired")
        SETUP_LINK_EXTENDED = "setup_link_extended", _("Setup link extended")
        SETUP_LINK_SENT = "setup_link_sent", _("Personal link sent")
        SETUP_LINK_OPENED = "setup_link_opened", _("Setup link opened")
        SETUP_FAILED = "setup_failed", _("Setup failed")
        EMAIL_SENT = "email_sent", _("E-mail sent")
        CONNECTED = "connected", _("Connected")
        DISCONNECTED = "disconnected", _("Disconnected")
        RECONNECTED = "reconnected", _("Reconnected")
        ACCOUNT_UPDATED = "account_updated", _("Account updated")
        HEALTH_CHECKED = "health_checked", _("Health checked")
        DETAILS_RECEIVED = "details_received", _("Details received")
        NUMBER_WEBHOOK_CREATED = "number_webhook_created", _("Message webhook registered")
        NUMBER_WEBHOOK_UPDATED = "number_webhook_updated", _("Message webhook repaired")
        NUMBER_WEBHOOK_DELETED = "number_webhook_deleted", _("Message webhook removed")
        OWNER_ASSIGNED = "owner_assigned", _("Owner assigned")
        WEBHOOK_RECEIVED = "webhook_received", _("Webhook received")

    kind = models.CharField(_("kind"), max_length=32, choices=Kind.choices)
    customer = models.ForeignKey(
        Customer,
        on_delete=models.CASCADE,
        null=True,
        blank=True,
        db_index=False,  # another index begins with it
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
        help_text=_("The member of staff who did it. Empty if it was not done by staff."),
    )
    data = models.JSONField(_("data"), default=dict, blank=True, encoder=DjangoJSONEncoder)
    occurred_at = models.DateTimeField(_("occurred"), default=timezone.now)
    delivered_at = models.DateTimeField(_("signal delivered"), null=True, blank=True)
    receivers = models.JSONField(_("successful receivers"), default=list, blank=True)
    needs_site_receiver = models.BooleanField(
        default=False,
        editable=False,
        help_text="Whether a receiver of the site's was connected where the event was recorded.",
    )

    objects = TimelineEventQuerySet.as_manager()

    class Meta:
        base_manager_name = "objects"
        verbose_name = _("timeline event")
        verbose_name_plural = _("timeline events")
        ordering = ["-pk"]
        indexes = [
            models.Index(fields=["customer", "occurred_at"], name="kapso_connect_timeline"),
            # The overview counts links by kind of event over a period.
            models.Index(fields=["kind", "occurred_at", "setup_link"], name="kapso_connect_kind"),
            models.Index(
                fields=["delivered_at", "next_attempt_at"], name="kapso_connect_outbox_due"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.get_kind_display()}: {self.connection or self.customer or ''}"


class InvitationBatchQuerySet(PrimaryQuerySet["InvitationBatch"]):
    def started(self) -> InvitationBatchQuerySet:
        """Return the batches whose options were confirmed; the others are drafts."""
        return self.filter(started_at__isnull=False)

    def in_states(self, *states: str) -> InvitationBatchQuerySet:
        """Return the batches in one of these states (``State``), as ``invitations.find_state`` says
        it of one batch."""
        return self.filter(reduce(or_, map(_is_in_state, states)))


def _is_in_state(state: str) -> Q:
    now = utc_now()
    pending = Invitation.objects.filter(batch=models.OuterRef("pk")).order_by().pending()
    is_left = models.Exists(pending)
    is_in_hand = models.Exists(
        pending.filter(Q(leased_until__gt=now) | Q(next_attempt_at__lte=now))
    )
    match state:
        case InvitationBatch.State.RUNNING:
            return Q(is_in_hand, stopped="")
        case InvitationBatch.State.WAITING:
            return Q(is_left, ~is_in_hand, stopped="")
        case InvitationBatch.State.STOPPED:
            return Q(is_left) & ~Q(stopped="")
    return Q(~is_left)


class InvitationBatch(models.Model):
    """Setup links that a member of staff requested together, for one or more customers; or
    reminders of the links that they have."""

    class Purpose(models.TextChoices):
        INVITE = "invite", _("Invitations")
        REMIND = "remind", _("Reminders")

    class State(models.TextChoices):
        RUNNING = "running", _("Running")
        WAITING = "waiting", _("Waiting")
        STOPPED = "stopped", _("Stopped")
        FINISHED = "finished", _("Finished")

    purpose = models.CharField(
        _("purpose"), max_length=16, choices=Purpose.choices, default=Purpose.INVITE
    )
    options = models.JSONField(
        _("options"), default=dict, blank=True, help_text=_("The options sent to Kapso.")
    )
    next_url = models.CharField(_("next page"), max_length=MAX_URL_LENGTH, blank=True)
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
        _("reason for stopping"),
        blank=True,
        help_text=_("The error that would affect all other customers, too. Empty unless stopped."),
    )

    objects = InvitationBatchQuerySet.as_manager()

    class Meta:
        base_manager_name = "objects"
        verbose_name = _("batch of invitations")
        verbose_name_plural = _("batches of invitations")
        ordering = ["-pk"]
        default_permissions = ()

    def __str__(self) -> str:
        return str(self.pk)

    @property
    def is_reminder(self) -> bool:
        """True if it reminds customers, and creates no links."""
        return self.purpose == self.Purpose.REMIND


class InvitationQuerySet(RetryableQuerySet["Invitation"]):
    def pending(self) -> InvitationQuerySet:
        """Return the invitations that are not done and did not fail."""
        return self.filter(status=Invitation.Status.PENDING)

    def waiting(self) -> InvitationQuerySet:
        """Return the pending invitations that no process is working on."""
        return self.pending().filter(not_leased())

    def failed(self) -> InvitationQuerySet:
        """Return the invitations that failed and will not be retried automatically."""
        return self.filter(status=Invitation.Status.FAILED)

    def email_failed(self) -> InvitationQuerySet:
        """Return the invitations whose link was created and could not be e-mailed."""
        return self.filter(status=Invitation.Status.DONE, email_status=Invitation.Email.FAILED)


class Invitation(Retryable):
    """The invitation of one customer of a batch, and its outcome."""

    class Status(models.TextChoices):
        PENDING = "pending", _("To do")
        DONE = "done", _("Done")
        FAILED = "failed", _("Failed")

    class Email(models.TextChoices):
        NOT_SENT = "", _("Not sent")
        SENDING = "sending", _("Being sent")
        SENT = "sent", _("Sent")
        WAITING = "waiting", _("To be sent later")
        FAILED = "failed", _("Failed")
        UNKNOWN = "unknown", _("Possibly sent")
        NO_ADDRESS = "no_address", _("No address")

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
    email_error = models.TextField(_("e-mail error"), blank=True)

    PERMANENTLY_FAILED: ClassVar[dict[str, Any]] = {
        **Retryable.PERMANENTLY_FAILED,
        "status": Status.FAILED,
    }

    objects = InvitationQuerySet.as_manager()

    class Meta:
        base_manager_name = "objects"
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
            # The next invitations of a batch, in the order of their keys.
            models.Index(fields=["batch", "status", "id"], name="kapso_connect_invite_batch"),
        ]

    def __str__(self) -> str:
        return str(self.customer)


class IdempotentRequestQuerySet(LeasedQuerySet["IdempotentRequest"]):
    pass


class IdempotentRequest(Leased):
    """A REST request with an ``Idempotency-Key`` that creates an object or sends an e-mail, and its
    response; or a request of a logged-in customer's that creates a setup link, while it does.

    Without ``response`` the request is in progress while it is leased. After that, the next request
    with the key continues it.
    """

    digest = models.CharField(
        max_length=64, unique=True, help_text="Digest of the key, its user and the endpoint."
    )
    fingerprint = models.CharField(max_length=64, help_text="Digest of the request's body.")
    created_at = models.DateTimeField(default=timezone.now, db_index=True)
    response = models.JSONField(
        null=True, encoder=DjangoJSONEncoder, help_text="The body, without URLs and tokens."
    )
    customer = models.ForeignKey(Customer, on_delete=models.CASCADE, null=True, related_name="+")
    setup_link = models.ForeignKey(SetupLink, on_delete=models.CASCADE, null=True, related_name="+")

    objects = IdempotentRequestQuerySet.as_manager()

    class Meta:
        base_manager_name = "objects"
        ordering = ["-pk"]
        default_permissions = ()

    def __str__(self) -> str:
        return self.digest[:8]
