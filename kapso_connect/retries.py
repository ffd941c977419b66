"""Work that is retried when it fails: which worker holds it, and when the next attempt is due."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, ClassVar

from django.db import connections, models
from django.db.models import F, Q
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from .conf import get_conf
from .log import log_event

FIRST_RETRY_DELAY = 15
"""Seconds to wait after the first failed attempt. The wait doubles with every further one."""

MAX_RETRY_DELAY = 3600
"""Seconds."""


class Retryable(models.Model):
    """Work that one worker at a time does, and that is retried a limited number of times.

    ``next_attempt_at`` is when it is due. A worker acquires a lease by moving that time ahead, so
    no other worker starts on it; if the worker dies, the work becomes due again by itself.
    NULL means that no further attempt is made: it is done, or it failed permanently.
    """

    attempts = models.PositiveSmallIntegerField(_("attempts"), default=0)
    last_error = models.TextField(_("last error"), blank=True)
    next_attempt_at = models.DateTimeField(
        _("next attempt"), null=True, blank=True, default=timezone.now
    )
    leased_at = models.DateTimeField(
        _("in progress since"),
        null=True,
        blank=True,
        editable=False,
        help_text=_("When a worker started on it. Empty while no worker is on it."),
    )

    PERMANENTLY_FAILED: ClassVar[dict[str, Any]] = {"next_attempt_at": None, "leased_at": None}
    """The fields that are set when the work is abandoned."""

    class Meta:
        abstract = True

    def acquire_lease(self) -> bool:
        """Reserve this work for ``LEASE_SECONDS``, counting an attempt. Return True on success.

        Return False if another worker holds it, if it is not due, and if it is done.
        One conditional UPDATE decides, on every database; no lock is held afterwards. Work whose
        workers stopped ``RETRY_LIMIT`` times without recording a result fails permanently instead.
        """
        now = timezone.now()
        # The first attempt is always due: another machine's clock may be ahead of ours.
        if self.next_attempt_at is None or (self.attempts and self.next_attempt_at > now):
            return False
        unchanged = type(self)._default_manager.filter(
            pk=self.pk, next_attempt_at=self.next_attempt_at, attempts=self.attempts
        )
        if self.attempts >= get_conf().retry_limit:
            self._abandon(unchanged)
            return False
        lease_ends = _end_of_lease(now)
        acquired = unchanged.update(
            next_attempt_at=lease_ends, leased_at=now, attempts=F("attempts") + 1
        )
        if acquired:
            self._set_lease(now, lease_ends)
        return bool(acquired)

    def _abandon(self, unchanged: models.QuerySet[Any]) -> None:
        abandoned = unchanged.update(
            last_error=f"Gave up after {self.attempts} attempts: "
            "each worker stopped while processing it.",
            **self.PERMANENTLY_FAILED,
        )
        if abandoned:
            kind = self._meta.model_name
            log_event("work.abandoned", kind=kind, row_id=self.pk, attempts=self.attempts)

    @classmethod
    def lease_due(cls, rows: models.QuerySet[Any]) -> list[Any]:
        """Acquire the leases of ``rows``, all of them due, in one UPDATE, and return those rows.

        Rows that another worker is acquiring at this moment are left out. Call it in a transaction.
        """
        skip_locked = connections[rows.db].features.has_select_for_update_skip_locked
        found = list(rows.select_for_update(skip_locked=skip_locked))
        leased = [row for row in found if row.attempts < get_conf().retry_limit]
        for row in found:
            if row not in leased:
                row.acquire_lease()  # abandons it
        now = timezone.now()
        lease_ends = _end_of_lease(now)
        cls._default_manager.filter(pk__in=[row.pk for row in leased]).update(
            next_attempt_at=lease_ends, leased_at=now, attempts=F("attempts") + 1
        )
        for row in leased:
            row._set_lease(now, lease_ends)
        return leased

    def lease_new(self) -> None:
        """Acquire the lease of a row that is not written yet, for the process that writes it.

        That process starts on it right after the commit. Does not save.
        """
        now = timezone.now()
        self._set_lease(now, _end_of_lease(now))

    def _set_lease(self, now: datetime, lease_ends: datetime) -> None:
        self.next_attempt_at = lease_ends
        self.leased_at = now
        self.attempts += 1

    def schedule_retry(self, error: str) -> None:
        """Record why an attempt failed and set when the next one is due. Does not save.

        The delay grows from ``FIRST_RETRY_DELAY`` to ``MAX_RETRY_DELAY``. After ``RETRY_LIMIT``
        attempts there is no next one.
        """
        self.last_error = error
        self.leased_at = None
        if self.attempts >= get_conf().retry_limit:
            self.next_attempt_at = None
        else:
            delay = min(FIRST_RETRY_DELAY * 2 ** max(self.attempts - 1, 0), MAX_RETRY_DELAY)
            self.next_attempt_at = timezone.now() + timedelta(seconds=delay)


def _end_of_lease(now: datetime) -> datetime:
    return now + timedelta(seconds=get_conf().lease_seconds)


def due() -> Q:
    """Return the condition for Retryable rows whose next attempt is due."""
    return Q(next_attempt_at__lte=timezone.now())


def not_leased() -> Q:
    """Return the condition for Retryable rows that no worker holds."""
    return Q(leased_at=None) | due()
