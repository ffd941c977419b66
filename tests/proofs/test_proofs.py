"""Small versions of ``tests.proofs``; the whole ones are run by hand."""

from __future__ import annotations

import subprocess
import sys

from ..conftest import THOROUGH
from . import load


def test_load(proof_database: str) -> None:
    figures = load.run(proof_database, deliveries=180, workers=2, threads=4, connections=8, seed=1)
    assert figures.distinct == 120


def test_fuzz() -> None:
    requests = "3000" if THOROUGH else "1000"
    result = subprocess.run(
        [sys.executable, "-m", "tests.proofs.fuzz", "--requests", requests, "--body-mb", "64"],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "/whatsapp/webhook/ 200" in result.stdout
    assert "/whatsapp/webhook/ 401" in result.stdout
    assert "peak memory of a worker" in result.stdout
