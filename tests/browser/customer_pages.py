"""Every state of the customers' pages, each with what has to be done to see it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.utils import timezone
from playwright.sync_api import Page

from kapso_connect.models import Connection, Customer, SetupLink, new_connect_key
from kapso_connect.onboarding.connect_urls import connect_path
from kapso_connect.pages import rate_limit
from kapso_connect.testing import Sandbox

from ..factories import make_connection, make_customer, make_link, make_user, store_statuses

AWAY = {"match": ".*", "kind": "status", "status": 503}
NUMBER = "+1 415-555-0123"
SETTINGS = {
    "SITE_NAME": "Crumb & Co.",
    "CONTACT_URL": "mailto:help@crumb.example",
    "PRIVACY_URL": "/privacy/",
    "TERMS_URL": "/terms/",
    "SHOW_INVITER": True,
}


@dataclass
class World:
    """A site with one customer, whose pages are looked at."""

    site: str
    sandbox: Sandbox
    patch: Any
    language: str = "en"

    def customer(self, **fields: Any) -> Customer:
        defaults = {"name": "Ada's Bakery", "language": self.language}
        return make_customer(connect_key=new_connect_key(), **{**defaults, **fields})

    def link(self, customer: Customer | None = None, **fields: Any) -> SetupLink:
        return make_link(customer or self.customer(), **fields)

    def invitation(self, **options: Any) -> str:
        user = make_user(f"inviter-{Customer.objects.count()}", first_name="Ida", last_name="Kim")
        link = self.link(options=options, created_by=user)
        return connect_path(link.customer)

    def failed_before(self) -> str:
        failed = SetupLink.SetupStatus.FAILED
        link = self.link(setup_status=failed, last_error_code="phone_verification_failed")
        return connect_path(link.customer)

    def connected(self, *, next_url: str = "", **fields: Any) -> str:
        """The page of a customer with a connected number that has ``fields``."""
        link = self.completed_link(next_url=next_url)
        shown = {"display_phone_number": NUMBER, "verified_name": "Ada's Bakery"}
        make_connection(link.customer, **{"setup_link": link, **shown, **fields})
        return connect_path(link.customer)

    def completed_link(self, **fields: Any) -> SetupLink:
        completed = {
            "status": SetupLink.Status.USED,
            "setup_status": SetupLink.SetupStatus.COMPLETED,
        }
        return self.link(**completed, **fields)

    def paused(self, since: timedelta) -> str:
        path = self.connected(
            status=Connection.Status.DISCONNECTED,
            disconnect_reason="offboarded",
            disconnected_at=timezone.now() - since,
        )
        store_statuses()
        return path

    def failure(self, code: str) -> str:
        link = self.link()
        return f"/whatsapp/failed/?setup_link_id={link.kapso_id}&error_code={code}"

    def waiting(self, since: timedelta) -> str:
        self.sandbox.faults(api=[AWAY])
        link = self.link(
            unconfirmed_phone_number_id="100200300",
            unconfirmed_since=timezone.now() - since,
            unconfirmed_by_visitor=True,
        )
        return connect_path(link.customer)

    def busy(self) -> str:
        self.patch.setattr(rate_limit, "CONNECT_RATE_LIMIT", 0)
        return self.invitation()

    def unavailable(self) -> str:
        self.sandbox.faults(api=[AWAY])
        link = self.link(expires_at=timezone.now() - timedelta(days=1))
        return connect_path(link.customer)

    def refused(self) -> str:
        path = self.unavailable()
        self.sandbox.faults(api=[{**AWAY, "status": 401}])
        return path

    def withdrawn(self) -> str:
        link = self.link()
        path = connect_path(link.customer)
        Customer.objects.filter(pk=link.customer_id).update(connect_key=None)
        return path


COEXISTENCE = {"allowed_connection_types": ["coexistence"]}
DEDICATED = {"allowed_connection_types": ["dedicated"]}

STATES: dict[str, Callable[[World], str]] = {
    "connect-choice": lambda world: world.invitation(),
    "connect-keep": lambda world: world.invitation(**COEXISTENCE),
    "connect-leave": lambda world: world.invitation(**DEDICATED),
    "connect-new": lambda world: world.invitation(provision_phone_number=True),
    "connect-again": lambda world: world.invitation(reconnect_phone_number="+14155550123"),
    "connect-failed": lambda world: world.failed_before(),
    "paused": lambda world: world.paused(timedelta(minutes=5)),
    "paused-long": lambda world: world.paused(timedelta(hours=2)),
    "success": lambda world: world.connected(),
    "success-next": lambda world: world.connected(next_url="/admin/login/"),
    "success-test": lambda world: world.connected(display_phone_number="+1 555-123-4567"),
    "success-restricted": lambda world: world.connected(account_status="restricted"),
    "success-name": lambda world: world.connected(name_status="PENDING_REVIEW"),
    "success-declined": lambda world: world.connected(name_status="DECLINED"),
    "failed": lambda world: world.failure("phone_verification_failed"),
    "failed-unknown": lambda world: world.failure("meta_on_strike"),
    "waiting": lambda world: world.waiting(timedelta(0)),
    "waiting-long": lambda world: world.waiting(timedelta(minutes=5)),
    "leaving": lambda world: world.invitation(),
    "busy": lambda world: world.busy(),
    "unavailable": lambda world: world.unavailable(),
    "refused": lambda world: world.refused(),
    "withdrawn": lambda world: world.withdrawn(),
    "invalid": lambda world: "/whatsapp/success/?setup_link_id=unknown",
}
"""The path of each state's page."""

PRESSED = {"leaving", "busy", "unavailable", "refused"}
"""The states that are seen after the button of that page was pressed."""


def open_state(page: Page, world: World, name: str) -> None:
    """Show the state's page."""
    if name == "leaving":
        # The page leads on at once; without the header it stays.
        page.route("**/connect/**", _without_refresh)
    page.goto(world.site + STATES[name](world))
    if name in PRESSED:
        page.locator("form button").click()
        page.wait_for_load_state()


def _without_refresh(route: Any) -> None:
    if route.request.method != "POST":
        route.continue_()
        return
    response = route.fetch()
    headers = {k: v for k, v in response.headers.items() if k != "refresh"}
    route.fulfill(response=response, headers=headers)
