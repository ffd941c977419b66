"""The last four weeks of the demo: companies that were invited, connected, failed or left.

Everything is done by the functions and the pages of a real site, with the sandbox in place of
Kapso, so that both know the same. Only the times are changed afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from threading import Thread
from typing import Any
from urllib.parse import urlsplit
from wsgiref.simple_server import WSGIRequestHandler, make_server

import requests
from django.apps import apps
from django.conf import settings
from django.contrib.auth.models import AbstractBaseUser
from django.core.wsgi import get_wsgi_application
from django.db import models, transaction
from django.db.models import F
from django.utils import timezone

from example_project.crm.models import Company
from kapso_connect.kapso import KapsoClient
from kapso_connect.models import Connection, Customer, InvitationBatch, SetupLink, Source
from kapso_connect.onboarding import create_setup_link, invitations, send_invitation
from kapso_connect.onboarding.setup_links import record_opened

TIMEOUT = 30

LAG_SECONDS = 600
"""After this time, one number that is still being confirmed can be confirmed."""


def play_history(staff: AbstractBaseUser) -> None:
    """Let the companies of the demo live through the last four weeks."""
    with serving_webhooks(), History(staff) as history:
        history.play()


class History:
    def __init__(self, staff: AbstractBaseUser) -> None:
        self.staff = staff
        self.client = KapsoClient.from_settings()
        self.sandbox = requests.Session()
        self.sandbox.trust_env = False  # without the machine's proxies
        self.sandbox.headers["X-API-Key"] = settings.KAPSO_CONNECT["API_KEY"]

    def __enter__(self) -> History:
        return self

    def __exit__(self, *error: object) -> None:
        self.sandbox.close()
        self.client.close()

    def play(self) -> None:
        # The hosted page leads back after the webhook was answered: one thing at a time.
        self.call("POST", "/sandbox/faults", {"webhook_first": True})
        happened = self.happened
        happened(
            27.3,
            self.invite_all,
            *("Ada's Bakery", "Blue Door Dental", "Corner Bikes", "Delta Tours"),
            *("Elm Street Books", "Fresh Flowers", "Kite Travel", "Lakeside Vets"),
        )
        for days_ago, name in [
            (27.2, "Ada's Bakery"),
            (26.4, "Blue Door Dental"),
            (26.1, "Corner Bikes"),
            (24.3, "Delta Tours"),
            (21.2, "Elm Street Books"),
        ]:
            happened(days_ago, self.open, name)
            happened(days_ago - 0.007, self.connect, name)
        happened(19.4, self.open, "Kite Travel")
        happened(19.39, self.fail, "Kite Travel", "facebook_auth_failed")
        happened(18.3, self.connect, "Kite Travel")
        happened(17.2, self.open, "Lakeside Vets")
        happened(17.19, self.connect, "Lakeside Vets")
        happened(
            9.2,
            self.invite_all,
            *("Green Garden Care", "Harbour Hotel", "Ivy Lane Yoga", "Maple Music School"),
        )
        happened(8.4, self.open, "Maple Music School")
        happened(8.38, self.connect, "Maple Music School")
        happened(7.1, self.open, "Fresh Flowers")
        happened(7.08, self.fail, "Fresh Flowers", "waba_limit_reached")
        happened(5.2, self.open, "Green Garden Care")
        happened(5.1, self.event, "Elm Street Books", "whatsapp.phone_number.disconnected")
        happened(4.3, self.invite, "Northside Physio", "Olive & Thyme", "Riverside Garage")
        happened(4.1, self.open, "Riverside Garage")
        happened(4.09, self.connect, "Riverside Garage")
        happened(3.2, self.event, "Corner Bikes", "whatsapp.account.restricted")
        happened(2.3, self.open, "Northside Physio")
        happened(2.29, self.fail, "Northside Physio", "phone_verification_failed")
        happened(2.0, self.unreadable_webhook)
        happened(1.4, self.open, "Olive & Thyme")
        happened(0.4, self.event, "Delta Tours", "whatsapp.phone_number.offboarded")
        happened(0.3, self.invite, "Juniper Kitchen")
        happened(0.02, self.open, "Juniper Kitchen")
        happened(0.01, self.connect_unnoticed, "Juniper Kitchen")
        happened(0.008, self.message, "Ada's Bakery", "Do you have rye bread tomorrow?")
        happened(0.005, self.message, "Lakeside Vets", "Can we come at 4 with the cat?")

    def happened(self, days_ago: float, do: Callable[..., None], *arguments: Any) -> None:
        """Do something now, and date it back."""
        started = timezone.now()
        do(*arguments)
        for link in date_back(started, timedelta(days=days_ago)):
            times = {name: getattr(link, name).isoformat() for name in ("created_at", "expires_at")}
            self.call("PATCH", f"/sandbox/setup_links/{link.kapso_id}", times)

    # Staff

    def invite_all(self, *names: str) -> None:
        """Invite several companies at once, by e-mail."""
        batch = invitations.make_batch([c.pk for c in customers(names)], created_by=self.staff)
        invitations.start(batch, send_email=True)
        invitations.work(batch.pk)
        if InvitationBatch.objects.get(pk=batch.pk).invitations.pending().exists():
            raise RuntimeError("Not all companies were invited.")

    def invite(self, *names: str) -> None:
        for customer in customers(names):
            link = create_setup_link(customer, created_by=self.staff, client=self.client)
            send_invitation(customer, link, actor=self.staff)

    # Customers

    def open(self, name: str) -> None:
        record_opened(link_of(name), source=Source.REDIRECT)

    def connect(self, name: str) -> str:
        return self.submit(name, "connect")

    def fail(self, name: str, code: str) -> None:
        requests.get(self.submit(name, code), timeout=TIMEOUT).raise_for_status()

    def submit(self, name: str, outcome: str) -> str:
        """Submit the hosted page; return where it leads the customer."""
        answer = self.sandbox.post(
            link_of(name).url,
            data={"outcome": outcome, "display_name": name},
            timeout=TIMEOUT,
            allow_redirects=False,
        )
        answer.raise_for_status()
        return answer.headers["Location"]

    def connect_unnoticed(self, name: str) -> None:
        """Let a company connect while its webhook is lost, and the API does not know the number
        yet: the page that the customer sees waits for it."""
        faults = {"drop": True, "lag": LAG_SECONDS, "webhook_first": False}
        self.call("POST", "/sandbox/faults", faults)
        requests.get(self.connect(name), timeout=TIMEOUT).raise_for_status()
        self.call("DELETE", "/sandbox/faults")

    def message(self, name: str, text: str) -> None:
        """Let somebody write to the company's number."""
        path = f"/sandbox/numbers/{number_of(name)}/messages"
        self.delivered(self.call("POST", path, {"from": "+14155550199", "body": text}))

    # Meta and Kapso

    def event(self, name: str, event: str) -> None:
        body = {"event": event, "phone_number_id": number_of(name)}
        self.delivered(self.call("POST", "/sandbox/events", body))

    def unreadable_webhook(self) -> None:
        """Let a webhook arrive that does not say which number it is about."""
        body = {"event": "whatsapp.phone_number.created", "payload": {"phone_number_id": None}}
        self.delivered(self.call("POST", "/sandbox/events", body))

    def delivered(self, sent: dict[str, Any]) -> None:
        """Wait until this site has answered what the sandbox sent."""
        if sent["deliveries"]:
            count = len(self.call("GET", "/deliveries.json")["data"])
            self.call("GET", f"/deliveries.json?settled={count}&timeout={TIMEOUT}")

    def call(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        url = settings.KAPSO_CONNECT["API_BASE_URL"] + path
        answer = self.sandbox.request(method, url, json=body, timeout=2 * TIMEOUT)
        answer.raise_for_status()
        return answer.json() if answer.content else {}


def customers(names: Iterable[str]) -> list[Customer]:
    return [Company.objects.get(name=name).customer for name in names]


def link_of(name: str) -> SetupLink:
    return SetupLink.objects.filter(customer__name=name).latest("pk")


def number_of(name: str) -> str:
    return Connection.objects.filter(customer__name=name).latest("pk").phone_number_id


def date_back(started: datetime, by: timedelta) -> list[SetupLink]:
    """Move all times that were written since ``started`` into the past. Return the links that were
    created since."""
    now = timezone.now()
    with transaction.atomic():
        created = SetupLink.objects.filter(created_at__gte=started)
        keys = list(created.values_list("pk", flat=True))
        created.update(expires_at=F("expires_at") - by)
        for label in ("kapso_connect", "crm"):
            for model in apps.get_app_config(label).get_models():
                for field in model._meta.concrete_fields:
                    if isinstance(field, models.DateTimeField):
                        written = {f"{field.name}__range": (started, now)}
                        rows = model._default_manager.filter(**written)
                        rows.update(**{field.name: F(field.name) - by})
    return list(SetupLink.objects.filter(pk__in=keys))


class QuietHandler(WSGIRequestHandler):
    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002
        pass


@contextmanager
def serving_webhooks() -> Iterator[None]:
    """Serve this site at its public URL, from this process."""
    url = urlsplit(settings.KAPSO_CONNECT["PUBLIC_URL"])
    with make_server(
        str(url.hostname), int(url.port or 80), get_wsgi_application(), handler_class=QuietHandler
    ) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()
