"""Finish work that was interrupted, bring this site in line with Kapso's API, and verify statuses.

It is safe to run this at any time and on several machines at once: work is protected by leases, and
every change goes through ``onboarding``, which notices what another process has changed meanwhile.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, fields
from datetime import datetime, timedelta
from functools import partial
from typing import Any, TypeVar

from django.core.cache import cache
from django.core.exceptions import ImproperlyConfigured
from django.db import models
from django.utils import timezone

from . import db, outbox
from .conf import (
    SYNC_BUDGET,
    SYNC_DETAILS_BUDGET,
    SYNC_INVITATIONS_BUDGET,
    SYNC_NUMBER_WEBHOOKS_BUDGET,
    SYNC_WEBHOOKS_BUDGET,
    get_conf,
)
from .db import retry_on_conflict
from .exceptions import (
    CannotInvite,
    KapsoCredentialsError,
    KapsoError,
    KapsoNotFound,
    KapsoRateLimited,
    KapsoUnavailable,
    TryLater,
)
from .kapso.client import KapsoClient
from .kapso.types import KapsoCustomer, KapsoPhoneNumber, KapsoWebhook
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
from .onboarding import (
    automatic_emails,
    customers,
    funding,
    invitations,
    numbers,
    redirects,
    remote_numbers,
    setup_links,
)
from .onboarding import status as onboarding_status
from .onboarding.details import details_budget
from .webhooks import inbox, number_webhooks

ItemT = TypeVar("ItemT")
ModelT = TypeVar("ModelT", bound=models.Model)
ProgressCallback = Callable[[str, int], None]

NUMBERS_PER_PAGE = 100
KEYS_PER_QUERY = 500

NEW_CUSTOMERS_PER_TRANSACTION = 10
"""Few enough that no other process waits long for a lock."""

MAX_REDIRECTS_PER_RUN = 100

MAX_LINKS_PER_RUN = 20
"""Kapso lists links by customer, so each costs a request."""

MAX_FUNDING_PER_RUN = 20
FUNDING_INTERVAL = timedelta(hours=1)
"""How long kapso_sync takes it for granted whether Kapso pays Meta for a number."""

MAX_NUMBER_WEBHOOKS_PER_RUN = 100
"""Of those that are not right; all others cost no request of their own."""

MAX_CUSTOMER_REQUESTS = 10
"""To find more unknown customers than this, listing all of them is cheaper."""

STOPPED_KEY = "kapso_connect.sync.stopped"
STOPPED_SECONDS = 60 * 60
"""How long the cache remembers that an outage was logged."""

ROW_NAMES = {
    "webhooks": "Webhook event",
    "signals": "Signal of event",
    "redirects": "Redirect of setup link",
    "numbers": "Number",
    "emails": "E-mail about setup link",
    "number_webhooks": "Webhook of number",
}
"""What a row is called whose step failed."""

MASS_LOSS_THRESHOLD = 20
"""If more numbers than this and more than half of them are gone, or all of several, then the API
key is more likely to be that of another project."""


@dataclass
class Report:
    """What one run did, or would do.

    ``webhooks``, ``signals``, ``redirects``
        How many stored webhooks were processed, signals delivered, and redirects confirmed or
        rejected.
    ``connected``, ``disconnected``, ``updated``
        How many numbers were found to be connected, disconnected, or to have changed data.
    ``links``, ``invitations``
        How many setup links had ended, and how many invitations were processed.
    ``emails``
        How many reminders, and e-mails about failed attempts, were sent.
    ``number_webhooks``
        How many numbers' own webhooks were registered, repaired or removed (``NUMBER_WEBHOOK``).
    ``numbers``
        How many numbers Kapso listed.
    ``ignored``
        How many of these belong to customers that are none of this site's, while
        ``ADOPT_UNKNOWN_CUSTOMERS`` is off.
    ``repaired``
        How many customers had a stored status that did not follow from their links and numbers.
    ``waiting``, ``failed``
        How many webhooks and signals are waiting for another attempt, or have failed permanently
        and were not dismissed.
    ``errors``
        What could not be done: a message for the first error of each kind in each step, and how
        many others there were. The next run tries again.
    """

    webhooks: int = 0
    signals: int = 0
    redirects: int = 0
    connected: int = 0
    disconnected: int = 0
    updated: int = 0
    links: int = 0
    invitations: int = 0
    emails: int = 0
    number_webhooks: int = 0
    numbers: int = 0
    ignored: int = 0
    repaired: int = 0
    waiting: int = 0
    failed: int = 0
    errors: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._failed_rows: Counter[tuple[str, str]] = Counter()

    def counts(self) -> dict[str, Any]:
        """Return the counts by name, without the errors."""
        return {name: value for name, value in vars(self).items() if isinstance(value, int)}

    def summary(self) -> str:
        """Return the counts in one line."""
        return ", ".join(f"{name} {count}" for name, count in self.counts().items())

    def add_error(
        self, step: str, row_id: object, error: Exception, *, has_traceback: bool = True
    ) -> None:
        """Log that a row could not be recovered, once for each kind of error and step: in an
        outage, a traceback for each row would say no more."""
        kind = type(error).__name__
        self._failed_rows[step, kind] += 1
        if self._failed_rows[step, kind] == 1:
            exc_info = has_traceback and error
            log_event("sync.error", step=step, row_id=row_id, error=kind, exc_info=exc_info)
            self.errors.append(f"{ROW_NAMES[step]} {row_id}: {error}")

    def count_errors(self) -> None:
        """Log how many errors ``add_error`` has left out."""
        for (step, kind), count in self._failed_rows.items():
            if count > 1:
                log_event("sync.more_errors", step=step, error=kind, count=count - 1)
                self.errors.append(f"{kind} for {count - 1} more {step}")


class Stopped(Exception):
    """The run was asked to stop. What it was doing is finished."""


class MassLoss(Exception):
    """So many numbers are gone at once that the API key is probably wrong."""


def run(
    *,
    dry_run: bool = False,
    accept_mass_loss: bool = False,
    progress: ProgressCallback = lambda step, done: None,
    should_stop: Callable[[], bool] = lambda: False,
    client: KapsoClient | None = None,
) -> Report:
    """Do everything that is due, compare with Kapso's API, repair statuses, and return what was
    done.

    ``dry_run`` only counts what would be done. ``accept_mass_loss`` disconnects numbers even if
    most of them are gone from Kapso. ``progress`` is called with the name of a step and a count.
    Without a ``client``, one is made from the settings, with ``conf.SYNC_BUDGET``.

    Once ``should_stop`` returns True, what is in progress is finished, and the rest is left to the
    next run.

    An unavailable API raises nothing: it is reported in ``errors``, and everything that does not
    need the API is done. Raise CalledInTransaction inside a transaction.
    """
    db.refuse_in_transaction()
    report, started = Report(), time.monotonic()

    def advance(step: str, done: int) -> None:
        progress(step, done)
        if should_stop():
            raise Stopped

    with suppress(Stopped), number_webhooks.left_to_sync():
        _work_on_queues(report, dry_run, advance)
        client = client or KapsoClient.from_settings(budget=SYNC_BUDGET, paced=True)
        try:
            _sync_numbers(report, client, dry_run, accept_mass_loss, advance)
            if not dry_run:
                _sync_funding(report, client)
            _confirm_redirects(report, dry_run, advance)
            _sync_number_webhooks(report, client, dry_run, advance)
            _sync_links(report, client, dry_run, advance)
            _continue_invitations(report, dry_run, progress, should_stop)
        except (KapsoError, MassLoss) as error:
            report.errors.append(str(error))
            _log_stopped(error)
        else:
            _log_recovered()
        if not dry_run:
            _send_signals(report, advance)  # of what was found
        _repair_statuses(report, dry_run, advance)
        _send_emails(report, dry_run, advance)
    report.count_errors()
    webhooks, signals = WebhookEvent.objects, TimelineEvent.objects
    report.waiting = webhooks.waiting().count() + signals.waiting().count()
    report.failed = webhooks.failed().count() + signals.failed().count()
    if not dry_run:
        counts: dict[str, Any] = {**report.counts(), "errors": len(report.errors)}
        log_event("sync.finished", seconds=time.monotonic() - started, **counts)
    return report


def _log_stopped(error: Exception) -> None:
    """Log as an error that the run could not compare, but only once for one outage: cron repeats
    it every minute, on several machines. The cache that they share counts the other runs."""
    count = 1
    with suppress(Exception):  # without a cache, each run logs it
        if not cache.add(STOPPED_KEY, 1, STOPPED_SECONDS):
            count = cache.incr(STOPPED_KEY)
    if count == 1:
        log_event("sync.stopped", error=str(error))
    else:
        log_event("sync.still_stopped", error=str(error), count=count)


def _log_recovered() -> None:
    with suppress(Exception):
        cache.delete(STOPPED_KEY)


def _work_on_queues(report: Report, dry_run: bool, progress: ProgressCallback) -> None:
    """Process stored webhooks and send signals. Signals first: while the API does not answer,
    webhooks wait for it."""
    pending = WebhookEvent.objects.waiting().due()
    if dry_run:
        report.webhooks, report.signals = pending.count(), _due_signals().count()
        return
    _send_signals(report, progress)
    _process_webhooks(report, pending, progress)
    _send_signals(report, progress)


def _send_signals(report: Report, progress: ProgressCallback) -> None:
    """Send the signals that are due. What the API does not say about their numbers within
    ``SYNC_DETAILS_BUDGET`` seconds in all, the comparison with it adds."""
    with details_budget(SYNC_DETAILS_BUDGET):
        _process_rows(report, "signals", _iterate_keys(_due_signals()), outbox.deliver, progress)


def _process_webhooks(
    report: Report, pending: models.QuerySet[WebhookEvent], progress: ProgressCallback
) -> None:
    """Process the webhooks that are due, those that have waited longest first, for
    ``SYNC_WEBHOOKS_BUDGET`` seconds in all."""
    deadline = time.monotonic() + SYNC_WEBHOOKS_BUDGET

    def process(pk: int) -> bool:
        left = max(deadline - time.monotonic(), 0.0)
        budget = min(get_conf().request_budget, left)
        with KapsoClient.from_settings(budget=budget, paced=True) as client:
            return inbox.process(pk, client=client)

    keys = list(pending.order_by("next_attempt_at", "pk").values_list("pk", flat=True))
    in_time = itertools.takewhile(lambda pk: time.monotonic() < deadline, keys)
    _process_rows(report, "webhooks", in_time, process, progress)


def _due_signals() -> models.QuerySet[TimelineEvent]:
    """Return the events whose signals are due now; later ones are not included."""
    return TimelineEvent.objects.undelivered().due()


def _process_rows(
    report: Report,
    step: str,
    keys: Iterable[int],
    process: Callable[[int], bool],
    progress: ProgressCallback,
) -> None:
    """Call ``process`` with each primary key, and count in the report's field ``step`` how often it
    returned True."""
    for done, pk in enumerate(keys, start=1):
        try:
            if process(pk):
                setattr(report, step, getattr(report, step) + 1)
        except Exception as error:
            # One row must not stop the others. It is due again when its lease ends.
            report.add_error(step, pk, error)
        progress(step, done)


def _iterate_keys(rows: models.QuerySet[ModelT]) -> Iterator[int]:
    """Yield primary keys, read in batches so that no cursor stays open while rows are changed."""
    last = 0
    while keys := list(
        rows.filter(pk__gt=last).order_by("pk").values_list("pk", flat=True)[:KEYS_PER_QUERY]
    ):
        yield from keys
        last = keys[-1]


# Redirects


def _confirm_redirects(report: Report, dry_run: bool, progress: ProgressCallback) -> None:
    unconfirmed = SetupLink.objects.unconfirmed().select_related("customer")
    if dry_run:
        report.redirects = unconfirmed.count()
        return
    for done, link in enumerate(
        unconfirmed.order_by("unconfirmed_since")[:MAX_REDIRECTS_PER_RUN], start=1
    ):
        try:
            outcome = redirects.confirm_unconfirmed(link)
            report.redirects += not isinstance(outcome, redirects.Pending)
        except Exception as error:
            report.add_error("redirects", link.pk, error)
        progress("redirects", done)


# Numbers


def _sync_numbers(
    report: Report,
    client: KapsoClient,
    dry_run: bool,
    accept_mass_loss: bool,
    progress: ProgressCallback,
) -> None:
    started = timezone.now()
    customers = _CustomerCache(client)
    seen: set[int] = set()
    connected: Collection[str] = ()
    for page in _in_batches(client.list_phone_numbers(per_page=NUMBERS_PER_PAGE), NUMBERS_PER_PAGE):
        ids = [remote.phone_number_id for remote in page]
        known = {
            connection.phone_number_id: connection
            for connection in Connection.objects.filter(phone_number_id__in=ids)
        }
        if not (dry_run and get_conf().adopt_unknown_customers):
            customers.load(remote.customer_id for remote in page if remote.customer_id)
        if not dry_run:
            new = [remote for remote in page if remote.phone_number_id not in known]
            connected = _connect_new_numbers(new, customers).keys()
            report.connected += len(connected)
        for remote in page:
            if remote.phone_number_id in connected:
                continue
            connection = known.get(remote.phone_number_id)
            if connection is not None:
                seen.add(connection.pk)
            _sync_number(report, remote, connection, customers, started, dry_run)
        report.numbers += len(page)
        progress("numbers", report.numbers)
    _disconnect_missing(report, client, seen, started, dry_run, accept_mass_loss, progress)


def _connect_new_numbers(
    new: list[KapsoPhoneNumber], customers: _CustomerCache
) -> dict[str, Connection]:
    """Connect in bulk those of the ``new`` numbers that need no further checks, and return them by
    id. All other numbers are synchronised one by one."""
    candidates = [
        remote
        for remote in new
        if remote.customer_id
        and remote.customer_id not in customers.foreign
        and not remote_numbers.is_closed(remote)
    ]
    customers.add_new(remote.customer_id for remote in candidates if remote.customer_id)
    pairs = [
        (customer, numbers.Number.from_api(remote))
        for remote in candidates
        if (customer := customers.local.get(remote.customer_id or ""))
    ]
    with_open_link = set(
        SetupLink.objects.open()
        .filter(customer__in=[customer for customer, _ in pairs])
        .values_list("customer_id", flat=True)
    )
    simple = [pair for pair in pairs if pair[0].pk not in with_open_link]
    try:
        return numbers.connect_new(simple, source=Source.SYNC) if simple else {}
    except Exception:
        return {}  # which number caused it, and why, is reported when each is synchronised alone


def _sync_number(
    report: Report,
    remote: KapsoPhoneNumber,
    known: Connection | None,
    customers: _CustomerCache,
    started: datetime,
    dry_run: bool,
) -> None:
    is_foreign = remote.customer_id in customers.foreign
    report.ignored += is_foreign
    has_customer = bool(remote.customer_id) and not is_foreign
    is_open = has_customer and not remote_numbers.is_closed(remote)
    was_open = known is not None and known.is_connected
    if dry_run:
        report.connected += is_open and not was_open
        report.disconnected += was_open and not is_open
        return
    if not is_open and not was_open:
        return
    try:
        customer = customers.get(remote.customer_id)
        if has_customer and customer is None:
            return  # deleted from Kapso since the page was read
        if is_open and was_open and not _needs_update(known, customer, remote):
            return
        now = remote_numbers.apply_remote_number(
            customer, remote, asked_at=started, source=Source.SYNC
        )
    except TryLater:
        return
    except Exception as error:
        report.add_error("numbers", remote.phone_number_id, error)
        return
    is_connected = now is not None and now.is_connected
    moved = now is not None and known is not None and now.customer_id != known.customer_id
    report.connected += is_connected and (moved or not was_open)
    report.disconnected += was_open and (moved or not is_connected)
    report.updated += is_connected and was_open and not moved


def _needs_update(
    known: Connection | None, customer: Customer | None, remote: KapsoPhoneNumber
) -> bool:
    """Return whether ``apply_remote_number`` would change anything; usually it would not."""
    if known is None or customer is None or known.customer_id != customer.pk:
        return True
    number = numbers.Number.from_api(remote)
    return any(
        getattr(number, item.name) not in {"", getattr(known, item.name)} for item in fields(number)
    )


def _sync_number_webhooks(
    report: Report, client: KapsoClient, dry_run: bool, progress: ProgressCallback
) -> None:
    """Register, repair and remove the numbers' own webhooks, as ``NUMBER_WEBHOOK`` says."""
    try:
        wrong = _find_wrong_webhooks(client)
    except ImproperlyConfigured as error:
        report.errors.append(str(error))
        log_event("sync.error", step="number_webhooks", row_id=None, error=type(error).__name__)
        return
    except (KapsoCredentialsError, KapsoRateLimited, KapsoUnavailable):
        raise  # the same for all that follows
    except KapsoError as error:
        # Links and invitations do not depend on it.
        report.errors.append(str(error))
        log_event("sync.error", step="number_webhooks", row_id=None, error=type(error).__name__)
        return
    if dry_run:
        report.number_webhooks = min(len(wrong), MAX_NUMBER_WEBHOOKS_PER_RUN)
        return
    deadline = time.monotonic() + SYNC_NUMBER_WEBHOOKS_BUDGET
    for done, (connection, change) in enumerate(wrong[:MAX_NUMBER_WEBHOOKS_PER_RUN], start=1):
        if time.monotonic() >= deadline:
            return
        try:
            if not _is_still_wanted(connection, change):
                continue
            report.number_webhooks += change(connection, client, source=Source.SYNC)
        except (KapsoCredentialsError, KapsoRateLimited):
            raise  # the same for all
        except Exception as error:
            has_traceback = not isinstance(error, (KapsoError, number_webhooks.NumberWebhookError))
            report.add_error(
                "number_webhooks", connection.phone_number_id, error, has_traceback=has_traceback
            )
        progress("number webhooks", done)


def _find_wrong_webhooks(client: KapsoClient) -> list[tuple[Connection, Callable[..., bool]]]:
    """Return the numbers whose webhook is not as it should be, with the function that makes it
    right, in an order by chance: what fails each time does not keep the others waiting."""
    gone = number_webhooks.to_remove()
    wrong: list[tuple[Connection, Callable[..., bool]]] = [
        (connection, number_webhooks.remove)
        for connection in gone.order_by("?")[:MAX_NUMBER_WEBHOOKS_PER_RUN]
    ]
    target = number_webhooks.find_target()
    connected = Connection.objects.connected()
    if target is None or not connected.exists():
        return wrong
    found: dict[str | None, list[KapsoWebhook]] = {}
    for webhook in client.list_webhooks():
        found.setdefault(webhook.phone_number_id, []).append(webhook)
    for connection in connected.only("phone_number_id", "number_webhook_id").order_by("?"):
        compared = number_webhooks.compare(
            connection, found.get(connection.phone_number_id, ()), target
        )
        is_known = compared.mine and compared.mine.id == connection.number_webhook_id
        if not (compared.is_right and is_known):
            wrong.append((connection, number_webhooks.register))
    return wrong


def _is_still_wanted(connection: Connection, change: Callable[..., bool]) -> bool:
    """Return False if the number has gone, or has come back, since it was compared."""
    is_registered = change is number_webhooks.register
    rows = Connection.objects.connected() if is_registered else number_webhooks.to_remove()
    return rows.filter(pk=connection.pk).exists()


def _sync_funding(report: Report, client: KapsoClient) -> None:
    """Ask whether Kapso pays Meta for the connected numbers that it shall pay for."""
    due = models.Q(funding_checked_at=None)
    due |= models.Q(funding_checked_at__lte=timezone.now() - FUNDING_INTERVAL)
    rows = Connection.objects.connected().partner_managed().exclude(business_account_id="")
    rows = rows.filter(due).select_related("setup_link")
    oldest_first = rows.order_by(models.F("funding_checked_at").asc(nulls_first=True), "pk")
    for connection in oldest_first[:MAX_FUNDING_PER_RUN]:
        report.updated += funding.refresh_funding(connection, client)


def _disconnect_missing(
    report: Report,
    client: KapsoClient,
    seen: set[int],
    started: datetime,
    dry_run: bool,
    accept_mass_loss: bool,
    progress: ProgressCallback,
) -> None:
    """Disconnect numbers that Kapso did not list, if it confirms each of them to be gone."""
    before = list(_iterate_keys(Connection.objects.connected().filter(connected_at__lt=started)))
    missing = [pk for pk in before if pk not in seen]
    total = len(before)
    is_mass_loss = len(missing) > MASS_LOSS_THRESHOLD and len(missing) * 2 > total
    is_total_loss = len(missing) == total > 1
    if (is_mass_loss or is_total_loss) and not accept_mass_loss:
        raise MassLoss(
            f"{len(missing)} of {total} connected numbers are not in this Kapso project. Nothing "
            "was disconnected. Check that API_KEY is not the key of another project. If the "
            "numbers really are gone, run: manage.py kapso_sync --accept-mass-loss"
        )
    if dry_run:
        report.disconnected += len(missing)
        return
    # Those that Meta had paused may have been deleted since.
    paused = [pk for pk in _iterate_keys(Connection.objects.paused()) if pk not in seen]
    for number in Connection.objects.filter(pk__in=[*missing, *paused]).values_list(
        "phone_number_id", flat=True
    ):
        try:
            closed = remote_numbers.refresh_number(number, source=Source.SYNC, client=client)
        except TryLater:
            continue
        report.disconnected += closed is not None and not closed.is_connected
        progress("disconnections", report.disconnected)


class _CustomerCache:
    """The customers of a page of numbers by Kapso's id. Unknown ones are fetched from Kapso."""

    def __init__(self, client: KapsoClient) -> None:
        self.client = client
        self.local: dict[str, Customer] = {}
        self.remote: dict[str, KapsoCustomer] = {}
        self.foreign: set[str | None] = set()
        """Kapso's ids of those that are none of this site's, and must not become its customers."""
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
        if self.unknown > MAX_CUSTOMER_REQUESTS:
            self.remote |= {customer.id: customer for customer in self.client.list_customers()}
            self.unknown = 0
        else:
            for kapso_id in unknown:
                try:
                    self.remote[kapso_id] = self.client.get_customer(kapso_id)
                except KapsoNotFound:
                    continue
        if not get_conf().adopt_unknown_customers:
            self._find_foreign(unknown & self.remote.keys())

    def _find_foreign(self, kapso_ids: Collection[str]) -> None:
        """Add to ``foreign`` those that do not have an external id that this site gave them."""
        external_ids = {
            kapso_id: self.remote[kapso_id].external_customer_id for kapso_id in kapso_ids
        }
        known = set(
            Customer.objects.filter(
                external_customer_id__in=[value for value in external_ids.values() if value]
            ).values_list("external_customer_id", flat=True)
        )
        self.foreign |= {kapso_id for kapso_id in kapso_ids if external_ids[kapso_id] not in known}

    def add_new(self, kapso_ids: Iterable[str]) -> None:
        """Add the customers among ``kapso_ids`` that only Kapso knows, several at a time."""
        unknown = sorted({*kapso_ids} & self.remote.keys() - self.local.keys())
        for group in _in_batches(iter(unknown), NEW_CUSTOMERS_PER_TRANSACTION):
            # Which customer caused an error, and why, is reported when each is added alone.
            with suppress(Exception):
                self.local |= retry_on_conflict(partial(self._add, group))

    def _add(self, kapso_ids: Iterable[str]) -> dict[str, Customer]:
        add = customers.add_customer_from_api
        return {kapso_id: add(self.remote[kapso_id]) for kapso_id in kapso_ids}

    def get(self, kapso_id: str | None) -> Customer | None:
        if kapso_id is None or kapso_id in self.foreign:
            return None
        if kapso_id not in self.local and kapso_id in self.remote:
            self.local |= self._add([kapso_id])
        return self.local.get(kapso_id)


def _in_batches(items: Iterator[ItemT], size: int) -> Iterator[list[ItemT]]:
    while batch := list(itertools.islice(items, size)):
        yield batch


# Links


def _sync_links(
    report: Report, client: KapsoClient, dry_run: bool, progress: ProgressCallback
) -> None:
    if dry_run:
        report.links = SetupLink.objects.active().expired().count()
        return
    report.links = setup_links.expire_links()
    active = SetupLink.objects.active().filter(customer__kapso_id__isnull=False)
    active = active.select_related("customer")
    for done, link in enumerate(
        active.order_by(models.F("checked_at").asc(nulls_first=True), "pk")[:MAX_LINKS_PER_RUN],
        start=1,
    ):
        report.links += _sync_link(link, client)
        progress("links", done)


def _sync_link(link: SetupLink, client: KapsoClient) -> bool:
    """Ask Kapso about one active link; return whether it has ended."""
    # Before Kapso is asked, so that a link whose request fails is not the first again next time.
    SetupLink.objects.filter(pk=link.pk).update(checked_at=timezone.now())
    try:
        remote = setup_links.find_remote_link(link, client)
    except KapsoNotFound:
        remote = None
    return setup_links.apply_remote_link(link, remote)


# Invitations


def _continue_invitations(
    report: Report, dry_run: bool, progress: ProgressCallback, should_stop: Callable[[], bool]
) -> None:
    """Continue batches that were interrupted or are due for another attempt."""
    if dry_run:
        batches = invitations.batches_with_due_invitations()
        report.invitations = Invitation.objects.pending().due().filter(batch__in=batches).count()
        return

    def on_progress() -> None:
        report.invitations += 1
        progress("invitations", report.invitations)

    # Stopped before the next wave, not by ``on_progress``: that would lose those in progress.
    invitations.work_all(
        seconds=SYNC_INVITATIONS_BUDGET, on_progress=on_progress, should_stop=should_stop
    )
    if should_stop():
        raise Stopped


# Statuses


def _repair_statuses(report: Report, dry_run: bool, progress: ProgressCallback) -> None:
    """Compare the stored statuses of all customers with their links and numbers."""
    for customer_id in onboarding_status.find_wrong_statuses():
        if dry_run:
            report.repaired += 1
        elif changed := onboarding_status.repair_status(customer_id):
            report.repaired += 1
            was, now = changed
            log_event("status.repaired", customer_id=customer_id, was=was, now=now)
        progress("statuses", report.repaired)


# E-mails


def _send_emails(report: Report, dry_run: bool, progress: ProgressCallback) -> None:
    """Send reminders, and e-mails about failed attempts, where the settings say so."""
    if dry_run:
        report.emails = automatic_emails.count_due()
        return

    def on_sent() -> None:
        report.emails += 1
        progress("emails", report.emails)

    def on_error(link: SetupLink, error: Exception) -> None:
        # What a mail server or an invitation refuses has the address or the name in its text.
        is_refusal = isinstance(error, (OSError, CannotInvite))
        report.add_error("emails", link.pk, error, has_traceback=not is_refusal)

    automatic_emails.send_due(on_sent=on_sent, on_error=on_error)
