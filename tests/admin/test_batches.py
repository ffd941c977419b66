"""Batches in the admin: their list, the notice while one is open, reminders, failed e-mails."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.core import mail as outbox
from django.core.management import call_command
from django.db import connection as database
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from django.utils.html import strip_tags

from kapso_connect import onboarding
from kapso_connect.models import (
    Customer,
    Invitation,
    InvitationBatch,
    SetupLink,
    TimelineEvent,
    new_connect_key,
)
from kapso_connect.onboarding import invitations
from kapso_connect.onboarding.connect_urls import connect_url
from kapso_connect.testing import Sandbox
from kapso_connect.utils import utc_now

from ..factories import make_connection, make_customer, make_link, make_user, queue_without_worker
from ..sites.host_site.models import Bakery
from ..smtp_server import SMTPServer, use_mail_server
from .world import text

pytestmark = pytest.mark.django_db

CUSTOMERS = "/admin/kapso_connect/customer/"
HOST_LIST = "/other-admin/host_site/bakery/"
BATCHES = "/admin/kapso_connect/invitationbatch/"
REMIND = f"{CUSTOMERS}whatsapp/remind/"

DONE = {"status": "done", "next_attempt_at": None}
FAILED = {"status": "failed", "next_attempt_at": None, "last_error": "Kapso is away."}


def batch(*rows: dict[str, Any], **fields: Any) -> InvitationBatch:
    """A batch that was started, with an invitation for each of ``rows``."""
    made = InvitationBatch.objects.create(**{"started_at": timezone.now(), **fields})
    for row in rows:
        Invitation.objects.create(batch=made, customer=make_customer(), **row)
    return made


def waiting(name: str = "Ada", *, owner: Any = None, **fields: Any) -> Customer:
    """A customer who was invited two days ago and did nothing."""
    customer = make_customer(
        name=name,
        connect_key=new_connect_key(),
        **{"email": f"{name.lower()}@example.com", **fields, **({"owner": owner} if owner else {})},
    )
    make_link(customer, created_at=timezone.now() - timedelta(days=2))
    return customer


def words(page: str) -> str:
    return " ".join(strip_tags(page).split())


def cells(client: Client, address: str = BATCHES) -> list[dict[str, str]]:
    """The list's rows: each cell by its column."""
    page = text(client, address)
    rows = re.findall(r"<tr>(?:(?!</tr>).)*field-state.*?</tr>", page, re.DOTALL)
    return [
        {
            name: words(cell)
            for name, cell in re.findall(r'class="field-(\w+)[^"]*">(.*?)</t[dh]>', row, re.DOTALL)
        }
        for row in rows
    ]


# The list


def test_list_shows_who_when_and_how_it_went(admin_client: Client, admin_user: User) -> None:
    later = utc_now() + timedelta(minutes=5)
    mail_sent = {**DONE, "email_status": "sent"}
    batch(DONE, FAILED, {}, created_by=admin_user)
    batch(DONE, {"next_attempt_at": later})
    batch({}, stopped="The API key is wrong.")
    batch(mail_sent, send_email=True, purpose="remind")
    batch(
        mail_sent,
        {**DONE, "email_status": "failed"},
        {**DONE, "email_status": "unknown"},
        send_email=True,
    )
    batch(DONE, started_at=None, created_by=admin_user)
    shown = cells(admin_client)
    assert [row["state"] for row in shown] == [
        "Finished with failures",
        "Finished",
        "StoppedThe API key is wrong.",
        "Waiting",
        "Running",
    ]
    assert [row["purpose"] for row in shown[:2]] == ["Invitations", "Reminders"]
    counts = ("customers", "done", "failed", "left", "emails")
    assert [shown[-1][name] for name in counts] == ["3", "1", "1", "1", "-"]
    assert shown[-1]["by"] == str(admin_user)
    assert shown[0]["emails"] == "1 sent, 1 failed, 1 possibly sent"


def test_batch_that_a_process_works_on_is_running(admin_client: Client) -> None:
    batch({"next_attempt_at": utc_now(), "leased_until": utc_now() + timedelta(minutes=1)})
    assert cells(admin_client)[0]["state"] == "Running"
    assert len(cells(admin_client, f"{BATCHES}?state=running")) == 1
    assert not cells(admin_client, f"{BATCHES}?state=waiting")


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("state=running", ["running"]),
        ("state=waiting", ["waiting"]),
        ("state=stopped", ["stopped"]),
        ("state=finished", ["finished", "reminded"]),
        ("state=failures", ["email", "failed", "unknown"]),
        ("purpose__exact=remind", ["reminded"]),
        ("state=nonsense", []),
    ],
)
def test_list_is_filtered(admin_client: Client, query: str, found: list[str]) -> None:
    later = {"next_attempt_at": utc_now() + timedelta(minutes=5)}
    made = {
        "running": batch({}, later, FAILED),
        "waiting": batch(DONE, later),
        "stopped": batch({}, stopped="The API key is wrong."),
        "finished": batch(DONE, DONE),
        "reminded": batch({**DONE, "email_status": "sent"}, purpose="remind", send_email=True),
        "failed": batch(DONE, FAILED),
        "email": batch({**DONE, "email_status": "failed"}, send_email=True),
        "unknown": batch({**DONE, "email_status": "unknown"}, send_email=True),
    }
    page = text(admin_client, f"{BATCHES}?{query}")
    shown = [name for name, row in made.items() if f'href="{BATCHES}{row.pk}/change/' in page]
    assert sorted(shown) == sorted(found or made)


def test_row_leads_to_the_page_of_the_batch(admin_client: Client) -> None:
    row = batch(DONE)
    response = admin_client.get(f"{BATCHES}{row.pk}/change/")
    assert response["Location"] == f"{CUSTOMERS}whatsapp/batch/{row.pk}/"
    draft = batch(DONE, started_at=None)
    for missing in (draft.pk, row.pk + 1000, "x"):
        assert admin_client.get(f"{BATCHES}{missing}/change/").status_code == 404


def test_longer_list_costs_no_more_queries(admin_client: Client, admin_user: User) -> None:
    def count() -> int:
        with CaptureQueriesContext(database) as queries:
            text(admin_client, BATCHES)
        return len(queries)

    batch(DONE, {}, created_by=admin_user)
    before = count()
    for _number in range(5):
        batch(DONE, FAILED, {}, created_by=make_user(f"staff{_number}"), stopped="It stopped.")
    assert count() == before


def test_list_is_for_those_who_may_create_links(staff: Callable[..., Client]) -> None:
    row = batch({})
    client = staff("view_customer")
    page = f"{BATCHES}{row.pk}/change/"
    assert BATCHES not in text(client, CUSTOMERS)
    assert [client.get(url).status_code for url in (BATCHES, page)] == [403, 404]
    permission = Permission.objects.get(codename="create_setup_link")
    User.objects.get(username="staff").user_permissions.add(permission)
    assert f'href="{BATCHES}"' in text(client, CUSTOMERS)
    assert [client.get(url).status_code for url in (BATCHES, page)] == [200, 302]


def test_list_cannot_be_changed(admin_client: Client) -> None:
    row = batch(DONE)
    for url in (f"{BATCHES}add/", f"{BATCHES}{row.pk}/delete/"):
        assert admin_client.post(url, {"post": "yes"}).status_code == 403
    assert InvitationBatch.objects.get() == row


# The notice while a batch is open


@pytest.mark.parametrize("address", [CUSTOMERS, f"{CUSTOMERS}overview/", HOST_LIST])
def test_open_batch_is_announced(admin_client: Client, address: str) -> None:
    make_link()
    finished, draft = batch(DONE, FAILED), batch({}, started_at=None)
    open_batch = batch(DONE, {}, {})
    page = text(admin_client, address)
    assert "An invitation of 3 customers is running: 1 done." in words(page)
    folder = HOST_LIST if address == HOST_LIST else CUSTOMERS
    url = f"{folder}whatsapp/batch/{open_batch.pk}/"
    assert f'href="{url}"' in page
    assert admin_client.get(url).status_code == 200
    for other in (finished, draft):
        assert f"whatsapp/batch/{other.pk}/" not in page
    InvitationBatch.objects.filter(pk=open_batch.pk).update(stopped="The API key is wrong.")
    page = words(text(admin_client, address))
    assert "An invitation of 3 customers has stopped: The API key is wrong." in page
    InvitationBatch.objects.filter(pk=open_batch.pk).update(stopped="", purpose="remind")
    page = words(text(admin_client, address))
    assert "A reminder of 3 customers is running: 1 done." in page


def test_notice_is_for_those_who_may_create_links(staff: Callable[..., Client]) -> None:
    batch({})
    assert "is running" not in text(staff("view_customer", "send_setup_link"), CUSTOMERS)


def test_notice_costs_one_query(admin_client: Client) -> None:
    def count() -> int:
        with CaptureQueriesContext(database) as queries:
            text(admin_client, CUSTOMERS)
        return len(queries)

    make_customer()
    before = count()
    for _number in range(5):
        batch(DONE, {})
    assert count() == before, "the query is made whether there is a batch or not"


def test_notice_is_not_in_a_popup(admin_client: Client) -> None:
    batch({})
    assert "is running" not in text(admin_client, f"{CUSTOMERS}?_popup=1")


# What the page of a batch says


def test_page_says_to_keep_it_open_where_no_worker_runs(
    admin_client: Client, sandbox: Sandbox
) -> None:
    row = batch({})
    address = f"{CUSTOMERS}whatsapp/batch/{row.pk}/"
    page = text(admin_client, address)
    assert "Keep this page open" in page
    assert "may leave" not in page
    with queue_without_worker():
        page = text(admin_client, address)
        assert "may leave" not in page
        assert "A task worker does the work, if one is running." in page
        assert row.invitations.get().acquire_lease()
        assert "You may leave this page and come back." in text(admin_client, address)


def test_only_a_batch_with_trouble_ends_in_a_warning_box(admin_client: Client) -> None:
    sent = {**DONE, "email_status": "sent"}
    for rows, words_shown, kind in (
        ([DONE], "Finished: every customer has a link.", "kapso-note kapso-note-good"),
        ([sent, FAILED], "Finished, but 1 customer has no link.", "kapso-note"),
        ([sent, {**DONE, "email_status": "failed"}], "1 e-mail could not be sent", "kapso-note"),
        ([sent, {**DONE, "email_status": "unknown"}], "it is not known whether", "kapso-note"),
    ):
        row = batch(*rows, send_email=True)
        page = text(admin_client, f"{CUSTOMERS}whatsapp/batch/{row.pk}/")
        assert re.search(f'class="{kind}">[^<]*{words_shown}', page)


def test_failed_emails_are_listed_with_the_reason(admin_client: Client) -> None:
    row = batch(
        {**DONE, "email_status": "sent"},
        {**DONE, "email_status": "failed", "email_error": "The address does not exist."},
        {**DONE, "email_status": "unknown", "email_error": "The connection broke."},
        send_email=True,
    )
    address = f"{CUSTOMERS}whatsapp/batch/{row.pk}/"
    page = text(admin_client, address)
    assert "E-mail failed (1)" in page
    assert "E-mail possibly sent (1)" in page
    page = text(admin_client, f"{address}?show=email_failed")
    assert "The address does not exist." in page
    assert "The connection broke." not in page
    page = text(admin_client, f"{address}?show=email_unknown")
    assert "The connection broke." in page
    assert "The address does not exist." not in page


def test_failed_emails_are_sent_again_and_no_link_is_created(
    admin_client: Client, sandbox: Sandbox
) -> None:
    customer = waiting(email="nobody")
    sent, failed = waiting("Sent"), waiting("Failed", kapso_id=None)
    row = invitations.make_batch([customer.pk, sent.pk, failed.pk])
    InvitationBatch.objects.update(started_at=timezone.now(), send_email=True)
    link = customer.setup_links.get()
    rows = row.invitations
    rows.update(status="done", next_attempt_at=None, setup_link=link, email_status="sent")
    rows.filter(customer=failed).update(status="failed", email_status="", setup_link=None)
    rows.filter(customer=customer).update(email_status="failed", email_error="No such address")
    Customer.objects.filter(pk=customer.pk).update(email="ada@example.com")
    address = f"{CUSTOMERS}whatsapp/batch/{row.pk}/"
    assert "Send the failed e-mail again" in text(admin_client, address)
    admin_client.post(address, {"do": "send"})
    (message,) = outbox.outbox
    assert message.to == ["ada@example.com"]
    assert connect_url(customer) in str(message.body)
    assert not sandbox.requests()
    assert rows.get(customer=failed).status == "failed"
    assert LogEntry.objects.get().get_edited_object() == row


def test_failed_email_goes_to_the_address_that_the_sites_object_has_now(
    admin_client: Client, sandbox: Sandbox
) -> None:
    bakery = Bakery.objects.create(title="Ada's", contact="nobody")
    admin_client.post(HOST_LIST, {"action": "create_setup_links", "_selected_action": [bakery.pk]})
    row = InvitationBatch.objects.get()
    invitations.start(row, send_email=True)
    invitations.work(row.pk)
    assert invitations.progress(row).emails_failed == 1
    Bakery.objects.update(contact="ada@example.com")
    admin_client.post(f"{HOST_LIST}whatsapp/batch/{row.pk}/", {"do": "send"})
    assert [message.to for message in outbox.outbox] == [["ada@example.com"]]


def test_users_who_may_not_send_cannot_send_again(staff: Callable[..., Client]) -> None:
    row = batch({**DONE, "email_status": "failed"}, send_email=True)
    client = staff("view_customer", "create_setup_link")
    address = f"{CUSTOMERS}whatsapp/batch/{row.pk}/"
    assert "failed e-mail again" not in text(client, address)
    assert client.post(address, {"do": "send"}).status_code == 403


# A batch that stopped


def test_rest_of_a_stopped_batch_is_given_up(admin_client: Client, sandbox: Sandbox) -> None:
    row = batch(DONE, {}, {}, stopped="The API key is wrong.")
    address = f"{CUSTOMERS}whatsapp/batch/{row.pk}/"
    page = text(admin_client, address)
    assert "Give up the rest" in page
    assert "2 customers will count as failed, with the reason above." in page
    assert "Give up 2 customers" in page
    assert "has stopped" in text(admin_client, CUSTOMERS)
    first = row.invitations.pending().first()
    assert first is not None
    first.acquire_lease()
    assert "Give up" not in text(admin_client, address), "another process is working on it"
    row.invitations.update(leased_until=None)
    admin_client.post(address, {"do": "give_up"})
    page = text(admin_client, address)
    assert "Finished, but 2 customers have no link." in page
    assert page.count("The API key is wrong.") == 2
    assert "Give up" not in page
    assert "Try the failed ones again" in page
    assert "has stopped" not in text(admin_client, CUSTOMERS)
    assert cells(admin_client)[0]["state"] == "Finished with failures"
    assert "Gave up the rest" in LogEntry.objects.get().get_change_message()
    assert not sandbox.requests()
    InvitationBatch.objects.update(started_at=timezone.now() - timedelta(days=400))
    call_command("kapso_prune", verbosity=0)
    assert not InvitationBatch.objects.exists()


def test_batch_that_runs_has_no_such_button(admin_client: Client) -> None:
    row = batch({})
    address = f"{CUSTOMERS}whatsapp/batch/{row.pk}/"
    assert "Give up" not in text(admin_client, address)
    admin_client.post(address, {"do": "give_up"})
    assert row.invitations.get().status == "pending"
    assert not LogEntry.objects.exists()


def test_users_who_may_not_resume_cannot_give_up(staff: Callable[..., Client]) -> None:
    row = batch({}, send_email=True, stopped="The API key is wrong.")
    client = staff("view_customer", "create_setup_link")
    address = f"{CUSTOMERS}whatsapp/batch/{row.pk}/"
    assert "Give up" not in text(client, address)
    assert client.post(address, {"do": "give_up"}).status_code == 403
    assert row.invitations.get().status == "pending"


# Reminders


def remind(client: Client, rows: list[Any], url: str = CUSTOMERS) -> str:
    """Choose the action; return the address of the page that confirms it."""
    response = client.post(
        url, {"action": "send_reminders", "_selected_action": [row.pk for row in rows]}
    )
    assert re.fullmatch(rf"{url}whatsapp/batch/\d+/", response["Location"])
    return str(response["Location"])


def test_page_says_who_is_reminded_who_is_left_out_and_what_is_sent(
    admin_client: Client, sandbox: Sandbox
) -> None:
    ada, bob, cleo, dora = (waiting(name) for name in ("Ada", "Bob", "Cleo", "Dora"))
    make_connection(bob)
    Customer.objects.filter(pk=cleo.pk).update(email="")
    dora.setup_links.update(reminded_at=timezone.now())
    page = text(admin_client, remind(admin_client, [ada, bob, cleo, dora]))
    shown = words(page)
    assert "1 customer gets a reminder by e-mail Ada ada@example.com" in shown
    assert "3 customers are left out" in shown
    for reason in (
        "1: has connected a number",
        "1: has no e-mail address",
        "1: was e-mailed the link less than a day ago",
        "Bob has connected a number",
        "Cleo has no e-mail address",
        "Dora was e-mailed the link less than a day ago",
    ):
        assert reason in shown
    assert connect_url(ada) in page
    assert 'value="Send 1 reminder"' in page
    assert not outbox.outbox


def test_confirmed_reminders_are_sent_and_no_link_is_created(
    admin_client: Client, admin_user: User, sandbox: Sandbox
) -> None:
    ada, bob, cleo = (waiting(name) for name in ("Ada", "Bob", "Cleo"))
    address = remind(admin_client, [ada, bob, cleo])
    make_connection(cleo)
    assert admin_client.post(address)["Location"] == address
    assert sorted(message.to[0] for message in outbox.outbox) == [ada.email, bob.email]
    assert not sandbox.requests()
    for row in (ada, bob):
        event = row.events.get(kind=TimelineEvent.Kind.SETUP_LINK_SENT)
        assert (event.actor, event.data["message"]) == (admin_user, "reminder")
        assert row.setup_links.get().reminded_at is not None
    page = text(admin_client, address)
    assert "Finished: 2 customers were reminded." in page
    assert "kapso-note-good" in page
    assert "WhatsApp reminders" in page
    assert "has a link" not in page
    assert "1 left out" in words(page)
    assert "Left out has connected a number" in words(
        text(admin_client, f"{address}?show=left_out")
    )
    reminded = LogEntry.objects.filter(change_message="Requested a reminder by e-mail.")
    assert sorted(int(entry.object_id or 0) for entry in reminded) == [ada.pk, bob.pk]
    # The form, sent twice, reminds nobody twice.
    admin_client.post(address)
    assert len(outbox.outbox) == 2


def test_second_member_of_staff_reminds_nobody_twice(
    admin_client: Client, staff: Callable[..., Client], sandbox: Sandbox
) -> None:
    ada = waiting("Ada")
    address = remind(admin_client, [ada])
    other = Client()
    other.force_login(make_user("other", "view_customer", "send_setup_link"))
    others = remind(other, [ada])
    admin_client.post(address)
    other.post(others)
    assert len(outbox.outbox) == 1
    page = words(text(other, others))
    assert "Finished: there was nobody to remind." in page
    assert "was e-mailed the link less than a day ago" in page


def test_nobody_to_remind_is_said_and_has_no_button(admin_client: Client) -> None:
    page = text(admin_client, remind(admin_client, [waiting(email="")]))
    assert "0 customers get a reminder by e-mail" in page
    assert 'type="submit" class="default"' not in page


def test_reminders_need_the_permission_to_send(staff: Callable[..., Client]) -> None:
    ada = waiting()
    client = staff("view_customer", "create_setup_link")
    assert "send_reminders" not in text(client, CUSTOMERS)
    assert "Remind all invited" not in text(client, CUSTOMERS)
    client.post(CUSTOMERS, {"action": "send_reminders", "_selected_action": [ada.pk]})
    assert client.post(REMIND).status_code == 403
    assert not InvitationBatch.objects.exists()
    draft = invitations.make_reminders([ada.pk], created_by=User.objects.get(username="staff"))
    address = f"{CUSTOMERS}whatsapp/batch/{draft.pk}/"
    assert [client.get(address).status_code, client.post(address).status_code] == [403, 403]
    assert not outbox.outbox


def test_users_who_may_only_send_see_no_personal_link(
    staff: Callable[..., Client], sandbox: Sandbox
) -> None:
    ada = waiting()
    client = staff("view_customer", "send_setup_link")
    address = remind(client, [ada])
    page = text(client, address)
    assert connect_url(ada) not in page
    assert "[the customer&#x27;s personal link]" in page
    client.post(address)
    page = text(client, address)
    assert "Finished: 1 customer was reminded." in page
    assert connect_url(ada) not in page
    assert len(outbox.outbox) == 1


def test_draft_is_its_authors_alone(admin_client: Client) -> None:
    draft = invitations.make_reminders([waiting().pk], created_by=make_user("other"))
    assert admin_client.get(f"{CUSTOMERS}whatsapp/batch/{draft.pk}/").status_code == 404


def test_objects_of_the_site_are_reminded_and_none_is_made_a_customer(
    admin_client: Client, sandbox: Sandbox
) -> None:
    invited = Bakery.objects.create(title="Invited", contact="invited@example.com")
    never = Bakery.objects.create(title="Never invited", contact="never@example.com")
    waiting("Invited", owner=invited)
    address = remind(admin_client, [invited, never], HOST_LIST)
    page = words(text(admin_client, address))
    assert "1 of your selection was never invited, and is left out." in page
    assert "1 customer gets a reminder" in page
    assert Customer.objects.count() == 1
    admin_client.post(address)
    assert [message.to for message in outbox.outbox] == [["invited@example.com"]]
    page = text(admin_client, address)
    assert f'href="{HOST_LIST}{invited.pk}/change/"' in page


def test_sites_without_a_valid_setting_are_told(admin_client: Client, configure: Any) -> None:
    address = remind(admin_client, [waiting()])
    configure(PUBLIC_URL="")
    for request in (admin_client.get, admin_client.post):
        assert "PUBLIC_URL" in request(address, follow=True).content.decode()
    assert InvitationBatch.objects.get().started_at is None


# All who were invited and did nothing


def drafted() -> list[str]:
    rows = InvitationBatch.objects.latest("pk").invitations.select_related("customer")
    return sorted(row.customer.name for row in rows)


def test_all_who_wait_are_chosen_by_status_and_period(admin_client: Client) -> None:
    now = timezone.now()
    _invited, opened, old = waiting("Invited"), waiting("Opened"), waiting("Old")
    make_connection(waiting("Connected"))
    make_customer(name="New")
    Customer.objects.filter(pk=opened.pk).update(status="opened")
    old.setup_links.update(created_at=now - timedelta(days=40))
    days = {n: timezone.localdate(now - timedelta(days=n)).isoformat() for n in (1, 2, 30)}
    for data, names in (
        ({}, ["Invited", "Old", "Opened"]),
        ({"status": ["invited"]}, ["Invited", "Old"]),
        ({"status": ["invited", "opened"], "start": days[30]}, ["Invited", "Opened"]),
        ({"end": days[30]}, ["Old"]),
        ({"start": days[2], "end": days[2], "status": "opened"}, ["Opened"]),
    ):
        response = admin_client.post(REMIND, data)
        draft = InvitationBatch.objects.latest("pk")
        assert response["Location"] == f"{CUSTOMERS}whatsapp/batch/{draft.pk}/"
        assert drafted() == names
    response = admin_client.post(REMIND, {"start": days[1]}, follow=True)
    assert "There is nobody to remind." in response.content.decode()


def test_all_who_wait_of_the_sites_own_objects(admin_client: Client) -> None:
    bakery = Bakery.objects.create(title="Ada's", contact="ada@example.com")
    waiting("Ada", owner=bakery)
    waiting("Without an owner")
    Bakery.objects.create(title="Never invited")
    admin_client.post(f"{HOST_LIST}whatsapp/remind/")
    assert InvitationBatch.objects.get().invitations.count() == 1


@pytest.mark.parametrize(
    "data",
    [
        {"status": "connected"},
        {"start": "yesterday"},
        {"end": "2026-02-30"},
        {"end": "9999-12-31"},
        {"start": "0001-01-01"},
    ],
)
def test_wrong_choice_is_refused_with_a_message(admin_client: Client, data: dict[str, str]) -> None:
    waiting()
    response = admin_client.post(REMIND, data)
    assert response["Location"] == CUSTOMERS
    assert "errorlist" not in text(admin_client, CUSTOMERS)
    assert not InvitationBatch.objects.exists()


def test_without_a_choice_the_address_leads_to_the_list(admin_client: Client) -> None:
    assert admin_client.get(REMIND)["Location"] == CUSTOMERS
    assert not InvitationBatch.objects.exists()


# What the mail server refuses


def test_reminders_that_failed_are_sent_again(
    admin_client: Client, sandbox: Sandbox, settings: Any
) -> None:
    rows = [waiting("Ada"), waiting("Bob")]
    answers = iter(["550 No such user"])
    with SMTPServer(
        answer=lambda command, to: next(answers, "") if command == "RCPT" else ""
    ) as server:
        use_mail_server(settings, server)
        address = remind(admin_client, rows)
        admin_client.post(address)
        page = text(admin_client, address)
        assert "Finished, but 1 e-mail could not be sent." in page
        admin_client.post(address, {"do": "send"})
        assert sorted(server.recipients) == [row.email for row in rows]
    assert "Finished: 2 customers were reminded." in text(admin_client, address)
    assert SetupLink.objects.count() == 2


def test_automatic_renewal_of_the_link_changes_nothing(
    admin_client: Client, sandbox: Sandbox
) -> None:
    customer = make_customer(kapso_id=None, email="ada@example.com")
    onboarding.create_setup_link(customer)
    SetupLink.objects.update(status="expired", expires_at=timezone.now() - timedelta(days=1))
    asked = len(sandbox.requests())
    admin_client.post(remind(admin_client, [customer]))
    assert len(outbox.outbox) == 1
    assert len(sandbox.requests()) == asked
