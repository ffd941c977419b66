"""The stored status after any sequence of events, held against one that is computed anew."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any, TypeVar
from urllib.parse import urlsplit

import pytest
from django.core.cache import cache
from django.db import connection as database
from django.db.models import F, Model
from django.test import Client
from django.utils import timezone
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from kapso_connect import onboarding, sync
from kapso_connect.exceptions import KapsoError, NumberGone, NumberMoved, TryLater
from kapso_connect.models import Connection, Customer, SetupLink, WebhookEvent
from kapso_connect.onboarding.status import find_wrong_statuses
from kapso_connect.testing import Sandbox, SandboxError, post_webhook, webhook_payload

from ..conftest import API_KEY, THOROUGH, WEBHOOK_SECRET
from ..factories import WEBHOOK, make_customer

pytestmark = pytest.mark.django_db(transaction=True)

RowT = TypeVar("RowT")

NUMBER_EVENTS = ["created", "deleted", "disconnected", "offboarded", "reconnected"]
ACCOUNT_EVENTS = ["disabled", "restricted", "reinstated", "violation"]
ERROR_CODES = ["facebook_auth_failed", "link_expired"]
API_IS_AWAY = [{"match": ".*", "kind": "status", "status": 401}]  # which is not retried

whose = st.integers(0, 2)
"""One of the customers."""
which = st.integers(0, 3)
"""One of the links, numbers, deliveries or redirects there are; 0 is the newest."""

outcomes = st.sampled_from(["connect", "connect", *ERROR_CODES])
reporters = st.sampled_from(
    ["webhook", "redirect", "redirect while the API is away", "sync", "nobody yet"]
)


def step(name: str, **arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.tuples(st.just(name), st.fixed_dictionaries(arguments))


steps = st.one_of(
    step("invite", whose=whose),
    step("revoke", which=which),
    step("extend", which=which),
    step("staff_disconnect", which=which),
    step("check_health", which=which),
    step("site_reads_a_customer", whose=whose),
    step("site_saves_the_customer_that_it_read"),
    step("kapso_sync"),
    step("open_connect_page", whose=whose),
    step("use_hosted_page", which=which, outcome=outcomes, reported_by=reporters),
    step("browser_returns", which=which),
    step("browser_reports_a_number", which=which, which_number=which, is_away=st.booleans()),
    step("browser_reports_a_failure", which=which, code=st.sampled_from(ERROR_CODES)),
    step("webhook_arrives", which=which),
    step("webhook_is_replayed", which=which),
    step("number_is_added_in_the_dashboard", whose=whose, reported_by=reporters),
    step("number_moves", which=which, whose=whose, reported_by=reporters),
    step(
        "number_changes", which=which, event=st.sampled_from(NUMBER_EVENTS), reported_by=reporters
    ),
    step("account_changes", which=which, event=st.sampled_from(ACCOUNT_EVENTS)),
    step(
        "link_changes_at_kapso",
        which=which,
        status=st.sampled_from(["active", "revoked", "expired"]),
    ),
    step("link_expires", which=which),
    step("api_goes_or_returns", is_away=st.booleans()),
    step("ten_minutes_pass"),
)
"""What can happen: a method of ``Events``, and its arguments."""


def expected_latest_link(customer: Customer, links: list[SetupLink]) -> SetupLink | None:
    own = [link for link in links if link.customer_id == customer.pk]
    return max(own, key=lambda link: (link.created_at, link.pk), default=None)


def expected_status(
    customer: Customer, numbers: list[Connection], links: list[SetupLink]
) -> tuple[str, int | None]:
    """Return the status of a customer and the key of its latest link, from all the rows."""
    latest = expected_latest_link(customer, links)
    own = [number for number in numbers if number.customer_id == customer.pk]
    losses = [
        (number.disconnected_at, number.pk, number.disconnect_reason)
        for number in own
        if number.connected_at and number.disconnected_at and number.status == "disconnected"
    ]
    lost_at, _, lost_because = max(losses, default=(None, 0, ""))
    lost = "paused" if lost_because == "offboarded" else "disconnected"
    if latest is None or latest.status == "revoked" or latest.setup_status == "completed":
        invitation = ""
    elif latest.setup_status == "failed":
        invitation = "failed"
    elif latest.status == "used":
        invitation = ""
    else:
        invitation = "opened" if latest.opened_at else "invited"
    if latest and lost_at and latest.created_at <= lost_at:
        invitation = ""  # it is from before the loss
    if any(number.status == "connected" for number in own):
        status = "connected"
    elif any(link.unconfirmed_since for link in links if link.customer_id == customer.pk):
        status = "confirming"
    else:
        status = invitation or (lost if lost_at else "not_invited")
    return status, latest.pk if latest else None


class Events(RuleBasedStateMachine):
    """Three customers of a site, everything that can happen to them, and the sandbox for Kapso."""

    sandbox: Sandbox

    def __init__(self) -> None:
        super().__init__()
        cache.clear()  # how often a customer may open a link
        for model in (Customer, WebhookEvent):
            model.objects.all().delete()
        self.sandbox.reset()
        self.sandbox.hold_webhooks(f"https://site.example{WEBHOOK}")
        self.browser = Client()
        self.redirects: list[str] = []
        self.pks = [make_customer(kapso_id=None).pk for _ in range(3)]
        # One is connected, one is invited, and one is new.
        self.invite(0)
        self.use_hosted_page(0, "connect", reported_by="webhook")
        self.invite(1)
        self.stale = self.customer(0)
        self.stored: dict[int, tuple[str, datetime]] = {}
        self.compare_times()
        self.wrapper = database.execute_wrapper(self.after_each_statement)
        self.wrapper.__enter__()

    def teardown(self) -> None:
        self.wrapper.__exit__(None, None, None)

    # What always holds

    def after_each_statement(self, execute: Callable[..., Any], sql: str, *args: Any) -> Any:
        result = execute(sql, *args)
        if not sql.startswith("SELECT") and Customer._meta.db_table in sql:
            self.compare_times()
        return result

    def compare_times(self) -> None:
        """``status_changed_at`` changes whenever the status does, and never otherwise."""
        rows = Customer.objects.values_list("pk", "status", "status_changed_at")
        now = {pk: (status, changed_at) for pk, status, changed_at in rows}
        for pk in now.keys() & self.stored.keys():
            (status, changed_at), (former_status, former_time) = now[pk], self.stored[pk]
            assert (status != former_status) == (changed_at != former_time)
        self.stored = now

    @invariant()
    def stored_is_what_follows_from_the_rows(self) -> None:
        numbers, links = list(Connection.objects.all()), list(SetupLink.objects.all())
        for customer in Customer.objects.all():
            stored = customer.status, customer.latest_setup_link_id
            assert stored == expected_status(customer, numbers, links)
        assert list(find_wrong_statuses()) == []

    # One rule only: of many, each of hypothesis's examples uses but a few.
    @rule(step=steps)
    def happens(self, step: tuple[str, dict[str, Any]]) -> None:
        name, arguments = step
        getattr(self, name)(**arguments)

    # Staff and the site

    def invite(self, whose: int) -> None:
        with suppress(KapsoError):
            onboarding.create_setup_link(self.customer(whose))

    def revoke(self, which: int) -> None:
        if link := self.link(which):
            with suppress(KapsoError):
                onboarding.revoke_setup_link(link)

    def extend(self, which: int) -> None:
        if link := self.link(which):
            with suppress(KapsoError):
                onboarding.extend_setup_link(link, timezone.now() + timedelta(days=9))

    def staff_disconnect(self, which: int) -> None:
        if number := self.number(which):
            with suppress(KapsoError, NumberMoved, TryLater):
                onboarding.disconnect_number(number)

    def check_health(self, which: int) -> None:
        if number := self.number(which):
            with suppress(KapsoError, NumberMoved, NumberGone, TryLater):
                onboarding.check_health(number)

    def site_reads_a_customer(self, whose: int) -> None:
        self.stale = self.customer(whose)

    def site_saves_the_customer_that_it_read(self) -> None:
        self.stale.name += "!"
        self.stale.save()

    def kapso_sync(self) -> None:
        assert sync.run(accept_mass_loss=True).repaired == 0

    # Customers

    def open_connect_page(self, whose: int) -> None:
        customer = self.customer(whose)
        if customer.connect_key:
            cache.clear()
            self.browser.post(onboarding.connect_path(customer))

    def use_hosted_page(self, which: int, outcome: str, reported_by: str) -> None:
        if link := self.link(which):
            try:
                location = urlsplit(self.sandbox.complete(link.url, outcome=outcome))
            except SandboxError:
                return  # the link has ended
            self.redirects.append(f"{location.path}?{location.query}")
            self.report(reported_by)

    def browser_returns(self, which: int) -> None:
        if self.redirects:
            self.browser.get(newest(self.redirects, which))

    def browser_reports_a_number(self, which: int, which_number: int, is_away: bool) -> None:
        """A redirect is not signed: it may name any number."""
        link, number = self.link(which), self.remote_number(which_number)
        if link and number:
            query = f"setup_link_id={link.kapso_id}&phone_number_id={number['phone_number_id']}"
            self.redirects.append(f"/whatsapp/success/?{query}")
            self.report("redirect while the API is away" if is_away else "redirect")

    def browser_reports_a_failure(self, which: int, code: str) -> None:
        if link := self.link(which):
            query = {"setup_link_id": link.kapso_id, "error_code": code}
            self.browser.get("/whatsapp/failed/", query)

    # Kapso

    def webhook_arrives(self, which: int) -> None:
        """Also late, in another order, and for the second time."""
        self.deliver(which, new_key=False)

    def webhook_is_replayed(self, which: int) -> None:
        self.deliver(which, new_key=True)

    def number_is_added_in_the_dashboard(self, whose: int, reported_by: str) -> None:
        external_id = self.customer(whose).external_customer_id
        self.sandbox.add_number(external_customer_id=external_id, webhook=True)
        self.report(reported_by)

    def number_moves(self, which: int, whose: int, reported_by: str) -> None:
        kapso_id = self.customer(whose).kapso_id
        if kapso_id and (number := self.remote_number(which)):
            self.sandbox.patch_number(number["phone_number_id"], customer_id=kapso_id)
            self.send_event("created", number)
            self.report(reported_by)

    def number_changes(self, which: int, event: str, reported_by: str) -> None:
        if number := self.remote_number(which):
            self.send_event(event, number)
            self.report(reported_by)

    def account_changes(self, which: int, event: str) -> None:
        if number := self.number(which):
            name = f"whatsapp.account.{event}"
            payload = webhook_payload(name, number.customer, number.phone_number_id)
            assert post_webhook(self.browser, name, payload).status_code == 200

    def link_changes_at_kapso(self, which: int, status: str) -> None:
        if link := self.link(which):
            self.sandbox.patch_setup_link(link.kapso_id, status=status)

    def link_expires(self, which: int) -> None:
        if link := self.link(which):
            past = timezone.now() - timedelta(minutes=1)
            self.sandbox.patch_setup_link(link.kapso_id, expires_at=past.isoformat())
            SetupLink.objects.filter(pk=link.pk).update(expires_at=past)

    def api_goes_or_returns(self, is_away: bool) -> None:
        self.sandbox.faults(api=API_IS_AWAY if is_away else [])

    def ten_minutes_pass(self) -> None:
        moments = {
            Connection: ["connected_at", "disconnected_at"],
            SetupLink: ["created_at", "opened_at", "unconfirmed_since"],
            WebhookEvent: ["received_at"],
        }
        for model, fields in moments.items():
            earlier = {field: F(field) - timedelta(minutes=10) for field in fields}
            model._default_manager.update(**earlier)
        for event in WebhookEvent.objects.exclude(next_attempt_at=None):
            event.next_attempt_at -= timedelta(minutes=10)
            event.save(update_fields=["next_attempt_at"])

    # Helpers

    def customer(self, whose: int) -> Customer:
        return Customer.objects.get(pk=self.pks[whose])

    def link(self, which: int) -> SetupLink | None:
        return newest_row(SetupLink, which)

    def number(self, which: int) -> Connection | None:
        return newest_row(Connection, which)

    def remote_number(self, which: int) -> dict[str, Any] | None:
        numbers = self.sandbox.state()["phone_numbers"]
        return newest(numbers, which) if numbers else None

    def send_event(self, event: str, number: dict[str, Any]) -> None:
        name = f"whatsapp.phone_number.{event}"
        self.sandbox.send_event(name, phone_number_id=number["phone_number_id"])

    def report(self, reported_by: str) -> None:
        """Let the site hear of the latest change."""
        if reported_by == "webhook":
            self.webhook_arrives(0)
        elif reported_by == "redirect":
            self.browser_returns(0)
        elif reported_by == "redirect while the API is away":
            self.api_goes_or_returns(is_away=True)
            self.browser_returns(0)
            self.api_goes_or_returns(is_away=False)
        elif reported_by == "sync":
            self.kapso_sync()

    def deliver(self, which: int, *, new_key: bool) -> None:
        if deliveries := self.sandbox.deliveries():
            delivery = newest(deliveries, which)
            response = post_webhook(
                self.browser,
                delivery["event"],
                delivery["body"].encode(),
                idempotency_key=None if new_key else delivery["idempotency_key"],
                secret=self.sandbox.webhook_secret,
            )
            # 429: it has been delivered too often.
            assert response.status_code in {200, 429}


def newest(rows: list[RowT], which: int) -> RowT:
    return rows[-1 - which % len(rows)]


def newest_row(model: type[Model], which: int) -> Any:
    rows = list(model._default_manager.order_by("pk").select_related("customer"))
    return newest(rows, which) if rows else None


@pytest.fixture
def own_sandbox(configure: Any) -> Iterator[Sandbox]:
    with Sandbox(api_key=API_KEY, webhook_secret=WEBHOOK_SECRET, teardown_seconds=0) as sandbox:
        configure(API_BASE_URL=sandbox.url)
        yield sandbox


def test_stored_status_follows_from_the_rows(own_sandbox: Sandbox) -> None:
    class EventsHere(Events):
        sandbox = own_sandbox

    run_state_machine_as_test(
        EventsHere,
        settings=settings(
            max_examples=100 if THOROUGH else 5,
            stateful_step_count=50 if THOROUGH else 30,
            # The default run is the same each time.
            derandomize=not THOROUGH,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
