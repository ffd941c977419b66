from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import CommandError

from kapso_connect import sync
from kapso_connect.db import OUTAGE_ERRORS
from kapso_connect.management.base import KapsoCommand
from kapso_connect.management.interruption import interruption
from kapso_connect.management.plain import format_count
from kapso_connect.management.progress import Progress
from kapso_connect.utils import describe


class Command(KapsoCommand):
    help = (
        "Finishes interrupted work (stored webhooks, undelivered signals, unconfirmed redirects, "
        "invitations), compares numbers and links with Kapso's API, verifies the stored statuses "
        "of customers, and sends the reminders and e-mails about failed attempts that are due. Run "
        "it from cron, as often as every minute, on any number of machines. Exit status: 0 "
        "success, 1 something could not be done and will be tried again, 2 something has failed "
        "permanently and needs attention in the admin, where it can be run again or dismissed, 130 "
        "interrupted by Ctrl-C, 143 by SIGTERM."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--dry-run", action="store_true", help="Only count what would be done.")
        parser.add_argument(
            "--accept-mass-loss",
            action="store_true",
            help="Disconnect numbers even if most of them are gone from Kapso.",
        )

    def handle(self, *args: Any, dry_run: bool, accept_mass_loss: bool, **options: Any) -> None:
        with Progress(on=options["verbosity"] > 0) as progress, interruption() as interrupted:
            try:
                report = sync.run(
                    dry_run=dry_run,
                    accept_mass_loss=accept_mass_loss,
                    progress=progress,
                    should_stop=interrupted.is_set,
                )
            except OUTAGE_ERRORS as error:
                # An outage: every minute, on every machine, a traceback would say no more.
                reason = describe(error).partition("\n")[0]
                message = f"The database is not available: {reason}"
                raise CommandError(message, returncode=1) from error
        if options["verbosity"] > 0:
            prefix = "(dry run) " if dry_run else ""
            self.stdout.write(f"kapso_sync: {prefix}{report.summary()}")
        if interrupted.is_set():
            message = "Interrupted. The next run does the rest."
            raise CommandError(message, returncode=interrupted.exit_status)
        if report.errors:
            raise CommandError("\n".join(report.errors), returncode=1)
        if report.failed:
            raise CommandError(
                f"{format_count(report.failed, 'webhook or signal', 'webhooks or signals')} failed "
                "permanently: see the admin.",
                returncode=2,
            )
