"""What all pages that act on a customer have in common: permissions, history, and
protection against forms sent twice."""

from __future__ import annotations

import re
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User
from django.core import mail
from django.db import connection, connections
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from kapso_connect import onboarding
from kapso_connect.models import Connection, Customer, TimelineEvent

from ..cases import combinations
from ..factories import make_connection, make_customer
from ..sites.host_site.models import Bakery, Branch, Franchise
from .world import (
    CONFIRMED,
    EXPECTED,
    GOOD,
    NUMBER_PAGES,
    PAGE_PERMISSIONS,
    PAGES,
    VIEWS,
    World,
    kinds,
    messages,
)

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.mark.parametrize(("side", "page"), combinations(["site", "package"], PAGES))
def test_every_action_is_in_the_timeline_and_in_both_histories(
    world: World, page: str, side: str
) -> None:
    of = world.bakery if side == "site" else world.customer
    response = world.post(page, GOOD.get(page), of=of)
    assert response.status_code == (204 if page == "copied" else 302), response.content
    kind, entry = EXPECTED[page]
    event = TimelineEvent.objects.filter(kind=kind).latest("pk")
    assert (event.customer, event.actor) == (world.customer, world.user)
    logged = LogEntry.objects.filter(change_message__startswith=entry)
    assert sorted(str(log.object_id) for log in logged) == sorted(
        [str(world.customer.pk), str(world.bakery.pk)]
    )
    assert {log.content_type.model for log in logged} == {"customer", "bakery"}
    assert {log.user for log in logged} == {world.user}


@pytest.mark.parametrize("page", PAGES)
def test_each_action_needs_its_own_permissions_and_no_other(world: World, page: str) -> None:
    world.user.is_superuser = False
    world.user.save()
    needed = PAGE_PERMISSIONS[page]
    version = {"version": "nothing"}
    for missing in needed:
        every = {name for names in PAGE_PERMISSIONS.values() for name in names}
        world.allow(*VIEWS, *(every - {missing}))
        assert world.client.post(world.url(page), version).status_code == 403
        assert world.client.get(world.url(page)).status_code == 403
    world.allow("view_customer", *needed)  # but not the bakery
    assert world.client.post(world.url(page), version).status_code == 403
    assert kinds() == []
    world.allow(*VIEWS, *needed)
    assert world.post(page, GOOD.get(page)).status_code in (204, 302)
    assert EXPECTED[page][0] in ["setup_link_created", *kinds()]


@pytest.mark.parametrize("page", PAGES)
def test_anonymous_users_are_sent_to_the_login(world: World, page: str) -> None:
    response = Client().post(world.url(page))
    assert response.status_code == 302
    assert "/login/" in response["Location"]
    assert kinds() == []


@pytest.mark.parametrize("key", ["999999999999999999999", "x", "%00", "-1", "_", "a_2Fb"])
def test_unknown_object_is_not_found(world: World, key: str) -> None:
    franchise = Franchise.objects.create(title="Has the key of its parent")
    for obj in (world.bakery, franchise):
        for page in PAGES:
            path = world.url(page, of=obj).replace(f"/{obj.pk}/{page}/", f"/{key}/{page}/")
            assert world.client.post(path).status_code == 404, page


@pytest.mark.parametrize("page", sorted(NUMBER_PAGES))
def test_a_number_of_another_customer_is_not_found(world: World, page: str) -> None:
    other = make_connection()
    response = world.client.post(world.url(page, number=other), {"version": ""})
    assert response.status_code == 404
    assert "no longer does" in response.content.decode()
    other.refresh_from_db()
    assert other.is_connected
    assert kinds() == []


@pytest.mark.parametrize("page", ["health", "disconnect", "reconnect"])
def test_number_that_moved_to_another_customer_is_not_touched(world: World, page: str) -> None:
    version = {} if page == "health" else world.form_version(page)
    world.number.customer = make_customer()
    world.number.save()
    assert world.client.post(world.url(page), version).status_code == 404
    assert (
        world.request_count("DELETE", "phone_numbers"),
        world.request_count("POST", "setup_links"),
    ) == (0, 1)


@pytest.mark.parametrize("page", PAGES)
def test_customer_who_was_never_invited_gets_a_message(world: World, page: str) -> None:
    bakery = Bakery.objects.create(title="New")
    response = world.client.post(world.url(page, of=bakery))
    assert response["Location"] == reverse("admin:host_site_bakery_change", args=[bakery.pk])
    assert messages(response) == "This customer has not been invited yet."
    assert Customer.objects.count() == 1


def test_quoted_primary_keys_are_found(world: World) -> None:
    branch = Branch.objects.create(code="north/1_2")
    world.customer.owner = branch
    world.customer.save()
    path = reverse("admin:host_site_branch_whatsapp_qr", args=["north_2F1_5F2"])
    assert world.client.post(path).status_code == 302
    assert LogEntry.objects.filter(object_id=branch.pk).exists()
    page = world.client.get(path).content.decode()
    assert "/host_site/branch/north_2F1_5F2/change/" in page


@pytest.mark.parametrize("page", CONFIRMED)
def test_a_form_that_is_sent_twice_acts_once(world: World, page: str) -> None:
    data = {**world.form_version(page), **GOOD.get(page, {})}
    events = TimelineEvent.objects.count()
    first, second = (world.client.post(world.url(page), data) for _ in range(2))
    assert "Nothing was changed" not in messages(first)
    assert messages(second), "the second one gets a message"
    # A new link ends the one before, and a number's end is the end of the customer's link.
    assert TimelineEvent.objects.count() == events + 1 + (page in {"reconnect", "disconnect"})
    assert len(mail.outbox) == (page == "email")


@pytest.mark.parametrize("version", [None, "", "x", "1", "x" * 10_000, "\0", "2026-01-01 1 active"])
def test_form_with_another_version_does_nothing(world: World, version: str | None) -> None:
    for page in CONFIRMED:
        data = dict(GOOD.get(page, {})) | ({} if version is None else {"version": version})
        response = world.client.post(world.url(page), data)
        assert response["Location"] == world.url(page)
        assert "Nothing was changed" in messages(response), page
        assert kinds() == []
        assert mail.outbox == []


@pytest.mark.parametrize("page", CONFIRMED)
def test_form_opened_before_somebody_elses_change_does_nothing(world: World, page: str) -> None:
    hers = {**world.form_version(page), **GOOD.get(page, {})}
    other = Client()
    other.force_login(User.objects.create_superuser("bob"))
    onboarding.create_setup_link(world.customer)  # by the other one, in between
    if page == "disconnect":
        Connection.objects.update(connected_at=timezone.now())
    before = kinds()
    response = world.client.post(world.url(page), hers)
    assert "Nothing was changed" in messages(response)
    assert kinds() == before
    assert mail.outbox == []


@pytest.mark.parametrize("page", CONFIRMED)
def test_form_sent_by_two_people_at_the_same_time_acts_once(world: World, page: str) -> None:
    data = {**world.form_version(page), **GOOD.get(page, {})}
    events, both_have_read = TimelineEvent.objects.count(), threading.Barrier(2, timeout=10)
    others = Client()
    others.force_login(User.objects.create_superuser("bob"))

    def send(client: Client) -> str:
        waiting = [both_have_read]

        def wait_after_reading_the_link(execute: Any, sql: str, *args: Any) -> Any:
            result = execute(sql, *args)
            if waiting and sql.startswith("SELECT") and "setuplink" in sql:
                waiting.pop().wait()
            return result

        try:
            with connection.execute_wrapper(wait_after_reading_the_link):
                return messages(client.post(world.url(page), data))
        finally:
            connection.close()

    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(send, [world.client, others]))
    assert sum("Nothing was changed" in answer for answer in answers) == 1, answers
    # A new link revokes the one before; disconnecting a number revokes the customer's link.
    assert TimelineEvent.objects.count() == events + 1 + (page in {"reconnect", "disconnect"})
    assert len(mail.outbox) == (page == "email")


@pytest.mark.parametrize("page", CONFIRMED)
def test_customer_deleted_while_the_form_is_handled_gets_a_message(world: World, page: str) -> None:
    data = {**world.form_version(page), **GOOD.get(page, {})}

    def delete_after_the_form_is_accepted(execute: Any, sql: str, *args: Any) -> Any:
        result = execute(sql, *args)
        if sql.startswith("UPDATE") and "kapso_connect_customer" in sql:
            connection.execute_wrappers.remove(delete_after_the_form_is_accepted)
            Customer.objects.filter(pk=world.customer.pk).delete()
        return result

    connection.execute_wrappers.append(delete_after_the_form_is_accepted)
    response = world.client.post(world.url(page), data)
    assert response.status_code == 302
    assert messages(response)
    assert not Customer.objects.exists()
    assert not TimelineEvent.objects.exists()


@pytest.mark.parametrize("key", ["", "schlüssel"])
def test_missing_key_is_not_called_a_rejected_one(world: World, configure: Any, key: str) -> None:
    configure(API_KEY=key)
    response = world.client.post(world.url("health"))
    assert "no usable API key" in messages(response)
    assert "rejected" not in messages(response)


FAULTS = {
    "away": ({"kind": "status", "status": 503}, "Kapso did not respond"),
    "key": ({"kind": "status", "status": 401}, "rejected this site's API key"),
    "too often": ({"kind": "status", "status": 429, "retry_after": 600}, "had too many requests"),
    "nonsense": ({"kind": "html", "status": 200}, "unexpected response"),
}


@pytest.mark.parametrize(
    ("page", "fault_and_words"),
    combinations(["revoke", "extend", "reconnect", "health", "disconnect"], FAULTS),
)
def test_error_from_kapso_is_explained_and_changes_nothing(
    world: World, page: str, fault_and_words: tuple[dict[str, Any], str]
) -> None:
    fault, words = fault_and_words
    data = {} if page == "health" else {**world.form_version(page), **GOOD.get(page, {})}
    world.sandbox.faults(api=[fault])
    response = world.client.post(world.url(page), data)
    assert response.status_code == 302
    assert words in messages(response)
    assert (kinds(), LogEntry.objects.count()) == ([], 0)
    world.link.refresh_from_db()
    world.number.refresh_from_db()
    assert (world.link.status, world.number.status) == ("active", "connected")
    world.sandbox.clear_faults()
    assert "Nothing was changed" not in messages(world.post(page, GOOD.get(page)))


@pytest.mark.parametrize(
    ("name", "page"),
    combinations(
        ["x" * 255, "مخبز \u202eمقلوب", "🥐🥖", "<script>alert(1)</script>"],
        [*CONFIRMED, "qr", "share"],
    ),
)
def test_any_name_is_shown(world: World, name: str, page: str) -> None:
    Bakery.objects.update(title=name)
    Customer.objects.update(name=name)
    response = world.client.get(world.url(page))
    assert response.status_code == 200
    assert "<script>alert" not in response.content.decode()
    assert world.post(page, GOOD.get(page)).status_code == 302


def test_it_works_in_another_admin_site(world: World) -> None:
    path = reverse("other:host_site_bakery_whatsapp_revoke", args=[world.bakery.pk])
    page = world.client.get(path).content.decode()
    back = reverse("other:host_site_bakery_change", args=[world.bakery.pk])
    assert back in page
    version = re.search(r'name="version" value="([^"]*)"', page)
    assert version
    assert world.client.post(path, {"version": version[1]})["Location"] == back


@pytest.mark.parametrize("page", PAGES)
def test_it_works_under_atomic_requests(
    world: World, page: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(connections["default"].settings_dict, "ATOMIC_REQUESTS", True)
    assert world.post(page, GOOD.get(page)).status_code in (204, 302)
