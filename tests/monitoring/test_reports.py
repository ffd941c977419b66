"""The statistics of the admin's overview."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from django.db import connection as database
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from kapso_connect.models import (
    DISCONNECTED_BY_STAFF,
    AccountStatus,
    Attention,
    Connection,
    Customer,
    Funding,
    Health,
    SetupLink,
    TimelineEvent,
)
from kapso_connect.monitoring import reports
from kapso_connect.monitoring.reports import Period, Step
from kapso_connect.onboarding import setup_links

from ..factories import make_connection, make_customer, make_link, store_statuses

pytestmark = pytest.mark.django_db

DAY = timedelta(days=1)


def ago(**span: float) -> datetime:
    return timezone.now() - timedelta(**span)


@pytest.fixture
def week() -> Period:
    return Period(ago(days=7), timezone.now() + DAY)


def completed(**fields: Any) -> SetupLink:
    return make_link(
        **{
            "opened_at": timezone.now(),
            "status": SetupLink.Status.USED,
            "setup_status": SetupLink.SetupStatus.COMPLETED,
            **fields,
        }
    )


# The funnel


def test_each_customer_counts_once_in_each_step_reached(week: Period) -> None:
    make_link()
    make_link(opened_at=timezone.now())
    twice = make_customer()
    make_link(twice, status=SetupLink.Status.REVOKED)
    completed(customer=twice)
    assert reports.funnel(week) == reports.Funnel(invited=3, opened=2, connected=1)


def test_rates_are_of_the_invited_and_of_the_previous_step() -> None:
    funnel = reports.Funnel(invited=8, opened=4, connected=1)
    assert funnel.steps == [Step(8, 100, None), Step(4, 50, 50), Step(1, 12.5, 25)]


def test_no_customers_have_no_rates(week: Period) -> None:
    assert reports.funnel(week).steps == [Step(0, None, None)] * 3


def test_link_counts_in_the_period_of_its_creation(week: Period) -> None:
    make_link(created_at=week.start)
    make_link(created_at=week.start - timedelta(seconds=1), opened_at=timezone.now())
    make_link(created_at=week.end)
    assert reports.funnel(week).invited == 1


# Failures


def test_failures_are_counted_by_code_most_frequent_first(week: Period) -> None:
    first, second = make_link(), make_link()
    for code in ("link_expired", "facebook_auth_failed"):
        setup_links.record_failure(first, code)
    setup_links.record_failure(make_link(first.customer), "link_expired")
    setup_links.record_failure(second, "link_expired")
    setup_links.record_failure(make_link(), "not_documented")
    failures = reports.failures(week)
    assert [(row.code, row.times, row.customers) for row in failures.codes] == [
        ("link_expired", 3, 2),
        ("facebook_auth_failed", 1, 1),
        ("not_documented", 1, 1),
    ]
    assert [row.rate for row in failures.codes] == [60, 20, 20]
    assert str(failures.codes[0].failure.title) == "This link has expired"
    assert str(failures.codes[2].failure.title) == "WhatsApp could not be connected"


def test_failures_without_a_code_are_one_reason(week: Period) -> None:
    for data in ({}, {"error_code": ""}):
        TimelineEvent.objects.create(
            kind="setup_failed", source="webhook", customer=make_customer(), data=data
        )
    row = reports.failures(week).codes[0]
    assert (row.code, row.times, row.customers) == ("", 2, 2)
    assert reports.customers_failed_with("", week).count() == 2


def test_infrequent_codes_are_summed_up(week: Period) -> None:
    for number in range(12):
        setup_links.record_failure(make_link(), f"code_{number}")
    failures = reports.failures(week)
    assert (failures.total, len(failures.codes), failures.others) == (12, 10, 2)


def test_only_failures_of_the_period_count(week: Period) -> None:
    setup_links.record_failure(make_link(), "link_expired")
    TimelineEvent.objects.update(occurred_at=week.start - DAY)
    assert reports.failures(week) == reports.Failures(0, [])


# The time to connect


def connected_after(minutes: float, **fields: Any) -> None:
    now = timezone.now()
    link = completed(created_at=now - timedelta(minutes=minutes))
    TimelineEvent.objects.create(
        **{"kind": "connected", "setup_link": link, "occurred_at": now, "source": "webhook"},
        **fields,
    )


@pytest.mark.parametrize(
    ("minutes", "median"),
    [([], None), ([7], 7), ([1, 9], 5), ([100, 1, 2], 2), ([4, 1, 2, 100], 3), ([-5], 0)],
    ids=str,
)
def test_median_duration(week: Period, minutes: list[float], median: float | None) -> None:
    for each in minutes:
        connected_after(each)
    durations = reports.time_to_connect(week)
    assert durations.count == len(minutes)
    assert durations.median == (None if median is None else timedelta(minutes=median))


def test_connection_without_a_link_has_no_duration(week: Period) -> None:
    TimelineEvent.objects.create(kind="connected", source="sync")
    assert reports.time_to_connect(week).count == 0


# Attention


def test_idle_customers_are_counted_and_the_longest_waiting_listed() -> None:
    links = [make_link(created_at=ago(days=30 - number)) for number in range(12)]
    for link in [*links, make_link(created_at=ago(days=3))]:
        Customer.objects.filter(pk=link.customer_id).update(status_changed_at=link.created_at)
    rows = reports.idle_customers(ago(days=5))
    assert (rows.count, rows.listed) == (12, [link.customer for link in links[:10]])


def needing(why: Attention) -> list[Connection]:
    return reports.numbers_needing_attention()[why].listed


@pytest.mark.parametrize(
    ("why", "fields"),
    [
        (Attention.TEST_NUMBER, {"display_phone_number": "+1 555-123-4567"}),
        (Attention.TEST_NUMBER, {"display_phone_number": "15551234567"}),
        (Attention.TEST_NUMBER, {"display_phone_number": "+1 (555) 123 4567"}),
        (Attention.TEST_NUMBER, {"display_phone_number": "1.555.123.4567"}),
        (Attention.RESTRICTED, {"account_status": AccountStatus.RESTRICTED}),
        (Attention.RESTRICTED, {"account_status": AccountStatus.DISABLED}),
        (Attention.NAME, {"name_status": "DECLINED"}),
        (Attention.NAME, {"name_status": "PENDING_REVIEW"}),
        (Attention.NAME, {"name_status": "EXPIRED"}),
        (Attention.NAME, {"name_status": "SOMETHING_NEW"}),
        (Attention.HEALTH, {"health_status": Health.UNHEALTHY}),
        (Attention.HEALTH, {"health_status": Health.DEGRADED}),
        (Attention.HEALTH, {"health_status": Health.ERROR}),
        (Attention.FUNDING, {"funding_status": Funding.NOT_FUNDED}),
        (Attention.FUNDING, {"funding_status": Funding.REVOKED}),
    ],
    ids=lambda value: str(value) if isinstance(value, Attention) else next(iter(value.values())),
)
def test_connected_number_needs_attention(why: Attention, fields: dict[str, Any]) -> None:
    connection = make_connection(**fields)
    found = reports.numbers_needing_attention()
    assert [w for w in Attention if found[w].listed] == [why]
    assert found[why].listed == [connection]
    Connection.objects.update(status=Connection.Status.DISCONNECTED, disconnected_at=ago())
    assert needing(why) == []


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"display_phone_number": "+1 415-555-2671"},
        {"display_phone_number": "+49 1555 1234567"},
        {"name_status": "APPROVED"},
        {"name_status": "AVAILABLE_WITHOUT_REVIEW"},
        {"name_status": "NONE"},
        {"health_status": Health.HEALTHY},
        {"funding_status": Funding.FUNDED},
        {"funding_status": Funding.PENDING},
    ],
    ids=lambda fields: next(iter(fields.values()), "nothing known"),
)
def test_working_number_needs_no_attention(fields: dict[str, Any]) -> None:
    make_connection(**fields)
    found = reports.numbers_needing_attention()
    assert [why for why in Attention if found[why].listed] == []


@pytest.mark.parametrize(("minutes", "needs"), [(50, False), (70, True)])
def test_paused_number_needs_attention_after_an_hour(minutes: int, needs: bool) -> None:
    lost_number(
        disconnect_reason="offboarded",
        disconnected_at=timezone.now() - timedelta(minutes=minutes),
    )
    store_statuses()
    assert bool(needing(Attention.DISCONNECTED)) is needs


def lost_number(**fields: Any) -> Connection:
    return make_connection(
        **{
            "status": Connection.Status.DISCONNECTED,
            "connected_at": ago(days=9),
            "disconnected_at": ago(days=2),
            **fields,
        }
    )


def test_lost_number_needs_attention() -> None:
    lost = lost_number()
    make_link(lost.customer, created_at=ago(days=9))
    make_connection(lost.customer, connected_at=ago(days=8))  # another one, which still works
    assert needing(Attention.DISCONNECTED) == [lost]


def test_lost_number_needs_no_attention_after_a_new_invitation_or_number() -> None:
    make_link(lost_number().customer, is_latest=True)
    make_connection(lost_number().customer)
    lost_number(disconnect_reason=DISCONNECTED_BY_STAFF)
    lost_number(connected_at=None)
    assert needing(Attention.DISCONNECTED) == []


def test_newest_numbers_are_listed_and_all_are_counted() -> None:
    connections = [make_connection(name_status="DECLINED") for _ in range(12)]
    numbers = reports.numbers_needing_attention()[Attention.NAME]
    assert (numbers.count, numbers.listed) == (12, connections[:1:-1])


def test_number_of_queries_does_not_depend_on_rows(week: Period) -> None:
    def queries() -> int:
        with CaptureQueriesContext(database) as captured:
            reports.funnel(week)
            reports.failures(week)
            reports.time_to_connect(week)
            reports.idle_customers(timezone.now() + DAY)
            reports.numbers_needing_attention()
        return len(captured)

    before = queries()
    for number in range(15):
        link = make_link(expires_at=timezone.now() + DAY)
        setup_links.record_failure(link, f"code_{number}")
        connected_after(number, connection=make_connection(name_status="DECLINED"))
        lost_number()
    assert queries() == before
