"""Work that is tried again when it failed: who works on it, and when the next attempt is due."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, ClassVar

from django.db import connections, models
from django.db.models import F, Q
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from .conf import get_conf
from .log import log_event


class Retryable(models.Model):
    """Work that one process at a time does, that is tried again when it failed, and not forever.

    ``next_attempt_at`` is when it is due. Whoever takes it moves that a lease ahead, so nobody
    else takes it meanwhile, and it is due again by itself when the taker died.
    NULL means nobody shall try: it is done, or it failed for good.
    """

    attempts = models.PositiveSmallIntegerField(_("attempts"), default=0)
    last_error = models.TextField(_("last error"), blank=True)
    next_attempt_at = models.DateTimeField(
        _("next attempt"), null=True, blank=True, default=timezone.now
    )
    leased_at = models.DateTimeField(
        _("taken"),
        null=True,
        blank=True,
        editable=False,
        help_text=_("Since when a process works on it."),
    )

    PERMANENTLY_FAILED: ClassVar[dict[str, Any]] = {"next_attempt_at": None, "leased_at": None}

    class Meta:
        abstract = True

    def take(self) -> bool:
        """Take this work for ``LEASE_SECONDS``; False where another process has it or it is done.

        One conditional UPDATE decides on every database; no lock is held afterwards. Work that
        ``RETRY_LIMIT`` processes died of is not given to another one: it has failed for good.
        """
        now = timezone.now()
        # The first attempt is always due: another machine's clock may be ahead of ours.
        if self.next_attempt_at is None or (self.attempts and self.next_attempt_at > now):
            return False
        mine = type(self)._default_manager.filter(
            pk=self.pk, next_attempt_at=self.next_attempt_at, attempts=self.attempts
        )
        if self.attempts >= get_conf().retry_limit:
            abandoned = mine.update(
                last_error=f"Tried {self.attempts} times; the last process did not live to tell.",
                **self.PERMANENTLY_FAILED,
            )
            if abandoned:
                kind = self._meta.model_name
                log_event("work.abandoned", kind=kind, row_id=self.pk, attempts=self.attempts)
            return False
        lease_ends = now + timedelta(seconds=get_conf().lease_seconds)
        taken = mine.update(next_attempt_at=lease_ends, leased_at=now, attempts=F("attempts") + 1)
        if taken:
            self._set_lease(now, lease_ends)
        return bool(taken)

    @classmethod
    def lease_due(cls, rows: models.QuerySet[Any]) -> list[Any]:
        """Take those of ``rows``, which are due, that no other process is just taking: ``take`` for
        many in one UPDATE. Call it in a transaction."""
        skip_locked = connections[rows.db].features.has_select_for_update_skip_locked
        found = list(rows.select_for_update(skip_locked=skip_locked))
        taken = [row for row in found if row.attempts < get_conf().retry_limit]
        for row in found:
            if row not in taken:
                row.take()  # gives it up
        now = timezone.now()
        lease_ends = now + timedelta(seconds=get_conf().lease_seconds)
        cls._default_manager.filter(pk__in=[row.pk for row in taken]).update(
            next_attempt_at=lease_ends, leased_at=now, attempts=F("attempts") + 1
        )
        for row in taken:
            row._set_lease(now, lease_ends)
        return taken

    def lease_new(self) -> None:
        """Take work that is about to be written, as ``take`` does with what is there: its process
        sets about it as soon as it is committed. Does not save."""
        now = timezone.now()
        self._set_lease(now, now + timedelta(seconds=get_conf().lease_seconds))

    def _set_lease(self, now: datetime, lease_ends: datetime) -> None:
        self.next_attempt_at = lease_ends
        self.leased_at = now
        self.attempts += 1

    def schedule_retry(self, error: str) -> None:
        """Note why an attempt failed and when the next one is due; none after ``RETRY_LIMIT``.

        The delays double from 15 seconds to an hour. Does not save.
        """
        self.last_error = error
        self.leased_at = None
        if self.attempts >= get_conf().retry_limit:
            self.next_attempt_at = None
        else:
            delay = min(15 * 2 ** max(self.attempts - 1, 0), 3600)
            self.next_attempt_at = timezone.now() + timedelta(seconds=delay)


def due() -> Q:
    """The condition for Retryable rows that somebody should work on now."""
    return Q(next_attempt_at__lte=timezone.now())


def idle() -> Q:
    """The condition for Retryable rows that nobody works on."""
    return Q(leased_at=None) | due()
