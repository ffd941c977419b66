from __future__ import annotations

from pathlib import Path

from .. import screenshots


def test_the_pictures_of_the_documentation_can_be_taken_again(tmp_path: Path) -> None:
    screenshots.take(tmp_path)
    taken = {path.name for path in tmp_path.glob("*.png")}
    assert taken == {path.name for path in screenshots.PICTURES.glob("*.png")}


def test_the_pictures_are_small() -> None:
    for path in screenshots.PICTURES.glob("*.png"):
        assert path.stat().st_size < 200_000, path.name
