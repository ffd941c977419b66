"""Inviting as a member of staff does it: the form with its colours, the page of a batch."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.contrib.auth.models import User
from django.test import Client
from playwright.sync_api import Page, expect

from kapso_connect.models import Customer, InvitationBatch, SetupLink
from kapso_connect.onboarding import invitations
from kapso_connect.onboarding.connect_urls import connect_url
from kapso_connect.testing import Sandbox

from ..factories import queue_without_worker
from .support import Visitor, assert_accessible

pytestmark = pytest.mark.django_db(transaction=True)

BATCH = "/admin/kapso_connect/customer/whatsapp/batch/"
CREATE_LINK = "^POST .*/setup_links$"
WIDE = {"width": 1440, "height": 900}


def examine(visitor: Visitor, page: Page, name: str) -> None:
    """Look at the page, and let axe-core do so."""
    visitor.look(page, name)
    assert visitor.complaints == []
    assert_accessible(page)
    visitor.complaints.clear()  # axe-core itself tries inline styles


@pytest.fixture
def open_batch(site: str, visitor: Visitor) -> Callable[..., Page]:
    """Opens a batch for so many customers as the member of staff who drafted it."""

    def open_it(count: int, *, is_started: bool = False, **options: Any) -> Page:
        staff = User.objects.create_superuser("staff", password="correct horse")
        rows = Customer.objects.bulk_create(
            Customer(name=f"Customer {n:02}", email="c@example.com") for n in range(count)
        )
        batch = invitations.make_batch([row.pk for row in rows], created_by=staff)
        if is_started:
            invitations.start(batch)
        client = Client()
        client.force_login(staff)
        page = visitor.window(WIDE, **options)
        cookie = client.cookies[django_settings.SESSION_COOKIE_NAME].value
        name = django_settings.SESSION_COOKIE_NAME
        page.context.add_cookies([{"name": name, "value": cookie, "url": site}])
        page.goto(f"{site}{BATCH}{batch.pk}/")
        return page

    return open_it


def submit(page: Page) -> Any:
    return page.get_by_role("button", name=re.compile(r"^Create (the link|\d+ links)"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_chosen_colours_are_previewed(
    visitor: Visitor, open_batch: Callable[..., Page], sandbox: Sandbox, scheme: Any
) -> None:
    page = open_batch(2, color_scheme=scheme)
    preview = page.locator("[data-kapso-preview]")
    expect(preview).to_be_hidden()
    page.get_by_text("Options", exact=True).click()
    page.get_by_text("Colours of the page").click()
    expect(preview).to_be_visible()
    examine(visitor, page, f"invite-options-{scheme}")
    page.get_by_label("Colour: Button").fill("#ff8800")
    expect(page.get_by_label("Button", exact=True)).to_be_checked()
    button = page.locator(".kapso-preview-button")
    expect(button).to_have_css("background-color", "rgb(255, 136, 0)")
    warning = page.get_by_text("“Text on the button” is hard to read on “Button”.")
    expect(warning).to_be_visible()
    page.get_by_label("Colour: Text on the button").fill("#000000")
    expect(warning).to_be_hidden()
    expect(page.get_by_label("Use these colours anyway")).to_be_hidden()
    page.get_by_label("Colour: Text on the button").fill("#ffffff")
    expect(warning).to_be_visible()
    page.get_by_label("Colour: Card").fill("#000000")
    expect(page.get_by_text("“Text” is hard to read on “Card”.")).to_be_visible()
    page.get_by_label("Card", exact=True).uncheck()
    expect(page.get_by_text("“Text” is hard to read on “Card”.")).to_be_hidden()
    page.get_by_label("Text on the button", exact=True).check()
    visitor.look(page, f"invite-form-{scheme}")
    page.get_by_label("Button", exact=True).uncheck()
    expect(button).to_have_css("background-color", "rgb(37, 99, 235)")
    page.get_by_label("Button", exact=True).check()
    submit(page).click()
    expect(page.get_by_text("“Text on the button” is hard to read on “Button”.")).to_be_visible()
    visitor.look(page, f"invite-contrast-{scheme}")
    assert not sandbox.requests()
    page.get_by_label("Use these colours anyway").check()
    submit(page).click()
    expect(page.get_by_text("Finished: every customer has a link.")).to_be_visible()
    colors = SetupLink.objects.all()[0].options["theme_config"]
    assert colors == {"primary_color": "#ff8800", "primary_foreground_color": "#ffffff"}
    examine(visitor, page, f"invite-done-{scheme}")


def test_fields_that_do_not_apply_are_disabled(open_batch: Callable[..., Page]) -> None:
    page = open_batch(1)
    page.get_by_text("Options", exact=True).click()
    area_code = page.get_by_label("Area code")
    expect(area_code).to_be_disabled()
    page.get_by_label("Give the customer a new phone number").check()
    expect(area_code).to_be_enabled()
    area_code.fill("41x")
    submit(page).click()
    expect(page.get_by_text("Must be three digits, such as 415.")).to_be_visible()
    area_code.fill("415")
    submit(page).click()
    expect(page.get_by_text("Finished: every customer has a link.")).to_be_visible()
    assert SetupLink.objects.get().options["phone_number_area_code"] == "415"


def test_a_double_click_starts_once(open_batch: Callable[..., Page], sandbox: Sandbox) -> None:
    page = open_batch(3)
    submit(page).dblclick()
    expect(page.get_by_text("Finished: every customer has a link.")).to_be_visible()
    assert len(sandbox.state()["setup_links"]) == 3


def test_the_form_is_filled_in_with_the_keyboard_alone(open_batch: Callable[..., Page]) -> None:
    page = open_batch(1)
    page.locator(".kapso-options > summary").focus()
    page.keyboard.press("Enter")
    page.get_by_label("The customer chooses").focus()
    page.keyboard.press("ArrowDown")
    expect(page.get_by_label("Only with the app")).to_be_checked()
    expect(page.get_by_label("E-mail to c@example.com")).to_be_checked()
    page.keyboard.press("Enter")
    expect(page.get_by_text("E-mail: Sent")).to_be_visible()
    assert SetupLink.objects.get().options["allowed_connection_types"] == ["coexistence"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_creates_the_links_and_shows_the_progress(
    visitor: Visitor,
    open_batch: Callable[..., Page],
    sandbox: Sandbox,
    monkeypatch: pytest.MonkeyPatch,
    scheme: Any,
) -> None:
    monkeypatch.setattr(invitations, "REQUEST_SECONDS", 0.2)
    rule = {"match": CREATE_LINK, "kind": "status", "status": 422, "times": 1}
    slow = {"kind": "slow", "seconds": 0.1}
    sandbox.faults(api=[*({**rule, "after": n} for n in (3, 13)), slow])
    page = open_batch(30, is_started=True, color_scheme=scheme)
    expect(page.get_by_text("The links are being created.")).to_be_visible()
    visitor.look(page, f"invite-running-{scheme}")
    expect(page.get_by_text("Finished, but 2 customers have no link.")).to_be_visible()
    assert page.locator("progress").evaluate("bar => bar.value") == 30
    expect(page.get_by_role("button", name="Copy")).to_have_count(28)
    page.reload()
    page.get_by_role("link", name="Failed (2)").click()
    expect(page.get_by_text("The request was rejected")).to_have_count(2)
    examine(visitor, page, f"invite-failed-{scheme}")
    page.get_by_role("button", name="Try the failed ones again").click()
    expect(page.get_by_text("Finished: every customer has a link.")).to_be_visible()
    assert len(sandbox.state()["setup_links"]) == 30


def test_url_is_copied_from_the_updated_page(
    open_batch: Callable[..., Page],
) -> None:
    page = open_batch(2, is_started=True)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    expect(page.get_by_role("button", name="Copy")).to_have_count(2)
    page.get_by_role("button", name="Copy").first.click()
    expect(page.get_by_text("Copied")).to_be_visible()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == connect_url(Customer.objects.order_by("pk")[0])


def test_stopped_batch_shows_the_reason_and_is_resumed(
    visitor: Visitor, open_batch: Callable[..., Page], sandbox: Sandbox
) -> None:
    sandbox.faults(api=[{"kind": "status", "status": 401}])
    page = open_batch(30)
    submit(page).click()
    expect(page.get_by_text("Kapso rejected this site's API key.")).to_be_visible()
    examine(visitor, page, "invite-stopped")
    sandbox.clear_faults()
    page.get_by_role("button", name="Resume").click()
    expect(page.get_by_text("Finished: every customer has a link.")).to_be_visible()
    assert len(sandbox.state()["setup_links"]) == 30


def test_rest_of_a_stopped_batch_is_given_up(
    visitor: Visitor, open_batch: Callable[..., Page], sandbox: Sandbox
) -> None:
    sandbox.faults(api=[{"kind": "status", "status": 401}])
    page = open_batch(3)
    submit(page).click()
    page.get_by_text("Give up the rest").click()
    examine(visitor, page, "invite-give-up")
    page.get_by_role("button", name="Give up 3 customers").click()
    expect(page.get_by_text("Finished, but 3 customers have no link.")).to_be_visible()
    page.get_by_role("link", name="Back to the list").click()
    expect(page.get_by_text("has stopped")).to_have_count(0)


def test_without_javascript_each_step_is_a_button(
    visitor: Visitor,
    open_batch: Callable[..., Page],
    sandbox: Sandbox,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(invitations, "REQUEST_SECONDS", 0)
    page = open_batch(3, java_script_enabled=False)
    page.get_by_text("Options", exact=True).click()
    page.get_by_text("Colours of the page").click()
    page.get_by_label("Muted area", exact=True).check()
    submit(page).click()
    expect(page.get_by_text("3 left")).to_be_visible()
    visitor.look(page, "invite-no-script")
    monkeypatch.setattr(invitations, "REQUEST_SECONDS", 5)
    page.get_by_role("button", name="Continue").click()
    expect(page.get_by_text("Finished: every customer has a link.")).to_be_visible()
    assert InvitationBatch.objects.get().options["theme_config"] == {"muted_color": "#f3f4f6"}


def test_the_page_shows_the_progress_of_task_workers(
    open_batch: Callable[..., Page], sandbox: Sandbox
) -> None:
    with queue_without_worker():
        page = open_batch(3, is_started=True)
        expect(page.get_by_text("3 left")).to_be_visible()
        assert not sandbox.requests()
        invitations.work(InvitationBatch.objects.get().pk)
        expect(page.get_by_text("Finished: every customer has a link.")).to_be_visible()


def test_any_name_fits(visitor: Visitor, open_batch: Callable[..., Page], sandbox: Sandbox) -> None:
    page = open_batch(3)
    for row, name in zip(
        Customer.objects.order_by("pk"),
        ["N" * 255, "مخبز السعادة", "\N{BREAD} Bakery"],
        strict=True,
    ):
        Customer.objects.filter(pk=row.pk).update(name=name)
    page.reload()
    visitor.look(page, "invite-names-form")
    submit(page).click()
    expect(page.get_by_text("Finished: every customer has a link.")).to_be_visible()
    visitor.look(page, "invite-names")
