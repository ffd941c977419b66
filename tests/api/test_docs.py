"""What the reference of the REST API says is what the API has."""

from __future__ import annotations

import re

from rest_framework import exceptions

from kapso_connect.api import errors, filters
from kapso_connect.api.urls import urls_for
from tests import ROOT

from .test_permissions import NEEDED

PAGE = (ROOT / "docs" / "reference" / "api.md").read_text()


def test_every_code_is_in_the_table_with_its_status() -> None:
    source = "".join(path.read_text() for path in (ROOT / "kapso_connect" / "api").glob("*.py"))
    codes = {
        (int(status), code)
        for status, code in re.findall(r"ApiError\(\s*(\d+),\s*\"(\w+)\"", source)
    }
    codes |= {(status, code) for status, code, _message in errors.KAPSO.values()}
    codes |= {(status, code) for status, code, _message in errors.OTHERS.values()}
    codes.add(errors.UNEXPECTED[:2])
    for own in [*re.findall(r"code=\"(invalid\w*)\"", source), "invalid"]:
        codes.add((400, own))
    for kind in (
        exceptions.ParseError,
        exceptions.PermissionDenied,
        exceptions.MethodNotAllowed,
        exceptions.NotAcceptable,
        exceptions.UnsupportedMediaType,
        exceptions.Throttled,
    ):
        codes.add((kind.status_code, kind.default_code))
    for kind in (exceptions.NotAuthenticated, exceptions.AuthenticationFailed):
        codes |= {(401, kind.default_code), (403, kind.default_code)}
    written = {
        (int(status), code)
        for statuses, code in re.findall(r"^\| ([\d, ]+) \| `(\w+)` \|", PAGE, re.MULTILINE)
        for status in statuses.split(", ")
    }
    assert written == codes


def test_every_endpoint_is_in_the_table_with_its_permissions() -> None:
    written = {}
    for methods, path, needed in re.findall(
        r"^\| (`[A-Z`, ]+) /(\S*)` \|.*\| ?([`\w, ]*?) ?\|$", PAGE, re.MULTILINE
    ):
        for method in re.findall(r"[A-Z]+", methods):
            written[method, path.replace("{id}", "<str:pk>")] = set(re.findall(r"\w+", needed))
    assert written == NEEDED
    assert set(written) == {
        (method.upper(), str(pattern.pattern))
        for pattern in urls_for()[0]
        for method in pattern.callback.actions
        if method != "head"
    }


def test_every_filter_is_in_the_table() -> None:
    rows = dict(re.findall(r"^\| ([a-z-]+) \| (`.*`) \|$", PAGE, re.MULTILINE))
    kinds = {
        "customers": filters.CustomerFilters,
        "setup-links": filters.SetupLinkFilters,
        "connections": filters.ConnectionFilters,
        "events": filters.EventFilters,
    }
    assert set(rows) == set(kinds)
    for name, kind in kinds.items():
        assert set(re.findall(r"\w+", rows[name])) == set(kind().fields)
