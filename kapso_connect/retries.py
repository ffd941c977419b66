"""Work that one process at a time does (a lease), and that is retried when it fails."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, ClassVar, TypeVar

from django.conf import settings
from django.db import connections, models
from django.db.models import F, Q
from django.utils import timezone

from .conf import get_conf
from .fields import InstantField
from .log import log_event
from .querysets import PrimaryQuerySet
from .translation import gettext_lazy as _
from .utils import utc_now

FIRST_RETRY_DELAY = 15
"""Seconds to wait after the first failed attempt. The wait doubles with every further one."""

MAX_RETRY_DELAY = 3600
"""Seconds."""

LeasedT = TypeVar("LeasedT", bound="Leased")
RetryableT = TypeVar("RetryableT", bound="Retryable")


def not_leased() -> Q:
    """Return the condition for rows that no process is working on."""
    return Q(leased_until=None) | Q(leased_until__lte=utc_now())


class LeasedQuerySet(PrimaryQuerySet[LeasedT]):
    def not_leased(self) -> LeasedQuerySet[LeasedT]:
        """Return the rows that no process is working on."""
        return self.filter(not_leased())

    def acquire_lease(self, seconds: float, **changes: Any) -> datetime | None:
        """Reserve these rows for ``seconds``, and make ``changes`` with it.

        Return when the lease ends, or None if another process holds it, or if there is no such row.
        One conditional UPDATE decides, on every database; no lock is held afterwards. If the
        process dies, the rows are free again once the lease has ended.
        """
        now = utc_now()
        end = now + timedelta(seconds=seconds)
        acquired = self.not_leased().update(leased_at=now, leased_until=end, **changes)
        return end if acquired else None

    def release_lease(self, **changes: Any) -> int:
        """End the lease, and make ``changes`` with it. Return the number of rows."""
        return self.update(leased_at=None, leased_until=None, **changes)


class Leased(models.Model):
    """A row that one process at a time works on."""

    leased_at = InstantField(
        _("in progress since"),
        null=True,
        blank=True,
        editable=False,
        help_text=_("When a process started to work on it. Empty while none does."),
    )
    leased_until = InstantField(
        _("in progress until"),
        null=True,
        blank=True,
        editable=False,
        help_text=_("From then on another process may work on it: the first one has died."),
    )

    class Meta:
        abstract = True

    @property
    def is_leased(self) -> bool:
        """True while a process works on it."""
        return self.leased_until is not None and self.leased_until > utc_now()


class RetryableQuerySet(LeasedQuerySet[RetryableT]):
    def due(self) -> RetryableQuerySet[RetryableT]:
        """Return the rows that a process can work on now: their time has come, and no other process
        is at it."""
        return self.filter(not_leased(), next_attempt_at__lte=utc_now())

    def lease_due(self, count: int) -> list[RetryableT]:
        """Acquire the leases of up to ``count`` rows that are due, and return those rows.

        Rows that another process is acquiring at this moment are left out. Call it in a
        transaction.
        """
        skip_locked = connections[self.db].features.has_select_for_update_skip_locked
        found = list(self.due().select_for_update(skip_locked=skip_locked)[:count])
        leased = [row for row in found if not row.abandon_if_exhausted()]
        lease = _new_lease()
        for row in leased:
            row.set_lease(lease)
        self.model._default_manager.filter(pk__in=[row.pk for row in leased]).update(
            **lease, attempts=F("attempts") + 1
        )
        return leased

    def renew_leases(self, leased_at: datetime) -> set[int]:
        """Hold for ``LEASE_SECONDS`` from now those of these rows whose leases began at
        ``leased_at``. Return their keys; other processes have taken over the remaining ones."""
        held = self.filter(leased_at=leased_at)
        held.update(leased_until=_new_lease()["leased_until"])
        return set(held.values_list("pk", flat=True))

    def retry_now(self, **changes: Any) -> int:
        """Make the rows that no process is working on due now, with the full number of attempts
        again, and make ``changes`` with it. Return the number of rows."""
        return self.not_leased().update(next_attempt_at=utc_now(), attempts=0, **changes)


class Retryable(Leased):
    """Work that is retried a limited number of times.

    ``next_attempt_at`` is when it is due. NULL means that no further attempt is made: it is done,
    or it failed permanently.
    """

    attempts = models.PositiveSmallIntegerField(_("attempts"), default=0)
    last_error = models.TextField(_("last error"), blank=True)
    next_attempt_at = InstantField(
        _("next attempt"), null=True, blank=True, default=utc_now, editable=False
    )

    PERMANENTLY_FAILED: ClassVar[dict[str, Any]] = {
        "next_attempt_at": None,
        "leased_at": None,
        "leased_until": None,
    }
    """The fields that are set when the work is abandoned."""

    class Meta:
        abstract = True

    def acquire_lease(self) -> bool:
        """Reserve this work for ``LEASE_SECONDS``, counting an attempt. Return True on success.

        Return False if another process holds it, if it is not due, and if it is done. Work whose
        processes died ``RETRY_LIMIT`` times without recording a result fails permanently instead.
        """
        # The first attempt is always due: another machine's clock may be ahead of ours.
        if self.next_attempt_at is None or (self.attempts and self.next_attempt_at > utc_now()):
            return False
        if self.is_leased or self.abandon_if_exhausted():
            return False
        lease, free = _new_lease(), self._unchanged().not_leased()
        if not free.update(**lease, attempts=F("attempts") + 1):
            return False
        self.set_lease(lease)
        return True

    def lease_held(self) -> Any:
        """Return this row, if no other process has taken its lease over."""
        return type(self)._default_manager.filter(
            pk=self.pk, leased_at=self.leased_at, attempts=self.attempts
        )

    def renew_lease(self, **changes: Any) -> bool:
        """Hold the lease for ``LEASE_SECONDS`` from now, and make ``changes`` with it.

        Return False if another process has taken it over: the work is that one's then. Call it
        before each part of the work that may take long.
        """
        end = _new_lease()["leased_until"]
        if not self.lease_held().update(leased_until=end, **changes):
            return False
        self.leased_until = end
        return True

    def set_lease(self, lease: Mapping[str, datetime] | None = None) -> None:
        """Set the lease of a row that this process is about to write, or the ``lease`` that it has
        just acquired. Does not save."""
        for name, moment in (lease or _new_lease()).items():
            setattr(self, name, moment)
        self.attempts += 1

    def abandon_if_exhausted(self) -> bool:
        """Return whether ``RETRY_LIMIT`` attempts ended without a result; it has failed then."""
        if self.attempts < get_conf().retry_limit:
            return False
        abandoned = self._unchanged().update(
            last_error=f"Gave up after {self.attempts} attempts: "
            "each worker stopped while processing it.",
            **self.PERMANENTLY_FAILED,
        )
        if abandoned:
            kind = self._meta.model_name
            log_event("work.abandoned", kind=kind, row_id=self.pk, attempts=self.attempts)
        return True

    def _unchanged(self) -> Any:
        """Return this row, if no other process has worked on it since it was read."""
        return type(self)._default_manager.filter(
            pk=self.pk, next_attempt_at=self.next_attempt_at, attempts=self.attempts
        )

    def schedule_retry(self, error: str) -> None:
        """Record why an attempt failed and set when the next one is due. Does not save.

        The delay grows from ``FIRST_RETRY_DELAY`` to ``MAX_RETRY_DELAY``. After ``RETRY_LIMIT``
        attempts there is no next one.
        """
        self.last_error = error
        self.leased_at = self.leased_until = None
        if self.attempts >= get_conf().retry_limit:
            self.next_attempt_at = None
        else:
            delay = min(FIRST_RETRY_DELAY * 2 ** max(self.attempts - 1, 0), MAX_RETRY_DELAY)
            self.next_attempt_at = utc_now() + timedelta(seconds=delay)

    def finish(self) -> None:
        """Record that no further attempt is needed. Does not save."""
        self.next_attempt_at = self.leased_at = self.leased_until = None


NOT_DISMISSED: dict[str, Any] = {
    "dismissed_at": None,
    "dismissed_by": None,
    "dismissed_because": "",
}
"""The fields that are set when a dismissal is taken back."""


class DismissableQuerySet(RetryableQuerySet[RetryableT]):
    def dismiss(self, *, by: Any, because: str) -> int:
        """Record that the member of staff ``by`` dismisses these rows, and why. Return the number
        of rows. Call it on rows that have failed: one UPDATE decides which of them still have."""
        return self.update(dismissed_at=timezone.now(), dismissed_by=by, dismissed_because=because)

    def retry_now(self, **changes: Any) -> int:
        """Like ``RetryableQuerySet.retry_now``. Takes dismissals back."""
        return super().retry_now(**NOT_DISMISSED, **changes)

    def dismissed(self) -> DismissableQuerySet[RetryableT]:
        """Return the rows that a member of staff has dismissed."""
        return self.filter(dismissed_at__isnull=False)


class Dismissable(Retryable):
    """Work that failed permanently, and that a member of staff may dismiss: it needs no attention
    any more. Running it again takes that back."""

    dismissed_at = models.DateTimeField(_("dismissed"), null=True, blank=True, editable=False)
    dismissed_by = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        on_delete=models.SET_NULL,
        null=True,
        blank=True,
        editable=False,
        related_name="+",
        verbose_name=_("dismissed by"),
    )
    dismissed_because = models.CharField(
        _("why dismissed"), max_length=200, blank=True, editable=False
    )

    class Meta:
        abstract = True


def _new_lease() -> dict[str, datetime]:
    """Return the fields of a lease of ``LEASE_SECONDS`` that begins now."""
    now = utc_now()
    return {"leased_at": now, "leased_until": now + timedelta(seconds=get_conf().lease_seconds)}
