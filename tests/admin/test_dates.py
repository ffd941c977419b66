"""Dates and times look the same on all pages of the admin: as in Django's own lists."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path

import pytest
from django.utils import timezone, translation

import kapso_connect
from kapso_connect.admin.display import format_datetime

PACKAGE = Path(kapso_connect.__file__).parent
FILES = sorted(
    path
    for folder, pattern in (("admin", "*.py"), ("templates/admin", "*.html"))
    for path in (PACKAGE / folder).rglob(pattern)
)

OTHER_FORMATS = re.compile(
    r"""SHORT_DATE|strftime\(|\|date:"|\|date:'(?!Y-m-d')""",
)
"""Inputs of type "date" have their values as HTML wants them."""


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_page_has_a_format_of_its_own(path: Path) -> None:
    assert OTHER_FORMATS.findall(path.read_text()) == []


def test_format_is_that_of_djangos_lists() -> None:
    moment = timezone.make_aware(datetime(2026, 11, 30, 18, 5))
    assert format_datetime(moment) == "Nov. 30, 2026, 6:05 p.m."
    with translation.override("es"):
        assert format_datetime(moment) == "30 de noviembre de 2026 a las 18:05"
