"""What this site does when its companies connect, tested without Kapso."""

from __future__ import annotations

import json
from typing import Any

import pytest
from django.http import HttpResponse
from django.test import Client

from example_project.crm import receivers
from example_project.crm.models import Company, ReceivedMessage, WelcomeMessage
from kapso_connect.models import TimelineEvent, WebhookEvent
from kapso_connect.onboarding import create_setup_link
from kapso_connect.onboarding.connect_urls import connect_path
from kapso_connect.outbox import resend
from kapso_connect.testing import (
    Sandbox,
    connect_customer,
    disconnect_customer,
    fail_setup,
    invite_customer,
    post_webhook,
    reconnect_customer,
    update_account,
    webhook_headers,
    webhook_payload,
)

pytestmark = pytest.mark.django_db


@pytest.fixture
def company() -> Company:
    return Company.objects.create(name="Ada's Bakery", email="ada@example.com")


def test_a_new_company_can_be_invited_at_once(company: Company) -> None:
    assert company.customer.email == "ada@example.com"
    assert company.customer.name == "Ada's Bakery"


def test_a_company_that_connects_is_updated_and_welcomed(company: Company, mailoutbox: Any) -> None:
    connection = connect_customer(owner=company, phone_number="+1 415-555-0100")
    company.refresh_from_db()
    assert company.whatsapp_number == "+1 415-555-0100"
    assert company.whatsapp_connected_at == connection.connected_at
    (welcome,) = mailoutbox
    assert welcome.to == ["ada@example.com"]
    assert welcome.subject == "Welcome to WhatsApp, Ada's Bakery"


def test_the_company_is_updated_when_its_number_changes(company: Company, mailoutbox: Any) -> None:
    connection = connect_customer(owner=company, phone_number="+1 415-555-0100")
    disconnect_customer(connection)
    company.refresh_from_db()
    assert (company.whatsapp_number, company.whatsapp_connected_at) == ("", None)
    reconnect_customer(connection)
    company.refresh_from_db()
    assert company.whatsapp_number == "+1 415-555-0100"
    assert len(mailoutbox) == 1, "a company that reconnects is not welcomed again"


def test_a_late_signal_changes_nothing(company: Company) -> None:
    connection = connect_customer(owner=company)
    disconnect_customer(connection)
    event = TimelineEvent.objects.get(kind="disconnected")
    receivers.HandledEvent.objects.filter(event_id=event.pk).delete()
    reconnect_customer(connection)
    customer = company.customer
    receivers.update_company(customer=customer, event=event)
    company.refresh_from_db()
    assert company.whatsapp_phone_number_id == connection.phone_number_id


def test_companies_are_filtered_by_their_status(company: Company) -> None:
    other = Company.objects.create(name="Brand's Butchery", email="b@example.com")
    connect_customer(owner=company)
    assert list(Company.objects.filter(whatsapp__status="connected")) == [company]
    assert list(Company.objects.exclude(whatsapp__status="connected")) == [other]


def test_a_repeated_delivery_sends_no_second_welcome(
    company: Company, client: Client, mailoutbox: Any
) -> None:
    event = "whatsapp.phone_number.created"
    payload = webhook_payload(event, connect_customer(owner=company).customer)
    for key in ("one", "one", "another"):
        assert post_webhook(client, event, payload, idempotency_key=key).status_code == 200
    assert len(mailoutbox) == 2, "one for each of two numbers"


def test_a_welcome_that_could_not_be_sent_is_sent_later(
    company: Company, mailoutbox: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError("no mail server")

    with monkeypatch.context() as patch:
        patch.setattr(receivers, "send_mail", fail)
        connect_customer(owner=company)
    company.refresh_from_db()
    assert company.whatsapp_connected_at is not None, "the other receiver has run"
    assert mailoutbox == []
    # kapso_sync does it when it is due; staff have a button in the admin.
    assert resend(TimelineEvent.objects.get(kind="connected"))
    assert len(mailoutbox) == 1


def test_staff_see_why_a_setup_failed(company: Company) -> None:
    link = invite_customer(owner=company)
    fail_setup(link, "waba_limit_reached")
    company.refresh_from_db()
    assert company.whatsapp_problem == "waba_limit_reached"
    connect_customer(setup_link=link)
    company.refresh_from_db()
    assert company.whatsapp_problem == ""


def test_the_success_page_leads_to_the_welcome_page(company: Company, client: Client) -> None:
    assert client.get("/welcome/").status_code == 403
    connection = connect_customer(setup_link=invite_customer(owner=company))
    url = client.get(connect_path(connection.customer)).context["next_url"]
    page = client.get(url, follow=True)
    assert page.redirect_chain == [("/welcome/", 302)]
    assert page.context["company"] == company
    client.post("/welcome/", {"opening_hours": "9 to 5"})
    company.refresh_from_db()
    assert company.opening_hours == "9 to 5"


# Messages

RECEIVED = "whatsapp.message.received"
SECRET = "the secret of messages"


@pytest.fixture
def own_secret(settings: Any) -> None:
    webhook = {"url": "/whatsapp-messages/", "secret": SECRET}
    settings.KAPSO_CONNECT = {**settings.KAPSO_CONNECT, "NUMBER_WEBHOOK": webhook}


def message(number: int = 1, **more: Any) -> dict[str, Any]:
    text = {"body": "Are you open?"}
    content = {"id": f"wamid.{number}", "type": "text", "text": text, "from": "15551234567"}
    return {"message": {**content, **more}, "phone_number_id": "4711"}


def deliver(
    client: Client, payload: Any, *, event: str = RECEIVED, secret: str = SECRET
) -> HttpResponse:
    body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    headers = webhook_headers(body, secret, event=event)
    return client.post(
        "/whatsapp-messages/", body, content_type="application/json", headers=headers
    )


def messages() -> list[str]:
    return [f"{row.message_id} {row}" for row in ReceivedMessage.objects.order_by("pk")]


@pytest.mark.usefixtures("own_secret")
@pytest.mark.parametrize(
    "payload",
    [
        message(),
        {"event": RECEIVED, "data": message()},
        {"type": RECEIVED, "batch": True, "data": [message(), message()]},
    ],
)
def test_a_message_is_stored_once_in_every_form(payload: Any) -> None:
    client = Client(enforce_csrf_checks=True)
    for _delivery in range(2):
        assert deliver(client, payload).status_code == 200
    assert messages() == ["wamid.1 15551234567: Are you open?"]
    assert ReceivedMessage.objects.get().phone_number_id == "4711"


@pytest.mark.usefixtures("own_secret")
def test_a_message_of_a_person_without_a_number(client: Client) -> None:
    hidden = {**message()["message"], "from_user_id": "US.13491208655302741918"}
    del hidden["from"]
    deliver(client, {"message": hidden})
    assert ReceivedMessage.objects.get().sender == "US.13491208655302741918"


@pytest.mark.usefixtures("own_secret")
@pytest.mark.parametrize(
    ("payload", "secret", "status"),
    [
        (message(), "another", 401),
        (message(), "", 401),
        (b"no JSON", SECRET, 400),
        ([message()], SECRET, 400),
        (b"x" * (1024 * 1024 + 1), SECRET, 413),
    ],
)
def test_what_is_no_delivery_is_refused(
    client: Client, payload: Any, secret: str, status: int
) -> None:
    assert deliver(client, payload, secret=secret).status_code == status
    assert messages() == []


def test_only_post_is_a_delivery_of_messages(client: Client) -> None:
    assert client.get("/whatsapp-messages/").status_code == 405


@pytest.mark.usefixtures("own_secret")
@pytest.mark.parametrize(
    "payload", [{}, {"message": 5}, {"message": {}}, {"test": True, **message()}, {"message": None}]
)
def test_what_is_no_message_is_acknowledged(client: Client, payload: Any) -> None:
    assert deliver(client, payload).status_code == 200
    assert messages() == []


@pytest.mark.usefixtures("own_secret")
def test_other_events_are_acknowledged(client: Client) -> None:
    assert deliver(client, message(), event="whatsapp.message.read").status_code == 200
    assert messages() == []


# With the sandbox instead of Kapso


def test_a_company_connects_through_the_sandbox(
    company: Company, client: Client, kapso_sandbox: Sandbox, mailoutbox: Any
) -> None:
    link = create_setup_link(company.customer)
    location = kapso_sandbox.complete(link.url, phone_number="+14155550100")
    kapso_sandbox.deliver_to(client)
    assert client.get(location).status_code == 200
    company.refresh_from_db()
    assert company.whatsapp_connected_at is not None
    assert len(mailoutbox) == 1, "the webhook and the browser report one connection"


@pytest.mark.django_db(transaction=True)
def test_the_sandbox_delivers_to_the_running_site(
    company: Company, kapso_live_sandbox: Sandbox, mailoutbox: Any
) -> None:
    kapso_live_sandbox.complete(create_setup_link(company.customer).url)
    company.refresh_from_db()
    assert company.whatsapp_connected_at is not None
    assert [row["state"] for row in kapso_live_sandbox.deliveries()] == ["delivered"]


def test_the_sandbox_delivers_messages_to_the_test_client(
    company: Company, client: Client, kapso_sandbox: Sandbox
) -> None:
    kapso_sandbox.complete(create_setup_link(company.customer).url)
    kapso_sandbox.deliver_to(client)
    company.refresh_from_db()
    number = company.whatsapp_phone_number_id
    kapso_sandbox.receive_message(number, sender="15551234567", body="Are you open?")
    (response,) = kapso_sandbox.deliver_to(client)
    assert response.json() == {"received": 1}
    assert ReceivedMessage.objects.get().text == "Are you open?"


@pytest.mark.django_db(transaction=True)
def test_people_write_to_a_number_that_was_just_connected(
    company: Company, kapso_live_sandbox: Sandbox
) -> None:
    kapso_live_sandbox.complete(create_setup_link(company.customer).url)
    company.refresh_from_db()
    number = company.whatsapp_phone_number_id
    kapso_live_sandbox.receive_message(number, sender="15551234567", body="Are you open?")
    rows = kapso_live_sandbox.wait_for_deliveries(2)
    assert [row["state"] for row in rows] == ["delivered", "delivered"]
    stored = ReceivedMessage.objects.get()
    assert (stored.phone_number_id, stored.sender) == (number, "15551234567")
    assert (stored.kind, stored.text) == ("text", "Are you open?")
    assert not WebhookEvent.objects.filter(event__startswith="whatsapp.message").exists()


# The first WhatsApp message


@pytest.fixture
def company_with_phone(company: Company) -> Company:
    company.phone = "+1 415-555-0199"
    company.save()
    return company


def connected(company: Company, sandbox: Sandbox, client: Client) -> str:
    """Connect a number in the sandbox; return its id."""
    sandbox.complete(create_setup_link(company.customer).url, phone_number="+14155550100")
    sandbox.deliver_to(client)
    company.refresh_from_db()
    return company.whatsapp_phone_number_id


def test_the_new_number_sends_one_message(
    company_with_phone: Company, client: Client, kapso_sandbox: Sandbox
) -> None:
    number = connected(company_with_phone, kapso_sandbox, client)
    (sent,) = kapso_sandbox.sent_messages()
    assert (sent["phone_number_id"], sent["to"]) == (number, "14155550199")
    assert sent["template"]["name"] == receivers.TEMPLATE
    (message,) = company_with_phone.welcome_messages.all()
    assert (message.state, message.message_id[:6]) == ("sent", "wamid.")
    event = TimelineEvent.objects.get(kind="connected")
    receivers.send_first_message(
        connection=event.connection, customer=company_with_phone.customer, event=event
    )
    assert len(kapso_sandbox.sent_messages()) == 1, "the same event sends no second message"


@pytest.mark.parametrize("phone", ["", "please write to us"])
def test_a_company_without_a_phone_gets_no_message(
    company: Company, client: Client, kapso_sandbox: Sandbox, phone: str
) -> None:
    company.phone = phone
    company.save()
    assert connected(company, kapso_sandbox, client)
    assert kapso_sandbox.sent_messages() == []
    assert TimelineEvent.objects.get(kind="connected").delivered_at is not None


def test_a_message_that_was_refused_is_sent_later(
    company_with_phone: Company, client: Client, kapso_sandbox: Sandbox
) -> None:
    kapso_sandbox.faults(api=[{"kind": "status", "status": 402, "match": "POST /meta/"}])
    assert connected(company_with_phone, kapso_sandbox, client), "the other receivers have run"
    assert not company_with_phone.welcome_messages.exists()
    kapso_sandbox.clear_faults()
    assert resend(TimelineEvent.objects.get(kind="connected"))
    assert len(kapso_sandbox.sent_messages()) == 1
    assert company_with_phone.welcome_messages.get().state == "sent"


def test_a_message_that_may_have_been_sent_is_not_sent_again(
    company_with_phone: Company, client: Client, kapso_sandbox: Sandbox
) -> None:
    kapso_sandbox.faults(api=[{"kind": "apply_then_close", "match": "POST /meta/"}])
    connected(company_with_phone, kapso_sandbox, client)
    kapso_sandbox.clear_faults()
    assert company_with_phone.welcome_messages.get().state == "unknown"
    assert TimelineEvent.objects.get(kind="connected").delivered_at is not None


def test_a_process_that_died_while_it_sent_the_message(
    company_with_phone: Company, client: Client, kapso_sandbox: Sandbox
) -> None:
    connected(company_with_phone, kapso_sandbox, client)
    company_with_phone.welcome_messages.update(state="sending")
    event = TimelineEvent.objects.get(kind="connected")
    receivers.send_first_message(
        connection=event.connection, customer=company_with_phone.customer, event=event
    )
    assert company_with_phone.welcome_messages.get().state == "unknown"
    assert len(kapso_sandbox.sent_messages()) == 1


def test_members_see_only_their_company_in_the_rest_api(
    company: Company, django_user_model: Any, client: Client
) -> None:
    other = Company.objects.create(name="Other", email="other@example.com")
    member = django_user_model.objects.create_user("ada")
    company.members.add(member)
    client.force_login(member)
    listed = client.get("/api/company/v1/customers/").json()["results"]
    assert [row["name"] for row in listed] == ["Ada's Bakery"]
    assert client.get(f"/api/company/v1/customers/{other.customer.pk}/status/").status_code == 404
    assert client.get("/api/whatsapp/v1/customers/").status_code == 403


def test_staff_see_all_companies_in_the_rest_api(company: Company, admin_client: Client) -> None:
    Company.objects.create(name="Other", email="other@example.com")
    assert admin_client.get("/api/whatsapp/v1/customers/").json()["count"] == 2


# The start page


def test_the_public_page_has_a_login_and_no_company(company: Company, client: Client) -> None:
    page = client.get("/").content.decode()
    assert "Your customers write to you" in page
    assert 'name="password"' in page
    assert "This is the demo" not in page
    assert company.name not in page


def test_only_the_demo_shows_its_password(client: Client, settings: Any) -> None:
    settings.DEMO_PASSWORD = "everyone may know"
    assert "everyone may know" in client.get("/").content.decode()


def test_a_user_logs_in_on_the_public_page(client: Client, django_user_model: Any) -> None:
    django_user_model.objects.create_user("ada", password="a password")
    url, user = "/accounts/login/", {"username": "ada", "password": "a password"}
    answer = client.post(url, {**user, "password": "wrong"})
    assert "Please enter a correct username" in answer.content.decode()
    answer = client.post(
        "/accounts/login/", {"username": "ada", "password": "a password"}, follow=True
    )
    assert answer.redirect_chain == [("/", 302)]
    assert "Welcome, ada" in answer.content.decode()
    assert client.post("/accounts/logout/", follow=True).redirect_chain == [("/", 302)]


def shown(client: Client) -> dict[str, tuple[str, Any]]:
    """Return the group and the row of each company on the start page of staff."""
    groups = client.get("/").context["groups"]
    return {row.company.name: (group.key, row) for group in groups for row in group.rows}


def test_the_start_page_says_what_to_do_next(company: Company, admin_client: Client) -> None:
    group, row = shown(admin_client)["Ada's Bakery"]
    assert (group, row.status, row.next_step) == ("new", "Not invited", "Invite")
    assert admin_client.post(row.form_url).status_code == 302

    link = invite_customer(owner=company)
    group, row = shown(admin_client)["Ada's Bakery"]
    assert (group, row.status, row.next_step) == ("waiting", "Invited", "Send again")
    assert admin_client.get(row.next_url).status_code == 200

    fail_setup(link, "waba_limit_reached")
    group, row = shown(admin_client)["Ada's Bakery"]
    assert (group, row.status, row.next_step) == ("help", "Failed", "Invite again")
    assert "limit of WhatsApp Business accounts" in row.reason

    connection = connect_customer(setup_link=link, phone_number="+1 415-555-0100")
    group, row = shown(admin_client)["Ada's Bakery"]
    assert (group, row.number, row.next_step) == ("connected", "+1 415-555-0100", "")

    update_account(connection, "restricted")
    group, row = shown(admin_client)["Ada's Bakery"]
    assert (group, row.problems) == ("help", ["Account restricted or disabled"])
    assert admin_client.get(row.next_url).status_code == 200

    update_account(connection, "reinstated")
    disconnect_customer(connection)
    group, row = shown(admin_client)["Ada's Bakery"]
    assert (group, row.status, row.next_step) == ("help", "Disconnected", "Reconnect")
    assert admin_client.get(row.next_url).status_code == 200


def test_the_start_page_needs_no_more_queries_for_more_companies(
    admin_client: Client, django_assert_max_num_queries: Any
) -> None:
    for number in range(20):
        connect_customer(owner=Company.objects.create(name=f"Company {number}", email="a@b.c"))
    with django_assert_max_num_queries(15):
        assert len(shown(admin_client)) == 20


def test_the_start_page_shows_what_was_sent_and_received(
    company: Company, admin_client: Client
) -> None:
    company.phone = "+1 415-555-0120"
    company.save()
    connection = connect_customer(owner=company)
    WelcomeMessage.objects.get_or_create(
        event_id=TimelineEvent.objects.get(kind="connected").pk,
        defaults={"company": company, "to": "14155550120", "body": "Hello from the bakery"},
    )
    ReceivedMessage.objects.create(
        message_id="1", phone_number_id=connection.phone_number_id, sender="14155550199", text="Hi"
    )
    page = admin_client.get("/").content.decode()
    assert "Hello from the bakery" in page
    assert "+1 415-555-0120" in page
    assert "+1 415-555-0199</bdi> to Ada&#x27;s Bakery" in page


# Self-service


def test_a_member_connects_whatsapp(
    company: Company, client: Client, kapso_sandbox: Sandbox, django_user_model: Any
) -> None:
    member = django_user_model.objects.create_user("ada", password="x")
    company.members.add(member)
    assert client.get("/account/")["Location"] == "/accounts/login/?next=/account/"
    assert "<title>Log in · Example CRM</title>" in client.get("/accounts/login/").content.decode()
    client.force_login(member)
    assert "WhatsApp is not connected" in client.get("/account/").content.decode()
    client.post(f"/account/{company.pk}/whatsapp/", {"action": "connect"})
    link = company.customer.latest_setup_link
    assert link is not None
    success = client.get(kapso_sandbox.complete(link.url, phone_number="+14155550100"))
    page = client.get(success.context["next_url"], follow=True)
    assert page.redirect_chain == [("/account/", 302)]
    assert "+1 415-555-0100" in page.content.decode()


def test_only_members_connect_whatsapp(
    company: Company, client: Client, django_user_model: Any
) -> None:
    client.force_login(django_user_model.objects.create_user("eve"))
    response = client.post(f"/account/{company.pk}/whatsapp/", {"action": "connect"})
    assert response.status_code == 404
    assert "You do not belong" in client.get("/account/").content.decode()
