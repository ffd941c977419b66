"""The second half of the guide to messages: "Receive the next ones"."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import requests

from example_project.demo.browser import Browser
from kapso_connect.sandbox.signing import webhook_headers

from .support import NewSite

PAGE = "how-to/messages.md"
RECEIVE = "Receive the next ones"


@pytest.fixture(scope="module")
def chat(companies: NewSite) -> Iterator[NewSite]:
    """The project after both halves; a number was connected before the second one."""
    chat = companies.branch("receiving")
    chat.continued = ("mysite/", "chat/models.py")
    chat.execute(PAGE, last="Templates and texts")
    with chat.own_sandbox():
        with chat.started():
            connect(chat)
        chat.execute(PAGE, first=RECEIVE, last=RECEIVE)
        with chat.started():
            yield chat


def connect(chat: NewSite) -> None:
    connect_url = chat.shell(INVITE).strip()
    with Browser() as customer:
        page = customer.get(connect_url)
        page = customer.submit(page, page.forms[0])
        customer.submit(page, page.form("outcome"), ("outcome", "connect"))


INVITE = """
from kapso_connect.models import Customer
from kapso_connect.onboarding import connect_url, create_setup_link

customer = Customer.objects.create(name="Another company")
create_setup_link(customer)
print(connect_url(customer))
"""
NUMBERS = """
from kapso_connect.models import Connection

for connection in Connection.objects.connected().order_by("pk"):
    print(connection.phone_number_id, bool(connection.number_webhook_id))
"""
MESSAGES = """
from chat.models import ReceivedMessage

for message in ReceivedMessage.objects.order_by("pk"):
    print(message.phone_number_id, message.sender, message.text)
"""


def write(chat: NewSite, number: str, text: str) -> None:
    url = f"{chat.sandbox}/sandbox/numbers/{number}/messages"
    body = {"from": "15551234567", "body": text}
    headers = {"X-API-Key": chat.environment["KAPSO_API_KEY"]}
    assert requests.post(url, json=body, headers=headers, timeout=10).ok
    requests.get(f"{chat.sandbox}/deliveries.json?settled=9&timeout=2", timeout=20)


def test_old_and_new_numbers_receive_messages(chat: NewSite) -> None:
    assert "number_webhooks" in chat.output, "kapso_sync reports it"
    connect(chat)
    (old, is_old_registered), (new, is_new_registered) = (
        line.split() for line in chat.shell(NUMBERS).splitlines()[-2:]
    )
    assert (is_old_registered, is_new_registered) == ("True", "True")
    write(chat, old, "Is it ready?")
    write(chat, new, "Are you open?")
    assert chat.shell(MESSAGES).splitlines() == [
        f"{old} 15551234567 Is it ready?",
        f"{new} 15551234567 Are you open?",
    ]


def test_what_is_not_signed_is_refused(chat: NewSite) -> None:
    url = f"http://127.0.0.1:{chat.port}/chat/messages/"
    headers = webhook_headers(b"{}", "another", event="whatsapp.message.received")
    assert requests.post(url, data=b"{}", headers=headers, timeout=10).status_code == 401


def test_the_doctor_is_content_with_the_view(chat: NewSite) -> None:
    output = chat.command("python manage.py kapso_doctor --no-test-delivery --fail-level problem")
    lines = [line.split()[:2] for line in output.splitlines() if "number_webhooks" in line]
    assert lines == [["ok", "number_webhooks.site"], ["ok", "number_webhooks"]]
