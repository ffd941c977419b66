"""What is wrong with a number, as Kapso's health check and Meta say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..text import one_line
from .types import KapsoHealth

MAX_PROBLEMS = 20
MAX_REASON_LENGTH = 500
IMPAIRED = ("LIMITED", "BLOCKED")
"""Values of Meta's ``can_send_message`` that are a problem; the other one is AVAILABLE."""

PAYMENT_PROBLEM = "141006"
"""Meta's code for a problem with the payment method of a WhatsApp Business account."""


def find_problems(health: KapsoHealth) -> list[dict[str, str]]:
    """Return what is wrong, each as ``check``, ``entity``, ``code``, ``description``, ``solution``.

    ``entity`` is what Meta finds fault with: PHONE_NUMBER, WABA, BUSINESS, APP or MESSAGE_TEMPLATE.
    Texts are Kapso's and Meta's own; what they do not say is "". A check that Kapso could not make
    (``passed`` is null) is no problem.
    """
    problems: list[dict[str, str]] = []
    for name, check in health.checks.items():
        if isinstance(check, Mapping):
            found = list(_meta_problems(name, check))
            if not found and (description := _failure(check)):
                found = [_problem(name, description=description)]
            problems += found
    return problems[:MAX_PROBLEMS]


def _meta_problems(name: str, check: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    for entity in _mappings(_details(check).get("entities")):
        kind, state = entity.get("entity_type"), entity.get("can_send_message")
        found = [
            _problem(
                name,
                kind,
                error.get("error_code"),
                error.get("error_description"),
                error.get("possible_solution"),
            )
            for error in _mappings(entity.get("errors"))
        ]
        if state in IMPAIRED:
            notes = entity.get("additional_info")
            notes = notes if isinstance(notes, list) else []
            found += [_problem(name, kind, description=note) for note in notes]
            found = found or [_problem(name, kind, description=state)]
        yield from found


def _failure(check: Mapping[str, Any]) -> str:
    """Return why a check failed, or "" if it did not."""
    details = _details(check)
    states = (check.get("overall_status"), details.get("can_send_message"), details.get("status"))
    state = next((state for state in states if state in (*IMPAIRED, "DISCONNECTED")), None)
    if check.get("passed") is not False and state is None:
        return ""
    return _text(check.get("error") or details.get("message") or state) or "failed"


def _problem(
    check: object,
    entity: object = "",
    code: object = "",
    description: object = "",
    solution: object = "",
) -> dict[str, str]:
    return {
        "check": _text(check),
        "entity": _text(entity),
        "code": _text(code),
        "description": _text(description),
        "solution": _text(solution),
    }


def _details(check: Mapping[str, Any]) -> Mapping[str, Any]:
    details = check.get("details")
    return details if isinstance(details, Mapping) else {}


def _mappings(value: object) -> list[Mapping[str, Any]]:
    return (
        [entry for entry in value if isinstance(entry, Mapping)] if isinstance(value, list) else []
    )


def _text(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        return ""
    return one_line(str(value))[:MAX_REASON_LENGTH]
