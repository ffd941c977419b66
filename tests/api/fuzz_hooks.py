"""Hooks for Schemathesis, which runs in its own process (see ``test_fuzz``)."""

from __future__ import annotations

import re
from typing import Any

import schemathesis
import yaml


@schemathesis.deserializer("application/vnd.oai.openapi", "application/yaml")
def read_yaml(context: Any, response: Any) -> Any:
    return yaml.safe_load(response.content)


@schemathesis.check
def codes_are_those_of_the_schema(context: Any, response: Any, case: Any) -> None:
    """An error has a code, and the schema names it for this status."""
    documented = case.operation.definition.raw["responses"].get(str(response.status_code))
    if response.status_code < 400 or documented is None:
        return
    code = response.json()["code"]
    assert code in re.findall(r"`(\w+)`:", documented["description"]), code
