"""A new project with the built wheel, in which pages of the documentation are executed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from example_project.demo.processes import free_port

from .support import ROOT, NewSite, run


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)]
    run([*build, str(ROOT)])
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Iterator[NewSite]:
    """A new site after the tutorial; the site and the sandbox are running."""
    with ExitStack() as stack:
        folder = tmp_path_factory.mktemp("site")
        site = NewSite(folder, wheel, free_port(0), free_port(0), stack)
        site.execute("tutorial.md")
        yield site


@pytest.fixture(scope="session")
def companies(site: NewSite) -> NewSite:
    """The site of the tutorial, with the companies of "Use your own model"."""
    companies = site.branch("companies")
    companies.execute("how-to/own-model.md", last="In Python")
    return companies
