"""The list of batches of invitations and reminders. A row leads to the page with its progress."""

from __future__ import annotations

from typing import Any, cast

from django.contrib import admin
from django.contrib.admin.exceptions import NotRegistered
from django.contrib.admin.views.main import ChangeList
from django.db.models import Exists, OuterRef, Q, QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.utils.html import format_html
from django.utils.safestring import SafeString

from ..models import Customer, Invitation, InvitationBatch, InvitationBatchQuerySet
from ..onboarding import invitations
from ..translation import gettext as _
from ..translation import gettext_lazy
from .base import ReadOnlyAdmin
from .display import EMPTY, badge, format_datetime
from .permissions import can_create_setup_links

Status, Email = Invitation.Status, Invitation.Email
State = InvitationBatch.State


class StateFilter(admin.SimpleListFilter):
    title = gettext_lazy("state")
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [
            *((state.value, str(state.label)) for state in State),
            ("failures", _("Finished with failures")),
        ]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        batches = cast(InvitationBatchQuerySet, queryset)
        rows = Invitation.objects.filter(batch=OuterRef("pk")).order_by()
        troubled = Exists(
            rows.filter(Q(status=Status.FAILED) | Q(email_status__in=[Email.FAILED, Email.UNKNOWN]))
        )
        match self.value():
            case State.FINISHED:
                return batches.in_states(State.FINISHED).exclude(troubled)
            case "failures":
                return batches.in_states(State.FINISHED).filter(troubled)
            case state if state in State.values:
                return batches.in_states(state)
        return queryset


@admin.register(InvitationBatch)
class InvitationBatchAdmin(ReadOnlyAdmin):
    list_display = [
        "started",
        "by",
        "purpose",
        "customers",
        "done",
        "failed",
        "left",
        "emails",
        "state",
    ]
    list_filter = [StateFilter, "purpose"]
    list_select_related = ["created_by"]

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        # The page of a batch is one of the customers' admin.
        customers = self.customer_admin()
        return (
            can_create_setup_links(request)
            and customers is not None
            and customers.has_view_or_change_permission(request)
        )

    def customer_admin(self) -> Any:
        """Return the ModelAdmin of customers in the same admin site, or None."""
        try:
            return self.admin_site.get_model_admin(Customer)
        except NotRegistered:
            return None

    def get_queryset(self, request: HttpRequest) -> QuerySet[InvitationBatch]:
        # A draft is its author's alone, and is forgotten unless it is started.
        batches = cast(InvitationBatchQuerySet, super().get_queryset(request))
        return batches.started()

    def get_changelist_instance(self, request: HttpRequest) -> ChangeList:
        changelist = super().get_changelist_instance(request)
        # All in one query; evaluated here, the queryset keeps the rows with their attribute.
        rows = list(changelist.result_list)
        progress = invitations.progress_of_many(rows)
        for row in rows:
            row.progress = progress[row.pk]
        return changelist

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        """Redirect to the page with the progress."""
        batch = self.get_object(request, object_id)
        if batch is None or not self.has_view_permission(request):
            raise Http404
        url = self.customer_admin().view_url("whatsapp_batch", batch.pk)
        return HttpResponseRedirect(url)

    # A method, since Django lets no date wrap.
    @admin.display(description=gettext_lazy("started"), ordering="started_at")
    def started(self, batch: Any) -> str:
        return format_datetime(batch.started_at)

    @admin.display(description=gettext_lazy("created by"))
    def by(self, batch: Any) -> str:
        return str(batch.created_by) if batch.created_by else EMPTY

    @admin.display(description=gettext_lazy("state"))
    def state(self, batch: Any) -> SafeString:
        state = invitations.find_state(batch, batch.progress)
        if state == State.STOPPED:
            reason = format_html('<span class="kapso-status-detail">{}</span>', batch.stopped)
            return format_html(
                '<span class="kapso-status">{}{}</span>', badge("bad", state.label), reason
            )
        if state != State.FINISHED:
            return badge("busy", state.label)
        if batch.progress.has_problems:
            return badge("bad", _("Finished with failures"))
        return badge("good", state.label)

    @admin.display(description=gettext_lazy("customers"))
    def customers(self, batch: Any) -> int:
        return int(batch.progress.total)

    @admin.display(description=gettext_lazy("done"))
    def done(self, batch: Any) -> int:
        return int(batch.progress.done)

    @admin.display(description=gettext_lazy("failed"))
    def failed(self, batch: Any) -> int:
        return int(batch.progress.failed)

    @admin.display(description=gettext_lazy("left"))
    def left(self, batch: Any) -> int:
        return int(batch.progress.left)

    @admin.display(description=gettext_lazy("e-mails"))
    def emails(self, batch: Any) -> str:
        if not batch.send_email:
            return EMPTY
        progress = batch.progress
        counts = [
            (_("%(count)s sent"), progress.emails_sent),
            (_("%(count)s failed"), progress.emails_failed),
            (_("%(count)s possibly sent"), progress.emails_unknown),
            (_("%(count)s without an address"), progress.no_address),
        ]
        return ", ".join(text % {"count": count} for text, count in counts if count) or "0"
