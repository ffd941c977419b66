from __future__ import annotations

import json
import os
import threading
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from kapso_connect.management.arguments import seconds
from kapso_connect.management.plain import plain
from kapso_connect.monitoring.doctor import Examination, Finding, Level

WORDS = {Level.OK: "ok", Level.SKIPPED: "-", Level.WARNING: "WARNING", Level.PROBLEM: "PROBLEM"}


class Command(BaseCommand):
    help = (
        "Says in plain words what is right and wrong with this installation: settings, database, "
        "what waits and failed, whether kapso_sync is run, this site's public address, the API "
        "key, the webhook, and whether a test delivery of Kapso's arrives. Changes nothing but "
        "that delivery, and shows no secret. Exit status: 0 no problem, 1 a problem, 2 with "
        "--fail-level warning warnings only, 130 interrupted."
    )
    # What they find is among the findings, and must not keep the others from being made.
    requires_system_checks = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--json", action="store_true", dest="as_json", help="Print JSON, for a monitor."
        )
        parser.add_argument(
            "--no-network",
            "--offline",
            action="store_true",
            help="Ask neither Kapso nor this site's own address.",
        )
        parser.add_argument(
            "--no-test-delivery",
            action="store_true",
            help="Leave out the test delivery, so that nothing at all is changed.",
        )
        parser.add_argument(
            "--fail-level",
            choices=[Level.PROBLEM.value, Level.WARNING.value],
            default=Level.PROBLEM.value,
            help="From which level on the exit status is not 0 (default problem).",
        )
        parser.add_argument(
            "--time-limit",
            type=seconds(3600),
            default=90.0,
            metavar="SECONDS",
            help="After this long, tell what is known and end with status 1 (default 90).",
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
        exam = Examination(network=not no_network, test_delivery=not no_test_delivery)
        telling = threading.Lock()

        def give_up() -> None:
            """Tell what is known. What hangs in a database's driver cannot be ended otherwise."""
            with telling:
                exam.findings.append(
                    Finding(
                        "time",
                        Level.PROBLEM,
                        f"After {time_limit:.0f} s it was still being examined: {exam.current}.",
                        "Something there gives no answer: a database or a name server.",
                    )
                )
                self.tell(exam, as_json)
                self.stdout.flush()
                os._exit(1)

        watch = threading.Timer(time_limit, give_up)
        watch.daemon = True
        watch.start()
        try:
            exam.run()
        except KeyboardInterrupt:
            raise CommandError("Interrupted.", returncode=130) from None
        finally:
            watch.cancel()
        with telling:
            self.tell(exam, as_json)
        if exam.level is Level.PROBLEM:
            raise CommandError("There are problems.", returncode=1)
        if exam.level is Level.WARNING and fail_level == Level.WARNING.value:
            raise CommandError("There are warnings.", returncode=2)

    def tell(self, exam: Examination, as_json: bool) -> None:
        if as_json:
            findings = [finding.as_json() for finding in exam.findings]
            report = {"level": exam.level.value, "findings": findings}
            self.stdout.write(json.dumps(report, indent=2))
            return
        for finding in exam.findings:
            self.stdout.write(self.line(finding))
        counts = dict.fromkeys(Level, 0)
        for finding in exam.findings:
            counts[finding.level] += 1
        self.stdout.write(
            f"kapso_doctor: {counts[Level.PROBLEM]} problems, {counts[Level.WARNING]} warnings, "
            f"{counts[Level.OK]} fine, {counts[Level.SKIPPED]} not examined"
        )

    def line(self, finding: Finding) -> str:
        style = {Level.OK: self.style.SUCCESS, Level.WARNING: self.style.WARNING}.get(
            finding.level, self.style.ERROR if finding.level is Level.PROBLEM else str
        )
        word = style(f"{WORDS[finding.level]:8}")
        text = f"{finding.check:24} {finding.message}"
        if finding.hint:
            text += f"\n{'':33} -> {finding.hint}"
        return f"{word} {plain(text, self.stdout)}"
