from __future__ import annotations

import signal
import tempfile
import time
from argparse import ArgumentParser
from pathlib import Path
from types import FrameType
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.urls import NoReverseMatch, reverse

from example_project.demo.browser import Browser
from example_project.demo.data import MEMBER, USERNAME
from example_project.demo.processes import Demo, DemoError, running
from example_project.demo.story import StepFailed, Story
from kapso_connect.testing import SandboxError

WELCOME = """
The demo is running. Everything is on this machine: nothing reaches Kapso or WhatsApp.

  Log in     {site}/
             user {user}, password {password}

Three things worth doing:

  1. Invite a company    {site}/admin/kapso_connect/customer/?status__exact=not_invited
                         Select one, choose “Create WhatsApp setup link”, open the link, and be
                         the customer. The e-mails are printed here.
  2. See how it went     {site}/admin/kapso_connect/customer/overview/
                         Who connected, where others gave up, which numbers need attention.
  3. {third}

  Ctrl-C stops the demo and deletes its data.
"""
AS_MEMBER = """Be a customer       {site}/account/
                         user {member}, same password: connect and disconnect your own number.
                         What Meta and Kapso can do to it: {sandbox}/"""
AS_META = """Be Meta or Kapso    {sandbox}/
                         Disconnect a number, restrict an account, send a webhook again."""


class Command(BaseCommand):
    help = (
        "Run this site with the sandbox instead of Kapso, and a temporary database. Needs no "
        "settings and no Kapso account."
    )
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--once",
            action="store_true",
            help="run every step automatically, check it, and exit with 0 if all succeeded",
        )
        parser.add_argument("--port", type=int, help="the port of the site (default: 8000)")
        parser.add_argument(
            "--sandbox-port", type=int, help="the port of the sandbox (default: 8900)"
        )

    def handle(
        self, *, once: bool, port: int | None, sandbox_port: int | None, **options: Any
    ) -> None:
        ports = {"port": port, "sandbox_port": sandbox_port}
        signal.signal(signal.SIGTERM, _stop)
        signal.signal(signal.SIGINT, _stop)
        try:
            if once:
                self.play(**ports)
            else:
                self.run(**ports)
        except (DemoError, SandboxError) as error:
            raise CommandError(str(error)) from error
        except KeyboardInterrupt:
            if once:
                raise CommandError("Stopped before the last step.") from None
            self.stdout.write("\nThe demo has stopped.")

    def run(self, **ports: int | None) -> None:
        self.stdout.write("Starting …")
        with running(**ports) as demo:
            self.stdout.write(self.welcome(demo))
            self.stdout.flush()
            code = demo.site.wait()
            raise DemoError(f"The site stopped with exit code {code}.")

    def welcome(self, demo: Demo) -> str:
        words = {
            "site": demo.site_url,
            "sandbox": demo.sandbox.url,
            "user": USERNAME,
            "member": MEMBER,
            "password": demo.password,
        }
        third = AS_MEMBER if has_account_page() else AS_META
        return WELCOME.format(third=third.format(**words), **words)

    def play(self, **ports: int | None) -> None:
        started = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="kapso-demo-") as folder:
            log = Path(folder) / "site.log"
            with running(log=log, retry_scale=0.1, **ports) as demo:
                self.stdout.write(
                    f"ok  The site is at {demo.site_url}, the sandbox at {demo.sandbox.url}"
                )
                self.play_with(demo, log)
        self.stdout.write(f"All steps succeeded ({time.monotonic() - started:.1f} s).")

    def play_with(self, demo: Demo, log: Path) -> None:
        with Browser() as browser:
            try:
                Story(demo, browser, log, self.stdout.write).play()
            except StepFailed as failure:
                output = log.read_text(errors="replace").splitlines()[-15:]
                raise CommandError(
                    "\n".join([f"FAILED  {failure}", "", "Last output of the site:", *output])
                ) from failure


def has_account_page() -> bool:
    try:
        reverse("account")
    except NoReverseMatch:
        return False
    return True


def _stop(signum: int, frame: FrameType | None) -> None:
    # A second signal must not interrupt the cleanup.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt
