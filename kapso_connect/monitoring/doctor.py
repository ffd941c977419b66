"""Check an installation, and say what is wrong with it and what to do next.

Nothing here raises: whatever is broken becomes a finding. No finding contains a secret. Of errors
that are not this package's own, only the kind is shown, never the text.
"""

from __future__ import annotations

import importlib.metadata
import platform
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta, timezone
from email.utils import parsedate_to_datetime
from enum import Enum
from typing import Any

import django
from django.apps import apps
from django.conf import settings
from django.core import checks
from django.core.cache import caches
from django.core.exceptions import ImproperlyConfigured
from django.db import Error, connections, models, router
from django.db.migrations.executor import MigrationExecutor
from django.utils import timezone as clock

from .. import __version__, outbox
from ..checks import SANDBOX_SECRETS, check_urls
from ..conf import DOCTOR_BUDGET, SETTING, TEST_DELIVERY_TIMEOUT, Conf, get_conf
from ..exceptions import KapsoCredentialsError, KapsoError, KapsoNotFound
from ..kapso.client import API_PATH, KapsoClient
from ..kapso.http import Unreachable, fetch
from ..models import Invitation, InvitationBatch, SetupLink, TimelineEvent, WebhookEvent
from ..onboarding import invitations
from ..webhooks import inbox, registration
from ..webhooks.registration import SecretState, SignatureStatus, WebhookInspection
from .hiding import hide, secret_values
from .queues import count_and_age

OVERDUE_WARNING = timedelta(minutes=15)
OVERDUE_PROBLEM = timedelta(hours=1)
"""How long work may be due before that is a warning, and a problem."""

SYNC_OVERDUE_WARNING = timedelta(hours=1)
SYNC_OVERDUE_PROBLEM = timedelta(days=1)
"""The same for what only kapso_sync does, which some sites run rarely."""

CLOCK_WARNING_SECONDS = 30.0
CLOCK_PROBLEM_SECONDS = 300.0
"""Differences between this machine's clock and Kapso's."""

BLOCKING_CHECKS = {f"kapso_connect.{number}" for number in ("W001", "W002", "W003", "W004", "W016")}
"""System checks that are only warnings, so that one can start a new site, but that keep every
customer from connecting: here they are problems."""

RUN_SYNC = "Run manage.py kapso_sync every few minutes, from cron or a timer."
RUN_WORKER = "Keep a worker running: manage.py db_worker"
REPAIR_WEBHOOK = "Run: manage.py kapso_webhook"


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
        # The sandbox's secrets are ordinary words, which messages need.
        self._hidden = [text for text in secret_values() if text not in SANDBOX_SECRETS]
        self.has_database = self.has_tables = False
        self.has_kapso_answered = False
        self.webhooks: WebhookInspection | None = None

    def run(self) -> list[Finding]:
        """Run all checks and return the findings."""
        for name, check in CHECKS.items():
            self.current = name
            try:
                for finding in check(self):
                    self._add(finding)
            except Skipped as reason:
                self._add(Finding(name, Level.SKIPPED, str(reason)))
            except Exception as error:
                self._add(
                    Finding(
                        name,
                        Level.PROBLEM,
                        f"Could not be checked: {describe_error(error)}.",
                        "Fix the problems above first. If this one remains, run: manage.py check",
                    )
                )
        self.current = ""
        return self.findings

    def _add(self, finding: Finding) -> None:
        self.findings.append(
            replace(
                finding,
                message=hide(finding.message, self._hidden),
                hint=hide(finding.hint, self._hidden),
            )
        )

    @property
    def level(self) -> Level:
        """The most serious level of all findings."""
        found = {finding.level for finding in self.findings}
        return next((bad for bad in (Level.PROBLEM, Level.WARNING) if bad in found), Level.OK)

    # What checks require; each raises Skipped.

    def conf(self) -> Conf:
        try:
            return get_conf()
        except ImproperlyConfigured:
            raise Skipped(f"Not checked: {SETTING} is invalid.") from None

    def require_network(self) -> Conf:
        if not self.network:
            raise Skipped("Not checked: network checks are turned off.")
        return self.conf()

    def require_tables(self) -> None:
        if not self.has_tables:
            raise Skipped("Not checked: the database or its tables are missing.")

    def webhook_url(self) -> str:
        self.conf()
        try:
            return registration.webhook_url()
        except ImproperlyConfigured as error:
            raise Skipped(f"Not checked: {error}") from None


def diagnose(*, network: bool = True, test_delivery: bool = True) -> list[Finding]:
    """Check this installation and return the findings; see ``Diagnosis``."""
    return Diagnosis(network=network, test_delivery=test_delivery).run()


def _warning_or_problem(is_problem: bool) -> Level:
    return Level.PROBLEM if is_problem else Level.WARNING


# What is installed


def _check_versions(run: Diagnosis) -> Iterator[Finding]:
    versions = {
        "django-kapso-connect": __version__,
        "Django": django.get_version(),
        "Python": platform.python_version(),
    }
    message = ", ".join(f"{name} {version}" for name, version in versions.items())
    yield Finding("versions", Level.OK, message, data=versions)


def _check_extras(run: Diagnosis) -> Iterator[Finding]:
    extras = {extra: _are_installed(names) for extra, names in _distributions_by_extra().items()}
    listed = ", ".join(f"{extra} {'yes' if has else 'no'}" for extra, has in sorted(extras.items()))
    yield Finding("extras", Level.OK, f"Optional parts installed: {listed}", data=extras)


def _distributions_by_extra() -> dict[str, list[str]]:
    extras: dict[str, list[str]] = {}
    for line in importlib.metadata.requires("django-kapso-connect") or []:
        match = re.match(r"([\w.-]+).*extra == ['\"]([\w-]+)['\"]", line)
        if match and match[2] not in {"dev", "docs", "example"}:
            extras.setdefault(match[2], []).append(match[1])
    return extras


def _are_installed(names: Iterable[str]) -> bool:
    for name in names:
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return False
    return True


# Settings


def _check_settings(run: Diagnosis) -> Iterator[Finding]:
    found = checks.run_checks(tags=["kapso_connect"], include_deployment_checks=not settings.DEBUG)
    messages = [message for message in found if not message.is_silenced()]
    for message in messages:
        yield _from_system_check("settings", message)
    if not messages:
        yield Finding("settings", Level.OK, f"{SETTING} is valid.")


def _check_urls(run: Diagnosis) -> Iterator[Finding]:
    messages = check_urls()
    for message in messages:
        yield _from_system_check("urls", message)
    if not messages:
        yield Finding("urls", Level.OK, "kapso_connect.urls is in the URLconf.")


def _from_system_check(name: str, message: checks.CheckMessage) -> Finding:
    level = _warning_or_problem(message.level >= checks.ERROR or message.id in BLOCKING_CHECKS)
    hint = str(message.hint or "Correct it in the settings.")
    number = str(message.id).rpartition(".")[2]
    return Finding(f"{name}.{number}", level, str(message.msg), hint, {"id": message.id})


def _check_cache(run: Diagnosis) -> Iterator[Finding]:
    backend = str(settings.CACHES["default"]["BACKEND"]).rpartition(".")[2]
    data = {"backend": backend}
    hint = (
        "Set CACHES['default'] to one that all processes share, such as Redis, Memcached or the "
        "database cache."
    )
    if backend == "DummyCache":
        message = (
            "The default cache is DummyCache: requests to a customer's URL are not counted, so the "
            "rate limit does not work."
        )
        yield Finding("cache", Level.WARNING, message, hint, data)
        return
    if backend == "LocMemCache" and not settings.DEBUG:
        yield Finding(
            "cache",
            Level.WARNING,
            f"The default cache ({backend}) is not shared between processes: each process counts "
            "requests to a customer's URL for itself.",
            f"If there is more than one process: {hint}",
            data,
        )
        return
    try:
        caches["default"].get("kapso_connect.monitoring.doctor")
    except Exception as error:
        # Only a warning: customers can connect without a cache.
        message = f"The default cache ({backend}) does not answer: {describe_error(error)}."
        yield Finding("cache", Level.WARNING, message, "Check that it is running.", data)
        return
    yield Finding("cache", Level.OK, f"The default cache is {backend}.", data=data)


def _check_tasks(run: Diagnosis) -> Iterator[Finding]:
    backend = outbox.deliver_event.get_backend()
    name = type(backend).__name__
    background = invitations.is_background()
    data = {"backend": name, "background": background}
    try:
        for task in _our_tasks():
            backend.validate_task(task)
    except Exception as error:
        yield Finding(
            "tasks",
            Level.PROBLEM,
            f"The default backend of TASKS ({name}) does not accept this app's tasks: "
            f"{describe_error(error)}.",
            'They use the queue "default": check that its QUEUES include it.',
            data,
        )
        return
    if name == "DummyBackend":
        yield Finding(
            "tasks",
            Level.PROBLEM,
            "The default backend of TASKS is DummyBackend, which runs no tasks: everything waits "
            "for kapso_sync.",
            "Leave TASKS out, or use a backend that runs tasks.",
            data,
        )
    elif background:
        yield Finding("tasks", Level.OK, f"Tasks run on a worker ({name}).", data=data)
    else:
        yield Finding(
            "tasks", Level.OK, f"Tasks run at once, in the same process ({name}).", data=data
        )


def _check_queue(run: Diagnosis) -> Iterator[Finding]:
    """Check django-tasks-db's queue, if the site uses it."""
    backend = outbox.deliver_event.get_backend()
    if type(backend).__module__.partition(".")[0] != "django_tasks_db":
        raise Skipped("Not checked: only the queue of django-tasks-db can be checked.")
    run.require_tables()
    from django_tasks_db.models import DBTaskResult

    names = [task.module_path for task in _our_tasks()]
    ready = DBTaskResult.objects.ready().filter(task_path__in=names)
    yield _waiting("queue", "tasks", ready, "enqueued_at", RUN_WORKER)


def _our_tasks() -> list[Any]:
    return [outbox.deliver_event, inbox.process_webhook_event, invitations.work_invitations]


# The database


def _check_database(run: Diagnosis) -> Iterator[Finding]:
    connection = connections[_database_alias()]
    try:
        connection.ensure_connection()
        version = ".".join(map(str, connection.get_database_version()))
    except Exception as error:
        yield Finding(
            "database",
            Level.PROBLEM,
            f"The database ({connection.display_name}) does not answer: {describe_error(error)}.",
            "Check that it is running and that DATABASES is right. Try: manage.py dbshell",
        )
        return
    run.has_database = True
    data = {"vendor": connection.vendor, "version": version}
    yield Finding("database", Level.OK, f"{connection.display_name} {version}", data=data)


def _check_migrations(run: Diagnosis) -> Iterator[Finding]:
    if not run.has_database:
        raise Skipped("Not checked: the database does not answer.")
    connection = connections[_database_alias()]
    executor = MigrationExecutor(connection)
    targets = executor.loader.graph.leaf_nodes("kapso_connect")
    plan = executor.migration_plan(targets)
    unapplied = [f"{migration.app_label}.{migration.name}" for migration, _backwards in plan]
    our_models = apps.get_app_config("kapso_connect").get_models()
    tables = {model._meta.db_table for model in our_models}
    missing_tables = sorted(tables - set(connection.introspection.table_names()))
    run.has_tables = not missing_tables
    data = {"unapplied": unapplied, "missing_tables": missing_tables}
    if unapplied:
        message = f"Unapplied migrations: {', '.join(unapplied)}."
        yield Finding("migrations", Level.PROBLEM, message, "Run: manage.py migrate", data)
    elif missing_tables:
        yield Finding(
            "migrations",
            Level.PROBLEM,
            "Tables are missing, although their migrations are recorded as applied: "
            f"{', '.join(missing_tables)}.",
            "Restore the database, or run manage.py migrate kapso_connect zero, then migrate again",
            data,
        )
    else:
        yield Finding("migrations", Level.OK, "All migrations are applied.", data=data)


def _database_alias() -> str:
    return router.db_for_write(WebhookEvent)


# The queues


def _check_inbox(run: Diagnosis) -> Iterator[Finding]:
    run.require_tables()
    rows = WebhookEvent.objects
    yield _waiting("inbox.waiting", "webhooks", rows.waiting(), "next_attempt_at", RUN_SYNC)
    yield _failed("inbox.failed", "webhooks", rows.failed(), "received_at")


def _check_signals(run: Diagnosis) -> Iterator[Finding]:
    run.require_tables()
    rows = TimelineEvent.objects
    yield _waiting("signals.waiting", "signals", rows.waiting(), "next_attempt_at", RUN_SYNC)
    yield _failed("signals.failed", "signals", rows.failed(), "occurred_at")


def _check_invitations(run: Diagnosis) -> Iterator[Finding]:
    run.require_tables()
    started = Invitation.objects.filter(batch__started_at__isnull=False)
    pending = started.filter(status=Invitation.Status.PENDING)
    failed = started.filter(status=Invitation.Status.FAILED)
    running = pending.filter(batch__stopped="")
    yield _waiting("invitations.waiting", "invitations", running, "next_attempt_at", RUN_SYNC)
    yield _failed("invitations.failed", "invitations", failed, "batch__started_at")
    stopped = InvitationBatch.objects.exclude(stopped="").filter(
        models.Exists(pending.filter(batch=models.OuterRef("pk")))
    )
    if count := stopped.count():
        message = f"Batches of invitations that stopped before they were finished: {count}."
        hint = "The batch's page in the admin says why. Then run: manage.py kapso_invite --resume"
        yield Finding("invitations.stopped", Level.WARNING, message, hint, {"count": count})


def _check_redirects(run: Diagnosis) -> Iterator[Finding]:
    run.require_tables()
    unconfirmed = SetupLink.objects.filter(unconfirmed_since__isnull=False)
    yield _waiting("redirects.waiting", "redirects", unconfirmed, "unconfirmed_since", RUN_SYNC)


def _waiting(
    check: str, noun: str, rows: models.QuerySet[Any], due_field: str, hint: str
) -> Finding:
    count, overdue = count_and_age(rows, due_field)
    data = {"count": count, "overdue_seconds": round(overdue.total_seconds())}
    if not count:
        return Finding(check, Level.OK, f"No {noun} are waiting.", data=data)
    if overdue <= OVERDUE_WARNING:
        return Finding(check, Level.OK, f"Waiting {noun}: {count}, none overdue.", data=data)
    message = f"Waiting {noun}: {count}. The oldest has been due for {_format(overdue)}."
    return Finding(check, _warning_or_problem(overdue > OVERDUE_PROBLEM), message, hint, data)


def _failed(check: str, noun: str, rows: models.QuerySet[Any], since_field: str) -> Finding:
    count, age = count_and_age(rows, since_field)
    data = {"count": count, "oldest_seconds": round(age.total_seconds())}
    if not count:
        return Finding(check, Level.OK, f"No {noun} have failed.", data=data)
    message = f"Permanently failed {noun}: {count}. The oldest is from {_format(age)} ago."
    hint = "The admin shows why, and lets you run them again."
    return Finding(check, Level.WARNING, message, hint, data)


def _check_sync(run: Diagnosis) -> Iterator[Finding]:
    """Check whether kapso_sync is run, by the work that only it does."""
    run.require_tables()
    threshold = clock.now() - SYNC_OVERDUE_WARNING
    active = SetupLink.objects.filter(status=SetupLink.Status.ACTIVE)
    expired = active.aggregate(at=models.Min("expires_at"))["at"]
    synced = active.filter(customer__kapso_id__isnull=False, created_at__lt=threshold).aggregate(
        last_check=models.Max("checked_at"),
        first_created=models.Min("created_at"),
        count=models.Count("pk"),
    )
    if not synced["count"] and (expired is None or expired > threshold):
        raise Skipped("Not checked: no setup link is old enough to show whether kapso_sync is run.")
    idle = max(_age(expired), _age(synced["last_check"] or synced["first_created"]))
    data = {"idle_seconds": round(idle.total_seconds())}
    if idle <= SYNC_OVERDUE_WARNING:
        # The larger of two ages, so it does not say when kapso_sync was run.
        behind = _format(max(idle, timedelta(minutes=1)))
        message = f"The work of kapso_sync is at most {behind} behind."
        yield Finding("sync", Level.OK, message, data=data)
        return
    message = f"kapso_sync does not seem to be run: it has done nothing for {_format(idle)}."
    level = _warning_or_problem(idle > SYNC_OVERDUE_PROBLEM)
    yield Finding("sync", level, message, RUN_SYNC, data)


def _age(moment: datetime | None) -> timedelta:
    return clock.now() - moment if moment else timedelta()


def _format(length: timedelta) -> str:
    minutes, hours = round(length.total_seconds() / 60), round(length.total_seconds() / 3600)
    if length >= timedelta(days=2):
        return f"{length.days} days"
    if length >= timedelta(hours=2):
        return f"{hours} hours"
    if minutes > 1:
        return f"{minutes} minutes"
    return "1 minute" if minutes == 1 else "less than a minute"


# This site, from outside


def _check_site(run: Diagnosis) -> Iterator[Finding]:
    conf = run.require_network()
    url = run.webhook_url()
    if reason := registration.undeliverable_reason(url):
        yield Finding("site.url", Level.PROBLEM, reason, "Then run: manage.py kapso_webhook")
    else:
        yield Finding("site.url", Level.OK, f"The URL for Kapso's webhook is {url}")
    # Even with a random secret, the answer shows whether this is the webhook.
    webhook_secrets = conf.webhook_secret or (secrets.token_hex(),)
    refused = []
    for index, secret in enumerate(webhook_secrets, start=1):
        answer = registration.check_signature(url, secret)
        if answer.status in {SignatureStatus.OTHER_SITE, SignatureStatus.UNREACHABLE}:
            hint = (
                "Start the site, and open it from this machine: check its name, its certificate "
                "and the firewall."
            )
            yield Finding("site.reachable", Level.PROBLEM, answer.message, hint)
            return
        if answer.status is SignatureStatus.REFUSED:
            refused.append(index)
    yield Finding("site.reachable", Level.OK, "This site answers at that URL.")
    if not conf.webhook_secret:
        raise Skipped("The secret was not checked: WEBHOOK_SECRET is not set.")
    data = {"secrets": len(webhook_secrets), "refused": refused}
    if refused:
        yield Finding(
            "site.secret",
            Level.PROBLEM,
            "The running site refuses signatures made with "
            f"{_name_secrets(refused, len(webhook_secrets))}: it runs with other settings.",
            "Give the site and its commands the same environment, and restart the site.",
            data,
        )
    else:
        message = "The running site accepts signatures made with WEBHOOK_SECRET."
        yield Finding("site.secret", Level.OK, message, data=data)


def _name_secrets(numbers: list[int], total: int) -> str:
    if total == 1:
        return "WEBHOOK_SECRET"
    return f"secret {' and '.join(map(str, numbers))} of the {total} in WEBHOOK_SECRET"


# Kapso


def _check_clock(run: Diagnosis) -> Iterator[Finding]:
    conf = run.require_network()
    try:
        answer = fetch("GET", conf.api_base_url + API_PATH, server="Kapso", timeout=DOCTOR_BUDGET)
    except Unreachable as error:
        yield Finding(
            "kapso.reachable",
            Level.PROBLEM,
            f"Kapso's API does not answer: {error}.",
            "Check this machine's Internet connection, and KAPSO_CONNECT['API_BASE_URL'].",
        )
        return
    run.has_kapso_answered = True
    yield Finding("kapso.reachable", Level.OK, "Kapso's API answers.")
    try:
        kapso_time = parsedate_to_datetime(answer.headers["date"])
        ahead = (datetime.now(timezone.utc) - kapso_time).total_seconds()
    except (KeyError, ValueError, TypeError, OverflowError):
        raise Skipped("Not checked: Kapso's answer has no valid date.") from None
    data = {"seconds": round(ahead)}
    if abs(ahead) < CLOCK_WARNING_SECONDS:
        yield Finding("clock", Level.OK, "This machine's clock agrees with Kapso's.", data=data)
        return
    direction = "ahead of" if ahead > 0 else "behind"
    message = f"This machine's clock is {abs(ahead):.0f} s {direction} Kapso's."
    level = _warning_or_problem(abs(ahead) > CLOCK_PROBLEM_SECONDS)
    yield Finding(
        "clock", level, message, "Correct the clock, and keep it synchronised with NTP.", data
    )


def _check_kapso(run: Diagnosis) -> Iterator[Finding]:
    run.require_network()
    if not run.has_kapso_answered:
        raise Skipped("Not checked: Kapso's API does not answer.")
    url = run.webhook_url()
    try:
        with KapsoClient.from_settings(budget=DOCTOR_BUDGET) as client:
            found = registration.inspect_webhooks(client, url)
    except KapsoCredentialsError as error:
        hint = "Check the key in Kapso under Project settings, API keys."
        yield Finding("kapso.key", Level.PROBLEM, str(error), hint)
        return
    except KapsoNotFound as error:
        hint = "Check KAPSO_CONNECT['API_BASE_URL']. Leave it out to use Kapso itself."
        yield Finding("kapso.api", Level.PROBLEM, str(error), hint)
        return
    except KapsoError as error:
        hint = "Try again in a minute. If it continues, contact Kapso's support."
        yield Finding("kapso.api", Level.PROBLEM, str(error), hint)
        return
    run.webhooks = found
    yield Finding("kapso.key", Level.OK, "Kapso accepts the API key.")
    yield from _check_webhook(found)


def _check_webhook(found: WebhookInspection) -> Iterator[Finding]:
    webhook = found.mine
    if webhook is None:
        message = f"Kapso has no webhook with the URL {found.url}."
        yield Finding("webhook.registered", Level.PROBLEM, message, REPAIR_WEBHOOK)
        return
    yield Finding("webhook.registered", Level.OK, "Kapso has a webhook for this site.")
    missing = sorted(set(registration.SUBSCRIBED_EVENTS) - set(webhook.events))
    extra = [webhook.id for webhook in found.extra if webhook.active]
    if webhook.url != found.url:
        message = (
            f"The webhook's URL is {registration.redact_url(webhook.url)} instead of {found.url}."
        )
        yield Finding("webhook.url", Level.PROBLEM, message, REPAIR_WEBHOOK)
    if not webhook.active:
        message = "The webhook is not active: Kapso pauses a webhook whose deliveries fail."
        hint = "Fix this site's problems listed above first, then run: manage.py kapso_webhook"
        yield Finding("webhook.active", Level.PROBLEM, message, hint)
    if missing:
        level = _warning_or_problem(bool(set(missing) & set(registration.ESSENTIAL_EVENTS)))
        message = f"The webhook is not subscribed to {', '.join(missing)}."
        yield Finding("webhook.events", level, message, REPAIR_WEBHOOK, {"missing": missing})
    if webhook.payload_version != registration.PAYLOAD_VERSION:
        version = webhook.payload_version or "not shown"
        message = f"The webhook's payload version is {version}, not v2."
        yield Finding("webhook.payload_version", Level.WARNING, message, REPAIR_WEBHOOK)
    if extra:
        message = (
            f"Other webhooks with this site's URL: {len(extra)}. Everything is delivered more than "
            "once."
        )
        yield Finding(
            "webhook.duplicates", Level.WARNING, message, REPAIR_WEBHOOK, {"extra": extra}
        )
    yield _check_webhook_secret(registration.secret_state(webhook))


def _check_webhook_secret(state: SecretState) -> Finding:
    name, data = "webhook.secret", {"state": state.value}
    message = f"Kapso signs with {registration.SECRET_DESCRIPTIONS[state]}."
    if state is SecretState.FOREIGN:
        hint = f"With these settings, every delivery is refused. {REPAIR_WEBHOOK}"
        return Finding(name, Level.PROBLEM, message, hint, data)
    if state is SecretState.OLDER:
        hint = "Finish the rotation: manage.py kapso_webhook --rotate"
        return Finding(name, Level.WARNING, message, hint, data)
    if state is SecretState.HIDDEN:
        message = (
            "Kapso does not show the webhook's secret. The test delivery shows whether it is right."
        )
        return Finding(name, Level.SKIPPED, message, data=data)
    return Finding(name, Level.OK, message, data=data)


def _check_delivery(run: Diagnosis) -> Iterator[Finding]:
    run.require_network()
    run.require_tables()
    if not run.test_delivery:
        raise Skipped("Not checked: the test delivery is turned off.")
    webhook = run.webhooks.mine if run.webhooks else None
    if webhook is None or not webhook.active or registration.TEST_EVENT not in webhook.events:
        raise Skipped("Not checked: repair the webhook first.")
    if not get_conf().webhook_secret:
        raise Skipped("Not checked: WEBHOOK_SECRET is not set.")
    try:
        with KapsoClient.from_settings(budget=DOCTOR_BUDGET) as client:
            seconds = registration.send_test_delivery(
                client, webhook, timeout=TEST_DELIVERY_TIMEOUT
            )
    except KapsoError as error:
        hint = "Send one from Kapso's dashboard, and look for it in the admin."
        yield Finding("delivery", Level.PROBLEM, str(error), hint)
        return
    if seconds is None:
        yield Finding(
            "delivery",
            Level.PROBLEM,
            f"Kapso's test delivery did not arrive within {TEST_DELIVERY_TIMEOUT:.0f} s.",
            registration.explain_missing_delivery(webhook, run.webhook_url()),
        )
        return
    message = f"Kapso's test delivery arrived after {seconds:.1f} s."
    yield Finding("delivery", Level.OK, message, data={"seconds": round(seconds, 1)})


CHECKS: dict[str, Callable[[Diagnosis], Iterator[Finding]]] = {
    "versions": _check_versions,
    "extras": _check_extras,
    "settings": _check_settings,
    "urls": _check_urls,
    "cache": _check_cache,
    "tasks": _check_tasks,
    "database": _check_database,
    "migrations": _check_migrations,
    "queue": _check_queue,
    "inbox": _check_inbox,
    "signals": _check_signals,
    "invitations": _check_invitations,
    "redirects": _check_redirects,
    "sync": _check_sync,
    "site": _check_site,
    "clock": _check_clock,
    "kapso": _check_kapso,
    "delivery": _check_delivery,
}
"""In the order in which they run: those that may take long come last."""


# Errors of databases and networks

ERROR_DESCRIPTIONS = {
    r"refused\b(?!.*password)": "the connection was refused",
    r"password|authentication|access denied": "the user name or the password was not accepted",
    r"translate host|name or service|resolve|getaddrinfo|unknown .*host": "its host is not known",
    r"no such table|relation .* does not exist|table .* doesn't exist": "a table is missing",
    r"unknown database|database .* does not exist": "there is no such database",
    r"unable to open|no such file": "its file cannot be opened",
    r"timeout|timed out": "it did not answer in time",
    r"locked": "it is locked",
    r"read-?only": "it is read-only",
    r"not a database|malformed": "its file is damaged or is not a database",
}


def describe_error(error: Exception) -> str:
    """Return what kind of error it is.

    The error's own text may quote a password, so it is only compared with known messages.
    """
    name = type(error).__name__
    if isinstance(error, KapsoError):
        return str(error).rstrip(".")
    if isinstance(error, (Error, OSError)) or "Connection" in name:
        try:
            text = str(error).lower()
        except Exception:
            text = ""
        for pattern, description in ERROR_DESCRIPTIONS.items():
            if re.search(pattern, text, re.DOTALL):
                return f"{description} ({name})"
    return name
