"""A Kapso that never answers holds workers of the web server; webhooks must not wait behind it."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator

import pytest

from kapso_connect.conf import KAPSO_WEBHOOK_TIMEOUT
from kapso_connect.testing import Sandbox

from ..factories import CREATED, new_number_id
from .support import Answer, Request, Site, at_once, delivery, form, new_database

BUDGET = 5.0


@pytest.fixture(scope="module")
def kapso() -> Iterator[Sandbox]:
    with Sandbox(api_key="test-api-key", webhook_secret="test-webhook-secret") as kapso:
        yield kapso


@pytest.fixture
def site(kapso: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Two workers, each with one request at a time."""
    kapso.reset()
    variables = {"KAPSO_PROOF_API_URL": kapso.url, "KAPSO_PROOF_REQUEST_BUDGET": str(BUDGET)}
    with (
        new_database("sqlite", tmp_path_factory.mktemp("hanging")) as url,
        Site(url, workers=2, threads=1, **variables) as site,
    ):
        yield site


def success_pages(site: Site, kapso: Sandbox, links: int) -> list[Request]:
    for _ in range(links):
        site.send(form("/proof/invite/", external_customer_id=str(uuid.uuid4())))
    return [
        Request(
            "GET",
            f"/whatsapp/success/?setup_link_id={link['id']}&phone_number_id={new_number_id()}",
        )
        for link in kapso.state()["setup_links"]
    ]


def webhook_behind(site: Site, pages: list[Request]) -> tuple[Answer, list[Answer]]:
    """Send all ``pages`` at once, and a webhook right after them; return the answers."""
    answers: list[Answer] = []
    visitors = threading.Thread(
        target=lambda: answers.extend(at_once([lambda p=page: site.send(p) for page in pages]))
    )
    visitors.start()
    time.sleep(0.5)
    payload = {
        "phone_number_id": new_number_id(),
        "project": {"id": str(uuid.uuid4())},
        "customer": {"id": str(uuid.uuid4()), "external_id": str(uuid.uuid4())},
    }
    answer = site.send(delivery(payload, event=CREATED))
    visitors.join()
    return answer, answers


def test_eight_views_of_one_links_page_hold_one_worker(site: Site, kapso: Sandbox) -> None:
    (page,) = success_pages(site, kapso, 1)
    kapso.faults(api=[{"match": ".*", "kind": "hang", "seconds": 60}])
    webhook, views = webhook_behind(site, [page] * 8)
    assert webhook.status == 200
    assert webhook.seconds < BUDGET - 1
    assert [view.status for view in views] == [202] * 8
    assert sum(view.seconds > BUDGET - 1 for view in views) == 1
    # One for the page, one for the details of the webhook's number.
    assert len([row for row in kapso.requests() if row["fault"]]) == 1 + 1


def test_pages_of_eight_links_do_not_hold_up_a_webhook(site: Site, kapso: Sandbox) -> None:
    pages = success_pages(site, kapso, 8)
    kapso.faults(api=[{"match": ".*", "kind": "hang", "seconds": 60}])
    webhook, views = webhook_behind(site, pages)
    assert webhook.status == 200
    assert webhook.seconds < KAPSO_WEBHOOK_TIMEOUT - 2
    assert [view.status for view in views] == [202] * 8
    assert len([row for row in kapso.requests() if row["fault"]]) == 2 + 1


def test_connect_buttons_do_not_hold_up_a_webhook(site: Site, kapso: Sandbox) -> None:
    paths = [
        site.send(form("/proof/invite/", external_customer_id=str(uuid.uuid4()))).json[
            "connect_path"
        ]
        for _ in range(8)
    ]
    kapso.faults(api=[{"match": ".*", "kind": "hang", "seconds": 60}])
    webhook, views = webhook_behind(site, [Request("POST", path) for path in paths])
    assert webhook.status == 200
    assert webhook.seconds < KAPSO_WEBHOOK_TIMEOUT - 2
    assert [view.status for view in views] == [200] * 8
