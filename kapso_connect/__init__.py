"""Let a site's customers connect their own WhatsApp numbers through Kapso."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("django-kapso-connect")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0"
