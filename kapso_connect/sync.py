"""Recovery: what was left behind is done, and what no webhook told is found out from the API.

Safe to run at any time and on several machines at once: rows are taken by lease, every change goes
through ``onboarding``, and what another process does meanwhile is found done.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, fields
from datetime import datetime
from functools import partial
from typing import TypeVar

from django.db import models
from django.utils import timezone

from . import exceptions, onboarding, outbox
from .db import retry_on_conflict
from .exceptions import KapsoError, KapsoNotFound
from .kapso.client import KapsoClient
from .kapso.types import KapsoCustomer, KapsoPhoneNumber
from .log import log_event
from .models import (
    Connection,
    Customer,
    Invitation,
    SetupLink,
    Source,
    TimelineEvent,
    WebhookEvent,
)
from .onboarding import customers, invitations, numbers, redirects, setup_links
from .retries import due
from .webhooks import inbox

T = TypeVar("T")
M = TypeVar("M", bound=models.Model)
Progress = Callable[[str, int], None]

PAGE = 100
AT_ONCE = 10
"""New rows written in one transaction: few enough that nobody waits long for one of them."""

LINKS_A_RUN = 20
"""Links asked about in one run: Kapso lists them by customer only, so each costs a request."""

CUSTOMERS_ONE_BY_ONE = 10
"""Unknown customers asked about singly; beyond that listing all of them is cheaper."""

MASS_LOSS = 20
"""More numbers than this and more than half of all, or all of several, do not vanish in one run:
then the API key is another project's."""


@dataclass
class Report:
    """What one run did, or would do.

    ``events``, ``signals``, ``claims``
        How many stored webhooks were worked on, signals delivered, and claims settled.
    ``connected``, ``disconnected``, ``updated``
        How many numbers turned out to be connected or not, or have other data.
    ``links``, ``invitations``
        How many setup links had ended, and invitations were made.
    ``numbers``
        How many numbers Kapso listed.
    ``waiting``, ``failed``
        How many webhooks and signals wait for another attempt, or failed for good.
    ``errors``
        What could not be done, in words for the operator; it is tried again by the next run.
    """

    events: int = 0
    signals: int = 0
    claims: int = 0
    connected: int = 0
    disconnected: int = 0
    updated: int = 0
    links: int = 0
    invitations: int = 0
    numbers: int = 0
    waiting: int = 0
    failed: int = 0
    errors: list[str] = field(default_factory=list)

    def summary(self) -> str:
        counts = [
            f"{item.name} {getattr(self, item.name)}"
            for item in fields(self)
            if item.name != "errors"
        ]
        return ", ".join(counts)


class MassLoss(Exception):
    """So many numbers are gone at once that the API key is more likely to be wrong."""


def run(
    *,
    dry_run: bool = False,
    accept_mass_loss: bool = False,
    progress: Progress = lambda step, done: None,
    client: KapsoClient | None = None,
) -> Report:
    """Do all that is due, then compare with the API; return what was done.

    ``dry_run`` counts what would be done and changes nothing. ``accept_mass_loss`` believes an API
    that has lost most numbers. ``progress`` is called with the name of a step and a count.
    An API that is away ends up in ``errors``; what needs no API is done all the same.
    """
    report, began = Report(), time.monotonic()
    pending = WebhookEvent.objects.filter(due(), status=WebhookEvent.Status.PENDING)
    if dry_run:
        report.events, report.signals = pending.count(), _outbox().count()
    else:
        report.events = _each(pending, inbox.process, "events", progress)
        # Before the API is asked, so that an API that is away delays no signal …
        report.signals = _each(_outbox(), outbox.deliver, "signals", progress)
    own_client = client is None
    client = client or KapsoClient.from_settings(budget=BUDGET)
    try:
        _follow_numbers(report, client, dry_run, accept_mass_loss, progress)
        _settle_claims(report, dry_run, progress)
        _follow_links(report, client, dry_run, progress)
        _invite(report, dry_run, progress)
    except (KapsoError, MassLoss) as error:
        report.errors.append(str(error))
        log_event("sync.stopped", error=str(error))
    finally:
        if own_client:
            client.close()
    if not dry_run:
        # … and after it for what it led to.
        report.signals += _each(_outbox(), outbox.deliver, "signals", progress)
    report.waiting, report.failed = _left_over()
    if not dry_run:
        told = {**vars(report), "errors": len(report.errors)}
        log_event("sync.finished", seconds=time.monotonic() - began, **told)
    return report


def _outbox() -> models.QuerySet[TimelineEvent]:
    """The signals that are due now: what is recorded later is not among them."""
    return TimelineEvent.objects.filter(due(), delivered_at=None)


INVITING = 5 * 60.0
"""Seconds that one run spends on batches of invitations."""

BUDGET = 15 * 60.0
"""Seconds of API time for one run."""


def _each(
    rows: models.QuerySet[M], do: Callable[[int], bool], step: str, progress: Progress
) -> int:
    """Call ``do`` with the primary key of each row, and count those it settled."""
    settled = 0
    for done, pk in enumerate(_keys(rows), start=1):
        try:
            settled += do(pk)
        except Exception as error:
            # One row must not keep the others from being recovered; its lease brings it back.
            _log_error(step, pk, error)
        progress(step, done)
    return settled


def _log_error(step: str, row_id: object, error: Exception) -> None:
    name = type(error).__name__
    log_event("sync.error", step=step, row_id=row_id, error=name, exc_info=error)


def _keys(rows: models.QuerySet[M]) -> Iterator[int]:
    """Yield primary keys in batches, without a cursor that stays open over what is done to them."""
    last = 0
    while keys := list(
        rows.filter(pk__gt=last).order_by("pk").values_list("pk", flat=True)[: PAGE * 5]
    ):
        yield from keys
        last = keys[-1]


def _left_over() -> tuple[int, int]:
    """Return how many events and signals still wait, and how many failed for good."""
    inbox, outbox = WebhookEvent.objects, TimelineEvent.objects
    waiting = inbox.waiting().count() + outbox.waiting().count()
    failed = inbox.failed().count() + outbox.failed().count()
    return waiting, failed


# Claims


def _settle_claims(report: Report, dry_run: bool, progress: Progress) -> None:
    claims = SetupLink.objects.filter(unconfirmed_since__isnull=False).select_related("customer")
    if dry_run:
        report.claims = claims.count()
        return
    for done, link in enumerate(claims.order_by("unconfirmed_since")[:PAGE], start=1):
        number = numbers.Number(link.unconfirmed_phone_number_id)
        try:
            report.claims += (
                redirects.confirm_redirect(link, number, source=Source.SYNC) is not None
            )
        except exceptions.Rejected:
            report.claims += 1
        except Exception as error:
            _log_error("claims", link.pk, error)
            report.errors.append(f"Claim of setup link {link.pk}: {error}")
        progress("claims", done)


# Numbers


def _follow_numbers(
    report: Report,
    client: KapsoClient,
    dry_run: bool,
    accept_mass_loss: bool,
    progress: Progress,
) -> None:
    started = timezone.now()
    customers = _Customers(client)
    seen: set[int] = set()
    connected: set[str] = set()
    for page in _chunks(client.list_phone_numbers(per_page=PAGE), PAGE):
        ids = [remote.phone_number_id for remote in page]
        known = {
            connection.phone_number_id: connection
            for connection in Connection.objects.filter(phone_number_id__in=ids)
        }
        if not dry_run:
            customers.load(remote.customer_id for remote in page if remote.customer_id)
            new = [remote for remote in page if remote.phone_number_id not in known]
            connected = _connect_newcomers(new, customers)
            report.connected += len(connected)
        for remote in page:
            if remote.phone_number_id in connected:
                continue
            connection = known.get(remote.phone_number_id)
            if connection is not None:
                seen.add(connection.pk)
            _follow_number(report, remote, connection, customers, started, dry_run)
        report.numbers += len(page)
        progress("numbers", report.numbers)
    _close_missing(report, client, seen, started, dry_run, accept_mass_loss)


def _connect_newcomers(new: list[KapsoPhoneNumber], customers: _Customers) -> set[str]:
    """Connect those of the ``new`` numbers of a page that take nothing but to be written down.

    Returns their ids. The others have to be looked at one by one, as have all of a group that met
    somebody who writes about the same number or link at this moment.
    """
    opened = [remote for remote in new if remote.customer_id and not numbers.is_closed(remote)]
    customers.add(remote.customer_id for remote in opened if remote.customer_id)
    found = [
        (customer, numbers.Number.from_api(remote))
        for remote in opened
        if (customer := customers.local.get(remote.customer_id or ""))
    ]
    invited = set(
        SetupLink.objects.filter(
            customer__in=[customer for customer, _ in found],
            status__in=[SetupLink.Status.ACTIVE, SetupLink.Status.USED],
        )
        .exclude(setup_status=SetupLink.SetupStatus.COMPLETED)
        .values_list("customer_id", flat=True)
    )
    easy = (
        (numbers.KnownCustomer(customer.pk, None), number)
        for customer, number in found
        if customer.pk not in invited
    )
    connected: set[str] = set()
    for group in _chunks(easy, AT_ONCE):
        if _connect_group(group):
            connected |= {number.phone_number_id for _, number in group}
    return connected


def _connect_group(group: list[tuple[numbers.KnownCustomer, numbers.Number]]) -> bool:
    """Connect all of a group, or none."""
    is_first = iter([True])

    def change() -> bool:
        if not next(is_first, False):
            return False  # a race was lost: writing the same again would lose it again
        for known_customer, number in group:
            onboarding.connect(known_customer, number, source=Source.SYNC)
        return True

    try:
        return retry_on_conflict(change)
    except Exception:
        return False  # one of them cannot be written: which one, and why, is found out one by one


def _follow_number(
    report: Report,
    remote: KapsoPhoneNumber,
    known: Connection | None,
    customers: _Customers,
    started: datetime,
    dry_run: bool,
) -> None:
    is_open = bool(remote.customer_id) and not numbers.is_closed(remote)
    was_open = known is not None and known.is_connected
    if dry_run:
        report.connected += is_open and not was_open
        report.disconnected += was_open and not is_open
        return
    if not is_open and not was_open:
        return
    try:
        customer = customers.get(remote.customer_id)
        if remote.customer_id and customer is None:
            return  # deleted at Kapso since the page was read
        if known is not None and is_open and was_open and not _differs(known, customer, remote):
            return
        now = numbers.apply_remote_number(customer, remote, asked_at=started, source=Source.SYNC)
    except exceptions.TryLater:
        return
    except Exception as error:
        _log_error("numbers", remote.phone_number_id, error)
        report.errors.append(f"Number {remote.phone_number_id}: {error}")
        return
    is_connected = now is not None and now.is_connected
    moved = now is not None and known is not None and now.customer_id != known.customer_id
    report.connected += is_connected and (moved or not was_open)
    report.disconnected += was_open and (moved or not is_connected)
    report.updated += is_connected and was_open and not moved


def _differs(known: Connection, customer: Customer | None, remote: KapsoPhoneNumber) -> bool:
    """True where ``onboarding.follow`` would find something to do: most numbers need nothing."""
    if customer is None or known.customer_id != customer.pk:
        return True
    told = numbers.Number.from_api(remote)
    return any(
        getattr(told, item.name) not in {"", getattr(known, item.name)} for item in fields(told)
    )


def _close_missing(
    report: Report,
    client: KapsoClient,
    seen: set[int],
    started: datetime,
    dry_run: bool,
    accept_mass_loss: bool,
) -> None:
    """Disconnect the numbers that the API did not list; each is asked about once more."""
    open_before = Connection.objects.filter(
        status=Connection.Status.CONNECTED, connected_at__lt=started
    )
    total = 0
    missing: list[int] = []
    for pk in _keys(open_before):
        total += 1
        if pk not in seen:
            missing.append(pk)
    is_mass_loss = len(missing) > MASS_LOSS and len(missing) * 2 > total
    is_total_loss = len(missing) == total > 1
    if (is_mass_loss or is_total_loss) and not accept_mass_loss:
        raise MassLoss(
            f"{len(missing)} of {total} connected numbers are not in this Kapso project. Is "
            "API_KEY that of another project? Nothing was disconnected. If it is right, run "
            "kapso_sync --accept-mass-loss."
        )
    for number in Connection.objects.filter(pk__in=missing).values_list(
        "phone_number_id", flat=True
    ):
        if dry_run:
            report.disconnected += 1
            continue
        try:
            closed = numbers.refresh_number(number, source=Source.SYNC, client=client)
        except exceptions.TryLater:
            continue
        report.disconnected += closed is not None and not closed.is_connected


class _Customers:
    """The local customers by Kapso's id, a page at a time; Kapso is asked about unknown ones."""

    def __init__(self, client: KapsoClient) -> None:
        self.client = client
        self.local: dict[str, Customer] = {}
        self.remote: dict[str, KapsoCustomer] = {}
        self.unknown = 0

    def load(self, kapso_ids: Iterable[str]) -> None:
        wanted = set(kapso_ids)
        self.local = {
            customer.kapso_id: customer
            for customer in Customer.objects.filter(kapso_id__in=wanted)
            if customer.kapso_id
        }
        unknown = wanted - self.local.keys() - self.remote.keys()
        self.unknown += len(unknown)
        if self.unknown > CUSTOMERS_ONE_BY_ONE:
            self.remote |= {customer.id: customer for customer in self.client.list_customers()}
            self.unknown = 0
        else:
            for kapso_id in unknown:
                try:
                    self.remote[kapso_id] = self.client.get_customer(kapso_id)
                except KapsoNotFound:
                    continue

    def add(self, kapso_ids: Iterable[str]) -> None:
        """Make local customers of those of the page whom Kapso alone knows, some at a time."""
        unknown = sorted({*kapso_ids} & self.remote.keys() - self.local.keys())
        for group in _chunks(iter(unknown), AT_ONCE):
            # Who cannot be recorded, and why, is found out one by one.
            with suppress(Exception):
                self.local |= retry_on_conflict(partial(self._add, group))

    def _add(self, kapso_ids: Iterable[str]) -> dict[str, Customer]:
        add = customers.add_customer_from_api
        return {kapso_id: add(self.remote[kapso_id]) for kapso_id in kapso_ids}

    def get(self, kapso_id: str | None) -> Customer | None:
        if kapso_id is None:
            return None
        if kapso_id not in self.local and kapso_id in self.remote:
            self.local |= self._add([kapso_id])
        return self.local.get(kapso_id)


def _chunks(rows: Iterator[T], size: int) -> Iterator[list[T]]:
    while chunk := list(itertools.islice(rows, size)):
        yield chunk


# Links


def _follow_links(report: Report, client: KapsoClient, dry_run: bool, progress: Progress) -> None:
    if dry_run:
        report.links = SetupLink.objects.filter(
            status=SetupLink.Status.ACTIVE, expires_at__lte=timezone.now()
        ).count()
        return
    report.links = setup_links.expire_links()
    oldest = SetupLink.objects.filter(
        status=SetupLink.Status.ACTIVE, customer__kapso_id__isnull=False
    ).select_related("customer")
    for done, link in enumerate(
        oldest.order_by(models.F("checked_at").asc(nulls_first=True), "pk")[:LINKS_A_RUN], start=1
    ):
        report.links += _follow_link(link, client)
        progress("links", done)


def _follow_link(link: SetupLink, client: KapsoClient) -> bool:
    """Ask Kapso about one active link; True where it has ended."""
    # Before it is asked: one that cannot be answered must not keep the others from their turn.
    SetupLink.objects.filter(pk=link.pk).update(checked_at=timezone.now())
    try:
        remotes = client.list_setup_links(link.customer.kapso_id or "")
        remote = next((remote for remote in remotes if remote.id == link.kapso_id), None)
    except KapsoNotFound:
        remote = None
    return setup_links.apply_remote_link(link, remote)


# Invitations


def _invite(report: Report, dry_run: bool, progress: Progress) -> None:
    """Go on with the batches whose process died, or that wait for another try."""
    if dry_run:
        report.invitations = Invitation.objects.filter(
            due(), batch__in=invitations.unfinished(), status=Invitation.Status.PENDING
        ).count()
        return

    def tell() -> None:
        report.invitations += 1
        progress("invitations", report.invitations)

    invitations.work_all(seconds=INVITING, tell=tell)
