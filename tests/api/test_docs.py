"""What the reference of the REST API says is what the API has."""

from __future__ import annotations

import re

from kapso_connect.api import filters
from kapso_connect.api.urls import versioned_patterns
from tests import ROOT

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
