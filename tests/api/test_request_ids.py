"""The id of a request: in its response, and in every log event meanwhile."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.db import connection

from kapso_connect.log import log_event
from kapso_connect.testing import Sandbox

from ..factories import make_customer
from ..faults import failing_statement
from .support import Caller, code

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("unthrottled")]

HEADER = "X-Request-ID"
NEW = re.compile("[0-9a-f]{32}")

observed: list[tuple[str, dict[str, Any]]] = []


def observe(name: str, fields: Mapping[str, Any]) -> None:
    observed.append((name, dict(fields)))


def broken_observer(name: str, fields: Mapping[str, Any]) -> None:
    raise ZeroDivisionError


@pytest.fixture(autouse=True)
def _observed(configure: Any) -> None:
    observed.clear()
    configure(OBSERVERS=["tests.log_events.check", "tests.api.test_request_ids.observe"])


def answered() -> dict[str, Any]:
    """Return the fields of the only ``rest.answered``, without the seconds."""
    (fields,) = [fields for name, fields in observed if name == "rest.answered"]
    assert 0 <= fields.pop("seconds") < 10
    return fields


# The header


@pytest.mark.parametrize("given", ["a", "0", "a" * 128, "8e03978e-40d5-43e8-bc93.A_z"])
def test_an_id_of_the_request_is_kept(caller: Caller, given: str) -> None:
    answer = caller.get("customers/", headers={HEADER: given})
    assert answer.headers[HEADER] == given
    assert answered()["request_id"] == given


@pytest.mark.parametrize(
    "given", [None, "", "a" * 129, "a b", "a\nb", "a\n", "é", "a;b", "٣", "{}"]
)
def test_any_other_request_gets_a_new_id(caller: Caller, given: str | None) -> None:
    headers = {} if given is None else {HEADER: given}
    ids = [caller.get("customers/", headers=headers).headers[HEADER] for _ in range(2)]
    assert NEW.fullmatch(ids[0])
    assert ids[0] != ids[1]
    assert [fields["request_id"] for name, fields in observed if name == "rest.answered"] == ids


@pytest.mark.parametrize(
    ("method", "path", "options", "status"),
    [
        ("GET", "", {}, 200),
        ("POST", "customers/", {"body": {"name": "A"}}, 201),
        ("GET", "customers/7/status/", {"headers": {"If-None-Match": "*"}}, 304),
        ("GET", "customers", {}, 301),
        ("POST", "customers/", {"body": b"{"}, 400),
        ("GET", "nothing/", {}, 404),
        ("DELETE", "customers/", {}, 405),
        ("GET", "customers/", {"headers": {"Accept": "image/png"}}, 406),
        ("POST", "customers/", {"body": b" " * 65537}, 413),
        ("POST", "customers/", {"body": b"a", "content_type": "text/plain"}, 415),
    ],
)
def test_every_answer_has_an_id(
    caller: Caller, method: str, path: str, options: dict[str, Any], status: int
) -> None:
    make_customer(pk=7)
    answer = caller.send(method, path, **options)
    assert answer.status_code == status
    assert NEW.fullmatch(answer.headers[HEADER])


def test_answer_to_a_stranger_has_an_id() -> None:
    answer = Caller().get("customers/")
    assert code(answer, 403) == "not_authenticated"
    assert NEW.fullmatch(answer.headers[HEADER])


# The log


def test_an_answer_is_logged_without_its_url(caller: Caller) -> None:
    customer = make_customer(name="A")
    caller.get(f"customers/{customer.pk}/?secret=1", headers={HEADER: "i"})
    assert answered() == {
        "method": "GET",
        "route": "kapso_connect_api:customer",
        "status": 200,
        "request_id": "i",
    }


@pytest.mark.django_db(transaction=True)
def test_every_event_meanwhile_has_it(caller: Caller, sandbox: Sandbox) -> None:
    body = {"customer": make_customer(kapso_id=None).pk}
    answer = caller.post("setup-links/", body, headers={HEADER: "mine"})
    assert answer.status_code == 201
    names = {name for name, _fields in observed}
    assert {"api.called", "timeline.setup_link_created", "rest.answered"} <= names
    assert {fields.get("request_id") for _name, fields in observed} == {"mine"}


@pytest.mark.django_db(transaction=True)
def test_every_event_of_a_batch_has_it(caller: Caller, sandbox: Sandbox) -> None:
    """Also those of the threads that wait for Kapso."""
    body = {"purpose": "invite", "customers": [make_customer(kapso_id=None).pk]}
    answer = caller.post("batches/", body, headers={HEADER: "mine"})
    assert answer.json()["progress"]["done"] == 1
    assert "api.called" in {name for name, _fields in observed}
    assert {fields.get("request_id") for _name, fields in observed} == {"mine"}


def test_logged_failure_has_the_id(caller: Caller, configure: Any) -> None:
    configure(PUBLIC_URL="")
    answer = caller.post("setup-links/", {"customer": make_customer().pk}, headers={HEADER: "f"})
    assert code(answer, 503) == "not_configured"
    (failed,) = [fields for name, fields in observed if name == "rest.failed"]
    assert (failed["request_id"], answered()["status"]) == ("f", 503)


def test_an_error_that_nobody_knows_is_logged_as_500(caller: Caller) -> None:
    failing = failing_statement("SELECT", "kapso_connect_customer", ZeroDivisionError())
    with failing, pytest.raises(ZeroDivisionError):
        caller.get("customers/", headers={HEADER: "e"})
    assert answered() == {
        "method": "GET",
        "route": "kapso_connect_api:customers",
        "status": 500,
        "request_id": "e",
    }


def test_events_after_the_request_have_no_id(caller: Caller) -> None:
    caller.get("customers/")
    failing = failing_statement("SELECT", "kapso_connect_customer", ZeroDivisionError())
    with failing, pytest.raises(ZeroDivisionError):
        caller.get("customers/")
    log_event("page.rate_limited", customer_id=1)
    assert observed[-1] == ("page.rate_limited", {"customer_id": 1})


def test_requests_at_the_same_time_do_not_mix_their_ids(caller: Caller) -> None:
    def ask(given: str) -> str:
        try:
            return Caller().get("customers/", headers={HEADER: given}).headers[HEADER]
        finally:
            connection.close()

    ids = [f"r{number}" for number in range(8)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ask, ids)) == ids
    assert sorted(fields["request_id"] for _name, fields in observed) == ids


def test_log_record_has_the_id_as_an_attribute(caller: Caller, caplog: Any) -> None:
    with caplog.at_level(logging.DEBUG, "kapso_connect.rest"):
        caller.get("customers/", headers={HEADER: "seen"})
    (record,) = [one for one in caplog.records if one.name == "kapso_connect.rest"]
    assert (record.kapso_event, record.request_id) == ("rest.answered", "seen")
    assert record.getMessage().startswith("GET kapso_connect_api:customers was answered 200 after ")


def test_failure_of_an_observer_has_the_id(caller: Caller, configure: Any, caplog: Any) -> None:
    configure(OBSERVERS=["tests.api.test_request_ids.broken_observer"])
    caller.get("customers/", headers={HEADER: "o"})
    failed = [one for one in caplog.records if one.kapso_event == "observer.failed"]
    assert [one.request_id for one in failed] == ["o"]


@pytest.fixture
def _ids_of_the_site() -> Iterator[None]:
    """A record factory that adds an attribute of the same name, as many sites have one."""
    before = logging.getLogRecordFactory()

    def factory(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = before(*args, **kwargs)
        record.request_id = "site"
        return record

    logging.setLogRecordFactory(factory)
    yield
    logging.setLogRecordFactory(before)


@pytest.mark.usefixtures("_ids_of_the_site")
def test_the_id_of_the_sites_own_record_factory_is_kept(caller: Caller, caplog: Any) -> None:
    with caplog.at_level(logging.DEBUG, "kapso_connect.rest"):
        assert caller.get("customers/", headers={HEADER: "ours"}).status_code == 200
    (record,) = [one for one in caplog.records if one.name == "kapso_connect.rest"]
    assert record.request_id == "site"
    assert answered()["request_id"] == "ours"


def test_metrics_have_no_series_for_each_request() -> None:
    metrics = pytest.importorskip("kapso_connect.monitoring.metrics")
    for metric in metrics.REGISTRY.collect():
        if metric.name.startswith("kapso_connect_"):
            assert all("request_id" not in one.labels for one in metric.samples)
    metrics.observe("rest.answered", {"method": "GET", "request_id": "only-here", "status": 200})
    metrics.observe("timeline.connected", {"source": "webhook", "request_id": "only-here"})
    text = metrics.choose_encoder("")[0](metrics.REGISTRY).decode()
    assert 'event="timeline.connected"' in text
    assert "only-here" not in text
