from __future__ import annotations

import sys
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from typing import Any

from django.apps import apps
from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import CommandError

from kapso_connect import onboarding
from kapso_connect.exceptions import KapsoError, NotErased, TryLater
from kapso_connect.management.arguments import check_ids
from kapso_connect.management.base import KapsoCommand
from kapso_connect.management.interruption import interruption
from kapso_connect.management.plain import format_count
from kapso_connect.management.progress import Progress, is_terminal
from kapso_connect.models import Customer
from kapso_connect.onboarding.messages import staff_message

MAX_LISTED_CUSTOMERS = 20


class Command(KapsoCommand):
    help = (
        "Erases the personal data of customers: disconnects their numbers at Kapso, revokes their "
        "links, and anonymises their rows; statistics stay. This cannot be undone. It can be run "
        "again after an error. Exit status: 0 all data are erased, 1 some are left, 130 "
        "interrupted by Ctrl-C, 143 by SIGTERM."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "ids",
            nargs="+",
            help="Primary keys of the customers, or with --model, of the objects that they belong "
            "to, or with --external-id, their external ids.",
        )
        kinds = parser.add_mutually_exclusive_group()
        kinds.add_argument(
            "--model", metavar="app.Model", help="The ids are those of objects of this model."
        )
        kinds.add_argument(
            "--external-id", action="store_true", help="The ids are external customer ids."
        )
        parser.add_argument(
            "--dry-run", action="store_true", help="Only say whose data would be erased."
        )
        parser.add_argument("--yes", action="store_true", help="Do not ask first.")

    def handle(
        self,
        *args: Any,
        ids: Sequence[str],
        model: str | None,
        external_id: bool,
        dry_run: bool,
        yes: bool,
        **options: Any,
    ) -> None:
        self.verbosity = options["verbosity"]
        customers = find_customers(ids, model=model, external_id=external_id)
        if dry_run:
            self.say("would erase " + format_count(len(customers), "customer"))
            for text in describe_some(customers):
                self.say(text)
            return
        if not yes:
            self.ask(customers)
        erased, problems = 0, []
        with interruption() as interrupted, Progress(on=self.verbosity > 0) as progress:
            for number, customer in enumerate(customers, start=1):
                if interrupted.is_set():
                    break
                problem, is_erased = erase(customer)
                problems += [problem] if problem else []
                erased += is_erased
                progress("erase", number, len(customers))
        self.say(f"erased {erased} of {format_count(len(customers), 'customer')}")
        if interrupted.is_set():
            message = "Interrupted. Run it again to erase the rest."
            raise CommandError(message, returncode=interrupted.exit_status)
        if problems:
            raise CommandError("\n".join(problems), returncode=1)

    def say(self, text: str) -> None:
        if self.verbosity > 0:
            self.stdout.write(f"kapso_erase: {text}")

    def ask(self, customers: Sequence[Customer]) -> None:
        """Ask on the terminal whether to go on; raise CommandError if not."""
        if not is_terminal(sys.stdin):
            raise CommandError("There is no terminal to ask on: add --yes to erase the data.")
        for text in describe_some(customers):
            self.stdout.write(text)
        count = format_count(len(customers), "customer")
        question = f"Erase the data of {count}? This cannot be undone. Type yes: "
        try:
            answer = input(question)
        except EOFError:
            answer = ""
        if answer.strip().lower() != "yes":
            raise CommandError("Nothing was erased.")


def find_customers(ids: Sequence[str], *, model: str | None, external_id: bool) -> list[Customer]:
    """Return the customers with these ids, each once. Raise CommandError if one does not exist."""
    unique = list(dict.fromkeys(ids))
    if external_id:
        found = {
            text: Customer.objects.filter(external_customer_id=text).first() for text in unique
        }
    elif model:
        owners = find_owners(model, unique)
        found = {text: Customer.objects.for_owners(rows).first() for text, rows in owners.items()}
    else:
        pks = check_ids(Customer.objects, unique)
        return list(Customer.objects.filter(pk__in=pks).order_by("pk"))
    if unknown := [text for text, customer in found.items() if customer is None]:
        kind = "external id" if external_id else f"{model} with the id"
        raise CommandError(f"There is no customer of the {kind} {', '.join(unknown)}.")
    return list({customer.pk: customer for customer in found.values() if customer}.values())


def find_owners(label: str, ids: Sequence[str]) -> dict[str, Any]:
    """Return, by id, a queryset of the object of the model ``label``. Raise CommandError for what
    does not exist."""
    try:
        manager = apps.get_model(label)._default_manager
    except (LookupError, ValueError):
        raise CommandError(f"There is no model {label}. Write it as app.Model.") from None
    return {text: manager.filter(pk__in=check_ids(manager, [text])) for text in ids}


def describe_some(customers: Sequence[Customer]) -> Iterator[str]:
    for customer in customers[:MAX_LISTED_CUSTOMERS]:
        numbers = ", ".join(map(str, customer.connections.connected()))
        connected = f", connected: {numbers}" if numbers else ""
        yield f"{customer} ({customer.pk}){connected}"
    if len(customers) > MAX_LISTED_CUSTOMERS:
        yield f"… and {len(customers) - MAX_LISTED_CUSTOMERS} more"


def erase(customer: Customer) -> tuple[str, bool]:
    """Erase a customer. Return what is left and why, and whether the data here are erased."""
    name = f"{customer} ({customer.pk})"
    try:
        erasure = onboarding.erase_customer(customer)
    except (
        KapsoError,
        NotErased,
        TryLater,
        ImproperlyConfigured,
        Customer.DoesNotExist,
    ) as error:
        return f"{name} was not erased: {staff_message(error)}", False
    if erasure.left_at_kapso:
        return f"{customer}: Kapso still has its own record: {erasure.left_at_kapso}", True
    return "", True
