"""A number that needs attention is seen, and found, wherever staff look at its customer."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection as database
from django.db.models import Model
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone
from django.utils.html import escape, strip_tags

from kapso_connect.admin.restrictions import BUSINESS_SUPPORT_URL, RESTRICTIONS
from kapso_connect.models import (
    AccountStatus,
    Attention,
    Connection,
    Customer,
    Funding,
    Health,
    OnboardingStatus,
    TimelineEvent,
)
from kapso_connect.onboarding.accounts import update_account
from kapso_connect.onboarding.status import get_statuses
from kapso_connect.phone_numbers import only_digits

from ..factories import make_connection, make_customer, make_link, new_connection, store_statuses
from ..sites.host_site.models import Bakery, Shop

pytestmark = pytest.mark.django_db

NUMBER = "+49 30 5432134"
TROUBLES: dict[str, tuple[Attention, dict[str, Any]]] = {
    "Test number": (Attention.TEST_NUMBER, {"display_phone_number": "+1 555-123-4567"}),
    "Account restricted": (Attention.RESTRICTED, {"account_status": AccountStatus.RESTRICTED}),
    "Account disabled": (Attention.RESTRICTED, {"account_status": AccountStatus.DISABLED}),
    "Name not approved": (Attention.NAME, {"name_status": "DECLINED"}),
    "Name in review": (Attention.NAME, {"name_status": "PENDING_REVIEW"}),
    "Unhealthy": (Attention.HEALTH, {"health_status": Health.UNHEALTHY}),
    "Degraded": (Attention.HEALTH, {"health_status": Health.DEGRADED}),
    "Health unknown": (Attention.HEALTH, {"health_status": Health.ERROR}),
    "Not paid for by Kapso": (Attention.FUNDING, {"funding_status": Funding.REVOKED}),
}
"""The badge of each trouble."""

LOST = {
    "status": "disconnected",
    "connected_at": timezone.now() - timedelta(days=4),
    "disconnected_at": timezone.now() - timedelta(days=1),
}
EARLIER = {"connected_at": timezone.now() - timedelta(days=3)}


def list_url(model: type[Model]) -> str:
    return reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_changelist")


def found(client: Client, model: type[Model], **query: str) -> list[Any]:
    response = client.get(list_url(model), query)
    assert response.status_code == 200
    return list(response.context_data["cl"].result_list)  # type: ignore[attr-defined]


def badges(html: str) -> list[str]:
    return re.findall(r'<span class="kapso-badge[^>]*>([^<]*)</span>', html)


def column(client: Client, model: type[Model], field: str = "whatsapp_status") -> list[list[str]]:
    """The badges of each row."""
    page = client.get(list_url(model)).content.decode()
    return [badges(cell) for cell in re.findall(rf'<td class="field-{field}">(.*?)</td>', page)]


def panel(client: Client, obj: Any) -> str:
    """The panel of an object, as HTML."""
    opts = obj._meta
    url = reverse(f"admin:{opts.app_label}_{opts.model_name}_change", args=[obj.pk])
    page = client.get(url).content.decode()
    return page[page.index('class="module kapso-panel"') : page.index("</section>")]


def text_of(html: str) -> str:
    return " ".join(strip_tags(html).split())


def troubled(badge: str, **fields: Any) -> tuple[Shop, Connection]:
    """A shop whose customer has a connected number with this trouble."""
    shop = Shop.objects.create(name=badge)
    customer = Customer.objects.for_owner(shop)
    _why, trouble = TROUBLES[badge]
    fields = {"display_phone_number": NUMBER, **trouble, **fields}
    return shop, make_connection(customer, **fields)


# Rule and rows


def test_the_rule_of_the_rows_is_that_of_the_queries() -> None:
    fields = {
        "display_phone_number": ["", NUMBER, "+1 555-123-4567"],
        "account_status": AccountStatus.values,
        "name_status": ["", "APPROVED", "PENDING_REVIEW", "SOMETHING_NEW"],
        "health_status": ["", *Health.values],
        "funding_status": ["", *Funding.values],
        "status": Connection.Status.values,
    }
    customer = make_customer()
    rows = [
        new_connection(customer, **dict(zip(fields, values, strict=True)))
        for values in itertools.product(*fields.values())
    ]
    for row in rows:
        row.phone_digits = only_digits(row.display_phone_number)
    Connection.objects.bulk_create(rows, batch_size=500)
    numbers = list(Connection.objects.all())
    for why in set(Attention) - {Attention.DISCONNECTED}:
        needing = {number.pk for number in numbers if why in number.attention}
        assert (
            set(Connection.objects.needing_attention(why).values_list("pk", flat=True)) == needing
        )
        assert needing
    needing = {number.pk for number in numbers if number.attention}
    assert set(Connection.objects.needing_attention().values_list("pk", flat=True)) == needing
    assert len(needing) < len(numbers)


@pytest.fixture
def shops() -> dict[str, Shop]:
    """A shop for each trouble, by its badge, and some that need no attention."""
    made = {badge: troubled(badge)[0] for badge in TROUBLES}
    for name in ("lost", "lost one", "lost one, invited since", "by staff", "fine", "not invited"):
        made[name] = Shop.objects.create(name=name)
        customer = Customer.objects.for_owner(made[name])
        if name != "not invited":
            reason = "staff" if name == "by staff" else "partner_removed"
            make_connection(customer, **LOST, disconnect_reason=reason)
        if name in {"lost one", "lost one, invited since", "fine"}:
            days = 0 if name == "fine" else 3
            make_connection(customer, connected_at=timezone.now() - timedelta(days=days))
        if name == "lost one, invited since":
            make_link(customer)
    Shop.objects.create(name="without a customer")
    store_statuses()
    return made


@pytest.mark.parametrize("value", ["any", *Attention.values])
def test_filter_finds_customers_and_a_sites_objects(
    admin_client: Client, shops: dict[str, Shop], value: str
) -> None:
    expected = {shops[badge] for badge, (why, _fields) in TROUBLES.items() if value in {"any", why}}
    if value in {"any", Attention.DISCONNECTED}:
        expected |= {shops["lost"], shops["lost one"]}
    assert expected
    assert set(found(admin_client, Shop, attention=value)) == expected
    customers = found(admin_client, Customer, attention=value)
    assert {customer.get_owner() for customer in customers} == expected
    numbers = found(admin_client, Connection, attention=value)
    assert {number.customer.get_owner() for number in numbers} == expected


def test_what_is_shown_agrees_with_the_filter(shops: dict[str, Shop]) -> None:
    statuses = get_statuses(Customer.objects.all(), with_attention=True)
    for why in Attention:
        shown = {pk for pk, status in statuses.items() if why in dict(status.attention)}
        assert set(Customer.objects.needing_attention(why).values_list("pk", flat=True)) == shown
    shown = {pk for pk, status in statuses.items() if status.attention}
    assert set(Customer.objects.needing_attention().values_list("pk", flat=True)) == shown


@pytest.mark.parametrize("value", ["", "nonsense", "x" * 5000])
def test_unknown_reasons_filter_nothing(
    admin_client: Client, shops: dict[str, Shop], value: str
) -> None:
    for model in (Shop, Customer, Connection):
        assert len(found(admin_client, model, attention=value)) == model._default_manager.count()


def test_filter_goes_with_a_search_and_other_filters(
    admin_client: Client, shops: dict[str, Shop]
) -> None:
    query = {"attention": "any", "whatsapp_status": "connected"}
    for model in (Shop, Customer):
        assert len(found(admin_client, model, **query)) == len(TROUBLES) + 1
        assert len(found(admin_client, model, **query, q="030 5432134")) == len(TROUBLES) - 1
    assert len(found(admin_client, Customer, **query, q="Account")) == 2


# What is seen


@pytest.mark.parametrize("badge", TROUBLES)
def test_connected_number_has_a_second_badge_everywhere(admin_client: Client, badge: str) -> None:
    shop, number = troubled(badge)
    expected = ["Connected", badge]
    assert column(admin_client, Customer) == [expected]
    assert column(admin_client, Shop) == [expected]
    for obj in (shop, number.customer):
        first_line = re.search(r'<p class="kapso-now">.*?</p>', panel(admin_client, obj), re.S)
        assert first_line
        assert badges(first_line[0]) == expected
    page = admin_client.get(list_url(Connection)).content.decode()
    # Its neighbours are the number and its health.
    shown = [text.lower() for text in badges(page)]
    assert "connected" in shown
    assert {"health unknown": "could not be checked"}.get(badge.lower(), badge.lower()) in shown


def test_restricted_account_of_a_healthy_number_is_seen_in_the_list(admin_client: Client) -> None:
    troubled("Account disabled", health_status=Health.HEALTHY)
    page = admin_client.get(list_url(Connection)).content.decode()
    assert badges(page) == ["Connected", "Account disabled", "Healthy"]


def test_trouble_of_any_number_is_seen(admin_client: Client) -> None:
    shop, number = troubled("Unhealthy", **EARLIER)
    make_connection(number.customer, **EARLIER, account_status=AccountStatus.RESTRICTED)
    make_connection(number.customer, **EARLIER, health_status=Health.UNHEALTHY)
    make_connection(number.customer, display_phone_number="+49 30 111111")
    [[status, *troubles]] = column(admin_client, Customer)
    assert status == "Connected"
    assert sorted(troubles) == ["Account restricted", "Unhealthy"]
    assert column(admin_client, Shop) == column(admin_client, Customer)
    # The panel says which number it is.
    assert f"{NUMBER}: The problems that the last health check" in text_of(
        panel(admin_client, shop)
    )


@pytest.mark.parametrize(
    ("reason", "badge"),
    [
        ("partner_removed", "Another number is disconnected"),
        ("offboarded", "Another number is paused"),
    ],
)
def test_lost_number_is_seen_beside_one_that_works(
    admin_client: Client, reason: str, badge: str
) -> None:
    customer = make_customer()
    make_connection(customer, **EARLIER)
    lost = make_connection(customer, **LOST, disconnect_reason=reason, display_phone_number=NUMBER)
    assert column(admin_client, Customer) == [["Connected", badge]]
    shown = panel(admin_client, customer)
    assert f"{NUMBER}: Let the customer reconnect it." in text_of(shown)
    [highlighted] = re.findall(r'class="button kapso-next" href="([^"]*)"', shown)
    assert highlighted.endswith(f"/reconnect/{lost.pk}/")


def test_customer_who_is_not_connected_has_one_badge(admin_client: Client) -> None:
    make_connection(**LOST)
    store_statuses()
    assert column(admin_client, Customer) == [["Disconnected"]]


def test_number_that_needs_nothing_has_one_badge(admin_client: Client) -> None:
    make_connection(name_status="APPROVED", health_status=Health.HEALTHY)
    assert column(admin_client, Customer) == [["Connected"]]


@pytest.mark.parametrize("model", [Shop, Customer, Connection])
def test_more_troubles_cost_no_more_queries(admin_client: Client, model: type[Model]) -> None:
    def count() -> int:
        with CaptureQueriesContext(database) as context:
            assert admin_client.get(list_url(model), {"attention": "any"}).status_code == 200
        return len(context)

    troubled("Unhealthy")
    count()
    few = count()
    for badge in TROUBLES:
        make_connection(troubled(badge)[1].customer, account_status=AccountStatus.RESTRICTED)
    assert count() == few


# What to do


@pytest.mark.parametrize(
    ("badge", "action", "advice"),
    [
        ("Test number", "invite", "ask the customer to connect their own number"),
        ("Account restricted", None, "may ask Meta for a review"),
        ("Account disabled", None, "may ask Meta for a review"),
        ("Name not approved", None, "can change it in Meta's WhatsApp Manager"),
        ("Name in review", None, "You do not need to do anything."),
        ("Unhealthy", "health", "Check its health again when they are solved."),
        ("Degraded", "health", "Check its health again when they are solved."),
        ("Health unknown", "health", "Check its health again."),
        ("Not paid for by Kapso", "health", "Ask Kapso's support."),
    ],
)
def test_panel_says_what_to_do(
    admin_client: Client, badge: str, action: str | None, advice: str
) -> None:
    shop, _number = troubled(badge)
    shown = panel(admin_client, shop)
    assert escape(advice) in text_of(shown)
    urls = re.findall(
        r'(?:action|href)="([^"]*)"[^>]*>(?:<input[^>]*>)*'
        r'(?:<button type="submit" )?(?:class="button kapso-next")',
        shown,
    )
    actions = [re.findall(r"whatsapp/[^/]+/([a-z]+)/", url)[0] for url in urls]
    assert actions == ([action] if action else [])
    assert (BUSINESS_SUPPORT_URL in shown) == badge.startswith("Account")


def test_trouble_with_another_number_is_solved_there(admin_client: Client) -> None:
    shop, number = troubled("Unhealthy", **EARLIER)
    make_connection(number.customer)
    [url] = re.findall(
        r'action="([^"]*)">(?:<input[^>]*>)*<button type="submit" class="button kapso-next"',
        panel(admin_client, shop),
    )
    assert url.endswith(f"/health/{number.pk}/")


# Meta's restrictions


@pytest.fixture
def restrict() -> Callable[..., Shop]:
    """Return a function that records a decision of Meta's about a shop's number."""

    def decide(name: str, *, of: Shop | None = None, **fields: Any) -> Shop:
        shop = of or Shop.objects.create(name="Ada's")
        customer = Customer.objects.for_owner(shop)
        number = customer.connections.first() or make_connection(
            customer, display_phone_number=NUMBER, connected_at=LOST["connected_at"]
        )
        update_account(
            name,
            business_account_id="",
            phone_number_ids=[number.phone_number_id],
            source="webhook",
            event_id=f"wae_{TimelineEvent.objects.count()}",
            **fields,
        )
        return shop

    return decide


def pages(client: Client, shop: Shop) -> list[str]:
    """The texts of the panel and of the page of the connection."""
    number = Connection.objects.get()
    url = reverse("admin:kapso_connect_connection_change", args=[number.pk])
    page = client.get(url).content.decode()
    assert BUSINESS_SUPPORT_URL in page
    return [text_of(panel(client, shop)), text_of(page)]


@pytest.mark.parametrize("kind", RESTRICTIONS)
def test_restrictions_are_sentences(
    admin_client: Client, restrict: Callable[..., Shop], kind: str
) -> None:
    expires_at = "2038-01-02T15:00:00Z"
    shop = restrict("restricted", restrictions=[{"type": kind, "expires_at": expires_at}])
    for text in pages(admin_client, shop):
        assert "Meta has restricted this number&#x27;s WhatsApp account." in text
        assert f"{RESTRICTIONS[kind]} Ends: Jan. 2, 2038, 9 a.m." in text
        assert kind not in text
        assert "{" not in text


@pytest.mark.parametrize(
    ("restriction", "sentence"),
    [
        ({"type": "RESTRICTED_<SOON>"}, "RESTRICTED_&lt;SOON&gt;"),
        ({"restriction_type": "RESTRICTED_USER_INITIATED_CALLING"}, "Nobody can call the number."),
        (
            {"type": "RESTRICTED_BUSINESS_INITIATED_CALLING", "expires_at": "2020-01-02T00:00:00Z"},
            "The number cannot call people. Was to end: Jan. 1, 2020, 6 p.m.",
        ),
        ({"type": "X", "expires_at": 1641330498}, "X"),
        ({"type": ["X"], "expires_at": "soon"}, "Meta does not say what is restricted."),
        ({}, "Meta does not say what is restricted."),
    ],
)
def test_restrictions_of_any_shape_are_shown(
    admin_client: Client,
    restrict: Callable[..., Shop],
    restriction: dict[str, Any],
    sentence: str,
) -> None:
    shop = restrict("restricted", restrictions=[restriction])
    for text in pages(admin_client, shop):
        assert sentence in text


def test_violation_and_metas_remedy_are_shown(
    admin_client: Client, restrict: Callable[..., Shop]
) -> None:
    remedy = "Delete the <templates> that sell alcohol."
    shop = restrict("violation", data={"violation": {"type": "ALCOHOL", "remediation": remedy}})
    violation = "Meta reports a violation of its policies: ALCOHOL."
    assert violation in pages(admin_client, shop)[0]
    restrict("disabled", of=shop, data={"ban": {"state": "DISABLE", "date_label": "April 17"}})
    for text in pages(admin_client, shop):
        assert "Meta has disabled this number&#x27;s WhatsApp account." in text
        assert violation in text
        assert f"Meta advises: {escape(remedy)}" in text
    restrict("reinstated", of=shop)
    shown = text_of(panel(admin_client, shop)).split("Timeline")
    assert violation not in shown[0]
    # The timeline tells it all.
    for words in ("account disabled · April 17", "account reinstated", f"policies · {violation}"):
        assert words in shown[1]


def test_old_violation_of_an_account_that_works_is_not_shown(
    admin_client: Client, restrict: Callable[..., Shop]
) -> None:
    shop = restrict("violation", data={"violation": {"type": "ALCOHOL"}})
    TimelineEvent.objects.update(occurred_at=timezone.now() - timedelta(days=91))
    shown = text_of(panel(admin_client, shop)).split("Timeline")
    assert "ALCOHOL" not in shown[0]
    Connection.objects.update(account_status=AccountStatus.RESTRICTED)
    assert "ALCOHOL" in text_of(panel(admin_client, shop)).split("Timeline")[0]


def test_more_restricted_numbers_cost_no_more_queries(admin_client: Client) -> None:
    customer = Customer.objects.for_owner(Bakery.objects.create(title="a"))
    fields = {
        "account_status": AccountStatus.RESTRICTED,
        "restrictions": [{"type": "RESTRICTED_UTILITY_TEMPLATES"}],
    }

    def count() -> int:
        with CaptureQueriesContext(database) as context:
            panel(admin_client, customer)
        return len(context)

    make_connection(customer, **fields)
    count()
    few = count()
    for _ in range(4):
        make_connection(customer, **fields)
    assert count() == few
    assert OnboardingStatus(customer.status) == OnboardingStatus.CONNECTED


# The list of customers


def test_customers_are_listed_without_their_external_id(admin_client: Client) -> None:
    customer = make_customer()
    page = admin_client.get(list_url(Customer)).content.decode()
    assert str(customer.external_customer_id) not in page
    change = reverse("admin:kapso_connect_customer_change", args=[customer.pk])
    assert str(customer.external_customer_id) in admin_client.get(change).content.decode()
