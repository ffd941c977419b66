"""The guide to messages, in the project of "Use your own model"."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import requests

from example_project.demo.browser import Browser

from .support import NewSite

PAGE = "how-to/messages.md"


@pytest.fixture(scope="module")
def chat(companies: NewSite) -> Iterator[NewSite]:
    """The project after the page, with a running site and sandbox, and a connected number."""
    chat = companies.branch("chat")
    chat.execute(PAGE, last="Templates and texts")
    with chat.own_sandbox(), chat.started():
        connect_url = chat.shell(INVITE).strip()
        with Browser() as customer:
            page = customer.get(connect_url)
            page = customer.submit(page, page.forms[0])
            customer.submit(page, page.form("outcome"), ("outcome", "connect"))
        requests.get(f"{chat.sandbox}/deliveries.json?settled=1&timeout=10", timeout=20)
        yield chat


INVITE = """
from crm.models import Company
from kapso_connect.models import Customer
from kapso_connect.onboarding import connect_url, create_setup_link

Customer.objects.all().delete()  # another sandbox knows nothing of them
company = Company.objects.get()
company.contact_phone = "+1 415-555-0199"
company.save()
customer = Customer.objects.for_owner(company)
create_setup_link(customer)
print(connect_url(customer))
"""


def test_the_new_number_sends_its_first_message_once(chat: NewSite) -> None:
    asked = requests.get(f"{chat.sandbox}/sandbox/requests", timeout=10).json()["data"]
    sent = [one for one in asked if one["path"].endswith("/messages")]
    assert [(one["status"], one["body"]["to"]) for one in sent] == [(200, "14155550199")]
    assert sent[0]["body"]["template"]["name"] == "number_connected"
    number, shown, again = chat.shell(SHOW_MESSAGES).splitlines()
    assert number in sent[0]["path"]
    assert shown == "14155550199 wamid."
    assert again == "1"


SHOW_MESSAGES = """
from chat.models import FirstMessage
from chat.receivers import send_first_message
from kapso_connect.models import Connection, TimelineEvent

connection = Connection.objects.get()
message = FirstMessage.objects.get()
print(connection.phone_number_id)
print(message.to, message.message_id[:6])
event = TimelineEvent.objects.get(pk=message.event_id)
send_first_message(connection, connection.customer, event)
print(FirstMessage.objects.count())
"""
