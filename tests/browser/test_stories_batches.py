"""What staff do with batches, as they would, with the clicks counted."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core import mail
from django.test import Client
from django.utils import timezone
from playwright.sync_api import Page, expect

from kapso_connect.models import Customer, Invitation, SetupLink, new_connect_key
from kapso_connect.onboarding import invitations
from kapso_connect.testing import Sandbox

from ..factories import make_customer, make_link, queue_without_worker
from ..smtp_server import SMTPServer, use_mail_server
from .clicks import Clicks
from .support import Visitor, assert_accessible, select_all

pytestmark = pytest.mark.django_db(transaction=True)

CUSTOMERS = "/admin/kapso_connect/customer/"
BATCHES = "/admin/kapso_connect/invitationbatch/"
WIDE = {"width": 1440, "height": 900}


@pytest.fixture
def staff() -> User:
    return User.objects.create_superuser("staff", password="correct horse")


@pytest.fixture
def page(site: str, visitor: Visitor, staff: User) -> Page:
    """A window of a member of staff."""
    client = Client()
    client.force_login(staff)
    page = visitor.window(WIDE)
    session = client.cookies["sessionid"].value
    page.context.add_cookies([{"name": "sessionid", "value": session, "url": site}])
    return page


def waiting(count: int) -> list[Customer]:
    """Customers who were invited two days ago and did nothing."""
    rows = []
    for n in range(count):
        row = make_customer(
            name=f"Customer {n}", email=f"c{n}@example.com", connect_key=new_connect_key()
        )
        make_link(row, created_at=timezone.now() - timedelta(days=2))
        rows.append(row)
    return rows


def examine(visitor: Visitor, page: Page, name: str) -> None:
    """Look at the page, and let axe-core do so."""
    visitor.look(page, name)
    assert visitor.complaints == []
    assert_accessible(page)
    visitor.complaints.clear()  # axe-core itself tries inline styles


def confirm_reminders(page: Page, count: int) -> None:
    expect(page.get_by_text(f"{count} customers get a reminder by e-mail")).to_be_visible()
    page.get_by_role("button", name=f"Send {count} reminders").click()
    expect(page.get_by_text(f"Finished: {count} customers were reminded.")).to_be_visible()
    assert len(mail.outbox) == count


def test_all_who_did_nothing_are_reminded_from_the_filtered_list(
    site: str, page: Page, visitor: Visitor, sandbox: Sandbox
) -> None:
    waiting(3)
    make_customer(name="Never invited")
    page.goto(f"{site}{CUSTOMERS}?whatsapp_status=invited")
    clicks = Clicks(page)
    page.reload()
    select_all(page)
    page.get_by_label("Action:").select_option("send_reminders")
    page.get_by_role("button", name=re.compile("^(Go|Run)")).click()
    examine(visitor, page, "remind")
    confirm_reminders(page, 3)
    assert clicks.count <= 4
    examine(visitor, page, "reminded")
    assert SetupLink.objects.count() == 3


def test_all_who_did_nothing_are_reminded_with_one_button(
    site: str, page: Page, sandbox: Sandbox
) -> None:
    waiting(60)
    clicks = Clicks(page)
    page.goto(f"{site}{CUSTOMERS}")
    page.get_by_role("button", name="Remind all invited").click()
    confirm_reminders(page, 60)
    assert clicks.count == 2


def test_emails_that_failed_are_sent_again_with_one_button(
    site: str, page: Page, visitor: Visitor, sandbox: Sandbox, settings: Any, staff: User
) -> None:
    rows = waiting(3)
    batch = invitations.make_reminders([row.pk for row in rows], created_by=staff)
    answers = iter(["550 No such user"] * 2)
    with SMTPServer(
        answer=lambda command, to: next(answers, "") if command == "RCPT" else ""
    ) as server:
        use_mail_server(settings, server)
        invitations.start(batch)
        invitations.work(batch.pk)
        clicks = Clicks(page)
        page.goto(f"{site}{BATCHES}")
        expect(page.get_by_text("Finished with failures").last).to_be_visible()
        page.locator("#result_list tbody a").first.click()
        expect(page.get_by_text("Finished, but 2 e-mails could not be sent.")).to_be_visible()
        examine(visitor, page, "failed-emails")
        page.get_by_role("button", name="Send the 2 failed e-mails again").click()
        expect(page.get_by_text("Finished: 3 customers were reminded.")).to_be_visible()
        assert sorted(server.recipients) == [row.email for row in rows]
    assert clicks.count == 2


def test_open_batch_is_found_from_the_list_of_customers(
    site: str, page: Page, visitor: Visitor, sandbox: Sandbox, staff: User
) -> None:
    rows = waiting(3)
    batch = invitations.make_batch([row.pk for row in rows], created_by=staff)
    with queue_without_worker():
        invitations.start(batch)
        row = batch.invitations.first()
        assert row is not None
        Invitation.objects.filter(pk=row.pk).update(status="done", next_attempt_at=None)
        clicks = Clicks(page)
        page.goto(f"{site}{CUSTOMERS}")
        expect(page.get_by_text("An invitation of 3 customers is running: 1 done.")).to_be_visible()
        visitor.look(page, "customers-with-notice")
        page.get_by_role("link", name="See the progress").click()
        expect(page.get_by_text("A task worker does the work")).to_be_visible()
        assert clicks.count == 1


def test_list_of_batches(site: str, page: Page, visitor: Visitor, staff: User) -> None:
    rows = waiting(3)
    stopped = invitations.make_batch([row.pk for row in rows], created_by=staff)
    reminded = invitations.make_reminders([row.pk for row in rows], created_by=staff)
    type(stopped).objects.update(started_at=timezone.now())
    type(stopped).objects.filter(pk=stopped.pk).update(
        stopped="Kapso refused the API key. Check KAPSO_CONNECT['API_KEY']."
    )
    reminded.invitations.update(status="done", email_status="sent", next_attempt_at=None)
    page.goto(f"{site}{CUSTOMERS}")
    page.locator(".object-tools").get_by_role("link", name="Batches of invitations").click()
    expect(page.get_by_text("Kapso refused the API key.")).to_be_visible()
    visitor.look(page, "batches")
    page.set_viewport_size(WIDE)
    table = page.locator(".results")
    assert table.evaluate("(element) => element.scrollWidth <= element.clientWidth")
