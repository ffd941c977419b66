"""How often one user may ask the REST API."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from django.core.cache.backends.dummy import DummyCache
from django.db import OperationalError, connection
from django.http import HttpResponse
from django.urls import include
from django.urls import path as url_path
from rest_framework.exceptions import APIException
from rest_framework.throttling import BaseThrottle, UserRateThrottle

from kapso_connect.api.throttling import ApiThrottle
from kapso_connect.api.urls import urls_for, versioned_patterns
from kapso_connect.api.views import Api
from kapso_connect.models import Customer
from kapso_connect.testing import Sandbox

from ..factories import make_customer
from .support import API, Caller, code, make_user, staff

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


def test_by_default_30_requests_a_minute_may_call_kapso() -> None:
    caller = staff()
    answers = [caller.post("setup-links/99/revoke/").status_code for _ in range(31)]
    assert answers == [404] * 30 + [429]


# The headers


def left(answer: HttpResponse) -> int:
    """Check the shape of the RateLimit headers, and return how many requests are left."""
    limit, remaining, reset = (answer.headers[f"RateLimit-{name}"] for name in NAMES)
    assert 0 <= int(remaining) <= int(limit)
    assert 0 <= int(reset) <= 60
    return int(remaining)


NAMES = ("Limit", "Remaining", "Reset")
NONE = {f"RateLimit-{name}": None for name in NAMES}


def sent(answer: HttpResponse) -> dict[str, str | None]:
    return {name: answer.headers.get(name) for name in NONE}


def test_counted_requests_say_what_is_left(configure: Any, sandbox: Sandbox) -> None:
    set_rates(configure, read="9/min", write="5/min", kapso="4/min")
    caller = staff()
    pk = make_customer(pk=7).pk
    status = caller.get("customers/7/status/")
    assert (status.status_code, left(status)) == (200, 8)
    assert status.headers["RateLimit-Limit"] == "9"
    assert status.headers["RateLimit-Reset"] in {"59", "60"}
    etag = {"If-None-Match": status.headers["ETag"]}
    for number, (answer, expected) in enumerate(
        [
            (caller.get("customers/7/status/", headers=etag), 304),
            (caller.get("customers/?status=nowhere"), 400),
            (caller.get("customers/99/"), 404),
            (caller.send("DELETE", "customers/"), 405),
        ]
    ):
        assert (answer.status_code, left(answer)) == (expected, 7 - number)
    for number, (answer, expected) in enumerate(
        [
            (caller.post("customers/", {"name": "A"}), 201),
            (caller.post("customers/", b"a", content_type="text/plain"), 415),
            (caller.post("customers/", b"{"), 400),
        ]
    ):
        assert (answer.status_code, left(answer)) == (expected, 4 - number)
    sandbox.faults(api=[{"match": ".*", "kind": "html", "status": 403}])
    answer = caller.post("setup-links/", {"customer": pk})
    assert (code(answer, 503), left(answer)) == ("kapso_blocked", 3)


def test_a_refused_request_has_none_left(configure: Any) -> None:
    set_rates(configure, read="2/min")
    caller = staff()
    answers = [caller.get("customers/") for _ in range(3)]
    assert [(answer.status_code, left(answer)) for answer in answers] == [
        (200, 1),
        (200, 0),
        (429, 0),
    ]
    assert answers[2].headers["RateLimit-Reset"] == answers[2].headers["Retry-After"]


def test_requests_that_were_not_counted_say_what_is_left_all_the_same(configure: Any) -> None:
    set_rates(configure, read="9/min", write="9/min")
    caller = staff()
    caller.get("customers/")
    caller.post("customers/", {"name": "A"})
    for answer, expected in (
        (caller.get("customers/", headers={"Accept": "image/png"}), 406),
        (caller.post("customers/", headers={"Transfer-Encoding": "chunked"}), 400),
        (caller.post("customers/", b" " * 65537), 413),
    ):
        assert (answer.status_code, left(answer)) == (expected, 8), expected
    assert left(caller.get("customers/")) == 7
    caller.client.handler.enforce_csrf_checks = True
    answer = caller.post("customers/", headers={"Accept": "image/png"})
    assert (answer.status_code, left(answer)) == (406, 8), "The user needs no CSRF token for that."
    wrong = {"Accept": "image/png", "Authorization": "Basic YTpi"}
    answer = Caller().get("customers/", headers=wrong)
    assert (answer.status_code, left(answer)) == (406, 9)


def test_requests_of_the_time_before_do_not_count(configure: Any) -> None:
    set_rates(configure, read="9/sec")
    caller = staff()
    assert left(caller.get("customers/")) == 8
    time.sleep(1.1)
    answer = caller.get("customers/", headers={"Accept": "image/png"})
    assert (answer.status_code, left(answer)) == (406, 9)


def test_who_may_not_use_the_api_learns_the_limit_of_the_address(configure: Any) -> None:
    set_rates(configure, read="9/min", write="8/min")
    nobody = Caller()
    for _ in range(3):
        answer = nobody.get("customers/")
        assert (code(answer, 403), left(answer)) == ("not_authenticated", 9)
        assert answer.headers["RateLimit-Reset"] == "0"
    wrong = nobody.get("customers/", headers={"Authorization": "Basic YTpi"})
    assert (code(wrong, 403), left(wrong)) == ("authentication_failed", 9)
    forbidden = Caller(make_user("guest")).get("customers/")
    assert (code(forbidden, 403), left(forbidden)) == ("permission_denied", 9)
    caller = staff()
    caller.client.handler.enforce_csrf_checks = True
    answer = caller.post("customers/", {"name": "A"})
    assert (code(answer, 403), left(answer)) == ("csrf_failed", 8)


def test_a_too_large_form_is_not_read_to_find_the_user() -> None:
    class Unread:
        def read(self, *args: Any) -> bytes:
            raise AssertionError("The body was read.")

        readline = read

    caller = staff()
    caller.client.handler.enforce_csrf_checks = True
    answer = caller.client.generic(
        "POST",
        f"{API}customers/",
        content_type="multipart/form-data; boundary=x",
        CONTENT_LENGTH="65537",
        **{"wsgi.input": Unread()},
    )
    assert (code(answer, 413), left(answer)) == ("too_large", 60)


@pytest.mark.parametrize("url", ["nothing/at/all/", "customers"])
def test_unknown_routes_have_the_headers(url: str) -> None:
    answer = Caller().post(url, {})
    assert (answer.status_code, left(answer)) == (404, 599)


def test_requests_beyond_a_lowered_limit_are_refused(configure: Any) -> None:
    set_rates(configure, read="9/min")
    caller = staff()
    for _ in range(5):
        caller.get("customers/")
    set_rates(configure, read="2/min")
    answer = caller.get("customers/")
    assert (code(answer, 429), left(answer)) == ("throttled", 0)
    assert 1 <= int(answer.headers["Retry-After"]) <= 60
    assert answer.headers["RateLimit-Reset"] == answer.headers["Retry-After"]


def test_there_is_room_again_once_the_oldest_requests_that_are_too_many_are_over() -> None:
    throttle = ApiThrottle("read")
    throttle.num_requests, throttle.duration = 2, 60
    now = throttle.timer()
    throttle.history = [now - 10, now - 20, now - 50]
    assert math.ceil(throttle.wait() or 0) == 40


def test_no_limit_no_headers(configure: Any) -> None:
    set_rates(configure, read=None)
    assert sent(staff().get("customers/")) == sent(Caller().get("customers/")) == NONE


class BrokenCache(DummyCache):
    """Loses its connection when it is read, or written."""

    broken = "get"

    def get(self, key: str, default: Any = None, version: Any = None) -> Any:
        self.fail("get")
        return default

    def set(self, *args: Any, **kwargs: Any) -> None:
        self.fail("set")

    def fail(self, name: str) -> None:
        if name == self.broken:
            raise ConnectionError("the cache is away")


@pytest.mark.parametrize("name", ["get", "set"])
def test_a_broken_cache_is_logged_once_and_costs_only_the_headers(
    settings: Any, monkeypatch: Any, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    monkeypatch.setattr(BrokenCache, "broken", name)
    caller = staff()
    settings.CACHES = {"default": {"BACKEND": f"{__name__}.BrokenCache"}}
    answer = caller.get("customers/")
    assert (answer.status_code, sent(answer)) == (200, NONE)
    assert [record.kapso_event for record in caplog.records] == ["rest.rate_limit_failed"]


def test_a_broken_cache_does_not_turn_a_refusal_into_an_error(settings: Any) -> None:
    settings.CACHES = {"default": {"BACKEND": f"{__name__}.BrokenCache"}}
    answer = Caller().get("customers/")
    assert (code(answer, 403), sent(answer)) == ("not_authenticated", NONE)


def test_a_database_that_is_away_is_asked_once(settings: Any) -> None:
    # Django 5.2's asks for the user before the view is reached.
    login_required = "django.contrib.auth.middleware.LoginRequiredMiddleware"
    settings.MIDDLEWARE = [name for name in settings.MIDDLEWARE if name != login_required]
    attempts = []

    def fail(execute: Any, sql: str, *args: Any) -> Any:
        if "django_session" not in sql:
            return execute(sql, *args)
        attempts.append(sql)
        raise OperationalError("server closed the connection unexpectedly")

    caller = staff()
    with connection.execute_wrapper(fail):
        answer = caller.get("customers/")
    assert (code(answer, 503), sent(answer)) == ("unavailable", NONE)
    assert len(attempts) == 1


# Throttles of the site


class Strict(BaseThrottle):
    """Refuses every request, and does not say for how long."""

    def allow_request(self, request: Any, view: Any) -> bool:
        return False


class PerPlan(UserRateThrottle):
    rate = "1/day"


class TooBusy(APIException):
    status_code = 429
    default_code = "too_busy"


@pytest.fixture
def mounted(settings: Any) -> Any:
    """Mount the API with a method ``get_throttles`` of the site."""

    def mount(get_throttles: Callable[[Any], list[BaseThrottle]]) -> Caller:
        class Mixin(Api):
            def get_throttles(self) -> list[BaseThrottle]:
                return get_throttles(super().get_throttles)

        urlconf = ModuleType("throttled_urls")
        urlconf.urlpatterns = [url_path("api/whatsapp/", include(urls_for(Mixin)))]  # type: ignore[attr-defined]
        settings.ROOT_URLCONF = urlconf
        return staff()

    return mount


def test_a_throttle_that_does_not_know_when_still_has_retry_after(mounted: Any) -> None:
    answer = mounted(lambda own: [*own(), Strict()]).get("customers/")
    assert (code(answer, 429), left(answer)) == ("throttled", 599)
    assert answer.headers["Retry-After"] == "30"


def test_a_throttle_of_the_site_says_when(mounted: Any) -> None:
    caller = mounted(lambda own: [*own(), PerPlan()])
    caller.get("customers/")
    answer = caller.get("customers/")
    assert code(answer, 429) == "throttled"
    assert 86000 < int(answer.headers["Retry-After"]) <= 86400


def test_every_429_has_retry_after(mounted: Any) -> None:
    def refuse(own: Any) -> list[BaseThrottle]:
        raise TooBusy

    answer = mounted(refuse).get("customers/")
    assert (code(answer, 429), sent(answer)) == ("too_busy", NONE)
    assert answer.headers["Retry-After"] == "30"


def test_without_this_throttle_there_are_no_headers(mounted: Any) -> None:
    assert sent(mounted(lambda own: [PerPlan()]).get("customers/")) == NONE


def test_a_throttle_that_needs_the_user_is_not_the_end_of_a_refusal(mounted: Any) -> None:
    def by_plan(own: Any) -> list[BaseThrottle]:
        raise AttributeError("AnonymousUser has no plan")

    mounted(by_plan)
    answer = Caller().get("customers/")
    assert (code(answer, 403), sent(answer)) == ("not_authenticated", NONE)
