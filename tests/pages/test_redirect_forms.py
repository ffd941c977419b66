"""What a customer's browser may come back with from Kapso's hosted page, and what it leads to.

``LINK`` stands for the id of the setup link, ``NUMBER`` for that of the number that it led to. Each
row has the query, what is different from the usual at that moment, the page that is shown, and what
is recorded: the number as connected or unconfirmed, or the error code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from html import unescape
from typing import Any

import pytest
from django.http import HttpResponse
from django.test import Client, RequestFactory

from kapso_connect.models import Connection, SetupLink
from kapso_connect.onboarding.connect_urls import set_visit_cookie
from kapso_connect.testing import Sandbox

from ..factories import make_connection, make_customer, make_link, remote_customer

pytestmark = pytest.mark.django_db(transaction=True)

SUCCESS, FAILED = "/whatsapp/success/", "/whatsapp/failed/"

IDS = "setup_link_id=LINK&status=completed&phone_number_id=NUMBER"
OLDEST = "setup_link_id=LINK&status=completed"
FAILURE = "setup_link_id=LINK&error_code="

PAGES = {
    "connected": (200, "WhatsApp is connected"),
    "waiting": (202, "Almost there"),
    "malformed": (400, "We cannot find this connection"),
    "unknown": (404, "We cannot find this connection"),
    "cancelled": (200, "The login was not completed"),
    "failed": (200, "WhatsApp could not be connected"),
    "already done": (200, "There is nothing more to do"),
}


@dataclass
class Scene:
    """A link, and a number that was added to Kapso since the link was created."""

    sandbox: Sandbox
    link: SetupLink
    number: str

    @property
    def customer_id(self) -> str | None:
        return self.link.customer.kapso_id


def usual(scene: Scene) -> None:
    pass


def not_shown(scene: Scene) -> None:
    answering(404)(scene)


def another_new_number(scene: Scene) -> None:
    scene.sandbox.add_number(customer_id=scene.customer_id)


def two_old_numbers(scene: Scene) -> None:
    """Neither is connected here, and both are older than the link."""
    scene.sandbox.patch_number(scene.number, created_at="2026-01-01T00:00:00Z")


def one_old_number(scene: Scene) -> None:
    """It is not connected here, although Kapso has had it for long."""
    two_old_numbers(scene)
    remove_old_number(scene)


def number_of_another_link(scene: Scene) -> None:
    """Connected by another link, after this one was created."""
    other = make_link(scene.link.customer, is_latest=False, status="used", setup_status="completed")
    make_connection(scene.link.customer, phone_number_id=scene.number, setup_link=other)
    remove_old_number(scene)


def remove_old_number(scene: Scene) -> None:
    for row in scene.sandbox.state()["phone_numbers"]:
        if row["phone_number_id"] != scene.number:
            scene.sandbox.patch_number(row["phone_number_id"], status="DISCONNECTED")


def reconnecting(scene: Scene) -> None:
    """The link renews the credentials of a number that another link connected; others are new."""
    number_of_another_link(scene)
    another_new_number(scene)
    scene.sandbox.patch_number(scene.number, display_phone_number="+44 20 7183 8750")
    scene.link.options = {"reconnect_phone_number": "+442071838750"}
    scene.link.save()


def reconnecting_in_mexico(scene: Scene) -> None:
    """Kapso writes the number with the 1 of WhatsApp, the link without it."""
    reconnecting(scene)
    scene.sandbox.patch_number(scene.number, display_phone_number="+52 1 55 1234 5678")
    scene.link.options = {"reconnect_phone_number": "+525512345678"}
    scene.link.save()


def completed(scene: Scene) -> None:
    """This link has connected the number already."""
    scene.link.status, scene.link.setup_status = "used", "completed"
    scene.link.save()
    make_connection(scene.link.customer, phone_number_id=scene.number, setup_link=scene.link)


def completed_and_away(scene: Scene) -> None:
    completed(scene)
    answering(503)(scene)


def someone_elses(scene: Scene) -> None:
    other = scene.sandbox.add_number(external_customer_id="other")
    scene.sandbox.patch_number(scene.number, customer_id=other["customer_id"])


def answering(status: int) -> Callable[[Scene], None]:
    def answer(scene: Scene) -> None:
        rule = {"match": "phone_numbers", "kind": "status", "status": status}
        scene.sandbox.faults(api=[rule])

    return answer


def known_but(then: Callable[[Scene], None]) -> Callable[[Scene], None]:
    """The webhook has connected the number already, and the API says something else."""

    def change(scene: Scene) -> None:
        make_connection(scene.link.customer, phone_number_id=scene.number)
        then(scene)

    return change


# The query, what is unusual, the page, and what is recorded
SUCCESSES = {
    "today": (
        IDS + "&business_account_id=9876&provisioned_phone_number_id=LINK"
        "&display_phone_number=%2B442071838750",
        *(usual, "connected", "connected"),
    ),
    "ids only": (IDS, usual, "connected", "connected"),
    "older, with a config": (IDS + "&whatsapp_config_id=cfg+1", usual, "connected", "connected"),
    "oldest, without a number": (OLDEST, usual, "connected", "connected"),
    "only the link": ("setup_link_id=LINK", usual, "connected", "connected"),
    "number null": (OLDEST + "&phone_number_id=null", usual, "connected", "connected"),
    "number undefined": (OLDEST + "&phone_number_id=undefined", usual, "connected", "connected"),
    "no status": (
        "setup_link_id=LINK&phone_number_id=NUMBER",
        *(usual, "connected", "connected"),
    ),
    "status in capitals": (
        "setup_link_id=LINK&status=COMPLETED&phone_number_id=NUMBER",
        *(usual, "connected", "connected"),
    ),
    "account null": (IDS + "&business_account_id=null", usual, "connected", "connected"),
    "account odd": (IDS + "&business_account_id=../../x", usual, "connected", "connected"),
    "provisioned null": (
        IDS + "&provisioned_phone_number_id=null",
        usual,
        "connected",
        "connected",
    ),
    "provisioned odd": (IDS + "&provisioned_phone_number_id=a+b!", usual, "connected", "connected"),
    "encoded twice": (
        IDS + "&display_phone_number=%252B442071838750",
        *(usual, "connected", "connected"),
    ),
    "plus as a blank": (
        IDS + "&display_phone_number=+442071838750",
        *(usual, "connected", "connected"),
    ),
    "oddly spaced": (
        IDS + "&display_phone_number=%2B44%C2%A020%E2%80%AF7183%098750",
        *(usual, "connected", "connected"),
    ),
    "blanks at the ends": (
        "setup_link_id=+LINK%20&status=completed+&phone_number_id=%20NUMBER+",
        *(usual, "connected", "connected"),
    ),
    "link in capitals": (
        "setup_link_id=UPPER&status=completed&phone_number_id=NUMBER",
        *(usual, "connected", "connected"),
    ),
    "everything twice": (f"{IDS}&{IDS}", usual, "connected", "connected"),
    "the account twice": (
        IDS + "&business_account_id=1&business_account_id=2",
        *(usual, "connected", "connected"),
    ),
    "more parameters": (IDS + "&utm_source=mail&fbclid=x&a[]=1", usual, "connected", "connected"),
    # Which number? Where that is not clear, the customer waits.
    "no number, several new ones": (OLDEST, another_new_number, "waiting", "reported"),
    "no number, several old ones": (OLDEST, two_old_numbers, "waiting", "reported"),
    "no number, one old one": (OLDEST, one_old_number, "connected", "connected"),
    "no number, only another link's": (OLDEST, number_of_another_link, "waiting", "reported"),
    "no number, a reconnected one": (OLDEST, reconnecting, "connected", "connected"),
    "no number, one of Mexico": (OLDEST, reconnecting_in_mexico, "connected", "connected"),
    "no number, and the link is done": (OLDEST, completed, "connected", "connected"),
    "no number, and the link is done, API away": (
        OLDEST,
        *(completed_and_away, "connected", "connected"),
    ),
    "no number, API away": (OLDEST, answering(503), "waiting", "reported"),
    # What the webhook has connected is shown as connected, whatever the API says. Where it says
    # nothing yet, kapso_sync asks again.
    "known": (IDS, known_but(usual), "connected", "connected"),
    "known, not shown yet": (IDS, known_but(not_shown), "connected", "reported"),
    "known, 403": (IDS, known_but(answering(403)), "connected", "reported"),
    "known, 422": (IDS, known_but(answering(422)), "connected", "connected"),
    "known, 500": (IDS, known_but(answering(500)), "connected", "reported"),
    "known, someone else's": (IDS, known_but(someone_elses), "connected", "connected"),
    # What nobody has confirmed waits, or is refused.
    "not shown yet": (IDS, not_shown, "waiting", "reported"),
    "API away": (IDS, answering(500), "waiting", "reported"),
    "someone else's": (IDS, someone_elses, "unknown", ""),
    "no link": ("status=completed&phone_number_id=NUMBER", usual, "malformed", ""),
    "unknown link": ("setup_link_id=x&phone_number_id=NUMBER", usual, "unknown", ""),
    "two links": (IDS + "&setup_link_id=x", usual, "malformed", ""),
    "two numbers": (IDS + "&phone_number_id=1", usual, "malformed", ""),
    "number odd": (OLDEST + "&phone_number_id=12a", usual, "malformed", ""),
    "another status": ("setup_link_id=LINK&status=failed", usual, "malformed", ""),
}

FAILURES = {
    "known code": (FAILURE + "facebook_auth_failed", usual, "cancelled", "facebook_auth_failed"),
    "known code, in capitals": (
        FAILURE + "FACEBOOK_AUTH_FAILED",
        *(usual, "cancelled", "facebook_auth_failed"),
    ),
    "known code, blanks": (
        FAILURE + "+facebook_auth_failed%20",
        *(usual, "cancelled", "facebook_auth_failed"),
    ),
    "known code, twice": (
        FAILURE + "facebook_auth_failed&error_code=facebook_auth_failed",
        *(usual, "cancelled", "facebook_auth_failed"),
    ),
    "new code": (FAILURE + "meta_on_strike", usual, "failed", "meta_on_strike"),
    "no code": ("setup_link_id=LINK", usual, "failed", "unknown"),
    "empty code": (FAILURE, usual, "failed", "unknown"),
    "code null": (FAILURE + "null", usual, "failed", "unknown"),
    "odd code": (FAILURE + "<b>meta: on/strike</b>", usual, "failed", "bmetaonstrikeb"),
    "nothing but odd": (FAILURE + "%00%F0%9F%98%80", usual, "failed", "unknown"),
    "long code": (FAILURE + "x" * 300, usual, "failed", "x" * 64),
    "two codes": (FAILURE + "first&error_code=second", usual, "failed", "first"),
    "link in capitals, failed": (
        "setup_link_id=UPPER&error_code=strike",
        *(usual, "failed", "strike"),
    ),
    "after all was done": (FAILURE + "already_used", completed, "already done", "connected"),
    "no link, failed": ("error_code=already_used", usual, "malformed", ""),
    "unknown link, failed": ("setup_link_id=x&error_code=already_used", usual, "unknown", ""),
}

FORMS: dict[str, tuple[Any, ...]] = {
    **{name: (SUCCESS, *form) for name, form in SUCCESSES.items()},
    **{name: (FAILED, *form) for name, form in FAILURES.items()},
}


def recorded(link: SetupLink, number: str) -> str:
    link.refresh_from_db()
    if link.unconfirmed_since:
        return "reported"
    connected = Connection.objects.connected().filter(phone_number_id=number)
    return "connected" if connected.exists() else link.last_error_code


@pytest.mark.parametrize(
    ("path", "query", "unusual", "page", "leads_to"), FORMS.values(), ids=FORMS
)
def test_form(
    sandbox: Sandbox,
    client: Client,
    path: str,
    query: str,
    unusual: Callable[[Scene], None],
    page: str,
    leads_to: str,
) -> None:
    customer = remote_customer(sandbox)  # who has another number, which is older
    customer.connect_key = "key"
    customer.save(update_fields=["connect_key"])
    link = make_link(customer)
    SetupLink.objects.filter(pk=link.pk).update(kapso_id=link.kapso_id.lower())
    number = sandbox.add_number(customer_id=link.customer.kapso_id)["phone_number_id"]
    unusual(Scene(sandbox, link, number))
    visit = HttpResponse()
    set_visit_cookie(RequestFactory().get("/"), visit, link.customer)
    client.cookies["kapso_connect_token"] = visit.cookies["kapso_connect_token"].value
    for name, value in {"LINK": link.kapso_id, "UPPER": link.kapso_id.upper()}.items():
        query = query.replace(name, value)

    response = client.get(f"{path}?{query.replace('NUMBER', number)}")

    status, words = PAGES[page]
    assert response.status_code == status
    assert words in unescape(response.content.decode())
    assert recorded(link, number) == leads_to
    others = Connection.objects.connected().exclude(phone_number_id=number)
    assert not others.exists()


def test_two_customers_are_kept_apart(sandbox: Sandbox, client: Client) -> None:
    """A redirect without a number finds none of another customer."""
    link = make_link(make_customer(kapso_id="nobody-at-kapso"))
    number = sandbox.add_number(external_customer_id="other")["phone_number_id"]
    assert client.get(f"{SUCCESS}?setup_link_id={link.kapso_id}").status_code == 404
    assert not Connection.objects.filter(phone_number_id=number).exists()
