"""What the reference of the REST API says is what the API has."""

from __future__ import annotations

import re
from typing import Any

from kapso_connect.api import filters
from kapso_connect.api.openapi import build_document
from kapso_connect.api.urls import versioned_patterns
from tests import ROOT

from ..docs.support import DOCS, blocks_of
from .support import API
from .test_permissions import NEEDED

PAGE = (ROOT / "docs" / "reference" / "api.md").read_text()


def test_reference_has_every_endpoint_with_its_permissions() -> None:
    written = {}
    for methods, path, needed in re.findall(
        r"^\| (`[A-Z`, ]+) /(\S*)` \|.*\| ?([`\w, ]*?) ?\|$", PAGE, re.MULTILINE
    ):
        for method in re.findall(r"[A-Z]+", methods):
            written[method, path.replace("{id}", "<str:pk>")] = set(re.findall(r"\w+", needed))
    assert written == NEEDED
    assert set(written) == {
        (method.upper(), str(pattern.pattern))
        for pattern in versioned_patterns()
        for method in pattern.callback.actions
        if method != "head"
    }


def test_reference_has_every_filter() -> None:
    rows = dict(re.findall(r"^\| ([a-z-]+) \| (`.*`) \|$", PAGE, re.MULTILINE))
    kinds = {
        "customers": filters.CustomerFilters,
        "setup-links": filters.SetupLinkFilters,
        "batches": filters.BatchFilters,
        "batch-invitations": filters.InvitationFilters,
        "connections": filters.ConnectionFilters,
        "events": filters.EventFilters,
    }
    assert set(rows) == set(kinds)
    for name, kind in kinds.items():
        assert set(re.findall(r"\w+", rows[name])) == set(kind().fields)


def test_front_ends_on_other_origins_may_read_and_send_every_header() -> None:
    settings: dict[str, Any] = {"INSTALLED_APPS": [], "MIDDLEWARE": []}
    first = next(b for b in blocks_of(DOCS / "how-to" / "front-end.md") if b.path)
    exec(first.text, settings)
    sent, read = set(), set()
    for methods in build_document(versioned_patterns(), API)["paths"].values():
        for operation in methods.values():
            sent |= {one["name"] for one in operation["parameters"] if one["in"] == "header"}
            for answer in operation["responses"].values():
                read |= set(answer["headers"])
    assert sent | {"Accept", "Authorization", "Content-Type", "X-CSRFToken"} == set(
        settings["CORS_ALLOW_HEADERS"]
    )
    assert read == set(settings["CORS_EXPOSE_HEADERS"])
