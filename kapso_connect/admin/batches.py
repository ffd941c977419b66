"""The progress of a batch of invitations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from django.core.exceptions import PermissionDenied
from django.core.paginator import Paginator
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.http.response import HttpResponseBase
from django.shortcuts import get_object_or_404
from django.views.generic import TemplateView

from ..models import Invitation, InvitationBatch
from ..onboarding import invitations
from ..onboarding.connect_urls import connect_url
from ..translation import gettext as _
from ..translation import gettext_lazy
from ..utils import time_since, to_local_time, utc_now
from .display import copy_field
from .history import log_changes
from .invite_options import InvitePermissionView, OptionsView, work_here, work_now

BATCH_ROWS_PER_PAGE = 50

IDLE_BATCH_SECONDS = 30
"""How long due invitations may wait until the page says that no worker processes them."""

Status = Invitation.Status

SHOW_UNSENT = "unsent"
"""In the page's URL: show the invitations whose e-mail was not, or may not have been, sent."""


class BatchView(InvitePermissionView):
    """Asks for the options of a draft; shows the progress of a batch that was started."""

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        batches = InvitationBatch.objects.select_related("created_by")
        batch = get_object_or_404(batches, pk=kwargs["pk"])
        view = ProgressView if batch.started_at else OptionsView
        return view.as_view(model_admin=self.model_admin, batch=batch)(request)


class ProgressView(InvitePermissionView, TemplateView):
    """The progress of a batch that was started. A POST works on it, or resumes it."""

    template_name = "admin/kapso_connect/invite/batch.html"
    title = gettext_lazy("WhatsApp setup links")
    batch: Any = None

    @property
    def can_resume(self) -> bool:
        """True if the user may do what the batch does: it may send e-mails."""
        return not self.batch.send_email or self.actor.has_perm("kapso_connect.send_setup_link")

    def post(self, request: HttpRequest) -> HttpResponse:
        if request.POST.get("do") == "resume":
            if not self.can_resume:
                raise PermissionDenied
            invitations.resume(self.batch)
            log_changes(request, [self.batch], _("Resumed the batch of invitations."))
            work_now(self.batch)
        elif request.POST.get("do") == "work":
            work_here(self.batch)
        return HttpResponseRedirect(request.get_full_path())

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        batch, show = self.batch, self.request.GET.get("show", "")
        progress = invitations.progress(batch)
        is_running = bool(progress.left and not batch.stopped)
        works_here = is_running and not invitations.is_background()
        # How long until the next is due; negative since then, or since the batch was started.
        overdue = min(time_since(progress.due_at or batch.started_at), time_since(batch.started_at))
        wait = -overdue.total_seconds()
        unsent = progress.emails_failed + progress.emails_unknown + progress.emails_waiting
        has_worker = batch.invitations.filter(leased_until__gt=utc_now()).exists()
        rows = batch.invitations.select_related("customer", "setup_link").defer(
            "setup_link__url", "setup_link__options"
        )
        if show in Status.values:
            rows = rows.filter(status=show)
        elif show == SHOW_UNSENT:
            rows = rows.exclude(email_error="")
        paginator = Paginator(rows.order_by("pk"), BATCH_ROWS_PER_PAGE)
        page = paginator.get_page(self.request.GET.get("page"))
        return {
            **super().get_context_data(**kwargs),
            "batch": batch,
            "progress": progress,
            "due_at": to_local_time(progress.due_at) if progress.due_at else None,
            "finished": progress.done + progress.failed,
            "is_running": is_running,
            "works_here": works_here,
            "is_waiting": is_running and wait > 1,
            "is_idle": (
                is_running and not works_here and not has_worker and wait < -IDLE_BATCH_SECONDS
            ),
            "poll_ms": int(1000 * min(max(wait, 0.1), 10)) if works_here else 2000,
            "show": show,
            "unsent": unsent,
            "filters": [
                ("", _("All"), progress.total),
                (Status.FAILED.value, Status.FAILED.label, progress.failed),
                (Status.DONE.value, Status.DONE.label, progress.done),
                (Status.PENDING.value, Status.PENDING.label, progress.left),
                *([(SHOW_UNSENT, _("Not e-mailed"), unsent)] if unsent else []),
            ],
            "page": page,
            "pages": paginator.get_elided_page_range(page.number, on_each_side=2, on_ends=1),
            "rows": list(self.rows(page.object_list)),
        }

    def rows(self, page: Iterable[Invitation]) -> Iterator[dict[str, Any]]:
        """Yield the invitations as the page shows them. ``obj`` is None if the user may not view
        the customer."""
        objs = self.model_admin.find_objects(self.request, [row.customer for row in page])
        for row in page:
            label = _("Setup link for %(customer)s") % {"customer": row.customer}
            url = connect_url(row.customer) if row.setup_link else ""
            yield {
                "invitation": row,
                "obj": objs.get(row.customer_id),
                "customer_url": copy_field(url, label) if url else "",
            }
