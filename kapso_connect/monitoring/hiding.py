"""Remove the secret values of settings and of the environment from texts that are shown."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from django.conf import settings

from ..conf import SETTING

SECRET_NAME = re.compile(
    "(api|secret|private|access|signing)_?key|secret|passw|token|pwd|credential|dsn", re.IGNORECASE
)
NO_SECRETS = {"PASSWORD_HASHERS", "AUTH_PASSWORD_VALIDATORS"}
MIN_SECRET_LENGTH = 4
"""Characters; replacing shorter values would garble ordinary words."""


def secret_values() -> list[str]:
    """Return the secret values of the settings and of the environment, longest first.

    Each value is included in every form in which an error message may quote it.
    """
    found: set[str] = set()
    for name, value in _named_values():
        _collect(value, name == SETTING or bool(SECRET_NAME.search(name)), found)
    return sorted((text for text in found if len(text) >= MIN_SECRET_LENGTH), key=len, reverse=True)


def _named_values() -> Iterator[tuple[str, Any]]:
    yield from os.environ.items()
    for name in dir(settings):
        if name.isupper() and name not in NO_SECRETS:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # deprecated settings warn when they are read
                    value = getattr(settings, name)
            except Exception:  # noqa: S112  (a value that cannot be read cannot be shown)  # nosec B112
                continue
            # Its keys say which of the values are secret.
            if name == SETTING and isinstance(value, Mapping):
                yield "", value
            else:
                yield name, value


def _collect(value: Any, is_secret: bool, found: set[str]) -> None:
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, Mapping):
        for key, item in value.items():
            _collect(item, is_secret or bool(SECRET_NAME.search(str(key))), found)
    elif isinstance(value, (list, tuple, set, frozenset)):
        for item in value:
            _collect(item, is_secret, found)
    elif isinstance(value, str):
        if is_secret:
            found.update((value, value.strip(), repr(value)[1:-1], quote(value, safe="")))
        elif "://" in value and (password := _password_in(value)):
            found.update((password, unquote(password)))


def _password_in(url: str) -> str:
    try:
        return urlsplit(url).password or ""
    except ValueError:
        return ""


def hide(text: str, secrets: Iterable[str]) -> str:
    """Return ``text`` with each of ``secrets`` replaced by ``***``."""
    for secret in secrets:
        text = text.replace(secret, "***")
    return text
