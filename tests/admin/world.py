"""An invited bakery with a connected number, and a member of staff who opens its pages."""

from __future__ import annotations

import html
import re
from datetime import datetime, timedelta
from typing import Any

from django.contrib.auth.models import Permission, User
from django.contrib.messages import get_messages
from django.test import Client
from django.urls import reverse

from kapso_connect import onboarding
from kapso_connect.models import Customer, TimelineEvent
from kapso_connect.testing import Sandbox

from ..factories import make_connection
from ..sites.host_site.models import Bakery

NUMBER = "+14155550123"
PAGE_PERMISSIONS = {
    "email": ["send_setup_link"],
    "qr": ["send_setup_link", "create_setup_link"],
    "share": ["send_setup_link", "create_setup_link"],
    "copied": ["create_setup_link"],
    "revoke": ["revoke_setup_link"],
    "extend": ["extend_setup_link"],
    "reconnect": ["reconnect_number"],
    "health": ["check_health"],
    "disconnect": ["disconnect_number"],
}
PAGES = list(PAGE_PERMISSIONS)
NUMBER_PAGES = {"reconnect", "health", "disconnect"}
POST_ONLY = {"copied", "health"}
VIEWS = ["view_customer", "view_bakery"]


class World:
    """An invited bakery with a connected number, known here and at Kapso, and a member of staff."""

    def __init__(self, sandbox: Sandbox, client: Client) -> None:
        self.sandbox, self.client = sandbox, client
        self.bakery = Bakery.objects.create(title="Süß", contact="ada@example.com", locale="es")
        self.customer = Customer.objects.for_owner(
            self.bakery, name="Süß", email="ada@example.com", language="es"
        )
        self.link = onboarding.create_setup_link(self.customer)
        remote = sandbox.add_number(customer_id=self.customer.kapso_id, phone_number=NUMBER)
        self.number = make_connection(
            self.customer,
            phone_number_id=remote["phone_number_id"],
            display_phone_number="+1 415-555-0123",
        )
        self.user = User.objects.create_user("ada", is_staff=True)
        client.force_login(self.user)

    def allow(self, *codenames: str) -> None:
        self.user.user_permissions.set(Permission.objects.filter(codename__in=codenames))

    def allow_all(self) -> None:
        self.user.is_superuser = True
        self.user.save()

    def panel(self) -> str:
        """Return the page with the panel."""
        opts = Bakery._meta
        url = reverse(f"admin:{opts.app_label}_{opts.model_name}_change", args=[self.bakery.pk])
        return html.unescape(self.client.get(url).content.decode())

    def url(self, page: str, *, of: Any = None, number: Any = None) -> str:
        obj = of or self.bakery
        args = [obj.pk] + ([(number or self.number).pk] if page in NUMBER_PAGES else [])
        opts = obj._meta
        return reverse(f"admin:{opts.app_label}_{opts.model_name}_whatsapp_{page}", args=args)

    def confirm_url(self) -> str:
        """Where “Ask Kapso now” leads."""
        return reverse("admin:host_site_bakery_whatsapp_confirm", args=[self.bakery.pk])

    def form_version(self, page: str, **kwargs: Any) -> dict[str, str]:
        """What the form on a page sends back besides the reader's own choice."""
        page_html = self.client.get(self.url(page, **kwargs)).content.decode()
        found = re.search(r'name="version" value="([^"]*)"', page_html)
        return {"version": found[1]} if found else {}

    def post(self, page: str, data: dict[str, str] | None = None, **kwargs: Any) -> Any:
        """Fill in the form of a page and send it, as its reader would."""
        version = {} if page in POST_ONLY else self.form_version(page, **kwargs)
        return self.client.post(self.url(page, **kwargs), {**version, **(data or {})})

    def request_count(self, method: str, part: str) -> int:
        """How many requests of this kind Kapso got."""
        requests = self.sandbox.requests()
        return sum(r["method"] == method and part in r["path"] for r in requests)


def text(client: Client, address: str) -> str:
    response = client.get(address)
    assert response.status_code == 200
    return response.content.decode()


def messages(response: Any) -> str:
    return " ".join(str(message) for message in get_messages(response.wsgi_request))


def kinds() -> list[str]:
    return list(
        TimelineEvent.objects.exclude(kind="setup_link_created")
        .order_by("pk")
        .values_list("kind", flat=True)
    )


TOMORROW = (datetime.now() + timedelta(days=1)).date()
UNTIL = {"until": (datetime.now() + timedelta(days=60)).date().isoformat()}
GOOD: dict[str, dict[str, str]] = {"extend": UNTIL}
EXPECTED = {
    "email": ("setup_link_sent", "E-mailed the personal link for WhatsApp to ada@example.com."),
    "qr": ("setup_link_sent", "Showed the QR code of the personal link for WhatsApp."),
    "share": ("setup_link_sent", "Shared the personal link for WhatsApp."),
    "copied": ("setup_link_sent", "Copied the personal link for WhatsApp."),
    "revoke": ("setup_link_revoked", "Revoked the WhatsApp setup link."),
    "extend": ("setup_link_extended", "Extended the WhatsApp setup link until"),
    "reconnect": ("setup_link_created", "Created a WhatsApp setup link to reconnect +1 415-555"),
    "health": ("health_checked", "Checked the health of +1 415-555-0123: Healthy."),
    "disconnect": ("disconnected", "Disconnected +1 415-555-0123 from WhatsApp."),
}

CONFIRMED = ["email", "revoke", "extend", "reconnect", "disconnect"]
