"""Check an installation, and say what is wrong with it and what to do next.

Nothing here raises: whatever is broken becomes a finding. No finding contains a secret: of an error
that is not this package's own, only the class is shown, since its text may quote a password.
"""

from __future__ import annotations

import platform
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta, timezone
from email.utils import parsedate_to_datetime
from enum import Enum
from importlib import metadata
from itertools import islice
from typing import Any

from django.apps import apps
from django.conf import settings
from django.core import checks
from django.core.cache import caches
from django.core.cache.backends.dummy import DummyCache
from django.core.exceptions import ImproperlyConfigured
from django.db import DatabaseError, connections, models
from django.db.migrations.executor import MigrationExecutor
from django.utils import timezone as clock

from .. import db, outbox
from ..checks import check_urls
from ..conf import DOCTOR_BUDGET, SETTING, TEST_DELIVERY_TIMEOUT, get_conf
from ..exceptions import KapsoBlocked, KapsoCredentialsError, KapsoError, KapsoNotFound
from ..kapso.client import API_PATH, KapsoClient
from ..kapso.http import Unreachable, fetch
from ..kapso.types import KapsoWebhook, KapsoWebhookDelivery
from ..models import Connection, Invitation, InvitationBatch, SetupLink, TimelineEvent
from ..onboarding import invitations
from ..onboarding.status import find_wrong_statuses
from ..utils import is_same_target, redact_url, time_since
from ..webhooks import inbox, number_webhooks, registration
from ..webhooks.registration import SecretState, WebhookInspection
from .queues import count_and_age, read_all_queues

OVERDUE_WARNING = timedelta(minutes=15)
OVERDUE_PROBLEM = timedelta(hours=1)
"""How long work may be due before that is a warning, and a problem."""

SYNC_OVERDUE_WARNING = timedelta(hours=1)
SYNC_OVERDUE_PROBLEM = timedelta(days=1)
"""The same for what only kapso_sync does, which some sites run rarely."""

UNHEARD_PERIOD = timedelta(days=7)
"""How far back numbers are counted whose connection no receiver heard of."""

CLOCK_WARNING_SECONDS = 30.0
CLOCK_PROBLEM_SECONDS = 300.0
"""Differences between this machine's clock and Kapso's."""

BLOCKING_CHECKS = {
    f"kapso_connect.{number}" for number in ("W001", "W002", "W003", "W004", "W013", "W016")
}
"""System checks that are only warnings, so that one can start a new site, but that keep every
customer from connecting, or the site from hearing of it: here they are problems."""

THIS_PACKAGE = "django-kapso-connect"
PACKAGES = (
    THIS_PACKAGE,
    "Django",
    "djangorestframework",
    "requests",
    "urllib3",
    "django-tasks",
    "phonenumbers",
    "psycopg",
    "mysqlclient",
    "django-health-check",
    "drf-spectacular",
    "prometheus-client",
    "segno",
    "tqdm",
)
"""This package and those that it uses, the optional ones included."""

TASK_TABLES = "django_tasks_db"
"""The app whose tables hold the tasks of its backend."""

SAMPLED_NUMBERS = 5
"""How many connected numbers are looked up at Kapso, until one of them is found there."""

RUN_SYNC = "Run manage.py kapso_sync every few minutes, from cron or a timer."
REPAIR_WEBHOOK = "Run: manage.py kapso_webhook"


DELIVERIES_EXAMINED = 1000
"""How many of the latest failed deliveries of the Kapso project are examined: ten requests."""

CATCH_UP = "Then run: manage.py kapso_sync"
FAILED_DELIVERIES = {
    "no_answer": (
        "Kapso got no answer within 10 s",
        "Check the site's name, its certificate and its firewall, and that no request to it takes "
        f"longer. {CATCH_UP}",
    ),
    "paused": (
        "Kapso did not try, since it had paused the webhook after too many failures",
        f"{REPAIR_WEBHOOK}, then: manage.py kapso_sync",
    ),
    "signature": (
        "the site refused the signature",
        "The secrets of Kapso and of this site differ. "
        f"{REPAIR_WEBHOOK}, then: manage.py kapso_sync",
    ),
    "forbidden": (
        "something refused Kapso's request before it reached this package",
        "Let the webhook's URL through without a login: look at the firewall, the web server and "
        f"the site's middleware. {CATCH_UP}",
    ),
    "not_found": (
        "there was no webhook at that URL",
        "Check that kapso_connect.urls is in the URLconf, and that the web server passes the URL "
        f"on to this site. {CATCH_UP}",
    ),
    "redirect": (
        "the site answered with a redirect, which Kapso does not follow",
        "Set KAPSO_CONNECT['PUBLIC_URL'] to the URL that the redirect leads to, and run: "
        "manage.py kapso_webhook, then: manage.py kapso_sync",
    ),
    "server_error": (
        "the site failed",
        "Look for the error in the logs of the site and of the web server in front of it. "
        f"{CATCH_UP}",
    ),
    "refused": (
        "the site refused them",
        f"The site's log says why, as webhook.refused. {CATCH_UP}",
    ),
}
"""For each reason of a failed delivery: what happened, and what to do next."""

REPAIR_NUMBER_WEBHOOKS = "Run: manage.py kapso_sync"
FAILED_MESSAGES = {
    "no_answer": "Check that the view answers within 10 s: let a task do what takes longer.",
    "paused": f"Correct what made the deliveries fail. {REPAIR_NUMBER_WEBHOOKS}, which turns the "
    "webhook on again.",
    "signature": "Kapso signs with another secret than the view accepts. "
    f"{REPAIR_NUMBER_WEBHOOKS}, and restart the site if its settings have changed.",
    "forbidden": "Let the URL through without a login and without a CSRF token: look at the view, "
    "the firewall, the web server and the site's middleware.",
    "not_found": "Check the url of KAPSO_CONNECT['NUMBER_WEBHOOK'], and the URLconf.",
    "redirect": "Give the URL that the redirect leads to as the url of "
    f"KAPSO_CONNECT['NUMBER_WEBHOOK']. {REPAIR_NUMBER_WEBHOOKS}",
    "server_error": "Look for the error in the site's log.",
    "refused": "Look at what the view refuses, in the site's log.",
}
"""For each reason of a failed delivery of a message: what to do next."""

MESSAGE_REASONS = {
    "forbidden": "something refused Kapso's request",
    "not_found": "there was no view at that URL",
}
"""Where it is not what FAILED_DELIVERIES says."""


class Level(str, Enum):
    """How serious a finding is."""

    OK = "ok"
    SKIPPED = "skipped"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True)
class Finding:
    """``check`` is a stable name. ``hint`` says what to do next; it is empty if nothing is wrong.
    ``data`` has the values behind the message, under stable names."""

    check: str
    level: Level
    message: str
    hint: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return the finding as the members of a JSON object."""
        return {**asdict(self), "level": self.level.value}


def _ok(check: str, message: str, **data: Any) -> Finding:
    return Finding(check, Level.OK, message, data=data)


def _warning(check: str, message: str, hint: str, **data: Any) -> Finding:
    return Finding(check, Level.WARNING, message, hint, data)


def _problem(check: str, message: str, hint: str, **data: Any) -> Finding:
    return Finding(check, Level.PROBLEM, message, hint, data)


SECRET_LEVELS = {
    SecretState.CURRENT: (Level.OK, ""),
    SecretState.OLDER: (Level.WARNING, "Finish the rotation: manage.py kapso_webhook --rotate"),
    SecretState.FOREIGN: (Level.PROBLEM, f"Every delivery is refused. {REPAIR_WEBHOOK}"),
    SecretState.HIDDEN: (Level.SKIPPED, "The test delivery shows whether it is the right one."),
}
"""What it means with which secret Kapso signs."""


class Skipped(Exception):
    """A check cannot be made; the message says why."""


class Diagnosis:
    """One run of all checks.

    With ``network=False``, neither Kapso nor this site's own URL is asked. ``test_delivery=False``
    leaves out the only check that changes something: it stores a delivery in the inbox.
    ``findings`` grows during the run; ``current`` is the name of the check that is running.
    """

    def __init__(self, *, network: bool = True, test_delivery: bool = True) -> None:
        self.network = network
        self.test_delivery = test_delivery
        self.findings: list[Finding] = []
        self.current = ""
        self.webhook: KapsoWebhook | None = None

    def run(self) -> list[Finding]:
        """Run all checks and return the findings."""
        for name, check in CHECKS.items():
            self.current = name
            try:
                if name in NETWORK_CHECKS:
                    self.require_network()
                for finding in check(self):
                    self.findings.append(finding)
            except Skipped as reason:
                self.findings.append(Finding(name, Level.SKIPPED, str(reason)))
            except (Exception, SystemExit) as error:
                message = f"Could not be checked: {type(error).__name__}."
                hint = "Fix the problems above first. If this one remains, run: manage.py check"
                self.findings.append(_problem(name, message, hint))
        self.current = ""
        return self.findings

    @property
    def level(self) -> Level:
        """The most serious level of all findings."""
        found = {finding.level for finding in self.findings}
        return next((bad for bad in (Level.PROBLEM, Level.WARNING) if bad in found), Level.OK)

    def require(self, check: str) -> None:
        """Raise Skipped unless the finding ``check`` is OK."""
        if not any(row.check == check and row.level is Level.OK for row in self.findings):
            raise Skipped(f"Not checked because of the problem with: {check}.")

    def require_network(self) -> None:
        """Raise Skipped if no request may or can be made."""
        if not self.network:
            raise Skipped("Not checked: network checks are turned off.")
        try:
            get_conf()
        except ImproperlyConfigured:
            raise Skipped(f"Not checked: {SETTING} is invalid.") from None

    def webhook_url(self) -> str:
        """Return the URL of this site's webhook. Raise Skipped if it has none."""
        try:
            return registration.webhook_url()
        except ImproperlyConfigured as error:
            raise Skipped(f"Not checked: {error}") from None


# What is installed, and the settings


def _check_versions(run: Diagnosis) -> Iterator[Finding]:
    versions = {"Python": platform.python_version()}
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    message = ", ".join(f"{name} {version}" for name, version in versions.items())
    if THIS_PACKAGE not in versions:
        message += f". {THIS_PACKAGE} was not installed: it runs from its source."
    yield _ok("versions", message, **versions)


def _check_settings(run: Diagnosis) -> Iterator[Finding]:
    found = checks.run_checks(tags=["kapso_connect"], include_deployment_checks=not settings.DEBUG)
    yield from _from_system_checks("settings", found, f"{SETTING} is valid.")


def _check_urls(run: Diagnosis) -> Iterator[Finding]:
    yield from _from_system_checks("urls", check_urls(), "kapso_connect.urls is in the URLconf.")


def _from_system_checks(
    name: str, messages: Sequence[checks.CheckMessage], all_good: str
) -> Iterator[Finding]:
    messages = [message for message in messages if not message.is_silenced()]
    for message in messages:
        is_problem = message.level >= checks.ERROR or message.id in BLOCKING_CHECKS
        report = _problem if is_problem else _warning
        number = str(message.id).rpartition(".")[2]
        hint = str(message.hint or "Correct it in the settings.")
        yield report(f"{name}.{number}", str(message.msg), hint, id=message.id)
    if not messages:
        yield _ok(name, all_good)


def _check_cache(run: Diagnosis) -> Iterator[Finding]:
    """Check that the default cache answers; customers can connect without it."""
    backend = settings.CACHES["default"]["BACKEND"].rpartition(".")[2]
    try:
        cache = caches["default"]
        cache.get("kapso_connect.monitoring.doctor")
    except Exception as error:
        message = f"The default cache ({backend}) does not answer: {type(error).__name__}."
        hint = "Check that it is running, and that CACHES['default'] is right."
        yield _warning("cache", message, hint, backend=backend)
        return
    if isinstance(cache, DummyCache):
        message = (
            "The default cache is DummyCache: requests to a customer's URL are not counted, so the "
            "rate limit does not work."
        )
        hint = "Set CACHES['default'] to one that stores something."
        yield _warning("cache", message, hint, backend=backend)
        return
    yield _ok("cache", f"The default cache is {backend}.", backend=backend)


# The database


def _check_database(run: Diagnosis) -> Iterator[Finding]:
    connection = connections[db.alias()]
    try:
        connection.introspection.table_names()
        version = ".".join(map(str, connection.get_database_version()))
    except Exception as error:
        message = f"The database does not answer: {type(error).__name__} ({connection.vendor})."
        hint = (
            "Check that its server is running, and HOST, PORT, NAME, USER and PASSWORD in "
            "DATABASES; for SQLite, that NAME is its file, and that this user may write to it. "
            "To see the driver's own message, run: manage.py dbshell"
        )
        yield _problem("database", message, hint)
        return
    vendor = connection.vendor
    yield _ok("database", f"{connection.display_name} {version}", vendor=vendor, version=version)


def _check_migrations(run: Diagnosis) -> Iterator[Finding]:
    run.require("database")
    connection = connections[db.alias()]
    executor = MigrationExecutor(connection)
    needed = [app for app in apps.get_app_configs() if app.name in {"kapso_connect", TASK_TABLES}]
    leaves = [leaf for app in needed for leaf in executor.loader.graph.leaf_nodes(app.label)]
    plan = executor.migration_plan(leaves)
    unapplied = [f"{migration.app_label}.{migration.name}" for migration, _backwards in plan]
    tables = {model._meta.db_table for app in needed for model in app.get_models()}
    missing = sorted(tables - set(connection.introspection.table_names()))
    data = {"unapplied": unapplied, "missing_tables": missing}
    if unapplied:
        message = f"Unapplied migrations: {', '.join(unapplied)}."
        yield _problem("migrations", message, "Run: manage.py migrate", **data)
    elif missing:
        message = f"Tables are missing, although their migrations are applied: {', '.join(missing)}"
        hint = "Restore the database, or run manage.py migrate kapso_connect zero, then migrate"
        yield _problem("migrations", message, hint, **data)
    else:
        yield _ok("migrations", "All migrations are applied.", **data)


def _check_writable(run: Diagnosis) -> Iterator[Finding]:
    run.require("migrations")
    try:
        db.check_writable()
    except DatabaseError as error:
        message = f"The database accepts no writes, so webhooks are refused: {type(error).__name__}"
        hint = (
            "It may be a standby, or set to read-only; for SQLite, this user must be allowed to "
            "write to the file and to its folder."
        )
        yield _problem("writable", message, hint)
    else:
        yield _ok("writable", "The database accepts writes.")


# What waits and what failed


def _check_tasks(run: Diagnosis) -> Iterator[Finding]:
    backend = outbox.deliver_event.get_backend()
    name, background = type(backend).__name__, invitations.is_background()
    where = "are left to workers" if background else "run at once, in the same process"
    yield _ok("tasks", f"Tasks {where} ({name}).", backend=name, background=background)
    if type(backend).__module__.partition(".")[0] != TASK_TABLES:
        return
    run.require("migrations")
    from django_tasks_db.models import DBTaskResult

    tasks = (outbox.deliver_event, inbox.process_webhook_event, invitations.work_invitations)
    ready = DBTaskResult.objects.ready().filter(task_path__in=[task.module_path for task in tasks])
    # A deferred task is due later than it was enqueued.
    deferred = models.When(run_after__lte=clock.now(), then=models.F("run_after"))
    ready = ready.annotate(due_at=models.Case(deferred, default=models.F("enqueued_at")))
    count, overdue = count_and_age(ready, "due_at")
    yield _waiting("tasks", count, overdue, "Keep a worker running: manage.py db_worker")


def _check_queues(run: Diagnosis) -> Iterator[Finding]:
    run.require("migrations")
    for queue in read_all_queues():
        yield _waiting(queue.name, queue.waiting, timedelta(seconds=queue.lag), RUN_SYNC)
        if queue.failed:
            message = f"Permanently failed {queue.name}: {queue.failed}."
            hint = "The admin shows why, and lets you run them again."
            yield _warning(f"{queue.name}.failed", message, hint, count=queue.failed)
    unfinished = Invitation.objects.pending().filter(batch=models.OuterRef("pk"))
    stopped = InvitationBatch.objects.exclude(stopped="").filter(models.Exists(unfinished))
    if count := stopped.count():
        message = f"Batches of invitations that stopped before they were finished: {count}."
        hint = "The batch's page in the admin says why. Then run: manage.py kapso_invite --resume"
        yield _warning("invitations.stopped", message, hint, count=count)


def _waiting(name: str, count: int, overdue: timedelta, hint: str) -> Finding:
    check = f"{name}.waiting"
    data = {"count": count, "overdue_seconds": round(overdue.total_seconds())}
    if overdue <= OVERDUE_WARNING:
        return _ok(check, f"Waiting {name}: {count}, none overdue.", **data)
    report = _problem if overdue > OVERDUE_PROBLEM else _warning
    message = f"Waiting {name}: {count}. The oldest has been due for {_format(overdue)}."
    return report(check, message, hint, **data)


def _check_receivers(run: Diagnosis) -> Iterator[Finding]:
    """Check whether the receivers of new connections are there in every process."""
    run.require("migrations")
    recent = TimelineEvent.objects.filter(
        kind=TimelineEvent.Kind.CONNECTED, occurred_at__gte=clock.now() - UNHEARD_PERIOD
    )
    by_nobody = outbox.heard_by_nobody()
    unheard = recent.filter(by_nobody, delivered_at__isnull=False).count()
    is_heard = recent.exclude(by_nobody).exists()
    has_receivers = outbox.has_site_receivers(TimelineEvent.Kind.CONNECTED)
    hint = (
        "Connect receivers in AppConfig.ready(), so that every process has them: kapso_sync and "
        "task workers, too."
    )
    data = {"unheard": unheard, "has_receivers": has_receivers}
    if is_heard and not has_receivers:
        message = (
            "The site has a receiver of whatsapp_connected, but this process, like kapso_sync, "
            "has none."
        )
        yield _warning("receivers", message, hint, **data)
    elif unheard and has_receivers:
        message = (
            f"Numbers connected in the last {UNHEARD_PERIOD.days} days that no receiver of "
            f"whatsapp_connected heard of: {unheard}."
        )
        hint += " What was connected before a receiver was added is not sent to it later."
        yield _warning("receivers", message, hint, **data)
    elif has_receivers:
        yield _ok("receivers", "Receivers of whatsapp_connected hear of new numbers.", **data)
    else:
        message = (
            "No receiver of whatsapp_connected is connected. The admin and the REST API show new "
            "numbers all the same; to act on them, connect one in AppConfig.ready()."
        )
        yield _ok("receivers", message, **data)


def _check_statuses(run: Diagnosis) -> Iterator[Finding]:
    run.require("migrations")
    if wrong := len(list(find_wrong_statuses())):
        message = f"Customers whose status does not follow from their links and numbers: {wrong}."
        yield _warning(
            "statuses", message, "Run manage.py kapso_sync, which repairs it.", count=wrong
        )
        return
    yield _ok("statuses", "The statuses of all customers are right.", count=0)


def _check_sync(run: Diagnosis) -> Iterator[Finding]:
    """Check whether kapso_sync is run, by the work that only it does."""
    run.require("migrations")
    threshold = clock.now() - SYNC_OVERDUE_WARNING
    active = SetupLink.objects.active()
    expired = active.aggregate(at=models.Min("expires_at"))["at"]
    synced = active.filter(customer__kapso_id__isnull=False, created_at__lt=threshold).aggregate(
        last_check=models.Max("checked_at"),
        first_created=models.Min("created_at"),
        count=models.Count("pk"),
    )
    if not synced["count"] and (expired is None or expired > threshold):
        raise Skipped("Not checked: no setup link is old enough to show whether kapso_sync is run.")
    idle = max(_age(expired), _age(synced["last_check"] or synced["first_created"]))
    seconds = round(idle.total_seconds())
    if idle <= SYNC_OVERDUE_WARNING:
        # The larger of two ages, so it does not say when kapso_sync was run.
        behind = _format(max(idle, timedelta(minutes=1)))
        message = f"The work of kapso_sync is at most {behind} behind."
        yield _ok("sync", message, idle_seconds=seconds)
        return
    report = _problem if idle > SYNC_OVERDUE_PROBLEM else _warning
    message = f"kapso_sync does not seem to be run: it has done nothing for {_format(idle)}."
    yield report("sync", message, RUN_SYNC, idle_seconds=seconds)


def _age(moment: datetime | None) -> timedelta:
    return time_since(moment) if moment else timedelta()


def _format(length: timedelta) -> str:
    minutes = round(length.total_seconds() / 60)
    if minutes < 120:
        return "1 minute" if minutes == 1 else f"{minutes} minutes"
    return f"{length.days} days" if length.days >= 2 else f"{round(minutes / 60)} hours"


# This site, from outside


def _check_site(run: Diagnosis) -> Iterator[Finding]:
    url = run.webhook_url()
    if reason := registration.undeliverable_reason(url):
        yield _problem("site.url", reason, "Then run: manage.py kapso_webhook")
    else:
        yield _ok("site.url", f"The URL for Kapso's webhook is {url}")
    configured = get_conf().webhook_secret
    refused = []
    # Even with a random secret, the answer shows whether this is the webhook.
    for index, secret in enumerate(configured or (secrets.token_hex(),), start=1):
        answer = registration.check_signature(url, secret)
        if answer.accepted is None:
            hint = (
                "Start the site, and open it from this machine: check its name, its certificate "
                "and the firewall."
            )
            yield _problem("site.reachable", answer.message, hint)
            return
        if not answer.accepted:
            refused.append(index)
    yield _ok("site.reachable", "This site answers at that URL.")
    total = len(configured)
    if not configured:
        raise Skipped("The secret was not checked: WEBHOOK_SECRET is not set.")
    if not refused:
        message = "The running site accepts signatures made with WEBHOOK_SECRET."
        yield _ok("site.secret", message, secrets=total, refused=refused)
        return
    message = (
        f"The running site refuses signatures made with secret {' and '.join(map(str, refused))} "
        f"of the {total} in WEBHOOK_SECRET: it runs with other settings."
    )
    hint = "Give the site and its commands the same environment, and restart the site."
    yield _problem("site.secret", message, hint, secrets=total, refused=refused)


# Kapso


def _check_clock(run: Diagnosis) -> Iterator[Finding]:
    url = get_conf().api_base_url + API_PATH
    try:
        answer = fetch("GET", url, server="Kapso", timeout=DOCTOR_BUDGET)
    except Unreachable as error:
        message = f"Kapso's API does not answer: {error}."
        hint = "Check this machine's Internet connection, and KAPSO_CONNECT['API_BASE_URL']."
        yield _problem("kapso.reachable", message, hint)
        return
    yield _ok("kapso.reachable", "Kapso's API answers.")
    try:
        kapso_time = parsedate_to_datetime(answer.headers["date"])
        ahead = (datetime.now(timezone.utc) - kapso_time).total_seconds()
    except (KeyError, ValueError, TypeError, OverflowError):
        raise Skipped("Not checked: Kapso's answer has no valid date.") from None
    if abs(ahead) < CLOCK_WARNING_SECONDS:
        message = "This machine's clock agrees with Kapso's."
        yield _ok("clock", message, seconds=round(ahead))
        return
    report = _problem if abs(ahead) > CLOCK_PROBLEM_SECONDS else _warning
    direction = "ahead of" if ahead > 0 else "behind"
    message = f"This machine's clock is {abs(ahead):.0f} s {direction} Kapso's."
    hint = "Correct the clock, and keep it synchronised with NTP."
    yield report("clock", message, hint, seconds=round(ahead))


def _check_kapso(run: Diagnosis) -> Iterator[Finding]:
    run.require("kapso.reachable")
    url = run.webhook_url()
    try:
        client = KapsoClient.from_settings(budget=DOCTOR_BUDGET)
        found = registration.inspect_webhooks(client, url)
    except KapsoCredentialsError as error:
        hint = "Check the key in Kapso under Project settings, API keys."
        yield _problem("kapso.key", str(error), hint)
    except KapsoNotFound as error:
        hint = "Check KAPSO_CONNECT['API_BASE_URL']. Leave it out to use Kapso itself."
        yield _problem("kapso.api", str(error), hint)
    except KapsoBlocked as error:
        hint = "The key is not the reason. Ask Kapso's support to let this machine's IP address in."
        yield _problem("kapso.api", str(error), hint)
    except KapsoError as error:
        hint = "Try again in a minute. If it continues, contact Kapso's support."
        yield _problem("kapso.api", str(error), hint)
    else:
        run.webhook = found.mine
        yield _ok("kapso.key", "Kapso accepts the API key.")
        yield from _webhook_findings(found)


def _webhook_findings(found: WebhookInspection) -> Iterator[Finding]:
    if found.mine is None:
        message = f"Kapso has no webhook with the URL {found.url}."
        yield _problem("webhook.registered", message, REPAIR_WEBHOOK)
        return
    yield _ok("webhook.registered", "Kapso has a webhook for this site.")
    state = registration.secret_state(found.mine)
    level, hint = SECRET_LEVELS[state]
    message = f"Kapso signs with {state.label}."
    yield Finding("webhook.secret", level, message, hint, {"state": state.value})
    try:
        steps = registration.plan(found)
    except ImproperlyConfigured as error:
        raise Skipped(f"The webhook's other values were not checked: {error}") from None
    for step in steps:
        changes = list(step.descriptions)
        message = f"The webhook is not as it should be. {'; '.join(changes)}"
        hint = f"Fix this site's problems listed above first. {REPAIR_WEBHOOK}"
        yield _problem("webhook.changes", message, hint, changes=changes)


def _check_numbers(run: Diagnosis) -> Iterator[Finding]:
    """Check that the API key is that of the project that has the connected numbers, as kapso_sync
    does before it disconnects those that are missing."""
    run.require("migrations")
    run.require("kapso.key")
    connected = Connection.objects.connected()
    total = connected.count()
    if total < 2:  # kapso_sync believes that a single number is gone
        return
    client = KapsoClient.from_settings(budget=DOCTOR_BUDGET)
    sample = connected.order_by("-pk").values_list("phone_number_id", flat=True)[:SAMPLED_NUMBERS]
    try:
        if any(_is_at_kapso(client, number) for number in sample):
            message = "This Kapso project has connected numbers of this site."
            yield _ok("numbers", message, connected=total)
            return
    except KapsoError as error:
        raise Skipped(f"Not checked: {error}") from None
    message = (
        f"None of {len(sample)} numbers, of {total} that are connected, is in this Kapso project."
    )
    hint = (
        "Set KAPSO_CONNECT['API_KEY'] to the key of the project that has them. If they are gone, "
        "run: manage.py kapso_sync --accept-mass-loss"
    )
    yield _problem("numbers", message, hint, connected=total)


def _check_number_webhooks(run: Diagnosis) -> Iterator[Finding]:
    """Check that each connected number has the webhook of NUMBER_WEBHOOK, and that the site's own
    view accepts what Kapso signs, and nothing else."""
    run.require("migrations")
    if get_conf().number_webhook is None:
        if left := number_webhooks.to_remove().count():
            message = f"Numbers that still have a webhook, although none is set: {left}."
            hint = f"{REPAIR_NUMBER_WEBHOOKS}, which removes them."
            yield _warning("number_webhooks.left", message, hint, count=left)
        return
    try:
        target = number_webhooks.find_target()
    except ImproperlyConfigured as error:
        hint = f"Correct KAPSO_CONNECT['NUMBER_WEBHOOK']. {REPAIR_NUMBER_WEBHOOKS}"
        yield _problem("number_webhooks.settings", str(error), hint)
        return
    if target is None:
        return
    yield from _check_number_endpoint(target.url)
    run.require("kapso.key")
    client = KapsoClient.from_settings(budget=DOCTOR_BUDGET)
    found: dict[str | None, list[KapsoWebhook]] = {}
    try:
        for webhook in client.list_webhooks():
            found.setdefault(webhook.phone_number_id, []).append(webhook)
    except KapsoError as error:
        raise Skipped(f"The numbers' webhooks could not be looked at. {error}") from None
    missing, changes = 0, set()
    connected = Connection.objects.connected().only("phone_number_id", "number_webhook_id")
    for connection in connected:
        webhooks = found.get(connection.phone_number_id, ())
        compared = number_webhooks.compare(connection, webhooks, target)
        missing += compared.mine is None
        changes |= {name.removesuffix("_key") for name in compared.changes}
        changes |= {"duplicates"} if compared.mine and compared.extra else set()
    data = {"connected": len(connected), "missing": missing, "changes": sorted(changes)}
    if not missing and not changes:
        message = "Each connected number has the webhook that NUMBER_WEBHOOK describes."
        yield _ok("number_webhooks", message, **data)
        return
    wrong = [f"numbers without one: {missing}"] if missing else []
    wrong += [f"not as NUMBER_WEBHOOK says: {', '.join(sorted(changes))}"] if changes else []
    message = f"The webhooks of connected numbers are not as they should be ({'; '.join(wrong)})."
    yield _problem("number_webhooks", message, REPAIR_NUMBER_WEBHOOKS, **data)


def _check_number_endpoint(url: str) -> Iterator[Finding]:
    shown = redact_url(url)
    configured = get_conf().number_webhook
    try:
        unsigned = registration.post_check(url, "")
        answers = [
            registration.post_check(url, secret)
            for secret in (configured.secrets if configured else ())
        ]
    except Unreachable as error:
        message = f"No answer from {shown}: {error}."
        hint = "Start the site, and check its name, its certificate and the firewall."
        yield _problem("number_webhooks.site", message, hint)
        return
    statuses = {"unsigned": unsigned, "signed": answers}
    refused = [index for index, status in enumerate(answers, start=1) if status in (401, 403)]
    elsewhere = [status for status in (unsigned, *answers) if status in (404, 405, 410)]
    elsewhere += [status for status in (unsigned, *answers) if 300 <= status < 400]
    if elsewhere:
        message = f"There is no view for messages at {shown}: it answers {elsewhere[0]}."
        hint = "Check the url of KAPSO_CONNECT['NUMBER_WEBHOOK'], and that the view allows POST."
        yield _problem("number_webhooks.site", message, hint, **statuses)
    elif unsigned not in (401, 403):
        message = f"{shown} does not refuse what is not signed: it answers {unsigned}, not 401."
        hint = "Verify the signature before anything else, as kapso_connect.webhooks.messages does."
        yield _problem("number_webhooks.site", message, hint, **statuses)
    elif refused:
        message = (
            f"{shown} refuses signatures made with secret {' and '.join(map(str, refused))} of the "
            f"{len(answers)} of NUMBER_WEBHOOK."
        )
        hint = (
            "Restart the site with these settings, and let its view verify with all secrets of "
            "NUMBER_WEBHOOK; exempt it from the CSRF check and the login."
        )
        yield _problem("number_webhooks.site", message, hint, **statuses)
    elif any(status >= 500 for status in answers):
        message = f"{shown} accepts the signature, and fails on a body that is no delivery."
        yield _warning("number_webhooks.site", message, "See the site's log.", **statuses)
    else:
        message = f"{shown} accepts what is signed with NUMBER_WEBHOOK's secret, and nothing else."
        yield _ok("number_webhooks.site", message, **statuses)


def _is_at_kapso(client: KapsoClient, phone_number_id: str) -> bool:
    try:
        client.get_phone_number(phone_number_id)
    except KapsoNotFound:
        return False
    return True


def _check_delivery(run: Diagnosis) -> Iterator[Finding]:
    run.require("migrations")
    if not run.test_delivery:
        raise Skipped("Not checked: the test delivery is turned off.")
    webhook = run.webhook
    if webhook is None or not webhook.active or registration.TEST_EVENT not in webhook.events:
        raise Skipped("Not checked: repair the webhook first.")
    if not get_conf().webhook_secret:
        raise Skipped("Not checked: WEBHOOK_SECRET is not set.")
    timeout = TEST_DELIVERY_TIMEOUT
    try:
        client = KapsoClient.from_settings(budget=DOCTOR_BUDGET)
        seconds = registration.send_test_delivery(client, webhook, timeout=timeout)
    except KapsoError as error:
        hint = "Send one from Kapso's dashboard, and look for it in the admin."
        yield _problem("delivery", str(error), hint)
        return
    if seconds is None:
        message = f"Kapso's test delivery did not arrive within {timeout:.0f} s."
        hint = registration.explain_missing_delivery(webhook, run.webhook_url())
        yield _problem("delivery", message, hint)
        return
    message = f"Kapso's test delivery arrived after {seconds:.1f} s."
    yield _ok("delivery", message, seconds=round(seconds, 1))


def _check_deliveries(run: Diagnosis) -> Iterator[Finding]:
    """Look for deliveries to this site that Kapso has given up in the last 24 hours."""
    run.require("kapso.key")
    url = run.webhook_url()
    messages_url = _number_webhook_url()
    client = KapsoClient.from_settings(budget=DOCTOR_BUDGET)
    failed: dict[str, list[KapsoWebhookDelivery]] = {}
    failed_messages: dict[str, list[KapsoWebhookDelivery]] = {}
    try:
        found = client.list_webhook_deliveries(status="failed", period="24h")
        for delivery in islice(found, DELIVERIES_EXAMINED):
            if is_same_target(delivery.webhook_url or "", url):
                failed.setdefault(_reason(delivery), []).append(delivery)
            elif messages_url and is_same_target(delivery.webhook_url or "", messages_url):
                failed_messages.setdefault(_reason(delivery), []).append(delivery)
    except KapsoError as error:
        raise Skipped(f"Kapso's list of deliveries could not be looked at. {error}") from None
    for reason, deliveries in failed.items():
        what, hint = FAILED_DELIVERIES[reason]
        yield _failed_deliveries("deliveries", reason, "Deliveries", deliveries, what, hint)
    for reason, deliveries in failed_messages.items():
        what, _hint = FAILED_DELIVERIES[reason]
        yield _failed_deliveries(
            *("deliveries.messages", reason, "Deliveries of messages", deliveries),
            *(MESSAGE_REASONS.get(reason, what), FAILED_MESSAGES[reason]),
        )
    if not failed and not failed_messages:
        message = "Kapso gave up no delivery to this site in the last 24 hours."
        yield _ok("deliveries", message)


def _failed_deliveries(
    check: str,
    reason: str,
    title: str,
    deliveries: Sequence[KapsoWebhookDelivery],
    what: str,
    hint: str,
) -> Finding:
    statuses = sorted({d.response_status for d in deliveries if d.response_status})
    answered = f" ({', '.join(map(str, statuses))})" if statuses else ""
    latest, age = deliveries[0].event, _format(time_since(deliveries[0].created_at))
    message = (
        f"{title} that Kapso gave up in the last 24 hours: {len(deliveries)}, because "
        f"{what}{answered}. The latest: {latest}, {age} ago."
    )
    data = {
        "count": len(deliveries),
        "statuses": statuses,
        "events": sorted({delivery.event for delivery in deliveries}),
    }
    return _warning(f"{check}.{reason}", message, hint, **data)


def _number_webhook_url() -> str:
    webhook = get_conf().number_webhook
    return number_webhooks.absolute_url(webhook.url) if webhook else ""


def _reason(delivery: KapsoWebhookDelivery) -> str:
    """Return why a delivery failed: a key of FAILED_DELIVERIES."""
    status = delivery.response_status
    if status is None:
        return "no_answer" if delivery.attempt_count else "paused"
    if status in (401, 403, 404):
        return {401: "signature", 403: "forbidden", 404: "not_found"}[status]
    if 300 <= status < 400:
        return "redirect"
    return "server_error" if status >= 500 else "refused"


CHECKS: dict[str, Callable[[Diagnosis], Iterator[Finding]]] = {
    "versions": _check_versions,
    "settings": _check_settings,
    "urls": _check_urls,
    "cache": _check_cache,
    "database": _check_database,
    "migrations": _check_migrations,
    "writable": _check_writable,
    "tasks": _check_tasks,
    "queues": _check_queues,
    "receivers": _check_receivers,
    "statuses": _check_statuses,
    "sync": _check_sync,
    "site": _check_site,
    "clock": _check_clock,
    "kapso": _check_kapso,
    "numbers": _check_numbers,
    "number_webhooks": _check_number_webhooks,
    "deliveries": _check_deliveries,
    "delivery": _check_delivery,
}
"""In the order in which they run: those that may take long come last."""

NETWORK_CHECKS = {
    *("site", "clock", "kapso", "numbers", "number_webhooks", "deliveries", "delivery"),
}
"""Those that send requests."""
