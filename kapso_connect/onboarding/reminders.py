"""Who is sent a reminder of the invitation, and who is left out."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

from django.contrib.auth.models import AbstractBaseUser
from django.db import Error, models
from django.db.models import Case, Exists, OuterRef, Q, Value, When
from django.utils import timezone

from ..db import retry_on_conflict
from ..models import Customer, OnboardingStatus, SetupLink, TimelineEvent
from ..translation import gettext_lazy as _
from . import emails
from .mailer import SendFailure, classify_error

REMINDED_STATUSES = (OnboardingStatus.INVITED, OnboardingStatus.OPENED)

PAUSE = timedelta(days=1)
"""Whoever was e-mailed the personal link within this time is not reminded again by staff."""


class Obstacle(models.TextChoices):
    """Why a customer is left out of a batch of reminders."""

    CONNECTED = "connected", _("has connected a number")
    NO_URL = "no_url", _("has no personal link")
    STATUS = "status", _("is neither “Invited” nor “Opened”")
    NO_EMAIL = "no_email", _("has no e-mail address")
    RECENT = "recent", _("was e-mailed the link less than a day ago")


def with_obstacle(customers: models.QuerySet[Customer]) -> models.QuerySet[Any]:
    """Annotate ``customers`` with ``obstacle``: an ``Obstacle``, or "" for those to remind."""
    since = timezone.now() - PAUSE
    reminded = SetupLink.objects.filter(customer=OuterRef("pk"), reminded_at__gt=since)
    emailed = TimelineEvent.objects.filter(
        customer=OuterRef("pk"),
        kind=TimelineEvent.Kind.SETUP_LINK_SENT,
        occurred_at__gt=since,
        data__channel="email",
    )
    has_no_url = Q(connect_key=None) | Q(latest_setup_link=None)
    return customers.annotate(
        obstacle=Case(
            When(status=OnboardingStatus.CONNECTED, then=Value(Obstacle.CONNECTED)),
            When(has_no_url, then=Value(Obstacle.NO_URL)),
            When(~Q(status__in=REMINDED_STATUSES), then=Value(Obstacle.STATUS)),
            When(email="", then=Value(Obstacle.NO_EMAIL)),
            When(Exists(reminded) | Exists(emailed), then=Value(Obstacle.RECENT)),
            default=Value(""),
            output_field=models.CharField(),
        )
    )


def claim(link: SetupLink) -> bool:
    """Reserve the reminder of ``link`` for this process, by ``reminded_at``. Return False if
    another process has reminded the customer since ``link`` was read, or if the customer has gone
    on or has another link."""
    waiting = Customer.objects.filter(
        latest_setup_link=link.pk, connect_key__isnull=False, status__in=REMINDED_STATUSES
    )
    # Conditions on the link's own row are checked anew after waiting for another process.
    unclaimed = SetupLink.objects.filter(
        pk=link.pk, customer__in=waiting.values("pk"), reminded_at=link.reminded_at
    )
    change = partial(unclaimed.update, reminded_at=timezone.now())
    return bool(retry_on_conflict(change, in_transaction=False))


def find_obstacle(customer: Customer) -> str:
    """Return the ``Obstacle`` to reminding ``customer`` now, or ""."""
    rows = with_obstacle(Customer.objects.filter(pk=customer.pk))
    return str(rows.values_list("obstacle", flat=True).first() or "")


def remind(
    customer: Customer,
    link: SetupLink,
    *,
    actor: AbstractBaseUser | None = None,
    on_recorded: Callable[[TimelineEvent], object] = lambda event: None,
) -> str:
    """Send ``customer`` a reminder of ``link``, unless there is an obstacle, and return that; ""
    if it was sent. Of several processes that call this at the same moment, one sends it.

    Raise as ``emails.send_reminder`` does. The customer can be reminded then, unless the e-mail may
    have been sent.
    """
    if obstacle := find_obstacle(customer):
        return obstacle
    if not claim(link):
        return find_obstacle(customer) or Obstacle.RECENT
    try:
        emails.send_reminder(customer, link, actor=actor, on_recorded=on_recorded)
    except Error:
        raise  # it was sent, and could not be recorded
    except Exception as error:
        if classify_error(error) is not SendFailure.UNKNOWN:
            take_back(link)
        raise
    return ""


def take_back(link: SetupLink) -> None:
    """Undo ``claim``, for a reminder that was not sent."""
    links = SetupLink.objects.filter(pk=link.pk)
    change = partial(links.update, reminded_at=link.reminded_at)
    retry_on_conflict(change, in_transaction=False)
