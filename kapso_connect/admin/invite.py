"""Creating setup links from the admin: choose the options, then watch the links being created."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from django.contrib import admin, messages
from django.contrib.admin import helpers
from django.contrib.admin.utils import quote, unquote
from django.core.exceptions import ImproperlyConfigured, PermissionDenied
from django.core.paginator import Paginator
from django.db.models import Count, Exists, OuterRef, Q, QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseNotAllowed
from django.http.response import HttpResponseRedirect
from django.shortcuts import get_object_or_404
from django.urls import NoReverseMatch, URLPattern
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from .. import exceptions
from ..conf import get_conf
from ..models import Connection, Customer, Invitation, InvitationBatch, SetupLink
from ..onboarding import invitations, setup_links
from ..onboarding.connect_urls import connect_url
from ..onboarding.messages import staff_message
from . import forms
from .base import MAX_SELECTED
from .customer_data import CUSTOMERS_PER_QUERY, CustomerDataMixin
from .display import CONFIRMATION_ROWS, badge, copy_field
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


class InviteViews(CustomerDataMixin):
    """Adds the action that creates setup links, and its pages, to a ModelAdmin."""

    def has_create_setup_link_permission(self, request: HttpRequest) -> bool:
        return can_create_setup_links(request)

    @admin.action(
        description=gettext_lazy("Create WhatsApp setup link"), permissions=["create_setup_link"]
    )
    def create_setup_links(
        self, request: HttpRequest, queryset: QuerySet[Any]
    ) -> HttpResponseRedirect | None:
        return self._draft_batch(request, queryset)

    def get_urls(self) -> list[URLPattern]:
        return [
            self.view_path("whatsapp/invite/", self.invite_view, "whatsapp_invite"),
            self.view_path("whatsapp/batch/<int:pk>/", self.batch_view, "whatsapp_batch"),
            *super().get_urls(),
        ]

    def _check_permissions(self, request: HttpRequest) -> None:
        allowed = self.has_create_setup_link_permission(request)
        if not allowed or not self.has_view_or_change_permission(request):
            raise PermissionDenied

    def invite_view(self, request: HttpRequest) -> HttpResponse:
        """Draft a batch for the objects whose ``ids`` are posted, quoted as in the admin's URLs."""
        self._check_permissions(request)
        if request.method != "POST":
            return HttpResponseNotAllowed(["POST"])
        ids = request.POST.get("ids", "").split(",", MAX_SELECTED)[:MAX_SELECTED]
        objs = [self.get_object(request, unquote(pk)) for pk in ids if pk and "\0" not in pk]
        pks = [obj.pk for obj in objs if obj and self.has_view_or_change_permission(request, obj)]
        return self._draft_batch(request, self.get_queryset(request).filter(pk__in=pks)) or (
            self.redirect_to_changelist()
        )

    def _draft_batch(
        self, request: HttpRequest, objs: QuerySet[Any]
    ) -> HttpResponseRedirect | None:
        """Redirect to a new batch for ``objs``; return None, with a message, if there are none."""
        pks, problems = self.make_customers(objs)
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

    def batch_view(self, request: HttpRequest, pk: int) -> HttpResponse:
        """Ask for the options of a draft; show the progress of a batch that was started."""
        self._check_permissions(request)
        batch = get_object_or_404(InvitationBatch.objects.select_related("created_by"), pk=pk)
        if batch.started_at is None:
            if batch.created_by_id != request.user.pk:
                # Its customers may be ones that this user may not view.
                raise Http404
            return self._options_view(request, batch)
        if request.method == "POST":
            if request.POST.get("do") == "resume":
                if not can_resume(request, batch):
                    raise PermissionDenied
                invitations.resume(batch)
                log_changes(request, [batch], _("Resumed the batch of invitations."))
                self._work_now(batch)
            elif request.POST.get("do") == "work":
                invitations.work(batch.pk, seconds=BATCH_WORK_SECONDS)
            return HttpResponseRedirect(request.get_full_path())
        return self._progress_page(request, batch)

    def _work_now(self, batch: InvitationBatch) -> None:
        """Work on the batch in this request if there are no task workers."""
        if not invitations.is_background():
            invitations.work(batch.pk, seconds=BATCH_WORK_SECONDS)

    def _options_view(self, request: HttpRequest, batch: InvitationBatch) -> HttpResponse:
        counts = count_customers(batch)
        if not counts["total"]:
            self.message_user(request, _("The customers have been deleted."), messages.ERROR)
            return self.redirect_to_changelist()
        can_send = request.user.has_perm("kapso_connect.send_setup_link")
        try:
            form = forms.SetupLinkForm(
                request.POST if request.method == "POST" else None,
                get_conf().setup_link_defaults,
                recipients=counts["total"] - counts["without_email"] if can_send else None,
            )
            setup_links.build_options(Customer(), None)
        except (ImproperlyConfigured, NoReverseMatch) as error:
            self.message_user(request, staff_message(error), messages.ERROR)
            return self.redirect_to_changelist()
        except exceptions.InvalidOptions:
            pass  # the form shows the option
        if request.method == "POST" and form.is_valid():
            invited = invitations.start(
                batch,
                options=form.options(),
                next_url=form.cleaned_data["next_url"],
                send_email=form.cleaned_data.get("send_email", False),
            )
            if invited:
                self._log_batch(request, batch)
                self._work_now(batch)
            return HttpResponseRedirect(self.view_url("whatsapp_batch", batch.pk))
        return self._options_page(request, batch, form, counts)

    def _log_batch(self, request: HttpRequest, batch: InvitationBatch) -> None:
        """Log in the admin's history of each customer and object who requested a link; if there
        are too many, only in that of the batch. The timelines have it in either case."""
        entry = _("Requested a WhatsApp setup link.")
        pks = list(
            batch.invitations.values_list("customer_id", flat=True)[: MAX_LOGGED_CUSTOMERS + 1]
        )
        if len(pks) > MAX_LOGGED_CUSTOMERS:
            log_changes(request, [batch], entry)
            return
        for start in range(0, len(pks), CUSTOMERS_PER_QUERY):
            customers = list(
                Customer.objects.filter(pk__in=pks[start : start + CUSTOMERS_PER_QUERY])
            )
            objs = self.find_objects(request, customers).values()
            log_changes(
                request,
                [*customers, *(obj for obj in objs if not isinstance(obj, Customer))],
                entry,
            )

    def _options_page(
        self,
        request: HttpRequest,
        batch: InvitationBatch,
        form: forms.SetupLinkForm,
        counts: dict[str, int],
    ) -> HttpResponse:
        delivery = [(_("Delivery"), {"fields": ["send_email"]})]
        fieldsets = [
            (None, {"fields": ["connection_types", "language", "next_url", "meta_billing_mode"]}),
            (
                _("A new number"),
                {
                    "fields": [
                        "provision_phone_number",
                        "phone_number_country_isos",
                        "phone_number_area_code",
                    ]
                },
            ),
            *(delivery if "send_email" in form.fields else []),
        ]
        return self.render_page(
            request,
            "invite/options",
            _("Create WhatsApp setup link"),
            form=form,
            adminform=helpers.AdminForm(form, fieldsets, {}),  # type: ignore[arg-type]
            rows=batch_customers(batch).order_by("invitations__pk")[:CONFIRMATION_ROWS],
            more=max(counts["total"] - CONFIRMATION_ROWS, 0),
            counts=counts,
        )

    def _progress_page(self, request: HttpRequest, batch: InvitationBatch) -> HttpResponse:
        progress = invitations.progress(batch)
        is_running = bool(progress.left and not batch.stopped)
        started = batch.started_at or timezone.now()
        wait = (max(progress.due_at or started, started) - timezone.now()).total_seconds()
        works_here = is_running and not invitations.is_background()
        has_worker = batch.invitations.filter(leased_until__gt=timezone.now()).exists()
        show = request.GET.get("show", "")
        rows = batch.invitations.select_related("customer", "setup_link").defer(
            "setup_link__url", "setup_link__options"
        )
        if show in Status.values:
            rows = rows.filter(status=show)
        page = Paginator(rows.order_by("pk"), BATCH_ROWS_PER_PAGE).get_page(request.GET.get("page"))
        return self.render_page(
            request,
            "invite/batch",
            _("WhatsApp setup links"),
            batch=batch,
            can_resume=can_resume(request, batch),
            progress=progress,
            finished=progress.done + progress.failed,
            is_running=is_running,
            works_here=works_here,
            is_waiting=is_running and wait > 1,
            is_idle=is_running and not works_here and not has_worker and wait < -IDLE_BATCH_SECONDS,
            poll_ms=int(1000 * min(max(wait, 0.1), 10)) if works_here else 2000,
            show=show,
            filters=[
                ("", _("All"), progress.total),
                (Status.FAILED.value, Status.FAILED.label, progress.failed),
                (Status.DONE.value, Status.DONE.label, progress.done),
                (Status.PENDING.value, Status.PENDING.label, progress.left),
            ],
            page=page,
            pages=page.paginator.get_elided_page_range(page.number, on_each_side=2, on_ends=1),
            rows=list(self._rows(request, batch, page.object_list)),
        )

    def _rows(
        self, request: HttpRequest, batch: InvitationBatch, rows: Iterable[Invitation]
    ) -> Iterator[dict[str, Any]]:
        objs = self.find_objects(request, [row.customer for row in rows])
        for row in rows:
            obj = objs.get(row.customer_id)
            if obj is None:
                yield {
                    "name": _("A customer you do not have permission to view"),
                    "state": invitation_badge(row),
                }
                continue
            url = connect_url(row.customer) if row.setup_link else ""
            label = _("Setup link for %(customer)s") % {"customer": row.customer}
            yield {
                "name": format_html(
                    '<a href="{}">{}</a>', self.view_url("change", quote(obj.pk)), obj
                ),
                "state": invitation_badge(row),
                "customer_url": copy_field(url, label) if url else "",
                "has_ended": row.setup_link is not None and not url,
                "copied_url": self.view_url("whatsapp_copied", quote(obj.pk)),
                "error": row.last_error if row.status != Status.DONE else "",
                "email": email_badge(row) if batch.send_email else "",
                "email_error": row.email_error,
            }


def can_resume(request: HttpRequest, batch: InvitationBatch) -> bool:
    """True if the user may do what the batch does: it may send e-mails."""
    return not batch.send_email or request.user.has_perm("kapso_connect.send_setup_link")


def invitation_badge(row: Invitation) -> SafeString:
    kinds = {Status.DONE: "good", Status.FAILED: "bad"}
    return badge(kinds.get(Status(row.status), "busy"), row.get_status_display())


def email_badge(row: Invitation) -> SafeString | str:
    kinds = {Invitation.Email.SENT: "good", Invitation.Email.FAILED: "bad"}
    kind = kinds.get(Invitation.Email(row.email_status), "neutral")
    text = _("E-mail: %(state)s") % {"state": row.get_email_status_display()}
    return badge(kind, text)


def batch_customers(batch: InvitationBatch) -> QuerySet[Customer]:
    """Return the customers of a batch; ``is_connected`` and ``is_invited`` tell whether one has a
    connected number and a usable link."""
    own = Connection.objects.filter(customer=OuterRef("pk"), status=Connection.Status.CONNECTED)
    links = SetupLink.objects.usable().filter(customer=OuterRef("pk"))
    return Customer.objects.filter(invitations__batch=batch).annotate(
        is_connected=Exists(own), is_invited=Exists(links)
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
