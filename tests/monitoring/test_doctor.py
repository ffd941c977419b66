"""manage.py kapso_doctor, on working and on broken installations."""

from __future__ import annotations

import json
import re
import signal
import socket
import sqlite3
import struct
import subprocess
import sys
import threading
import time
from contextlib import closing
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from importlib import metadata
from io import StringIO
from pathlib import Path
from typing import Any

import django
import pytest
from django.core.cache.backends.locmem import LocMemCache
from django.core.management import CommandError, call_command
from django.utils import timezone as clock
from pytest_django.live_server_helper import LiveServer

from kapso_connect import outbox
from kapso_connect.models import (
    Customer,
    Invitation,
    InvitationBatch,
    SetupLink,
    TimelineEvent,
    WebhookEvent,
)
from kapso_connect.monitoring import doctor
from kapso_connect.monitoring.doctor import Diagnosis, Level
from kapso_connect.onboarding import invitations
from kapso_connect.testing import Sandbox
from kapso_connect.webhooks import registration
from kapso_connect.webhooks.payloads import NOT_AN_OBJECT
from kapso_connect.webhooks.views import WRONG_SIGNATURE

from ..factories import (
    CREATED,
    DELETED,
    WEBHOOK,
    listening,
    make_connection,
    make_customer,
    make_link,
    read_only_database,
)
from ..faulty_server import FaultyServer, answer, broken_off, hung
from ..management.conftest import add_webhook
from ..proofs.support import environment, new_database

MARKERS = {
    "API_KEY": "Zq7pLx-vT2mWqYb9-uR4kXw",
    "WEBHOOK_SECRET": "Jk3zN/qP w8+tG'hY5cB-Vb",
    "SECRET_KEY": "Rt9wF-kS3pJ-dH6nL-Mn",
    "DATABASE": "Hd5xKyrT2-wQ9-mZ7bN-Lp",
    "CACHE": "Bv2gM-yU8cR-jE4tK-Gs",
    "MAIL": "Xc6rW-oA1vD-lF8hQ-Tz",
    "PROXY": "Np4jS-eK9bG-uM2xC-Wy",
    "OTHER": "Lw7dV-iZ5qH-aR3fY-Jk",
}
"""Secrets that are recognized wherever they are shown."""
PART_LENGTH = 6

pytestmark = pytest.mark.usefixtures("sqlite_options")


def leaked_parts(text: str) -> list[str]:
    """Return the parts of secrets that are in ``text``."""
    parts = {
        marker[at : at + PART_LENGTH]
        for marker in MARKERS.values()
        for at in range(len(marker) - PART_LENGTH + 1)
    }
    return sorted(part for part in parts if part in text)


def by_name(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the findings by their name, the worst of each name."""
    assert leaked_parts(json.dumps(rows)) == []
    order = [level.value for level in Level]
    found: dict[str, dict[str, Any]] = {}
    for finding in sorted(rows, key=lambda row: order.index(row["level"])):
        assert set(finding) == {"check", "level", "message", "hint", "data"}
        assert finding["hint"] or finding["level"] in {"ok", "skipped"}
        found[finding["check"]] = finding
    return found


def run(*, test_delivery: bool = True) -> dict[str, dict[str, Any]]:
    """Make all checks, in the transaction of the test, if it has one."""
    return by_name([f.as_json() for f in Diagnosis(test_delivery=test_delivery).run()])


def offline() -> dict[str, dict[str, Any]]:
    return by_name([finding.as_json() for finding in Diagnosis(network=False).run()])


def command(*arguments: str) -> tuple[int, str]:
    """Return the exit status of the command, and what it prints."""
    out, status = StringIO(), 0
    try:
        call_command("kapso_doctor", *arguments, stdout=out, stderr=out)
    except CommandError as error:
        status = error.returncode
    return status, out.getvalue()


@pytest.fixture
def here(live_server: LiveServer, sandbox: Sandbox, settings: Any, configure: Any) -> str:
    """A site in development without problems, except that it has no webhook at Kapso yet."""
    settings.DEBUG = True
    configure(PUBLIC_URL=live_server.url)
    return f"{live_server.url}{WEBHOOK}"


@pytest.fixture
def secret(settings: Any, configure: Any, sandbox_process: Sandbox) -> None:
    configure(**{name: MARKERS[name] for name in ("API_KEY", "WEBHOOK_SECRET")})
    settings.SECRET_KEY = MARKERS["SECRET_KEY"]


# Working installations


def test_working_installation_has_no_problems(here: str, sandbox: Sandbox) -> None:
    pk = add_webhook(sandbox, here)
    status, output = command("--json", "--fail-level", "warning")
    report = json.loads(output)
    found = by_name(report["findings"])
    assert {row["level"] for row in found.values()} == {"ok", "skipped"}
    assert {name for name, row in found.items() if row["level"] == "skipped"} == {"sync"}
    assert (status, report["level"]) == (0, "ok")
    assert set(found) == {
        *("versions", "settings", "urls", "cache", "database", "migrations", "writable", "tasks"),
        *("webhooks.waiting", "signals.waiting", "invitations.waiting", "redirects.waiting"),
        *(
            "receivers",
            "statuses",
            "sync",
            "site.url",
            "site.reachable",
            "site.secret",
            "kapso.reachable",
            "clock",
        ),
        *("kapso.key", "webhook.registered", "webhook.secret", "deliveries", "delivery"),
    }
    assert found["database"]["data"]["vendor"]
    assert found["versions"]["data"]["Django"] == django.get_version()
    assert [row.status for row in WebhookEvent.objects.all()] == ["ignored"]
    assert sandbox.state()["webhooks"][0]["id"] == pk


def test_source_that_was_not_installed_has_a_version(monkeypatch: Any) -> None:
    def version(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    found = by_name([f.as_json() for f in doctor.CHECKS["versions"](Diagnosis())])
    assert found["versions"]["level"] == "ok"
    assert "django-kapso-connect was not installed" in found["versions"]["message"]


def test_text_output(here: str, sandbox: Sandbox) -> None:
    add_webhook(sandbox, here, active=False)
    status, output = command("--no-color")
    assert status == 1
    lines = output.splitlines()
    assert "ok       clock                    This machine's clock agrees with Kapso's." in lines
    at = next(i for i, line in enumerate(lines) if line.startswith("PROBLEM  webhook.changes"))
    assert lines[at + 1].strip().startswith("-> Fix this site's problems listed above first")
    assert re.fullmatch(r"kapso_doctor: 1 problem, 0 warnings, \d+ ok, 2 skipped", lines[-1])
    assert output.isascii()
    assert "\x1b" not in output


def test_nothing_is_changed_without_the_test_delivery(here: str, sandbox: Sandbox) -> None:
    add_webhook(sandbox, here)
    before = len(sandbox.requests())
    _status, output = command("--json", "--no-test-delivery")
    assert by_name(json.loads(output)["findings"])["delivery"]["level"] == "skipped"
    assert {row["method"] for row in sandbox.requests()[before:]} == {"GET"}
    assert not WebhookEvent.objects.exists()


def test_no_network_makes_no_requests(here: str, sandbox: Sandbox) -> None:
    found = offline()
    assert sandbox.requests() == []
    for name in ("site", "clock", "kapso", "deliveries", "delivery"):
        assert "network checks are turned off" in found[name]["message"]


def test_documentation_names_every_check() -> None:
    page = Path("docs/how-to/webhook.md").read_text()
    for name in [*doctor.CHECKS, "webhook"]:
        assert re.search(rf"^\| .*`{name}`.* \|", page, re.M), name


# Exit status


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("level", "arguments", "status"),
    [
        (Level.OK, ["--fail-level", "warning"], 0),
        (Level.WARNING, [], 0),
        (Level.WARNING, ["--fail-level", "warning"], 2),
        (Level.PROBLEM, ["--fail-level", "problem"], 1),
        (Level.PROBLEM, ["--fail-level", "warning"], 1),
    ],
)
def test_exit_status(
    settings: Any, configure: Any, level: Level, arguments: list[str], status: int
) -> None:
    settings.DEBUG = True
    configure(API_BASE_URL="https://api.kapso.ai", PUBLIC_URL="https://crm.example.com")
    if level is Level.WARNING:
        settings.CACHES = {"default": {"BACKEND": "django.core.cache.backends.dummy.DummyCache"}}
    elif level is Level.PROBLEM:
        configure(API_KEY="")
    found_status, output = command("--json", "--no-network", *arguments)
    assert json.loads(output)["level"] == level.value
    assert found_status == status


@pytest.mark.django_db
def test_broken_check_is_a_finding_and_does_not_stop_the_others(
    settings: Any, secret: None, tmp_path: Path, monkeypatch: Any
) -> None:
    (tmp_path / "broken_urls.py").write_text(f"raise RuntimeError({MARKERS['API_KEY']!r})")
    monkeypatch.syspath_prepend(tmp_path)
    settings.ROOT_URLCONF = "broken_urls"
    found = offline()
    assert found["urls"]["message"] == "Could not be checked: RuntimeError."
    assert found["database"]["level"] == "ok"


@pytest.mark.parametrize("limit", ["0", "-1", "1.5", "3601", "²", "9" * 5000], ids=len)
def test_time_limit_is_a_number_of_seconds(limit: str) -> None:
    with pytest.raises(CommandError, match="whole number of seconds, 1 to 3600"):
        call_command("kapso_doctor", f"--time-limit={limit}")


class InterruptedCache(LocMemCache):
    threads: list[threading.Thread] = []
    may_end = threading.Event()

    def get(self, *args: Any, **kwargs: Any) -> Any:
        """Press Ctrl-C while this cache does not answer."""
        self.threads.append(threading.current_thread())
        signal.raise_signal(signal.SIGINT)
        self.may_end.wait(30)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_ends_with_status_130(settings: Any) -> None:
    settings.DEBUG = True
    settings.CACHES = {"default": {"BACKEND": f"{__name__}.InterruptedCache"}}
    started = time.monotonic()
    try:
        assert command("--no-network")[0] == 130
        assert time.monotonic() - started < 20
    finally:
        InterruptedCache.may_end.set()
        for thread in InterruptedCache.threads:
            thread.join()


# Settings


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("keys", "check", "words"),
    [
        ({"API_KEY": ""}, "settings", "API_KEY"),
        ({"API_KEY": 7}, "settings", "must be a string"),
        ({"API_KEY": b"Zq7pLx-vT2mWqYb9-uR4kXw"}, "settings", "must be a string"),
        ({"WEBHOOK_SECRET": {"a": MARKERS["WEBHOOK_SECRET"]}}, "settings", "list of strings"),
        ({"WEBHOOK_SECRET": ""}, "settings", "WEBHOOK_SECRET"),
        ({"NO_SUCH": MARKERS["API_KEY"]}, "settings", "unknown keys: NO_SUCH"),
        ({"REQUEST_BUDGET": MARKERS["WEBHOOK_SECRET"]}, "settings", "REQUEST_BUDGET"),
        ({"PUBLIC_URL": ""}, "settings", "PUBLIC_URL"),
        ({"PUBLIC_URL": f"https://u:{MARKERS['DATABASE']}@site.example"}, "site", "is not a URL"),
        ({"PUBLIC_URL": "https://[::1"}, "site", "is not a URL"),
        ({"PUBLIC_URL": "x"}, "settings", "must start with https"),
        ({"API_BASE_URL": "nonsense"}, "kapso.reachable", "the URL is invalid"),
        ({"API_BASE_URL": "http://"}, "kapso.reachable", "the URL is invalid"),
        ({"API_BASE_URL": "http://no.such.invalid"}, "kapso.reachable", "cannot be resolved"),
    ],
    ids=str,
)
def test_wrong_settings_are_reported(
    configure: Any, secret: None, keys: dict[str, Any], check: str, words: str
) -> None:
    configure(**keys)
    found = run()
    about = [row["message"] for name, row in found.items() if name.startswith(check)]
    assert words in " ".join(about)
    assert found["database"]["level"] == "ok"


@pytest.mark.django_db
@pytest.mark.parametrize("value", [MARKERS["API_KEY"], [MARKERS["API_KEY"]], None, 7], ids=str)
def test_settings_of_another_type_are_reported(settings: Any, secret: None, value: object) -> None:
    settings.KAPSO_CONNECT = value
    found = run()
    assert found["settings.E001"]["level"] == "problem"
    for name in ("site", "clock", "kapso", "delivery"):
        assert "KAPSO_CONNECT is invalid" in found[name]["message"]


@pytest.mark.django_db
def test_deployment_checks_are_made_unless_debug(settings: Any, configure: Any) -> None:
    configure(PUBLIC_URL="http://crm.example.com")
    assert offline()["settings.W005"]["level"] == "warning"
    settings.SILENCED_SYSTEM_CHECKS = ["kapso_connect.W005"]
    assert "settings.W005" not in offline()
    settings.SILENCED_SYSTEM_CHECKS = []
    settings.DEBUG = True
    assert "settings.W005" not in offline()


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("key", "value", "check"),
    [
        ("API_KEY", "", "settings.W001"),
        ("WEBHOOK_SECRET", "", "settings.W002"),
        ("PUBLIC_URL", "", "settings.W003"),
        ("API_BASE_URL", "http://127.0.0.1:8900", "settings.W016"),
    ],
)
def test_settings_that_prevent_every_connection_are_problems(
    configure: Any, key: str, value: str, check: str
) -> None:
    configure(API_BASE_URL="https://api.kapso.ai", PUBLIC_URL="https://crm.example.com")
    assert "problem" not in {row["level"] for row in offline().values()}
    configure(**{key: value})
    assert offline()[check]["level"] == "problem"


@pytest.mark.django_db
def test_silenced_check_is_not_reported(settings: Any) -> None:
    settings.ROOT_URLCONF = "tests.sites.bare_urls"
    settings.SILENCED_SYSTEM_CHECKS = ["kapso_connect.W004"]
    assert offline()["urls"]["level"] == "ok"


@pytest.mark.django_db
def test_missing_or_broken_urls(settings: Any) -> None:
    settings.ROOT_URLCONF = "tests.sites.bare_urls"
    found = run()
    assert found["urls.W004"]["level"] == "problem"
    assert "not in the URLconf" in found["site"]["message"]
    settings.ROOT_URLCONF = "no.such.urls"
    assert "Could not be checked: ModuleNotFoundError" in offline()["urls"]["message"]


BACKENDS = "django.core.cache.backends"


class UnavailableCache(LocMemCache):
    def get(self, *args: Any, **kwargs: Any) -> Any:
        raise ConnectionError(f"Error 111 connecting to redis: {MARKERS['CACHE']} refused.")


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("backend", "debug", "check", "level", "words"),
    [
        (f"{BACKENDS}.locmem.LocMemCache", False, "settings.W020", "warning", "not shared"),
        (f"{BACKENDS}.locmem.LocMemCache", True, "cache", "ok", "LocMemCache"),
        (f"{BACKENDS}.dummy.DummyCache", True, "cache", "warning", "not counted"),
        (f"{BACKENDS}.db.DatabaseCache", False, "cache", "warning", "does not answer"),
        (f"{__name__}.UnavailableCache", False, "cache", "warning", "ConnectionError"),
        ("no.such.Cache", True, "cache", "warning", "InvalidCacheBackendError"),
    ],
)
def test_cache(
    settings: Any, backend: str, debug: bool, check: str, level: str, words: str
) -> None:
    settings.DEBUG = debug
    settings.CACHES = {"default": {"BACKEND": backend, "LOCATION": MARKERS["CACHE"]}}
    found = offline()[check]
    assert found["level"] == level
    assert words in found["message"]


@pytest.mark.django_db
def test_task_backends_that_run_no_tasks(settings: Any) -> None:
    backend: Any = outbox.deliver_event.get_backend()
    assert offline()["tasks"]["data"] == {"backend": "ImmediateBackend", "background": False}
    module = type(backend).__module__.replace("immediate", "dummy")
    settings.TASKS = {"default": {"BACKEND": f"{module}.DummyBackend"}}
    found = offline()["settings.W013"]
    assert found["level"] == "problem"
    assert "only by kapso_sync" in found["message"]
    settings.TASKS = {"default": {"BACKEND": "no.such.Backend"}}
    assert "Could not be checked: InvalidTaskBackend" in offline()["tasks"]["message"]


# Queues


def minutes(count: float) -> timedelta:
    return timedelta(minutes=count)


def make_event(**fields: Any) -> WebhookEvent:
    key = str(WebhookEvent.objects.count())
    return WebhookEvent.objects.create(idempotency_key=key, event="any", payload={}, **fields)


def make_invitation(**fields: Any) -> Invitation:
    batch = InvitationBatch.objects.create(started_at=clock.now(), **fields.pop("of", {}))
    return Invitation.objects.create(batch=batch, customer=make_customer(), **fields)


def make_redirect(next_attempt_at: datetime) -> SetupLink:
    return make_link(unconfirmed_since=next_attempt_at, unconfirmed_phone_number_id="1")


WAITING = {
    "webhooks.waiting": make_event,
    "signals.waiting": lambda **fields: TimelineEvent.objects.create(kind="connected", **fields),
    "invitations.waiting": make_invitation,
    "redirects.waiting": make_redirect,
}


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("due", "level"), [(-30, "ok"), (10, "ok"), (20, "warning"), (61, "problem")]
)
@pytest.mark.parametrize("check", WAITING)
def test_overdue_work_is_reported(check: str, due: float, level: str) -> None:
    WAITING[check](next_attempt_at=clock.now() - minutes(due))
    WAITING[check](next_attempt_at=clock.now())
    found = offline()[check]
    assert found["level"] == level
    assert found["data"]["count"] == 2
    assert found["data"]["overdue_seconds"] == pytest.approx(max(due, 0) * 60, abs=10)
    if level != "ok":
        assert f"due for {due} minutes" in found["message"]
        assert "kapso_sync" in found["hint"]


@pytest.mark.django_db
def test_finished_or_unstarted_work_is_not_waiting() -> None:
    past = clock.now() - minutes(600)
    make_event(status="processed", next_attempt_at=past)
    TimelineEvent.objects.create(kind="connected", delivered_at=past, next_attempt_at=past)
    make_invitation(status="done", next_attempt_at=past)
    batch = invitations.make_batch([make_customer().pk])
    batch.invitations.update(next_attempt_at=past)
    found = offline()
    assert {found[check]["data"]["count"] for check in WAITING} == {0}


@pytest.mark.django_db
def test_failed_work_is_reported() -> None:
    make_event(status="failed", next_attempt_at=None)
    TimelineEvent.objects.create(kind="connected", next_attempt_at=None)
    make_invitation(status="failed", next_attempt_at=None)
    found = offline()
    for queue in ("webhooks", "signals", "invitations"):
        failed = found[f"{queue}.failed"]
        assert (failed["level"], failed["data"]) == ("warning", {"count": 1})
        assert failed["message"] == f"Permanently failed {queue}: 1."
    assert {found[check]["data"]["count"] for check in WAITING} == {0}


@pytest.mark.django_db
def test_stopped_batch_is_reported() -> None:
    make_invitation(of={"stopped": "no key"}, next_attempt_at=clock.now() - minutes(600))
    found = offline()
    assert found["invitations.stopped"]["level"] == "warning"
    assert found["invitations.waiting"]["data"]["count"] == 0


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("fields", "level", "words"),
    [
        ({"created": 30}, "skipped", "old enough"),
        ({"created": 300, "checked": 5}, "ok", "at most 5 minutes behind"),
        ({"created": 300}, "warning", "nothing for 5 hours"),
        ({"created": 300, "checked": 90}, "warning", "nothing for 90 minutes"),
        ({"created": 5000}, "problem", "nothing for 3 days"),
        ({"created": 30, "expired": 3000}, "problem", "nothing for 2 days"),
        ({"created": 300, "checked": 5, "expired": 120}, "warning", "nothing for 2 hours"),
        ({"created": 300, "expired": 120, "status": "expired"}, "skipped", "old enough"),
    ],
    ids=str,
)
def test_whether_kapso_sync_is_run(fields: dict[str, Any], level: str, words: str) -> None:
    now = clock.now()
    make_link(
        created_at=now - minutes(fields["created"]),
        checked_at=now - minutes(fields["checked"]) if "checked" in fields else None,
        expires_at=now - minutes(fields["expired"]) if "expired" in fields else None,
        status=fields.get("status", "active"),
    )
    found = offline()["sync"]
    assert found["level"] == level
    assert words in found["message"]


def make_connected(*receivers: str, days_ago: int = 0) -> None:
    moment = clock.now() - timedelta(days=days_ago)
    TimelineEvent.objects.create(
        kind="connected",
        occurred_at=moment,
        delivered_at=moment,
        next_attempt_at=None,
        receivers=list(receivers),
    )


@pytest.mark.django_db
def test_site_without_receivers_gets_a_friendly_note() -> None:
    for _ in range(2):
        found = offline()["receivers"]
        assert found["level"] == "ok"
        assert "AppConfig.ready()" in found["message"]
        make_connected()


@pytest.mark.django_db
def test_receiver_that_is_missing_in_commands_is_reported() -> None:
    make_connected("crm.receivers.welcome")
    found = offline()["receivers"]
    assert (found["level"], found["data"]) == ("warning", {"unheard": 0, "has_receivers": False})
    assert "kapso_sync" in found["message"]
    assert "AppConfig.ready()" in found["hint"]


@pytest.mark.django_db
def test_numbers_that_no_receiver_heard_of_are_reported() -> None:
    make_connected(days_ago=8)
    make_connected("crm.receivers.welcome")
    with listening("whatsapp_connected"):
        assert offline()["receivers"]["level"] == "ok"
        make_connected()
        make_connected(days_ago=6)
        found = offline()["receivers"]
    assert (found["level"], found["data"]) == ("warning", {"unheard": 2, "has_receivers": True})
    assert "AppConfig.ready()" in found["hint"]


@pytest.mark.django_db
def test_own_email_about_the_connection_is_no_receiver_of_the_site(configure: Any) -> None:
    configure(EMAIL_CONNECTED=True)
    make_connected(outbox.NONE_OF_THE_SITE, outbox.EMAIL_RECEIVER)
    assert offline()["receivers"]["data"] == {"unheard": 1, "has_receivers": False}
    make_connected(outbox.EMAIL_RECEIVER, "crm.receivers.welcome")
    assert offline()["receivers"]["level"] == "warning"


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(("count", "level"), [(0, None), (1, None), (2, "problem"), (9, "problem")])
def test_key_of_another_project_is_reported(
    here: str, sandbox: Sandbox, count: int, level: str | None
) -> None:
    add_webhook(sandbox, here)
    for _ in range(count):
        make_connection()
    found = run(test_delivery=False)
    assert found["kapso.key"]["level"] == "ok"
    assert found.get("numbers", {}).get("level") == level
    asked = [r for r in sandbox.requests() if "/phone_numbers/" in r["path"]]
    assert len(asked) == min(count, 5) * (count > 1)
    if count > 1:
        assert f"of {count} that are connected" in found["numbers"]["message"]
        row = sandbox.add_number(external_customer_id="ada")
        make_connection(phone_number_id=row["phone_number_id"])
        assert run(test_delivery=False)["numbers"]["level"] == "ok"


@pytest.mark.django_db
def test_wrong_status_of_a_customer_is_reported() -> None:
    customer = make_customer()
    assert offline()["statuses"]["level"] == "ok"
    Customer.objects.filter(pk=customer.pk).update(status="connected")
    found = offline()["statuses"]
    assert (found["level"], found["data"]) == ("warning", {"count": 1})
    assert "kapso_sync" in found["hint"]


# This site, from outside

ACCEPTED = answer(400, {"error": NOT_AN_OBJECT})
REFUSED = answer(401, {"error": WRONG_SIGNATURE})


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("replies", "check", "words"),
    [
        ([answer(404)], "site.reachable", "nothing is there"),
        ([hung()], "site.reachable", "did not answer in time"),
        ([broken_off(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n")], "site.reachable", "broke"),
        ([answer(200, MARKERS["WEBHOOK_SECRET"].encode())], "site.reachable", "it answers 200"),
        ([REFUSED], "site.secret", "secret 1 and 2 of the 2"),
        ([REFUSED, ACCEPTED], "site.secret", "secret 1 of the 2"),
        ([ACCEPTED, REFUSED], "site.secret", "secret 2 of the 2"),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else "",
)
def test_problems_of_the_site_are_reported(
    configure: Any, secret: None, monkeypatch: Any, replies: list[Any], check: str, words: str
) -> None:
    monkeypatch.setattr(registration, "SITE_TIMEOUT", 0.5)
    with FaultyServer() as site:
        site.will(*replies)
        configure(PUBLIC_URL=site.url, WEBHOOK_SECRET=[MARKERS["WEBHOOK_SECRET"], "older"])
        found = run()
    assert found[check]["level"] == "problem"
    assert words in found[check]["message"]


@pytest.mark.django_db
def test_site_without_a_secret_is_reachable(live_server: LiveServer, configure: Any) -> None:
    configure(PUBLIC_URL=live_server.url, WEBHOOK_SECRET="")
    found = run()
    assert found["site.reachable"]["level"] == "ok"
    assert "WEBHOOK_SECRET is not set" in found["site"]["message"]


@pytest.mark.django_db
def test_url_that_kapso_cannot_deliver_to(configure: Any) -> None:
    configure(API_BASE_URL="https://127.0.0.1:9", PUBLIC_URL="http://127.0.0.1:9")
    assert run()["site.url"]["level"] == "problem"


# Kapso


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("replies", "check", "level", "words"),
    [
        ([answer(401, {"error": "no"})], "kapso.key", "problem", "refused the API key"),
        ([answer(402, {"error": "pay"})], "kapso.api", "problem", "plan"),
        (
            [answer(403, b"error code: 1010")],
            "kapso.api",
            "problem",
            "without looking at the API key",
        ),
        (
            [answer(500, b"<h1>Zq7pLx-vT2mWqYb9-uR4kXw</h1>", content_type="text/html")],
            "kapso.api",
            "problem",
            "Kapso failed (500)",
        ),
        (
            [answer(422, {"error": f"{MARKERS['WEBHOOK_SECRET']}?"})],
            "kapso.api",
            "problem",
            "***?",
        ),
        ([answer(200, b"<h1>hi</h1>", content_type="text/html")], "kapso.api", "problem", "HTML"),
        ([answer(301, headers={"Location": "http://e/"})], "kapso.api", "problem", "redirect"),
        ([answer(200, {"data": 7, "meta": {"total_pages": 1}})], "kapso.api", "problem", "list"),
        ([hung()], "kapso.reachable", "problem", "did not answer in time"),
        ([broken_off()], "kapso.reachable", "problem", "broke"),
        ([answer(200), hung()], "kapso.api", "problem", "did not answer in time"),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else "",
)
def test_problems_of_the_api_are_reported(
    configure: Any,
    secret: None,
    monkeypatch: Any,
    replies: list[Any],
    check: str,
    level: str,
    words: str,
) -> None:
    monkeypatch.setattr(doctor, "DOCTOR_BUDGET", 1.0)
    configure(PUBLIC_URL="http://127.0.0.1:9")
    with FaultyServer() as kapso:
        kapso.will(*replies)
        configure(API_BASE_URL=kapso.url)
        found = run()
    assert found[check]["level"] == level
    assert words in found[check]["message"]
    assert found["delivery"]["level"] == "skipped"


@pytest.mark.django_db
def test_hint_does_not_blame_the_key_for_what_is_in_front_of_kapso(configure: Any) -> None:
    configure(PUBLIC_URL="http://127.0.0.1:9")
    with FaultyServer() as cloudflare:
        cloudflare.will(answer(403, b"error code: 1010"))
        configure(API_BASE_URL=cloudflare.url)
        found = run()["kapso.api"]
    assert "The key is not the reason" in found["hint"]


@pytest.mark.django_db
def test_hint_names_api_base_url_if_it_is_not_kapso(configure: Any) -> None:
    configure(PUBLIC_URL="http://127.0.0.1:9")
    with FaultyServer() as other:
        other.will(answer(404, b"<h1>Not found</h1>", content_type="text/html"))
        configure(API_BASE_URL=other.url)
        found = run()["kapso.api"]
    assert "API_BASE_URL" in found["hint"]


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("seconds", "level", "words"),
    [
        (0, "ok", "agrees"),
        (60, "warning", "60 s behind"),
        (-61, "warning", "ahead of"),
        (3600, "problem", "behind"),
    ],
)
def test_clock_is_compared_with_kapso(
    configure: Any, seconds: float, level: str, words: str
) -> None:
    with FaultyServer() as kapso:
        moment = datetime.now(timezone.utc) + timedelta(seconds=seconds)
        kapso.will(answer(401, headers={"Date": format_datetime(moment, usegmt=True)}))
        configure(API_BASE_URL=kapso.url)
        found = run()["clock"]
    assert found["level"] == level
    assert words.replace("60 s", "") in found["message"]
    assert abs(found["data"]["seconds"] + seconds) <= 3


@pytest.mark.django_db
@pytest.mark.parametrize("headers", [{}, {"Date": "today"}, {"Date": "x" * 5000}], ids=len)
def test_answer_without_a_valid_date_skips_the_clock(
    configure: Any, headers: dict[str, str]
) -> None:
    with FaultyServer() as kapso:
        kapso.will(answer(401, headers=headers))
        configure(API_BASE_URL=kapso.url)
        assert run()["clock"]["level"] == "skipped"


WRONG = {
    "paused": ({"active": False}, "active: no -> yes"),
    "essential": ({"events": ["whatsapp.phone_number.created"]}, "whatsapp.phone_number.deleted"),
    "some": (
        {"events": [CREATED, DELETED, registration.TEST_EVENT]},
        "whatsapp.phone_number.disconnected",
    ),
    "old": ({"payload_version": "v1"}, "payload_version: v1 -> v2"),
    "secret": ({"secret_key": "another"}, "a secret that is not in this site's settings"),
}


@pytest.mark.parametrize(("fields", "words"), WRONG.values(), ids=WRONG)
def test_problems_of_the_webhook_are_reported(
    here: str, sandbox: Sandbox, fields: dict[str, Any], words: str
) -> None:
    add_webhook(sandbox, here, **fields)
    found = run(test_delivery=False)
    changes = found["webhook.changes"]
    assert changes["level"] == "problem"
    assert words in changes["message"]
    assert [words in change for change in changes["data"]["changes"]] == [True]
    assert "kapso_webhook" in changes["hint"]
    wrong = {name for name, row in found.items() if row["level"] in {"warning", "problem"}}
    assert wrong - {"webhook.secret"} == {"webhook.changes"}
    assert (found["webhook.secret"]["level"] == "problem") is ("secret_key" in fields)


def test_missing_duplicate_and_inexact_webhooks(here: str, sandbox: Sandbox) -> None:
    assert run()["webhook.registered"]["level"] == "problem"
    add_webhook(sandbox, here[:-1])
    found = run(test_delivery=False)["webhook.changes"]
    assert f"url: {here[:-1]} -> {here}" in found["message"]
    add_webhook(sandbox, here)
    found = run(test_delivery=False)["webhook.changes"]
    assert "delivers everything a second time" in found["message"]
    assert "url: " not in found["message"]


def test_webhook_is_not_compared_without_a_secret(
    here: str, sandbox: Sandbox, configure: Any
) -> None:
    add_webhook(sandbox, here)
    configure(WEBHOOK_SECRET="")
    found = run()
    assert found["webhook.registered"]["level"] == "ok"
    assert found["kapso"]["level"] == "skipped"
    assert "WEBHOOK_SECRET'] is not set" in found["kapso"]["message"]


def test_unfinished_rotation(here: str, sandbox: Sandbox, configure: Any) -> None:
    add_webhook(sandbox, here)
    configure(WEBHOOK_SECRET=["newer", "test-webhook-secret"])
    found = run()
    assert found["webhook.secret"]["level"] == "warning"
    assert "--rotate" in found["webhook.secret"]["hint"]
    assert found["delivery"]["level"] == "ok"


def test_refused_test_delivery_is_explained_by_the_secret(
    here: str, sandbox: Sandbox, monkeypatch: Any
) -> None:
    monkeypatch.setattr(doctor, "TEST_DELIVERY_TIMEOUT", 0.5)
    add_webhook(sandbox, here, secret_key="another")
    found = run()
    assert found["webhook.secret"]["level"] == "problem"
    assert "a different secret" in found["delivery"]["hint"]


@pytest.mark.django_db
def test_hidden_secret_is_left_to_the_test_delivery(configure: Any) -> None:
    configure(PUBLIC_URL="http://127.0.0.1:9")
    webhook = {
        "id": "1",
        "url": f"http://127.0.0.1:9{WEBHOOK}",
        "kind": "kapso",
        "events": list(registration.SUBSCRIBED_EVENTS),
        "active": True,
        "payload_version": "v2",
    }
    listed = {"data": [webhook], "meta": {"page": 1, "per_page": 20, "total_pages": 1}}
    with FaultyServer() as kapso:
        kapso.will(answer(200), answer(200, listed))
        configure(API_BASE_URL=kapso.url)
        found = run(test_delivery=False)
    assert found["webhook.registered"]["level"] == "ok"
    assert found["webhook.secret"]["level"] == "skipped"
    assert "a secret that Kapso does not show" in found["webhook.secret"]["message"]
    assert "test delivery" in found["webhook.secret"]["hint"]


def test_missing_test_delivery(here: str, sandbox: Sandbox, monkeypatch: Any) -> None:
    monkeypatch.setattr(doctor, "TEST_DELIVERY_TIMEOUT", 0.5)
    add_webhook(sandbox, here)
    sandbox.faults(drop=True)
    found = run()["delivery"]
    assert found["level"] == "problem"
    assert "Kapso does not reach it" in found["hint"]
    sandbox.faults(api=[{"match": "^POST", "kind": "status", "status": 500}])
    assert "Kapso failed (500)" in run()["delivery"]["message"]


# The database


def doctor_process(
    database_url: str, *arguments: str, **variables: str
) -> tuple[int, dict[str, Any], str]:
    """Run the command as an operator does; return status, findings, and all that was written."""
    done = subprocess.run(
        [sys.executable, "-m", "django", "kapso_doctor", "--json", *arguments],
        env=environment(database_url, **variables),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "Traceback" not in done.stderr
    assert leaked_parts(done.stdout + done.stderr) == []
    rows = json.loads(done.stdout)["findings"]
    return done.returncode, {row["check"]: row for row in rows}, done.stdout + done.stderr


# Deliveries that Kapso has given up

HOOK = "https://site.example/whatsapp/webhook/"


def check_deliveries() -> dict[str, dict[str, Any]]:
    """Make the check, as if the one of the API key had found no problem."""
    diagnosis = Diagnosis()
    diagnosis.findings = [doctor.Finding("kapso.key", Level.OK, "")]
    try:
        return by_name([row.as_json() for row in doctor.CHECKS["deliveries"](diagnosis)])
    except doctor.Skipped as reason:
        return {"deliveries": {"level": "skipped", "message": str(reason)}}


def given_up(
    status: int | None, *, url: str = HOOK, attempts: int = 4, pk: int = 1
) -> dict[str, Any]:
    created_at = clock.now() - timedelta(minutes=pk)
    return {
        "id": str(pk),
        "event": CREATED,
        "status": "failed",
        "attempt_count": attempts,
        "response_status": status,
        "created_at": created_at.isoformat(),
        "webhook_url": url,
    }


def list_of(*deliveries: dict[str, Any]) -> Any:
    return answer(200, {"data": deliveries, "paging": {"cursors": {}, "next": None}})


@pytest.mark.parametrize(
    ("status", "attempts", "reason", "what", "hint"),
    [
        (None, 4, "no_answer", "no answer within 10 s", "certificate"),
        (None, 0, "paused", "paused the webhook", "kapso_webhook"),
        (401, 4, "signature", "refused the signature (401)", "kapso_webhook"),
        (403, 4, "forbidden", "before it reached this package (403)", "without a login"),
        (404, 4, "not_found", "no webhook at that URL (404)", "URLconf"),
        (302, 4, "redirect", "a redirect", "PUBLIC_URL"),
        (500, 4, "server_error", "the site failed (500)", "logs"),
        (400, 4, "refused", "the site refused them (400)", "webhook.refused"),
        (204, 4, "refused", "the site refused them (204)", "webhook.refused"),
    ],
)
def test_failed_deliveries_are_explained(
    configure: Any, status: int | None, attempts: int, reason: str, what: str, hint: str
) -> None:
    with FaultyServer() as kapso:
        configure(API_BASE_URL=kapso.url, PUBLIC_URL="https://site.example")
        kapso.will(list_of(given_up(status, attempts=attempts)))
        found = check_deliveries()
        assert kapso.requests[0].query == {"status": "failed", "period": "24h", "limit": "100"}
    assert list(found) == [f"deliveries.{reason}"]
    finding = found[f"deliveries.{reason}"]
    assert finding["level"] == "warning"
    assert what in finding["message"]
    assert f"The latest: {CREATED}, 1 minute ago." in finding["message"]
    assert hint in finding["hint"]
    assert "kapso_sync" in finding["hint"]
    statuses = [status] if status else []
    assert finding["data"] == {"count": 1, "statuses": statuses, "events": [CREATED]}


def test_failed_deliveries_are_counted_by_their_reason(configure: Any) -> None:
    with FaultyServer() as kapso:
        configure(API_BASE_URL=kapso.url, PUBLIC_URL="https://site.example")
        kapso.will(
            list_of(
                given_up(502, pk=1),
                given_up(500, pk=2, url="http://SITE.example/whatsapp/webhook"),
                given_up(500, pk=3, url="https://other.example/whatsapp/webhook/"),
                {**given_up(500, pk=4), "webhook_url": None},
                given_up(401, pk=5),
            )
        )
        found = check_deliveries()
    assert found["deliveries.server_error"]["data"]["count"] == 2
    assert "(500, 502)" in found["deliveries.server_error"]["message"]
    assert found["deliveries.signature"]["data"]["count"] == 1
    assert len(found) == 2


@pytest.mark.parametrize("status", [401, 404, 422, 429, 503])
def test_refused_list_of_deliveries_is_no_problem_of_the_site(configure: Any, status: int) -> None:
    with FaultyServer() as kapso:
        configure(API_BASE_URL=kapso.url, PUBLIC_URL="https://site.example", API_BUDGET=1)
        kapso.will(answer(status, {"error": "no"}, {"Retry-After": "60"}))
        finding = check_deliveries()["deliveries"]
    assert finding["level"] == "skipped"
    assert "list of deliveries could not be looked at" in finding["message"]
    assert str(status) in finding["message"]


def test_endless_list_of_deliveries_is_not_read_to_its_end(
    configure: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "DELIVERIES_EXAMINED", 2)
    with FaultyServer() as kapso:
        configure(API_BASE_URL=kapso.url, PUBLIC_URL="https://site.example")
        paging = {"cursors": {"after": "x"}, "next": "https://kapso.example/x"}
        page = [given_up(500, pk=1), given_up(500, pk=2)]
        kapso.will(answer(200, {"data": page, "paging": paging}))
        found = check_deliveries()
        assert len(kapso.requests) == 1
    assert found["deliveries.server_error"]["data"]["count"] == 2


def test_deliveries_that_the_site_refused_are_reported(here: str, sandbox: Sandbox) -> None:
    add_webhook(sandbox, here, secret_key="another")
    assert check_deliveries()["deliveries"]["level"] == "ok"
    sandbox.send_event(CREATED, payload={"phone_number_id": "1"})
    sandbox.wait_for_deliveries(1)
    found = check_deliveries()
    assert found["deliveries.signature"]["data"]["count"] == 1


@pytest.mark.slow
def test_empty_database(tmp_path: Path) -> None:
    status, found, _ = doctor_process(f"sqlite:///{tmp_path}/empty.sqlite3", "--no-network")
    assert status == 1
    assert "kapso_connect.0001_initial" in found["migrations"]["message"]
    assert found["migrations"]["hint"] == "Run: manage.py migrate"
    for name in ("writable", "queues", "receivers", "statuses", "sync"):
        assert found[name]["level"] == "skipped"


@pytest.mark.django_db(transaction=True)
def test_read_only_database() -> None:
    diagnosis = Diagnosis(network=False)
    with read_only_database():
        diagnosis.run()
    (finding,) = [finding for finding in diagnosis.findings if finding.check == "writable"]
    assert finding.level is Level.PROBLEM
    assert "accepts no writes" in finding.message


@pytest.mark.slow
def test_missing_table(tmp_path: Path) -> None:
    with new_database("sqlite", tmp_path) as url:
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as database:
            database.execute("DROP TABLE kapso_connect_invitation")
        status, found, _ = doctor_process(url, "--no-network")
    assert status == 1
    assert found["migrations"]["data"]["missing_tables"] == ["kapso_connect_invitation"]
    assert found["queues"]["level"] == "skipped"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["damaged", "folder"])
def test_invalid_database_file(tmp_path: Path, kind: str) -> None:
    (tmp_path / "damaged").write_bytes(b"no database " * 1000)
    (tmp_path / "folder").mkdir()
    status, found, _ = doctor_process(f"sqlite:///{tmp_path / kind}", "--no-network")
    assert status == 1
    assert re.search(r"does not answer: \w+Error \(sqlite\)", found["database"]["message"])
    assert "that NAME is its file" in found["database"]["hint"]
    for name in ("migrations", "queues", "sync"):
        assert found[name]["level"] == "skipped"


@pytest.mark.slow
@pytest.mark.parametrize("host", ["127.0.0.1:9", "no.such.invalid:5432"])
def test_unreachable_database(host: str) -> None:
    url = f"postgres://u:{MARKERS['DATABASE']}@{host}/x"
    status, found, _ = doctor_process(url, "--no-network")
    assert status == 1
    assert "does not answer: OperationalError (postgresql)" in found["database"]["message"]
    assert "PASSWORD" in found["database"]["hint"]
    assert "Not checked" in found["migrations"]["message"]


@pytest.mark.slow
def test_database_that_never_answers_is_limited_by_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=lambda: server.accept() and time.sleep(0.1), daemon=True)
        url = f"postgres://u:{MARKERS['DATABASE']}@127.0.0.1:{server.getsockname()[1]}/x"
        started = time.monotonic()
        status, found, _ = doctor_process(url, "--no-network", "--time-limit", "6")
    assert time.monotonic() - started < 30
    assert status == 1
    assert "The check database did not finish within 6 s" in found["time"]["message"]
    assert found["versions"]["level"] == "ok"


def test_program_that_calls_the_command_goes_on_after_its_time_limit(configure: Any) -> None:
    with FaultyServer() as kapso:
        configure(API_BASE_URL=kapso.url)
        kapso.will(hung())
        with pytest.raises(CommandError) as caught:
            call_command("kapso_doctor", time_limit=0.3, stdout=StringIO())
    assert caught.value.returncode == 1


@pytest.mark.slow
def test_characters_that_the_terminal_cannot_encode(sandbox: Sandbox, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "django", "kapso_doctor", "--no-test-delivery"]
    with new_database("sqlite", tmp_path) as url:
        done = subprocess.run(
            command,
            env=environment(
                url,
                PYTHONIOENCODING="ascii",
                KAPSO_PROOF_API_URL=sandbox.url,
                KAPSO_PROOF_PUBLIC_URL="http://bäckerei.invalid",
            ),
            capture_output=True,
            text=True,
        )
    assert done.returncode == 1
    assert r"b\xe4ckerei.invalid" in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_tasks_without_a_worker(tmp_path: Path) -> None:
    setup = (
        'INSTALLED_APPS += ["django_tasks_db"]\n'
        'TASKS = {"default": {"BACKEND": "django_tasks_db.DatabaseBackend"}}'
    )
    database = tmp_path / "queue.sqlite3"
    variables = {
        "DJANGO_SETTINGS_MODULE": "tests.sites.queue_site.settings",
        "DATABASE_URL": f"sqlite:///{database}",
        "QUEUE_SITE_FOLDER": str(tmp_path),
        "QUEUE_SITE_SETUP": setup,
        "KAPSO_API_BASE_URL": "http://127.0.0.1:9",
    }
    start = "import django; django.setup(); from django.core.management import call_command;"
    migrate = f"{start} call_command('migrate', 'kapso_connect', verbosity=0)"
    subprocess.run([sys.executable, "-c", migrate], env=environment("", **variables), check=True)
    _status, found, _ = doctor_process("", "--no-network", **variables)
    assert "django_tasks_database.0001_initial" in found["migrations"]["message"]
    assert found["migrations"]["hint"] == "Run: manage.py migrate"
    assert "problem with: migrations" in found["tasks"]["message"] + found["queues"]["message"]
    enqueue = (
        f"{start} call_command('migrate', verbosity=0); from kapso_connect import outbox;"
        "outbox.deliver_event.enqueue(1)"
    )
    subprocess.run([sys.executable, "-c", enqueue], env=environment("", **variables), check=True)
    _status, found, _ = doctor_process("", "--no-network", **variables)
    assert found["tasks"]["data"] == {"backend": "DatabaseBackend", "background": True}
    waiting = found["tasks.waiting"]
    assert (waiting["level"], waiting["data"]["count"]) == ("ok", 1)
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute(
            "UPDATE django_tasks_database_dbtaskresult SET enqueued_at = '2020-01-01'"
        )
    _status, found, _ = doctor_process("", "--no-network", **variables)
    assert found["tasks.waiting"]["level"] == "problem"
    assert "db_worker" in found["tasks.waiting"]["hint"]


# Secrets


def everywhere(settings: Any) -> None:
    """Put secrets into all settings that have some."""
    url = f"redis://cache:{MARKERS['CACHE']}@127.0.0.1:9/0"
    settings.SECRET_KEY = MARKERS["SECRET_KEY"]
    settings.CACHES = {"default": {"BACKEND": f"{BACKENDS}.db.DatabaseCache", "LOCATION": url}}
    smtp = "django.core.mail.backends.smtp.EmailBackend"
    if django.VERSION >= (6, 1):
        options = {"host": "127.0.0.1", "port": 9, "username": "u", "password": MARKERS["MAIL"]}
        settings.MAILERS = {"default": {"BACKEND": smtp, "OPTIONS": options}}
    else:
        settings.EMAIL_BACKEND = smtp
        settings.EMAIL_HOST_PASSWORD = MARKERS["MAIL"]
    settings.KAPSO_CONNECT = {
        **settings.KAPSO_CONNECT,
        "API_KEY": MARKERS["API_KEY"],
        "WEBHOOK_SECRET": [MARKERS["WEBHOOK_SECRET"], MARKERS["OTHER"]],
        "PUBLIC_URL": "http://127.0.0.1:9",
    }


ALL = " ".join(MARKERS.values())
SELF = {
    "id": "1",
    "kind": "kapso",
    "url": f"https://u:{MARKERS['OTHER']}@127.0.0.1:9{WEBHOOK}?t={MARKERS['OTHER']}",
    "secret_key": MARKERS["OTHER"],
    "events": [],
    "active": False,
}
BROKEN: dict[str, dict[str, Any]] = {
    "nothing": {},
    "the key is refused": {"kapso": [answer(401, {"error": f"Bad key {MARKERS['API_KEY']}"})]},
    "Kapso quotes us": {"kapso": [answer(422, {"error": f"No: {MARKERS['WEBHOOK_SECRET']}"})]},
    "Kapso fails": {"kapso": [answer(500, f"<h1>{MARKERS['API_KEY']}</h1>".encode())]},
    "no JSON": {"kapso": [answer(200, ALL.encode())]},
    "the webhook": {
        "kapso": [answer(200), answer(200, {"data": [SELF], "meta": {"total_pages": 1}})]
    },
    "a secret in the URL of the API": {"API_BASE_URL": f"http://u:{MARKERS['OTHER']}@127.0.0.1:9"},
    "a secret in the URL of the site": {"PUBLIC_URL": f"https://u:{MARKERS['OTHER']}@localhost"},
    "a query in the URL of the site": {"PUBLIC_URL": f"https://localhost?{MARKERS['OTHER']}"},
    "no URLs": {"PUBLIC_URL": MARKERS["OTHER"], "API_BASE_URL": MARKERS["OTHER"]},
    "bytes": {"API_KEY": MARKERS["API_KEY"].encode()},
    "a mapping": {"WEBHOOK_SECRET": {"a": MARKERS["WEBHOOK_SECRET"]}},
    "no number": {"REQUEST_BUDGET": MARKERS["OTHER"]},
    "no contact": {"CONTACT_URL": MARKERS["OTHER"]},
    "no rate": {"API_THROTTLE_RATES": {"read": MARKERS["OTHER"]}},
    "an unknown key": {"SECRET": MARKERS["OTHER"]},
    "an unknown option": {"SETUP_LINK_DEFAULTS": {"language": MARKERS["OTHER"]}},
    "an observer raises": {"OBSERVERS": ["secretive.observer"]},
    "a permission raises": {"API_PERMISSIONS": ["secretive.Permission"]},
    "the proxy": {"API_BASE_URL": "http://kapso.invalid", "PUBLIC_URL": "http://site.invalid"},
    "the URLconf raises": {"settings": {"ROOT_URLCONF": "secretive"}},
    "the cache raises": {"settings": {"CACHES": {"default": {"BACKEND": "secretive.Cache"}}}},
    "the cache is away": {
        "settings": {"CACHES": {"default": {"BACKEND": f"{__name__}.UnavailableCache"}}}
    },
    "the tasks raise": {
        "settings": {"TASKS": {"default": {"BACKEND": "secretive.Tasks", "OPTIONS": {"url": ALL}}}}
    },
    "all settings": {"settings": {"KAPSO_CONNECT": ALL}},
}


@pytest.mark.django_db
@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
def test_no_secret_is_printed(
    settings: Any, configure: Any, monkeypatch: Any, tmp_path: Path, broken: dict[str, Any]
) -> None:
    (tmp_path / "secretive.py").write_text(f"raise RuntimeError({ALL!r})")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("HTTP_PROXY", f"http://u:{MARKERS['PROXY']}@127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(doctor, "DOCTOR_BUDGET", 1.0)
    everywhere(settings)
    changes = dict(broken)
    kapso = changes.pop("kapso", None)
    for name, value in changes.pop("settings", {}).items():
        setattr(settings, name, value)
    if changes:
        configure(**changes)
    with FaultyServer() as server:
        if kapso:
            server.will(*kapso)
            configure(API_BASE_URL=server.url)
        status, as_text = command("--no-color")
        _status, as_json = command("--json")
    assert status == 1
    assert leaked_parts(as_text) == []
    assert leaked_parts(as_json + str(json.loads(as_json))) == []


@pytest.mark.slow
def test_no_secret_is_printed_with_a_broken_database() -> None:
    secret = MARKERS["DATABASE"]
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=refuse_password, args=(server, secret), daemon=True).start()
        url = f"postgres://{secret}:{secret}@127.0.0.1:{server.getsockname()[1]}/{secret}"
        status, found, output = doctor_process(url, "--no-network")
    assert status == 1
    assert found["database"]["level"] == "problem"
    assert leaked_parts(output) == []


def refuse_password(server: socket.socket, secret: str) -> None:
    """Answer as PostgreSQL does to a wrong password, and quote what no server quotes."""
    text = f"SFATAL\0C28P01\0Mpassword {secret} of user {secret} is wrong\0\0".encode()
    while True:
        with server.accept()[0] as connection:
            # Requests for encryption have 8 bytes; the message after them names the user.
            while len(connection.recv(1024)) == 8:
                connection.sendall(b"N")
            connection.sendall(b"E" + struct.pack("!I", len(text) + 4) + text)
