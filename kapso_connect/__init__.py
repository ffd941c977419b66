"""Let a site's customers connect their own WhatsApp numbers through Kapso."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    __version__: str


def __getattr__(name: str) -> str:
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Imported on demand: it takes longer than this package's own modules.
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("django-kapso-connect")
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "0"
