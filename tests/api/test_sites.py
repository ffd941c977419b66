"""The REST API in sites that are set up in other ways."""

from __future__ import annotations

from typing import Any

import pytest
from django.core.cache.backends.dummy import DummyCache
from django.db import connection as database
from django.test import override_settings
from django.urls import resolve

from kapso_connect.api.urls import versioned_patterns
from kapso_connect.testing import Sandbox

from ..factories import make_customer
from ..faults import around_api_requests
from .support import API, staff

pytestmark = pytest.mark.usefixtures("unthrottled")


def test_views_are_not_atomic() -> None:
    for pattern in versioned_patterns():
        assert "default" in pattern.callback._non_atomic_requests, pattern


@pytest.mark.django_db(transaction=True)
def test_kapso_is_called_outside_transactions_with_atomic_requests(
    sandbox: Sandbox, monkeypatch: Any
) -> None:
    monkeypatch.setitem(database.settings_dict, "ATOMIC_REQUESTS", True)
    body = {"customer": make_customer(kapso_id=None).pk}
    in_transaction = []
    with around_api_requests(before=lambda: in_transaction.append(database.in_atomic_block)):
        answer = staff().post("setup-links/", body, headers={"Idempotency-Key": "k"})
    assert answer.status_code == 201
    assert in_transaction
    assert not any(in_transaction)


@pytest.mark.django_db
def test_login_required_middleware_does_not_apply() -> None:
    assert resolve(f"{API}customers/").func.login_required is False


@pytest.mark.django_db
@override_settings(USE_I18N=False)
def test_without_translations() -> None:
    customer = make_customer()
    assert staff().get(f"customers/{customer.pk}/status/").status_code == 200


BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"


@pytest.mark.django_db
def test_browsers_get_json_if_the_pages_have_no_templates(settings: Any) -> None:
    caller = staff()
    page = caller.get("customers/", headers={"Accept": BROWSER})
    assert page["Content-Type"].startswith("text/html")
    settings.INSTALLED_APPS = [app for app in settings.INSTALLED_APPS if app != "rest_framework"]
    for path in ("", "customers/", "nothing/"):
        answer = caller.get(path, headers={"Accept": BROWSER})
        assert answer.status_code in {200, 404}
        assert path == "nothing/" or answer["Content-Type"] == "application/json"


class BrokenCache(DummyCache):
    def get(self, *args: Any, **kwargs: Any) -> Any:
        raise ConnectionError("the cache is away")


@pytest.mark.django_db
def test_broken_cache_costs_no_request(settings: Any, caplog: pytest.LogCaptureFixture) -> None:
    caller = staff()
    settings.CACHES = {"default": {"BACKEND": f"{__name__}.BrokenCache"}}
    assert caller.get("customers/").status_code == 200
    assert "rest.rate_limit_failed" in [record.kapso_event for record in caplog.records]
