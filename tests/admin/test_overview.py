"""The overview in the admin, as staff see it."""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from django.db import connection as database
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from kapso_connect.admin import CustomerAdmin
from kapso_connect.admin.forms import idle_before
from kapso_connect.models import (
    Connection,
    Customer,
    Health,
    InvitationBatch,
    SetupLink,
    TimelineEvent,
)
from kapso_connect.monitoring import reports
from kapso_connect.onboarding import setup_links

from ..factories import make_connection, make_customer, make_link

URL = "/admin/kapso_connect/customer/overview/"
LIST = "/admin/kapso_connect/customer/"
VIEW_PERMISSIONS = ("view_customer", "view_setuplink", "view_connection")

pytestmark = pytest.mark.django_db

DAY = timedelta(days=1)


def populate() -> None:
    """Customers at every step, and numbers with everything that can be wrong with them."""
    now = timezone.now()
    for number in range(12):
        link = make_link(
            make_customer(name=f"Company {number}"),
            created_at=now - timedelta(hours=3 * number),
            opened_at=now if number % 3 else None,
            expires_at=now + DAY,
        )
        if number % 3 == 1:
            setup_links.record_failure(link, "link_expired" if number > 5 else "unheard_of")
    for minutes in (5, 90, 4000):
        link = make_link(
            created_at=now - timedelta(minutes=minutes),
            opened_at=now,
            setup_status=SetupLink.SetupStatus.COMPLETED,
            status=SetupLink.Status.USED,
        )
        TimelineEvent.objects.create(
            kind="connected", source="webhook", setup_link=link, customer=link.customer
        )
    long_ago = now - 500 * DAY
    opened = make_customer(name="Opened it")
    since(now - 5 * DAY, customer=opened, created_at=long_ago, opened_at=now - 5 * DAY)
    for days in (400, 4, 3):
        since(now - days * DAY, created_at=long_ago, reminded_at=now)
    for fields in (
        {"display_phone_number": "+1 555-123-4567"},
        {"account_status": "restricted", "display_phone_number": "+49 30 901820"},
        {"name_status": "DECLINED", "verified_name": "شركة 🎈" * 40},
        {"name_status": "PENDING_REVIEW", "verified_name": "Bäckerei"},
        {"funding_status": "not_funded"},
        {
            "health_status": Health.UNHEALTHY,
            "health_problems": [{"check": "token_validity", "description": "expired " * 20}],
        },
        {
            "status": Connection.Status.DISCONNECTED,
            "connected_at": now - 2 * DAY,
            "disconnected_at": now,
            "disconnect_reason": "unlinked",
        },
    ):
        make_connection(make_customer(name="Ünïcode <b>&" * 20), **fields)


def text_of(response: Any) -> str:
    return " ".join(response.content.decode().split())


def test_without_data_the_page_leads_to_the_first_invitation(admin_client: Client) -> None:
    page = text_of(admin_client.get(URL))
    assert "Nothing to see yet" in page
    assert f'href="{LIST}">Invite the first customer' in page
    assert "kapso-figures" not in page


def test_the_figures_are_text(admin_client: Client) -> None:
    populate()
    page = text_of(admin_client.get(URL))
    for row in (
        '">Invited</a></th> <td class="kapso-number">15</td> '
        '<td class="kapso-number">100 %</td> <td class="kapso-number">-</td>',
        '">Opened the link</a></th> <td class="kapso-number">11</td> '
        '<td class="kapso-number">73.3 %</td> <td class="kapso-number">73.3 %</td>',
        '">Connected</a></th> <td class="kapso-number">3</td> '
        '<td class="kapso-number">20 %</td> <td class="kapso-number">27.3 %</td>',
        '">This link has expired</a> <code>link_expired</code></th> '
        '<td class="kapso-number">2</td>',
        '<p class="kapso-figure">1\xa0hour, 30\xa0minutes</p>'.replace("\xa0", " "),
        'Invited, and nothing since for 3 days <span class="kapso-count">4</span>',
        'Test number <span class="kapso-count">1</span>',
        "Unhealthy</span> Kapso&#x27;s access token: expired expired",
        'Display name not approved <span class="kapso-count">2</span>',
    ):
        assert row in page


def test_figures_of_a_language_with_commas_do_not_break_the_charts(admin_client: Client) -> None:
    populate()
    page = text_of(admin_client.get(URL, headers={"Accept-Language": "de"}))
    assert "73,3 %" in page
    assert '<rect width="73.3' in page


def test_it_shows_no_setup_link(admin_client: Client) -> None:
    populate()
    assert "secret-token" not in text_of(admin_client.get(URL))


def test_names_are_escaped(admin_client: Client) -> None:
    populate()
    assert "<b>" not in text_of(admin_client.get(URL))


# The period


def day(days_ago: int) -> date:
    return timezone.localdate() - days_ago * DAY


@pytest.mark.parametrize(
    ("chosen", "counted"),
    [
        ({}, 3),
        ({"days": 7}, 2),
        ({"days": 90}, 4),
        ({"days": 365}, 5),
        ({"start": 41, "end": 39}, 1),
        ({"start": 40, "end": 40}, 1),
        ({"start": 41}, 4),
        ({"days": 7, "start": 41}, 4),
    ],
    ids=str,
)
def test_the_period_is_chosen(admin_client: Client, chosen: dict[str, int], counted: int) -> None:
    for days in (0, 6, 29, 40, 300):
        make_link(created_at=timezone.make_aware(datetime.combine(day(days), time.min)))
    query = {name: value if name == "days" else day(value) for name, value in chosen.items()}
    response = admin_client.get(URL, query)
    assert response.context["steps"][0][1].customers == counted
    assert 'role="alert"' not in text_of(response)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("days=8", "8 is not one of the available choices."),
        ("days=%00", "is not one of the available choices."),
        ("start=yesterday", "Enter a valid date."),
        ("start=2026-02-30", "Enter a valid date."),
        ("start=10.5.2026&end=2026-06-01", "Enter a valid date."),
        ("end=2026-01-01", "Choose the first day."),
        ("start=2026-02-01&end=2026-01-01", "must not be after the last one."),
        ("start=0001-01-01", "Choose days from"),
        ("start=2020-01-01&end=9999-12-31", "until today."),
        ("start=9999-12-31", "must not be after the last one."),
        ("start=" + "9" * 5000, "Enter a valid date."),
    ],
    ids=lambda value: value[:40],
)
def test_invalid_period_gets_a_message_and_the_default_is_shown(
    admin_client: Client, query: str, message: str
) -> None:
    make_link()
    response = admin_client.get(f"{URL}?{query}")
    assert response.status_code == 200
    page = text_of(response)
    assert message in page
    assert "Showing the last 30 days." in page
    assert (response.context["first"], response.context["last"]) == (day(29), day(0))


@pytest.mark.parametrize("use_tz", [True, False])
def test_it_works_with_and_without_time_zones(
    admin_client: Client, settings: Any, use_tz: bool
) -> None:
    chosen = {"start": day(5), "end": day(0)}
    settings.USE_TZ = use_tz
    populate()
    response = admin_client.get(URL, chosen)
    assert response.context["steps"][0][1].customers == 15


# Who may see it, and where it leads


@pytest.mark.parametrize("missing", VIEW_PERMISSIONS)
def test_it_needs_the_permission_to_view_all_three(
    staff: Callable[..., Client], missing: str
) -> None:
    client = staff(*(codename for codename in VIEW_PERMISSIONS if codename != missing))
    assert client.get(URL).status_code == 403
    for url in (LIST, "/admin/kapso_connect/"):
        assert URL not in client.get(url).content.decode()


@pytest.mark.parametrize("url", [LIST, "/admin/kapso_connect/"])
def test_the_list_and_the_index_lead_to_it(staff: Callable[..., Client], url: str) -> None:
    client = staff(*VIEW_PERMISSIONS)
    assert f'href="{URL}"' in client.get(url).content.decode()
    assert client.get(URL).status_code == 200


def test_anonymous_users_are_sent_to_the_login(client: Client) -> None:
    assert client.get(URL).url == f"/admin/login/?next={URL}"


def test_failures_lead_to_the_customers_with_the_period(admin_client: Client) -> None:
    populate()
    events = TimelineEvent.objects.filter(kind="setup_failed")
    twice = events.latest("pk")
    twice.pk, twice.key = None, None
    twice.save(force_insert=True)
    old = events.earliest("pk")
    events.filter(pk=old.pk).update(occurred_at=timezone.now() - 40 * DAY)
    response = admin_client.get(URL)
    url = response.context["failed_url"]
    assert f'href="{html.escape(url)}">See the customers' in response.text
    listed = admin_client.get(url)
    found = {customer.pk for customer in listed.context["cl"].result_list}
    assert found == set(events.exclude(pk=old.pk).values_list("customer", flat=True))
    assert len(found) == 3
    assert "Connecting failed, from " in listed.text


def test_failures_lead_to_the_timeline_if_the_user_may_view_it(
    admin_client: Client, staff: Callable[..., Client]
) -> None:
    populate()
    response = admin_client.get(URL)
    assert admin_client.get(response.context["failures_url"]).context["cl"].result_count == 4
    assert staff(*VIEW_PERMISSIONS).get(URL).context["failures_url"] == ""


def test_each_list_leads_to_all_that_it_counts(
    admin_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reports, "MAX_LISTED_ROWS", 2)
    for _ in range(3):
        populate()
    page = admin_client.get(URL).content.decode()
    listings = re.findall(
        r'kapso-count">(\d+)</span></h.>\s*<div class="kapso-listing[^"]*">(.*?)</div>',
        page,
        re.DOTALL,
    )
    assert len(listings) == 7
    for count, listing in listings:
        *row_urls, list_url = re.findall(r'href="([^"]+)"', html.unescape(listing))
        assert parse_qs(urlsplit(list_url).query)
        assert admin_client.get(list_url).context["cl"].result_count == int(count) > 2
        assert listing.count("<li>") == 2
        for url in row_urls[:2]:
            assert admin_client.get(url).status_code == 200


def test_more_customers_need_no_more_queries(admin_client: Client) -> None:
    def queries() -> int:
        with CaptureQueriesContext(database) as captured:
            admin_client.get(URL)
        return len(captured)

    populate()
    before = queries()
    populate()
    assert queries() == before


def test_customers_whom_the_user_may_not_view_are_counted_and_not_named(
    admin_client: Client, monkeypatch: Any
) -> None:
    populate()
    for customer in (make_customer(name="Ada"), make_customer(name="Bob")):
        make_link(customer, created_at=timezone.now() - 9 * DAY)
        make_connection(make_customer(name=f"{customer}'s"), health_status=Health.UNHEALTHY)
    Customer.objects.update(status_changed_at=timezone.now() - 9 * DAY)
    before = admin_client.get(URL).context
    everything = CustomerAdmin.get_queryset
    monkeypatch.setattr(
        CustomerAdmin,
        "get_queryset",
        lambda self, request: everything(self, request).filter(name__startswith="Ada"),
    )
    response = admin_client.get(URL)
    shown = response.context
    assert "Ada" in response.text
    assert "Bob" not in response.text
    assert [str(customer) for customer in shown["idle"].listed] == ["Ada"]
    assert shown["idle"].count == before["idle"].count > 1
    assert [count for _, count, _ in shown["attention"]] == [
        count for _, count, _ in before["attention"]
    ]
    assert {number.customer.name for _, _, rows in shown["attention"] for number, *_ in rows} == {
        "Ada's"
    }


# What the figures lead to


def filter_of(response: Any) -> list[tuple[bool, str]]:
    """Return the choices of the filter that the overview leads to; [] if it is not shown."""
    for spec in response.context["cl"].filter_specs:
        if spec.title == "figure of the overview":
            return [
                (choice["selected"], choice["display"])
                for choice in spec.choices(response.context["cl"])
            ]
    return []


@pytest.mark.parametrize("chosen", [{"days": 7}, {"days": 365}, {"start": 41, "end": 1}], ids=str)
def test_each_figure_is_the_number_of_customers_that_it_leads_to(
    admin_client: Client, chosen: dict[str, int]
) -> None:
    populate()
    for link in SetupLink.objects.all()[:9]:
        link.pk, link.kapso_id = None, f"again-{link.pk}"
        link.save(force_insert=True)
        setup_links.record_failure(link, "")
    TimelineEvent.objects.filter(kind="setup_failed").update(occurred_at=timezone.now() - 2 * DAY)
    query = {
        name: number if name == "days" else day(number).isoformat()
        for name, number in chosen.items()
    }
    response = admin_client.get(URL, query)
    figures = [(step.customers, url) for _title, step, url in response.context["steps"]]
    figures += [(row.customers, url) for row, url in response.context["failed_codes"]]
    assert len(figures) >= 5
    for count, url in figures:
        customers = admin_client.get(url)
        assert customers.context["cl"].result_count == count, url
        if count:
            assert html.escape(url) in response.text
    idle = response.context["idle"]
    customers = admin_client.get(response.context["idle_url"])
    assert customers.context["cl"].result_count == idle.count == 4


def test_list_shows_the_step_and_the_period_as_a_filter_that_can_be_removed(
    admin_client: Client,
) -> None:
    populate()
    period = {"start": "2020-02-01", "end": "2020-02-29"}
    opened = admin_client.get(LIST, {"funnel": "opened", "q": "Company", **period})
    text = "Opened the link, from Feb. 1, 2020 to Feb. 29, 2020"
    assert filter_of(opened) == [(False, "All"), (True, text)]
    assert text in opened.text
    assert '<a href="?q=Company">All</a>' in " ".join(opened.text.split())
    failed = admin_client.get(LIST, {"failed_with": "link_expired", **period})
    text = "This link has expired link_expired, from Feb. 1, 2020 to Feb. 29, 2020"
    assert filter_of(failed) == [(False, "All"), (True, text)]
    assert filter_of(admin_client.get(LIST)) == []


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({"funnel": "flew"}, "flew is not one of the available choices."),
        ({"funnel": "opened", "start": "yesterday"}, "Enter a valid date."),
        ({"funnel": "opened", "start": "2026-02-02", "end": "2026-02-01"}, "must not be after"),
        ({"failed_with": "x" * 65}, "at most 64 characters"),
        ({"failed_with": "a\0b"}, "Null characters are not allowed."),
    ],
    ids=str,
)
def test_what_is_not_a_figure_gets_a_message(
    admin_client: Client, query: dict[str, str], message: str
) -> None:
    make_customer()
    response = admin_client.get(LIST, query, follow=True)
    assert response.status_code == 200
    assert "The list is not filtered." in response.text
    assert message in response.text
    assert filter_of(response) == []


@pytest.mark.parametrize("query", [{"idle": "x"}, {"idle": "9" * 30}, {"start": "x"}], ids=str)
def test_unknown_choices_filter_nothing(admin_client: Client, query: dict[str, str]) -> None:
    make_customer()
    assert admin_client.get(LIST, query).context["cl"].result_count == 1


# Who was invited and did nothing


def since(moment: datetime, **fields: Any) -> Customer:
    """A customer with a link with these ``fields``, whose status is that of ``moment``."""
    customer = make_link(**fields).customer
    Customer.objects.filter(pk=customer.pk).update(status_changed_at=moment)
    return customer


def invited(**days_ago: float) -> Customer:
    """A customer whose link was created, opened, … so many days ago."""
    moments = {name: timezone.now() - days * DAY for name, days in days_ago.items()}
    return since(max(moments[name] for name in moments if name != "reminded_at"), **moments)


def idle() -> list[Customer]:
    return list(Customer.objects.idle_since(idle_before(3)).order_by("status_changed_at"))


def test_who_was_invited_and_did_nothing_is_listed_longest_waiting_first(
    admin_client: Client,
) -> None:
    opened = invited(created_at=30, opened_at=5)
    waiting = [invited(created_at=9, reminded_at=1), invited(created_at=8)]
    response = admin_client.get(URL)
    assert response.context["idle"].listed == [*waiting, opened]
    listing = response.text.partition('id="kapso-idle-heading"')[2].partition("</section>")[0]
    assert listing.count("reminded on") == 1
    assert listing.count(">Opened</span>") == 1
    assert len(re.findall(r"since [A-Z]", listing)) == 3


def test_whoever_did_something_or_was_invited_again_is_not_idle() -> None:
    invited(created_at=2)
    invited(created_at=9, opened_at=1)
    now = timezone.now()
    since(now - 9 * DAY, created_at=now - 9 * DAY, last_opened_at=now - DAY)
    again = invited(created_at=9)
    make_link(again)
    make_connection(invited(created_at=9))
    failed = invited(created_at=9)
    setup_links.record_failure(failed.setup_links.get(), "link_expired")
    make_customer()
    assert idle() == []
    waiting = invited(created_at=4)
    assert idle() == [waiting]


def test_customers_list_is_filtered_by_how_long_nothing_happened(admin_client: Client) -> None:
    long, short = invited(created_at=9), invited(created_at=4)
    invited(created_at=1)
    for days, found in (("3", [short, long]), ("7", [long]), ("30", [])):
        response = admin_client.get(LIST, {"idle": days})
        assert list(response.context["cl"].queryset) == found


def test_figure_of_nobody_leads_nowhere(admin_client: Client) -> None:
    populate()
    response = admin_client.get(URL, {"start": "2020-01-01", "end": "2020-01-02"})
    assert "funnel=" not in response.text


def test_those_who_did_nothing_are_reminded(
    admin_client: Client, staff: Callable[..., Client]
) -> None:
    waiting = [invited(created_at=9), invited(created_at=8, opened_at=5)]
    invited(created_at=9, opened_at=1)
    Customer.objects.update(email="ada@example.com")
    for number, customer in enumerate(Customer.objects.all()):
        customer.connect_key = f"key-{number}"
        customer.save(update_fields=["connect_key"])
    page = admin_client.get(URL).text
    form = (
        page.partition('id="kapso-idle-heading"')[2].partition("<form")[2].partition("</form>")[0]
    )
    action = re.search(r'action="([^"]+)"', form)
    assert action
    data = dict(re.findall(r'name="(idle_days)" value="([^"]+)"', form))
    batch_url = admin_client.post(action[1], data)["Location"]
    assert "/whatsapp/batch/" in batch_url
    batch = InvitationBatch.objects.get()
    assert batch.purpose == InvitationBatch.Purpose.REMIND
    assert {row.customer for row in batch.invitations.all()} == set(waiting)
    assert "Remind them all" not in staff(*VIEW_PERMISSIONS).get(URL).text


def test_hostile_number_of_days_gets_a_message(admin_client: Client) -> None:
    response = admin_client.post(
        "/admin/kapso_connect/customer/whatsapp/remind/", {"idle_days": "9" * 30}, follow=True
    )
    assert "Ensure this value is less than or equal to 365." in response.text
    assert not InvitationBatch.objects.exists()


def test_batches_are_linked_for_those_who_may_view_them(
    admin_client: Client, staff: Callable[..., Client]
) -> None:
    populate()
    batches = 'href="/admin/kapso_connect/invitationbatch/">See the batches'
    assert batches in admin_client.get(URL).text
    assert batches not in staff(*VIEW_PERMISSIONS).get(URL).text
