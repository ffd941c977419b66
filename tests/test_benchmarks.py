"""The benchmarks, small enough for every day."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def run(name: str, folder: Path, *arguments: str) -> Any:
    figures = folder / "figures.json"
    subprocess.run(
        [
            *(sys.executable, "-m", f"tests.benchmarks.{name}"),
            *("--database-url", "sqlite://", "--json", str(figures), *arguments),
        ],
        check=True,
    )
    return json.loads(figures.read_text())


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, int]]:
    """How many queries each page makes of a small site and of a larger one."""
    sizes = "--customers", "400", "--events", "3000", "--rounds", "1"
    figures = run("admin", tmp_path_factory.mktemp("admin"), *sizes)
    return {row["page"]: row["queries"] for row in figures}


def test_no_page_of_the_admin_needs_more_queries_for_more_rows(
    pages: dict[str, dict[str, int]],
) -> None:
    assert len(pages) > 15
    more = {page: n for page, n in pages.items() if n["large"] > n["small"]}
    assert more == {}


@pytest.mark.parametrize("page", ["customers", "companies"])
def test_the_column_costs_a_list_few_queries(pages: dict[str, dict[str, int]], page: str) -> None:
    assert pages[page]["large"] <= 10


def test_a_batch_is_faster_than_one_link_after_the_other(tmp_path: Path) -> None:
    assert run("invitations", tmp_path, "--links", "24")["ratio"] > 2
