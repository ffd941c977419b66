from __future__ import annotations

import io
import os
import re
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
import requests
from django.core.management.base import CommandError
from packaging.requirements import Requirement

from example_project.demo import story
from example_project.demo.browser import Browser
from example_project.demo.data import USERNAME
from example_project.demo.management.commands.demo import Command
from example_project.demo.processes import HOST, MANAGE, Demo, free_port
from example_project.demo.story import StepFailed, Story
from kapso_connect.kapso.error_codes import SETUP_ERRORS
from kapso_connect.models import OnboardingStatus
from kapso_connect.testing import Sandbox

SITE_URL = re.compile(rf"http://{HOST}:\d+")


def environment(tmp_path: Path) -> dict[str, str]:
    """Return an environment without settings, in which temporary files go to ``tmp_path``."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("DJANGO_", "KAPSO_", "COV_"))
        and name not in ("SECRET_KEY", "DEBUG", "ALLOWED_HOSTS", "DATABASE_URL")
    }
    return {**kept, "TMPDIR": str(tmp_path)}


def play(python: str | Path, tmp_path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python, MANAGE, "demo", *options],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=90,
    )


@contextmanager
def demo(tmp_path: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """Run the demo; yield the process and a list for its output."""
    process = subprocess.Popen(
        [sys.executable, str(MANAGE), "demo", *options],
        env=environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    too_long = threading.Timer(60, process.kill)
    too_long.start()
    try:
        yield process, []
    finally:
        too_long.cancel()
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def until_ready(process: subprocess.Popen[str], printed: list[str]) -> None:
    assert process.stdout
    while not printed or "Ctrl-C" not in printed[-1]:
        line = process.stdout.readline()
        assert line, "".join(["The demo stopped:\n", *printed])
        printed.append(line)


def test_all_steps_succeed_and_no_files_are_left(tmp_path: Path) -> None:
    done = play(sys.executable, tmp_path, "--once")
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []
    for code in SETUP_ERRORS:
        assert f"comes back with {code}: the failure page says" in done.stdout
    assert "whatsapp_connected: the receiver ran once" in done.stdout
    assert done.stdout.count("whatsapp_setup_failed: the receiver ran once") == len(SETUP_ERRORS)
    assert "The first WhatsApp message: sent once" in done.stdout
    assert "A WhatsApp message to the number: delivered to the number's own webhook" in done.stdout


def test_it_needs_only_the_extra_of_the_example(tmp_path: Path) -> None:
    folder = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    found = requirements("django-kapso-connect[example]")
    assert "django-environ" in found
    assert not {"pytest", "segno", "drf-spectacular"} & set(found)
    for name in {file.parts[0] for one in found.values() for file in one.files or ()}:
        target = Path(sysconfig.get_path("purelib")) / name
        if name not in {"..", "__pycache__"} and not name.endswith(".pth"):
            (packages / name).symlink_to(target)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    done = play(folder / "bin" / "python", temporary, "--once")
    assert done.returncode == 0, done.stdout + done.stderr


def requirements(*wanted: str) -> dict[str, Distribution]:
    """Return what pip would install for ``wanted``, by name, without this project itself."""
    found: dict[str, Distribution] = {}
    waiting = [Requirement(text) for text in wanted]
    while waiting:
        requirement = waiting.pop()
        installed = distribution(requirement.name)
        if requirement.name in found:
            continue
        if requirement.name != "django-kapso-connect":
            found[requirement.name] = installed
        for text in installed.requires or ():
            needed = Requirement(text)
            extras = requirement.extras or {""}
            if needed.marker is None or any(needed.marker.evaluate({"extra": e}) for e in extras):
                waiting.append(needed)
    return found


def story_of(sandbox: Sandbox, log: Path) -> Story:
    """A story whose site does not run."""
    demo = Demo(f"http://{HOST}:9", site=None, password="", sandbox=sandbox)
    return Story(demo, Browser(), log, print)


def test_a_failed_step_is_named_with_the_output_of_the_site(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    log = tmp_path / "site.log"
    log.write_text("Traceback of the site\n")
    demo = Demo(f"http://{HOST}:9", site=None, password="", sandbox=sandbox)
    with pytest.raises(CommandError, match=r"(?s)^FAILED  Staff logs in.*Traceback of the site"):
        Command(stdout=io.StringIO()).play_with(demo, log)


def test_a_webhook_that_does_not_arrive_fails_its_step(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(story, "STEP_TIMEOUT", 0.1)
    sandbox.set_webhook(None)
    played = story_of(sandbox, tmp_path / "site.log")
    with pytest.raises(StepFailed, match=r"^Kapso's webhook: 0 of 1 deliveries"):
        played.step("Kapso's webhook", played.webhook_arrives)


@pytest.mark.parametrize("times", [0, 2])
def test_a_receiver_that_did_not_run_once_fails_its_step(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    monkeypatch.setattr(story, "STEP_TIMEOUT", 0.1)
    log = tmp_path / "site.log"
    log.write_text("connected: company=Ada event=1\n" * times)
    played = story_of(sandbox, log)
    with pytest.raises(StepFailed, match=f"the receiver ran {times} times instead of once"):
        played.step("whatsapp_connected", played.receiver_ran_once, "connected: company=Ada ")


def test_demos_run_side_by_side_until_they_are_stopped(tmp_path: Path) -> None:
    with busy(8000), busy(8900), demo(tmp_path) as one, demo(tmp_path) as other:
        for (process, printed), stop in [(one, signal.SIGINT), (other, signal.SIGTERM)]:
            until_ready(process, printed)
            text = "".join(printed)
            urls = set(SITE_URL.findall(text))
            assert len(urls) == 2
            assert not {f"http://{HOST}:8000", f"http://{HOST}:8900"} & urls
            assert re.search(r"password \S{12}", text)
            for url in urls:
                assert requests.get(url, timeout=10).ok
            process.send_signal(stop)
            process.send_signal(stop)
            assert process.wait(20) == 0
            for url in urls:
                with pytest.raises(requests.ConnectionError):
                    requests.get(url, timeout=10)
    assert list(tmp_path.iterdir()) == []


def test_it_names_three_things_worth_doing_at_the_chosen_ports(tmp_path: Path) -> None:
    port, sandbox_port = free_port(0), free_port(0)
    options = ["--port", str(port), "--sandbox-port", str(sandbox_port)]
    with demo(tmp_path, *options) as (process, printed):
        until_ready(process, printed)
        text = "".join(printed)
        assert set(SITE_URL.findall(text)) == {
            f"http://{HOST}:{one}" for one in (port, sandbox_port)
        }
        assert [f"  {number}. " in text for number in range(1, 5)] == [True, True, True, False]
        (password,) = re.findall(r"password (\S{12})\n", text)
        assert f"http://{HOST}:{port}/account/\n" in text
        site = f"http://{HOST}:{port}"
        with Browser() as browser:
            page = browser.get(f"{site}/")
            assert password in page.text
            login = {"username": USERNAME, "password": password}
            browser.submit(page, page.form("password"), *login.items())
            for url in re.findall(r"http://\S+", text):
                assert browser.get(url).status == 200, url
            start = browser.get(f"{site}/").text
            customers = browser.get(f"{site}/admin/kapso_connect/customer/").text
        for status in OnboardingStatus:
            assert f" {status.label} " in customers, "a customer in every state"
        assert "Account restricted" in start
        assert "Do you have rye bread tomorrow?" in start
        assert "1 webhook failed and needs attention." in customers
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0


@pytest.mark.parametrize("option", ["--port", "--sandbox-port"])
def test_a_chosen_port_that_is_in_use_is_an_error(tmp_path: Path, option: str) -> None:
    port = free_port(0)
    with busy(port):
        done = play(sys.executable, tmp_path, option, str(port))
    assert done.returncode == 1
    assert f"Port {port} cannot be used" in done.stderr
    assert f"Choose another one with {option}, or leave it out" in done.stderr
    assert "Traceback" not in done.stderr


def test_site_and_sandbox_need_two_ports(tmp_path: Path) -> None:
    port = str(free_port(0))
    done = play(sys.executable, tmp_path, "--port", port, "--sandbox-port", port)
    assert f"--port and --sandbox-port are both {port}" in done.stderr


@contextmanager
def busy(port: int) -> Iterator[None]:
    """Make sure that ``port`` is in use."""
    with socket.socket() as other:
        with suppress(OSError):
            other.bind((HOST, port))
            other.listen()
        yield
