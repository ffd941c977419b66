from __future__ import annotations

import secrets
from argparse import ArgumentParser
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import CommandError
from django.db import Error
from django.views.decorators.debug import sensitive_variables

from kapso_connect.conf import get_conf
from kapso_connect.exceptions import KapsoError
from kapso_connect.kapso.client import KapsoClient
from kapso_connect.kapso.types import KapsoWebhook
from kapso_connect.management.arguments import whole_number
from kapso_connect.management.base import KapsoCommand
from kapso_connect.management.interruption import exit_status, interruption
from kapso_connect.management.plain import plain
from kapso_connect.utils import host_of, redact_url
from kapso_connect.webhooks import registration
from kapso_connect.webhooks.registration import (
    RegistrationError,
    SecretState,
    Step,
    WebhookInspection,
)

EXIT_WOULD_CHANGE = 3
MAX_LISTED = 10

# How far the command got, for whoever reads that it failed or was interrupted.
NOTHING_CHANGED = "Nothing was changed."
CHANGING = "The changes may have been made in part. Run the command again."
CHANGED = "All changes were made."
ROTATING = (
    "Kapso may sign with the new secret or with the old one; this site accepts both, so nothing is "
    "lost. Run the command again."
)
ROTATED = (
    "Kapso signs with the new secret; this site accepts both, so nothing is lost. Keep both, and "
    "run the command again to test it."
)


class Command(KapsoCommand):
    help = (
        "Registers this site's webhook at Kapso, or repairs it: URL, events, payload version, "
        "secret, whether it is active, and duplicates. Does not touch webhooks of other sites. "
        "Shows what it would change and asks first; it can be run again at any time. Exit status: "
        "0 all is well, 1 something is wrong or failed, 3 with --dry-run something would be "
        "changed, 130 interrupted by Ctrl-C, 143 by SIGTERM."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--yes",
            "--no-input",
            "--noinput",
            action="store_true",
            dest="yes",
            help="Make changes at Kapso without asking.",
        )
        parser.add_argument(
            "--dry-run",
            action="store_true",
            help="Only show what would be changed; change and send nothing.",
        )
        parser.add_argument(
            "--test",
            action="store_true",
            help="Afterwards, have Kapso send a test delivery, and wait until it is in the inbox.",
        )
        parser.add_argument(
            "--timeout",
            type=whole_number("seconds", 600),
            default=30,
            metavar="SECONDS",
            help="How long to wait for the test delivery (default 30).",
        )
        parser.add_argument(
            "--rotate",
            action="store_true",
            help="Have Kapso sign with the first secret of WEBHOOK_SECRET, a list of the new one "
            "and the old one, after checking that the running site accepts both. No delivery is "
            "lost.",
        )
        parser.add_argument(
            "--new-secret",
            action="store_true",
            help="Print a new random secret, and do nothing else.",
        )
        parser.add_argument(
            "--set-secret",
            action="store_true",
            help="Set the secret even if Kapso does not show which one it has.",
        )
        parser.add_argument(
            "--adopt",
            default="",
            metavar="ID",
            help="Use the webhook with this ID, wherever it delivers to: after this site's URL "
            "changed.",
        )

    def handle(self, *args: Any, new_secret: bool, **options: Any) -> None:
        if new_secret:
            self.stdout.write(secrets.token_urlsafe(48))
            return
        self.verbosity = options["verbosity"]
        self.state = NOTHING_CHANGED
        try:
            self.register(**options)
        except (ImproperlyConfigured, KapsoError, RegistrationError) as error:
            raise CommandError(f"{plain(str(error), self.stdout)}\n{self.state}") from None
        except Error as error:
            raise CommandError(
                f"The database of these settings cannot be read ({type(error).__name__}), so it "
                f"is unknown whether a test delivery arrived. Run: manage.py kapso_doctor\n"
                f"{self.state}"
            ) from None
        except KeyboardInterrupt as interrupt:
            status = exit_status(interrupt)
            raise CommandError(f"Interrupted. {self.state}", returncode=status) from None

    def register(
        self,
        *,
        yes: bool,
        dry_run: bool,
        test: bool,
        timeout: float,
        rotate: bool,
        set_secret: bool,
        adopt: str,
        **options: Any,
    ) -> None:
        url = registration.webhook_url()
        client = KapsoClient.from_settings()
        found = registration.inspect_webhooks(client, url, adopt=adopt)
        steps = registration.plan(found, set_secret=set_secret or rotate)
        self.show(found, steps)
        if rotate:
            self.check_rotation(found)
        if dry_run:
            if steps:
                raise CommandError("Something would be changed.", returncode=EXIT_WOULD_CHANGE)
            return
        if steps:
            self.check_site(url, steps)
            if not yes:
                self.confirm()
        webhook = found.mine
        # A new client, since answering may have taken longer than the budget of the first.
        client = KapsoClient.from_settings()
        with interruption() as interrupted:
            for step in steps:
                self.state = ROTATING if rotate else CHANGING
                changed = registration.apply_step(client, step)
                self.say(f"Done: {'changed' if step.webhook else 'created'} {changed.id}")
                if step.is_mine:
                    webhook = changed
                interrupted.raise_if_set()
        if steps:
            self.state = ROTATED if rotate else CHANGED
        if webhook is not None and (test or rotate):
            self.test(client, webhook, url, timeout)
        if rotate and len(get_conf().webhook_secret) > 1:
            end = datetime.now(timezone.utc) + timedelta(seconds=registration.REDELIVERY_SECONDS)
            self.say(
                "Kapso signs with the new secret. Deliveries that it repeats may be signed with "
                f"the old one until {end:%H:%M} UTC: remove the old one from WEBHOOK_SECRET after "
                "that."
            )

    def show(self, found: WebhookInspection, steps: Sequence[Step]) -> None:
        self.say(f"This site's webhook: {found.url}")
        if found.mine is None:
            self.say("Kapso has no webhook with this URL.")
        else:
            for webhook in (found.mine, *found.extra):
                self.say(f"Kapso has {describe(webhook)}")
        if found.duplicates:
            self.say("There are several, so everything is delivered more than once.")
        for webhook in found.others[:MAX_LISTED]:
            # Only the host: the rest of the URL may be secret.
            self.say(f"Not changed: {webhook.id} to {host_of(webhook.url) or 'an invalid URL'}")
        if len(found.others) > MAX_LISTED:
            self.say(f"Not changed: {len(found.others) - MAX_LISTED} more")
        for step in steps:
            action = f"Change {step.webhook.id}" if step.webhook else "Create a webhook"
            self.say("\n  ".join([f"{action}:", *step.descriptions]))
        if not steps:
            self.say("Nothing to change.")

    @sensitive_variables()
    def check_rotation(self, found: WebhookInspection) -> None:
        """Raise RegistrationError if the secret cannot be replaced without losing deliveries."""
        secrets_of_site = get_conf().webhook_secret
        if found.mine is None:
            raise RegistrationError("There is no webhook yet: run without --rotate first.")
        is_current = registration.secret_state(found.mine) is SecretState.CURRENT
        if len(secrets_of_site) < 2 and not is_current:
            raise RegistrationError(
                "KAPSO_CONNECT['WEBHOOK_SECRET'] has one secret. Make it a list of the new one and "
                "the old one, in this order, restart the site, and run this command again. "
                "manage.py kapso_webhook --new-secret prints a new one."
            )
        registration.verify_secrets(found.url, secrets_of_site)
        accepted = "both secrets" if len(secrets_of_site) > 1 else "the secret"
        self.say(f"The running site accepts {accepted}.")

    def check_site(self, url: str, steps: Sequence[Step]) -> None:
        """Raise RegistrationError if the running site refuses the secret that Kapso would be given;
        warn if deliveries would not reach it."""
        check = registration.check_signature(url, get_conf().webhook_secret[0])
        if check.accepted is False and any("secret_key" in step.changes for step in steps):
            raise RegistrationError(check.message)
        if not check.accepted:
            self.say(f"Warning: {check.message}")

    def confirm(self) -> None:
        try:
            answer = input("Make these changes at Kapso? [y/N] ")
        except (EOFError, RuntimeError):  # RuntimeError: standard input was closed
            raise CommandError(
                f"There is no terminal to ask for confirmation: use --yes. {NOTHING_CHANGED}"
            ) from None
        if answer.strip().lower() not in {"y", "yes"}:
            raise CommandError(NOTHING_CHANGED)

    def test(self, client: KapsoClient, webhook: KapsoWebhook, url: str, timeout: float) -> None:
        self.say("Waiting for a test delivery from Kapso ...")
        seconds_taken = registration.send_test_delivery(client, webhook, timeout=timeout)
        if seconds_taken is None:
            raise RegistrationError(
                f"The test delivery did not arrive within {timeout:.0f} seconds. "
                + registration.explain_missing_delivery(webhook, url)
            )
        self.say(f"It arrived after {seconds_taken:.1f} seconds.")

    def say(self, text: str) -> None:
        if self.verbosity > 0:
            self.stdout.write(plain(text, self.stdout))


def describe(webhook: KapsoWebhook) -> str:
    properties = (
        "active" if webhook.active else "NOT active",
        f"payload {webhook.payload_version or 'version not shown'}",
        f"{registration.count_subscribed_events(webhook)} of the "
        f"{len(registration.SUBSCRIBED_EVENTS)} events",
        f"signed with {registration.secret_state(webhook).label}",
    )
    return f"{webhook.id} to {redact_url(webhook.url)}: {', '.join(properties)}"
