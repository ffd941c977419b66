from __future__ import annotations

import logging
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse

from kapso_connect.kapso.client import KapsoClient
from kapso_connect.log import log_event
from kapso_connect.models import Connection, Customer
from kapso_connect.onboarding import connect, emails
from kapso_connect.onboarding.customers import customer_from_api
from kapso_connect.onboarding.numbers import Number
from kapso_connect.testing import Sandbox
from kapso_connect.text import one_line

from .api.support import Caller
from .factories import make_customer, make_link
from .sites.host_site.models import Shop

REAL_NAMES = {
    "ascii": "Ada's Bakery & Sons (Ltd.) #1",
    "latin": "Bäckerei Süß · Ünïcödé ½ €",
    "arabic": "مخبز السعادة",
    "persian": "نان‌های تازه می‌خواهم",
    "hebrew": "מאפייה של עדה",
    "hindi": "श्री क्‍ष बेकरी र्‍या",
    "malayalam": "അവന്‍ ബേക്കറി",
    "sinhala": "ශ්‍රී ලංකා",
    "bengali": "উৎসব ত্‍",
    "chinese": "艾达面包店",
    "japanese": "アダのパン屋　本店",
    "thai": "เบเกอรี่ของเอด้า",
    "emoji": "🥐 Ada 👩‍🍳 👨‍👩‍👧 ❤️‍🔥 👍🏽",
    "arabic number sign": "رقم \u0600 12",
}
CHANGED_NAMES = {
    "Ada\r\nBcc: thief@example.com": "Ada  Bcc: thief@example.com",
    "Ada\x00\x1b[31m\x07\x85Bakery": "Ada  [31m  Bakery",
    "Ada\u2028Bakery\u2029": "Ada Bakery",
    "\u202eyrekab s'adA": "yrekab s'adA",
    "\u2066Ada\u2069 \u2067x\u2068\u202a\u202b\u202c\u202d": "Ada x",
    "Ada\u200b\u2060\ufeff\u00ad\u180e\u200e\u200f\u061cBakery": "AdaBakery",
    "Pay\u200cPal \u200d\u200dx": "PayPal x",
    "مخبز\u202e مقلوب": "مخبز مقلوب",
    "A\U000e0041\U000e0042": "A",
    "\ud800A": "A",
    "\u202e\u200b\n": "",
}


@pytest.mark.parametrize("name", REAL_NAMES.values(), ids=REAL_NAMES)
def test_real_names_stay_as_they_are(name: str) -> None:
    assert one_line(name) == name


@pytest.mark.parametrize(("name", "clean"), CHANGED_NAMES.items(), ids=ascii)
def test_what_hides_or_reorders_text_is_left_out(name: str, clean: str) -> None:
    assert one_line(name) == clean
    assert one_line(clean) == clean


# Where names come in, and where they go

HOSTILE = "Ada\nX: \u202eyrekaB\u2028\u200b"
CLEAN = "Ada X: yrekaB"


@pytest.mark.django_db
def test_names_are_stored_clean_however_they_are_written() -> None:
    shop = Shop.objects.create(name=HOSTILE)
    assert Customer.objects.for_owner(shop).name == CLEAN
    saved = Customer(name=HOSTILE)
    saved.save()
    assert saved.name == CLEAN
    Customer.objects.bulk_create([Customer(name=HOSTILE)])
    changed = make_customer()
    changed.name = HOSTILE
    Customer.objects.bulk_update([changed], ["name"])
    Customer.objects.filter(pk=make_customer().pk).update(name=HOSTILE)
    assert set(Customer.objects.values_list("name", flat=True)) == {CLEAN}
    assert Customer.objects.count() == 5


@pytest.mark.django_db
def test_names_from_the_api_are_cleaned(sandbox: Sandbox) -> None:
    row = sandbox.add_number(external_customer_id="ada", verified_name=HOSTILE)
    client = KapsoClient.from_settings()
    customer = customer_from_api(row["customer_id"], client)
    number = Number.from_api(client.get_phone_number(row["phone_number_id"]))
    assert number.verified_name == CLEAN
    assert connect(customer, number, source="sync").verified_name == CLEAN
    connect(customer, Number("123", verified_name=HOSTILE), source="sync")
    assert Connection.objects.get(phone_number_id="123").verified_name == CLEAN


@pytest.mark.django_db
@pytest.mark.usefixtures("unthrottled")
def test_names_from_forms_and_the_rest_api_are_cleaned(
    admin_client: Client, admin_user: Any
) -> None:
    caller = Caller(admin_user)
    assert caller.post("customers/", {"name": HOSTILE}).json()["name"] == CLEAN
    refused = caller.post("customers/", {"name": "\u202e\u200b"})
    assert refused.json()["fields"]["name"][0]["code"] == "blank"
    add = reverse("admin:kapso_connect_customer_add")
    fields = {"external_customer_id": "", "email": "", "language": ""}
    assert admin_client.post(add, {"name": HOSTILE, **fields}).status_code == 302
    assert admin_client.post(add, {"name": "\u202e\u200b", **fields}).status_code == 200
    assert list(Customer.objects.values_list("name", flat=True)) == [CLEAN, CLEAN]


@pytest.mark.django_db
def test_emails_carry_clean_names(configure: Any) -> None:
    configure(SITE_NAME=HOSTILE)
    customer = make_customer(email="ada@example.com", connect_key="key")
    link = make_link(customer)
    customer.name = HOSTILE  # not saved
    message = emails.invitation_message(customer, link)
    (html,) = message.alternatives
    assert f"Hello {CLEAN}," in message.body
    for text in (message.subject, message.body, html.content, emails.share_text(customer, link)):
        assert CLEAN in text
        assert "\u202e" not in text


def test_a_line_break_does_not_start_another_line_of_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        log_event("email.failed", customer_id=1, error="x\nERROR \u202eforged")
    (record,) = caplog.records
    assert record.getMessage() == "No e-mail for customer 1: x ERROR forged"
