"""A new project with the package installed, in which pages of the documentation are executed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from example_project.demo.processes import free_port

from .support import NewSite


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NewSite]:
    """A new site after the tutorial; the site and the sandbox are running."""
    with ExitStack() as stack:
        folder = tmp_path_factory.mktemp("site")
        site = NewSite(folder, free_port(0), free_port(0), stack)
        site.execute("tutorial.md")
        yield site


@pytest.fixture(scope="session")
def companies(site: NewSite) -> NewSite:
    """The site of the tutorial, with the companies of "Use your own model"."""
    companies = site.branch("companies")
    companies.execute("how-to/own-model.md", last="In Python")
    return companies
