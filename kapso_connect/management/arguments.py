"""What several commands share about their arguments."""

from __future__ import annotations

import re
from argparse import ArgumentTypeError
from collections.abc import Callable, Sequence
from typing import Any

from django.core.exceptions import ObjectDoesNotExist, ValidationError
from django.core.management.base import CommandError


def whole_number(unit: str, maximum: int) -> Callable[[str], int]:
    """Return an argument type: a whole number of a unit, such as days, from 1 to ``maximum``."""

    def parse(text: str) -> int:
        if not re.fullmatch("[0-9]{1,6}", text) or not 1 <= int(text) <= maximum:
            raise ArgumentTypeError(f"must be a whole number of {unit}, 1 to {maximum}")
        return int(text)

    return parse


def check_ids(manager: Any, ids: Sequence[str]) -> list[Any]:
    """Return ``ids`` as primary keys. Raise CommandError if one of them does not exist."""
    pks, unknown = [], []
    for text in ids:
        try:
            pks.append(manager.values_list("pk", flat=True).get(pk=text))
        except (ObjectDoesNotExist, ValidationError, ValueError):
            unknown.append(text)
    if unknown:
        name = manager.model._meta.verbose_name
        raise CommandError(f"There is no {name} with the id {', '.join(unknown)}.")
    return pks
