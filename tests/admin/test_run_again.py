"""Nothing is lost: what failed is easy to find in the admin, and is run again from there."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any
from urllib.parse import urlencode, urlsplit

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User
from django.contrib.messages import get_messages
from django.db import connections
from django.http import HttpResponse
from django.test import Client
from django.utils import timezone

from kapso_connect import dispatch, signals
from kapso_connect.admin import run_again
from kapso_connect.models import Connection, TimelineEvent, WebhookEvent

from ..factories import make_connection, make_customer, new_number_id, payload_for

pytestmark = pytest.mark.django_db

INBOX = "/admin/kapso_connect/webhookevent/"
TIMELINE = "/admin/kapso_connect/timelineevent/"
Status = WebhookEvent.Status


def failed_delivery(**fields: Any) -> WebhookEvent:
    customer = make_customer()
    return WebhookEvent.objects.create(
        **{
            "idempotency_key": f"key-{new_number_id()}",
            "event": "whatsapp.phone_number.created",
            "payload": payload_for(customer, new_number_id()),
            "status": Status.FAILED,
            "attempts": 10,
            "last_error": "OperationalError: <the disk> was full",
            "next_attempt_at": None,
            **fields,
        }
    )


def failed_signal(**fields: Any) -> TimelineEvent:
    connection = make_connection()
    return TimelineEvent.objects.create(
        **{
            "kind": "connected",
            "source": "webhook",
            "customer": connection.customer,
            "connection": connection,
            "attempts": 10,
            "last_error": "crm.tell: ValueError: <no>",
            "next_attempt_at": None,
            **fields,
        }
    )


def run(client: Client, address: str, *rows: Any) -> list[str]:
    action = client.post(
        address, {"action": "run_again", "_selected_action": [row.pk for row in rows]}
    )
    page = client.get(action["Location"])
    assert page.status_code == 200
    response = client.post(address + "run-again/", {"ids": page.context["ids"]})
    assert response["Location"] == address
    return messages(response)


def messages(response: HttpResponse) -> list[str]:
    return [str(message) for message in get_messages(response.wsgi_request)]


@pytest.fixture
def receivers() -> Iterator[Callable[[Any], None]]:
    connected: list[Any] = []

    def connect(receiver: Any) -> None:
        signals.whatsapp_connected.connect(receiver, weak=False)
        connected.append(receiver)

    yield connect
    for receiver in connected:
        signals.whatsapp_connected.disconnect(receiver)


@pytest.mark.parametrize(
    ("address", "query", "make"),
    [
        (INBOX, "status=failed", failed_delivery),
        (TIMELINE, "signal=failed", failed_signal),
    ],
)
def test_failed_rows_are_found_with_their_errors(
    admin_client: Client, address: str, query: str, make: Callable[..., Any]
) -> None:
    row = make()
    if make is failed_delivery:
        make(status=Status.PROCESSED, last_error="")
    else:
        make(delivered_at=timezone.now(), last_error="")
        make(next_attempt_at=timezone.now())
    response = admin_client.get(f"{address}?{query}")
    assert list(response.context["cl"].queryset) == [row]
    assert "&lt;" in response.content.decode()
    page = admin_client.get(f"{address}{row.pk}/change/").content.decode()
    assert row.last_error.replace("<", "&lt;").replace(">", "&gt;") in page
    assert ">10<" in page


def test_failed_webhook_is_processed(admin_client: Client, admin_user: User) -> None:
    row = failed_delivery()
    assert run(admin_client, INBOX, row) == ["1 succeeded."]
    row.refresh_from_db()
    assert (row.status, row.last_error) == (Status.PROCESSED, "")
    assert Connection.objects.get().is_connected
    logged = LogEntry.objects.get()
    assert (logged.user, logged.object_id) == (admin_user, str(row.pk))


def test_finished_rows_cannot_be_run_again(admin_client: Client) -> None:
    inbox = failed_delivery(status=Status.PROCESSED)
    event = failed_signal(delivered_at=timezone.now())
    for address, row in [(INBOX, inbox), (TIMELINE, event)]:
        page = admin_client.get(f"{address}{row.pk}/change/").content.decode()
        assert "run-again" not in page


def test_the_outcomes_are_counted(admin_client: Client) -> None:
    rows = [
        failed_delivery(),
        failed_delivery(status=Status.PENDING, next_attempt_at=timezone.now()),
        failed_delivery(payload={}),
        failed_delivery(status=Status.PROCESSED),
        failed_delivery(event="workflow.execution.failed", status=Status.IGNORED),
    ]
    done, failed, skipped = run(admin_client, INBOX, *rows)
    assert done == "2 succeeded."
    assert failed.startswith("1 failed again")
    assert skipped.startswith("2 were skipped")


def test_row_leased_by_another_process_is_skipped(
    admin_client: Client, receivers: Callable[[Any], None]
) -> None:
    calls = []

    def receiver(**kwargs: Any) -> None:
        calls.append(kwargs)

    receivers(receiver)
    lease = timezone.now() + timedelta(seconds=200)
    leased = {"leased_at": timezone.now(), "leased_until": lease, "attempts": 1}
    inbox = failed_delivery(status=Status.PENDING, next_attempt_at=timezone.now(), **leased)
    event = failed_signal(next_attempt_at=timezone.now(), **leased)
    assert run(admin_client, INBOX, inbox)[0].startswith("1 was skipped")
    assert run(admin_client, TIMELINE, event)[0].startswith("1 was skipped")
    inbox.refresh_from_db()
    event.refresh_from_db()
    assert inbox.leased_until == event.leased_until == lease
    assert inbox.attempts == event.attempts == 1
    assert not calls


@pytest.mark.parametrize("wait", [None, timedelta(seconds=-5), timedelta(hours=1)])
def test_signal_is_sent_to_the_receivers_that_have_not_had_it(
    admin_client: Client, receivers: Callable[[Any], None], wait: timedelta | None
) -> None:
    calls: list[str] = []

    def had_it(**kwargs: Any) -> None:
        calls.append("had it")

    def missed_it(**kwargs: Any) -> None:
        calls.append("missed it")

    receivers(had_it)
    receivers(missed_it)
    event = failed_signal(
        receivers=[dispatch.receiver_name(had_it)],
        next_attempt_at=None if wait is None else timezone.now() + wait,
    )
    assert run(admin_client, TIMELINE, event) == ["1 succeeded."]
    assert calls == ["missed it"]
    event.refresh_from_db()
    assert event.delivered_at is not None
    assert run(admin_client, TIMELINE, event)[0].startswith("1 was skipped")
    assert calls == ["missed it"]


def test_signal_that_fails_again_is_retried_later(
    admin_client: Client, receivers: Callable[[Any], None]
) -> None:
    def receiver(**kwargs: Any) -> None:
        raise ValueError("still no")

    receivers(receiver)
    event = failed_signal()
    assert run(admin_client, TIMELINE, event)[0].startswith("1 failed again")
    event.refresh_from_db()
    assert event.attempts == 1
    assert event.next_attempt_at is not None
    assert "still no" in event.last_error


def test_rows_beyond_the_time_budget_are_not_run(
    admin_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_again, "RUN_AGAIN_BUDGET", -1)
    row = failed_delivery()
    assert run(admin_client, INBOX, row)[0].startswith("There was not enough time")
    row.refresh_from_db()
    assert row.status == Status.FAILED


@pytest.mark.parametrize("address", [INBOX, TIMELINE])
@pytest.mark.parametrize("hostile", ["", "x", "9" * 19, "9" * 40, "1,", "1,002", "1.002"])
def test_hostile_ids_get_a_message(admin_client: Client, address: str, hostile: str) -> None:
    for pk in (1, 2):
        failed_delivery(pk=pk) if address == INBOX else failed_signal(pk=pk)
    for response in (
        admin_client.get(address + "run-again/", {"ids": hostile}),
        admin_client.post(address + "run-again/", {"ids": hostile}),
    ):
        assert response["Location"] == address
        assert messages(response)


@pytest.mark.parametrize("address", [INBOX, TIMELINE])
@pytest.mark.parametrize("codename", ["view", "change"])
def test_running_again_needs_the_permission_to_change(
    staff: Callable[..., Client], address: str, codename: str
) -> None:
    row = failed_delivery() if address == INBOX else failed_signal()
    client = staff(f"{codename}_{row._meta.model_name}")
    allowed = codename == "change"
    assert ("run_again" in client.get(address).content.decode()) == allowed
    page = client.get(f"{address}{row.pk}/change/").content.decode()
    assert (f'action="{address}run-again/?ids={row.pk}"' in page) == allowed
    for response in (
        client.get(address + "run-again/", {"ids": row.pk}),
        client.post(address + "run-again/", {"ids": row.pk}),
    ):
        assert (response.status_code == 403) != allowed


@pytest.mark.parametrize("address", [INBOX, TIMELINE])
def test_anonymous_users_are_sent_to_the_login(client: Client, address: str) -> None:
    response = client.post(address + "run-again/", {"ids": "1"})
    assert response["Location"].startswith("/admin/login/")


@pytest.mark.django_db(transaction=True)
def test_running_again_commits_by_itself(
    admin_client: Client, receivers: Callable[[Any], None]
) -> None:
    inside: list[bool] = []

    def receiver(**kwargs: Any) -> None:
        inside.append(connections["default"].in_atomic_block)

    receivers(receiver)
    row = failed_delivery()
    event = failed_signal()
    settings = connections["default"].settings_dict
    before = settings["ATOMIC_REQUESTS"]
    settings["ATOMIC_REQUESTS"] = True
    try:
        run(admin_client, INBOX, row)
        run(admin_client, TIMELINE, event)
    finally:
        settings["ATOMIC_REQUESTS"] = before
    assert inside == [False, False]


FILTERS = "status=failed&q=whatsapp"


def test_the_list_keeps_its_filters(admin_client: Client) -> None:
    row = failed_delivery()
    selected = {"action": "run_again", "_selected_action": [row.pk]}
    address = admin_client.post(f"{INBOX}?{FILTERS}", selected)["Location"]
    page = html.unescape(admin_client.get(address).content.decode())
    assert f'href="{INBOX}?{FILTERS}"' in page, "Cancel"
    response = admin_client.post(address, {"ids": [row.pk]})
    assert response["Location"] == f"{INBOX}?{FILTERS}"


def test_one_row_is_run_from_its_page_which_leads_back_to_the_filtered_list(
    admin_client: Client,
) -> None:
    row = failed_delivery()
    filters = urlencode({"_changelist_filters": FILTERS})
    page = html.unescape(admin_client.get(f"{INBOX}{row.pk}/change/?{filters}").content.decode())
    action = re.search(r'action="([^"]*/run-again/[^"]*)"', page)
    assert action
    response = admin_client.post(action[1], {"ids": [row.pk]})
    assert response["Location"] == f"{INBOX}?{FILTERS}"
    row.refresh_from_db()
    assert row.status == Status.PROCESSED


@pytest.mark.parametrize(
    "filters", ["//evil.example", "%0d%0aSet-Cookie:x", "a=1&a=2&=&b", "\0", "x" * 5000], ids=repr
)
def test_hostile_filters_lead_to_the_list(admin_client: Client, filters: str) -> None:
    row = failed_delivery()
    address = f"{INBOX}run-again/?{urlencode({'_changelist_filters': filters})}"
    response = admin_client.post(address, {"ids": [row.pk]})
    assert urlsplit(response["Location"])[:3] == ("", "", INBOX)


def ignored_decision(**payload: Any) -> WebhookEvent:
    """Meta's decision about an account of which no number was known when it arrived."""
    decision = {
        "business_account_id": "waba-1",
        "occurred_at": timezone.now().isoformat(),
        "ban": {"state": "DISABLE"},
        "id": "decision-1",
        **payload,
    }
    return failed_delivery(
        event="whatsapp.account.disabled",
        payload=decision,
        status=Status.IGNORED,
        last_error="No connected number here belongs to the account waba-1.",
    )


def test_ignored_decision_about_an_account_that_is_known_now_is_applied_once(
    admin_client: Client,
) -> None:
    connection = make_connection(business_account_id="waba-1")
    first, repeated = ignored_decision(), ignored_decision()
    page = admin_client.get(f"{INBOX}{first.pk}/change/").content.decode()
    assert "run-again/" in page
    assert run(admin_client, INBOX, first) == ["1 succeeded."]
    connection.refresh_from_db()
    assert connection.account_status == "disabled"
    assert run(admin_client, INBOX, repeated)[0].startswith("1 failed again")
    repeated.refresh_from_db()
    assert (repeated.status, repeated.last_error[:12]) == (Status.IGNORED, "Out of date:")
    assert TimelineEvent.objects.filter(kind="account_updated").count() == 1


def test_ignored_decision_from_before_the_connection_stays_ignored(admin_client: Client) -> None:
    connection = make_connection(business_account_id="waba-1")
    earlier = (timezone.now() - timedelta(days=1)).isoformat()
    row = ignored_decision(occurred_at=earlier)
    assert run(admin_client, INBOX, row)[0].startswith("1 failed again")
    connection.refresh_from_db()
    assert connection.account_status == "active"


def test_other_ignored_events_are_not_run(admin_client: Client) -> None:
    row = failed_delivery(status=Status.IGNORED)
    assert "run-again/" not in admin_client.get(f"{INBOX}{row.pk}/change/").content.decode()
    assert run(admin_client, INBOX, row)[0].startswith("1 was skipped")
