"""JSON bodies of limited size and depth, with text that every database can store."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import IO, Any, NoReturn

from rest_framework.exceptions import ParseError
from rest_framework.parsers import JSONParser

MAX_BODY_BYTES = 64 * 1024
MAX_JSON_DEPTH = 20

UNSTORABLE = re.compile("[\0\ud800-\udfff]")
"""NUL and unpaired surrogates: JSON can contain them, but not every database can store them."""


class BoundedJSONParser(JSONParser):
    """Parses JSON as RFC 8259 defines it: UTF-8, no NaN, unique names. Raises ParseError."""

    def parse(
        self,
        stream: IO[Any],
        media_type: str | None = None,
        parser_context: Mapping[str, Any] | None = None,
    ) -> Any:
        try:
            value = json.loads(
                stream.read().decode(), parse_constant=_reject_constant, object_pairs_hook=_object
            )
        except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError
            raise ParseError("The body is not valid JSON.") from None
        _check_depth_and_text(value)
        return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ParseError("The body has a duplicate name in an object.")
    return value


def _reject_constant(constant: str) -> NoReturn:
    raise ValueError(constant)


def _check_depth_and_text(value: Any) -> None:
    level = [value]
    for _depth in range(MAX_JSON_DEPTH):
        if any(isinstance(item, str) and UNSTORABLE.search(item) for item in level):
            raise ParseError("The body contains NUL or an unpaired surrogate.")
        level = [inner for item in level for inner in _children(item)]
        if not level:
            return
    raise ParseError("The body is nested too deeply.")


def _children(item: Any) -> list[Any]:
    if isinstance(item, dict):
        return [*item, *item.values()]
    return item if isinstance(item, list) else []
