"""Drafts of batches: the base of their pages, and how many of their customers would be left out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from django.contrib import messages
from django.core.exceptions import ImproperlyConfigured
from django.db.models import Count, Exists, OuterRef, Q, QuerySet
from django.http import Http404, HttpRequest, HttpResponseRedirect
from django.http.response import HttpResponseBase
from django.urls import NoReverseMatch

from .. import exceptions
from ..models import Connection, Customer, InvitationBatch, SetupLink
from ..onboarding import setup_links
from ..onboarding.messages import staff_message
from ..translation import gettext as _
from .base import AdminView
from .batch_progress import work_now
from .history import log_batch


class DraftView(AdminView):
    """Base of the pages that start ``batch``."""

    batch: Any = None
    shows_options = False
    """Whether the page lets staff correct the options."""

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        if self.batch.created_by_id != request.user.pk:
            # Its customers may be ones that this user may not view.
            raise Http404
        if not self.batch.invitations.exists():
            return self.refuse(_("The customers have been deleted."))
        try:
            setup_links.build_options(Customer(), None)  # personal links need the same settings
        except (ImproperlyConfigured, NoReverseMatch) as error:
            return self.refuse(staff_message(error))
        except exceptions.InvalidOptions as error:
            if not self.shows_options:
                return self.refuse(staff_message(error))
        return super().dispatch(request, *args, **kwargs)

    def refuse(self, text: str) -> HttpResponseRedirect:
        self.add_message(text, messages.ERROR)
        return self.redirect_to_changelist()

    def record_start(self, entry: str) -> None:
        """Add ``entry`` to the customers' history, and begin the work if there are no workers."""
        log_batch(self.model_admin, self.request, self.batch, entry)
        work_now(self.batch)


@dataclass(frozen=True)
class Counts:
    """How many customers there are, and how many of them have an e-mail address."""

    total: int
    with_email: int


class DraftCustomers:
    """The customers of ``batch``, counted in one query."""

    def __init__(self, batch: InvitationBatch) -> None:
        customers: Any = batch_customers(batch)
        groups = customers.order_by().values("is_connected", "is_invited")
        self._groups = list(
            groups.annotate(total=Count("pk"), with_email=Count("pk", filter=~Q(email="")))
        )
        everybody = self.count()
        self.total, self.with_email = everybody.total, everybody.with_email
        self.connected = self._sum("total", lambda group: group["is_connected"])
        self.invited = self._sum("total", lambda group: group["is_invited"])

    def count(self, *, without_connected: bool = False, without_invited: bool = False) -> Counts:
        """Return how many customers are left without those who are connected, or have a link that
        can be used."""

        def is_left(group: Any) -> bool:
            return not (
                (without_connected and group["is_connected"])
                or (without_invited and group["is_invited"])
            )

        return Counts(self._sum("total", is_left), self._sum("with_email", is_left))

    def _sum(self, name: str, condition: Callable[[Any], bool]) -> int:
        return sum(group[name] for group in self._groups if condition(group))


def batch_customers(batch: InvitationBatch) -> QuerySet[Customer]:
    """Return the customers of a batch; ``is_connected`` and ``is_invited`` tell whether one has a
    connected number and a usable link."""
    numbers = Connection.objects.connected().filter(customer=OuterRef("pk"))
    links = SetupLink.objects.usable().filter(customer=OuterRef("pk"))
    return Customer.objects.filter(invitations__batch=batch).annotate(
        is_connected=Exists(numbers), is_invited=Exists(links)
    )
