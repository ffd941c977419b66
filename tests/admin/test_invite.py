"""Inviting from the admin: the draft, the form, the batch; against a running sandbox."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from threading import Barrier, BrokenBarrierError
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.admin.utils import quote
from django.contrib.auth.models import Permission, User
from django.contrib.contenttypes.models import ContentType
from django.contrib.messages import get_messages
from django.core import mail as outbox
from django.db import connections
from django.http import HttpResponse
from django.test import Client
from django.utils import timezone

from kapso_connect import onboarding, theme
from kapso_connect.admin import history
from kapso_connect.admin.colors import COLORS
from kapso_connect.kapso.setup_link_options import THEME_COLORS
from kapso_connect.models import Customer, Invitation, InvitationBatch, SetupLink, TimelineEvent
from kapso_connect.onboarding import invitations, mailer
from kapso_connect.onboarding.connect_urls import connect_url
from kapso_connect.testing import Sandbox

from ..cases import combinations
from ..factories import make_connection, make_customer, make_link, queue_without_worker
from ..onboarding.support import check_no_transaction_during
from ..sites.host_site.models import Bakery, Branch, Franchise, Shop
from ..smtp_server import SMTPServer, use_mail_server
from .world import text

pytestmark = pytest.mark.django_db

LIST = "/admin/kapso_connect/customer/"
CHOICES = {
    "connection_types": "coexistence,dedicated",
    "language": "",
    "next_url": "",
    "meta_billing_mode": "",
    "phone_number_country_isos": "US",
    "phone_number_area_code": "",
}
CREATE_LINK = "^POST .*/setup_links$"
IDLE = "No process is working on this"


SURFACES = ["card_color", "background_color", "muted_color"]
HOST_LIST = "/other-admin/host_site/bakery/"


def customers(count: int, **fields: Any) -> list[Customer]:
    return [make_customer(name=f"Customer {n}", kapso_id=None, **fields) for n in range(count)]


def act(client: Client, rows: list[Any], url: str = LIST, **more: str) -> HttpResponse:
    data = {"action": "create_setup_links", "_selected_action": [row.pk for row in rows], **more}
    return client.post(url, data)


def invite_url(pk: object, url: str = LIST) -> str:
    """The address of the button of one object, whose key is quoted as the admin does."""
    return f"{url}whatsapp/{pk}/invite/"


def draft(client: Client, rows: list[Any], url: str = LIST) -> str:
    """Choose the action; return the address of the batch it leads to."""
    response = act(client, rows, url)
    assert re.fullmatch(rf"{url}whatsapp/batch/\d+/", response["Location"])
    return response["Location"]


def start(client: Client, address: str, **choices: str) -> HttpResponse:
    return client.post(address, {**CHOICES, **choices})


def create(client: Client, rows: list[Any], url: str = LIST, **choices: str) -> str:
    """Go from the action to the page of the batch; return its text."""
    address = draft(client, rows, url)
    response = start(client, address, **choices)
    assert response["Location"] == address, response.content.decode()
    return text(client, address)


def warnings(response: HttpResponse) -> list[str]:
    return [str(message) for message in get_messages(response.wsgi_request)]


def link_requests(sandbox: Sandbox) -> list[dict[str, Any]]:
    return [
        request
        for request in sandbox.requests()
        if request["method"] == "POST" and request["path"].endswith("/setup_links")
    ]


def sent_options(sandbox: Sandbox) -> dict[str, Any]:
    (request,) = link_requests(sandbox)
    return request["body"]["setup_link"]


# From the action to the links


@pytest.mark.parametrize("count", [1, 3])
def test_from_the_action_to_the_links(
    admin_client: Client, admin_user: User, sandbox: Sandbox, count: int
) -> None:
    rows = customers(count)
    address = draft(admin_client, rows)
    page = text(admin_client, address)
    assert all(row.name in page for row in rows)
    assert not sandbox.requests()

    start(admin_client, address, connection_types="dedicated")
    page = text(admin_client, address)
    assert "Finished: every customer has a link." in page
    assert SetupLink.objects.count() == len(link_requests(sandbox)) == count
    for link in SetupLink.objects.all():
        assert f'value="{connect_url(link.customer)}"' in page
        assert link.url not in page
        assert link.created_by == admin_user
        assert link.options["allowed_connection_types"] == ["dedicated"]
        logged = LogEntry.objects.get(object_id=str(link.customer_id))
        assert (logged.user, logged.object_repr) == (admin_user, link.customer.name)


def test_the_button_of_a_customer_starts_the_same_flow(
    admin_client: Client, sandbox: Sandbox
) -> None:
    (row,) = customers(1)
    response = admin_client.post(invite_url(row.pk))
    assert "For 1 customer" in text(admin_client, response["Location"])
    assert InvitationBatch.objects.get().invitations.get().customer == row
    assert not sandbox.requests()


def test_get_request_makes_no_draft(admin_client: Client) -> None:
    assert admin_client.get(invite_url(customers(1)[0].pk)).status_code == 405
    assert not InvitationBatch.objects.exists()


def test_all_rows_of_a_list_can_be_chosen(admin_client: Client) -> None:
    rows = Customer.objects.bulk_create(Customer(name=f"Customer {n}") for n in range(250))
    response = act(admin_client, rows[:2], select_across="1")
    page = text(admin_client, response["Location"])
    assert "For 250 customers" in page
    assert "and 230 more" in page
    assert "Create 250 links" in page


@pytest.mark.parametrize("count", [2, 60])
def test_the_pages_ask_the_database_as_often_for_many_as_for_few(
    admin_client: Client,
    sandbox: Sandbox,
    django_assert_num_queries: Callable[..., Any],
    count: int,
) -> None:
    rows = Customer.objects.bulk_create(Customer(name=f"Customer {n}") for n in range(count))
    address = draft(admin_client, rows)
    with django_assert_num_queries(8):
        text(admin_client, address)
    batch = InvitationBatch.objects.get()
    invitations.start(batch)
    batch.invitations.update(status="done", setup_link=make_link(rows[0]))
    with django_assert_num_queries(7):
        text(admin_client, address)


def test_a_batch_of_many_is_shown_page_by_page(admin_client: Client, sandbox: Sandbox) -> None:
    rows = Customer.objects.bulk_create(Customer(name=f"Customer {n:03}") for n in range(120))
    batch = invitations.make_batch([row.pk for row in rows])
    invitations.start(batch)
    batch.invitations.filter(customer__in=rows[100:]).update(status="failed", last_error="No!")
    address = f"{LIST}whatsapp/batch/{batch.pk}/"
    page = text(admin_client, address)
    assert page.count("Customer 0") == 50
    assert "Customer 049" in page
    assert "page=3" in page
    page = text(admin_client, f"{address}?show=failed")
    assert page.count("No!") == 20
    assert "Customer 099" not in page
    for junk in ("?show=nobody", "?page=-1", "?page=x", f"?page={10**30}", "?show=%00&page=%00"):
        text(admin_client, address + junk)


# The form


def test_every_choice_reaches_kapso(admin_client: Client, sandbox: Sandbox) -> None:
    colors = {f"own_{name}": "on" for name in THEME_COLORS}
    create(
        admin_client,
        customers(1),
        language="pt",
        next_url="/welcome/",
        meta_billing_mode="partner_managed",
        provision_phone_number="on",
        phone_number_country_isos="us, mx US",
        phone_number_area_code="415",
        **colors,
        **dict.fromkeys(THEME_COLORS, "#0a0b0c"),
        accept_contrast="on",
    )
    assert sent_options(sandbox) == {
        **sent_options(sandbox),
        "allowed_connection_types": ["coexistence", "dedicated"],
        "language": "pt",
        "meta_billing_mode": "partner_managed",
        "provision_phone_number": True,
        "phone_number_country_isos": ["US", "MX"],
        "phone_number_area_code": "415",
        "theme_config": dict.fromkeys(THEME_COLORS, "#0a0b0c"),
    }
    assert SetupLink.objects.get().next_url == "/welcome/"


def test_the_form_starts_with_the_sites_defaults(
    admin_client: Client, sandbox: Sandbox, configure: Any
) -> None:
    configure(
        SETUP_LINK_DEFAULTS={
            "allowed_connection_types": ["dedicated"],
            "language": "es",
            "meta_billing_mode": "partner_managed",
            "theme_config": {"primary_color": "#123456"},
            "provision_phone_number": True,
            "phone_number_country_isos": ["CA", "US"],
            "phone_number_area_code": "212",
        }
    )
    address = draft(admin_client, customers(1))
    page = admin_client.get(address)
    form = page.context["form"]
    assert form["connection_types"].value() == "dedicated"
    assert form["meta_billing_mode"].value() == "partner_managed"
    assert form["primary_color"].value() == "#123456"
    assert form["provision_phone_number"].value() is True
    assert form["phone_number_country_isos"].value() == "CA, US"
    assert form["phone_number_area_code"].value() == "212"
    assert "otherwise Spanish" in page.content.decode()
    # Unticking is enough: what was preset for the number does not have to be emptied.
    start(admin_client, address, phone_number_area_code="212")
    options = sent_options(sandbox)
    assert options["language"] == "es"
    assert options["provision_phone_number"] is False
    assert "phone_number_area_code" not in options
    assert options["theme_config"] == {"primary_color": "#123456"}
    assert "meta_billing_mode" not in options, "Kapso's default was chosen"


def test_disabled_fields_keep_their_values(admin_client: Client, configure: Any) -> None:
    configure(SETUP_LINK_DEFAULTS={"phone_number_country_isos": ["CA"]})
    choices = {name: text for name, text in CHOICES.items() if "phone" not in name}
    response = admin_client.post(draft(admin_client, customers(1)), {**choices, "language": "tlh"})
    assert response.context["form"]["phone_number_country_isos"].value() == "CA"


def test_chosen_colour_is_added_to_those_of_the_site(
    admin_client: Client, sandbox: Sandbox, configure: Any
) -> None:
    configure(
        SETUP_LINK_DEFAULTS={"theme_config": {"primary_color": "#123456", "text_color": "#000000"}}
    )
    create(
        admin_client,
        customers(1),
        own_text_color="on",
        text_color="#111111",
        card_color="#ff0000",  # not ticked
    )
    assert sent_options(sandbox)["theme_config"] == {
        "primary_color": "#123456",
        "text_color": "#111111",
    }


def test_without_a_choice_the_customers_own_language_is_used(
    admin_client: Client, sandbox: Sandbox, configure: Any
) -> None:
    configure(SETUP_LINK_DEFAULTS={"language": "es"})
    create(admin_client, [make_customer(kapso_id=None, language="hi")])
    assert sent_options(sandbox)["language"] == "hi"


@pytest.mark.parametrize(
    ("choices", "field"),
    [
        ({"connection_types": "telepathy"}, "connection_types"),
        ({"connection_types": ""}, "connection_types"),
        ({"language": "tlh"}, "language"),
        ({"meta_billing_mode": "nobody"}, "meta_billing_mode"),
        ({"next_url": "https://elsewhere.example/"}, "next_url"),
        ({"next_url": "//elsewhere.example/"}, "next_url"),
        ({"next_url": "javascript:alert(1)"}, "next_url"),
        ({"next_url": "/" + "x" * 2000}, "next_url"),
        ({"phone_number_area_code": "415"}, "phone_number_area_code"),
        (
            {"provision_phone_number": "on", "phone_number_area_code": "41x"},
            "phone_number_area_code",
        ),
        (
            {
                "provision_phone_number": "on",
                "phone_number_area_code": "415",
                "phone_number_country_isos": "MX",
            },
            "phone_number_area_code",
        ),
        (
            {"provision_phone_number": "on", "phone_number_country_isos": "Mexico"},
            "phone_number_country_isos",
        ),
        (
            {"provision_phone_number": "on", "phone_number_country_isos": "UK"},
            "phone_number_country_isos",
        ),
        (
            {"provision_phone_number": "on", "connection_types": "coexistence"},
            "provision_phone_number",
        ),
        ({"own_text_color": "on", "text_color": "red"}, "text_color"),
        ({"own_text_color": "on", "text_color": "#12345"}, "text_color"),
        ({"own_text_color": "on", "text_color": "#123456\n"}, "text_color"),
        ({"send_email": "on"}, "send_email"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_invalid_choice_is_an_error_of_its_field_and_kapso_is_not_asked(
    admin_client: Client, sandbox: Sandbox, choices: dict[str, str], field: str
) -> None:
    address = draft(admin_client, customers(1))
    response = start(admin_client, address, **choices)
    assert response.status_code == 200
    assert list(response.context["form"].errors) == [field]
    assert InvitationBatch.objects.get().started_at is None
    assert not sandbox.requests()


def test_low_contrast_has_to_be_confirmed(admin_client: Client, sandbox: Sandbox) -> None:
    address = draft(admin_client, customers(1))
    chosen = {
        "own_text_color": "on",
        "text_color": "#999999",
        "own_background_color": "on",
        "background_color": "#ffffff",
    }
    response = start(admin_client, address, **chosen)
    assert '"background_color">“Text” is hard to read on “Page”.' in response.content.decode()
    assert '<label class="vCheckboxLabel" for="id_accept_contrast">' in response.content.decode()
    assert not link_requests(sandbox)
    start(admin_client, address, **chosen, accept_contrast="on")
    assert sent_options(sandbox)["theme_config"]["text_color"] == "#999999"


def test_low_contrast_to_a_default_has_to_be_confirmed(
    admin_client: Client, sandbox: Sandbox
) -> None:
    address = draft(admin_client, customers(1))
    chosen = {"own_text_color": "on", "text_color": "#eeeeee"}
    response = start(admin_client, address, **chosen)
    assert response.context["form"].unreadable() == {("text_color", name) for name in SURFACES}
    assert not link_requests(sandbox)
    start(admin_client, address, **chosen, accept_contrast="on")
    assert sent_options(sandbox)["theme_config"] == {"text_color": "#eeeeee"}


def test_contrast_to_the_sites_own_colours_counts(
    admin_client: Client, sandbox: Sandbox, configure: Any
) -> None:
    surfaces = dict.fromkeys(["background_color", "muted_color", "card_color"], "#333333")
    configure(SETUP_LINK_DEFAULTS={"theme_config": surfaces})
    address = draft(admin_client, customers(1))
    response = start(admin_client, address, own_text_color="on", text_color="#000000")
    assert response.context["form"].unreadable() == {("text_color", name) for name in SURFACES}
    assert not link_requests(sandbox)


@pytest.mark.parametrize(
    ("color", "value", "unreadable"),
    [
        ("primary_color", "#ffd400", {("primary_foreground_color", "primary_color")}),
        (
            "card_color",
            "#000000",
            {("text_color", "card_color"), ("muted_text_color", "card_color")},
        ),
    ],
    ids=["yellow-button", "dark-card"],
)
def test_colours_that_the_preview_shows_hard_to_read_have_to_be_confirmed(
    admin_client: Client,
    sandbox: Sandbox,
    color: str,
    value: str,
    unreadable: set[tuple[str, str]],
) -> None:
    address = draft(admin_client, customers(1))
    chosen = {f"own_{color}": "on", color: value}
    response = start(admin_client, address, **chosen)
    assert response.context["form"].unreadable() == unreadable
    shown = re.findall(
        r'data-kapso-text="(\w+)" data-kapso-behind="(\w+)">', response.content.decode()
    )
    assert set(shown) == unreadable
    assert not link_requests(sandbox)
    start(admin_client, address, **chosen, accept_contrast="on")
    assert sent_options(sandbox)["theme_config"] == {color: value}


def test_what_is_reported_of_a_link_later_has_to_be_confirmed_before(
    admin_client: Client, sandbox: Sandbox
) -> None:
    # Readable on the preview's muted area, and not on the one of theme.DEFAULT_COLORS.
    colors = {"muted_text_color": "#6f6f6f", "card_color": "#ffffff"}
    shown = {name: color.shown for name, color in COLORS.items()}
    assert len(theme.problems(colors)) > len(theme.problems({**shown, **colors}))
    address = draft(admin_client, customers(1))
    response = start(admin_client, address, **colors, **{f"own_{name}": "on" for name in colors})
    assert response.context["form"].unreadable() == {
        (problem.text, problem.behind) for problem in theme.problems(colors)
    }


def test_low_contrast_of_the_sites_own_colours_needs_no_confirmation(
    admin_client: Client, sandbox: Sandbox, configure: Any
) -> None:
    configure(
        SETUP_LINK_DEFAULTS={
            "theme_config": {"text_color": "#999999", "background_color": "#ffffff"}
        }
    )
    create(admin_client, customers(1), own_primary_color="on", primary_color="#123456")
    assert link_requests(sandbox)


def test_invalid_default_of_the_site_gets_a_message_and_kapso_is_not_asked(
    admin_client: Client, sandbox: Sandbox, configure: Any
) -> None:
    configure(SETUP_LINK_DEFAULTS={"theme_config": {"primary_color": "red"}})
    response = start(admin_client, draft(admin_client, customers(1)))
    assert "theme_config" in response.content.decode()
    assert not sandbox.requests()


def test_site_that_uses_the_sdk_needs_one_way_to_connect(
    admin_client: Client, sandbox: Sandbox, configure: Any
) -> None:
    origins = ["https://site.example"]
    configure(
        SETUP_LINK_DEFAULTS={
            "allowed_origins": origins,
            "allowed_connection_types": ["dedicated"],
        }
    )
    address = draft(admin_client, customers(1))
    both = {**CHOICES, "connection_types": "coexistence,dedicated"}
    errors = admin_client.post(address, both).context["form"].errors
    assert list(errors) == ["connection_types"]
    assert "@kapso/sdk" in str(errors)
    assert not sandbox.requests()
    create(admin_client, customers(1), connection_types="dedicated")
    assert sent_options(sandbox)["allowed_origins"] == origins


def test_customers_with_a_link_or_a_connection_are_marked(admin_client: Client) -> None:
    invited, connected, fresh = customers(3)
    make_link(invited)
    make_link(invited, status="revoked")
    make_connection(connected)
    make_connection(connected)
    page = text(admin_client, draft(admin_client, [invited, connected, fresh]))
    assert "For 3 customers" in page
    assert "1 customer has a link that still works" in page
    assert "1 customer is connected already" in page
    page = text(admin_client, draft(admin_client, [fresh]))
    assert "still works" not in page
    assert "connected already" not in page


# Delivery and options


def form_of(client: Client, address: str) -> Any:
    return client.get(address).context["form"]


def button(client: Client, address: str) -> str:
    page = text(client, address)
    found = re.search(r'<input type="submit" class="default" value="([^"]*)"', page)
    assert found
    return found[1]


@pytest.mark.parametrize(
    ("emails", "delivery", "words"),
    [
        (["sol@example.com"], "E-mail to sol@example.com", "Create the link and e-mail it"),
        ([""], None, "Create the link"),
        (
            ["a@example.com", "b@example.com"],
            "E-mail to the 2 customers who have an address",
            "Create 2 links and e-mail them",
        ),
        (
            ["a@example.com", "", ""],
            "E-mail to the 1 customer who has an address",
            "Create 3 links and e-mail 1 of them",
        ),
        (["", ""], None, "Create 2 links"),
    ],
    ids=["one", "one-without-address", "all", "some", "none"],
)
def test_email_is_chosen_where_there_is_an_address_and_the_button_says_so(
    admin_client: Client, emails: list[str], delivery: str | None, words: str
) -> None:
    rows = [make_customer(kapso_id=None, email=email) for email in emails]
    address = draft(admin_client, rows)
    assert button(admin_client, address) == words
    page = text(admin_client, address)
    if delivery:
        assert f">{delivery}</bdi>" in page
        assert form_of(admin_client, address)["send_email"].value() == "on"
    else:
        assert "no e-mail address. Copy the link" in " ".join(page.split())
        assert 'type="radio" name="send_email"' not in page


@pytest.mark.parametrize("reason", ["permission", "backend"])
def test_form_says_why_the_link_cannot_be_emailed(
    staff: Callable[..., Client], settings: Any, reason: str
) -> None:
    may_send = ["send_setup_link"] if reason == "backend" else []
    client = staff("view_customer", "create_setup_link", *may_send)
    if reason == "backend":
        dummy = "django.core.mail.backends.dummy.EmailBackend"
        if hasattr(settings, "MAILERS"):
            settings.MAILERS = {"default": {"BACKEND": dummy}}
        else:
            settings.EMAIL_BACKEND = dummy
    address = draft(client, customers(1, email="sol@example.com"))
    page = text(client, address)
    assert {
        "permission": "You do not have permission to e-mail links to customers.",
        "backend": "This site is not set up to send e-mails.",
    }[reason] in page
    assert 'name="send_email"' not in page
    assert button(client, address) == "Create the link"


def test_posted_choice_of_an_email_is_refused_where_the_site_sends_none(
    admin_client: Client, sandbox: Sandbox, settings: Any
) -> None:
    address = draft(admin_client, customers(1, email="sol@example.com"))
    dummy = "django.core.mail.backends.dummy.EmailBackend"
    if hasattr(settings, "MAILERS"):
        settings.MAILERS = {"default": {"BACKEND": dummy}}
    else:
        settings.EMAIL_BACKEND = dummy
    response = start(admin_client, address, send_email="on")
    assert "This site is not set up to send e-mails." in str(response.context["form"].errors)
    assert not sandbox.requests()


def test_options_are_folded_and_their_defaults_named(admin_client: Client, configure: Any) -> None:
    address = draft(admin_client, customers(2))
    page = text(admin_client, address)
    assert '<details class="kapso-options">' in page
    assert (
        "Usual: the customer chooses how to connect · the customer&#x27;s language · who pays Meta "
        "is set at Kapso</span>"
    ) in page
    configure(
        SETUP_LINK_DEFAULTS={
            "allowed_connection_types": ["dedicated"],
            "language": "es",
            "meta_billing_mode": "customer_managed",
            "provision_phone_number": True,
            "theme_config": {"primary_color": "#123456"},
        }
    )
    assert form_of(admin_client, address).default_options() == (
        "only without the app · the customer's language, otherwise Spanish · the customer pays "
        "Meta · new phone number · colours of this site"
    )
    for language, name in (("hi", "Hindi"), ("", "Spanish")):
        address = draft(admin_client, [make_customer(kapso_id=None, language=language)])
        assert f"app · {name} · the customer pays" in text(admin_client, address)


@pytest.mark.parametrize(
    ("choices", "is_open"),
    [
        ({"language": "tlh"}, True),
        ({"language": "es"}, True),
        ({"next_url": "//elsewhere.example/"}, True),
        ({"own_text_color": "on", "text_color": "#ffffff"}, True),
        ({}, False),
    ],
    ids=["invalid", "changed", "page", "colour", "usual"],
)
def test_options_are_open_if_one_is_wrong_or_not_as_usual(
    admin_client: Client, choices: dict[str, str], is_open: bool
) -> None:
    address = draft(admin_client, customers(1))
    data = {**CHOICES, **choices, "send_email": "on"}  # which nobody can receive
    page = admin_client.post(address, data).content.decode()
    assert "has an e-mail address." in page
    assert ('<details class="kapso-options" open>' in page) == is_open


# Leaving out


def mixed() -> list[Customer]:
    """A customer who is connected, one with a usable link, one with both, and two others."""
    rows = [make_customer(name=f"Customer {n}", email=f"{n}@example.com") for n in range(5)]
    make_connection(rows[0])
    make_link(rows[1])
    make_connection(rows[2])
    make_link(rows[2])
    make_link(rows[3], status="revoked")
    Customer.objects.filter(pk=rows[4].pk).update(email="")
    return rows


LEAVE_OUT = {"leave_out_connected": "on", "leave_out_invited": "on"}


def test_those_who_need_no_link_are_left_out_of_many(
    admin_client: Client, sandbox: Sandbox
) -> None:
    address = draft(admin_client, mixed())
    page = " ".join(text(admin_client, address).split())
    assert "Leave out the 2 customers who are connected" in page
    assert "Leave out the 2 customers who have a link that works" in page
    assert page.count('class="kapso-note kapso-note-plain"') == 2, "nobody loses a link unasked"
    assert 'class="kapso-note">' not in page
    assert len(re.findall(r"<strong data-kapso-left-out=\"[^\"]+\">left out", page)) == 3
    form = form_of(admin_client, address)
    assert all(form[name].value() for name in LEAVE_OUT)
    assert button(admin_client, address) == "Create 2 links and e-mail 1 of them"
    response = start(admin_client, address, **LEAVE_OUT)
    assert warnings(response) == ["3 customers were left out."]
    batch = InvitationBatch.objects.get()
    left = batch.invitations.values_list("customer__name", flat=True)
    assert sorted(left) == ["Customer 3", "Customer 4"]
    assert "2 done" in text(admin_client, address)


@pytest.mark.parametrize(
    ("choices", "left"),
    [
        ({}, [0, 1, 2, 3, 4]),
        ({"leave_out_connected": "on"}, [1, 3, 4]),
        ({"leave_out_invited": "on"}, [0, 3, 4]),
    ],
    ids=["nobody", "connected", "with-link"],
)
def test_only_those_whom_the_user_leaves_out_are_left_out(
    admin_client: Client, choices: dict[str, str], left: list[int]
) -> None:
    address = draft(admin_client, mixed())
    with queue_without_worker():
        response = start(admin_client, address, **choices)
    assert len(warnings(response)) == (len(left) < 5)
    names = InvitationBatch.objects.get().invitations.values_list("customer__name", flat=True)
    assert sorted(names) == [f"Customer {n}" for n in left]


def test_the_texts_for_every_choice_are_in_the_page(admin_client: Client) -> None:
    texts = admin_client.get(draft(admin_client, mixed())).context["texts"]
    assert texts["button"].texts == {
        "000": "Create 5 links",
        "001": "Create 5 links and e-mail 4 of them",
        "010": "Create 3 links",
        "011": "Create 3 links and e-mail 2 of them",
        "100": "Create 3 links",
        "101": "Create 3 links and e-mail 2 of them",
        "110": "Create 2 links",
        "111": "Create 2 links and e-mail 1 of them",
    }
    assert texts["email"].texts["111"] == "E-mail to the 1 customer who has an address"
    assert texts["without_email"].texts["110"] == ""
    assert texts["without_email"].texts["111"].startswith("1 customer has no e-mail address")


def test_email_is_not_chosen_if_only_those_who_are_left_out_have_an_address(
    admin_client: Client,
) -> None:
    connected, other = make_customer(email="c@example.com"), make_customer(email="")
    make_connection(connected)
    address = draft(admin_client, [connected, other])
    assert form_of(admin_client, address)["send_email"].value() == ""
    assert button(admin_client, address) == "Create the link"
    texts = admin_client.get(address).context["texts"]
    assert texts["email"].texts["111"] == "E-mail: none of these customers has an address"
    assert texts["button"].texts["111"] == "Create the link"
    assert texts["button"].texts["001"] == "Create 2 links and e-mail 1 of them"


def test_without_scripts_the_server_updates_the_numbers(
    admin_client: Client, sandbox: Sandbox
) -> None:
    address = draft(admin_client, mixed())
    data = {**CHOICES, "do": "update", "leave_out_connected": "on", "next_url": "/welcome/"}
    response = admin_client.post(address, data)
    page = response.content.decode()
    assert 'value="Create 3 links"' in page
    assert 'value="/welcome/"' in page
    assert "errornote" not in page
    assert InvitationBatch.objects.get().started_at is None
    assert not sandbox.requests()


def test_a_customer_who_was_chosen_alone_is_not_left_out(
    admin_client: Client, sandbox: Sandbox
) -> None:
    (row,) = customers(1)
    make_connection(row)
    make_link(row)
    address = draft(admin_client, [row])
    page = text(admin_client, address)
    assert "Leave out" not in page
    assert page.count('class="kapso-note"') == 2
    start(admin_client, address, **LEAVE_OUT)
    assert "1 done" in text(admin_client, address)


def test_nobody_is_left_out_at_first_if_nobody_else_is_left(admin_client: Client) -> None:
    rows = customers(2)
    for row in rows:
        make_connection(row)
    assert not form_of(admin_client, draft(admin_client, rows))["leave_out_connected"].value()
    (invited,) = customers(1)
    make_link(invited)
    form = form_of(admin_client, draft(admin_client, [*rows, invited]))
    assert form["leave_out_connected"].value()
    assert not form["leave_out_invited"].value()


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_draft_of_which_nobody_is_left_gets_a_message(
    admin_client: Client, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    rows = customers(2)
    address = draft(admin_client, rows)
    make_connection(rows[0])

    def connect(*_args: Any, **_kwargs: Any) -> bool:
        make_connection(rows[1])
        return True

    if when == "before":
        connect()
    else:  # after the customers were counted, and before the batch is started
        monkeypatch.setattr(mailer, "is_set_up", connect)
    response = start(admin_client, address, leave_out_connected="on")
    assert "Nobody is left" in response.content.decode()
    batch = InvitationBatch.objects.get()
    assert (batch.started_at, batch.invitations.count()) == (None, 2)
    assert not sandbox.requests()


# Two members of staff


def second_user(name: str = "Bea") -> Client:
    client = Client()
    client.force_login(User.objects.create_superuser(name))
    return client


def test_form_names_who_invited_a_customer_recently(admin_client: Client, sandbox: Sandbox) -> None:
    rows = customers(3)
    create(second_user(), rows[:1])
    create(admin_client, rows[1:2])
    onboarding.create_setup_link(rows[2])
    events = TimelineEvent.objects.filter(kind="setup_link_created")
    events.update(occurred_at=timezone.now() - timedelta(minutes=3, seconds=1))
    page = html.unescape(text(admin_client, draft(admin_client, rows))).replace("\xa0", " ")
    for words in (
        "<bdi>Bea</bdi> created a link for <bdi>Customer 0</bdi> 3 minutes ago.",
        "You created a link for <bdi>Customer 1</bdi> 3 minutes ago.",
        "A link for <bdi>Customer 2</bdi> was created 3 minutes ago.",
    ):
        assert words in page
    assert "Since you chose" not in page
    events.update(occurred_at=timezone.now() - timedelta(days=2))
    assert "3 minutes" not in text(admin_client, draft(admin_client, rows))
    assert "created a link for" not in text(admin_client, draft(admin_client, rows))


@pytest.mark.parametrize("is_done", [True, False], ids=["created", "requested"])
def test_second_member_of_staff_is_told_of_the_first_and_nothing_is_created(
    admin_client: Client, sandbox: Sandbox, is_done: bool
) -> None:
    rows = customers(2, email="c@example.com")
    bea = second_user()
    theirs, mine = draft(bea, rows[:1]), draft(admin_client, rows)
    if is_done:
        start(bea, theirs)
    else:
        with queue_without_worker():
            start(bea, theirs)
    count = len(link_requests(sandbox))
    response = start(admin_client, mine, send_email="on")
    page = html.unescape(response.content.decode()).replace("\xa0", " ")
    assert "Somebody else was faster. Nothing has been created yet." in page
    what = "created" if is_done else "requested"
    assert f"<bdi>Bea</bdi> {what} a link for <bdi>Customer 0</bdi> 0 minutes ago." in page
    batch = InvitationBatch.objects.latest("pk")
    assert (batch.started_at, batch.invitations.count()) == (None, 2)
    assert (len(link_requests(sandbox)), outbox.outbox) == (count, [])
    # The same choice again is not enough.
    assert start(admin_client, mine).status_code == 200
    told = re.search(r'name="invite_anyway" id="id_invite_anyway" value="([^"]+)"', page)
    assert told
    response = start(admin_client, mine, invite_anyway=told[1])
    assert response["Location"] == mine
    assert "2 done" in text(admin_client, mine)


def test_what_happened_after_the_user_was_told_is_told_again(
    admin_client: Client, sandbox: Sandbox
) -> None:
    (row,) = customers(1)
    bea = second_user()
    first, second, mine = draft(bea, [row]), draft(bea, [row]), draft(admin_client, [row])
    start(bea, first)
    told = re.search(r'id="id_invite_anyway" value="([^"]+)"', text(admin_client, mine))
    assert told
    start(bea, second, invite_anyway=str(timezone.now().timestamp()))
    assert start(admin_client, mine, invite_anyway=told[1]).status_code == 200
    assert len(link_requests(sandbox)) == 2


def test_customers_who_are_left_out_do_not_stop_the_others(
    admin_client: Client, sandbox: Sandbox
) -> None:
    rows = customers(2)
    make_link(rows[0])
    mine = draft(admin_client, rows)
    bea = second_user()
    start(bea, draft(bea, rows[:1]))
    response = start(admin_client, mine, leave_out_invited="on")
    assert response["Location"] == mine
    assert warnings(response) == ["1 customer was left out."]


@pytest.mark.parametrize("told", ["x", "-1", "nan", "inf", "9" * 400, "1e300", "\x00", "1,5"])
def test_hostile_time_does_not_create_a_second_link(
    admin_client: Client, sandbox: Sandbox, told: str
) -> None:
    (row,) = customers(1)
    mine, bea = draft(admin_client, [row]), second_user()
    start(bea, draft(bea, [row]))
    assert start(admin_client, mine, invite_anyway=told).status_code == 200
    assert len(link_requests(sandbox)) == 1


@pytest.mark.django_db(transaction=True)
def test_of_two_at_the_same_moment_one_is_told(admin_client: Client, sandbox: Sandbox) -> None:
    rows = customers(3, email="c@example.com")
    clients = [admin_client, second_user()]
    addresses = [draft(client, rows) for client in clients]
    both_ready, both_started = Barrier(2), Barrier(2)

    def wait_for_the_other(execute: Any, sql: str, *args: Any) -> Any:
        result = execute(sql, *args)
        if sql.startswith("UPDATE") and InvitationBatch._meta.db_table in sql:
            # The other one only comes this far before the commit if nothing makes it wait.
            with suppress(BrokenBarrierError):
                both_started.wait(1)
        return result

    def post(client: Client, address: str) -> HttpResponse:
        try:
            both_ready.wait()
            with connections["default"].execute_wrapper(wait_for_the_other):
                return start(client, address, send_email="on")
        finally:
            connections.close_all()

    with ThreadPoolExecutor(2) as executor:
        responses = list(executor.map(post, clients, addresses))
    assert sorted(response.status_code for response in responses) == [200, 302]
    (told,) = [response for response in responses if response.status_code == 200]
    assert "Somebody else was faster." in told.content.decode()
    assert len(link_requests(sandbox)) == len(outbox.outbox) == 3
    assert InvitationBatch.objects.filter(started_at=None).count() == 1


# E-mail


def test_failed_emails_are_sent_again_from_the_page(admin_client: Client, sandbox: Sandbox) -> None:
    address = draft(admin_client, customers(1, email="nobody"))
    start(admin_client, address, send_email="on")
    page = text(admin_client, address)
    assert "Finished, but 1 e-mail could not be sent." in page
    assert "every customer has a link" not in page
    assert "has no valid e-mail address" in text(admin_client, f"{address}?show=email_failed")
    Customer.objects.update(email="c@example.com")
    assert "Send the failed e-mail again" in page
    assert "Try the failed ones again" not in page
    admin_client.post(address, {"do": "send"})
    (message,) = outbox.outbox
    assert message.to == ["c@example.com"]
    assert "Finished: every customer has a link." in text(admin_client, address)


def test_page_says_when_the_mail_server_is_tried_again(
    admin_client: Client, sandbox: Sandbox, settings: Any
) -> None:
    with SMTPServer(answer=lambda command, _to: "450 Busy" * (command == "MAIL")) as server:
        use_mail_server(settings, server)
        address = draft(admin_client, customers(1, email="c@example.com"))
        start(admin_client, address, send_email="on")
        page = text(admin_client, address)
        assert "The mail server does not accept all e-mails yet. Next attempt: " in page
        assert "To be sent later" in page
        server.answer = lambda command, recipient: ""
        Invitation.objects.update(next_attempt_at=timezone.now())
        admin_client.post(address, {"do": "work"})
        assert "1 e-mailed" in text(admin_client, address)
    assert server.recipients == ["c@example.com"]


def test_the_links_are_emailed_if_chosen(admin_client: Client, sandbox: Sandbox) -> None:
    rows = [*customers(1, email="c@example.com"), *customers(1)]
    address = draft(admin_client, rows)
    assert "1 customer has no e-mail address" in text(admin_client, address)
    start(admin_client, address, send_email="on")
    page = text(admin_client, address)
    (message,) = outbox.outbox
    assert message.to == ["c@example.com"]
    assert connect_url(Customer.objects.get(email="c@example.com")) in message.body
    assert "1 e-mailed" in page
    assert "1 without an e-mail address" in page
    assert "not e-mailed" not in page
    assert "E-mail: No address" in page
    assert "kapso-error" not in page
    assert "Finished: every customer has a link. 1 customer has no e-mail address" in page
    assert 'class="kapso-note kapso-note-good"' in page
    assert "Send the failed" not in page
    page = text(admin_client, f"{address}?show=no_address")
    assert "No e-mail address (1)" in page
    assert page.count('class="kapso-result"') == 1
    row = text(admin_client, "/admin/kapso_connect/invitationbatch/")
    assert "1 sent, 1 without an address" in row
    assert "Finished with failures</span>" not in row


def test_users_who_may_not_send_have_no_such_option(
    staff: Callable[..., Client], sandbox: Sandbox
) -> None:
    client = staff("view_customer", "create_setup_link")
    address = draft(client, customers(1, email="c@example.com"))
    assert "send_email" not in text(client, address)
    start(client, address, send_email="on")
    assert link_requests(sandbox)
    assert not outbox.outbox


# Once is once


def test_posting_the_same_form_again_creates_nothing(
    admin_client: Client, sandbox: Sandbox
) -> None:
    address = draft(admin_client, customers(2))
    for language in ("es", "hi"):
        assert start(admin_client, address, language=language)["Location"] == address
    assert LogEntry.objects.count() == 2
    assert len(link_requests(sandbox)) == 2
    assert {link.options["language"] for link in SetupLink.objects.all()} == {"es"}


def test_loading_the_page_creates_nothing(admin_client: Client, sandbox: Sandbox) -> None:
    batch = invitations.make_batch([row.pk for row in customers(2)])
    invitations.start(batch)
    page = text(admin_client, f"{LIST}whatsapp/batch/{batch.pk}/")
    assert "data-kapso-work" in page
    assert "2 left" in page
    assert not sandbox.requests()


def test_continuing_creates_the_remaining_links(admin_client: Client, sandbox: Sandbox) -> None:
    batch = invitations.make_batch([row.pk for row in customers(2)])
    invitations.start(batch)
    address = f"{LIST}whatsapp/batch/{batch.pk}/?show=done"
    assert admin_client.post(address, {"do": "work"})["Location"] == address
    assert "2 done" in text(admin_client, address)
    assert len(link_requests(sandbox)) == 2


def test_with_task_workers_the_page_only_watches(admin_client: Client, sandbox: Sandbox) -> None:
    address = draft(admin_client, customers(2))
    with queue_without_worker():
        start(admin_client, address)
        page = text(admin_client, address)
        assert "data-kapso-poll" in page
        assert "data-kapso-work" not in page
        assert 'http-equiv="refresh"' in page
        assert not sandbox.requests()
        batch = InvitationBatch.objects.get()
        batch.invitations.update(next_attempt_at=timezone.now() - timedelta(minutes=5))
        assert IDLE not in text(admin_client, address), "it has only just begun"
        InvitationBatch.objects.update(started_at=timezone.now() - timedelta(minutes=5))
        assert IDLE in text(admin_client, address)
        assert batch.invitations.first().acquire_lease()
        assert IDLE not in text(admin_client, address), "a worker does it"
        batch.invitations.update(leased_at=None, leased_until=None)
        admin_client.post(address, {"do": "work"})
        assert "2 done" in text(admin_client, address)


# What can go wrong


def test_customers_that_fail_are_listed_and_can_be_retried(
    admin_client: Client, sandbox: Sandbox
) -> None:
    rule = {"match": CREATE_LINK, "kind": "status", "status": 422, "times": 1}
    sandbox.faults(api=[{**rule, "after": n} for n in (0, 9)])
    rows = customers(20)
    address = draft(admin_client, rows)
    start(admin_client, address)
    page = text(admin_client, address)
    assert "Finished, but 2 customers have no link." in page
    assert page.count("The request was rejected") == 2
    failed = Customer.objects.filter(setup_links=None)
    shown = text(admin_client, f"{address}?show=failed")
    for customer in failed:
        assert f'href="{LIST}{customer.pk}/change/">{customer.name}</a>' in shown
    admin_client.post(address, {"do": "resume"})
    assert "Finished: every customer has a link." in text(admin_client, address)
    assert len(sandbox.state()["setup_links"]) == 20


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "API key"),
        pytest.param(403, "API key", marks=pytest.mark.slow),
        pytest.param(402, "Kapso plan", marks=pytest.mark.slow),
    ],
)
def test_error_that_concerns_every_customer_stops_the_batch_until_it_is_resumed(
    admin_client: Client, sandbox: Sandbox, status: int, words: str
) -> None:
    sandbox.faults(api=[{"kind": "status", "status": status}])
    address = draft(admin_client, customers(30))
    start(admin_client, address)
    page = text(admin_client, address)
    assert page.count(words) == 1
    assert "30 left" in page
    assert "Resume" in page
    assert "data-kapso-poll" not in page
    sandbox.clear_faults()
    admin_client.post(address, {"do": "resume"})
    assert "30 done" in text(admin_client, address)


def test_too_many_requests_make_the_page_wait(admin_client: Client, sandbox: Sandbox) -> None:
    sandbox.faults(api=[{"kind": "status", "status": 429, "retry_after": 600}])
    page = create(admin_client, customers(3))
    assert "Kapso could not do the rest yet. Next attempt:" in page
    assert 'data-kapso-poll="10000"' in page


def test_deleted_customer_is_left_out(admin_client: Client, sandbox: Sandbox) -> None:
    one, gone = customers(2)
    address = draft(admin_client, [one, gone])
    gone.delete()
    assert "Create the link" in text(admin_client, address)
    start(admin_client, address)
    assert "1 done" in text(admin_client, address)
    one.delete()
    assert "have been deleted" in text(admin_client, address)


def test_draft_whose_customers_were_deleted_leads_back(admin_client: Client) -> None:
    (gone,) = customers(1)
    address = draft(admin_client, [gone])
    gone.delete()
    for response in (admin_client.get(address), start(admin_client, address)):
        assert response["Location"] == LIST
        assert "have been deleted" in warnings(response)[0]


def test_revoked_link_is_not_shown(admin_client: Client, sandbox: Sandbox) -> None:
    address = draft(admin_client, customers(1))
    start(admin_client, address)
    onboarding.revoke_setup_link(SetupLink.objects.get())
    page = text(admin_client, address)
    assert "personal link no longer works" in html.unescape(page)
    assert "/whatsapp/connect/" not in page


@pytest.mark.parametrize(
    "name",
    ["N" * 255, "مخبز السعادة", "\N{FACE WITH TEARS OF JOY} Bakery", "<script>alert(1)</script>"],
    ids=["long", "rtl", "emoji", "script"],
)
def test_any_name_is_shown(admin_client: Client, sandbox: Sandbox, name: str) -> None:
    row = make_customer(name=name, kapso_id=None, email="c@example.com")
    page = create(admin_client, [row], send_email="on")
    assert "1 e-mailed" in page
    assert "<script>alert" not in page
    assert name.replace("<", "&lt;").replace(">", "&gt;") in page


@pytest.mark.parametrize(
    ("change", "words"), [({"PUBLIC_URL": ""}, "PUBLIC_URL"), ({"NONSENSE": 1}, "NONSENSE")]
)
def test_incomplete_settings_get_a_message_before_the_form(
    admin_client: Client, configure: Any, change: dict[str, Any], words: str
) -> None:
    address = draft(admin_client, customers(1))
    configure(**change)
    response = admin_client.get(address)
    assert response["Location"] == LIST
    assert words in warnings(response)[0]


def test_site_without_the_pages_gets_a_message(admin_client: Client, settings: Any) -> None:
    address = draft(admin_client, customers(1))
    settings.ROOT_URLCONF = "tests.sites.admin_only_urls"
    response = admin_client.get(address)
    assert "does not include kapso_connect.urls" in warnings(response)[0]


@pytest.mark.parametrize(
    "hostile",
    [
        "abc",
        "1;2",
        ",",
        "-1",
        "0x1",
        "9" * 20,
        "1," * 500,
        "%00",
        "_zz",
        "1 OR 1=1",
        "1,002",
        "1.002",
    ],
)
def test_hostile_key_gets_a_message(admin_client: Client, hostile: str) -> None:
    for pk in (1, 2, 1002):
        make_customer(pk=pk)
    response = admin_client.post(invite_url(hostile))
    assert response["Location"] == LIST
    assert warnings(response)
    assert not InvitationBatch.objects.exists()


@pytest.mark.parametrize("selected", ["abc", "9" * 40, "", "1,2"])
@pytest.mark.parametrize("across", ["0", "1"])
def test_a_hostile_selection_gets_a_message(
    admin_client: Client, selected: str, across: str
) -> None:
    customers(1)
    data = {"action": "create_setup_links", "_selected_action": selected, "select_across": across}
    response = admin_client.post(LIST, data)
    assert response["Location"] == LIST
    assert warnings(response)


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"do": "explode"},
        {"do": ["work", "resume"], "\x00": "\x00"},
        dict.fromkeys(CHOICES, "\x00"),
        dict.fromkeys([*CHOICES, *THEME_COLORS], "9" * 5000),
        {f"own_{name}": "x" for name in THEME_COLORS},
    ],
    ids=["nothing", "unknown", "several", "nul", "huge", "colours"],
)
def test_nonsense_starts_nothing(
    admin_client: Client, sandbox: Sandbox, data: dict[str, Any]
) -> None:
    address = draft(admin_client, customers(1))
    assert admin_client.post(address, data).status_code == 200
    assert InvitationBatch.objects.get().started_at is None
    invitations.start(InvitationBatch.objects.get())
    if data.get("do") != ["work", "resume"]:
        assert admin_client.post(address, data).status_code == 302
        assert not sandbox.requests()


@pytest.mark.parametrize("pk", ["0", "999999", "9" * 19, "9" * 40])
def test_unknown_batch_is_not_found(admin_client: Client, pk: str) -> None:
    assert admin_client.get(f"{LIST}whatsapp/batch/{pk}/").status_code == 404


# Who may


@pytest.mark.parametrize(
    ("permissions", "allowed"),
    [
        (["view_customer", "create_setup_link"], True),
        (["change_customer", "create_setup_link"], True),
        (["view_customer", "send_setup_link"], False),
        (["change_customer", "add_customer", "delete_customer"], False),
        (["create_setup_link"], False),
        ([], False),
    ],
    ids=["view", "change", "may-not-create", "may-only-change", "may-not-view", "nothing"],
)
def test_every_step_needs_the_permission(
    staff: Callable[..., Client], sandbox: Sandbox, permissions: list[str], allowed: bool
) -> None:
    rows = customers(1)
    client = staff(*permissions)
    batch = invitations.make_batch([rows[0].pk], created_by=User.objects.get())
    address = f"{LIST}whatsapp/batch/{batch.pk}/"
    assert ("create_setup_links" in client.get(LIST).content.decode()) == allowed
    if allowed:
        assert start(client, address)["Location"] == address
        assert connect_url(Customer.objects.get()) in text(client, address)
        User.objects.get().user_permissions.clear()
        assert client.get(address).status_code == 403
    else:
        assert act(client, rows).status_code in {200, 302, 403}
        assert client.post(invite_url(rows[0].pk)).status_code == 403
        assert client.get(address).status_code == 403
        assert start(client, address).status_code == 403
        assert InvitationBatch.objects.get() == batch
        invitations.start(batch)
        for do in ("work", "resume"):
            assert client.post(address, {"do": do}).status_code == 403
        assert not sandbox.requests()


def test_users_who_may_not_send_cannot_resume_a_batch_that_sends(
    staff: Callable[..., Client], sandbox: Sandbox
) -> None:
    batch = invitations.make_batch([customers(1, email="a@example.com")[0].pk])
    invitations.start(batch, send_email=True)
    batch.invitations.update(status="failed", next_attempt_at=None)
    client = staff("view_customer", "create_setup_link")
    address = f"{LIST}whatsapp/batch/{batch.pk}/"
    assert "Try the failed ones again" not in text(client, address)
    assert client.post(address, {"do": "resume"}).status_code == 403
    assert not outbox.outbox
    User.objects.get().user_permissions.add(Permission.objects.get(codename="send_setup_link"))
    assert "Try the failed ones again" in text(client, address)
    assert client.post(address, {"do": "resume"}).status_code == 302
    assert len(outbox.outbox) == 1


@pytest.mark.parametrize("who", ["anonymous", "customer"])
def test_users_who_are_not_staff_are_sent_to_the_login(client: Client, who: str) -> None:
    if who == "customer":
        client.force_login(User.objects.create_user("no-staff"))
    address = f"{LIST}whatsapp/batch/1/"
    for response in (client.post(invite_url(1)), client.get(address), client.post(address)):
        assert response.status_code == 302
        assert response["Location"].startswith("/admin/login/")


def test_a_form_without_a_token_creates_nothing(admin_user: User, sandbox: Sandbox) -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(admin_user)
    batch = invitations.make_batch([customers(1)[0].pk], created_by=admin_user)
    assert start(client, f"{LIST}whatsapp/batch/{batch.pk}/").status_code == 403
    assert client.post(invite_url(1)).status_code == 403
    assert not sandbox.requests()


def test_draft_is_visible_to_its_author_only_and_a_batch_to_all_staff(
    admin_client: Client, sandbox: Sandbox
) -> None:
    address = draft(admin_client, customers(1))
    other = Client()
    other.force_login(User.objects.create_superuser("other"))
    assert other.get(address).status_code == 404
    assert start(other, address).status_code == 404
    start(admin_client, address)
    assert "1 done" in text(other, address)


def test_customers_that_the_site_keeps_from_a_user_stay_hidden(
    admin_client: Client, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kapso_connect.admin import CustomerAdmin

    mine, foreign = customers(2)
    address = draft(admin_client, [mine, foreign])
    start(admin_client, address)
    everything = CustomerAdmin.get_queryset
    monkeypatch.setattr(
        CustomerAdmin,
        "get_queryset",
        lambda self, request: everything(self, request).exclude(pk=foreign.pk),
    )
    page = text(admin_client, address)
    assert mine.name in page
    assert foreign.name not in page
    assert connect_url(Customer.objects.get(pk=foreign.pk)) not in page
    assert "A customer you do not have permission to view" in page
    response = admin_client.post(invite_url(foreign.pk))
    assert response["Location"] == LIST


# In a site's own admin


class TestInASitesOwnAdmin:
    """In another admin site, where the package's own models are not registered."""

    def bakeries(self, count: int) -> list[Bakery]:
        return Bakery.objects.bulk_create(
            Bakery(title=f"Bakery {n}", contact="baker@example.com", reference=f"bakery-{n}")
            for n in range(count)
        )

    def test_from_the_action_to_the_links(self, admin_client: Client, sandbox: Sandbox) -> None:
        bakeries = self.bakeries(3)
        page = create(admin_client, bakeries, HOST_LIST)
        assert "3 done" in page
        for bakery in bakeries:
            assert f'href="{HOST_LIST}{bakery.pk}/change/">Bakery: {bakery.title}</a>' in page
            customer = Customer.objects.get(external_customer_id=bakery.reference)
            assert (customer.owner, customer.name) == (bakery, bakery.title)
            assert customer.email == bakery.contact
            assert connect_url(customer) in page
        logged = LogEntry.objects.values_list("content_type__model", flat=True)
        assert sorted(logged) == ["bakery"] * 3 + ["customer"] * 3

    @pytest.mark.parametrize(
        ("make", "url"),
        [
            (lambda: Shop.objects.create(name="Shop"), "/admin/host_site/shop/"),
            (lambda: Branch.objects.create(code="a/b,c_d"), "/admin/host_site/branch/"),
            (lambda: Franchise.objects.create(title="Franchise"), "/admin/host_site/franchise/"),
        ],
        ids=["uuid", "text", "parent"],
    )
    def test_keys_of_any_kind(
        self, admin_client: Client, sandbox: Sandbox, make: Callable[[], Any], url: str
    ) -> None:
        obj = make()
        response = admin_client.post(invite_url(quote(obj.pk), url))
        start(admin_client, response["Location"])
        page = text(admin_client, response["Location"])
        assert "1 done" in page
        assert f'href="{url}{quote(obj.pk)}/change/">{obj}</a>' in page
        assert getattr(Customer.objects.get().get_owner(), "pk", None) == obj.pk

    @pytest.mark.parametrize("count", [3, 150])
    def test_many_customers_are_made_in_few_queries(
        self,
        admin_client: Client,
        django_assert_max_num_queries: Callable[..., Any],
        count: int,
    ) -> None:
        bakeries = self.bakeries(count)
        for _again in range(2):
            with django_assert_max_num_queries(30):
                act(admin_client, bakeries[:2], HOST_LIST, select_across="1")
            assert Customer.objects.filter(email="baker@example.com").count() == count
            Customer.objects.update(email="")

    def test_customers_are_brought_up_to_date(self, admin_client: Client) -> None:
        bakeries = self.bakeries(3)
        draft(admin_client, bakeries, HOST_LIST)
        Customer.objects.update(name="Old", kapso_id=None, email="", language="es")
        known = Customer.objects.get(external_customer_id="bakery-1")
        Customer.objects.filter(pk=known.pk).update(kapso_id="k")
        Bakery.objects.filter(pk=bakeries[0].pk).update(reference="another", contact="")
        Bakery.objects.filter(pk=bakeries[1].pk).update(reference="another-one")
        draft(admin_client, bakeries, HOST_LIST)
        first, second, third = (self.customer(bakery) for bakery in bakeries)
        assert (first.name, first.external_customer_id, first.email) == ("Bakery 0", "another", "")
        assert second.external_customer_id == "bakery-1", "Kapso knows the customer by it"
        assert (third.email, third.language) == ("baker@example.com", "es")
        assert Customer.objects.count() == 3

    def customer(self, bakery: Bakery) -> Customer:
        return Customer.objects.get(owner_id=str(bakery.pk))

    @pytest.mark.parametrize("exists", [False, True], ids=["new", "known"])
    def test_external_id_of_another_customer_fails_only_that_customer(
        self, admin_client: Client, exists: bool
    ) -> None:
        bakeries = self.bakeries(3)
        if exists:
            draft(admin_client, bakeries, HOST_LIST)
        Bakery.objects.filter(pk=bakeries[1].pk).update(reference="taken")
        branch = Branch.objects.create(code="a")
        Customer.objects.for_owner(branch, external_customer_id="taken")
        response = act(admin_client, bakeries, HOST_LIST)
        assert "external id is that of another customer" in warnings(response)[0]
        assert InvitationBatch.objects.order_by("pk").last().invitations.count() == 2

    @pytest.mark.parametrize(
        "data",
        [
            {"title": "N" * 500},
            {"title": "مخبز"},
            {"title": "\N{BREAD}"},
            {"contact": "nonsense"},
            {"locale": "tlh-Latn"},
        ],
        ids=["long", "rtl", "emoji", "no-email", "language"],
    )
    def test_any_data_is_accepted(
        self, admin_client: Client, sandbox: Sandbox, data: dict[str, str]
    ) -> None:
        page = create(admin_client, [Bakery.objects.create(**data)], HOST_LIST, send_email="")
        assert "1 done" in page

    def test_batch_of_another_admin_shows_no_customers(
        self, admin_client: Client, sandbox: Sandbox
    ) -> None:
        (row,) = customers(1)
        address = draft(admin_client, [row])
        start(admin_client, address)
        page = text(admin_client, address.replace(LIST, HOST_LIST))
        assert row.name not in page
        assert connect_url(Customer.objects.get()) not in page

    def test_key_in_another_case_is_another_key(
        self, admin_client: Client, sandbox: Sandbox
    ) -> None:
        kind = ContentType.objects.get_for_model(Branch)
        (row,) = customers(1, owner_type=kind, owner_id="HARBOUR")
        Branch.objects.create(code="harbour")
        address = draft(admin_client, [row])
        start(admin_client, address)
        page = text(admin_client, address.replace("kapso_connect/customer", "host_site/branch"))
        assert "A customer you do not have permission to view" in page

    @pytest.mark.parametrize(
        ("model", "owner_id"),
        combinations([Bakery, Shop, Franchise], ["", "x", "007", "9" * 50, None]),
    )
    def test_invalid_owner_id_shows_no_customer(
        self, admin_client: Client, sandbox: Sandbox, model: Any, owner_id: str | None
    ) -> None:
        kind = ContentType.objects.get_for_model(model)
        (row,) = customers(1, owner_type=kind, owner_id=owner_id)
        address = draft(admin_client, [row])
        start(admin_client, address)
        page = text(
            admin_client,
            address.replace("kapso_connect/customer", f"host_site/{model._meta.model_name}"),
        )
        assert "A customer you do not have permission to view" in page

    @pytest.mark.parametrize("hostile", ["x", "%00", "_5F", "9" * 50])
    @pytest.mark.parametrize("model", ["bakery", "shop", "branch"])
    def test_hostile_key_gets_a_message(
        self, admin_client: Client, model: str, hostile: str
    ) -> None:
        url = f"/admin/host_site/{model}/"
        response = admin_client.post(invite_url(hostile, url))
        assert response["Location"] == url
        assert warnings(response)

    def test_permission_to_view_customers_is_not_enough_for_bakeries(
        self, staff: Callable[..., Client]
    ) -> None:
        client = staff("view_customer", "create_setup_link")
        response = client.post(invite_url(1, HOST_LIST))
        assert response.status_code == 403


# Transactions


@pytest.fixture
def atomic_requests() -> Iterator[None]:
    settings = connections["default"].settings_dict
    before = settings["ATOMIC_REQUESTS"]
    settings["ATOMIC_REQUESTS"] = True
    yield
    settings["ATOMIC_REQUESTS"] = before


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("atomic_requests")
def test_no_transaction_is_open_while_kapso_is_asked(
    admin_client: Client, sandbox: Sandbox
) -> None:
    pages: list[str] = []
    invited = customers(2)
    check_no_transaction_during(
        sandbox,
        "^POST .*/setup_links$",
        lambda: pages.append(create(admin_client, invited)),
    )
    assert "2 done" in pages[0]


def test_one_request_works_for_a_limited_time(
    admin_client: Client, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(invitations, "REQUEST_SECONDS", 0)
    page = create(admin_client, customers(2))
    assert "2 left" in page
    assert 'data-kapso-poll="100"' in page


def test_a_batch_too_large_to_log_one_by_one_is_logged_as_one(
    admin_client: Client, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "MAX_LOGGED_CUSTOMERS", 2)
    create(admin_client, customers(3))
    (entry,) = LogEntry.objects.all()
    assert entry.get_edited_object() == InvitationBatch.objects.get()
    assert SetupLink.objects.filter(created_by=entry.user).count() == 3
