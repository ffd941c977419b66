"""The base of the pages of a draft: a batch that was not started."""

from __future__ import annotations

from typing import Any

from django.contrib import messages
from django.core.exceptions import ImproperlyConfigured
from django.http import Http404, HttpRequest, HttpResponseRedirect
from django.http.response import HttpResponseBase
from django.urls import NoReverseMatch

from .. import exceptions
from ..models import Customer
from ..onboarding import invitations, setup_links
from ..onboarding.messages import staff_message
from ..translation import gettext as _
from .base import AdminView
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
        invitations.work_unless_background(self.batch)
