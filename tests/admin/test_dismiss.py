"""What has failed and needs no attention is dismissed, with a reason that is kept."""

from __future__ import annotations

import html
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User
from django.db import connection as database
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from kapso_connect import outbox
from kapso_connect.models import TimelineEvent, WebhookEvent
from kapso_connect.webhooks import inbox

from .test_run_again import INBOX, TIMELINE, failed_delivery, failed_signal, messages, run

pytestmark = pytest.mark.django_db

REASON = "A test of <the> sandbox"
BOTH = pytest.mark.parametrize(
    ("address", "make", "failed", "dismissed"),
    [
        (INBOX, failed_delivery, "status=failed", "status=dismissed"),
        (TIMELINE, failed_signal, "signal=failed", "signal=dismissed"),
    ],
    ids=["webhooks", "signals"],
)
Maker = Callable[..., Any]


def dismiss(client: Client, address: str, *rows: Any, reason: str = REASON) -> list[str]:
    action = client.post(
        address, {"action": "dismiss", "_selected_action": [row.pk for row in rows]}
    )
    page = client.get(action["Location"])
    assert page.status_code == 200
    response = client.post(action["Location"], {"ids": page.context["ids"], "reason": reason})
    assert response["Location"] == address
    return messages(response)


def listed(client: Client, url: str) -> list[Any]:
    return list(client.get(url).context["cl"].queryset)


@BOTH
def test_failed_rows_are_dismissed_with_a_reason(
    admin_client: Client,
    admin_user: User,
    address: str,
    make: Maker,
    failed: str,
    dismissed: str,
) -> None:
    rows = [make(), make()]
    kept = make()
    assert dismiss(admin_client, address, *rows) == ["2 were dismissed."]
    for row in rows:
        row.refresh_from_db()
        assert (row.dismissed_by, row.dismissed_because) == (admin_user, REASON)
        assert row.dismissed_at is not None
        assert row.last_error
    assert listed(admin_client, f"{address}?{failed}") == [kept]
    assert listed(admin_client, f"{address}?{dismissed}") == rows[::-1]
    logged = LogEntry.objects.filter(object_id=str(rows[0].pk)).get()
    assert (logged.user, logged.change_message) == (admin_user, f"Dismissed: {REASON}")


@BOTH
def test_list_and_page_show_who_dismissed_it_when_and_why(
    admin_client: Client, address: str, make: Maker, failed: str, dismissed: str
) -> None:
    row = make()
    dismiss(admin_client, address, row)
    page_url = f"{address}{row.pk}/change/"
    for url in (f"{address}?{dismissed}", page_url):
        page = admin_client.get(url).content.decode()
        assert '<span class="kapso-badge kapso-badge-neutral">Dismissed</span>' in page
        assert "Dismissed by admin on " in page
        assert "A test of &lt;the&gt; sandbox" in page
    assert "dismiss/?ids" not in page
    assert "run-again/?ids" in page


@BOTH
def test_page_of_a_failed_row_leads_to_its_dismissal_and_back_to_the_filtered_list(
    admin_client: Client, address: str, make: Maker, failed: str, dismissed: str
) -> None:
    row = make()
    filters = urlencode({"_changelist_filters": failed})
    page = html.unescape(admin_client.get(f"{address}{row.pk}/change/?{filters}").content.decode())
    url = f"{address}dismiss/?ids={row.pk}&{filters}"
    assert f'href="{url}"' in page
    form = html.unescape(admin_client.get(url).content.decode())
    assert f'href="{address}?{failed}"' in form, "Cancel"
    response = admin_client.post(url, {"ids": row.pk, "reason": REASON})
    assert response["Location"] == f"{address}?{failed}"


@BOTH
def test_only_failed_rows_are_dismissed(
    admin_client: Client, address: str, make: Maker, failed: str, dismissed: str
) -> None:
    if make is failed_delivery:
        done = make(status=WebhookEvent.Status.PROCESSED)
        waiting = make(status=WebhookEvent.Status.PENDING, next_attempt_at=timezone.now())
    else:
        done = make(delivered_at=timezone.now())
        waiting = make(next_attempt_at=timezone.now())
    first = make()
    dismiss(admin_client, address, first, reason="The first reason")
    assert dismiss(admin_client, address, done, waiting, first)[0].startswith("3 were skipped")
    for row in (done, waiting):
        row.refresh_from_db()
        assert row.dismissed_at is None
        assert "dismiss/?ids" not in admin_client.get(f"{address}{row.pk}/change/").text
    first.refresh_from_db()
    assert first.dismissed_because == "The first reason"


@pytest.mark.parametrize(
    ("reason", "message"),
    [
        ("", "This field is required."),
        ("   ", "This field is required."),
        ("x" * 201, "at most 200 characters"),
        ("a\0b", "Null characters are not allowed."),
    ],
    ids=["empty", "blank", "long", "null"],
)
def test_reason_is_required_and_short(admin_client: Client, reason: str, message: str) -> None:
    row = failed_delivery()
    response = admin_client.post(f"{INBOX}dismiss/", {"ids": row.pk, "reason": reason})
    assert response.status_code == 200
    assert message in response.content.decode()
    row.refresh_from_db()
    assert row.dismissed_at is None


@BOTH
def test_running_it_again_takes_the_dismissal_back(
    admin_client: Client, address: str, make: Maker, failed: str, dismissed: str
) -> None:
    row = make(payload={}) if make is failed_delivery else make()
    dismiss(admin_client, address, row)
    run(admin_client, address, row)
    row.refresh_from_db()
    assert (row.dismissed_at, row.dismissed_by, row.dismissed_because) == (None, None, "")
    if make is failed_delivery:
        assert listed(admin_client, f"{address}?{failed}") == [row]


def test_row_that_was_run_again_meanwhile_is_not_dismissed(admin_user: User) -> None:
    event, signal = failed_delivery(), failed_signal()
    WebhookEvent.objects.update(status=WebhookEvent.Status.PROCESSED)
    TimelineEvent.objects.update(next_attempt_at=timezone.now())
    assert not inbox.dismiss(event, by=admin_user, because=REASON)
    assert not outbox.dismiss(signal, by=admin_user, because=REASON)
    assert not WebhookEvent.objects.dismissed().exists()
    assert not TimelineEvent.objects.dismissed().exists()


@BOTH
@pytest.mark.parametrize("codename", ["view", "change"])
def test_dismissing_needs_the_permission_to_change(
    staff: Callable[..., Client],
    address: str,
    make: Maker,
    failed: str,
    dismissed: str,
    codename: str,
) -> None:
    row = make()
    client = staff(f"{codename}_{row._meta.model_name}")
    allowed = codename == "change"
    assert ('value="dismiss"' in client.get(address).content.decode()) == allowed
    page = client.get(f"{address}{row.pk}/change/").content.decode()
    assert (f'href="{address}dismiss/?ids={row.pk}"' in page) == allowed
    for response in (
        client.get(f"{address}dismiss/", {"ids": row.pk}),
        client.post(f"{address}dismiss/", {"ids": row.pk, "reason": REASON}),
    ):
        assert (response.status_code == 403) != allowed
    row.refresh_from_db()
    assert (row.dismissed_at is not None) == allowed


@BOTH
def test_member_of_staff_who_left_is_no_longer_named(
    admin_client: Client,
    address: str,
    make: Maker,
    failed: str,
    dismissed: str,
    django_user_model: Any,
) -> None:
    former = django_user_model.objects.create_user("former")
    row = make(dismissed_at=timezone.now(), dismissed_by=former, dismissed_because=REASON)
    former.delete()
    assert "Dismissed by somebody on " in admin_client.get(f"{address}{row.pk}/change/").text


@BOTH
def test_more_dismissed_rows_need_no_more_queries(
    admin_client: Client,
    admin_user: User,
    address: str,
    make: Maker,
    failed: str,
    dismissed: str,
) -> None:
    def queries() -> int:
        make(dismissed_at=timezone.now(), dismissed_by=admin_user, dismissed_because=REASON)
        with CaptureQueriesContext(database) as captured:
            admin_client.get(f"{address}?{dismissed}")
        return len(captured)

    assert queries() == queries()


# What has failed announces itself

CUSTOMERS = "/admin/kapso_connect/customer/"
INDEX = "/admin/kapso_connect/"
OVERVIEW = f"{CUSTOMERS}overview/"
ANNOUNCING = [INBOX, TIMELINE, CUSTOMERS, INDEX, OVERVIEW]


@pytest.mark.parametrize("url", ANNOUNCING)
def test_what_has_failed_is_announced_with_links_to_it(admin_client: Client, url: str) -> None:
    failed_delivery(), failed_delivery(), failed_signal()
    failed_delivery(dismissed_at=timezone.now())
    page = " ".join(admin_client.get(url).text.split())
    assert f'<a href="{INBOX}?status=failed">2 webhooks failed and need attention.</a>' in page
    assert f'<a href="{TIMELINE}?signal=failed">1 signal failed and needs attention.</a>' in page
    assert len(listed(admin_client, f"{INBOX}?status=failed")) == 2
    assert len(listed(admin_client, f"{TIMELINE}?signal=failed")) == 1


@pytest.mark.parametrize("url", ANNOUNCING)
def test_nothing_is_announced_when_nothing_has_failed(admin_client: Client, url: str) -> None:
    failed_delivery(dismissed_at=timezone.now())
    failed_signal(dismissed_at=timezone.now())
    assert "need attention.</a>" not in admin_client.get(url).text
    assert "needs attention.</a>" not in admin_client.get(url).text


def test_what_has_failed_is_announced_to_those_who_may_view_it(
    staff: Callable[..., Client],
) -> None:
    failed_delivery(), failed_signal()
    client = staff("view_customer", "view_webhookevent")
    for url in (CUSTOMERS, INDEX):
        page = client.get(url).text
        assert "1 webhook failed and needs attention." in page
        assert "1 signal failed" not in page
