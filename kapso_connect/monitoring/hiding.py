"""Keeps what must not be shown out of what is shown: the values of settings that are secrets."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from django.conf import settings

from ..conf import NAME

SECRET_NAME = re.compile(
    "(api|secret|private|access|signing)_?key|secret|passw|token|pwd|credential|dsn", re.IGNORECASE
)
NO_SECRETS = {"PASSWORD_HASHERS", "AUTH_PASSWORD_VALIDATORS"}
SHORTEST = 4  # characters; hiding shorter ones would garble every word


def secret_values() -> list[str]:
    """Return every value of the settings and of the environment that must not be shown, in the
    forms in which a message may quote it; the longest first."""
    found: set[str] = set()
    for name, value in _named_values():
        _collect(value, name == NAME or bool(SECRET_NAME.search(name)), found)
    return sorted((text for text in found if len(text) >= SHORTEST), key=len, reverse=True)


def _named_values() -> Iterator[tuple[str, Any]]:
    yield from os.environ.items()
    for name in dir(settings):
        if name.isupper() and name not in NO_SECRETS:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of settings that are deprecated
                    value = getattr(settings, name)
            except Exception:  # noqa: S112  (what cannot be read is not shown either)  # nosec B112
                continue
            # The keys of a dict say which of its values are secret.
            if name == NAME and isinstance(value, Mapping):
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


def hide(text: str, hidden: Iterable[str]) -> str:
    """Return ``text`` without what ``secret_values`` named."""
    for secret in hidden:
        text = text.replace(secret, "***")
    return text
