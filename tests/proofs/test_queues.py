"""Background processing, with a real site, real queues, and real workers that are killed.

The site and its workers are set up by the very lines of docs/how-to/queues.md.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import django
import pytest
from requests import Session

from example_project.demo.processes import HOST, free_port, serving, stop
from kapso_connect.testing import Sandbox, webhook_headers
from tests import ROOT

from ..factories import CREATED, SECRET
from ..redis_support import Redis
from .support import empty_database, missing

GUIDE = (ROOT / "docs" / "how-to" / "queues.md").read_text()
SETUPS = re.findall(
    r"^```python\n(# mysite/settings.py\n.+?)^```.+?^```console\n(.+?)^```",
    GUIDE,
    re.MULTILINE | re.DOTALL,
)
CELERY_BACKEND = re.findall(
    r"^```python\n(# crm/celery_backend.py\n.+?)^```", GUIDE, re.MULTILINE | re.DOTALL
)
RABBITMQ = "amqp://guest:guest@127.0.0.1:5672//"
RQ = "RQ on postgres"
CELERY = "Celery on postgres"
DISCONNECTED = "whatsapp.phone_number.disconnected"
WEBHOOK_SECONDS = 2.0
"""Limit for an answer here, while a receiver takes 30 seconds. Kapso waits for 10."""
BLOCKED_WEBHOOK_SECONDS = 5.0
"""The same, when the answer has to wait for locks or for the timeout of a broker."""


@dataclass
class Site:
    """A site served by gunicorn, its worker, and the calls of its receiver."""

    folder: Path
    port: int
    environment: dict[str, str]
    sandbox: Sandbox
    worker_command: list[str]
    redis: Redis | None
    http: Session = field(default_factory=Session)
    worker: subprocess.Popen[bytes] | None = None

    # The worker

    def start_worker(self) -> None:
        with (self.folder / "worker.log").open("ab") as log:
            self.worker = subprocess.Popen(
                self.worker_command,
                cwd=ROOT,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def kill_worker(self, at_work: int) -> None:
        """Kill the worker and the process ``at_work`` (a child with RQ), as by a power cut."""
        assert self.worker is not None
        self.worker.kill()
        with suppress(ProcessLookupError):
            os.kill(at_work, signal.SIGKILL)
        self.worker.wait()
        self.worker = None

    def kill_worker_and_its_children(self) -> None:
        assert self.worker is not None
        pid = self.worker.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        self.kill_worker(pid)
        for child in children:
            with suppress(ProcessLookupError):
                os.kill(int(child), signal.SIGKILL)

    def stop_worker(self) -> None:
        if self.worker is not None:
            stop(self.worker)
            self.worker = None

    # The receiver

    def set_receiver_mode(self, mode: str) -> None:
        new = self.folder / "mode.new"
        new.write_text(mode)
        new.replace(self.folder / "mode")

    def calls(self, number: str) -> list[dict[str, Any]]:
        path = self.folder / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        return [call for call in map(json.loads, lines) if call["number"] == number]

    def done(self, number: str) -> list[str]:
        return [call["what"] for call in self.calls(number)]

    # Kapso's side

    def new_number(self, external_customer_id: str | None = None) -> dict[str, Any]:
        return self.sandbox.add_number(
            external_customer_id=external_customer_id or str(uuid.uuid4())
        )

    def deliver(self, number: dict[str, Any], event: str = CREATED, /, **more: Any) -> float:
        """Deliver an event about a number as Kapso would; return the seconds until the answer."""
        payload = {
            "phone_number_id": number["phone_number_id"],
            "project": {"id": str(uuid.uuid4())},
            "customer": {"id": number["customer_id"]},
            **more,
        }
        body = json.dumps(payload).encode()
        started = time.monotonic()
        answer = self.http.post(
            f"{self.url}/whatsapp/webhook/",
            body,
            headers=webhook_headers(body, SECRET, event=event),
            timeout=30,
        )
        assert answer.status_code == 200, answer.text
        return time.monotonic() - started

    # The site

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    def rows(self, number: str) -> dict[str, Any]:
        answer = self.http.get(f"{self.url}/rows/{number}/", timeout=30)
        assert answer.status_code == 200, answer.text
        rows: dict[str, Any] = answer.json()
        return rows

    def announcement(self, number: str) -> dict[str, Any]:
        """Return the one event of the timeline for the connection of a number."""
        (event,) = [e for e in self.rows(number)["outbox"] if e["kind"] == "connected"]
        return event

    def is_delivered(self, number: str) -> bool:
        return bool(self.announcement(number)["delivered"])

    def make_due(self, number: str) -> None:
        answer = self.http.post(f"{self.url}/make_due/{number}/", timeout=30)
        assert answer.json() == {"made_due": 1}

    def migrate(self) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "django", "migrate", "--verbosity", "0"],
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == 0, done.stdout

    def kapso_sync(self) -> str:
        """Run kapso_sync in the site's process, which is faster than a new one."""
        answer = self.http.post(f"{self.url}/kapso_sync/", timeout=60)
        assert answer.status_code == 200, self.output()
        return answer.text

    def output(self) -> str:
        logs = [self.folder / "site.log", self.folder / "worker.log"]
        return "\n".join(log.read_text(errors="replace") for log in logs if log.exists())


def wait_until(condition: Callable[[], bool], site: Site) -> None:
    deadline = time.monotonic() + 60  # workers take long to start where much else runs
    while not condition():
        assert time.monotonic() < deadline, site.output()
        time.sleep(0.05)


def worker_command(console: str) -> list[str]:
    """Return the last line of a console block, for this environment and without delays."""
    words = shlex.split(console.splitlines()[-1])
    if words[:3] == ["python", "-m", "celery"]:
        # Two processes, also where a machine has many processors; and nothing to other workers.
        return [sys.executable, *words[1:], "-c", "2", "--without-gossip", "--without-mingle"]
    assert words[:2] == ["python", "manage.py"]
    no_delay = ["--interval", "0.1", "--no-startup-delay"] if words[2] == "db_worker" else []
    return [sys.executable, "-m", "django", *words[2:], *no_delay]


@contextmanager
def celery_project(folder: Path) -> Iterator[str]:
    """Write the guide's backend, and yield a setting for a queue of this test alone."""
    kombu = pytest.importorskip("kombu")
    (backend,) = CELERY_BACKEND
    if django.VERSION < (6, 0):
        backend = backend.replace("from django.tasks", "from django_tasks")
    (folder / "crm").mkdir()
    (folder / "crm" / "__init__.py").touch()
    (folder / "crm" / "celery_backend.py").write_text(backend)
    name = f"kapso-connect-{uuid.uuid4()}"
    with kombu.Connection(RABBITMQ, connect_timeout=2) as broker:
        try:
            broker.connect()
        except OSError:
            missing(f"No RabbitMQ at {RABBITMQ}.")
        try:
            yield f"CELERY_TASK_DEFAULT_QUEUE = {name!r}\n"
        finally:
            broker.default_channel.queue_delete(name)


@pytest.fixture(scope="module", params=["database on sqlite", "database on postgres", RQ, CELERY])
def site(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    sandbox_process: Sandbox,
) -> Iterator[Site]:
    """A site with a worker, for each set-up of the guide: its queue on its database."""
    folder = tmp_path_factory.mktemp("queue-site")
    (folder / "mode").write_text("return")
    sandbox_process.reset()
    sandbox_process.set_webhook(None)
    with ExitStack() as stack:
        queue, _, kind = request.param.partition(" on ")
        database_url = stack.enter_context(empty_database(kind, folder))
        redis = Redis(folder) if queue == "RQ" else None
        if redis is not None:
            stack.callback(redis.stop)
            redis.start()
        setup, console = SETUPS[["database", "RQ", "Celery"].index(queue)]
        if queue == "Celery":
            setup += stack.enter_context(celery_project(folder))
        environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("COV_", "KAPSO_"))},
            "DJANGO_SETTINGS_MODULE": "tests.sites.queue_site.settings",
            "PYTHONPATH": f"{folder}:{ROOT}",
            "PYTHONUNBUFFERED": "1",
            "QUEUE_SITE_FOLDER": str(folder),
            "QUEUE_SITE_SETUP": setup.replace(
                "redis://127.0.0.1:6379/0", redis.url if redis else ""
            ),
            "DATABASE_URL": database_url,
            "KAPSO_API_BASE_URL": sandbox_process.url,
        }
        port = free_port(0)
        site = Site(folder, port, environment, sandbox_process, worker_command(console), redis)
        site.http.trust_env = False
        gunicorn = [
            *(sys.executable, "-m", "gunicorn", "--bind", f"{HOST}:{port}", "--threads", "8"),
            "django.core.wsgi:get_wsgi_application()",
        ]
        stack.enter_context(serving(gunicorn, environment, port, folder / "site.log", ROOT))
        stack.enter_context(closing(site.http))
        site.migrate()
        stack.callback(site.stop_worker)
        site.start_worker()
        # gunicorn listens before it has loaded the site.
        assert site.http.get(f"{site.url}/whatsapp/webhook/", timeout=30).status_code == 405
        yield site


def test_a_worker_killed_during_a_task_loses_nothing(site: Site) -> None:
    site.set_receiver_mode("hang")
    hung, queued = site.new_number(), site.new_number()
    number, other = hung["phone_number_id"], queued["phone_number_id"]
    assert site.deliver(hung) < WEBHOOK_SECONDS
    wait_until(lambda: site.done(number) == ["begins"], site)
    site.kill_worker(site.calls(number)[0]["pid"])
    event = site.announcement(number)
    assert (event["delivered"], event["attempts"]) == (False, 1)
    assert event["due_in"] > 0, "Its lease expired too early."

    # The next delivery waits in the queue for the next worker.
    site.set_receiver_mode("return")
    assert site.deliver(queued) < WEBHOOK_SECONDS
    assert site.announcement(other)["attempts"] == 0
    site.start_worker()
    wait_until(lambda: site.is_delivered(other), site)
    assert site.done(other) == ["begins", "ends"]

    # The killed worker's event is delivered again when its lease has expired.
    wait_until(lambda: site.announcement(number)["due_in"] <= 0, site)
    assert site.done(number) == ["begins"]
    assert "signals 1" in site.kapso_sync()
    assert site.done(number) == ["begins", "begins", "ends"]
    assert site.is_delivered(number)
    assert "signals 0" in site.kapso_sync()
    assert site.done(number) == ["begins", "begins", "ends"]


def test_the_worker_confirms_with_the_api(site: Site) -> None:
    site.set_receiver_mode("return")
    added = site.new_number()
    number = added["phone_number_id"]
    before = datetime.now(timezone.utc) - timedelta(minutes=10)
    site.deliver(added, DISCONNECTED, event=DISCONNECTED, occurred_at=before.isoformat())
    assert site.rows(number)["status"] == "disconnected"

    assert site.deliver(added) < WEBHOOK_SECONDS
    wait_until(lambda: site.rows(number)["status"] == "connected", site)
    wait_until(lambda: site.is_delivered(number), site)
    assert site.rows(number)["inbox"] == ["processed", "processed"]
    assert site.done(number) == ["begins", "ends"]
    asked = [row for row in site.sandbox.requests() if row["path"].endswith(f"/{number}")]
    assert len(asked) == 1


def test_a_receiver_that_raises_is_called_again_by_kapso_sync_or_by_the_worker(site: Site) -> None:
    site.set_receiver_mode("raise")
    added = [site.new_number(), site.new_number()]
    first, second = (number["phone_number_id"] for number in added)
    for delivered, number in zip(added, (first, second), strict=True):
        assert site.deliver(delivered) < WEBHOOK_SECONDS
        wait_until(lambda number=number: site.announcement(number)["last_error"] != "", site)
        event = site.announcement(number)
        assert "RuntimeError: receiver is broken" in event["last_error"]
        assert (event["delivered"], event["attempts"]) == (False, 1)

    site.set_receiver_mode("return")
    site.make_due(first)
    time.sleep(0.5)  # a queue that retries at once would have done so by now
    assert site.done(first) == site.done(second) == ["begins"]
    assert "signals 1" in site.kapso_sync()
    assert site.done(first) == ["begins", "begins", "ends"]

    # After a delay of 15 seconds the worker calls the other one; for the first, nothing is left.
    wait_until(lambda: site.is_delivered(second), site)
    assert site.done(second) == ["begins", "begins", "ends"]
    assert site.done(first) == ["begins", "begins", "ends"]
    assert "signals 0" in site.kapso_sync()


def test_a_receiver_that_writes_to_the_same_rows_causes_no_deadlock(site: Site) -> None:
    site.set_receiver_mode("same rows")
    customer = str(uuid.uuid4())
    added = [site.new_number(customer) for _ in range(12)]
    numbers = [number["phone_number_id"] for number in added]
    with ThreadPoolExecutor(6) as kapso:
        answers = kapso.map(site.deliver, added)
        site.kapso_sync()  # delivers while the worker does, and reads the same rows
        assert max(answers) < BLOCKED_WEBHOOK_SECONDS
    wait_until(lambda: all(map(site.is_delivered, numbers)), site)
    assert [site.done(number) for number in numbers] == [["begins", "ends"]] * 12
    assert {site.announcement(number)["last_error"] for number in numbers} == {""}


def test_a_worker_killed_during_a_batch_of_invitations_doubles_nothing(site: Site) -> None:
    before = len(site.sandbox.state()["setup_links"])
    site.sandbox.faults(api=[{"kind": "slow", "seconds": 0.05}])
    pk = site.http.post(f"{site.url}/invite/60/", timeout=30).json()["batch"]

    def progress() -> dict[str, Any]:
        answer: dict[str, Any] = site.http.get(f"{site.url}/batch/{pk}/", timeout=30).json()
        return answer

    wait_until(lambda: progress()["done"] >= 10, site)
    site.kill_worker_and_its_children()
    killed_at = progress()
    assert killed_at["left"] > 0, "It was done before it could be killed."
    site.start_worker()
    site.sandbox.clear_faults()
    # The killed worker's rows are free when their leases have expired; its task is lost.
    wait_until(lambda: "invitations" in site.kapso_sync() and not progress()["left"], site)
    after = progress()
    made = site.sandbox.state()["setup_links"][: -before or None]
    assert after["done"] == 60
    assert sorted(after["links"]) == sorted(link["id"] for link in made)
    assert len({link["customer_id"] for link in made}) == 60
    assert after["emails_sent"] + after["emails_unknown"] == 60
    assert after["emails_unknown"] <= 1, "only the one that was being sent"
    mails = [mail.read_text() for mail in (site.folder / "mail").iterdir()]
    recipients = Counter(re.findall(r"^To: (.+)$", "\n".join(mails), re.MULTILINE))
    assert set(recipients.values()) == {1}
    assert len(recipients) >= after["emails_sent"]


@pytest.mark.parametrize("site", [RQ], indirect=True)
def test_a_broker_that_hangs_or_is_down_does_not_block_the_webhook(site: Site) -> None:
    assert site.redis is not None
    site.set_receiver_mode("return")
    first, second = site.new_number(), site.new_number()
    with site.redis.hanging():
        assert site.deliver(first) < BLOCKED_WEBHOOK_SECONDS
    site.stop_worker()
    site.redis.stop()
    assert site.deliver(second) < WEBHOOK_SECONDS
    assert site.announcement(second["phone_number_id"])["attempts"] == 0
    site.kapso_sync()
    for number in (first["phone_number_id"], second["phone_number_id"]):
        assert site.is_delivered(number)
        assert site.done(number) == ["begins", "ends"]


@pytest.mark.parametrize("site", [CELERY], indirect=True)
def test_a_task_that_celery_defers_runs_when_it_is_due(site: Site) -> None:
    site.set_receiver_mode("return")
    enqueued = time.monotonic()
    assert site.http.post(f"{site.url}/defer/2/", timeout=30).status_code == 200
    wait_until(lambda: (site.folder / "deferred").exists(), site)
    assert time.monotonic() - enqueued >= 2


def test_the_guide_shows_the_setups_and_their_workers() -> None:
    commands = [console.splitlines()[-1].split()[2] for _, console in SETUPS]
    assert commands == ["db_worker", "rqworker", "celery"]
