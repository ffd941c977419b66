"""The demo as a script: every step is done over HTTP and checked."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from kapso_connect.kapso.error_codes import SETUP_ERRORS
from kapso_connect.testing import SandboxError

from .browser import Browser, Page, PageError
from .data import NEW_COMPANIES, USERNAME
from .processes import Demo

ACTION = "Create WhatsApp setup link"
STEP_TIMEOUT = 10.0


class StepFailed(Exception):
    """A step failed; the message names the step and the reason."""


class UnexpectedResult(Exception):
    """A page or a delivery is not as expected."""


@dataclass
class Story:
    """One customer who connects, and one for each of Kapso's error codes.

    ``log`` is the output of the site, with its receivers' lines and its e-mails. ``say`` is called
    with one line for each step.
    """

    demo: Demo
    browser: Browser
    log: Path
    say: Callable[[str], None]

    def play(self) -> None:
        """Do all steps. Raise StepFailed at the first that fails."""
        self.step("Staff logs in to the admin", self.log_in)
        connects, *fails = NEW_COMPANIES
        self.succeed(connects)
        for company, code in zip(fails, SETUP_ERRORS, strict=False):
            self.fail(company, code)
        self.step("The start page", self.start_page_is_right, connects, fails[0])

    def step(self, title: str, do: Callable[..., str], *arguments: object) -> None:
        try:
            observed = do(*arguments)
        except (UnexpectedResult, PageError, SandboxError, requests.RequestException) as error:
            raise StepFailed(f"{title}: {error}") from error
        self.say(f"ok  {title}: {observed}")

    def succeed(self, company: str) -> None:
        self.step(f"{company} is added", self.add, company)
        self.step(f"{company} is invited", self.invite, company)
        deliveries = len(self.demo.sandbox.deliveries())
        self.step(f"{company} connects a number", self.connect, company)
        self.step("Kapso's webhook", self.webhook_arrives, deliveries)
        self.step("whatsapp_connected", self.receiver_ran_once, f"connected: company={company} ")
        self.step("The welcome mail", self.welcomed_once, company)
        self.step("The first WhatsApp message", self.first_message_sent_once, company)
        self.step("A WhatsApp message to the number", self.message_received, company)
        self.step("The same webhook again", self.duplicate_changes_nothing, company)

    def fail(self, company: str, code: str) -> None:
        self.step(f"{company} is added", self.add, company)
        self.step(f"{company} is invited", self.invite, company)
        self.step(f"{company} comes back with {code}", self.fail_setup, code)
        self.step(
            "whatsapp_setup_failed",
            self.receiver_ran_once,
            f"setup_failed: company={company} code={code} ",
        )

    # Staff

    def log_in(self) -> str:
        page = self.browser.get(f"{self.demo.site_url}/admin/")
        home = self.browser.submit(
            page,
            page.form("password"),
            ("username", USERNAME),
            ("password", self.demo.password),
        )
        expect(home.status == 200 and "Log out" in home.text, "the login was refused", home)
        return f"{home.url} greets {USERNAME}"

    def add(self, company: str) -> str:
        page = self.browser.get(f"{self.demo.site_url}/admin/crm/company/add/")
        email = f"{company.split()[0].lower()}@example.com"
        saved = self.browser.submit(
            page,
            page.form("_save"),
            ("name", company),
            ("email", email),
            ("phone", "+1 415-555-0198"),
            ("_save", "Save"),
        )
        expect("was added successfully" in saved.text, "the company was not added", saved)
        return f"{email} is among the companies"

    def invite(self, company: str) -> str:
        customers = f"{self.demo.site_url}/admin/kapso_connect/customer/"
        listed = self.browser.get(customers, q=company)
        form = listed.form("_selected_action")
        found = [box for box in form.boxes if box[0] == "_selected_action"]
        expect(len(found) == 1, f"{len(found)} customers are called {company}", listed)
        confirm = self.browser.submit(listed, form, *found, form.option(ACTION))
        form = confirm.form("connection_types")
        expect(company in confirm.text, "the confirm page does not name the customer", confirm)
        result = self.browser.submit(confirm, form)
        connect_url = re.compile(re.escape(self.demo.site_url) + r"/whatsapp/connect/[\w.-]+/")
        until = time.monotonic() + STEP_TIMEOUT
        while not (link := connect_url.search(result.html)) and time.monotonic() < until:
            time.sleep(0.2)
            result = self.browser.get(result.url)
        expect(link is not None, "the result page shows no link", result)
        self.link = link[0] if link else ""
        return "the result page shows the connect URL"

    # The customer, with another browser

    def connect(self, company: str) -> str:
        with Browser() as customer:
            page = self.choose(customer, "connect")
            until = time.monotonic() + STEP_TIMEOUT
            while page.status == 202 and time.monotonic() < until:
                time.sleep(0.2)
                page = customer.get(page.url)
        expect(page.url.startswith(f"{self.demo.site_url}/whatsapp/success/?"), "no redirect", page)
        expect(page.status == 200 and company in page.text, "it is not the success page", page)
        number = re.search(r"\+[\d ()-]{8,}\d", page.text)
        expect(number is not None, "the number is not shown", page)
        return f"sent back to the success page, which shows {number[0] if number else ''}"

    def fail_setup(self, code: str) -> str:
        with Browser() as customer:
            page = self.choose(customer, code)
            again = customer.get(page.url)
        failure = SETUP_ERRORS[code]
        expect(page.url.startswith(f"{self.demo.site_url}/whatsapp/failed/"), "no redirect", page)
        for words in (failure.title, failure.cause, failure.advice):
            expect(page.status == 200 and str(words) in page.text, f"it lacks “{words}”", page)
        expect(again.text == page.text, "the page changes when it is loaded again", again)
        return f"the failure page says “{failure.title}”"

    def choose(self, customer: Browser, outcome: str) -> Page:
        """Press the button of the invitation, then one of the hosted page; return the last page."""
        invitation = customer.get(self.link)
        expect(len(invitation.forms) == 1, "the invitation has no button", invitation)
        page = customer.submit(invitation, invitation.forms[0])
        return customer.submit(page, page.form("outcome"), ("outcome", outcome))

    # The site

    def webhook_arrives(self, before: int = 0) -> str:
        """Check the one delivery that came after the first ``before``."""
        sent = self.demo.sandbox.wait_for_deliveries(before + 1, timeout=STEP_TIMEOUT)[before:]
        expect(len(sent) == 1, f"{len(sent)} deliveries instead of one")
        delivery = sent[0]
        expect(delivery["state"] == "delivered", f"it was not accepted: {delivery}")
        return f"{delivery['event']} was delivered and answered 200"

    def receiver_ran_once(self, line: str) -> str:
        return self.printed_once(line, "the receiver ran")

    def welcomed_once(self, company: str) -> str:
        return self.printed_once(f"Subject: Welcome to WhatsApp, {company}\n", "the mail was sent")

    def first_message_sent_once(self, company: str) -> str:
        """Check that the new number has sent one message that names the company."""
        until = time.monotonic() + STEP_TIMEOUT
        while not (sent := self.messages_about(company)) and time.monotonic() < until:
            time.sleep(0.05)
        expect(len(sent) == 1, f"it was sent {len(sent)} times instead of once")
        return f"sent once, from the new number to +{sent[0]['to']}"

    def messages_about(self, company: str) -> list[dict[str, Any]]:
        return [row for row in self.demo.sandbox.sent_messages() if company in str(row["template"])]

    def message_received(self, company: str) -> str:
        """Write to the company's number, and check that the site shows it."""
        sandbox, text = self.demo.sandbox, f"Is this {company}?"
        (number,) = {row["phone_number_id"] for row in self.messages_about(company)}
        before = len(sandbox.deliveries())
        sandbox.receive_message(number, sender="+14155550197", body=text)
        sent = sandbox.wait_for_deliveries(before + 1, timeout=STEP_TIMEOUT)[-1]
        expect(sent["state"] == "delivered", f"it was not accepted: {sent}")
        page = self.browser.get(f"{self.demo.site_url}/")
        expect(f"{text} +1 415-555-0197 to {company}" in page.text, "it is not shown", page)
        return "delivered to the number's own webhook, and shown on the start page"

    def printed_once(self, line: str, what: str) -> str:
        until = time.monotonic() + STEP_TIMEOUT
        while (count := self.printed().count(line)) == 0 and time.monotonic() < until:
            time.sleep(0.05)
        expect(count == 1, f"{what} {count} times instead of once")
        return f"{what} once"

    def printed(self) -> str:
        return self.log.read_text(errors="replace")

    def duplicate_changes_nothing(self, company: str) -> str:
        sandbox = self.demo.sandbox
        sent = sandbox.deliveries()
        connected = [row for row in sent if row["event"] == "whatsapp.phone_number.created"]
        sandbox.resend(connected[-1]["id"])
        again = sandbox.wait_for_deliveries(len(sent) + 1, timeout=STEP_TIMEOUT)[-1]
        expect(again["state"] == "delivered", f"it was not accepted: {again}")
        self.receiver_ran_once(f"connected: company={company} ")
        self.welcomed_once(company)
        self.first_message_sent_once(company)
        return "answered 200, and nothing was repeated"

    def start_page_is_right(self, connected: str, failed: str) -> str:
        page = self.browser.get(f"{self.demo.site_url}/")
        number = re.search(rf"{connected} \+[\d -]+ Connected", page.text)
        expect(number is not None, f"{connected} is not connected", page)
        title = next(iter(SETUP_ERRORS.values())).title
        expect(f"{failed} Failed {title}" in page.text, "no error", page)
        return f"{connected} is connected, the others are not, and it says why"


def expect(condition: bool, message: str, page: Page | None = None) -> None:
    if not condition:
        details = f" (at {page.url}, {page.status}: “{page.text[:300]}”)" if page else ""
        raise UnexpectedResult(f"{message}{details}")
