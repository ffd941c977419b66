"""Which cases of a test are in the default run; the others are marked ``slow``."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import pytest

Axis = Iterable[Any] | Mapping[str, Any]
"""The values of one parameter, or its values by their ids."""


def slow_after(count: int, values: Iterable[Any]) -> list[Any]:
    """Return ``values`` for ``parametrize``; only the first ``count`` are in the default run."""
    return [
        pytest.param(value, marks=() if place < count else pytest.mark.slow)
        for place, value in enumerate(values)
    ]


def combinations(*axes: Axis) -> list[Any]:
    """Return all combinations of the values of several parameters, for ``parametrize``.

    The default run has as many as the longest axis has values, and each value is in one of them.
    """
    named = [
        list(axis.items()) if isinstance(axis, Mapping) else [(None, value) for value in axis]
        for axis in axes
    ]
    length = max(len(axis) for axis in named)
    in_default_run = {tuple(row % len(axis) for axis in named) for row in range(length)}
    cases = []
    for places in itertools.product(*(range(len(axis)) for axis in named)):
        chosen = [axis[place] for axis, place in zip(named, places, strict=True)]
        cases.append(
            pytest.param(
                *(value for _name, value in chosen),
                marks=() if places in in_default_run else pytest.mark.slow,
                id="-".join(
                    _id(name, value, place)
                    for (name, value), place in zip(chosen, places, strict=True)
                ),
            )
        )
    return cases


def _id(name: str | None, value: Any, place: int) -> str:
    if name is None:
        name = str(getattr(value, "__name__", value))
    return name if 0 < len(name) <= 30 else str(place)
