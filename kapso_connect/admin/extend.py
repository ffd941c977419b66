"""The form that extends a setup link."""

from __future__ import annotations

from datetime import date, datetime, time, timedelta
from typing import Any

from django import forms
from django.core.exceptions import ValidationError
from django.http import QueryDict
from django.utils.formats import date_format
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from ..utils import from_local_time, to_local_time, today

MAX_DAYS = 365
"""Kapso names no limit; a link that works for years is one that somebody finds."""


class ExtendForm(forms.Form):
    """The last day on which a link shall work: later than so far, and within ``MAX_DAYS``."""

    until = forms.DateField(
        label=gettext_lazy("Last day"),
        widget=forms.DateInput(format="%Y-%m-%d", attrs={"type": "date"}),
        # What <input type="date"> sends, in every language.
        input_formats=["%Y-%m-%d"],
        error_messages={"invalid": gettext_lazy("Enter a date, such as 2031-12-24.")},
    )

    def __init__(self, data: QueryDict | None, *, expires_at: datetime) -> None:
        self.ends = expires_at
        self.expires_at = to_local_time(expires_at)
        self.last = today() + timedelta(days=MAX_DAYS)
        super().__init__(data, initial={"until": self.day_after(30)}, label_suffix="")
        limits = {"min": self.expires_at.date().isoformat(), "max": self.last.isoformat()}
        self.fields["until"].widget.attrs |= limits

    def day_after(self, days: int) -> date:
        """Return the day so many after that on which the link ends so far."""
        return min(self.expires_at.date() + timedelta(days=days), self.last)

    def clean_until(self) -> Any:
        until = self.cleaned_data["until"]
        if until > self.last:
            raise ValidationError(
                _("Choose a day up to %(date)s.") % {"date": date_format(self.last)}
            )
        if end_of(until) <= self.ends:
            raise ValidationError(
                _("The link works until %(date)s already. Choose a later day.")
                % {"date": date_format(self.expires_at)}
            )
        return until


def end_of(day: date) -> datetime:
    """Return the last moment of a day here, as this site's clock has it."""
    return from_local_time(datetime.combine(day, time(23, 59, 59)))
