"""Small runs of the benchmarks, and their figures in the documentation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from tests import ROOT
from tests.conftest import THOROUGH
from tests.proofs.support import SERVERS

from . import __main__ as benchmarks
from .measuring import Row, in_turn, is_installed, table

PEERS = {"djstripe", "anymail", "kapso_whatsapp"}
Rows = dict[tuple[str, str], dict[str, Any]]
"""By case and subject."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Rows]:
    """Return a function that runs a benchmark once, and returns its rows."""
    folder = tmp_path_factory.mktemp("benchmarks")
    with_services = os.environ.get("KAPSO_TEST_SERVICES") == "1"
    server = SERVERS["postgres"] if with_services else "sqlite://"

    def rows(case: str) -> Rows:
        if case != "webhook" and not THOROUGH:
            pytest.skip("takes long: --all")
        figures = folder / f"{case}.json"
        if not figures.exists():
            options = [] if case in benchmarks.WITHOUT_DATABASE else ["--database-url", server]
            module = f"tests.benchmarks.{case}"
            subprocess.run(
                [sys.executable, "-m", module, "--quick", "--json", str(figures), *options],
                check=True,
                cwd=ROOT,
                env={**os.environ, "DJANGO_SETTINGS_MODULE": ""},
            )
        return {(row["case"], row["who"]): row for row in json.loads(figures.read_text())}

    return rows


@pytest.mark.parametrize("case", benchmarks.CASES)
def test_every_benchmark_runs(run: Callable[[str], Rows], case: str) -> None:
    rows = run(case)
    assert rows
    assert all(row["seconds"] > 0 for row in rows.values())


def test_installed_peers_are_measured(run: Callable[[str], Rows]) -> None:
    if not all(map(is_installed, PEERS)):
        assert os.environ.get("KAPSO_TEST_REQUIRE_PEERS") != "1"
        pytest.skip("the extra benchmarks is not installed")
    peers = {who for case in ("webhook", "links") for _, who in run(case)}
    assert {"dj-stripe", "django-anymail"} <= peers
    assert any(who.startswith("kapso-whatsapp-cloud-api, ") for who in peers)


def test_a_webhook_needs_no_more_queries_than_documented(run: Callable[[str], Rows]) -> None:
    rows = run("webhook")
    assert {
        kind: rows[f"Webhook in process: {kind}", "kapso_connect"]["queries"]
        for kind in ("first delivery", "the same again", "unknown event")
    } == {"first delivery": 9, "the same again": 1, "unknown event": 4}


def test_no_page_needs_more_queries_for_more_rows(run: Callable[[str], Rows]) -> None:
    pages: dict[str, list[int]] = {}
    for (case, _), row in run("pages").items():
        pages.setdefault(case, []).append(row["queries"])
    assert len(pages) > 20
    assert {case: queries for case, queries in pages.items() if len(set(queries)) > 1} == {}


# Ratios, tables, documentation


def test_ratios_compare_times_of_the_same_round() -> None:
    slow_and_fast = iter([(1.0, 3.0), (10.0, 30.0), (2.0, 6.0)])
    rounds: list[tuple[float, float]] = []

    def one(index: int) -> float:
        # The first of a round starts it.
        measured.add(index)
        if len(measured) == 1:
            rounds.append(next(slow_and_fast))
        if len(measured) == 2:
            measured.clear()
        return rounds[-1][index]

    measured: set[int] = set()
    base, other = in_turn(
        "x", {"a": lambda: one(0), "b": lambda: one(1)}, rounds=3, base="a", warm_up=0
    )
    assert (base.seconds, other.seconds) == (2.0, 6.0)
    assert (base.ratio, other.ratio, other.ratio_spread) == (1.0, 3.0, (3.0, 3.0))


def test_the_table_omits_empty_columns() -> None:
    markdown = table([Row("c", "us", 0.0012, (0.001, 0.002), queries=1234)])
    assert markdown.splitlines() == [
        "|  | median (quartiles) | queries |",
        "| --- | ---: | ---: |",
        "| **c** |  |  |",
        "| us | 1.2 ms (1 ms to 2 ms) | 1,234 |",
    ]


def test_the_documentation_shows_the_measured_figures() -> None:
    result = json.loads(benchmarks.FIGURES.read_text())
    assert set(result["cases"]) == set(benchmarks.CASES)
    page = benchmarks.PAGE.read_text()
    assert benchmarks.filled(page, result) == page
    assert [case for case in (*benchmarks.CASES, "machine") if f"<!-- {case} -->" not in page] == []
