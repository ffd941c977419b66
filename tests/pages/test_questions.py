"""How much of Kapso's API and of the web server's workers the success page can use up."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from unittest import mock

import pytest
from django.core.cache import cache
from django.db import connections
from django.test import Client
from django.utils import timezone

from kapso_connect import onboarding
from kapso_connect.models import SetupLink
from kapso_connect.onboarding.connect_urls import connect_path
from kapso_connect.pages import questions, rate_limit
from kapso_connect.testing import Sandbox

from ..clock import FakeClock
from ..factories import allow_questions, make_connection, make_customer, make_link, remote_customer
from ..onboarding.support import during_request
from .test_views import success, text, visit

pytestmark = pytest.mark.django_db(transaction=True)

AWAY = {"match": ".*", "kind": "status", "status": 503}


@pytest.fixture(autouse=True)
def _nothing_was_asked() -> None:
    cache.clear()


@pytest.fixture
def waiting(sandbox: Sandbox) -> str:
    """The URL of a success page that waits for Kapso, which is away."""
    link = make_link(remote_customer(sandbox))
    number = sandbox.add_number(customer_id=link.customer.kapso_id)
    sandbox.faults(api=[AWAY])
    return success(link, number["phone_number_id"])


def asked(sandbox: Sandbox) -> int:
    return len(sandbox.requests())


def test_a_page_view_asks_once_and_the_next_one_after_a_pause(
    waiting: str, sandbox: Sandbox, client: Client
) -> None:
    before = asked(sandbox)
    for _ in range(10):
        response = client.get(waiting)
        assert response.status_code == 202
        assert "Almost there" in text(response)
    assert asked(sandbox) - before == 1
    wait = SetupLink.objects.get().next_question_at - timezone.now()
    assert timedelta(0) < wait <= questions.MIN_PAUSE
    SetupLink.objects.update(next_question_at=timezone.now())
    client.get(waiting)
    assert asked(sandbox) - before == 2


def test_one_process_asks_about_a_link_at_a_time(waiting: str, sandbox: Sandbox) -> None:
    answers = []

    def seven_others() -> None:
        # Also without a cache.
        with mock.patch.object(questions.cache, "get", side_effect=ConnectionError):
            answers.extend(Client().get(waiting).status_code for _ in range(7))

    assert (
        during_request(sandbox, ".*", seven_others, lambda: Client().get(waiting).status_code)
        == 200
    )
    assert answers == [202] * 7
    assert len([row for row in sandbox.requests() if row["fault"]]) == 1


def test_lease_of_a_process_that_died_ends(
    waiting: str, sandbox: Sandbox, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox.clear_faults()
    with (
        mock.patch("requests.adapters.HTTPAdapter.send", side_effect=KeyboardInterrupt),
        mock.patch.object(questions, "MIN_PAUSE", timedelta(seconds=60)),
        pytest.raises(KeyboardInterrupt),
    ):
        client.get(waiting)
    lease = timezone.now() + timedelta(seconds=15)
    SetupLink.objects.update(next_question_at=lease)
    assert client.get(waiting).status_code == 202
    FakeClock(monkeypatch, lease + timedelta(seconds=1))
    assert client.get(waiting).status_code == 200


def test_questions_about_a_link_are_limited(
    waiting: str, sandbox: Sandbox, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rate_limit, "QUESTION_RATE_LIMIT", 3)
    monkeypatch.setattr(rate_limit.time, "time", lambda: 1_800_000_000)
    before = asked(sandbox)

    def view() -> int:
        SetupLink.objects.update(next_question_at=None)
        client.get(waiting)
        return asked(sandbox) - before

    assert [view() for _ in range(5)] == [1, 2, 3, 3, 3]
    # Who has only the link's id does not use up the limit of the customer's own browser.
    customer = SetupLink.objects.get().customer
    customer.connect_key = "mine"
    customer.save(update_fields=["connect_key"])
    client.cookies["kapso_connect_token"] = visit(customer)
    assert [view() for _ in range(5)] == [4, 5, 6, 6, 6]
    monkeypatch.setattr(rate_limit.time, "time", lambda: 1_800_000_000 + rate_limit.RATE_PERIOD)
    assert view() == 7


@pytest.mark.parametrize("method", ["get", "set", "add"])
def test_with_a_broken_cache_pages_still_ask(
    waiting: str, sandbox: Sandbox, client: Client, method: str
) -> None:
    sandbox.clear_faults()
    with (
        mock.patch.object(questions, "SLOW_SECONDS", 0),
        mock.patch.object(questions.cache, method, side_effect=ConnectionError("away")),
    ):
        assert client.get(waiting).status_code == 200


def test_after_a_slow_answer_no_page_asks_for_a_while(
    waiting: str, sandbox: Sandbox, client: Client
) -> None:
    other = onboarding_link(sandbox)
    client.get(waiting)
    assert not questions.is_slow()  # a quick error holds no worker
    allow_questions()
    with mock.patch.object(questions, "SLOW_SECONDS", 0):
        client.get(waiting)
    sandbox.clear_faults()
    before = asked(sandbox)
    number = sandbox.add_number(customer_id=other.customer.kapso_id)["phone_number_id"]
    assert client.get(success(other, number)).status_code == 202
    # The button leads on, unchecked; an expired link is not renewed at once.
    assert client.post(connect_path(other.customer))["Refresh"].endswith(other.url)
    SetupLink.objects.filter(pk=other.pk).update(expires_at=timezone.now())
    assert client.post(connect_path(other.customer)).status_code == 503
    assert asked(sandbox) == before + 0
    cache.delete(questions.SLOW_KEY)
    assert client.get(success(other, number)).status_code == 200


def onboarding_link(sandbox: Sandbox) -> SetupLink:
    sandbox.clear_faults()
    link = onboarding.create_setup_link(make_customer(kapso_id=None))
    sandbox.faults(api=[AWAY])
    return link


def test_completed_links_ask_nothing(sandbox: Sandbox, client: Client) -> None:
    known = make_connection(display_phone_number="+442071838750")
    link = make_link(known.customer, status="used", setup_status="completed")
    before = asked(sandbox)
    assert client.get(success(link, known.phone_number_id)).status_code == 200
    assert client.get(success(link, "1")).status_code == 404
    assert asked(sandbox) == before


def test_a_known_number_shows_success_without_waiting_for_its_link(
    waiting: str, sandbox: Sandbox, client: Client
) -> None:
    known = make_connection(display_phone_number="+442071838750")
    url = success(make_link(known.customer), known.phone_number_id)
    before = asked(sandbox)
    with ThreadPoolExecutor(4) as executor:

        def view(_: int) -> int:
            try:
                return Client().get(url).status_code
            finally:
                connections.close_all()

        assert set(executor.map(view, range(8))) == {200}
    assert asked(sandbox) - before == 1


def test_a_slow_question_is_noted_by_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, questions.SLOW_SECONDS - 0.1, 10.0, 10.0 + questions.SLOW_SECONDS])
    monkeypatch.setattr(questions, "time", mock.Mock(monotonic=lambda: next(clock)))
    with questions.noting_slowness():
        pass
    assert not questions.is_slow()
    with questions.noting_slowness():
        pass
    assert questions.is_slow()
