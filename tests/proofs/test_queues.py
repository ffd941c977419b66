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
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from requests import Session

from example_project.demo.processes import HOST, end, free_port, serving
from kapso_connect.onboarding import invitations
from kapso_connect.testing import Sandbox, webhook_headers
from tests import ROOT

from ..factories import CREATED, SECRET
from ..redis_support import Redis
from .support import empty_database

SETUPS = re.findall(
    r"^```python\n(.+?)^```.+?^```console\n(.+?)^```",
    (ROOT / "docs" / "how-to" / "queues.md").read_text(),
    re.MULTILINE | re.DOTALL,
)
RQ = "RQ on postgres"
DISCONNECTED = "whatsapp.phone_number.disconnected"
AT_ONCE = 2.0
"""Seconds in which Kapso must have its answer here, while a receiver takes 30. It waits for 10."""
IN_TIME = 5.0
"""The same, where the answer has to wait for others: for their locks, or for a broker's timeout."""


@dataclass
class Site:
    """A site served by gunicorn, its worker, and what its receiver was told and tells."""

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
        """End the worker and its process that is at work (RQ's is a child) as by a power cut."""
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
        self.kill_worker(int(children[0]) if children else pid)

    def stop_worker(self) -> None:
        if self.worker is not None:
            end(self.worker)
            self.worker = None

    # The receiver

    def receiver_shall(self, mode: str) -> None:
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
        """The one event of the timeline that says that a number was connected."""
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
        """What cron would run; by the site, because a start of Python takes a second."""
        answer = self.http.post(f"{self.url}/kapso_sync/", timeout=60)
        assert answer.status_code == 200, self.output()
        return answer.text

    def output(self) -> str:
        logs = [self.folder / "site.log", self.folder / "worker.log"]
        return "\n".join(log.read_text(errors="replace") for log in logs if log.exists())


def wait_until(true: Callable[[], bool], site: Site) -> None:
    deadline = time.monotonic() + 60  # workers take long to start where much else runs
    while not true():
        assert time.monotonic() < deadline, site.output()
        time.sleep(0.05)


def worker_command(console: str) -> list[str]:
    """The last line of a console block, for this environment and for tests in a hurry."""
    words = shlex.split(console.splitlines()[-1])
    assert words[:2] == ["python", "manage.py"]
    hurry = ["--interval", "0.1", "--no-startup-delay"] if words[2] == "db_worker" else []
    return [sys.executable, "-m", "django", *words[2:], *hurry]


@pytest.fixture(scope="module", params=["database on sqlite", "database on postgres", RQ])
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
        setup, console = SETUPS[0 if redis is None else 1]
        environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("COV_", "KAPSO_"))},
            "DJANGO_SETTINGS_MODULE": "tests.sites.queue_site.settings",
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


def test_a_worker_killed_in_mid_work_loses_nothing(site: Site) -> None:
    site.receiver_shall("hang")
    hung, queued = site.new_number(), site.new_number()
    number, other = hung["phone_number_id"], queued["phone_number_id"]
    assert site.deliver(hung) < AT_ONCE
    wait_until(lambda: site.done(number) == ["begins"], site)
    site.kill_worker(site.calls(number)[0]["pid"])
    event = site.announcement(number)
    assert (event["delivered"], event["attempts"]) == (False, 1)
    assert event["due_in"] > 0, "Its lease is over before anybody could have looked."

    # What comes meanwhile waits in the queue for the next worker.
    site.receiver_shall("return")
    assert site.deliver(queued) < AT_ONCE
    assert site.announcement(other)["attempts"] == 0
    site.start_worker()
    wait_until(lambda: site.is_delivered(other), site)
    assert site.done(other) == ["begins", "ends"]

    # What the dead worker held is done again when its lease is over.
    wait_until(lambda: site.announcement(number)["due_in"] <= 0, site)
    assert site.done(number) == ["begins"]
    assert "signals 1" in site.kapso_sync()
    assert site.done(number) == ["begins", "begins", "ends"]
    assert site.is_delivered(number)
    assert "signals 0" in site.kapso_sync()
    assert site.done(number) == ["begins", "begins", "ends"]


def test_the_worker_asks_the_api_where_it_has_to_decide(site: Site) -> None:
    site.receiver_shall("return")
    told = site.new_number()
    number = told["phone_number_id"]
    before = datetime.now(timezone.utc) - timedelta(minutes=10)
    site.deliver(told, DISCONNECTED, event=DISCONNECTED, occurred_at=before.isoformat())
    assert site.rows(number)["status"] == "disconnected"

    assert site.deliver(told) < AT_ONCE
    wait_until(lambda: site.rows(number)["status"] == "connected", site)
    wait_until(lambda: site.is_delivered(number), site)
    assert site.rows(number)["inbox"] == ["processed", "processed"]
    assert site.done(number) == ["begins", "ends"]
    asked = [row for row in site.sandbox.requests() if row["path"].endswith(f"/{number}")]
    assert len(asked) == 1


def test_a_receiver_that_raises_is_called_again_by_kapso_sync_only(site: Site) -> None:
    site.receiver_shall("raise")
    told = site.new_number()
    number = told["phone_number_id"]
    assert site.deliver(told) < AT_ONCE
    wait_until(lambda: site.announcement(number)["last_error"] != "", site)
    event = site.announcement(number)
    assert "RuntimeError: receiver is broken" in event["last_error"]
    assert (event["delivered"], event["attempts"]) == (False, 1)

    site.receiver_shall("return")
    site.make_due(number)
    time.sleep(0.5)  # a queue that tries again by itself would
    assert site.done(number) == ["begins"]
    assert "signals 1" in site.kapso_sync()
    assert site.done(number) == ["begins", "begins", "ends"]
    assert site.is_delivered(number)


def test_a_receiver_that_writes_to_the_same_rows_locks_nobody_out(site: Site) -> None:
    site.receiver_shall("same rows")
    customer = str(uuid.uuid4())
    told = [site.new_number(customer) for _ in range(12)]
    numbers = [number["phone_number_id"] for number in told]
    with ThreadPoolExecutor(6) as kapso:
        answers = kapso.map(site.deliver, told)
        site.kapso_sync()  # delivers while the worker does, and reads the same rows
        assert max(answers) < IN_TIME
    wait_until(lambda: all(map(site.is_delivered, numbers)), site)
    assert [site.done(number) for number in numbers] == [["begins", "ends"]] * 12
    assert {site.announcement(number)["last_error"] for number in numbers} == {""}


def test_a_worker_killed_amid_a_batch_of_invitations_doubles_nothing(site: Site) -> None:
    before = len(site.sandbox.state()["setup_links"])
    site.sandbox.faults(api=[{"kind": "slow", "seconds": 0.05}])
    pk = site.http.post(f"{site.url}/invite/60/", timeout=30).json()["batch"]

    def reached() -> dict[str, Any]:
        answer: dict[str, Any] = site.http.get(f"{site.url}/batch/{pk}/", timeout=30).json()
        return answer

    wait_until(lambda: reached()["done"] >= 10, site)
    site.kill_worker_and_its_children()
    killed_at = reached()
    assert killed_at["left"] > 0, "It was done before it could be killed."
    site.start_worker()
    site.sandbox.clear_faults()
    # What the dead worker held is free when its lease is over; the queue has forgotten the rest.
    wait_until(lambda: "invitations" in site.kapso_sync() and not reached()["left"], site)
    after = reached()
    made = site.sandbox.state()["setup_links"][: -before or None]
    assert after["done"] == 60
    assert sorted(after["links"]) == sorted(link["id"] for link in made)
    assert len({link["customer_id"] for link in made}) == 60
    assert after["emails_sent"] + after["emails_failed"] == 60
    assert after["emails_failed"] <= invitations.AT_ONCE, "only those that were just being sent"
    mails = [mail.read_text() for mail in (site.folder / "mail").iterdir()]
    recipients = Counter(re.findall(r"^To: (.+)$", "\n".join(mails), re.MULTILINE))
    assert set(recipients.values()) == {1}
    assert len(recipients) >= after["emails_sent"]


@pytest.mark.parametrize("site", [RQ], indirect=True)
def test_a_broker_that_hangs_or_is_away_costs_nobody_their_answer(site: Site) -> None:
    assert site.redis is not None
    site.receiver_shall("return")
    first, second = site.new_number(), site.new_number()
    with site.redis.hanging():
        assert site.deliver(first) < IN_TIME
    site.stop_worker()
    site.redis.stop()
    assert site.deliver(second) < AT_ONCE
    assert site.announcement(second["phone_number_id"])["attempts"] == 0
    site.kapso_sync()
    for number in (first["phone_number_id"], second["phone_number_id"]):
        assert site.is_delivered(number)
        assert site.done(number) == ["begins", "ends"]


def test_the_guide_shows_the_two_setups_and_their_workers() -> None:
    commands = [console.splitlines()[-1].split()[2] for _, console in SETUPS]
    assert commands == ["db_worker", "rqworker"]
