"""How often one user may ask the REST API."""

from __future__ import annotations

from typing import Any

import pytest

from kapso_connect.api.urls import versioned_patterns
from kapso_connect.models import Customer

from ..factories import make_customer
from .support import Caller, code, make_user, staff

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("unthrottled")]


def set_rates(configure: Any, **rates: str | None) -> None:
    configure(API_THROTTLE_RATES=rates)


def test_too_many_requests_are_429_with_retry_after(configure: Any) -> None:
    set_rates(configure, read="2/min")
    caller = staff()
    assert caller.get("customers/").status_code == caller.get("events/").status_code == 200
    answer = caller.get("customers/")
    assert code(answer, 429) == "throttled"
    assert 1 <= int(answer.headers["Retry-After"]) <= 60


def test_kinds_are_counted_separately(configure: Any) -> None:
    set_rates(configure, read="1/min", write="1/min", kapso="1/min")
    caller = staff()
    pk = make_customer().pk
    assert caller.get("customers/").status_code == 200
    assert caller.post("customers/", {"name": "A"}).status_code == 201
    assert code(caller.post("setup-links/99/revoke/"), 404) == "not_found"
    for method, path in (
        ("GET", "setup-links/"),
        ("POST", "customers/"),
        ("PATCH", f"customers/{pk}/"),
        ("POST", "setup-links/"),
        ("POST", "setup-links/99/revoke/"),
        ("POST", "connections/99/refresh/"),
        ("POST", "connections/99/disconnect/"),
    ):
        assert code(caller.send(method, path, {}), 429) == "throttled", path
    assert Customer.objects.count() == 2


def test_every_endpoint_is_throttled(configure: Any) -> None:
    set_rates(configure, read="1/day", write="1/day", kapso="1/day")
    caller = staff()
    for pattern in versioned_patterns():
        path = str(pattern.pattern).replace("<str:pk>", "99")
        for method in pattern.callback.actions:
            caller.send(method.upper(), path)
            assert caller.send(method.upper(), path).status_code == 429, (method, path)


def test_users_are_counted_separately(configure: Any) -> None:
    set_rates(configure, read="1/min")
    assert staff().get("customers/").status_code == 200
    assert Caller(make_user("other", "view_customer")).get("customers/").status_code == 200


def test_none_means_no_limit(configure: Any) -> None:
    set_rates(configure, kapso=None)
    caller = staff()
    for _ in range(40):
        assert code(caller.post("setup-links/99/revoke/"), 404) == "not_found"


def test_default_limits() -> None:
    caller = staff()
    answers = [caller.post("setup-links/99/revoke/").status_code for _ in range(31)]
    assert answers == [404] * 30 + [429]
