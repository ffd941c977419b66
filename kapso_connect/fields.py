"""A model field for moments that do not depend on the site's time zone."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

from django.core.exceptions import ValidationError
from django.db import models
from django.utils.dateparse import parse_datetime

from .utils import as_aware

EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


class InstantField(models.Field):  # type: ignore[type-arg]
    """A moment: an aware datetime in UTC, with USE_TZ on or off.

    With USE_TZ off, a DateTimeField holds local times, of which an hour happens twice when clocks
    are put back. This field is stored as the number of microseconds since 1970 in UTC. A naive
    datetime that is assigned or compared with it is taken as local time, in TIME_ZONE.
    """

    description = "Date and time in UTC"

    def get_internal_type(self) -> str:
        return "BigIntegerField"

    def from_db_value(self, value: int | None, *args: Any) -> datetime | None:
        return None if value is None else EPOCH + timedelta(microseconds=value)

    def to_python(self, value: Any) -> datetime | None:
        if value is None:
            return None
        moment = value if isinstance(value, datetime) else parse_datetime(str(value))
        if moment is None:
            raise ValidationError(f"{value!r} is not a date and time in ISO format.")
        return as_aware(moment)

    def get_prep_value(self, value: Any) -> Any:
        moment = self.to_python(super().get_prep_value(value))
        return None if moment is None else (moment - EPOCH) // timedelta(microseconds=1)

    def value_to_string(self, obj: Any) -> str:
        moment = self.to_python(self.value_from_object(obj))
        return "" if moment is None else moment.isoformat()
