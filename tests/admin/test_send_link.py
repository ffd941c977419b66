"""Sending a customer's link: by e-mail, as a QR code, as a text to share, or copied."""

from __future__ import annotations

import re
import smtplib
import sys
from datetime import datetime
from datetime import timezone as zones
from typing import Any
from urllib.parse import unquote

import pytest
from django.core import mail
from django.core.mail.backends.locmem import EmailBackend
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from kapso_connect.admin.customer_actions import DOUBLE_CLICK
from kapso_connect.models import Connection, Customer, SetupLink, TimelineEvent
from kapso_connect.onboarding import connect_urls
from kapso_connect.onboarding.connect_urls import connect_url

from ..cases import combinations
from ..clock import FakeClock
from ..factories import make_customer, store_statuses
from ..sites.host_site.admin import BakeryAdmin
from ..sites.host_site.models import Bakery
from .world import (
    POST_ONLY,
    UNTIL,
    VIEWS,
    World,
    kinds,
    messages,
)

pytestmark = pytest.mark.django_db(transaction=True)


def test_the_page_shows_what_will_be_sent_and_sends_it(world: World) -> None:
    page = world.client.get(world.url("email")).content.decode()
    url = connect_urls.connect_url(world.customer)
    for shown in ("ada@example.com", "Spanish", url, "Send the e-mail"):
        assert shown in page
    response = world.post("email")
    assert messages(response) == "The personal link was e-mailed to ada@example.com."
    (message,) = mail.outbox
    assert (message.to, url in message.body) == (["ada@example.com"], True)
    again = world.client.get(world.url("email")).content.decode()
    assert "The personal link was e-mailed before" in again
    assert "Send again" in again
    world.post("email")
    assert len(mail.outbox) == 2


def test_the_url_is_hidden_from_those_who_may_not_create_links(world: World) -> None:
    world.user.is_superuser = False
    world.user.save()
    world.allow(*VIEWS, "send_setup_link")
    page = world.client.get(world.url("email")).content.decode()
    assert connect_urls.connect_url(world.customer) not in page
    assert "[the customer&#x27;s personal link]" in page
    world.post("email")
    assert connect_urls.connect_url(world.customer) in mail.outbox[0].body


def test_email_goes_to_the_current_address_of_the_sites_object(world: World) -> None:
    Bakery.objects.update(contact="new@example.com", locale="ar")
    page = world.client.get(world.url("email")).content.decode()
    assert "new@example.com" in page
    world.post("email")
    assert mail.outbox[0].to == ["new@example.com"]


def test_external_id_of_another_customer_does_not_prevent_the_email(world: World) -> None:
    make_customer(external_customer_id="taken")
    Bakery.objects.update(reference="taken")
    Customer.objects.filter(pk=world.customer.pk).update(kapso_id=None)
    world.post("email")
    assert len(mail.outbox) == 1


@pytest.mark.parametrize("email", ["", "nobody", "a@b.example\nBcc: c@d.example"])
def test_without_an_email_address_a_message_replaces_the_form(world: World, email: str) -> None:
    opened_before = world.form_version("email")
    Bakery.objects.update(contact=email)
    Customer.objects.update(email=email)
    response = world.client.post(world.url("email"), opened_before)
    assert "has no valid e-mail address" in messages(response)
    assert mail.outbox == []
    page = world.client.get(world.url("email")).content.decode()
    assert "has no valid e-mail address" in page
    assert 'name="version"' not in page
    assert reverse("admin:host_site_bakery_change", args=[world.bakery.pk]) in page


USED = {"status": "used", "setup_status": "completed"}
EXPIRED: dict[str, dict[str, Any]] = {
    "expired": {"expires_at": datetime(2020, 1, 1, tzinfo=timezone.get_default_timezone())},
    "marked expired": {"status": "expired"},
}
ENDED_FOR_GOOD: dict[str, dict[str, Any]] = {
    "used for the number that is connected": USED,
    "revoked": {"status": "revoked"},
}
SENDING = ["email", "qr", "share", "copied"]


@pytest.mark.parametrize(("page", "end"), combinations(SENDING, ENDED_FOR_GOOD))
def test_link_that_has_ended_for_good_is_not_sent(
    world: World, page: str, end: dict[str, Any]
) -> None:
    SetupLink.objects.update(**end)
    response = world.client.post(world.url(page), {"version": ""})
    assert response.status_code in (302, 204)
    if page not in ("copied", "email"):
        assert "leads to no setup link now. Create a new one first." in messages(response)
    assert kinds() == []
    assert mail.outbox == []
    assert not SENT_BY & linked_actions(world)


@pytest.mark.parametrize(("page", "end"), combinations(SENDING, EXPIRED))
def test_link_that_has_expired_is_sent(world: World, page: str, end: dict[str, Any]) -> None:
    SetupLink.objects.update(**end)
    assert linked_actions(world) >= SENT_BY
    assert "A new one is created when the customer opens the personal link." in world.panel()
    assert world.post(page).status_code in (302, 204)
    assert kinds() == ["setup_link_sent"]
    assert len(mail.outbox) == (page == "email")
    assert renewed_by_customer(world).status_code == 200
    assert SetupLink.objects.latest("pk").is_usable


@pytest.mark.parametrize("page", SENDING)
def test_link_of_a_customer_whose_number_was_disconnected_is_sent(world: World, page: str) -> None:
    world.sandbox.patch_setup_link(world.link.kapso_id, status="used")
    SetupLink.objects.update(**USED)
    Connection.objects.update(status="disconnected", disconnected_at=timezone.now())
    store_statuses(world.customer)
    assert linked_actions(world) >= SENT_BY
    assert "It lets the customer connect the number again" in world.panel()
    assert world.post(page).status_code in (302, 204)
    assert kinds() == ["setup_link_sent"]
    assert renewed_by_customer(world).status_code == 200
    assert SetupLink.objects.latest("pk").is_usable


SENT_BY = {"email", "share", "qr"}


def linked_actions(world: World) -> set[str]:
    """The pages that the buttons of the panel lead to."""
    return set(re.findall(r'href="[^"]*/whatsapp/[^/"]+/(\w+)/', world.panel()))


def renewed_by_customer(world: World) -> Any:
    """Press the button on the page that the personal link leads to."""
    world.customer.refresh_from_db()
    return Client().post(connect_urls.connect_path(world.customer))


@pytest.mark.parametrize("end", [*EXPIRED.values(), *ENDED_FOR_GOOD.values()])
def test_link_that_has_ended_is_not_extended(world: World, end: dict[str, Any]) -> None:
    SetupLink.objects.update(**end)
    response = world.client.post(world.url("extend"), {**UNTIL, "version": ""})
    assert messages(response) == "There is no active setup link. Create a new one first."
    assert "extend" not in linked_actions(world)
    assert kinds() == []


def test_the_email_page_offers_a_new_link_when_the_last_has_ended(world: World) -> None:
    SetupLink.objects.update(status="revoked")
    page = world.client.get(world.url("email")).content.decode()
    assert "leads to no setup link now" in page
    assert reverse("admin:host_site_bakery_whatsapp_invite", args=[world.bakery.pk]) in page


@pytest.mark.parametrize(
    ("error", "explanation"),
    [
        (
            smtplib.SMTPRecipientsRefused({"ada@example.com": (550, b"No such user")}),
            "The e-mail could not be sent",
        ),
        (
            smtplib.SMTPRecipientsRefused({"ada@example.com": (450, b"Try later")}),
            "Try again later",
        ),
        (ConnectionRefusedError("nobody listens"), "does not accept the e-mail yet"),
        (TimeoutError("no answer"), "not known whether the e-mail was sent"),
        (RuntimeError("a backend's own"), "The e-mail could not be sent"),
    ],
    ids=["refused", "later", "away", "unknown", "other"],
)
def test_email_that_cannot_be_sent_is_explained_and_not_recorded(
    world: World, error: Exception, explanation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any) -> int:
        raise error

    monkeypatch.setattr(EmailBackend, "send_messages", refuse)
    response = world.post("email")
    assert response["Location"] == world.url("email")
    assert explanation in messages(response)
    assert kinds() == []
    monkeypatch.undo()
    assert "was e-mailed" in messages(world.post("email"))


@pytest.mark.parametrize("channel", ["qr", "share", "copied"])
def test_double_click_is_recorded_once_and_a_later_click_again(world: World, channel: str) -> None:
    for _ in range(3):
        world.client.post(world.url(channel))
    assert kinds() == ["setup_link_sent"]
    then = timezone.now() - DOUBLE_CLICK * 2
    TimelineEvent.objects.filter(kind="setup_link_sent").update(occurred_at=then)
    world.client.post(world.url(channel))
    assert kinds() == ["setup_link_sent"] * 2


def test_click_after_clocks_were_put_back_is_recorded(
    world: World, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.USE_TZ = False
    settings.TIME_ZONE = "Europe/Berlin"
    clock = FakeClock(monkeypatch, datetime(2026, 10, 25, 0, 55, tzinfo=zones.utc))
    world.client.post(world.url("copied"))
    TimelineEvent.objects.filter(kind="setup_link_sent").update(occurred_at=timezone.now())
    clock.advance(10 * 60)
    world.client.post(world.url("copied"))
    assert kinds() == ["setup_link_sent"] * 2


@pytest.mark.parametrize("channel", ["qr", "share"])
def test_reloading_the_page_records_nothing(world: World, channel: str) -> None:
    response = world.client.get(world.url(channel))
    assert response.status_code == 200
    assert kinds() == []


@pytest.mark.parametrize("page", sorted(POST_ONLY))
def test_pages_that_only_act_refuse_get(world: World, page: str) -> None:
    assert world.client.get(world.url(page)).status_code == 405
    assert kinds() == []


def test_the_qr_code_has_a_label_and_leads_to_the_customers_url(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = world.client.get(world.url("qr")).content.decode()
    assert '<svg xmlns="http://www.w3.org/2000/svg" viewBox="' in page
    assert 'role="img" aria-label="QR code with the personal link of Süß"' in page
    assert connect_urls.connect_url(world.customer) in page
    assert world.link.url not in page
    assert "style=" not in page.partition("<main")[2].partition("</main>")[0]


def test_without_segno_the_page_says_what_to_install(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "segno", None)
    response = world.client.get(world.url("qr"))
    assert response.status_code == 200
    assert "django-kapso-connect[qr]" in response.content.decode()


def test_text_to_share_is_in_the_customers_language_and_complete_in_the_whatsapp_url(
    world: World,
) -> None:
    Customer.objects.update(name='Ada & "Söhne" 🥐 #1?\n')
    page = world.client.get(world.url("share")).content.decode()
    assert 'lang="es"' in page
    link = re.search(r'href="https://wa\.me/\?text=([^"&#]*)"[^>]*>', page)
    assert link
    assert 'rel="noopener noreferrer"' in link[0]
    text = unquote(link[1])
    assert 'Ada & "Söhne" 🥐 #1?' in text
    assert connect_urls.connect_url(world.customer) in text


def test_the_sites_own_rule_who_may_create_links_also_hides_the_url(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BakeryAdmin, "has_create_setup_link_permission", lambda *args: False)
    url = connect_url(world.customer)
    change = reverse("admin:host_site_bakery_change", args=[world.bakery.pk])
    for address in (change, world.url("email")):
        page = world.client.get(address)
        assert page.status_code == 200
        assert url not in page.text
    for page in ("qr", "share", "copied"):
        assert world.client.post(world.url(page)).status_code == 403
        assert world.url(page) not in world.client.get(change).text.replace(
            f'data-kapso-sent-url="{world.url("copied")}"', ""
        )
