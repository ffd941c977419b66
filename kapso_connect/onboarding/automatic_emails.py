"""E-mails that are sent automatically: a reminder, "it did not work", "you are connected".

Each is off without its setting. ``kapso_sync`` sends the first two, a receiver of
``whatsapp_connected`` the third. An e-mail that may have been sent is not sent again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from functools import partial
from typing import Any

from django.conf import settings
from django.core.mail import EmailMessage
from django.core.signals import setting_changed
from django.db.models import Exists, F, OuterRef, Subquery
from django.utils import timezone

from .. import outbox, signals
from ..conf import SETTING, SYNC_EMAILS_BUDGET, get_conf
from ..db import refuse_in_transaction, retry_on_conflict
from ..exceptions import CannotInvite
from ..log import log_event
from ..models import Connection, Customer, OnboardingStatus, SetupLink, Source, TimelineEvent
from ..querysets import PrimaryQuerySet
from . import emails, setup_links
from .mailer import Mailer, NotSentYet, SendFailure, classify_error
from .reminders import REMINDED_STATUSES

Kind = TimelineEvent.Kind

MAX_EMAILS_PER_RUN = 50
"""How many customers one run of ``kapso_sync`` writes to; the next run continues."""

REMINDER_WINDOW = timedelta(days=7)
"""How long after its day a reminder is still sent: turning it on does not write to everybody who
was ever invited."""

FAILURE_DELAY = timedelta(hours=1)
"""How long a customer may try again before an e-mail says how to go on."""

FAILURE_WINDOW = timedelta(days=7)
"""How long after the attempt that e-mail is still sent."""


def links_to_remind_of() -> PrimaryQuerySet[SetupLink]:
    """Return the links whose customers are due for a reminder: they were last e-mailed an
    invitation ``EMAIL_REMINDER_DAYS`` days ago, have a connect URL, and have not come back from
    Kapso."""
    days = get_conf().email_reminder_days
    if days is None:
        return SetupLink.objects.none()
    latest = timezone.now() - timedelta(days=days)
    period = {"occurred_at__lte": latest, "occurred_at__gt": latest - REMINDER_WINDOW}
    by_email = TimelineEvent.objects.filter(kind=Kind.SETUP_LINK_SENT, data__channel="email")
    reminders = by_email.filter(data__message=emails.REMINDER)
    invitations = by_email.filter(data__message__isnull=True)
    of_customer = {"customer": OuterRef("customer")}
    last = invitations.filter(**of_customer).order_by("-occurred_at").values("occurred_at")[:1]
    links: Any = (
        _latest_links(status__in=REMINDED_STATUSES)
        # The first condition has an index.
        .filter(reminded_at=None, customer__in=invitations.filter(**period).values("customer"))
        .annotate(invited_at=Subquery(last))
        .filter(invited_at__lte=latest)
        .exclude(Exists(reminders.filter(**of_customer, occurred_at__gte=OuterRef("invited_at"))))
    )
    due: PrimaryQuerySet[SetupLink] = links
    return due


def failed_links() -> PrimaryQuerySet[SetupLink]:
    """Return the links whose customers are due for the e-mail about their failed attempt."""
    if not get_conf().email_failed:
        return SetupLink.objects.none()
    latest = timezone.now() - FAILURE_DELAY
    return _latest_links(
        status=OnboardingStatus.FAILED,
        status_changed_at__lte=latest,
        status_changed_at__gt=timezone.now() - FAILURE_WINDOW,
    ).filter(failure_emailed_at=None)


def _latest_links(**customer: Any) -> PrimaryQuerySet[SetupLink]:
    """Return the latest links of customers that have these fields, and whose connect URLs work.

    A link whose button was pressed within ``FAILURE_DELAY`` is left out: the customer may be
    connecting a number just now.
    """
    conditions = {f"customer__{name}": value for name, value in customer.items()}
    return (
        SetupLink.objects.filter(
            customer__latest_setup_link=F("pk"), customer__connect_key__isnull=False, **conditions
        )
        .exclude(customer__email="")
        .exclude(last_opened_at__gt=timezone.now() - FAILURE_DELAY)
    )


def count_due() -> int:
    """Return how many e-mails the next call of ``send_due`` would send, if none is refused."""
    due = links_to_remind_of().count() + failed_links().count()
    return min(due, MAX_EMAILS_PER_RUN)


def send_due(
    *,
    on_sent: Callable[[], object] = lambda: None,
    on_error: Callable[[SetupLink, Exception], object] = lambda link, error: None,
) -> None:
    """Send the reminders and the e-mails about failed attempts that are due, at most
    ``MAX_EMAILS_PER_RUN`` and for ``SYNC_EMAILS_BUDGET`` seconds.

    Call ``on_sent`` after each, and ``on_error`` for each that was not sent, or may not have been.
    Several processes may run this at once: each link is claimed by one. Raise CalledInTransaction
    inside a transaction.
    """
    refuse_in_transaction()
    deadline = time.monotonic() + SYNC_EMAILS_BUDGET
    with Mailer() as mailer:
        for link, email in _due():
            if mailer.outage or time.monotonic() >= deadline:
                break
            try:
                is_sent = email.send(link, mailer)
            except Exception as error:
                on_error(link, error)
                continue
            if is_sent:
                on_sent()


class AutomaticEmail:
    """An e-mail that is sent once for a link. ``claimed_at`` is the field that says when."""

    claimed_at: str
    statuses: tuple[OnboardingStatus, ...]

    def send(self, link: SetupLink, mailer: Mailer) -> bool:
        """Send it, unless another process has, or the customer has gone on meanwhile. Raise as
        ``Mailer.send`` does; what may succeed later is due again then."""
        now = timezone.now()
        try:
            message = self.message(link)
        except CannotInvite:
            self._claim(link, now)  # the next run could not send it either
            raise
        if not self._claim(link, now):
            return False
        try:
            mailer.send(message)
        except Exception as error:
            is_temporary = classify_error(error) is SendFailure.TEMPORARY
            if is_temporary:
                claimed = SetupLink.objects.filter(pk=link.pk, **{self.claimed_at: now})
                _write(partial(claimed.update, **{self.claimed_at: None}))
            event = "email.retry_scheduled" if is_temporary else "email.failed"
            log_event(event, customer_id=link.customer_id, error=type(error).__name__)
            raise
        self.record(link)
        return True

    def _claim(self, link: SetupLink, now: Any) -> bool:
        # Conditions on the link's own row are checked anew after waiting for another process.
        still_due = Customer.objects.filter(
            latest_setup_link=link.pk, connect_key__isnull=False, status__in=self.statuses
        )
        unclaimed = SetupLink.objects.filter(
            pk=link.pk, customer__in=still_due.values("pk"), **{self.claimed_at: None}
        )
        return bool(_write(partial(unclaimed.update, **{self.claimed_at: now})))

    def message(self, link: SetupLink) -> EmailMessage:
        raise NotImplementedError

    def record(self, link: SetupLink) -> None:
        raise NotImplementedError


class Reminder(AutomaticEmail):
    claimed_at = "reminded_at"
    statuses = REMINDED_STATUSES

    def message(self, link: SetupLink) -> EmailMessage:
        return emails.reminder_message(link.customer, link)

    def record(self, link: SetupLink) -> None:
        to = link.customer.email
        setup_links.record_sent(link, "email", source=Source.SYNC, to=to, message=emails.REMINDER)


class FailureEmail(AutomaticEmail):
    claimed_at = "failure_emailed_at"
    statuses = (OnboardingStatus.FAILED,)

    def message(self, link: SetupLink) -> EmailMessage:
        return emails.failed_message(link.customer, link)

    def record(self, link: SetupLink) -> None:
        _record_sent("failed", link.customer, source=Source.SYNC, setup_link=link)


def _due() -> Iterator[tuple[SetupLink, AutomaticEmail]]:
    left = MAX_EMAILS_PER_RUN
    kinds = ((failed_links, FailureEmail()), (links_to_remind_of, Reminder()))
    for find, email in kinds:
        # At random: addresses that are refused for now each time do not keep the others waiting.
        links = list(find().select_related("customer", "created_by").order_by("?")[:left])
        left -= len(links)
        yield from ((link, email) for link in links)


def _record_sent(message: str, customer: Customer, *, source: str, **fields: Any) -> None:
    """Add an e-mail to the timeline that is neither an invitation nor a reminder."""
    data = {"message": message, "to": customer.email}
    retry_on_conflict(
        lambda: outbox.record(
            Kind.EMAIL_SENT, source=source, customer=customer, data=data, **fields
        )
    )


def _write(statement: Callable[[], int]) -> int:
    return retry_on_conflict(statement, in_transaction=False)


def email_connected(connection: Connection, source: str, **kwargs: Any) -> None:
    """Tell a customer who used a setup link of this site by e-mail: a receiver of
    ``whatsapp_connected``. A number that ``kapso_sync`` finds may have been connected for long.

    Raise NotSentYet if the e-mail was not sent and may be later; then the outbox calls again. Other
    errors are logged.
    """
    customer = connection.customer
    is_answer = connection.setup_link_id is not None and connection.is_connected
    if not is_answer or connection.is_test_number or not customer.email:
        return
    try:
        emails.connected_message(connection).send()
    except Exception as error:
        if classify_error(error) is SendFailure.TEMPORARY:
            raise NotSentYet(error) from None
        log_event("email.failed", customer_id=customer.pk, error=type(error).__name__)
        return
    try:
        fields = {"connection": connection, "setup_link": connection.setup_link}
        _record_sent("connected", customer, source=source, **fields)
    except Exception as error:  # or it would be sent again
        log_event("email.unrecorded", customer_id=customer.pk, error=type(error).__name__)


def connect_receiver(*, setting: str = SETTING, **kwargs: Any) -> None:
    """Connect ``email_connected`` to its signal if ``EMAIL_CONNECTED`` is on, and else disconnect
    it."""
    if setting != SETTING:
        return
    # Not by ``get_conf``, which raises for any other setting that is invalid.
    given = getattr(settings, SETTING, None)
    is_on = isinstance(given, Mapping) and given.get("EMAIL_CONNECTED") is True
    signal, name = signals.whatsapp_connected, outbox.EMAIL_RECEIVER
    if is_on:
        signal.connect(email_connected, sender=Connection, dispatch_uid=name)
    else:
        signal.disconnect(sender=Connection, dispatch_uid=name)


setting_changed.connect(connect_receiver, dispatch_uid="kapso_connect.email_connected")
