"""Creating setup links from the admin: choose the options, then watch the links being created."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from django.contrib import admin, messages
from django.contrib.admin import helpers
from django.core.exceptions import ImproperlyConfigured, PermissionDenied
from django.core.paginator import Paginator
from django.db.models import Count, Exists, OuterRef, Q, QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.http.response import HttpResponseBase
from django.shortcuts import get_object_or_404
from django.urls import NoReverseMatch, URLPattern
from django.views.generic import FormView, TemplateView

from .. import exceptions
from ..conf import get_conf
from ..models import Connection, Customer, Invitation, InvitationBatch, SetupLink
from ..onboarding import invitations, setup_links
from ..onboarding.connect_urls import connect_url
from ..onboarding.messages import staff_message
from ..translation import gettext as _
from ..translation import gettext_lazy
from ..utils import time_since, to_local_time, utc_now
from . import forms
from .base import AdminView
from .customer_data import CUSTOMERS_PER_QUERY, CustomerDataMixin
from .display import CONFIRMATION_ROWS, copy_field
from .history import log_changes
from .permissions import can_create_setup_links

BATCH_ROWS_PER_PAGE = 50

BATCH_WORK_SECONDS = 4.0
"""How long one request works on a batch, if there are no task workers."""

MAX_LOGGED_CUSTOMERS = 5000
"""The most customers of a batch that get an entry each in the admin's history."""

IDLE_BATCH_SECONDS = 30
"""How long due invitations may wait until the page says that no worker processes them."""

Status = Invitation.Status

SHOW_UNSENT = "unsent"
"""In the page's URL: show the invitations whose e-mail was not, or may not have been, sent."""


class InviteMixin(CustomerDataMixin):
    """Adds the action that creates setup links, and its pages, to a ModelAdmin."""

    def has_create_setup_link_permission(self, request: HttpRequest) -> bool:
        return can_create_setup_links(request)

    @admin.action(
        description=gettext_lazy("Create WhatsApp setup link"), permissions=["create_setup_link"]
    )
    def create_setup_links(
        self, request: HttpRequest, queryset: QuerySet[Any]
    ) -> HttpResponseRedirect | None:
        """Redirect to a new batch for ``queryset``; return None, with a message, if it is empty."""
        try:
            pks, problems = self.make_customers(queryset)
        except ImproperlyConfigured as error:  # get_customer_data returned something else
            self.message_user(request, str(error), messages.ERROR)
            return None
        for problem in problems[:CONFIRMATION_ROWS]:
            self.message_user(request, problem, messages.WARNING)
        batch = invitations.make_batch(pks, created_by=request.user)
        if not batch.invitations.exists():
            batch.delete()
            self.message_user(
                request, _("Select one or more rows in the list first."), messages.ERROR
            )
            return None
        return HttpResponseRedirect(self.view_url("whatsapp_batch", batch.pk))

    def get_urls(self) -> list[URLPattern]:
        return [
            self.view_path("whatsapp/<str:object_id>/invite/", InviteView, "whatsapp_invite"),
            self.view_path("whatsapp/batch/<int:pk>/", BatchView, "whatsapp_batch"),
            *super().get_urls(),
        ]


class InvitePermissionView(AdminView):
    """Base of the pages for those who may create setup links."""

    def has_permission(self) -> bool:
        may_create: bool = self.model_admin.has_create_setup_link_permission(self.request)
        return may_create and self.model_admin.has_view_or_change_permission(self.request)


class InviteView(InvitePermissionView):
    """Makes a draft batch for the object in its URL."""

    def post(self, request: HttpRequest, object_id: str) -> HttpResponse:
        obj = self.find_object(object_id)
        if obj is None:
            self.add_message(_("The customer has been deleted."), messages.ERROR)
            return self.redirect_to_changelist()
        if not self.model_admin.has_view_or_change_permission(request, obj):
            raise PermissionDenied
        queryset = self.model_admin.get_queryset(request).filter(pk=obj.pk)
        return (
            self.model_admin.create_setup_links(request, queryset) or self.redirect_to_changelist()
        )


class BatchView(InvitePermissionView):
    """Asks for the options of a draft; shows the progress of a batch that was started."""

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        batches = InvitationBatch.objects.select_related("created_by")
        batch = get_object_or_404(batches, pk=kwargs["pk"])
        view = ProgressView if batch.started_at else OptionsView
        return view.as_view(model_admin=self.model_admin, batch=batch)(request)


class OptionsView(InvitePermissionView, FormView):  # type: ignore[type-arg]
    """The options of a draft. Sent, they start the batch."""

    template_name = "admin/kapso_connect/invite/options.html"
    title = gettext_lazy("Create WhatsApp setup link")
    batch: Any = None

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        if self.batch.created_by_id != request.user.pk:
            # Its customers may be ones that this user may not view.
            raise Http404
        self.counts = count_customers(self.batch)
        if not self.counts["total"]:
            self.add_message(_("The customers have been deleted."), messages.ERROR)
            return self.redirect_to_changelist()
        try:
            setup_links.build_options(Customer(), None)
        except (ImproperlyConfigured, NoReverseMatch) as error:
            self.add_message(staff_message(error), messages.ERROR)
            return self.redirect_to_changelist()
        except exceptions.InvalidOptions:
            pass  # the form shows the option
        return super().dispatch(request, *args, **kwargs)

    def get_form(self, form_class: Any = None) -> forms.SetupLinkForm:
        can_send = self.request.user.has_perm("kapso_connect.send_setup_link")
        return forms.SetupLinkForm(
            self.request.POST if self.request.method == "POST" else None,
            get_conf().setup_link_defaults,
            recipients=self.counts["total"] - self.counts["without_email"] if can_send else None,
        )

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        context = super().get_context_data(counts=self.counts, **kwargs)
        form = context["form"]
        return {
            **context,
            "adminform": helpers.AdminForm(form, form.fieldsets(), {}),
            "rows": batch_customers(self.batch).order_by("invitations__pk")[:CONFIRMATION_ROWS],
            "more": max(self.counts["total"] - CONFIRMATION_ROWS, 0),
        }

    def form_valid(self, form: forms.SetupLinkForm) -> HttpResponse:
        invited = invitations.start(
            self.batch,
            options=form.options(),
            next_url=form.cleaned_data["next_url"],
            send_email=form.cleaned_data.get("send_email", False),
        )
        if invited:
            self.log_batch()
            work_now(self.batch)
        return HttpResponseRedirect(self.request.path)

    def log_batch(self) -> None:
        """Log in the admin's history of each customer and object who requested a link; if there
        are too many, only in that of the batch. The timelines have it in either case."""
        entry = _("Requested a WhatsApp setup link.")
        pks = list(
            self.batch.invitations.values_list("customer_id", flat=True)[: MAX_LOGGED_CUSTOMERS + 1]
        )
        if len(pks) > MAX_LOGGED_CUSTOMERS:
            log_changes(self.request, [self.batch], entry)
            return
        for start in range(0, len(pks), CUSTOMERS_PER_QUERY):
            customers = list(
                Customer.objects.filter(pk__in=pks[start : start + CUSTOMERS_PER_QUERY])
            )
            objs = self.model_admin.find_objects(self.request, customers).values()
            owners = [obj for obj in objs if not isinstance(obj, Customer)]
            log_changes(self.request, [*customers, *owners], entry)


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
            invitations.work(
                self.batch.pk, seconds=BATCH_WORK_SECONDS, budget=get_conf().api_budget
            )
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


def work_now(batch: InvitationBatch) -> None:
    """Work on the batch in this request if there are no task workers."""
    if not invitations.is_background():
        invitations.work(batch.pk, seconds=BATCH_WORK_SECONDS, budget=get_conf().api_budget)


def batch_customers(batch: InvitationBatch) -> QuerySet[Customer]:
    """Return the customers of a batch; ``is_connected`` and ``is_invited`` tell whether one has a
    connected number and a usable link."""
    numbers = Connection.objects.connected().filter(customer=OuterRef("pk"))
    links = SetupLink.objects.usable().filter(customer=OuterRef("pk"))
    return Customer.objects.filter(invitations__batch=batch).annotate(
        is_connected=Exists(numbers), is_invited=Exists(links)
    )


def count_customers(batch: InvitationBatch) -> dict[str, int]:
    """Return how many customers a batch has, and how many of them are connected, have a usable
    link, or have no e-mail address."""
    counts: dict[str, int] = batch_customers(batch).aggregate(
        total=Count("pk"),
        connected=Count("pk", filter=Q(is_connected=True)),
        with_link=Count("pk", filter=Q(is_invited=True)),
        without_email=Count("pk", filter=Q(email="")),
    )
    return counts
