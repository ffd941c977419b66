"""The page with the progress of a batch of invitations or reminders."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

from django.core.exceptions import ImproperlyConfigured, PermissionDenied
from django.core.paginator import Paginator
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.utils.formats import time_format
from django.views.generic import TemplateView

from ..models import Customer, Invitation, InvitationBatch
from ..onboarding import invitations
from ..onboarding.connect_urls import connect_url
from ..translation import gettext as _
from ..translation import ngettext
from ..utils import time_since, to_local_time
from .base import AdminView
from .customer_data import CUSTOMERS_PER_QUERY
from .display import copy_field, without_email_text
from .history import log_changes

BATCH_ROWS_PER_PAGE = 50

IDLE_BATCH_SECONDS = 30
"""How long due invitations may wait until the page says that no worker processes them."""

Status, Email = Invitation.Status, Invitation.Email

SHOWN: dict[str, dict[str, str]] = {
    **{status: {"status": status} for status in Status.values},
    "email_failed": {"email_status": Email.FAILED},
    "email_unknown": {"email_status": Email.UNKNOWN},
    "no_address": {"email_status": Email.NO_ADDRESS},
    "left_out": {"status": Status.DONE, "email_status": Email.NOT_SENT},
}
"""Which invitations the page shows, by ``show`` in its URL."""


class ProgressView(AdminView, TemplateView):
    """The progress of a batch that was started. A POST works on it, resumes it, or gives up what is
    left of one that stopped."""

    template_name = "admin/kapso_connect/invite/batch.html"
    batch: Any = None

    def has_permission(self) -> bool:
        model_admin, request = self.model_admin, self.request
        may_see = model_admin.has_create_setup_link_permission(request)
        if self.batch.is_reminder:
            may_see = may_see or model_admin.has_send_setup_link_permission(request)
        return may_see and bool(model_admin.has_view_or_change_permission(request))

    @property
    def can_resume(self) -> bool:
        """True if the user may do what the batch does: it may send e-mails."""
        may_send: bool = self.model_admin.has_send_setup_link_permission(self.request)
        return may_send or not self.batch.send_email

    def post(self, request: HttpRequest) -> HttpResponse:
        task = request.POST.get("do")
        if task in {"resume", "send"}:
            if not self.can_resume:
                raise PermissionDenied
            self.update_customers()
            if task == "send":
                invitations.send_failed_emails_again(self.batch)
                log_changes(request, [self.batch], _("Sent the failed e-mails again."))
            else:
                invitations.resume(self.batch)
                log_changes(request, [self.batch], _("Resumed the batch of invitations."))
            invitations.work_unless_background(self.batch)
        elif task == "give_up":
            if not self.can_resume:
                raise PermissionDenied
            if invitations.give_up(self.batch):
                log_changes(request, [self.batch], _("Gave up the rest of the batch."))
        elif task == "work":
            invitations.work_in_request(self.batch)
        return HttpResponseRedirect(request.get_full_path())

    def update_customers(self) -> None:
        """Read anew the customers whose e-mails failed: their addresses may have been corrected in
        the site's own objects."""
        failed = self.batch.invitations.email_failed()
        pks = list(failed.values_list("customer_id", flat=True))
        for start in range(0, len(pks), CUSTOMERS_PER_QUERY):
            customers = Customer.objects.filter(pk__in=pks[start : start + CUSTOMERS_PER_QUERY])
            objs = self.model_admin.find_objects(self.request, customers).values()
            rows = self.model_admin.get_queryset(self.request)
            with suppress(ImproperlyConfigured):
                self.model_admin.make_customers(rows.filter(pk__in=[obj.pk for obj in objs]))

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        batch, show = self.batch, self.request.GET.get("show", "")
        progress = invitations.progress(batch)
        is_running = bool(progress.left and not batch.stopped)
        works_here = is_running and not invitations.is_background()
        # How long until the next is due; negative since then, or since the batch was started.
        overdue = min(time_since(progress.due_at or batch.started_at), time_since(batch.started_at))
        wait = -overdue.total_seconds()
        is_unattended = is_running and not works_here and not progress.in_progress
        is_idle = is_unattended and wait < -IDLE_BATCH_SECONDS
        if batch.stopped:
            kind, headline = "errornote", batch.stopped
        elif is_running:
            kind = "kapso-note kapso-note-plain"
            headline = running_text(batch, progress, is_idle=is_idle, is_waiting=wait > 1)
        else:
            kind, headline = finished_text(batch, progress)
        rows = batch.invitations.select_related("customer", "setup_link").defer(
            "setup_link__url", "setup_link__options"
        )
        paginator = Paginator(
            rows.filter(**SHOWN.get(show, {})).order_by("pk"), BATCH_ROWS_PER_PAGE
        )
        page = paginator.get_page(self.request.GET.get("page"))
        return {
            **super().get_context_data(**kwargs),
            "title": _("WhatsApp reminders") if batch.is_reminder else _("WhatsApp setup links"),
            "batch": batch,
            "progress": progress,
            "kind": kind,
            "headline": headline,
            "is_running": is_running,
            "works_here": works_here,
            "is_idle": is_idle,
            "poll_ms": int(1000 * min(max(wait, 0.1), 10)) if works_here else 2000,
            "show": show,
            "filters": list(self.filters(progress)),
            "page": page,
            "pages": paginator.get_elided_page_range(page.number, on_each_side=2, on_ends=1),
            "rows": list(self.rows(page.object_list)),
        }

    def filters(self, progress: invitations.Progress) -> Iterator[tuple[str, Any, int]]:
        """Yield value, title and number of invitations of each choice of what is shown."""
        yield "", _("All"), progress.total
        yield Status.FAILED.value, Status.FAILED.label, progress.failed
        yield Status.DONE.value, Status.DONE.label, progress.done
        yield Status.PENDING.value, Status.PENDING.label, progress.left
        if progress.emails_failed:
            yield "email_failed", _("E-mail failed"), progress.emails_failed
        if progress.emails_unknown:
            yield "email_unknown", _("E-mail possibly sent"), progress.emails_unknown
        if progress.no_address:
            yield "no_address", _("No e-mail address"), progress.no_address
        if self.batch.send_email and progress.left_out:
            yield "left_out", _("Left out"), progress.left_out

    def rows(self, page: Iterable[Invitation]) -> Iterator[dict[str, Any]]:
        """Yield the invitations as the page shows them. ``obj`` is None if the user may not view
        the customer."""
        objs = self.model_admin.find_objects(self.request, [row.customer for row in page])
        may_see_urls = self.model_admin.has_create_setup_link_permission(self.request)
        for row in page:
            label = _("Setup link for %(customer)s") % {"customer": row.customer}
            url = connect_url(row.customer) if row.setup_link and may_see_urls else ""
            yield {
                "invitation": row,
                "obj": objs.get(row.customer_id),
                "customer_url": copy_field(url, label) if url else "",
                "has_ended": may_see_urls and row.setup_link is not None and not url,
                "is_left_out": self.batch.is_reminder
                and row.status == Status.DONE
                and row.email_status == Email.NOT_SENT,
            }


def running_text(
    batch: InvitationBatch, progress: invitations.Progress, *, is_idle: bool, is_waiting: bool
) -> str:
    """Return what a batch is doing, and whether the reader may leave its page."""
    if is_idle:
        return _(
            "No process is working on this. Ask whoever runs this site whether a task worker is "
            "running, or continue here."
        )
    if is_waiting and progress.due_at and (progress.emails_waiting or not batch.is_reminder):
        text = (
            _("The mail server does not accept all e-mails yet. Next attempt: %(when)s")
            if progress.emails_waiting
            else _("Kapso could not do the rest yet. Next attempt: %(when)s")
        ) % {"when": time_format(to_local_time(progress.due_at))}
    elif batch.is_reminder:
        text = _("The reminders are being sent.")
    else:
        text = _("The links are being created.")
    if not invitations.is_background():
        advice = _(
            "Keep this page open, for it does the work. If you leave it, kapso_sync goes on with "
            "it, where it runs regularly."
        )
    elif progress.in_progress:
        advice = _("You may leave this page and come back.")
    else:
        advice = _("A task worker does the work, if one is running.")
    return f"{text} {advice}"


def finished_text(batch: InvitationBatch, progress: invitations.Progress) -> tuple[str, str]:
    """Return the class and the text of the note that says how a batch ended."""
    problem, good, plain = "kapso-note", "kapso-note kapso-note-good", "kapso-note kapso-note-plain"
    if not progress.total:
        return plain, _("The customers have been deleted.")
    if progress.failed and batch.is_reminder:
        text = ngettext(
            "Finished, but %(count)s customer was not reminded.",
            "Finished, but %(count)s customers were not reminded.",
            progress.failed,
        )
        return problem, text % {"count": progress.failed}
    if progress.failed:
        text = ngettext(
            "Finished, but %(count)s customer has no link.",
            "Finished, but %(count)s customers have no link.",
            progress.failed,
        )
        return problem, text % {"count": progress.failed}
    if progress.emails_failed:
        text = ngettext(
            "Finished, but %(count)s e-mail could not be sent.",
            "Finished, but %(count)s e-mails could not be sent.",
            progress.emails_failed,
        )
        return problem, text % {"count": progress.emails_failed}
    if progress.emails_unknown:
        text = ngettext(
            "Finished, but it is not known whether %(count)s e-mail was sent.",
            "Finished, but it is not known whether %(count)s e-mails were sent.",
            progress.emails_unknown,
        )
        return problem, text % {"count": progress.emails_unknown}
    if not batch.is_reminder:
        text = _("Finished: every customer has a link.")
        if progress.no_address:
            text = f"{text} {without_email_text(progress.no_address)}"
        return good, text
    if not progress.emails_sent:
        return plain, _("Finished: there was nobody to remind.")
    text = ngettext(
        "Finished: %(count)s customer was reminded.",
        "Finished: %(count)s customers were reminded.",
        progress.emails_sent,
    )
    return good, text % {"count": progress.emails_sent}
