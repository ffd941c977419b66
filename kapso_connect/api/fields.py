"""Serializer fields that accept only their own JSON type, and times in UTC."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django.utils.dateparse import parse_datetime
from rest_framework import serializers
from rest_framework.fields import empty

from ..text import one_line
from ..utils import as_aware, as_stored

MAX_ID = 2**53 - 1
"""The largest whole number that JavaScript has exactly."""

OPEN_CHOICES = "Later versions may add values: treat one that you do not know as something new."


def is_primary_key(text: str) -> bool:
    """Return whether ``text``, a part of a URL, can be a primary key."""
    return text.isascii() and text.isdigit() and len(text) <= 16


class StrictCharField(serializers.CharField):
    """A text. ``pattern`` is what the schema says of it; the field does not check it."""

    def __init__(self, *, pattern: str = "", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.pattern = pattern

    def to_internal_value(self, data: Any) -> str:
        if not isinstance(data, str):
            self.fail("invalid")
        return super().to_internal_value(data)


class NameField(StrictCharField):
    """A name, without line breaks and invisible characters."""

    def to_internal_value(self, data: Any) -> str:
        name = one_line(super().to_internal_value(data))
        if not name:
            self.fail("blank")
        return name


class StrictEmailField(serializers.EmailField):
    def to_internal_value(self, data: Any) -> str:
        if not isinstance(data, str):
            self.fail("invalid")
        return super().to_internal_value(data)


class NullableTextMixin(serializers.Field[Any, Any, Any, Any]):
    """For a text that is stored as "" where there is none: null in requests and responses."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_null=True, **kwargs)

    def run_validation(self, data: Any = empty) -> Any:
        value = super().run_validation(data)
        return "" if value is None else value

    def to_representation(self, value: Any) -> Any:
        return super().to_representation(value) if value else None


class NullableCharField(NullableTextMixin, StrictCharField):
    pass


class NullableEmailField(NullableTextMixin, StrictEmailField):
    pass


class StrictBooleanField(serializers.BooleanField):
    def to_internal_value(self, data: Any) -> bool:
        if not isinstance(data, bool):
            self.fail("invalid", input=data)
        return data


class ChoiceField(serializers.ChoiceField):
    """One of some texts. The schema calls these choices ``component``.

    If it ``is_open``, responses may have other texts in the future, and the schema says so.
    """

    def __init__(self, component: str, choices: Any, *, is_open: bool = False, **kw: Any) -> None:
        super().__init__(choices, **kw)
        self.component = component
        self.is_open = is_open
        if is_open:
            self.help_text = f"{self.help_text} {OPEN_CHOICES}"

    def to_internal_value(self, data: Any) -> Any:
        if not isinstance(data, str):
            self.fail("invalid_choice", input=data)
        return super().to_internal_value(data)


class NullableChoiceField(NullableTextMixin, ChoiceField):
    pass


class IdField(serializers.IntegerField):
    """A primary key."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"min_value": 1, "max_value": MAX_ID, **kwargs})

    def to_internal_value(self, data: Any) -> int:
        if isinstance(data, bool) or not isinstance(data, int):
            self.fail("invalid")
        return super().to_internal_value(data)


class IntegerParameter(IdField):
    """A positive integer in the query string."""

    def to_internal_value(self, data: Any) -> int:
        if not (isinstance(data, str) and is_primary_key(data)):
            self.fail("invalid")
        return super().to_internal_value(int(data))


class UtcDateTimeField(serializers.DateTimeField):
    """A time with its offset from UTC (RFC 3339); output in UTC, whatever the site's settings."""

    def to_internal_value(self, value: Any) -> datetime:
        try:
            moment = parse_datetime(value) if isinstance(value, str) else None
        except ValueError:
            moment = None
        # Not every database and platform can store times outside these years.
        if moment is None or moment.tzinfo is None or not 1900 < moment.year < 9000:
            self.fail("invalid", format="2026-01-31T12:00:00Z")
        return as_stored(moment)

    def to_representation(self, value: Any) -> str:
        moment = as_aware(value)
        return moment.isoformat().replace("+00:00", "Z")
