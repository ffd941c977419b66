"""What is right and wrong with an installation, in plain words, each with what to do next.

Whatever is broken ends up as a finding: nothing here raises. No finding holds a secret: of errors
that are not this package's own only the kind is told, never the text.
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
from django.conf import settings
from django.core import checks
from django.core.cache import caches
from django.core.exceptions import ImproperlyConfigured
from django.db import Error, connections, models, router
from django.db.migrations.executor import MigrationExecutor
from django.utils import timezone as clock

from .. import __version__, outbox
from ..checks import SANDBOX, check_urls
from ..conf import NAME, Conf, get_conf
from ..exceptions import KapsoCredentialsError, KapsoError, KapsoNotFound
from ..kapso.client import API_PATH, KapsoClient
from ..kapso.http import Unreachable, visit
from ..models import Invitation, InvitationBatch, SetupLink, TimelineEvent, WebhookEvent
from ..onboarding import invitations
from ..webhooks import inbox, registration
from ..webhooks.registration import Outcome, SecretState, WebhookInspection
from .hiding import hide, secret_values

LATE = timedelta(minutes=15)
"""What is due for longer is a warning …"""

VERY_LATE = timedelta(hours=1)
"""… and for longer than this a problem: nobody does it."""

SYNC_LATE = timedelta(hours=1)
SYNC_VERY_LATE = timedelta(days=1)
"""The same for what only kapso_sync does, and which some sites may let it do rarely."""

CLOCK_OFF = 30.0
CLOCK_WRONG = 300.0
"""Seconds between this machine's clock and Kapso's that are a warning, and a problem."""

KAPSO_SECONDS = 10.0
DELIVERY_SECONDS = 20.0

RUN_SYNC = "Run manage.py kapso_sync every few minutes, from cron or a timer."
REPAIR = "Run: manage.py kapso_webhook"


class Level(str, Enum):
    OK = "ok"
    SKIPPED = "skipped"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True)
class Finding:
    """``check`` is a stable name; ``hint`` what to do next, empty where all is well; ``data`` the
    figures behind the words, under stable names."""

    check: str
    level: Level
    message: str
    hint: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "level": self.level.value}


class CannotTell(Exception):
    """A check makes no sense while another one fails; the message says which."""


class Examination:
    """One look at everything.

    ``network`` False asks neither Kapso nor this site's own address; ``test_delivery`` False leaves
    out the one thing that changes something: a delivery in the inbox. ``findings`` grow while it
    runs, and ``current`` is what is being looked at.
    """

    def __init__(self, *, network: bool = True, test_delivery: bool = True) -> None:
        self.network = network
        self.test_delivery = test_delivery
        self.findings: list[Finding] = []
        self.current = ""
        # What the documentation has everybody begin with is a word, and needed as one.
        self._hidden = [text for text in secret_values() if text not in SANDBOX]
        self._has_database = self._has_tables = False
        self._is_kapso_there = False
        self._survey: WebhookInspection | None = None

    def run(self) -> list[Finding]:
        for name, check in CHECKS.items():
            self.current = name
            try:
                for finding in check(self):
                    self._add(finding)
            except CannotTell as reason:
                self._add(Finding(name, Level.SKIPPED, str(reason)))
            except Exception as error:
                self._add(
                    Finding(
                        name,
                        Level.PROBLEM,
                        f"Could not be examined: {in_words(error)}.",
                        "Repair what is said above; else see the traceback of: manage.py check",
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
        """The worst of all findings."""
        found = {finding.level for finding in self.findings}
        return next((bad for bad in (Level.PROBLEM, Level.WARNING) if bad in found), Level.OK)

    # What the checks share

    def conf(self) -> Conf:
        try:
            return get_conf()
        except ImproperlyConfigured:
            raise CannotTell(f"Not examined: {NAME} cannot be read.") from None

    def need_network(self) -> Conf:
        if not self.network:
            raise CannotTell("Not examined: the network was left out.")
        return self.conf()

    def need_tables(self) -> None:
        if not self._has_tables:
            raise CannotTell("Not examined: the database or its tables are not there.")

    def url(self) -> str:
        self.conf()
        try:
            return registration.webhook_url()
        except ImproperlyConfigured as error:
            raise CannotTell(f"Not examined: {error}") from None


def examine(*, network: bool = True, test_delivery: bool = True) -> list[Finding]:
    """Return what is right and wrong with this installation; see ``Examination``."""
    return Examination(network=network, test_delivery=test_delivery).run()


# What is installed


def _versions(exam: Examination) -> Iterator[Finding]:
    versions = {
        "django-kapso-connect": __version__,
        "Django": django.get_version(),
        "Python": platform.python_version(),
    }
    told = ", ".join(f"{name} {version}" for name, version in versions.items())
    yield Finding("versions", Level.OK, told, data=versions)


def _extras(exam: Examination) -> Iterator[Finding]:
    there = {extra: _is_installed(names) for extra, names in _optional().items()}
    told = ", ".join(f"{extra} {'yes' if has else 'no'}" for extra, has in sorted(there.items()))
    yield Finding("extras", Level.OK, f"Optional parts installed: {told}", data=there)


def _optional() -> dict[str, list[str]]:
    """Return the distributions that each extra of this package asks for."""
    extras: dict[str, list[str]] = {}
    for line in importlib.metadata.requires("django-kapso-connect") or []:
        match = re.match(r"([\w.-]+).*extra == ['\"]([\w-]+)['\"]", line)
        if match and match[2] not in {"dev", "docs", "example"}:
            extras.setdefault(match[2], []).append(match[1])
    return extras


def _is_installed(names: Iterable[str]) -> bool:
    for name in names:
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return False
    return True


# Settings


LEVELS = {True: Level.PROBLEM, False: Level.WARNING}

STANDSTILL = {f"kapso_connect.{number}" for number in ("W001", "W002", "W003", "W004", "W016")}
"""Checks that warn, so that a new site can be begun with, of what keeps everybody from connecting:
a monitor has to hear of it."""


def _settings(exam: Examination) -> Iterator[Finding]:
    found = checks.run_checks(tags=["kapso_connect"], include_deployment_checks=not settings.DEBUG)
    messages = [message for message in found if not message.is_silenced()]
    for message in messages:
        yield _from_check("settings", message)
    if not messages:
        yield Finding("settings", Level.OK, f"{NAME} is as it should be.")


def _urls(exam: Examination) -> Iterator[Finding]:
    messages = check_urls()
    for message in messages:
        yield _from_check("urls", message)
    if not messages:
        yield Finding("urls", Level.OK, "kapso_connect.urls is in the URLconf.")


def _from_check(name: str, message: checks.CheckMessage) -> Finding:
    level = LEVELS[message.level >= checks.ERROR or message.id in STANDSTILL]
    hint = str(message.hint or "Correct it in the settings.")
    number = str(message.id).rpartition(".")[2]
    return Finding(f"{name}.{number}", level, str(message.msg), hint, {"id": message.id})


def _cache(exam: Examination) -> Iterator[Finding]:
    backend = str(settings.CACHES["default"]["BACKEND"]).rpartition(".")[2]
    data = {"backend": backend}
    hint = "Set CACHES['default'] to one that all processes share: Redis, Memcached, the database."
    if backend == "DummyCache":
        told = "The default cache is DummyCache: clicks on a customer's address are not counted."
        yield Finding("cache", Level.WARNING, told, hint, data)
        return
    if backend == "LocMemCache" and not settings.DEBUG:
        yield Finding(
            "cache",
            Level.WARNING,
            f"The default cache ({backend}) is not shared between processes: clicks on a "
            "customer's address are counted by each for itself.",
            f"With more than one process: {hint}",
            data,
        )
        return
    try:
        caches["default"].get("kapso_connect.monitoring.doctor")
    except Exception as error:
        # Not a problem: a cache that is away keeps nobody from connecting.
        told = f"The default cache ({backend}) does not answer: {in_words(error)}."
        yield Finding("cache", Level.WARNING, told, "See that it runs.", data)
        return
    yield Finding("cache", Level.OK, f"The default cache is {backend}.", data=data)


def _tasks(exam: Examination) -> Iterator[Finding]:
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
            f"The default backend of TASKS ({name}) does not take this app's tasks: "
            f"{in_words(error)}.",
            'They go to the queue "default": see that its QUEUES have it, and what it supports.',
            data,
        )
        return
    if name == "DummyBackend":
        yield Finding(
            "tasks",
            Level.PROBLEM,
            "The default backend of TASKS is DummyBackend: what should be done at once is left to "
            "kapso_sync.",
            "Leave TASKS out, or set a backend that does the work.",
            data,
        )
    elif background:
        told = f"Tasks run on a worker ({name})."
        yield Finding("tasks", Level.OK, told, data=data)
    else:
        told = f"Tasks run in the request that asks for them ({name})."
        yield Finding("tasks", Level.OK, told, data=data)


def _queue(exam: Examination) -> Iterator[Finding]:
    """Look into the queue that lives in the database, where it is that one."""
    backend = outbox.deliver_event.get_backend()
    if type(backend).__module__.partition(".")[0] != "django_tasks_db":
        raise CannotTell("Not examined: not a queue that can be looked into from here.")
    exam.need_tables()
    from django_tasks_db.models import DBTaskResult

    names = [task.module_path for task in _our_tasks()]
    ready = DBTaskResult.objects.ready().filter(task_path__in=names)
    yield _backlog("queue", "tasks in the queue", ready, "enqueued_at", WORKER)


WORKER = "Keep a worker running: manage.py db_worker"


def _our_tasks() -> list[Any]:
    return [outbox.deliver_event, inbox.process_webhook_event, invitations.work_invitations]


# The database


def _database(exam: Examination) -> Iterator[Finding]:
    connection = connections[_alias()]
    try:
        connection.ensure_connection()
        version = ".".join(map(str, connection.get_database_version()))
    except Exception as error:
        yield Finding(
            "database",
            Level.PROBLEM,
            f"The database ({connection.display_name}) does not answer: {in_words(error)}.",
            "See that it runs and that DATABASES leads to it. Try: manage.py dbshell",
        )
        return
    exam._has_database = True
    data = {"vendor": connection.vendor, "version": version}
    yield Finding("database", Level.OK, f"{connection.display_name} {version}", data=data)


def _migrations(exam: Examination) -> Iterator[Finding]:
    if not exam._has_database:
        raise CannotTell("Not examined: the database does not answer.")
    connection = connections[_alias()]
    executor = MigrationExecutor(connection)
    targets = executor.loader.graph.leaf_nodes("kapso_connect")
    plan = executor.migration_plan(targets)
    missing = [f"{migration.app_label}.{migration.name}" for migration, _backwards in plan]
    tables = set(connection.introspection.table_names())
    wanted = {model._meta.db_table for model in _our_models()}
    exam._has_tables = wanted <= tables
    data = {"unapplied": missing, "missing_tables": sorted(wanted - tables)}
    if missing:
        told = f"Migrations are not applied: {', '.join(missing)}."
        yield Finding("migrations", Level.PROBLEM, told, "Run: manage.py migrate", data)
    elif not exam._has_tables:
        yield Finding(
            "migrations",
            Level.PROBLEM,
            f"Tables are missing, though their migrations count as applied: "
            f"{', '.join(sorted(wanted - tables))}.",
            "Restore the database, or run: manage.py migrate kapso_connect zero, and migrate again",
            data,
        )
    else:
        yield Finding("migrations", Level.OK, "All migrations are applied.", data=data)


def _alias() -> str:
    return router.db_for_write(WebhookEvent)


def _our_models() -> list[type[models.Model]]:
    from django.apps import apps

    return list(apps.get_app_config("kapso_connect").get_models())


# What waits, and what failed


def _inbox(exam: Examination) -> Iterator[Finding]:
    exam.need_tables()
    status = WebhookEvent.Status
    waiting = WebhookEvent.objects.filter(status=status.PENDING)
    failed = WebhookEvent.objects.filter(status=status.FAILED)
    yield _backlog("inbox.waiting", "webhook events", waiting, "next_attempt_at", RUN_SYNC)
    yield _failed("inbox.failed", "webhook events", failed, "received_at")


def _signals(exam: Examination) -> Iterator[Finding]:
    exam.need_tables()
    undelivered = TimelineEvent.objects.filter(delivered_at=None)
    waiting = undelivered.filter(next_attempt_at__isnull=False)
    failed = undelivered.filter(next_attempt_at=None)
    yield _backlog("signals.waiting", "signals", waiting, "next_attempt_at", RUN_SYNC)
    yield _failed("signals.failed", "signals", failed, "occurred_at")


def _invitations(exam: Examination) -> Iterator[Finding]:
    exam.need_tables()
    started = Invitation.objects.filter(batch__started_at__isnull=False)
    left = started.filter(status=Invitation.Status.PENDING)
    failed = started.filter(status=Invitation.Status.FAILED)
    going_on = left.filter(batch__stopped="")
    yield _backlog("invitations.waiting", "invitations", going_on, "next_attempt_at", RUN_SYNC)
    yield _failed("invitations.failed", "invitations", failed, "batch__started_at")
    stopped = InvitationBatch.objects.exclude(stopped="").filter(
        models.Exists(left.filter(batch=models.OuterRef("pk")))
    )
    if count := stopped.count():
        told = f"{count} batches of invitations stopped before everybody had a link."
        hint = "See the page of the batch for why, then run: manage.py kapso_invite --resume"
        yield Finding("invitations.stopped", Level.WARNING, told, hint, {"count": count})


def _claims(exam: Examination) -> Iterator[Finding]:
    exam.need_tables()
    waiting = SetupLink.objects.filter(unconfirmed_since__isnull=False)
    yield _backlog("claims.waiting", "returned customers", waiting, "unconfirmed_since", RUN_SYNC)


def _backlog(check: str, what: str, waiting: models.QuerySet[Any], due: str, hint: str) -> Finding:
    """Return how much waits, and for how long it could have been done."""
    seen = waiting.aggregate(count=models.Count("pk"), oldest=models.Min(due))
    overdue = max(_age(seen["oldest"]), timedelta())
    data = {"count": seen["count"], "overdue_seconds": round(overdue.total_seconds())}
    if not seen["count"]:
        return Finding(check, Level.OK, f"No {what} wait.", data=data)
    if overdue <= LATE:
        return Finding(check, Level.OK, f"{seen['count']} {what} wait, none for long.", data=data)
    told = f"{seen['count']} {what} wait, one of them due for {_span(overdue)}."
    return Finding(check, LEVELS[overdue > VERY_LATE], told, hint, data)


def _failed(check: str, what: str, failed: models.QuerySet[Any], since: str) -> Finding:
    seen = failed.aggregate(count=models.Count("pk"), oldest=models.Min(since))
    age = _age(seen["oldest"])
    data = {"count": seen["count"], "oldest_seconds": round(age.total_seconds())}
    if not seen["count"]:
        return Finding(check, Level.OK, f"No {what} failed.", data=data)
    told = f"{seen['count']} {what} failed for good, the oldest {_span(age)} ago."
    hint = "They need a person: the admin says why, and can run them again."
    return Finding(check, Level.WARNING, told, hint, data)


def _sync(exam: Examination) -> Iterator[Finding]:
    """Tell from what only kapso_sync does whether it is run."""
    exam.need_tables()
    hour_ago = clock.now() - SYNC_LATE
    active = SetupLink.objects.filter(status=SetupLink.Status.ACTIVE)
    expired = active.aggregate(at=models.Min("expires_at"))["at"]
    followed = active.filter(customer__kapso_id__isnull=False, created_at__lt=hour_ago)
    seen = followed.aggregate(
        asked=models.Max("checked_at"), since=models.Min("created_at"), count=models.Count("pk")
    )
    if not seen["count"] and (expired is None or expired > hour_ago):
        raise CannotTell("No setup link is old enough to show whether kapso_sync is run.")
    idle = max(_age(expired), _age(seen["asked"] or seen["since"]))
    data = {"idle_seconds": round(idle.total_seconds())}
    if idle <= SYNC_LATE:
        told = f"kapso_sync is run: it was at work {_span(idle)} ago."
        yield Finding("sync", Level.OK, told, data=data)
        return
    told = f"kapso_sync does not seem to be run: its work has been left for {_span(idle)}."
    yield Finding("sync", LEVELS[idle > SYNC_VERY_LATE], told, RUN_SYNC, data)


def _age(moment: datetime | None) -> timedelta:
    return clock.now() - moment if moment else timedelta()


def _span(length: timedelta) -> str:
    minutes, hours = round(length.total_seconds() / 60), round(length.total_seconds() / 3600)
    if length >= timedelta(days=2):
        return f"{length.days} days"
    return f"{hours} hours" if length >= timedelta(hours=2) else f"{minutes} minutes"


# This site, as others see it


def _site(exam: Examination) -> Iterator[Finding]:
    conf = exam.need_network()
    url = exam.url()
    if reason := registration.unfit(url):
        yield Finding("site.address", Level.PROBLEM, reason, "Then run: manage.py kapso_webhook")
    else:
        yield Finding("site.address", Level.OK, f"Kapso shall deliver to {url}")
    # Without a secret of ours the answer still tells whether this is the webhook.
    known = conf.webhook_secret or (secrets.token_hex(),)
    refused = []
    for index, secret in enumerate(known, start=1):
        seen = registration.probe(url, secret)
        if seen.outcome in {Outcome.ELSEWHERE, Outcome.UNREACHABLE}:
            hint = "Start the site and look at it from this machine: name, certificate, firewall."
            yield Finding("site.reachable", Level.PROBLEM, seen.said, hint)
            return
        if seen.outcome is Outcome.REFUSED:
            refused.append(index)
    yield Finding("site.reachable", Level.OK, "This site answers at that address.")
    if not conf.webhook_secret:
        raise CannotTell("The secret is not examined: there is none.")
    data = {"secrets": len(known), "refused": refused}
    if refused:
        yield Finding(
            "site.secret",
            Level.PROBLEM,
            "The running site refuses what is signed with "
            f"{_which(refused, len(known))}: it runs with other settings than these.",
            "Give the site and its commands the same environment, and restart the site.",
            data,
        )
    else:
        told = "The running site accepts what is signed with the secret of these settings."
        yield Finding("site.secret", Level.OK, told, data=data)


def _which(refused: list[int], of: int) -> str:
    if of == 1:
        return "WEBHOOK_SECRET"
    return f"secret {' and '.join(map(str, refused))} of the {of} in WEBHOOK_SECRET"


# Kapso


def _clock(exam: Examination) -> Iterator[Finding]:
    conf = exam.need_network()
    try:
        answer = visit("GET", conf.api_base_url + API_PATH, who="Kapso", seconds=KAPSO_SECONDS)
    except Unreachable as error:
        yield Finding(
            "kapso.reachable",
            Level.PROBLEM,
            f"Kapso's API gives no answer: {error}.",
            "See this machine's way to the Internet, and KAPSO_CONNECT['API_BASE_URL'].",
        )
        return
    exam._is_kapso_there = True
    yield Finding("kapso.reachable", Level.OK, "Kapso's API answers.")
    try:
        theirs = parsedate_to_datetime(answer.headers["date"])
        off = (datetime.now(timezone.utc) - theirs).total_seconds()
    except (KeyError, ValueError, TypeError, OverflowError):
        raise CannotTell("The clock is not examined: Kapso's answer has no usable date.") from None
    data = {"seconds": round(off)}
    if abs(off) < CLOCK_OFF:
        yield Finding("clock", Level.OK, "This machine's clock agrees with Kapso's.", data=data)
        return
    told = (
        f"This machine's clock is {abs(off):.0f} s {'ahead of' if off > 0 else 'behind'} Kapso's."
    )
    level = LEVELS[abs(off) > CLOCK_WRONG]
    yield Finding("clock", level, told, "Set the clock, and keep it right by NTP.", data)


def _kapso(exam: Examination) -> Iterator[Finding]:
    exam.need_network()
    if not exam._is_kapso_there:
        raise CannotTell("Not examined: Kapso's API gives no answer.")
    url = exam.url()
    try:
        with KapsoClient.from_settings(budget=KAPSO_SECONDS) as client:
            found = registration.inspect_webhooks(client, url)
    except KapsoCredentialsError as error:
        yield Finding("kapso.key", Level.PROBLEM, str(error), "Kapso: Project settings, API keys.")
        return
    except KapsoNotFound as error:
        hint = "Is KAPSO_CONNECT['API_BASE_URL'] Kapso's? Leave it out for Kapso itself."
        yield Finding("kapso.api", Level.PROBLEM, str(error), hint)
        return
    except KapsoError as error:
        hint = "Run this again in a minute; if it stays so, ask Kapso's support."
        yield Finding("kapso.api", Level.PROBLEM, str(error), hint)
        return
    exam._survey = found
    yield Finding("kapso.key", Level.OK, "Kapso accepts the API key.")
    yield from _webhook(found)


def _webhook(found: WebhookInspection) -> Iterator[Finding]:
    mine = found.mine
    if mine is None:
        told = f"Kapso has no webhook that leads to {found.url}."
        yield Finding("webhook.registered", Level.PROBLEM, told, REPAIR)
        return
    yield Finding("webhook.registered", Level.OK, "Kapso has a webhook for this site.")
    missing = sorted(set(registration.EVENTS) - set(mine.events))
    extra = [webhook.id for webhook in found.extra if webhook.active]
    if mine.url != found.url:
        told = f"It leads to {registration.shown(mine.url)} instead of {found.url}."
        yield Finding("webhook.address", Level.PROBLEM, told, REPAIR)
    if not mine.active:
        told = "It is not active: Kapso pauses a webhook whose deliveries fail."
        hint = f"See what is said of this site above, then run: {REPAIR.partition(': ')[2]}"
        yield Finding("webhook.active", Level.PROBLEM, told, hint)
    if missing:
        level = LEVELS[bool(set(missing) & set(registration.ESSENTIAL))]
        told = f"It is not subscribed to {', '.join(missing)}."
        yield Finding("webhook.events", level, told, REPAIR, {"missing": missing})
    if mine.payload_version != registration.PAYLOAD_VERSION:
        told = f"Its payload version is {mine.payload_version or 'not shown'}, not v2."
        yield Finding("webhook.payload_version", Level.WARNING, told, REPAIR)
    if extra:
        told = f"{len(extra)} more lead to this site: everything is delivered more than once."
        yield Finding("webhook.duplicates", Level.WARNING, told, REPAIR, {"extra": extra})
    yield _webhook_secret(registration.secret_state(mine))


def _webhook_secret(state: SecretState) -> Finding:
    told = f"Kapso signs with {registration.SECRETS[state]}."
    name, data = "webhook.secret", {"state": state.value}
    if state is SecretState.FOREIGN:
        hint = f"With these settings every delivery is refused. {REPAIR}"
        return Finding(name, Level.PROBLEM, told, hint, data)
    if state is SecretState.OLDER:
        hint = "Finish the rotation: manage.py kapso_webhook --rotate"
        return Finding(name, Level.WARNING, told, hint, data)
    if state is SecretState.HIDDEN:
        told = "Kapso does not show its secret; the test delivery tells whether it is right."
        return Finding(name, Level.SKIPPED, told, data=data)
    return Finding(name, Level.OK, told, data=data)


def _delivery(exam: Examination) -> Iterator[Finding]:
    exam.need_network()
    exam.need_tables()
    if not exam.test_delivery:
        raise CannotTell("Not examined: the test delivery was left out.")
    mine = exam._survey.mine if exam._survey else None
    if mine is None or not mine.active or registration.TEST_EVENT not in mine.events:
        raise CannotTell("Not examined: repair the webhook first.")
    if not get_conf().webhook_secret:
        raise CannotTell("Not examined: there is no WEBHOOK_SECRET.")
    try:
        with KapsoClient.from_settings(budget=KAPSO_SECONDS) as client:
            took = registration.send_test(client, mine, seconds=DELIVERY_SECONDS)
    except KapsoError as error:
        hint = "Send one from Kapso's dashboard, and look for it in the admin."
        yield Finding("delivery", Level.PROBLEM, str(error), hint)
        return
    if took is None:
        yield Finding(
            "delivery",
            Level.PROBLEM,
            f"Kapso's test delivery did not arrive within {DELIVERY_SECONDS:.0f} s.",
            registration.why_not_arrived(mine, exam.url()),
        )
        return
    told = f"Kapso's test delivery arrived after {took:.1f} s."
    yield Finding("delivery", Level.OK, told, data={"seconds": round(took, 1)})


CHECKS: dict[str, Callable[[Examination], Iterator[Finding]]] = {
    "versions": _versions,
    "extras": _extras,
    "settings": _settings,
    "urls": _urls,
    "cache": _cache,
    "tasks": _tasks,
    "database": _database,
    "migrations": _migrations,
    "queue": _queue,
    "inbox": _inbox,
    "signals": _signals,
    "invitations": _invitations,
    "claims": _claims,
    "sync": _sync,
    "site": _site,
    "clock": _clock,
    "kapso": _kapso,
    "delivery": _delivery,
}
"""In this order: what needs nothing first, what may take long last."""


# Words

REASONS = {
    r"refused\b(?!.*password)": "the connection was refused",
    r"password|authentication|access denied": "the user or the password was not accepted",
    r"translate host|name or service|resolve|getaddrinfo|unknown .*host": "its host is not known",
    r"no such table|relation .* does not exist|table .* doesn't exist": "a table is missing",
    r"unknown database|database .* does not exist": "there is no such database",
    r"unable to open|no such file": "its file cannot be opened",
    r"timeout|timed out": "it did not answer in time",
    r"locked": "it is locked",
    r"read-?only": "it is read-only",
    r"not a database|malformed": "its file is damaged, or is no database",
}


def in_words(error: Exception) -> str:
    """Return what kind of error it is. Its own text may quote a password, so it is only compared
    with what databases and networks usually say."""
    name = type(error).__name__
    if isinstance(error, KapsoError):
        return str(error).rstrip(".")
    if isinstance(error, (Error, OSError)) or "Connection" in name:
        try:
            said = str(error).lower()
        except Exception:
            said = ""
        for pattern, reason in REASONS.items():
            if re.search(pattern, said, re.DOTALL):
                return f"{reason} ({name})"
    return name
