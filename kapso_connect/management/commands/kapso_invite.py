from __future__ import annotations

import json
import time
from argparse import ArgumentParser, ArgumentTypeError
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, cast

from django.apps import apps
from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import CommandError
from django.db import models
from django.urls import NoReverseMatch, get_resolver

from kapso_connect.exceptions import InvalidOptions
from kapso_connect.kapso.languages import Language
from kapso_connect.management.arguments import check_ids
from kapso_connect.management.base import KapsoCommand
from kapso_connect.management.interruption import Interruption, exit_status, interruption
from kapso_connect.management.plain import format_count
from kapso_connect.management.progress import Progress
from kapso_connect.models import Customer, Invitation, InvitationBatch, OnboardingStatus
from kapso_connect.onboarding import invitations, setup_links
from kapso_connect.onboarding.messages import staff_message
from kapso_connect.onboarding.reminders import REMINDED_STATUSES, Obstacle, with_obstacle
from kapso_connect.utils import time_since, validate_same_site_url

OBJECTS_PER_QUERY = 500
MAX_LISTED_PROBLEMS = 20

MAX_IDLE_SECONDS = 90.0
"""How long to wait for other processes, or for the next attempt, without any progress. Longer than
the minute for which Kapso's rate limit is."""

HOW_TO_RESUME = "Nothing is lost. Continue with: manage.py kapso_invite --resume"


def option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ArgumentTypeError("must be name=value, with the value in JSON")
    try:
        return name, json.loads(value)
    except (ValueError, RecursionError):
        raise ArgumentTypeError(
            f"{name}: {value} is not JSON; write a string as '\"text\"'"
        ) from None


class Command(KapsoCommand):
    help = (
        "Creates setup links for many customers, or reminds them of the links that they have. It "
        "can be interrupted and resumed; no customer gets two links, or a reminder twice. Exit "
        "status: 0 every customer has a link, or was reminded or left out; 1 some have no link yet "
        "or were not sent it; 130 interrupted by Ctrl-C, 143 by SIGTERM."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "ids",
            nargs="*",
            help="Primary keys of the customers to invite, or with --model, of its objects.",
        )
        parser.add_argument(
            "--all-missing",
            action="store_true",
            help="Invite all customers who were never invited and have no number.",
        )
        parser.add_argument(
            "--remind",
            action="store_true",
            help="Send reminders by e-mail instead, and create no links. Left out are customers "
            "who have gone further than opening the link, have no e-mail address, or were e-mailed "
            "the link less than a day ago.",
        )
        parser.add_argument(
            "--all-waiting",
            action="store_true",
            help="With --remind: all customers who were invited, or opened the link, and did "
            "nothing since.",
        )
        parser.add_argument(
            "--model",
            metavar="app.Model",
            help="Invite objects of this model. Its ModelAdmin must use SetupLinkAdminMixin.",
        )
        parser.add_argument(
            "--resume", action="store_true", help="Continue unfinished batches first."
        )
        parser.add_argument(
            "--retry-failed",
            action="store_true",
            help="Try the failed links and e-mails of all batches again first. An e-mail that may "
            "have been sent is not sent again.",
        )
        parser.add_argument(
            "--email", action="store_true", help="Send each customer their link by e-mail."
        )
        parser.add_argument(
            "--language", choices=Language.values, help="Language of Kapso's setup page."
        )
        parser.add_argument(
            "--option",
            action="append",
            default=[],
            type=option,
            metavar="NAME=JSON",
            help="An option of the setup links, under Kapso's name, such as "
            "allowed_connection_types='[\"dedicated\"]'. May be repeated.",
        )
        parser.add_argument(
            "--next-url",
            default="",
            help="The page of this site that customers continue to after connecting.",
        )
        parser.add_argument(
            "--dry-run",
            action="store_true",
            help="Only count the customers who would be invited or reminded.",
        )

    def handle(
        self,
        *args: Any,
        ids: Sequence[str],
        all_missing: bool,
        all_waiting: bool,
        remind: bool,
        resume: bool,
        retry_failed: bool,
        **options: Any,
    ) -> None:
        if ids and all_missing:
            raise CommandError("Give ids or --all-missing, not both.")
        if ids and all_waiting:
            raise CommandError("Give ids or --all-waiting, not both.")
        if all_waiting and not remind:
            raise CommandError("--all-waiting says whom to remind: give --remind, too.")
        if remind:
            check_reminder_options(options, all_missing=all_missing)
            if not (ids or all_waiting or resume or retry_failed):
                raise CommandError("Say whom to remind: give ids or --all-waiting.")
        elif not (ids or all_missing or resume or retry_failed):
            raise CommandError(
                "Say whom to invite: give ids or --all-missing, or --resume or --retry-failed."
            )
        self.verbosity = options["verbosity"]
        link_options = dict(options["option"])
        if options["language"]:
            link_options["language"] = options["language"]
        try:
            next_url = validate_same_site_url(options["next_url"])
            setup_links.build_options(Customer(), link_options)
        except (ImproperlyConfigured, InvalidOptions, NoReverseMatch) as error:
            raise CommandError(staff_message(error)) from None
        dry_run = options["dry_run"]
        choices = {"options": link_options, "next_url": next_url, "send_email": options["email"]}
        try:
            batches = find_batches(unfinished=resume, failed=retry_failed)
            problems = self.resume(batches, dry_run) if resume or retry_failed else []
            if remind and (ids or all_waiting):
                problems += self.remind(ids, options["model"], dry_run)
            elif ids or all_missing:
                problems += self.invite(ids, options["model"], choices, dry_run)
        except KeyboardInterrupt as interrupt:
            is_left = find_batches(unfinished=True, failed=False)
            hint = HOW_TO_RESUME if is_left else "Nothing was left unfinished."
            status = exit_status(interrupt)
            raise CommandError(f"Interrupted. {hint}", returncode=status) from None
        if problems:
            raise CommandError("\n".join(problems), returncode=1)

    def say(self, text: str) -> None:
        if self.verbosity > 0:
            self.stdout.write(f"kapso_invite: {text}")

    def invite(
        self, ids: Sequence[str], model: str | None, choices: dict[str, Any], dry_run: bool
    ) -> list[str]:
        """Invite the customers, or the objects of ``model``, with these ``ids``, or without any,
        all who were never invited. Return why some have no link."""
        model_admin = find_model_admin(model) if model else None
        objs = find_objects(model_admin, ids)
        if dry_run:
            count = count_customers(model_admin, objs, only_missing=not ids)
            self.say(f"would invite {format_count(count, 'customer')}")
            return []
        try:
            customers, problems = make_customers(model_admin, objs, only_missing=not ids)
        except ImproperlyConfigured as error:
            raise CommandError(str(error)) from None
        if not customers:
            self.say("no customers to invite")
            return problems
        batch = invitations.make_batch(customers)
        invitations.start(batch, **choices)
        return problems + self.work(batch)

    def remind(self, ids: Sequence[str], model: str | None, dry_run: bool) -> list[str]:
        """Remind the customers, or those of the objects of ``model``, with these ``ids``, or
        without any, all who wait. Return why e-mails were not sent."""
        model_admin = find_model_admin(model) if model else None
        model_admin = find_model_admin(model) if model else None
        objs = find_objects_to_remind(model_admin, ids)
        if dry_run:
            counts = count_obstacles(model_admin, objs)
            self.say(f"would remind {format_count(counts.pop('', 0), 'customer')}")
            for obstacle, left_out in sorted(counts.items()):
                self.say(f"would leave out {left_out}: {Obstacle(obstacle).label}")
            return []
        try:
            # No customers are created, but their e-mail addresses may have changed.
            customers, problems = make_customers(model_admin, objs, only_missing=False)
        except ImproperlyConfigured as error:
            raise CommandError(str(error)) from None
        batch = invitations.make_reminders(customers)
        if not batch.invitations.exists():
            batch.delete()
            self.say("no customers to remind")
            return problems
        invitations.start(batch)
        return problems + self.work(batch)

    def resume(self, batches: Sequence[InvitationBatch], dry_run: bool) -> list[str]:
        if dry_run:
            counts = [invitations.progress(batch) for batch in batches]
            left = sum(count.left + count.failed + count.emails_failed for count in counts)
            self.say(
                f"would continue with {format_count(left, 'customer')} in "
                f"{format_count(len(batches), 'batch', 'batches')}"
            )
            return []
        problems: list[str] = []
        for batch in batches:
            invitations.resume(batch)
            problems += self.work(batch)
        return problems

    def work(self, batch: InvitationBatch) -> list[str]:
        with Progress(on=self.verbosity > 0) as progress:
            with interruption() as interrupted:
                work_on_batch(batch, progress, interrupted)
            interrupted.raise_if_set()
        counts = invitations.progress(batch)
        if batch.is_reminder:
            self.say(
                f"{counts.emails_sent} of {format_count(counts.total, 'customer')} reminded, "
                f"{counts.left_out} left out, {counts.failed + counts.emails_failed} failed, "
                f"{counts.left} left"
            )
            return list(list_problems(batch, counts))
        emailed = f", {counts.emails_sent} e-mailed" if batch.send_email else ""
        self.say(
            f"{counts.done} of {format_count(counts.total, 'customer')} invited{emailed}, "
            f"{counts.failed} failed, {counts.left} left"
        )
        return list(list_problems(batch, counts))


def find_batches(*, unfinished: bool, failed: bool) -> list[InvitationBatch]:
    """Return the batches that were started and are ``unfinished``, whether they stopped or not, and
    those with links or e-mails that ``failed``."""
    rows = Invitation.objects.none()
    if unfinished:
        rows |= Invitation.objects.pending()
    if failed:
        rows |= Invitation.objects.failed() | Invitation.objects.email_failed()
    batches = InvitationBatch.objects.filter(pk__in=rows.values("batch"), started_at__isnull=False)
    return list(batches.order_by("pk"))


def work_on_batch(batch: InvitationBatch, progress: Progress, interrupted: Interruption) -> None:
    """Work on ``batch`` until it is finished, ``interrupted``, or idle for too long."""
    step, counts = f"batch {batch.pk}", invitations.progress(batch)
    shown = counts.done + counts.failed

    def show_one_more() -> None:
        nonlocal shown
        shown += 1
        progress(step, shown, counts.total)

    ended, ended_at = -1, time.monotonic()
    while True:
        invitations.work(batch.pk, on_progress=show_one_more, should_stop=interrupted.is_set)
        batch.refresh_from_db()
        counts = invitations.progress(batch)
        shown = counts.done + counts.failed
        progress(step, shown, counts.total)
        if batch.stopped or interrupted.is_set() or not counts.left:
            return
        if shown > ended:
            ended, ended_at = shown, time.monotonic()
        wait = -time_since(counts.due_at).total_seconds() if counts.due_at else 1.0
        if time.monotonic() - ended_at + wait > MAX_IDLE_SECONDS:
            return
        interrupted.wait(min(max(wait, 0.1), 5.0))


def list_problems(batch: InvitationBatch, counts: invitations.Progress) -> Iterator[str]:
    if batch.stopped:
        yield batch.stopped
    failed = batch.invitations.failed().select_related("customer")
    for row in failed[:MAX_LISTED_PROBLEMS]:
        yield f"{row.customer} ({row.customer_id}): {row.last_error}"
    unsent_text = "the reminder was not sent" if batch.is_reminder else "the link was not sent"
    unsent = batch.invitations.exclude(email_error="").select_related("customer")
    for row in unsent[:MAX_LISTED_PROBLEMS]:
        yield f"{row.customer} ({row.customer_id}): {unsent_text}: {row.email_error}"
    emails = (
        counts.emails_failed + counts.emails_unknown + counts.emails_waiting + counts.no_address
    )
    more = sum(max(n - MAX_LISTED_PROBLEMS, 0) for n in (counts.failed, emails))
    if more:
        yield f"… and {more} more: see the admin."
    if counts.left:
        yield f"{format_count(counts.left, 'customer')} left. {HOW_TO_RESUME}"


def find_objects(model_admin: Any, ids: Sequence[str]) -> models.QuerySet[Any]:
    """Return the customers to invite, or with ``model_admin``, the objects of its model."""
    manager: Any = model_admin.model._default_manager if model_admin else Customer.objects
    if ids:
        return cast("models.QuerySet[Any]", manager.filter(pk__in=check_ids(manager, ids)))
    return cast("models.QuerySet[Any]", manager.all()) if model_admin else never_invited()


def check_reminder_options(options: Mapping[str, Any], *, all_missing: bool) -> None:
    """Raise CommandError for options that only new links have."""
    given = {
        "--all-missing": all_missing,
        "--email": options["email"],
        "--language": options["language"],
        "--option": options["option"],
        "--next-url": options["next_url"],
    }
    names = [name for name, value in given.items() if value]
    if names:
        raise CommandError(f"--remind creates no links: leave out {', '.join(names)}.")


def find_objects_to_remind(model_admin: Any, ids: Sequence[str]) -> models.QuerySet[Any]:
    """Return the customers with these ``ids``, or without any, all who wait; with ``model_admin``,
    the objects of its model that own them."""
    from kapso_connect.admin.status import owners_of

    customers = Customer.objects.all()
    if not ids:
        customers = customers.filter(status__in=REMINDED_STATUSES)
    if model_admin is not None:
        return owners_of(customers, find_objects(model_admin, ids))
    return customers.filter(pk__in=check_ids(Customer.objects, ids)) if ids else customers


def count_obstacles(model_admin: Any, objs: models.QuerySet[Any]) -> Counter[str]:
    """Return how many customers would be left out, by obstacle, and under "" how many reminded."""
    counts: Counter[str] = Counter()
    rows = objs.iterator(chunk_size=OBJECTS_PER_QUERY)
    while group := list(islice(rows, OBJECTS_PER_QUERY)):
        if model_admin is not None:
            group = list(model_admin.find_customers(group).values())
        customers = Customer.objects.filter(pk__in=[customer.pk for customer in group])
        counts.update(with_obstacle(customers).values_list("obstacle", flat=True))
    return counts


def make_customers(
    model_admin: Any, objs: models.QuerySet[Any], *, only_missing: bool
) -> tuple[list[int], list[str]]:
    """Return the primary keys of the customers, and why customers could not be created."""
    if model_admin is None:
        return list(objs.values_list("pk", flat=True)), []
    customers, problems = model_admin.make_customers(objs)
    if only_missing:
        uninvited = set(never_invited().values_list("pk", flat=True))
        customers = [pk for pk in customers if pk in uninvited]
    return list(customers), problems


def count_customers(model_admin: Any, objs: models.QuerySet[Any], *, only_missing: bool) -> int:
    """Return how many customers would be invited, without creating any."""
    count = objs.count()
    if model_admin is not None and only_missing:
        uninvited = set(never_invited().values_list("pk", flat=True))
        rows = objs.iterator(chunk_size=OBJECTS_PER_QUERY)
        while group := list(islice(rows, OBJECTS_PER_QUERY)):
            known = model_admin.find_customers(group).values()
            count -= sum(customer.pk not in uninvited for customer in known)
    return count


def never_invited() -> models.QuerySet[Customer]:
    """Return the customers who have no setup link, not even a revoked one, no number, and no
    invitation in a started batch, and whose data were not erased."""
    invited = Invitation.objects.pending().filter(batch__started_at__isnull=False)
    return Customer.objects.filter(
        status=OnboardingStatus.NOT_INVITED, setup_links=None, erased_at=None
    ).exclude(pk__in=invited.values("customer"))


def find_model_admin(label: str) -> Any:
    """Return the ModelAdmin of the model ``label``, written app.Model, that uses our mixin."""
    from django.contrib.admin.sites import all_sites

    from kapso_connect.admin.customer_data import CustomerDataMixin

    try:
        model = apps.get_model(label)
    except (LookupError, ValueError):
        raise CommandError(f"There is no model {label}. Write it as app.Model.") from None
    # A custom admin site may register its models when the URLconf is imported.
    _patterns = get_resolver().url_patterns
    for site in all_sites:
        if site.is_registered(model):
            found = cast(Any, site.get_model_admin(model))
            if isinstance(found, CustomerDataMixin):
                return found
    raise CommandError(
        f"The ModelAdmin of {label} does not use kapso_connect.admin.SetupLinkAdminMixin."
    )
