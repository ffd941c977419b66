from __future__ import annotations

import re
import sys

import pytest
import segno

from kapso_connect.qr import has_qr_codes, qr_svg

URL = "https://site.example/whatsapp/connect/AbC." + "x" * 43 + "/"


def modules_of(svg: str) -> list[list[int]]:
    """The modules of a QR code, as the SVG draws them: 1 is black."""
    size = int(re.search(r'viewBox="0 0 (\d+) \1"', svg)[1])  # type: ignore[index]
    grid = [[0] * size for _row in range(size)]
    path = re.search(r'stroke="#000" d="([^"]+)"', svg)
    assert path
    x, y = 0, -0.5
    for command, first, second in re.findall(r"([Mmh])(-?[\d.]+)(?: (-?[\d.]+))?", path[1]):
        if command == "h":
            for place in range(x, x + int(first)):
                grid[int(y)][place] = 1
            x += int(first)
        else:
            x, y = (
                (int(first), float(second))
                if command == "M"
                else (x + int(first), y + float(second))
            )
    return grid


def test_it_is_the_url_in_black_on_white_with_a_quiet_zone() -> None:
    svg = qr_svg(URL)
    drawn = modules_of(svg)
    expected = segno.make(URL, error="m", micro=False)
    assert drawn == [list(row) for row in expected.matrix_iter(border=4)]
    assert svg.index('fill="#fff"') < svg.index('stroke="#000"')
    assert svg.startswith('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ')
    assert "style" not in svg
    assert "class" not in svg


def test_without_segno_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert has_qr_codes()
    monkeypatch.setitem(sys.modules, "segno", None)
    assert not has_qr_codes()
    assert qr_svg(URL) == ""
