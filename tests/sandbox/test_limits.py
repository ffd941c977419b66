"""Kapso's rate limits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kapso_connect.testing import Sandbox

if TYPE_CHECKING:
    from tests.sandbox.support import Api

pytest_plugins = ("tests.sandbox.support",)


def test_a_key_has_so_many_requests_a_minute(box: Sandbox, box_api: Api) -> None:
    box.set_rate_limit(2)
    answers = [box_api("GET", "/customers") for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 429, 429]
    assert {answer.headers["X-RateLimit-Limit"] for answer in answers} == {"2"}
    remaining = [answer.headers["X-RateLimit-Remaining"] for answer in answers]
    assert remaining == ["1", "0", "0", "0"]
    assert answers[2].headers["Retry-After"] == "60"
    assert "Retry-After" not in answers[1].headers
    box.set_rate_limit(1)
    assert box_api("GET", "/customers").status_code == 200
    box.reset()
    assert "X-RateLimit-Limit" not in box_api("GET", "/customers").headers


def test_requests_without_the_key_do_not_count(box: Sandbox, box_api: Api) -> None:
    box.set_rate_limit(1)
    for _ in range(3):
        assert box_api("GET", "/customers", headers={"X-API-Key": "wrong"}).status_code == 401
    assert box_api("GET", "/customers").status_code == 200


def test_each_key_has_its_own_requests_and_the_limit_its_option() -> None:
    from tests.sandbox.support import Api

    with Sandbox(api_key="", rate_limit=1) as sandbox:
        api = Api(sandbox)
        with api.http:
            sandbox.reset()
            statuses = [
                api("GET", "/customers", headers={"X-API-Key": key}).status_code
                for key in ("a", "b", "a")
            ]
    assert statuses == [200, 200, 429]


def test_a_minute_later_the_requests_are_new() -> None:
    from datetime import timedelta

    from kapso_connect.sandbox.fields import ApiError
    from kapso_connect.sandbox.limits import count_request
    from kapso_connect.sandbox.state import store

    store.reset()
    store.rate_limit = 1
    count_request("key")
    with pytest.raises(ApiError):
        count_request("key")
    started_at, count = store.requests_by_key["key"]
    store.requests_by_key["key"] = started_at - timedelta(minutes=1), count
    assert count_request("key")["X-RateLimit-Remaining"] == "0"
    store.reset()


def test_kapsos_own_limit_is_the_default() -> None:
    from kapso_connect.sandbox.__main__ import parser

    assert parser().parse_args([]).rate_limit == 1000


def test_health_allows_five_requests_a_second(box: Sandbox, box_api: Api) -> None:
    path = f"/whatsapp/phone_numbers/{box.add_number()['phone_number_id']}/health"
    answers = [box_api("GET", path) for _ in range(6)]
    assert [answer.status_code for answer in answers] == [200] * 5 + [429]
    seconds = [answer.headers["X-Health-RateLimit-Second-Remaining"] for answer in answers]
    assert seconds == ["4", "3", "2", "1", "0", "0"]
    minutes = [answer.headers["X-Health-RateLimit-Minute-Remaining"] for answer in answers]
    assert minutes == ["59", "58", "57", "56", "55", "55"]
    assert answers[-1].headers["X-Health-RateLimit-Minute-Limit"] == "60"
    assert answers[-1].headers["Retry-After"] == "1"
    assert answers[-1].json()["message"] == "More than 5 health checks a second in this project"


def test_health_allows_sixty_requests_a_minute() -> None:
    from datetime import timedelta

    from kapso_connect.sandbox.fields import ApiError
    from kapso_connect.sandbox.limits import count_health_check
    from kapso_connect.sandbox.state import now, store

    store.reset()
    store.health_calls = [now() - timedelta(seconds=30)] * 60
    with pytest.raises(ApiError) as caught:
        count_health_check()
    assert caught.value.message == "More than 60 health checks a minute in this project"
    assert caught.value.headers
    assert 29 <= int(caught.value.headers["Retry-After"]) <= 31
    store.reset()


def test_the_health_of_an_unknown_number_has_the_headers_too(box_api: Api) -> None:
    response = box_api("GET", "/whatsapp/phone_numbers/1/health")
    assert response.status_code == 404
    assert response.headers["X-Health-RateLimit-Second-Remaining"] == "4"
