"""The timeline through the REST API."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from urllib.parse import quote

import pytest
from django.db import connection as database
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from kapso_connect.models import TimelineEvent

from ..factories import make_connection, make_customer, make_link
from .support import Caller, code, make_user

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("unthrottled")]


def make_event(kind: str = "connected", **fields: Any) -> TimelineEvent:
    return TimelineEvent.objects.create(**{"kind": kind, "source": "webhook", **fields})


def ids(caller: Caller, query: str = "") -> list[int]:
    return [row["id"] for row in caller.get(f"events/?{query}").json()["results"]]


def test_event_representation(caller: Caller) -> None:
    link = make_link()
    number = make_connection(link.customer)
    user = make_user("ada")
    event = make_event(
        customer=link.customer, connection=number, setup_link=link, actor=user, data={"a": 1}
    )
    assert caller.get("events/").json() == {
        "next": None,
        "previous": None,
        "results": [
            {
                "id": event.pk,
                "kind": "connected",
                "customer": link.customer_id,
                "connection": number.pk,
                "setup_link": link.pk,
                "source": "webhook",
                "actor": str(user.pk),
                "data": {"a": 1},
                "occurred_at": event.occurred_at.isoformat().replace("+00:00", "Z"),
            }
        ],
    }


def test_pages_do_not_shift_when_events_arrive(caller: Caller) -> None:
    events = [make_event().pk for _ in range(7)]
    url, seen = "/api/whatsapp/v1/events/?page_size=3", []
    while url:
        page = caller.client.get(url).json()
        seen += [row["id"] for row in page["results"]]
        make_event()
        url = page["next"]
    assert seen == events[::-1]


def test_previous_pages(caller: Caller) -> None:
    events = [make_event().pk for _ in range(4)]
    second = caller.client.get(caller.get("events/?page_size=2").json()["next"]).json()
    assert [row["id"] for row in second["results"]] == events[1::-1]
    first = caller.client.get(second["previous"]).json()
    assert [row["id"] for row in first["results"]] == events[:1:-1]


def test_list_is_filtered(caller: Caller) -> None:
    link = make_link()
    number = make_connection(link.customer)
    mine = make_event(customer=link.customer, connection=number, setup_link=link).pk
    make_event("disconnected", customer=make_customer())
    for query in (
        f"customer={link.customer_id}",
        f"connection={number.pk}",
        f"setup_link={link.pk}",
        "kind=connected",
    ):
        assert ids(caller, query) == [mine], query
    assert ids(caller, "customer=99") == []


def test_since_and_until(caller: Caller) -> None:
    noon = timezone.now().replace(hour=12, minute=0, second=0, microsecond=0)
    early, at_noon, late = (
        make_event(occurred_at=noon + timedelta(minutes=minutes)).pk for minutes in (-1, 0, 1)
    )
    text = quote(noon.isoformat())
    assert ids(caller, f"since={text}") == [late, at_noon]
    assert ids(caller, f"until={text}") == [early]
    elsewhere = quote(noon.astimezone(timezone.get_fixed_timezone(120)).isoformat())
    assert ids(caller, f"since={elsewhere}") == [late, at_noon]
    assert ids(caller, f"since={noon:%Y-%m-%dT%H:%M:%SZ}") == [late, at_noon]


@pytest.mark.parametrize("use_tz", [True, False])
def test_since_and_until_without_time_zones(caller: Caller, settings: Any, use_tz: bool) -> None:
    settings.USE_TZ = use_tz
    settings.TIME_ZONE = "Asia/Kolkata"
    if database.vendor != "sqlite":
        pytest.skip("the connection's own time zone was set before")
    make_event()
    (row,) = caller.get("events/").json()["results"]
    assert (
        abs(
            timezone.datetime.fromisoformat(row["occurred_at"][:-1] + "+00:00").timestamp()
            - timezone.datetime.now().timestamp()
        )
        < 60
    )
    assert ids(caller, f"since={row['occurred_at']}") == [row["id"]]


def test_list_takes_a_constant_number_of_queries(caller: Caller) -> None:
    def queries() -> int:
        with CaptureQueriesContext(database) as captured:
            assert caller.get("events/?page_size=100").status_code == 200
        return len(captured)

    actor = make_user("ada")
    link = make_link()
    make_event(actor=actor, setup_link=link)
    one = queries()
    for _ in range(20):
        make_event(customer=make_customer(), actor=actor, setup_link=link)
    assert queries() == one == 3  # two of them for the session and the user


@pytest.mark.parametrize(
    "cursor",
    [
        "x",
        "%00",
        "cD0tMQ==",
        "cD1hYmM=",
        "a" * 201,
        # p=99999999999999999999, p=٣, r=x&p=
        "cD05OTk5OTk5OTk5OTk5OTk5OTk5OQ==",
        "cD3Zow==",
        "cj14JnA9",
    ],
)
def test_invalid_cursors_are_rejected(caller: Caller, cursor: str) -> None:
    make_event()
    answer = caller.get(f"events/?cursor={cursor}")
    assert code(answer, 400) in {"invalid_cursor", "invalid_filter"}
    assert list(answer.json()["fields"]) == ["cursor"]
