"""Modules that are loaded when something of them is used, not when the site starts."""

from __future__ import annotations

from importlib import import_module
from typing import Any


class _Later:
    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        return getattr(import_module(self._name), name)


def later(*names: str) -> Any:
    """Return what stands for the modules ``names`` of this package, one or several.

    Every process of a site learns that there are checks and pages in the admin; what those do, and
    what it takes to speak with Kapso, is for the few processes that do it.
    """
    modules = [_Later(f"{__package__}.{name}") for name in names]
    return modules if len(modules) > 1 else modules[0]
