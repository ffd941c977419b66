from __future__ import annotations

import json
import signal
import sys
import threading
import time
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

from django.apps import apps
from django.core.exceptions import ImproperlyConfigured, ObjectDoesNotExist, ValidationError
from django.core.management.base import BaseCommand, CommandError
from django.db import models
from django.urls import NoReverseMatch, get_resolver
from django.utils import timezone

from kapso_connect.exceptions import InvalidOptions
from kapso_connect.kapso.types import Language
from kapso_connect.management.progress import Progress
from kapso_connect.models import Customer, Invitation, InvitationBatch, SetupLink
from kapso_connect.onboarding import invitations, setup_links
from kapso_connect.onboarding.messages import staff_message
from kapso_connect.onboarding.status import OnboardingStatus, has_status
from kapso_connect.utils import validate_same_site_url

CHUNK = 500
LISTED = 20

PATIENCE = 60.0
"""Seconds without any progress after which the rest is left to others or to later."""

GO_ON = "Nothing is lost. Go on with: manage.py kapso_invite --resume"


def option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ArgumentTypeError("must be name=value, the value in JSON")
    try:
        return name, json.loads(value)
    except (ValueError, RecursionError):
        raise ArgumentTypeError(
            f"{name}: {value} is not JSON; a text is written '\"like this\"'"
        ) from None


class Command(BaseCommand):
    help = (
        "Creates setup links for many customers, several at a time. It may be interrupted and "
        "resumed; nobody gets two links. Exit status: 0 everybody has a link, 1 somebody has none "
        "(yet) or was not sent it, 130 interrupted."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "ids",
            nargs="*",
            help="Primary keys of the customers to invite; with --model, of its objects.",
        )
        parser.add_argument(
            "--all-missing",
            action="store_true",
            help="Invite all customers that nobody has invited yet and that have no number.",
        )
        parser.add_argument(
            "--model",
            metavar="app.Model",
            help="Invite the objects of this model, whose ModelAdmin has SetupLinkAdminMixin.",
        )
        parser.add_argument(
            "--resume", action="store_true", help="Go on with batches that are not finished, first."
        )
        parser.add_argument(
            "--email", action="store_true", help="Send each customer their link by e-mail."
        )
        parser.add_argument(
            "--language", choices=Language.values, help="Language of the hosted page for all."
        )
        parser.add_argument(
            "--option",
            action="append",
            default=[],
            type=option,
            metavar="NAME=JSON",
            help="An option of the links under Kapso's name, such as "
            "allowed_connection_types='[\"dedicated\"]'. May be repeated.",
        )
        parser.add_argument(
            "--next-url",
            default="",
            help="The page of this site that the success page leads on to.",
        )
        parser.add_argument(
            "--dry-run", action="store_true", help="Only count who would be invited."
        )

    def handle(
        self,
        *args: Any,
        ids: Sequence[str],
        all_missing: bool,
        model: str | None,
        resume: bool,
        dry_run: bool,
        **choices: Any,
    ) -> None:
        if ids and all_missing:
            raise CommandError("Name ids or --all-missing, not both.")
        if not (ids or all_missing or resume):
            raise CommandError("Say whom to invite: ids or --all-missing; or --resume.")
        self.verbosity = choices["verbosity"]
        options = dict(choices["option"])
        if choices["language"]:
            options["language"] = choices["language"]
        try:
            next_url = validate_same_site_url(choices["next_url"])
            setup_links.link_options(Customer(), options)
        except (ImproperlyConfigured, InvalidOptions, NoReverseMatch) as error:
            raise CommandError(staff_message(error)) from None
        problems: list[str] = []
        try:
            if resume:
                problems += self.resume(dry_run)
            if ids or all_missing:
                chosen = Chosen(model, ids)
                if dry_run:
                    self.say(f"would invite {chosen.count()} customers")
                else:
                    pks, complaints = chosen.pks()
                    problems += complaints
                    if pks:
                        batch = invitations.make_batch(pks)
                        invitations.start(
                            batch, options=options, next_url=next_url, send_email=choices["email"]
                        )
                        problems += self.work(batch)
                    else:
                        self.say("nobody is to be invited")
        except KeyboardInterrupt:
            what = GO_ON if unfinished().exists() else "Nothing is left half done."
            raise CommandError(f"Interrupted. {what}", returncode=130) from None
        if problems:
            raise CommandError("\n".join(problems), returncode=1)

    def say(self, text: str) -> None:
        if self.verbosity > 0:
            self.stdout.write(f"kapso_invite: {text}")

    def resume(self, dry_run: bool) -> list[str]:
        problems: list[str] = []
        batches = list(unfinished())
        if dry_run:
            left = sum(invitations.progress(batch).left for batch in batches)
            self.say(f"would go on with {left} customers of {len(batches)} batches")
            return []
        for batch in batches:
            invitations.resume(batch)
            problems += self.work(batch)
        return problems

    def work(self, batch: InvitationBatch) -> list[str]:
        with Progress(on=sys.stderr.isatty() and self.verbosity > 0) as progress:
            with interruption() as asked:
                follow(batch, progress, asked)
            if asked.is_set():
                raise KeyboardInterrupt
        reached = invitations.progress(batch)
        mailed = f", {reached.emails_sent} e-mailed" if batch.send_email else ""
        self.say(
            f"{reached.done} of {reached.total} customers have a link{mailed}, "
            f"{reached.failed} failed, {reached.left} left"
        )
        return list(problems_of(batch, reached))


def unfinished() -> models.QuerySet[InvitationBatch]:
    """The batches that were started and have something left, stopped or not."""
    left = Invitation.objects.filter(batch=models.OuterRef("pk"), status=Invitation.Status.PENDING)
    return InvitationBatch.objects.filter(models.Exists(left), started_at__isnull=False).order_by(
        "pk"
    )


@contextmanager
def interruption() -> Iterator[threading.Event]:
    """Yield what is set when somebody presses Ctrl-C: what is under way is then ended in order.
    Who presses it again does not wait."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def ask(*args: object) -> None:
        asked.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)


def follow(batch: InvitationBatch, progress: Progress, asked: threading.Event) -> None:
    """Work ``batch`` off until ``asked`` to end; wait a while for what others are at, or what is
    due soon."""
    step = f"batch {batch.pk}"
    shown = 0.0

    def tell() -> None:
        nonlocal shown
        if time.monotonic() - shown > 0.5:
            reached = invitations.progress(batch)
            progress(step, reached.done + reached.failed, reached.total)
            shown = time.monotonic()

    settled, since = -1, time.monotonic()
    while True:
        invitations.work(batch.pk, tell=tell, shall_end=asked.is_set)
        batch.refresh_from_db()
        reached = invitations.progress(batch)
        progress(step, reached.done + reached.failed, reached.total)
        if batch.stopped or asked.is_set() or not reached.left:
            return
        if reached.done + reached.failed > settled:
            settled, since = reached.done + reached.failed, time.monotonic()
        wait = (reached.due_at - timezone.now()).total_seconds() if reached.due_at else 1.0
        if time.monotonic() - since + wait > PATIENCE:
            return
        asked.wait(min(max(wait, 0.1), 5.0))


def problems_of(batch: InvitationBatch, reached: invitations.Progress) -> Iterator[str]:
    """Yield, for whoever runs the command, what is wrong with ``batch``."""
    if batch.stopped:
        yield batch.stopped
    failed = batch.invitations.filter(status=Invitation.Status.FAILED).select_related("customer")
    for row in failed[:LISTED]:
        yield f"{row.customer} ({row.customer_id}): {row.last_error}"
    unsent = batch.invitations.filter(email_status=Invitation.Email.FAILED)
    for row in unsent.select_related("customer")[:LISTED]:
        yield f"{row.customer} ({row.customer_id}) was not sent the link: {row.email_error}"
    more = max(reached.failed - LISTED, 0) + max(reached.emails_failed - LISTED, 0)
    if more:
        yield f"… and {more} more: see the admin."
    if reached.left:
        yield f"{reached.left} customers are left. {GO_ON}"


class Chosen:
    """Those to invite: customers, or the objects of a host's model."""

    def __init__(self, label: str | None, ids: Sequence[str]) -> None:
        self.admin = find_admin(label) if label else None
        self.only_missing = not ids
        manager = self.admin.model._default_manager if self.admin else Customer.objects
        if ids:
            self.objs = manager.filter(pk__in=existing(manager, ids))
        else:
            self.objs = manager.all() if self.admin else missing()

    def pks(self) -> tuple[list[int], list[str]]:
        """Return the customers' primary keys, made where there are none, and what went wrong."""
        if self.admin is None:
            return list(self.objs.values_list("pk", flat=True)), []
        made, problems = self.admin.make_customers(self.objs)
        if not self.only_missing:
            return list(made), problems
        found: list[int] = []
        for pks in chunks(made):
            found += missing().filter(pk__in=pks).values_list("pk", flat=True)
        return found, problems

    def count(self) -> int:
        """Return how many ``pks`` would name, making nobody."""
        if self.admin is None or not self.only_missing:
            return self.objs.count()
        count = 0
        for pks in chunks(self.objs.values_list("pk", flat=True)):
            objs = list(self.objs.filter(pk__in=pks))
            known = [customer.pk for customer in self.admin.find_customers(objs).values()]
            count += len(objs) - len(known) + missing().filter(pk__in=known).count()
        return count


def chunks(pks: Iterable[Any]) -> Iterator[list[Any]]:
    everything = list(pks)
    for at in range(0, len(everything), CHUNK):
        yield everything[at : at + CHUNK]


def existing(manager: Any, ids: Sequence[str]) -> list[Any]:
    """Return the primary keys that ``ids`` name. Raises CommandError where one is nobody's."""
    pks, unknown = [], []
    for given in ids:
        try:
            pks.append(manager.values_list("pk", flat=True).get(pk=given))
        except (ObjectDoesNotExist, ValidationError, ValueError):
            unknown.append(given)
    if unknown:
        name = manager.model._meta.verbose_name
        raise CommandError(f"There is no {name} with the id {', '.join(unknown)}.")
    return pks


def missing() -> models.QuerySet[Customer]:
    """The customers that nobody has invited, and that no batch is about to. Whose invitation was
    withdrawn stays without one until somebody names them."""
    pending = Invitation.objects.filter(
        customer=models.OuterRef("pk"),
        status=Invitation.Status.PENDING,
        batch__started_at__isnull=False,
    )
    links = SetupLink.objects.filter(customer=models.OuterRef("pk"))
    return Customer.objects.filter(
        has_status(OnboardingStatus.NOT_INVITED), ~models.Exists(links), ~models.Exists(pending)
    )


def find_admin(label: str) -> Any:
    """Return the ModelAdmin of the model ``label``, app.Model, that knows its customers."""
    from django.contrib.admin.sites import all_sites

    from kapso_connect.admin.owners import Owners

    try:
        model = apps.get_model(label)
    except (LookupError, ValueError):
        raise CommandError(f"There is no model {label}. Write it as app.Model.") from None
    # Sites of its own register their models where the URLconf imports them.
    _loaded = get_resolver().url_patterns
    for site in all_sites:
        if site.is_registered(model):
            found = cast(Any, site.get_model_admin(model))
            if isinstance(found, Owners):
                return found
    raise CommandError(
        f"{label} has no ModelAdmin with kapso_connect.admin.SetupLinkAdminMixin, which knows how "
        "to make customers of its objects."
    )
