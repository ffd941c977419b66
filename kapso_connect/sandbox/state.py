"""What a Kapso project holds, in memory, protected by one lock."""

from __future__ import annotations

import secrets
import threading
from argparse import Namespace
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any, ClassVar, TypeVar
from uuid import uuid4

import phonenumbers

from .faults import Faults
from .fields import ApiError

LINK_DAYS = 30
ALL_CONNECTION_TYPES = ("coexistence", "dedicated")
# With 555-01xx they give numbers that are reserved for fiction.
AREA_CODES = (201, 202, 203, 205, 206, 207, 208, 209, 210, 212, 213, 214, 215, 216, 217, 218, 219)
Found = TypeVar("Found")


def now() -> datetime:
    return datetime.now(timezone.utc)


def new_id() -> str:
    return str(uuid4())


def new_meta_id() -> str:
    """Return an id like Meta's: a string of 15 digits."""
    return str(10**14 + secrets.randbelow(9 * 10**14))


@dataclass(kw_only=True)
class Record:
    """An object of the API. ``hidden`` names the fields that Kapso does not show."""

    hidden: ClassVar[tuple[str, ...]] = ()

    created_at: datetime = field(default_factory=now)
    updated_at: datetime = field(default_factory=now)

    def change(self, values: Mapping[str, Any]) -> None:
        self.updated_at = now()
        for name, value in values.items():
            setattr(self, name, value)

    def as_json(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in self.hidden}


@dataclass
class Customer(Record):
    hidden = ("business_account_id",)

    name: str
    external_customer_id: str | None = None
    id: str = field(default_factory=new_id)
    business_account_id: str = field(default_factory=new_meta_id)


@dataclass
class SetupLink(Record):
    hidden = ("customer_id", "token", "updated_at")

    customer_id: str
    token: str
    url: str
    id: str = field(default_factory=new_id)
    status: str = "active"  # as stored; see `current_status`
    expires_at: datetime | None = field(default_factory=lambda: now() + timedelta(days=LINK_DAYS))
    success_redirect_url: str | None = None
    failure_redirect_url: str | None = None
    allowed_origins: list[str] = field(default_factory=list)
    allowed_connection_types: list[str] = field(default_factory=lambda: list(ALL_CONNECTION_TYPES))
    meta_billing_mode: str = "customer_managed"
    theme_config: dict[str, str] | None = None
    provision_phone_number: bool = False
    phone_number_area_code: str | None = None
    phone_number_country_isos: list[str] = field(default_factory=lambda: ["US"])
    reconnect_phone_number: str | None = None
    language: str | None = None
    whatsapp_setup_status: str = "pending"
    whatsapp_setup_error: str | None = None
    provisioned_phone_number: dict[str, Any] | None = None

    @property
    def current_status(self) -> str:
        expired = self.expires_at is not None and self.expires_at <= now()
        return "expired" if self.status == "active" and expired else self.status

    def as_json(self) -> dict[str, Any]:
        values = {**super().as_json(), "status": self.current_status}
        if self.provisioned_phone_number is None:
            del values["provisioned_phone_number"]
        return values


@dataclass
class PhoneNumber(Record):
    hidden = (
        "health",
        "health_until",
        "access_error",
        "access_errors",
        "payment_problem",
        "kind",
    )

    phone_number_id: str
    display_phone_number: str
    customer_id: str | None = None
    business_account_id: str | None = None
    name: str = ""
    verified_name: str | None = None
    is_coexistence: bool = False
    status: str = "CONNECTED"
    quality_rating: str | None = "GREEN"
    name_status: str | None = "APPROVED"
    code_verification_status: str | None = "COMPLETED"
    internal_id: str = field(default_factory=new_id)
    kind: str = "production"
    inbound_processing_enabled: bool = True
    calls_enabled: bool = False
    health: dict[str, Any] | None = None  # the answer to the last health check
    health_until: datetime = field(default_factory=now)  # when it is checked again
    access_error: str = ""  # why Kapso cannot reach the number at Meta
    access_errors: int = 0  # how many checks in succession failed for that
    payment_problem: bool = False  # of its account at Meta

    @property
    def connection_type(self) -> str:
        return "coexistence" if self.is_coexistence else "dedicated"

    @property
    def is_production(self) -> bool:
        return self.kind == "production"

    def change(self, values: Mapping[str, Any]) -> None:
        super().change(values)
        self.health = None
        self.access_errors = 0

    @property
    def normalized(self) -> str:
        return "".join(c for c in self.display_phone_number if c.isdigit())

    def as_json(self) -> dict[str, Any]:
        return {
            **super().as_json(),
            "id": self.phone_number_id,
            "display_name": self.verified_name,
            "display_phone_number_normalized": self.normalized,
            "webhook_verified_at": self.created_at,
            "throughput_tier": "TIER_10K",
            "whatsapp_business_manager_messaging_limit": "10000",
            "is_official_business_account": False,
            "is_pin_enabled": not self.is_coexistence,
        }


@dataclass
class Conversation(Record):
    """What one person and one number write to each other. ``person`` is the person's phone number
    in digits, or their business-scoped user id."""

    phone_number_id: str
    person: str
    id: str = field(default_factory=new_id)
    last_inbound_at: datetime | None = None
    last_outbound_at: datetime | None = None
    messages_count: int = 0
    last_message: dict[str, Any] = field(default_factory=dict)


@dataclass
class Webhook(Record):
    hidden = ("outcomes",)

    url: str
    project_id: str
    id: str = field(default_factory=new_id)
    kind: str = "kapso"
    secret_key: str | None = None
    active: bool = True
    events: list[str] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    payload_version: str | None = "v2"
    phone_number_id: str | None = None
    buffer_enabled: bool = False
    buffer_window_seconds: int | None = 5
    max_buffer_size: int | None = 50
    buffer_events: list[str] = field(default_factory=list)
    inactivity_minutes: int | None = 60
    # (time, whether it was answered 200) of the attempts that decide about a pause.
    outcomes: deque[tuple[datetime, bool]] = field(default_factory=deque)


@dataclass
class Delivery:
    webhook_id: str
    event: str
    body: bytes
    idempotency_key: str
    batch_size: int = 0
    id: str = field(default_factory=new_id)
    state: str = "pending"  # pending, held, delivered, failed, dropped
    attempts: list[dict[str, Any]] = field(default_factory=list)  # at, seconds, status, error
    created_at: datetime = field(default_factory=now)
    next_attempt_at: datetime | None = None
    finished_at: datetime | None = None
    forced: bool = False  # sent even to a paused webhook

    def as_json(self) -> dict[str, Any]:
        webhook = store.webhooks.get(self.webhook_id)
        url = webhook.url if webhook else None
        return {**asdict(self), "body": self.body.decode(), "url": url}


class Store:
    """Everything that the sandbox holds. Acquire ``lock`` before using it.

    ``lock`` is notified when deliveries and faults change: see ``wait_for``.
    """

    def __init__(self) -> None:
        self.options = Namespace()  # how the process was started: see __main__
        self.lock = threading.Condition()
        self.changed = threading.Event()  # since it was last saved: see state_file
        self.project_id = new_id()
        self.reset()

    def reset(self) -> None:
        self.customers: dict[str, Customer] = {}
        self.links: dict[str, SetupLink] = {}
        self._numbers: dict[str, PhoneNumber] = {}
        self._gone_at: dict[str, datetime] = {}
        # Meta keeps the id of a phone number that is removed and added again.
        self.ids_of_digits: dict[str, str] = {}
        self.generated_numbers = 0
        self.funding: dict[str, str] = {}  # the status by business_account_id; see accounts
        self.conversations: dict[str, Conversation] = {}
        self.webhooks: dict[str, Webhook] = {}
        self.default_webhook_id = ""
        self.deliveries: dict[str, Delivery] = {}
        self.deliveries_done = 0  # delivered, failed or dropped
        self.requests: deque[dict[str, Any]] = deque(maxlen=20_000)
        self.rate_limit: int = getattr(self.options, "rate_limit", 0)
        self.requests_by_key: dict[str, tuple[datetime, int]] = {}  # since when, how many
        self.health_calls: list[datetime] = []
        self.account_events: dict[str, str] = {}  # what Meta last decided, by business account
        self.faults = Faults()

    def wait_for(self, ready: Callable[[], bool], timeout: float | None) -> None:
        """Wait until ``ready``, or for ``timeout`` seconds. Others get the lock in the meantime."""
        with self.lock:
            self.lock.wait_for(ready, timeout)

    # Customers

    def customer_by_external_id(self, external_customer_id: str) -> Customer | None:
        rows = self.customers.values()
        return next((c for c in rows if c.external_customer_id == external_customer_id), None)

    def add_customer(self, name: str, external_customer_id: str | None = None) -> Customer:
        customer = Customer(name, external_customer_id)
        self.customers[customer.id] = customer
        return customer

    def remove_customer(self, customer: Customer) -> None:
        for link in self.links_of(customer.id):
            del self.links[link.id]
        del self.customers[customer.id]

    # Setup links

    def links_of(self, customer_id: str) -> list[SetupLink]:
        return [link for link in self.links.values() if link.customer_id == customer_id]

    def add_link(self, customer: Customer, values: Mapping[str, Any]) -> SetupLink:
        token = secrets.token_urlsafe(32)
        url = f"{self.options.base_url}/s/{token}"
        link = SetupLink(customer.id, token, url, **values)
        self.links[link.id] = link
        self.revoke_others(link)
        return link

    def revoke_others(self, link: SetupLink) -> None:
        """Revoke the customer's other active links, as Kapso does."""
        for other in self.links_of(link.customer_id):
            if other is not link and other.current_status == "active":
                other.status = "revoked"

    # Phone numbers

    def apply_account_event(self, event: str, business_account_id: str) -> None:
        """Keep what Meta has decided about an account, so that health checks tell it."""
        self.account_events[business_account_id] = event
        for number in self.numbers_of_account(business_account_id):
            number.health = None

    def numbers_of_account(self, business_account_id: str) -> list[PhoneNumber]:
        rows = self.numbers().values()
        return [row for row in rows if row.business_account_id == business_account_id]

    def numbers(self) -> dict[str, PhoneNumber]:
        """Return the numbers, after removing those whose teardown has ended."""
        for phone_number_id, gone_at in list(self._gone_at.items()):
            if gone_at <= now():
                self.forget_number(phone_number_id)
        return self._numbers

    def is_lagging(self, phone_number_id: str) -> bool:
        """Return whether the API does not know that number yet, by the fault ``lag``."""
        number = self._numbers.get(phone_number_id)
        if number is None or not self.faults.lag:
            return False
        return number.created_at + timedelta(seconds=self.faults.lag) > now()

    def number_by_digits(self, digits: str) -> PhoneNumber | None:
        return self.numbers().get(self.ids_of_digits.get(digits, ""))

    def add_number(
        self, *, phone_number: str | None = None, phone_number_id: str | None = None, **values: Any
    ) -> PhoneNumber:
        """Add a number, or replace it. ``phone_number`` is in E.164; None generates one."""
        display = self._generate_number() if phone_number is None else display_form(phone_number)
        number = PhoneNumber("", display, **values)
        known = self.ids_of_digits.get(number.normalized)
        number.phone_number_id = phone_number_id or known or new_meta_id()
        number.name = number.name or number.verified_name or display
        self.ids_of_digits[number.normalized] = number.phone_number_id
        self._gone_at.pop(number.phone_number_id, None)
        self._numbers.pop(number.phone_number_id, None)  # it is the newest one now
        self._numbers[number.phone_number_id] = number
        return number

    def _generate_number(self) -> str:
        line, area = divmod(self.generated_numbers, len(AREA_CODES))
        self.generated_numbers += 1
        return f"+1 {AREA_CODES[area]}-555-{100 + line % 9900:04d}"

    def restore_numbers(
        self, numbers: dict[str, PhoneNumber], ids_of_digits: dict[str, str], generated: int
    ) -> None:
        """Replace the numbers, and what has to be known to add further ones."""
        self._numbers, self._gone_at = numbers, {}
        self.ids_of_digits, self.generated_numbers = ids_of_digits, generated

    def is_torn_down(self, number: PhoneNumber) -> bool:
        return number.phone_number_id in self._gone_at

    def tear_down_number(self, number: PhoneNumber) -> bool:
        """Start to remove a number, and its webhooks with it. Return False when that has started
        already."""
        if self.is_torn_down(number):
            return False
        for webhook in list(self.webhooks.values()):
            if webhook.phone_number_id == number.phone_number_id:
                del self.webhooks[webhook.id]
        duration = timedelta(seconds=self.options.teardown_seconds)
        self._gone_at[number.phone_number_id] = now() + duration
        return True

    def change_number_id(self, number: PhoneNumber, phone_number_id: str) -> None:
        self.forget_number(number.phone_number_id)
        for webhook in self.webhooks.values():
            if webhook.phone_number_id == number.phone_number_id:
                webhook.phone_number_id = phone_number_id
        for conversation in self.conversations.values():
            if conversation.phone_number_id == number.phone_number_id:
                conversation.phone_number_id = phone_number_id
        number.phone_number_id = phone_number_id
        self.ids_of_digits[number.normalized] = phone_number_id
        self._numbers[phone_number_id] = number

    def forget_number(self, phone_number_id: str) -> None:
        self._numbers.pop(phone_number_id, None)
        self._gone_at.pop(phone_number_id, None)


def find(rows: Mapping[str, Found], key: str, what: str) -> Found:
    """Return the object with that id, or refuse with 404; ``what`` names it to the client."""
    if key not in rows:
        raise ApiError(404, f"{what} not found")
    return rows[key]


def find_customer(customer_id: str) -> Customer:
    """Return the customer with that id, or refuse with 404."""
    return find(store.customers, customer_id, "Customer")


def find_number(phone_number_id: str) -> PhoneNumber:
    """Return the number with that id, or refuse with 404."""
    return find(store.numbers(), phone_number_id, "Phone number")


def display_form(phone_number: str) -> str:
    """+14155550100 → +1 415-555-0100, as Meta writes it."""
    try:
        parsed = phonenumbers.parse(phone_number, None)
    except phonenumbers.NumberParseException:
        return phone_number
    return phonenumbers.format_number(parsed, phonenumbers.PhoneNumberFormat.INTERNATIONAL)


store = Store()
