"""What a sandbox keeps between starts, with ``--state``, and what it says without."""

from __future__ import annotations

import json
import os
import secrets
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kapso_connect.sandbox.state_file import FORMAT
from kapso_connect.testing import Sandbox, SandboxError

if TYPE_CHECKING:
    from tests.sandbox.support import Api

pytest_plugins = ("tests.sandbox.support",)

pytestmark = pytest.mark.slow

WEBHOOK = "http://127.0.0.1:9/hook"
KEPT = ("project_id", "customers", "setup_links", "phone_numbers", "webhooks")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sandbox.json"


def fill(box: Sandbox, api: Api) -> None:
    """Let the sandbox hold something of each kind."""
    customer = api.customer("Ünïcode", external_customer_id="c-1")
    box.complete(api.link(customer, theme_config={"primary_color": "#112233"})["url"])
    api.link(customer)
    number = box.state()["phone_numbers"][0]
    number_id, account = number["phone_number_id"], number["business_account_id"]
    webhook = {"url": WEBHOOK, "secret_key": "s", "events": ["whatsapp.message.received"]}
    path = f"/whatsapp/phone_numbers/{number_id}/webhooks"
    assert api("POST", path, {"whatsapp_webhook": webhook}).status_code == 201
    box.receive_message(number_id, sender="+14155550199")
    box.set_funding(account, "pending")
    box.send_event("whatsapp.account.restricted", phone_number_id=number_id)
    api("GET", f"/whatsapp/phone_numbers/{number_id}/health")
    box.delete_number(box.add_number()["phone_number_id"])
    box.faults(drop=True)


def contents(box: Sandbox) -> dict[str, Any]:
    time.sleep(0.3)  # until the number that was deleted cannot be read any more
    state = box.state()
    # The setup pages are those of the process that runs.
    text = json.dumps({name: state[name] for name in KEPT}).replace(box.url, "")
    kept: dict[str, Any] = json.loads(text)
    return kept


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_it_continues_with_what_it_held(
    path: Path, signum: signal.Signals, api_of: Callable[[Sandbox], Api]
) -> None:
    if signum == signal.SIGKILL and os.name == "nt":
        pytest.skip("Windows has no SIGKILL")
    with Sandbox(state=path, webhook_url=WEBHOOK) as box:
        fill(box, api_of(box))
        before = contents(box)
        if signum == signal.SIGKILL:
            wait_until(lambda: "restricted" in path.read_text())
        box._process.send_signal(signum)
        box._process.wait(10)
    if os.name != "nt":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert {file.name for file in path.parent.iterdir()} == {path.name, f".{path.name}.lock"}
    with Sandbox(state=path, webhook_url=WEBHOOK) as box:
        assert contents(box) == before
        assert "It continues with 1 customer, 2 setup links, 1 number, 1 webhook of" in box.output()
        assert box.faults()["drop"] is False
        assert box.deliveries() == []
        api = api_of(box)
        number = before["phone_numbers"][0]
        funding = api("GET", f"/whatsapp/accounts/{number['business_account_id']}/funding")
        assert funding.json()["data"]["status"] == "pending"
        health = api("GET", f"/whatsapp/phone_numbers/{number['phone_number_id']}/health")
        assert health.json()["status"] != "healthy"
        # The link that is open leads to this process, and a new number is not an old one.
        link = next(row for row in box.state()["setup_links"] if row["status"] == "active")
        box.complete(link["url"])
        numbers = [row["display_phone_number"] for row in box.state()["phone_numbers"]]
        assert len(set(numbers)) == 2


def wait_until(ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_change_by_itself_is_kept_too(path: Path) -> None:
    with Sandbox(state=path) as box:
        number = box.add_number()["phone_number_id"]
        box.change_device(number, 0.5)
        wait_until(lambda: '"DISCONNECTED"' in path.read_text())
        wait_until(lambda: '"CONNECTED"' in path.read_text())


def run(*options: str) -> subprocess.CompletedProcess[str]:
    """Start a sandbox, stop it at once, and return what it printed."""
    command = [sys.executable, "-m", "kapso_connect.sandbox", "--port", "0", "--stop-on-eof"]
    return subprocess.run(
        [*command, *options], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20
    )


def test_a_secret_that_was_made_up_stays(path: Path) -> None:
    printed = [run("--state", str(path), "--webhook-url", WEBHOOK).stdout for _ in range(2)]
    first, second = (output.splitlines()[0] for output in printed)
    assert first == second
    assert first.startswith("Webhooks are signed with the secret ")
    given = ("--webhook-url", f"{WEBHOOK}/other", "--webhook-secret", "given")
    assert "secret" not in run("--state", str(path), *given).stdout
    (webhook,) = json.loads(path.read_text())["webhooks"]
    assert (webhook["url"], webhook["secret_key"]) == (f"{WEBHOOK}/other", "given")


@pytest.mark.skipif(os.name == "nt", reason="symbolic links need a privilege on Windows")
def test_a_link_to_the_file_stays(path: Path) -> None:
    link = path.with_name("link.json")
    link.symlink_to(path)
    run("--state", str(link))
    assert link.is_symlink()
    assert json.loads(path.read_text())["format"] == FORMAT


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "{}", "null", '{"format": "something else"}', json.dumps({"format": FORMAT})],
)
def test_a_foreign_or_broken_file_is_left_as_it_is(path: Path, content: str) -> None:
    path.write_text(content)
    done = run("--state", str(path))
    assert done.returncode == 1
    assert (
        f"{path} is not the state of a sandbox, or is broken. It was left as it is" in done.stderr
    )
    assert path.read_text() == content


def test_a_part_that_is_wrong_is_refused(path: Path) -> None:
    with Sandbox(state=path) as box:
        box.seed(1, 1)
    good = json.loads(path.read_text())
    for part, wrong in {
        "customers": [{"name": "Ada", "colour": "red"}],
        "setup_links": [{"customer_id": "nobody", "token": "t", "url": "u"}],
        "phone_numbers": [{}],
        "generated_numbers": "many",
        "funding": 7,
    }.items():
        path.write_text(json.dumps({**good, part: wrong}))
        assert run("--state", str(path)).returncode == 1, part


def test_a_file_that_cannot_be_written_is_an_error_at_once(tmp_path: Path) -> None:
    done = run("--state", str(tmp_path / "missing" / "sandbox.json"))
    assert done.returncode == 1
    assert "sandbox.json cannot be written: " in done.stderr
    assert "cannot be read: " in run("--state", str(tmp_path)).stderr
    with pytest.raises(SandboxError, match="cannot be read"):
        Sandbox(state=tmp_path)


def test_without_it_says_what_is_lost() -> None:
    with Sandbox(webhook_url=WEBHOOK) as box:
        box.seed(3, prefix="shop")
        box.add_number()
        box._process.terminate()
        box._process.wait(10)
        last = box.output().splitlines()[-1]
    assert last == "Forgotten: 3 customers, 1 number. Keep them with --state FILE"


def test_nothing_is_said_of_an_empty_sandbox() -> None:
    assert "Forgotten" not in run("--webhook-url", WEBHOOK).stdout


def test_two_sandboxes_cannot_use_one_file(path: Path) -> None:
    with Sandbox(state=path) as box:
        box.seed(1, 1)
        wait_until(lambda: "seed-1" in path.read_text())
        before = path.read_text()
        done = run("--state", str(path))
        assert done.returncode == 1
        assert done.stderr == (
            f"{path} is used by another sandbox. Stop that one, or name another file\n"
        )
        assert path.read_text() == before
    assert run("--state", str(path)).returncode == 0


def test_a_kill_in_the_middle_of_changes_leaves_a_whole_file(path: Path) -> None:
    for _ in range(3):
        with Sandbox(state=path) as box, ThreadPoolExecutor(4) as pool:
            known = len(box.state()["customers"])
            path.with_name(f".{path.name}.abc.new").write_text("secrets")
            for _ in range(40):
                pool.submit(box.seed, 20, 1, prefix=secrets.token_hex())
            wait_until(lambda known=known: len(json.loads(path.read_text())["customers"]) > known)
            box._process.kill()
            box._process.wait(10)
        kept = json.loads(path.read_text())
        assert len(kept["customers"]) > known
        assert len(kept["customers"]) == len(kept["phone_numbers"])
    assert run("--state", str(path)).returncode == 0
    assert {file.name for file in path.parent.iterdir()} == {path.name, f".{path.name}.lock"}
