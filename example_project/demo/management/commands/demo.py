from __future__ import annotations

import signal
import tempfile
import time
from argparse import ArgumentParser
from pathlib import Path
from types import FrameType
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from example_project.demo.browser import Browser
from example_project.demo.data import USERNAME
from example_project.demo.processes import Demo, DemoError, running
from example_project.demo.story import StepFailed, Story
from kapso_connect.testing import SandboxError

WELCOME = """
The demo is running. Everything is on this machine: nothing reaches Kapso or WhatsApp.

  1. Log in     {site}/admin/kapso_connect/customer/
                user {user}, password {password}
  2. Invite     Select a customer, choose “Create WhatsApp setup link”, and open the link.
  3. Connect    Act as the customer on the page that opens: connect a number, or let it fail.
  4. Check      {site}/ shows who is connected; the welcome e-mail is printed here.

  The sandbox: {sandbox}/
  It shows every webhook it sent, and has a button for what Meta, Kapso and customers can do.

  Ctrl-C stops the demo and deletes its data.
"""


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

    def handle(self, *, once: bool, **options: Any) -> None:
        signal.signal(signal.SIGTERM, _stop)
        signal.signal(signal.SIGINT, _stop)
        try:
            if once:
                self.play()
            else:
                self.run()
        except (DemoError, SandboxError) as error:
            raise CommandError(str(error)) from error
        except KeyboardInterrupt:
            if once:
                raise CommandError("Stopped before the last step.") from None
            self.stdout.write("\nThe demo has stopped.")

    def run(self) -> None:
        self.stdout.write("Starting …")
        with running() as demo:
            self.stdout.write(
                WELCOME.format(
                    site=demo.site_url,
                    sandbox=demo.sandbox.url,
                    user=USERNAME,
                    password=demo.password,
                )
            )
            self.stdout.flush()
            code = demo.site.wait()
            raise DemoError(f"The site stopped with exit code {code}.")

    def play(self) -> None:
        started = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="kapso-demo-") as folder:
            log = Path(folder) / "site.log"
            with running(log=log, retry_scale=0.1) as demo:
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


def _stop(signum: int, frame: FrameType | None) -> None:
    # A second signal must not interrupt the cleanup.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt
