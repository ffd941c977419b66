"""The wheel and the source distribution: complete, and described as they should be."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests import ROOT

pytestmark = pytest.mark.slow

FILES = [
    *("LICENSE", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "RELEASING.md", "SECURITY.md"),
    *("pyproject.toml", "tox.ini", "manage.py"),
]
FOLDERS = ["kapso_connect", "example_project", "tests", "docs"]


def sources(folder: Path) -> set[str]:
    return {
        str(path.relative_to(ROOT))
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }


def run(*words: str, **variables: str) -> str:
    done = subprocess.run(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **variables},
    )
    assert done.returncode == 0, f"{words}\n{done.stdout}"
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the sdist and with the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT))
    return folder


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    (path,) = dist.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def sdist(dist: Path) -> Path:
    (path,) = dist.glob("*.tar.gz")
    return path


def test_the_wheel_has_the_whole_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    metadata = {name for name in names if ".dist-info/" in name}
    assert names - metadata == sources(ROOT / "kapso_connect")
    assert {name.partition("/")[2] for name in metadata} >= {"METADATA", "licenses/LICENSE"}


def test_the_sdist_has_what_its_tests_and_docs_need(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    expected = {*FILES, *(name for folder in FOLDERS for name in sources(ROOT / folder))}
    assert expected - names == set()
    assert names - expected <= {"PKG-INFO", ".gitignore", "mkdocs.yml"}


def test_the_metadata_can_be_rendered_by_an_index(dist: Path) -> None:
    checked = run(sys.executable, "-m", "twine", "check", "--strict", *map(str, dist.iterdir()))
    assert len(re.findall("PASSED", checked)) == 2


def test_the_metadata_names_the_license_and_python(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        metadata = archive.read(name).decode()
    assert "\nLicense-Expression: MIT\n" in metadata
    assert "\nRequires-Python: >=3.10\n" in metadata
