from __future__ import annotations

import json
import threading
import time
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import CommandError
from django.db import connections

from kapso_connect.management.arguments import whole_number
from kapso_connect.management.base import KapsoCommand
from kapso_connect.management.plain import format_count, plain
from kapso_connect.monitoring.doctor import Diagnosis, Finding, Level

LABELS = {Level.OK: "ok", Level.SKIPPED: "-", Level.WARNING: "WARNING", Level.PROBLEM: "PROBLEM"}


class Command(KapsoCommand):
    help = (
        "Checks this installation and says what to do about each problem: settings, database, "
        "waiting and failed work, the statuses of customers, whether kapso_sync is run, this "
        "site's public URL, the API key, the webhook, and whether a test delivery from Kapso "
        "arrives. Changes nothing except for that delivery, and shows no secrets. Exit status: 0 "
        "no problems, 1 problems, 2 only warnings (with --fail-level warning), 130 interrupted."
    )
    # The system checks are part of the findings, and must not stop the other checks.
    requires_system_checks = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--json", action="store_true", dest="as_json", help="Print JSON, for monitoring."
        )
        parser.add_argument(
            "--no-network",
            "--offline",
            action="store_true",
            help="Make no requests to Kapso or to this site's own URL.",
        )
        parser.add_argument(
            "--no-test-delivery",
            action="store_true",
            help="Leave out the test delivery, so that nothing is changed.",
        )
        parser.add_argument(
            "--fail-level",
            choices=[Level.PROBLEM.value, Level.WARNING.value],
            default=Level.PROBLEM.value,
            help="Lowest level for which the exit status is not 0 (default: problem).",
        )
        parser.add_argument(
            "--time-limit",
            type=whole_number("seconds", 3600),
            default=90,
            metavar="SECONDS",
            help="Stop after this long, show the findings so far, and end with status 1 "
            "(default: 90).",
        )

    def handle(
        self,
        *args: Any,
        as_json: bool,
        no_network: bool,
        no_test_delivery: bool,
        fail_level: str,
        time_limit: float,
        **options: Any,
    ) -> None:
        diagnosis = Diagnosis(network=not no_network, test_delivery=not no_test_delivery)

        def run() -> None:
            try:
                diagnosis.run()
            finally:
                connections.close_all()

        # A database driver that hangs cannot be stopped: its thread ends with the process.
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        deadline = time.monotonic() + time_limit
        try:
            # On Windows, Ctrl-C has no effect before the end of one wait.
            while thread.is_alive() and time.monotonic() < deadline:
                thread.join(0.2)
        except KeyboardInterrupt:
            raise CommandError("Interrupted.", returncode=130) from None
        if thread.is_alive():
            message = f"The check {diagnosis.current} did not finish within {time_limit:.0f} s."
            hint = "Something does not answer, probably the database or a name server."
            diagnosis.findings.append(Finding("time", Level.PROBLEM, message, hint))
        self.print_findings(diagnosis, as_json)
        if diagnosis.level is Level.PROBLEM:
            raise CommandError("There are problems.", returncode=1)
        if diagnosis.level is Level.WARNING and fail_level == Level.WARNING.value:
            raise CommandError("There are warnings.", returncode=2)

    def print_findings(self, diagnosis: Diagnosis, as_json: bool) -> None:
        if as_json:
            findings = [finding.as_json() for finding in diagnosis.findings]
            report = {"level": diagnosis.level.value, "findings": findings}
            self.stdout.write(json.dumps(report, indent=2))
            return
        for finding in diagnosis.findings:
            self.stdout.write(self.format(finding))
        counts = dict.fromkeys(Level, 0)
        for finding in diagnosis.findings:
            counts[finding.level] += 1
        self.stdout.write(
            f"kapso_doctor: {format_count(counts[Level.PROBLEM], 'problem')}, "
            f"{format_count(counts[Level.WARNING], 'warning')}, "
            f"{counts[Level.OK]} ok, {counts[Level.SKIPPED]} skipped"
        )

    def format(self, finding: Finding) -> str:
        style = {Level.OK: self.style.SUCCESS, Level.WARNING: self.style.WARNING}.get(
            finding.level, self.style.ERROR if finding.level is Level.PROBLEM else str
        )
        label = style(f"{LABELS[finding.level]:8}")
        text = f"{finding.check:24} {finding.message}"
        if finding.hint:
            text += f"\n{'':33} -> {finding.hint}"
        return f"{label} {plain(text, self.stdout)}"
