"""Staff send the link, manage it and manage a number, in a real browser."""

from __future__ import annotations

import re
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core import mail
from django.urls import reverse
from playwright.sync_api import Page, expect

from kapso_connect import onboarding
from kapso_connect.models import Connection, Customer, SetupLink, TimelineEvent
from kapso_connect.onboarding import connect_urls
from kapso_connect.testing import Sandbox
from kapso_connect.utils import to_local_time

from ..factories import make_connection
from ..sites.host_site.models import Bakery
from .support import PHONE, Visitor, path_of

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def site(site: str, configure: Any) -> str:
    configure(SITE_NAME="Example CRM")
    return site


@pytest.fixture
def bakery(site: str, sandbox: Sandbox) -> Bakery:
    """An invited bakery with a connected number."""
    bakery = Bakery.objects.create(title="Panadería Añil", contact="ana@example.com", locale="es")
    customer = Customer.objects.for_owner(
        bakery, name=bakery.title, email=bakery.contact, language="es"
    )
    onboarding.create_setup_link(customer)
    remote = sandbox.add_number(customer_id=customer.kapso_id, phone_number="+14155550123")
    make_connection(
        customer,
        phone_number_id=remote["phone_number_id"],
        display_phone_number="+1 415-555-0123",
        verified_name="Panadería Añil",
    )
    return bakery


class Staff:
    """A member of staff at the pages of one bakery."""

    def __init__(self, visitor: Visitor, site: str, bakery: Bakery, **options: Any) -> None:
        self.visitor, self.site, self.bakery = visitor, site, bakery
        self.page: Page = visitor.window(**options)
        User.objects.filter(username="staff").exists() or User.objects.create_superuser(
            "staff", password="correct horse"
        )
        self.page.goto(f"{site}/admin/login/")
        self.page.get_by_label("Username").fill("staff")
        self.page.get_by_label("Password").fill("correct horse")
        self.page.get_by_role("button", name="Log in").click()

    def path(self, name: str) -> str:
        args = [self.bakery.pk]
        if name in ("reconnect", "health", "disconnect"):
            args.append(Connection.objects.get().pk)
        return reverse(f"admin:host_site_bakery_whatsapp_{name}", args=args)

    def open(self, name: str) -> None:
        self.page.goto(self.site + self.path(name))

    def press(self, name: str) -> None:
        self.page.get_by_role("button", name=name).click()

    def expect_message(self, text: str) -> None:
        expect(self.page.locator(".messagelist")).to_contain_text(text)


@pytest.fixture
def staff(visitor: Visitor, site: str, bakery: Bakery) -> Staff:
    return Staff(visitor, site, bakery)


def last_event() -> TimelineEvent:
    return TimelineEvent.objects.latest("pk")


def test_staff_email_the_link(staff: Staff, visitor: Visitor) -> None:
    staff.open("email")
    expect(staff.page.get_by_text("ana@example.com")).to_be_visible()
    expect(staff.page.get_by_text("Spanish")).to_be_visible()
    visitor.look(staff.page, "manage-email")
    staff.press("Send the e-mail")
    staff.expect_message("The personal link was e-mailed to ana@example.com.")
    assert len(mail.outbox) == 1
    staff.open("email")
    visitor.look(staff.page, "manage-email-again")
    # Twice within a moment.
    staff.page.get_by_role("button", name="Send again").dblclick()
    staff.page.wait_for_timeout(2000)
    assert len(mail.outbox) == 2


def test_staff_show_a_qr_code(staff: Staff, visitor: Visitor) -> None:
    staff.open("qr")
    code = staff.page.get_by_role("img", name="QR code with the personal link of Panadería")
    expect(code).to_be_visible()
    visitor.look(staff.page, "manage-qr")
    staff.page.emulate_media(media="print")
    expect(staff.page.locator("#header")).to_be_hidden()
    expect(code).to_be_visible()
    visitor.shoot(staff.page, "manage-qr-print", full_page=False)


def test_staff_share_the_link(staff: Staff, visitor: Visitor) -> None:
    staff.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    staff.open("share")
    text = staff.page.get_by_label("Text (Spanish)").input_value()
    assert connect_urls.connect_url(Customer.objects.get()) in text
    staff.press("Copy")
    expect(staff.page.get_by_text("Copied")).to_be_visible()
    assert staff.page.evaluate("navigator.clipboard.readText()") == text
    link = staff.page.get_by_role("link", name="Share in WhatsApp")
    assert (link.get_attribute("href") or "").startswith("https://wa.me/?text=")
    visitor.look(staff.page, "manage-share")


def test_staff_extend_the_link_with_the_keyboard(staff: Staff, visitor: Visitor) -> None:
    staff.open("extend")
    visitor.look(staff.page, "manage-extend")
    before = SetupLink.objects.get().expires_at
    assert before
    staff.page.get_by_label("Last day").fill("2020-01-01")
    staff.page.keyboard.press("Enter")
    expect(staff.page.locator(".errorlist").last).to_contain_text("Choose a later day")
    visitor.look(staff.page, "manage-extend-error")
    staff.page.get_by_role("button", name="7 days longer").focus()
    staff.page.keyboard.press("Enter")
    staff.expect_message("The setup link now works until")
    after = SetupLink.objects.get().expires_at
    assert after
    assert (to_local_time(after).date() - to_local_time(before).date()).days == 7


def test_staff_revoke_the_link(staff: Staff, visitor: Visitor) -> None:
    staff.open("revoke")
    visitor.look(staff.page, "manage-revoke")
    staff.press("Revoke the setup link")
    staff.expect_message("The setup link was revoked.")
    event = last_event()
    assert (event.kind, str(event.actor)) == ("setup_link_revoked", "staff")
    staff.open("email")
    expect(staff.page.get_by_role("button", name="Create a new setup link")).to_be_visible()
    visitor.look(staff.page, "manage-email-ended")
    staff.press("Create a new setup link")
    assert "/whatsapp/batch/" in path_of(staff.page)


def test_staff_reconnect_a_number(staff: Staff, visitor: Visitor) -> None:
    staff.open("reconnect")
    visitor.look(staff.page, "manage-reconnect")
    staff.page.get_by_role("button", name="Create the link", exact=True).click()
    staff.expect_message("A setup link to reconnect +1 415-555-0123 was created.")
    link = Customer.objects.get().latest_setup_link
    assert link.options["reconnect_phone_number"] == "+14155550123"


def test_staff_disconnect_a_number_and_kapsos_webhook_changes_nothing(
    staff: Staff, visitor: Visitor, sandbox: Sandbox
) -> None:
    # Webhook and page write one after the other, whichever database it is.
    sandbox.faults(delay=1)
    staff.open("disconnect")
    visitor.look(staff.page, "manage-disconnect")
    staff.press("Disconnect the number")
    staff.expect_message("+1 415-555-0123 was disconnected and removed from Kapso.")
    sandbox.wait_for_deliveries(1)
    (event,) = TimelineEvent.objects.filter(kind="disconnected")
    assert (str(event.actor), Connection.objects.get().disconnect_reason) == ("staff", "staff")
    visitor.look(staff.page, "manage-disconnected")


def test_without_an_email_address_staff_are_led_to_the_form_to_enter_one(
    staff: Staff, visitor: Visitor, bakery: Bakery
) -> None:
    Bakery.objects.update(contact="")
    Customer.objects.update(email="")
    staff.open("email")
    visitor.look(staff.page, "manage-email-none")
    staff.page.get_by_role("link", name="to enter one").click()
    assert path_of(staff.page).endswith(f"/host_site/bakery/{bakery.pk}/change/")


PAGES = ["email", "qr", "share", "extend", "revoke", "reconnect", "disconnect"]


def test_every_page_is_readable_in_the_dark(visitor: Visitor, site: str, bakery: Bakery) -> None:
    staff = Staff(visitor, site, bakery, color_scheme="dark")
    for name in PAGES:
        staff.open(name)
        visitor.look(staff.page, f"manage-dark-{name}")


def test_every_page_works_from_right_to_left_and_without_javascript(
    visitor: Visitor, site: str, bakery: Bakery
) -> None:
    Bakery.objects.update(title="مخبز النور", locale="ar")
    Customer.objects.update(name="مخبز النور", language="ar")
    SetupLink.objects.update(options={"language": "ar"})
    staff = Staff(visitor, site, bakery, viewport=PHONE, java_script_enabled=False)
    cookie = {"name": "django_language", "value": "ar", "url": site}
    staff.page.context.add_cookies([cookie])  # type: ignore[list-item]
    for name in PAGES:
        staff.open(name)
        expect(staff.page.locator("html")).to_have_attribute("dir", "rtl")
        visitor.shoot(staff.page, f"manage-arabic-{name}")
    staff.page.goto(site + staff.path("revoke"))
    staff.page.locator("#content form input[type=submit]").click()
    assert last_event().kind == "setup_link_revoked"


@pytest.mark.parametrize("language", ["es", "ar"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_email_reads_well_on_a_desktop_and_on_a_phone(
    staff: Staff, visitor: Visitor, language: str, scheme: Any
) -> None:
    Bakery.objects.update(locale=language)
    SetupLink.objects.update(options={"language": language})
    staff.open("email")
    staff.press("Send the e-mail")
    staff.expect_message("was e-mailed")
    (alternative,) = mail.outbox[0].alternatives
    page = visitor.window(PHONE, color_scheme=scheme)
    page.set_content(str(alternative[0]))
    visitor.look(page, f"manage-mail-{language}-{scheme}")
    button = page.get_by_role("link").first
    assert re.match(f"{staff.site}/whatsapp/connect/", button.get_attribute("href") or "")
    expect(page.locator("html")).to_have_attribute("dir", "rtl" if language == "ar" else "ltr")
