"""JSON bodies, bounded in size and depth, without what no database can store."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import IO, Any, NoReturn

from rest_framework.exceptions import ParseError
from rest_framework.parsers import JSONParser

MAX_BYTES = 64 * 1024
"""The largest body that is read."""

MAX_DEPTH = 20


class BoundedJSONParser(JSONParser):
    """Reads what RFC 8259 calls JSON: in UTF-8, without NaN, no name twice. Raises
    ParseError for all else."""

    def parse(
        self,
        stream: IO[Any],
        media_type: str | None = None,
        parser_context: Mapping[str, Any] | None = None,
    ) -> Any:
        try:
            value = json.loads(
                stream.read().decode(), parse_constant=_refuse, object_pairs_hook=_object
            )
        except (ValueError, RecursionError):  # that it is not UTF-8 is a ValueError, too
            raise ParseError("The body is not valid JSON.") from None
        _check(value)
        return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ParseError("The body has the same name twice in an object.")
    return found


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)


def _check(value: Any) -> None:
    level = [value]
    for _depth in range(MAX_DEPTH):
        if any(isinstance(item, str) and not _is_storable(item) for item in level):
            raise ParseError("The body has a text with NUL or half a surrogate pair in it.")
        level = [inner for item in level for inner in _inside(item)]
        if not level:
            return
    raise ParseError("The body is nested too deeply.")


def _inside(item: Any) -> list[Any]:
    if isinstance(item, dict):
        return [*item, *item.values()]
    return item if isinstance(item, list) else []


def _is_storable(text: str) -> bool:
    return UNSTORABLE.search(text) is None


UNSTORABLE = re.compile("[\0\ud800-\udfff]")
