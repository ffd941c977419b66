"""All benchmarks, each in its own process: python -m tests.benchmarks

Prints one table and writes ``benchmarks.json``. The peers come with the extra "benchmarks"; one
that is not installed is left out, and the table says so.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from tests import ROOT

from .measuring import Row, table

CASES = ("webhook", "links", "sync", "pages", "startup")
WITHOUT_DATABASE = {"startup"}
PACKAGES = (
    "Django",
    "djangorestframework",
    "dj-stripe",
    "django-anymail",
    "kapso-whatsapp-cloud-api",
    "psycopg",
    "gunicorn",
)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks")
    parser.add_argument(
        "cases",
        nargs="*",
        choices=[*CASES, []],  # argparse also checks the empty list, if none is named
        metavar="CASE",
        help=f"{', '.join(CASES)}, or all.",
    )
    parser.add_argument("--database-url", help="A PostgreSQL server, or sqlite://.")
    parser.add_argument(
        "--quick", action="store_true", help="Small sizes, to check that everything runs."
    )
    parser.add_argument("--json", type=Path, default=Path("benchmarks.json"))
    parser.add_argument(
        "--docs", action="store_true", help="Write these cases into the documentation, too."
    )
    return parser


def main() -> None:
    options = parser().parse_args()
    started = time.monotonic()
    result = {
        "machine": machine(),
        "cases": {case: run(case, options) for case in options.cases or CASES},
    }
    options.json.write_text(json.dumps(result, indent=2) + "\n")
    for rows in result["cases"].values():
        print(f"\n{table([Row(**row) for row in rows])}")
    print(f"\n{described(result['machine'])}")
    print(f"It took {time.monotonic() - started:.0f} s. The figures are in {options.json}.")
    if options.docs:
        if FIGURES.exists():
            kept = json.loads(FIGURES.read_text())["cases"]
            result["cases"] = {**kept, **result["cases"]}
        FIGURES.write_text(json.dumps(result, indent=2) + "\n")
        PAGE.write_text(filled(PAGE.read_text(), result))


DOCS = ROOT / "docs"
PAGE = DOCS / "benchmarks.md"
FIGURES = DOCS / "benchmarks.json"
PLACE = re.compile(r"(<!-- (\w+) -->\n\n).+?(\n\n|\n?\Z)", re.DOTALL)


def filled(page: str, result: dict[str, Any]) -> str:
    """Return ``page`` with the tables of ``result`` after ``<!-- webhook -->`` and so on."""

    def fill(place: re.Match[str]) -> str:
        if place[2] == "machine":
            text = described(result["machine"])
        else:
            text = table([Row(**row) for row in result["cases"][place[2]]])
        return place[1] + text + place[3]

    return PLACE.sub(fill, page)


def described(machine: dict[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in machine.items()) + "."


def run(case: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        figures = Path(folder) / "figures.json"
        arguments = ["--json", str(figures)]
        if options.quick:
            arguments.append("--quick")
        if options.database_url and case not in WITHOUT_DATABASE:
            arguments += ["--database-url", options.database_url]
        subprocess.run([sys.executable, "-m", f"tests.benchmarks.{case}", *arguments], check=True)
        rows: list[dict[str, Any]] = json.loads(figures.read_text())
        return rows


def machine() -> dict[str, str]:
    """Return what the figures were measured with."""
    model = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines() if _has_cpuinfo() else ():
        if line.startswith("model name"):
            model = line.partition(": ")[2]
            break
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "processor": model,
        "cores": str(os.cpu_count()),
        "system": platform.system(),
        "Python": platform.python_version(),
        "load": f"{os.getloadavg()[0]:.1f}",
        **versions,
    }


def _has_cpuinfo() -> bool:
    return Path("/proc/cpuinfo").exists()


if __name__ == "__main__":
    main()
