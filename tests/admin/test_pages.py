"""Every page of the admin: it loads, shows what it should, hides what it must."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime, timedelta
from html import unescape
from typing import Any
from urllib.parse import parse_qs

import pytest
from django.contrib.admin import AdminSite
from django.contrib.auth.models import User
from django.contrib.contenttypes.models import ContentType
from django.db import connection as database
from django.test import Client, RequestFactory
from django.test.utils import CaptureQueriesContext, isolate_apps
from django.urls import reverse
from django.utils import timezone

from kapso_connect.admin import base
from kapso_connect.models import (
    Connection,
    Customer,
    SetupLink,
    TimelineEvent,
    WebhookEvent,
    new_connect_key,
)
from kapso_connect.onboarding.connect_urls import connect_url
from kapso_connect.webhooks.payloads import MAX_PAYLOAD_DEPTH

from ..conftest import THOROUGH
from ..factories import make_connection, make_customer, make_link, store_statuses
from ..sites.host_site.admin import BakeryAdmin
from ..sites.host_site.models import Bakery

pytestmark = pytest.mark.django_db

MODELS = ["customer", "setuplink", "connection", "webhookevent", "timelineevent"]


def url(model: str, view: str = "changelist", *args: object) -> str:
    return reverse(f"admin:kapso_connect_{model}_{view}", args=args)


def make_event(customer: Customer | None = None, **fields: Any) -> TimelineEvent:
    return TimelineEvent.objects.create(
        **{
            "kind": "connected",
            "source": "webhook",
            "customer": customer or make_customer(),
            "next_attempt_at": None,
            "delivered_at": timezone.now(),
            **fields,
        }
    )


def make_inbox(key: str = "key-1", **fields: Any) -> WebhookEvent:
    return WebhookEvent.objects.create(
        **{
            "idempotency_key": key,
            "event": "whatsapp.phone_number.created",
            "payload": {"phone_number_id": "1"},
            "status": WebhookEvent.Status.PROCESSED,
            "next_attempt_at": None,
            **fields,
        }
    )


def make_world(start: int, count: int) -> None:
    for number in range(start, start + count):
        customer = make_customer(name=f"Customer {number}")
        link = make_link(customer)
        connection = make_connection(
            customer, setup_link=link, display_phone_number="+52 55 1234 5678"
        )
        make_event(customer, connection=connection, setup_link=link, data={"reason": "x"})
        make_inbox(f"key-{number}")


ROWS: dict[str, Any] = {
    "customer": Customer,
    "setuplink": SetupLink,
    "connection": Connection,
    "webhookevent": WebhookEvent,
    "timelineevent": TimelineEvent,
}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("query", ["", "?q=Customer", "?q=%2B52%20x%27%22%00", "?o=1.-2.3"])
def test_every_list_loads(admin_client: Client, model: str, query: str) -> None:
    make_world(0, 2)
    response = admin_client.get(url(model) + query)
    assert response.status_code == 200


@pytest.mark.parametrize("model", [model for model in MODELS if model != "customer"])
def test_list_of_history_counts_only_the_rows_it_shows(
    admin_client: Client, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    make_world(0, 5)
    everything = admin_client.get(url(model))
    monkeypatch.setattr(base, "MAX_PAGED_ROWS", 3)
    cut = admin_client.get(url(model))
    assert everything.context["cl"].result_count > cut.context["cl"].result_count == 3
    assert "There are more than these 3." in cut.content.decode()
    assert "There are more" not in everything.content.decode()


@pytest.mark.parametrize("model", MODELS)
def test_every_filter_of_every_list_works(admin_client: Client, model: str) -> None:
    make_world(0, 2)
    page = admin_client.get(url(model)).content.decode()
    choices = {unescape(query) for query in re.findall(r'href="(\?[^"]*)"', page)}
    assert len(choices) > 5
    if not THOROUGH:  # one choice of each filter
        choices = {
            " ".join(parse_qs(query[1:], keep_blank_values=True)): query
            for query in sorted(choices)
        }.values()
    for query in choices:
        assert admin_client.get(url(model) + query).status_code == 200, query


@pytest.mark.parametrize("use_tz", [True, False])
@pytest.mark.parametrize("model", MODELS)
def test_every_change_page_loads(
    admin_client: Client, model: str, settings: Any, use_tz: bool
) -> None:
    settings.USE_TZ = use_tz
    make_world(0, 2)
    row = ROWS[model].objects.first()
    assert admin_client.get(url(model, "change", row.pk)).status_code == 200
    assert admin_client.get(url(model, "history", row.pk)).status_code == 200


@pytest.mark.parametrize("use_tz", [True, False])
def test_next_attempt_is_shown_in_local_time(
    admin_client: Client, settings: Any, use_tz: bool
) -> None:
    settings.USE_TZ = use_tz
    settings.TIME_ZONE = "Asia/Kolkata"
    moment = datetime.fromisoformat("2026-07-01T12:00:00+00:00")
    inbox = WebhookEvent.objects.create(
        idempotency_key="k", event="e", payload={}, next_attempt_at=moment
    )
    signal = TimelineEvent.objects.create(kind="connected", next_attempt_at=moment)
    pages = [
        url("webhookevent"),
        url("webhookevent", "change", inbox.pk),
        url("timelineevent", "change", signal.pk),
    ]
    for page in pages:
        assert "July 1, 2026, 5:30 p.m." in admin_client.get(page).content.decode(), page


def queries(client: Client, address: str) -> int:
    with CaptureQueriesContext(database) as context:
        assert client.get(address).status_code == 200
    return len(context)


@pytest.mark.parametrize("model", MODELS)
def test_a_longer_list_costs_no_more_queries(admin_client: Client, model: str) -> None:
    make_world(0, 3)
    admin_client.get(url(model))
    few = queries(admin_client, url(model))
    make_world(3, 5)
    assert queries(admin_client, url(model)) == few


def test_a_customer_with_a_long_history_costs_no_more_queries(admin_client: Client) -> None:
    customer = make_customer()
    user = User.objects.create_user("maker")

    def add(count: int) -> None:
        for _ in range(count):
            link = make_link(customer, created_by=user)
            number = make_connection(customer, setup_link=link)
            make_event(customer, connection=number, setup_link=link)

    add(2)
    address = url("customer", "change", customer.pk)
    admin_client.get(address)
    few = queries(admin_client, address)
    add(20)  # more than are shown
    assert queries(admin_client, address) == few
    panel = admin_client.get(address).context["kapso"]
    assert (len(panel["numbers"]), len(panel["timeline"])) == (20, 20)
    for list_url, _name in panel["lists"]:
        assert admin_client.get(list_url).context["cl"].result_count == 22


@pytest.mark.parametrize("model", [m for m in MODELS if m != "customer"])
def test_history_cannot_be_edited(admin_client: Client, model: str) -> None:
    make_world(0, 1)
    row = ROWS[model].objects.get()
    assert admin_client.get(url(model, "add")).status_code == 403
    assert admin_client.post(url(model, "change", row.pk), {"status": "x"}).status_code == 403
    assert admin_client.post(url(model, "delete", row.pk), {"post": "yes"}).status_code == 403
    page = admin_client.get(url(model)).content.decode()
    assert "delete_selected" not in page
    admin_client.post(
        url(model), {"action": "delete_selected", "_selected_action": [row.pk], "post": "yes"}
    )
    assert ROWS[model].objects.filter(pk=row.pk).exists()


def test_a_customer_can_be_added_and_edited(admin_client: Client) -> None:
    given = {"name": "ACME", "external_customer_id": "a-1", "email": "", "language": "es"}
    admin_client.post(url("customer", "add"), given)
    customer = Customer.objects.get()
    assert (customer.name, customer.external_customer_id, customer.kapso_id) == (
        "ACME",
        "a-1",
        None,
    )
    changed = {**given, "name": "Acme 2", "external_customer_id": "", "kapso_id": "mine"}
    response = admin_client.post(url("customer", "change", customer.pk), changed)
    assert response.status_code == 302
    customer.refresh_from_db()
    assert (customer.name, customer.external_customer_id, customer.kapso_id) == (
        "Acme 2",
        None,
        None,
    )


def test_a_customer_can_have_a_language_that_the_site_adds(
    admin_client: Client, configure: Any
) -> None:
    configure(EXTRA_LANGUAGES=["de"])
    page = admin_client.get(url("customer", "add")).content.decode()
    assert '<option value="de">German</option>' in page
    assert '<option value="pt">Portuguese (Brazil)</option>' in page
    given = {"name": "ACME", "external_customer_id": "a-1", "email": "", "language": "de"}
    admin_client.post(url("customer", "add"), given)
    customer = Customer.objects.get()
    assert customer.language == "de"
    page = admin_client.get(f"{url('customer')}?language=de").content.decode()
    assert "ACME" in page
    configure(EXTRA_LANGUAGES=[])
    page = admin_client.get(url("customer", "change", customer.pk))
    assert page.status_code == 200
    response = admin_client.post(
        url("customer", "change", customer.pk), {**given, "name": "New", "language": ""}
    )
    assert response.status_code == 302


def test_a_customer_with_a_history_can_still_be_saved(admin_client: Client) -> None:
    make_world(0, 1)
    customer = Customer.objects.get()
    response = admin_client.post(
        url("customer", "change", customer.pk),
        {"name": "New", "external_customer_id": "x", "email": "", "language": ""},
    )
    assert response.status_code == 302
    customer.refresh_from_db()
    assert customer.name == "New"


def test_a_customer_with_connections_is_not_deleted(admin_client: Client) -> None:
    customer = make_customer()
    make_connection(customer, display_phone_number="+52 55 1234 5678")
    for address, data in [
        (url("customer", "delete", customer.pk), {"post": "yes"}),
        (
            url("customer"),
            {"action": "delete_selected", "_selected_action": [customer.pk], "post": "yes"},
        ),
    ]:
        page = admin_client.post(address, data).content.decode()
        assert "+52 55 1234 5678" in page
        assert Connection.objects.count() == Customer.objects.count() == 1


def test_a_customer_without_connections_is_deleted_with_links_and_timeline(
    admin_client: Client,
) -> None:
    customer = make_customer()
    link = make_link(customer, status="revoked")
    make_event(customer, setup_link=link, delivered_at=timezone.now())
    response = admin_client.post(url("customer", "delete", customer.pk), {"post": "yes"})
    assert response.status_code == 302
    assert not Customer.objects.exists()
    assert not SetupLink.objects.exists()


# The link is as good as a password


def invited() -> SetupLink:
    customer = make_customer(connect_key=new_connect_key())
    return make_link(customer, is_latest=True)


def test_the_customers_url_is_shown_to_users_who_may_create_links(
    staff: Callable[..., Client],
) -> None:
    link = invited()
    client = staff("view_setuplink", "view_customer", "create_setup_link")
    page = client.get(url("setuplink", "change", link.pk)).content.decode()
    page += client.get(url("customer", "change", link.customer_id)).content.decode()
    assert page.count(connect_url(link.customer)) == 2
    assert link.url not in page


def test_the_customers_url_is_hidden_from_all_other_users(
    staff: Callable[..., Client],
) -> None:
    link = invited()
    make_event(link.customer, setup_link=link)
    client = staff(*(f"view_{model}" for model in MODELS), *(f"change_{model}" for model in MODELS))
    pages = [url(model) for model in MODELS]
    pages += [url(model, "change", ROWS[model].objects.get().pk) for model in MODELS[:2]]
    pages += [url("setuplink") + "?q=secret-token", url("setuplink", "history", link.pk)]
    for address in pages:
        page = client.get(address).content.decode()
        assert connect_url(link.customer) not in page
        assert "secret-token" not in page.replace('value="secret-token"', "").replace(
            "q=secret-token", ""
        )
    assert "hidden" in client.get(url("setuplink", "change", link.pk)).content.decode()
    assert client.get(url("setuplink") + "?q=secret-token").context["cl"].result_count == 0


@pytest.mark.parametrize(
    ("model", "lookup"),
    [
        ("setuplink", "url__startswith"),
        ("setuplink", "url"),
        ("setuplink", "url__isnull"),
        ("setuplink", "customer__connect_key__gt"),
        ("customer", "connect_key__startswith"),
        ("customer", "connect_key"),
        ("customer", "latest_setup_link__url__startswith"),
        ("customer", "setup_links__url__startswith"),
        ("customer", "connections__customer__connect_key__startswith"),
        ("connection", "customer__connect_key__startswith"),
        ("timelineevent", "customer__connect_key__startswith"),
        ("webhookevent", "timeline_events__customer__connect_key__startswith"),
        ("connection", "setup_link__url__startswith"),
        ("timelineevent", "setup_link__url__regex"),
        ("setuplink", "created_by__password__startswith"),
    ],
)
def test_the_url_of_a_link_cannot_be_guessed_by_filtering(
    admin_client: Client, model: str, lookup: str
) -> None:
    make_world(0, 1)
    assert admin_client.get(f"{url(model)}?{lookup}=h").status_code == 400


def test_secrets_cannot_be_guessed_in_a_sites_own_admin(
    admin_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    bakeries = reverse("admin:host_site_bakery_changelist")
    shown = ["whatsapp", "whatsapp__language", "whatsapp__connect_key"]
    monkeypatch.setattr(BakeryAdmin, "list_filter", shown)
    for lookup in ("connect_key", "connect_key__startswith", "latest_setup_link__url__startswith"):
        assert admin_client.get(f"{bakeries}?whatsapp__{lookup}=h").status_code == 400
    for lookup in ("whatsapp__language=en", "title__startswith=h", "whatsapp__id__exact=1"):
        assert admin_client.get(f"{bakeries}?{lookup}").status_code == 200


@isolate_apps("tests.sites.host_site")
def test_secrets_cannot_be_guessed_in_the_admin_of_a_proxy(rf: RequestFactory) -> None:
    class Proxy(SetupLink):
        class Meta:
            proxy = True
            app_label = "host_site"

    model_admin = base.PackageAdmin(Proxy, AdminSite())
    assert model_admin.lookup_allowed("status", "active", rf.get("/"))
    assert not model_admin.lookup_allowed("url__startswith", "h", rf.get("/"))


def test_link_that_has_ended_is_not_offered_for_copying(admin_client: Client) -> None:
    link = make_link(expires_at=timezone.now() - timedelta(seconds=1))
    page = admin_client.get(url("setuplink", "change", link.pk)).content.decode()
    assert link.url not in page
    assert "Expired" in page


# What a page says


def test_a_payload_is_shown_escaped(admin_client: Client) -> None:
    inbox = make_inbox(payload={"name": "<script>alert(1)</script>", "ü": [1, 2]})
    page = admin_client.get(url("webhookevent", "change", inbox.pk)).content.decode()
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "&quot;ü&quot;: [\n    1" in page


def test_a_huge_and_deep_payload_is_shown_shortened(admin_client: Client) -> None:
    deep: Any = "x"
    for _ in range(MAX_PAYLOAD_DEPTH):
        deep = [deep]
    inbox = make_inbox(payload={"big": "y" * 300_000, "deep": deep})
    response = admin_client.get(url("webhookevent", "change", inbox.pk))
    assert "(shortened)" in response.content.decode()
    assert len(response.content) < 200_000


def test_metas_test_numbers_are_marked(admin_client: Client) -> None:
    fake = make_connection(display_phone_number="+1 555-123-4567")
    real = make_connection(display_phone_number="+1 415-555-0123")
    assert admin_client.get(url("connection")).content.decode().count("test number</span>") == 1
    page = admin_client.get(url("connection", "change", fake.pk)).content.decode()
    assert "not the customer&#x27;s real number" in page
    page = admin_client.get(url("connection", "change", real.pk)).content.decode()
    assert "real number" not in page


def test_the_hosts_own_object_is_linked(admin_client: Client, staff: Callable[..., Client]) -> None:
    owner = User.objects.create_user("the-owner")
    customer = Customer.objects.for_owner(owner)
    link = reverse("admin:auth_user_change", args=[owner.pk])
    address = url("customer", "change", customer.pk)
    assert f'<a href="{link}">the-owner</a>' in admin_client.get(address).content.decode()
    assert link not in staff("view_customer").get(address).content.decode()


@pytest.mark.parametrize("owner_id", ["99999", "not-a-number", "9" * 64, ""])
def test_page_works_after_the_owner_was_deleted(admin_client: Client, owner_id: str) -> None:
    kinds = ContentType.objects.get_for_models(User, Bakery).values()
    gone = ContentType.objects.create(app_label="gone", model="thing")
    for owner_type in (*kinds, gone, None):
        customer = make_customer(owner_type=owner_type, owner_id=owner_id)
        assert admin_client.get(url("customer", "change", customer.pk)).status_code == 200
        customer.delete()


@pytest.mark.parametrize("missing", MODELS[1:])
def test_customer_page_links_only_to_what_the_user_may_view(
    staff: Callable[..., Client], missing: str
) -> None:
    make_world(0, 1)
    client = staff(*(f"view_{model}" for model in MODELS if model != missing))
    page = client.get(url("customer", "change", Customer.objects.get().pk)).content.decode()
    for model in ("setuplink", "connection", "timelineevent"):
        assert (f"{url(model)}?customer__id__exact=" in page) == (model != missing)


def test_no_page_has_inline_scripts_or_styles(admin_client: Client) -> None:
    make_world(0, 1)
    for model in MODELS:
        row = ROWS[model].objects.get()
        for address in (url(model), url(model, "change", row.pk)):
            page = admin_client.get(address).content.decode()
            assert not re.search(r"\son[a-z]+=|\sstyle=|<style", page)
            assert not re.search(r"<script(?![^>]*\ssrc=)", page)


def test_the_pages_work_with_i18n_off(admin_client: Client, settings: Any) -> None:
    settings.USE_I18N = False
    make_world(0, 1)
    for model in MODELS:
        assert admin_client.get(url(model)).status_code == 200


LINK_ACTIONS = ["email", "qr", "share", "extend", "revoke"]
SOON = {"expires_at": timezone.now() + timedelta(days=9)}
USED = {"status": "used", "setup_status": "completed"}
NUMBER_ACTIONS = ["health", "reconnect", "disconnect"]


def actions_on(page: str, customer: Customer) -> list[str]:
    """The pages of the customer that a page leads to."""
    base = re.escape(url("customer", "whatsapp_email", customer.pk).removesuffix("email/"))
    return re.findall(rf'(?:href|action)="{base}(\w+)/', page)


@pytest.mark.parametrize("end", [SOON, {"status": "expired"}, USED, {"status": "revoked"}])
def test_setup_link_page_has_buttons_for_its_actions(
    admin_client: Client, end: dict[str, Any]
) -> None:
    link = invited()
    SetupLink.objects.update(**end)
    # The personal link of a customer without a number leads to a new one if this has ended.
    expected = {
        "expired": ["email", "qr", "share", "revoke"],
        "used": ["email", "qr", "share"],
        "revoked": [],
    }.get(end.get("status", ""), LINK_ACTIONS)
    page = admin_client.get(url("setuplink", "change", link.pk)).content.decode()
    assert actions_on(page, link.customer) == expected
    older = make_link(link.customer, is_latest=False)
    page = admin_client.get(url("setuplink", "change", older.pk)).content.decode()
    assert actions_on(page, link.customer) == []


@pytest.mark.parametrize(
    ("minutes", "advice", "next_action"),
    [
        (5, "It usually comes back by itself within minutes.", None),
        (61, "This one has not after an hour: let the customer reconnect it.", "reconnect"),
    ],
)
def test_panel_says_what_to_do_about_a_number_that_meta_paused(
    admin_client: Client, minutes: int, advice: str, next_action: str | None
) -> None:
    connection = make_connection(
        display_phone_number="+14155550123",
        status="disconnected",
        disconnect_reason="offboarded",
        disconnected_at=timezone.now() - timedelta(minutes=minutes),
    )
    store_statuses()
    page = admin_client.get(url("customer", "change", connection.customer_id)).content.decode()
    assert "Paused by Meta" in page
    assert advice in " ".join(page.split())
    highlighted = re.findall(r'class="button kapso-next" href="[^"]*/whatsapp/[^"/]*/(\w+)/', page)
    assert highlighted == ([next_action] if next_action else [])
    listed = admin_client.get(url("customer", "changelist") + "?whatsapp_status=paused")
    assert "Disconnected" not in re.findall(r"kapso-badge[^>]*>([^<]*)", page)
    short = "Not back after an hour" if next_action else "Usually back within minutes"
    assert short in listed.content.decode()


@pytest.mark.parametrize("status", ["connected", "disconnected"])
def test_connection_page_has_buttons_for_its_actions(admin_client: Client, status: str) -> None:
    connection = make_connection(
        display_phone_number="+14155550123",
        status=status,
        disconnect_reason="staff",
        health_status="unhealthy",
        health_error="No webhook",
        quality_rating="RED",
        name_status="DECLINED",
        health_problems=[{"check": "token_validity", "description": "It expired <b>"}],
        funding_status="not_funded",
    )
    page = admin_client.get(url("connection", "change", connection.pk)).content.decode()
    expected = NUMBER_ACTIONS if status == "connected" else NUMBER_ACTIONS[:2]
    assert actions_on(page, connection.customer) == expected
    for fact in (
        "Unhealthy",
        "access token: It expired &lt;b&gt;.",
        "RED",
        "DECLINED",
        "Paid messages fail",
    ):
        assert fact in page
    assert ("by a member of staff" in page) == (status == "disconnected")


def test_users_who_may_only_view_get_no_buttons(staff: Callable[..., Client]) -> None:
    link, connection = invited(), make_connection()
    client = staff("view_setuplink", "view_connection", "view_customer")
    for page, customer in (
        (url("setuplink", "change", link.pk), link.customer),
        (url("connection", "change", connection.pk), connection.customer),
    ):
        assert actions_on(client.get(page).content.decode(), customer) == []


def test_users_who_may_not_view_the_customer_get_no_buttons(staff: Callable[..., Client]) -> None:
    connection = make_connection()
    client = staff("view_connection", "check_health")
    page = client.get(url("connection", "change", connection.pk)).content.decode()
    assert actions_on(page, connection.customer) == []


def test_the_timeline_says_who_did_it(admin_client: Client, admin_user: User) -> None:
    event = make_event(actor=admin_user)
    for page in (url("timelineevent"), url("timelineevent", "change", event.pk)):
        body = admin_client.get(page).content.decode().partition("<main")[2]
        assert "admin" in re.sub(r"<[^>]*>", " ", body)


@pytest.mark.parametrize(
    ("is_set", "fields", "words"),
    [
        (True, {"number_webhook_id": "wh"}, "Delivered to this site"),
        (True, {}, "Not delivered to this site yet"),
        (True, {"status": "disconnected"}, ""),
        (False, {}, ""),
        (False, {"number_webhook_id": "wh"}, "Delivered to this site"),
    ],
)
def test_number_says_whether_its_messages_are_delivered(
    admin_client: Client, configure: Any, is_set: bool, fields: dict[str, str], words: str
) -> None:
    if is_set:
        configure(NUMBER_WEBHOOK={"url": "/messages/", "secret": "the secret of messages"})
    connection = make_connection(**fields)
    page = admin_client.get(
        reverse("admin:kapso_connect_connection_change", args=[connection.pk])
    ).text
    assert ("elivered to this site" in page) is bool(words)
    assert words in page
    assert "the secret of messages" not in page
