"""What is uploaded: whole, the same whoever builds it, and of use by itself."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests import ROOT

FILES = [
    *("LICENSE", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"),
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


def test_whoever_builds_it_gets_the_same_files(dist: Path, tmp_path: Path) -> None:
    """Another folder, other times and permissions, another umask, time zone and hash seed."""
    copy = tmp_path / "elsewhere" / "project"
    ignored = shutil.ignore_patterns("__pycache__", ".*", "*.sqlite3*")
    shutil.copytree(ROOT, copy, ignore=ignored, copy_function=shutil.copyfile)
    shutil.copyfile(ROOT / ".gitignore", copy / ".gitignore")
    for path in copy.rglob("*.py"):
        os.utime(path, (1, 1))
        path.chmod(0o600)
    before = os.umask(0o077)
    try:
        run(
            *(sys.executable, "-m", "build", "--no-isolation"),
            *("--outdir", str(tmp_path), str(copy)),
            TZ="Asia/Kathmandu",
            PYTHONHASHSEED="7",
        )
    finally:
        os.umask(before)
    built = sorted(path.name for path in dist.iterdir())
    assert len(built) == 2
    for name in built:
        assert (dist / name).read_bytes() == (tmp_path / name).read_bytes(), name


def test_the_index_will_show_it_as_it_is_meant(dist: Path) -> None:
    checked = run(sys.executable, "-m", "twine", "check", "--strict", *map(str, dist.iterdir()))
    assert len(re.findall("PASSED", checked)) == 2


def test_the_license_is_the_one_that_is_named(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        metadata = archive.read(name).decode()
    assert "\nLicense-Expression: MIT\n" in metadata
    assert "\nRequires-Python: >=3.10\n" in metadata
