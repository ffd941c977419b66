"""Kapso's contract: the OpenAPI document beside this module, and what Kapso's pages add to it."""

from __future__ import annotations

import re
from typing import Any

import yaml

from . import ROOT

PLATFORM_PATH = "/platform/v1"
META_PATH = "/meta/whatsapp/v24.0"

FUNDING = {
    "parameters": [
        {
            "name": "business_account_id",
            "in": "path",
            "required": True,
            "schema": {"type": "string"},
        }
    ],
    "get": {
        "operationId": "getWhatsappAccountFunding",
        "responses": {
            "200": {
                "description": "ok",
                "content": {
                    "application/json": {
                        "schema": {
                            "type": "object",
                            "required": ["data"],
                            "properties": {"data": {"$ref": "#/components/schemas/Funding"}},
                        }
                    }
                },
            },
            "401": {"$ref": "#/components/responses/Unauthorized"},
            "404": {"$ref": "#/components/responses/NotFound"},
            "429": {"$ref": "#/components/responses/RateLimited"},
        },
    },
}
FUNDING_STATUSES = ["funded", "pending", "unknown", "not_funded", "revoked"]


def _load() -> dict[str, Any]:
    contract: dict[str, Any] = yaml.safe_load(
        (ROOT / "tests" / "kapso-platform.openapi.yaml").read_text()
    )
    messages = contract["paths"].popitem()  # last on purpose: its template matches others' paths
    contract["paths"]["/whatsapp/accounts/{business_account_id}/funding"] = FUNDING
    contract["paths"].update([messages])
    contract["components"]["schemas"]["Funding"] = {
        "type": "object",
        "required": ["status"],
        "properties": {"status": {"type": "string", "enum": FUNDING_STATUSES}},
    }
    return contract


CONTRACT = _load()


def find_path(path: str) -> str | None:
    """Return the template of the contract that the path of a request matches."""
    path = path.removeprefix(PLATFORM_PATH).removeprefix(META_PATH)
    return next(
        (
            template
            for template in CONTRACT["paths"]
            if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", template), path)
        ),
        None,
    )
