from __future__ import annotations

import secrets
from argparse import ArgumentParser
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from typing import Any
from urllib.parse import urlsplit

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError
from django.db import Error

from kapso_connect.conf import get_conf
from kapso_connect.exceptions import KapsoError
from kapso_connect.kapso.client import KapsoClient
from kapso_connect.kapso.types import KapsoWebhook
from kapso_connect.management.arguments import seconds
from kapso_connect.management.plain import plain
from kapso_connect.webhooks import registration
from kapso_connect.webhooks.registration import (
    Outcome,
    SecretState,
    Step,
    Stopped,
    WebhookInspection,
)

WOULD_CHANGE = 3
LISTED = 10

UNCHANGED = "Nothing was changed."


class Command(BaseCommand):
    help = (
        "Registers this site's webhook at Kapso, or repairs it: address, events, payload version, "
        "secret, and whether it is active or there twice. Webhooks that lead elsewhere are left "
        "alone. Shows what it would change and asks; run again, it finds nothing to do. Exit "
        "status: 0 all is as it should be, 1 something is wrong or could not be done, 3 with "
        "--dry-run something would be changed, 130 interrupted."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--yes",
            "--no-input",
            "--noinput",
            action="store_true",
            dest="yes",
            help="Do not ask before changing something at Kapso.",
        )
        parser.add_argument(
            "--dry-run", action="store_true", help="Only show the plan; change and send nothing."
        )
        parser.add_argument(
            "--test",
            action="store_true",
            help="Afterwards have Kapso send a test delivery, and wait until it is in the inbox.",
        )
        parser.add_argument(
            "--timeout",
            type=seconds(600),
            default=30.0,
            metavar="SECONDS",
            help="How long to wait for the test delivery (default 30).",
        )
        parser.add_argument(
            "--rotate",
            action="store_true",
            help="Have Kapso sign with the first secret of WEBHOOK_SECRET, a list of the new one "
            "and the old one, once the running site is seen to accept both. Loses no delivery.",
        )
        parser.add_argument(
            "--new-secret",
            action="store_true",
            help="Print a new random secret, and do nothing else.",
        )
        parser.add_argument(
            "--set-secret",
            action="store_true",
            help="Set the secret also where Kapso does not show which one it has.",
        )
        parser.add_argument(
            "--adopt",
            default="",
            metavar="ID",
            help="Lead this webhook here, wherever it leads now: after a change of the address.",
        )

    def handle(self, *args: Any, new_secret: bool, **options: Any) -> None:
        if new_secret:
            self.stdout.write(secrets.token_urlsafe(48))
            return
        self.verbosity = options["verbosity"]
        self.state = UNCHANGED
        try:
            self.work(**options)
        except (ImproperlyConfigured, KapsoError, Stopped) as error:
            raise CommandError(f"{self.plain(str(error))}\n{self.state}") from None
        except Error as error:
            raise CommandError(
                f"The database of these settings cannot be read ({type(error).__name__}), so "
                f"nobody knows whether a test delivery arrived. See: manage.py kapso_doctor\n"
                f"{self.state}"
            ) from None
        except KeyboardInterrupt:
            raise CommandError(f"Interrupted. {self.state}", returncode=130) from None

    def work(
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
        with KapsoClient.from_settings() as client:
            found = registration.inspect_webhooks(client, url, adopt=adopt)
        steps = registration.plan(found, set_secret=set_secret or rotate)
        self.show(found, steps)
        if rotate:
            self.check_rotation(found)
        if dry_run:
            if steps:
                raise SystemExit(WOULD_CHANGE)
            return
        if steps:
            self.check_site(url, steps)
            self.confirm(yes)
        # Another one: whoever was asked may have thought for longer than a client's budget lasts.
        with KapsoClient.from_settings() as client:
            webhook = self.apply_step(client, steps, rotate) if steps else None
            webhook = webhook or found.mine
            if webhook is not None and (test or rotate):
                self.test(client, webhook, url, timeout)
        if rotate:
            self.say_when_over()

    # The plan

    def show(self, found: WebhookInspection, steps: Sequence[Step]) -> None:
        self.say(f"This site's webhook: {found.url}")
        if found.mine is None:
            self.say("Kapso has no webhook that leads there.")
        for webhook in filter(None, (found.mine, *found.extra)):
            self.say(f"Kapso has {describe(webhook)}")
        if len(found.extra) > sum(not webhook.active for webhook in found.extra):
            self.say("Several lead there: everything is delivered more than once.")
        for webhook in found.others[:LISTED]:
            # The rest of their addresses is nobody's business here: it may be a secret.
            self.say(f"Left alone: {webhook.id} to {host_of(webhook.url)}")
        if len(found.others) > LISTED:
            self.say(f"Left alone: {len(found.others) - LISTED} more")
        for step in steps:
            what = f"Change {step.webhook.id}" if step.webhook else "Create a webhook"
            self.say("\n  ".join([f"{what}:", *step.why]))
        if not steps:
            self.say("Nothing to change.")

    def check_site(self, url: str, steps: Sequence[Step]) -> None:
        """Have Kapso sign with nothing that the running site is known to refuse; warn where it
        would deliver to nobody."""
        seen = registration.probe(url, get_conf().webhook_secret[0])
        if seen.outcome is Outcome.REFUSED and any("secret_key" in step.changes for step in steps):
            raise Stopped(seen.said)
        if seen.outcome is not Outcome.ACCEPTED:
            self.say(f"Warning: {seen.said}")

    def confirm(self, yes: bool) -> None:
        if yes:
            return
        try:
            answer = input("Make these changes at Kapso? [y/N] ")
        except EOFError:
            raise CommandError(f"Nobody can be asked here: use --yes. {UNCHANGED}") from None
        if answer.strip().lower() not in {"y", "yes"}:
            raise CommandError(UNCHANGED)

    def apply_step(
        self, client: KapsoClient, steps: Sequence[Step], rotate: bool
    ) -> KapsoWebhook | None:
        """Do ``steps``; return the webhook that was made or repaired, if one was."""
        mine = None
        for step in steps:
            self.state = (
                "Kapso may sign with the new secret or with the old one; this site accepts both, "
                "so nothing is lost. Run the command again."
                if rotate
                else "What was planned may be done in part. Run the command again."
            )
            changed = registration.apply_step(client, step)
            if step.is_mine:
                mine = changed
            self.say(f"Done: {'changed' if step.webhook else 'created'} {changed.id}")
        self.state = (
            "Kapso signs with the new secret; this site accepts both, so nothing is lost. Keep "
            "both, and run the command again to test it."
            if rotate
            else "What was planned is done."
        )
        return mine

    # Rotation and test

    def check_rotation(self, found: WebhookInspection) -> None:
        known = get_conf().webhook_secret
        if found.mine is None:
            raise Stopped("There is no webhook to rotate the secret of: run without --rotate.")
        if len(known) < 2 and registration.secret_state(found.mine) is not SecretState.CURRENT:
            raise Stopped(
                "KAPSO_CONNECT['WEBHOOK_SECRET'] holds one secret. Make it a list, the new one "
                "first and the old one behind it, restart the site with it, and run this again. "
                "manage.py kapso_webhook --new-secret prints a new one."
            )
        registration.verify_secrets(found.url, known)
        self.say(f"The running site accepts {'both secrets' if len(known) > 1 else 'the secret'}.")

    def test(self, client: KapsoClient, webhook: KapsoWebhook, url: str, timeout: float) -> None:
        self.say("Kapso is asked for a test delivery ...")
        took = registration.send_test(client, webhook, seconds=timeout)
        if took is None:
            raise Stopped(
                f"The test delivery did not arrive within {timeout:.0f} seconds. "
                + registration.why_not_arrived(webhook, url)
            )
        self.say(f"It arrived after {took:.1f} seconds.")

    def say_when_over(self) -> None:
        if len(get_conf().webhook_secret) < 2:
            return
        over = datetime.now(timezone.utc) + timedelta(seconds=registration.RETRIES_SECONDS)
        self.say(
            "Kapso signs with the new secret. What it repeats may be signed with the old one until "
            f"{over:%H:%M} UTC: take the old one out of WEBHOOK_SECRET after that."
        )

    def say(self, text: str) -> None:
        if self.verbosity > 0:
            self.stdout.write(self.plain(text))

    def plain(self, text: str) -> str:
        return plain(text, self.stdout)


def host_of(url: str) -> str:
    try:
        return urlsplit(url).hostname or "nowhere"
    except ValueError:
        return "no usable address"


def describe(webhook: KapsoWebhook) -> str:
    subscribed = len(set(registration.EVENTS) & set(webhook.events))
    told = (
        "active" if webhook.active else "NOT active",
        f"payload {webhook.payload_version or 'version not shown'}",
        f"{subscribed} of the {len(registration.EVENTS)} events",
        f"secret: {registration.SECRETS[registration.secret_state(webhook)]}",
    )
    return f"{webhook.id} to {registration.shown(webhook.url)}: {', '.join(told)}"
