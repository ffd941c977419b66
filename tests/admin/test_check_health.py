"""The health of many numbers is checked from the lists of the admin."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.db import connections
from django.db.models import Model
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from django.utils.html import strip_tags

from kapso_connect.admin import check_health
from kapso_connect.admin.base import MAX_SELECTED
from kapso_connect.models import Connection, Customer, Health, TimelineEvent
from kapso_connect.testing import Sandbox

from ..factories import make_connection, make_customer
from ..faulty_server import FaultyServer, answer
from ..sites.host_site.models import Bakery, Branch, Shop
from .world import messages

pytestmark = pytest.mark.django_db

LISTS: list[type[Model]] = [Customer, Shop, Connection]
PERMISSIONS = ["check_health", "view_customer", "view_shop", "view_connection"]


@pytest.fixture
def numbers(sandbox: Sandbox) -> list[Connection]:
    """The numbers of three shops, known here and at Kapso, the newest first as in the lists."""
    return [make_number(sandbox, f"Shop {place}") for place in range(3)][::-1]


def make_number(sandbox: Sandbox, name: str, **fields: Any) -> Connection:
    shop = Shop.objects.create(name=name)
    customer = Customer.objects.for_owner(shop)
    remote = sandbox.add_number(
        external_customer_id=customer.external_customer_id,
        phone_number=f"+1415555{Connection.objects.count():04}",
    )
    customer.kapso_id = remote["customer_id"]
    customer.save(update_fields=["kapso_id"])
    return make_connection(
        customer,
        phone_number_id=remote["phone_number_id"],
        display_phone_number=remote["display_phone_number"],
        **fields,
    )


def url(model: type[Model], view: str = "whatsapp_check_health") -> str:
    return reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_{view}")


def row_of(model: type[Model], number: Connection) -> Any:
    rows = {Customer: number.customer, Connection: number}
    return rows[model] if model in rows else number.customer.get_owner()


def select(client: Client, model: type[Model], rows: list[Any]) -> Any:
    """Choose the action for these rows."""
    data = {"action": "check_health", "_selected_action": [row.pk for row in rows]}
    return client.post(url(model, "changelist"), data)


def press(client: Client, page: Any) -> Any:
    """Send the form of a page."""
    html = page.content.decode()
    ids = re.findall('name="ids" value="([^"]*)"', html)
    [since] = re.findall('name="since" value="([^"]*)"', html)
    response = client.post(page.request["PATH_INFO"], {"ids": ids, "since": since})
    assert response.status_code == 200
    return response


def open_page(client: Client, model: type[Model], numbers: list[Connection]) -> Any:
    response = client.get(url(model), {"ids": [number.pk for number in numbers]})
    assert response.status_code == 200
    return response


def text_of(response: Any) -> str:
    return " ".join(strip_tags(response.content.decode()).split())


def checks(sandbox: Sandbox) -> int:
    return sum(request["path"].endswith("/health") for request in sandbox.requests())


@pytest.mark.parametrize("model", LISTS)
def test_selected_numbers_are_checked(
    admin_client: Client, sandbox: Sandbox, numbers: list[Connection], model: type[Model]
) -> None:
    sandbox.patch_number(numbers[0].phone_number_id, payment_problem=True)
    chosen = [row_of(model, number) for number in numbers[:2]]
    action = select(admin_client, model, chosen)
    page = admin_client.get(action["Location"])
    assert checks(sandbox) == 0
    assert "Shop 2" in text_of(page)
    assert "Shop 0" not in text_of(page)
    text = text_of(press(admin_client, page))
    assert checks(sandbox) == 2
    assert "Finished: 1 number needs attention. 2 done 0 left" in text
    assert "Shop 2 Connected Unhealthy The WhatsApp Business Account" in text
    assert "Shop 1 Connected Healthy" in text
    states = [Connection.objects.get(pk=number.pk).health_status for number in numbers]
    assert states == [Health.UNHEALTHY, Health.HEALTHY, ""]
    for number in numbers[:2]:
        entry = LogEntry.objects.get(object_id=number.customer.pk, object_repr=number.customer.name)
        assert "Checked the health of" in entry.change_message
        event = TimelineEvent.objects.get(connection=number)
        assert (event.kind, event.actor_id) == ("health_checked", entry.user_id)


def test_what_is_left_is_continued_with(
    admin_client: Client,
    sandbox: Sandbox,
    numbers: list[Connection],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(check_health, "CHECK_BUDGET", -1)
    page = press(admin_client, open_page(admin_client, Customer, numbers))
    assert "There was not enough time to check all numbers." in text_of(page)
    assert "0 done 3 left" in text_of(page)
    assert "Continue" in page.content.decode()
    monkeypatch.setattr(check_health, "CHECK_BUDGET", 60)
    page = press(admin_client, page)
    assert "Finished: no number needs attention. 3 done 0 left" in text_of(page)
    assert 'value="Continue"' not in page.content.decode()
    assert checks(sandbox) == 3


def test_a_form_that_is_sent_twice_checks_once(
    admin_client: Client, sandbox: Sandbox, numbers: list[Connection]
) -> None:
    page = open_page(admin_client, Customer, numbers)
    for _ in range(2):
        assert "3 done 0 left" in text_of(press(admin_client, page))
    assert checks(sandbox) == 3
    # A new page checks again.
    time.sleep(0.01)
    press(admin_client, open_page(admin_client, Customer, numbers[:1]))
    assert checks(sandbox) == 4


def test_held_results_are_shown_and_not_asked_for(
    admin_client: Client, sandbox: Sandbox, numbers: list[Connection]
) -> None:
    Connection.objects.filter(pk=numbers[0].pk).update(
        health_status=Health.ERROR,
        health_error="Token expired",
        health_retry_after=timezone.now() + timedelta(minutes=9),
    )
    text = text_of(press(admin_client, open_page(admin_client, Customer, numbers)))
    assert checks(sandbox) == 2
    assert "Finished: 1 number needs attention. 3 done 0 left" in text
    assert "Token expired" in text
    assert "Kapso will check this number again" in text


def test_numbers_that_are_gone_or_moved_keep_no_other_waiting(
    admin_client: Client, sandbox: Sandbox, numbers: list[Connection]
) -> None:
    gone, moved, fine = numbers
    long_ago = timezone.now() - timedelta(hours=1)
    Connection.objects.filter(pk=gone.pk).update(phone_number_id="404", connected_at=long_ago)
    elsewhere = sandbox.add_number(external_customer_id="elsewhere")
    sandbox.patch_number(moved.phone_number_id, customer_id=elsewhere["customer_id"])
    new = make_number(sandbox, "New")
    Connection.objects.filter(pk=new.pk).update(phone_number_id="405")
    chosen = [gone, new, moved, fine]
    page = press(admin_client, open_page(admin_client, Customer, chosen))
    text = text_of(page)
    assert "Kapso no longer has this number." in text
    assert f"{moved}: Kapso says that it is not this customer&#x27;s any more." in text
    assert "The number has just changed. Try again in a minute." in text
    assert f"{fine.customer.name} Connected Healthy" in text
    assert "2 done 1 left" in text
    assert page.context["ids"] == [str(number.pk) for number in (new, gone, fine)]


def test_key_with_zeros_before_it_is_the_same_key(
    admin_client: Client, sandbox: Sandbox, numbers: list[Connection]
) -> None:
    moved = numbers[0]
    elsewhere = sandbox.add_number(external_customer_id="elsewhere")
    sandbox.patch_number(moved.phone_number_id, customer_id=elsewhere["customer_id"])
    data = {"ids": [f"00{moved.pk}", moved.pk], "since": "0"}
    response = admin_client.post(url(Connection), data)
    assert "Kapso says that it is not this customer&#x27;s any more." in text_of(response)


def test_what_failed_comes_after_what_was_not_tried(
    admin_client: Client, configure: Any, numbers: list[Connection]
) -> None:
    with FaultyServer() as kapso:
        # The first was just connected, so Kapso may not show it yet.
        kapso.will(answer(404, {"error": "Not found"}), answer(429, {"error": "No"}))
        configure(API_BASE_URL=kapso.url, API_BUDGET=1)
        page = press(admin_client, open_page(admin_client, Customer, numbers))
    assert "The number has just changed. Try again in a minute." in text_of(page)
    first, second, third = (str(number.pk) for number in numbers)
    assert page.context["ids"] == [second, third, first]


@pytest.mark.parametrize(
    ("status", "headers", "words"),
    [
        (429, {"Retry-After": "40"}, "Try again in 40 seconds"),
        (401, {}, "Kapso rejected this site&#x27;s API key."),
        (402, {}, "Your Kapso plan does not include this."),
    ],
)
def test_error_that_concerns_all_stops_the_run(
    admin_client: Client,
    configure: Any,
    numbers: list[Connection],
    status: int,
    headers: dict[str, str],
    words: str,
) -> None:
    with FaultyServer() as kapso:
        kapso.will(answer(status, {"error": "No", "message": "No."}, headers))
        configure(API_BASE_URL=kapso.url, API_BUDGET=5)
        page = press(admin_client, open_page(admin_client, Customer, numbers))
        assert len(kapso.requests) == 1
    assert words in text_of(page)
    assert "0 done 3 left" in text_of(page)
    assert 'value="Continue"' in page.content.decode()
    assert not LogEntry.objects.exists()


def test_without_an_api_key_nothing_is_asked(
    admin_client: Client, configure: Any, numbers: list[Connection]
) -> None:
    configure(API_KEY="")
    page = press(admin_client, open_page(admin_client, Customer, numbers))
    assert "This site has no usable API key for Kapso." in text_of(page)


def test_rows_without_a_connected_number_get_a_message(admin_client: Client) -> None:
    number = make_connection(status="disconnected")
    for model, row in ((Customer, number.customer), (Connection, number)):
        response = select(admin_client, model, [row])
        assert response["Location"] == url(model, "changelist")
        assert "None of the selected rows has a connected number." in messages(response)


def test_too_many_rows_or_numbers_get_a_message(admin_client: Client) -> None:
    customer = make_customer()
    for _ in range(MAX_SELECTED + 1):
        make_connection(customer)
    response = select(admin_client, Customer, [customer])
    assert f"Select at most {MAX_SELECTED} at a time." in messages(response)
    rows = list(Connection.objects.all())
    assert "Select at most" in messages(select(admin_client, Connection, rows))
    assert "?ids=" in select(admin_client, Connection, rows[:-1])["Location"]


@pytest.mark.parametrize("model", LISTS)
@pytest.mark.parametrize("missing", PERMISSIONS)
def test_permissions_are_checked(
    staff: Callable[..., Client],
    sandbox: Sandbox,
    numbers: list[Connection],
    model: type[Model],
    missing: str,
) -> None:
    client = staff(*(name for name in PERMISSIONS if name != missing))
    can_see = missing != f"view_{model._meta.model_name}"
    if can_see:
        offered = 'value="check_health"' in client.get(url(model, "changelist")).content.decode()
        assert offered == (missing != "check_health")
    data = {"ids": [numbers[0].pk], "since": "0"}
    responses = [client.get(url(model), data), client.post(url(model), data)]
    if missing == "check_health":
        assert [response.status_code for response in responses] == [403, 403]
    elif not can_see:
        assert all(numbers[0].customer.name not in text_of(response) for response in responses)
    else:
        assert [response.status_code for response in responses] == [200, 200]


def test_numbers_of_another_models_objects_are_not_shown(
    admin_client: Client, numbers: list[Connection], sandbox: Sandbox
) -> None:
    response = admin_client.post(url(Bakery), {"ids": [numbers[0].pk], "since": "0"})
    assert response["Location"] == url(Bakery, "changelist")
    assert checks(sandbox) == 0


def test_no_action_if_the_site_has_none(admin_client: Client) -> None:
    Branch.objects.create(code="a")
    assert "check_health" not in admin_client.get(url(Branch, "changelist")).content.decode()


@pytest.mark.parametrize("hostile", ["", "x", "9" * 19, "1,", "1.0", "99"])
def test_hostile_ids_get_a_message(admin_client: Client, hostile: str) -> None:
    for response in (
        admin_client.get(url(Customer), {"ids": hostile}),
        admin_client.post(url(Customer), {"ids": hostile, "since": "0"}),
    ):
        assert response["Location"] == url(Customer, "changelist")
        assert messages(response)


@pytest.mark.parametrize("since", ["", "x", "nan", "-1", "1e300", "inf"])
def test_hostile_time_checks_as_a_new_page_does(
    admin_client: Client, sandbox: Sandbox, numbers: list[Connection], since: str
) -> None:
    data = {"ids": [numbers[0].pk], "since": since}
    assert "1 done 0 left" in text_of(admin_client.post(url(Customer), data))
    assert checks(sandbox) == 1


@pytest.mark.django_db(transaction=True)
def test_kapso_is_asked_outside_of_transactions(
    admin_client: Client, numbers: list[Connection]
) -> None:
    settings = connections["default"].settings_dict
    before = settings["ATOMIC_REQUESTS"]
    settings["ATOMIC_REQUESTS"] = True
    try:
        # ``onboarding.check_health`` refuses to run in a transaction.
        page = press(admin_client, open_page(admin_client, Customer, numbers))
    finally:
        settings["ATOMIC_REQUESTS"] = before
    assert "3 done 0 left" in text_of(page)
