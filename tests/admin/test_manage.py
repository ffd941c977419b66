"""What staff do with one customer: deliver the address, manage the link, look after numbers."""

from __future__ import annotations

import re
import smtplib
import sys
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import unquote

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.contrib.messages import get_messages
from django.core import mail as outbox_of
from django.core.mail.backends.locmem import EmailBackend
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from django.utils.dateparse import parse_datetime

from kapso_connect import exceptions, onboarding
from kapso_connect.admin import extend, manage
from kapso_connect.models import Connection, Customer, SetupLink, TimelineEvent
from kapso_connect.onboarding import connect_urls, customers
from kapso_connect.testing import Sandbox

from ..factories import make_connection, make_customer, make_link
from ..sites.host_site.models import Bakery, Branch

pytestmark = pytest.mark.django_db(transaction=True)

NUMBER = "+14155550123"
PAGES = list(manage.PERMISSIONS)
VIEWS = ["view_customer", "view_bakery"]


class World:
    """An invited bakery with a connected number, known here and at Kapso; and who looks at it."""

    def __init__(self, sandbox: Sandbox, client: Client) -> None:
        self.sandbox, self.client = sandbox, client
        self.bakery = Bakery.objects.create(title="Süß", contact="ada@example.com", locale="es")
        self.customer = Customer.objects.for_owner(
            self.bakery, name="Süß", email="ada@example.com", language="es"
        )
        self.link = onboarding.create_setup_link(self.customer)
        self.customer.refresh_from_db()
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

    def url(self, page: str, *, of: Any = None, number: Any = None) -> str:
        obj = of or self.bakery
        args = [obj.pk] + ([(number or self.number).pk] if page in manage.OF_NUMBERS else [])
        opts = obj._meta
        return reverse(f"admin:{opts.app_label}_{opts.model_name}_whatsapp_{page}", args=args)

    def seen(self, page: str, **kwargs: Any) -> dict[str, str]:
        """What the form on a page sends back besides the reader's own choice."""
        html = self.client.get(self.url(page, **kwargs)).content.decode()
        found = re.search(r'name="seen" value="([^"]*)"', html)
        return {"seen": found[1]} if found else {}

    def post(self, page: str, data: dict[str, str] | None = None, **kwargs: Any) -> Any:
        """Fill in the form of a page and send it, as its reader would."""
        seen = {} if page in manage.POST_ONLY else self.seen(page, **kwargs)
        return self.client.post(self.url(page, **kwargs), {**seen, **(data or {})})

    def asked(self, method: str, part: str) -> int:
        """How often Kapso was asked."""
        requests = self.sandbox.requests()
        return sum(r["method"] == method and part in r["path"] for r in requests)


@pytest.fixture
def world(sandbox: Sandbox, client: Client, configure: Any) -> World:
    configure(API_BUDGET=2.0)
    world = World(sandbox, client)
    world.allow_all()
    return world


def said(response: Any) -> str:
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
    "email": ("setup_link_sent", "E-mailed the WhatsApp setup link to ada@example.com."),
    "qr": ("setup_link_sent", "Showed the QR code of the WhatsApp setup link."),
    "share": ("setup_link_sent", "Shared the WhatsApp setup link."),
    "copied": ("setup_link_sent", "Copied the WhatsApp setup link."),
    "revoke": ("setup_link_revoked", "Revoked the WhatsApp setup link."),
    "extend": ("setup_link_extended", "Extended the WhatsApp setup link until"),
    "reconnect": ("setup_link_created", "Created a WhatsApp setup link to reconnect +1 415-555"),
    "health": ("health_checked", "Checked the health of +1 415-555-0123: Healthy."),
    "disconnect": ("disconnected", "Disconnected +1 415-555-0123 from WhatsApp."),
}


# Every action


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("side", ["host", "own"])
def test_every_action_writes_who_did_it_to_the_timeline_and_to_both_logs(
    world: World, page: str, side: str
) -> None:
    of = world.bakery if side == "host" else world.customer
    response = world.post(page, GOOD.get(page), of=of)
    assert response.status_code == (204 if page == "copied" else 302), response.content
    kind, entry = EXPECTED[page]
    event = TimelineEvent.objects.filter(kind=kind).latest("pk")
    assert (event.customer, event.actor) == (world.customer, world.user)
    logged = LogEntry.objects.filter(change_message__startswith=entry)
    assert sorted(str(log.object_id) for log in logged) == sorted(
        [str(world.customer.pk), str(world.bakery.pk)]
    )
    assert {log.content_type.model for log in logged} == {"customer", "bakery"}
    assert {log.user for log in logged} == {world.user}


@pytest.mark.parametrize("page", PAGES)
def test_each_action_needs_its_own_permissions_and_no_other(world: World, page: str) -> None:
    world.user.is_superuser = False
    world.user.save()
    needed = manage.PERMISSIONS[page]
    seen = {"seen": "nothing"}
    for missing in needed:
        every = {name for names in manage.PERMISSIONS.values() for name in names}
        world.allow(*VIEWS, *(every - {missing}))
        assert world.client.post(world.url(page), seen).status_code == 403
        assert world.client.get(world.url(page)).status_code == 403
    world.allow("view_customer", *needed)  # but not the bakery
    assert world.client.post(world.url(page), seen).status_code == 403
    assert kinds() == []
    world.allow(*VIEWS, *needed)
    assert world.post(page, GOOD.get(page)).status_code in (204, 302)
    assert EXPECTED[page][0] in ["setup_link_created", *kinds()]


@pytest.mark.parametrize("page", PAGES)
def test_those_who_are_not_logged_in_are_sent_to_the_login(world: World, page: str) -> None:
    response = Client().post(world.url(page))
    assert response.status_code == 302
    assert "/login/" in response["Location"]
    assert kinds() == []


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("key", ["999999999999999999999", "x", "%00", "-1", "_", "a_2Fb"])
def test_an_object_that_is_not_there_is_not_found(world: World, page: str, key: str) -> None:
    path = world.url(page).replace(f"/{world.bakery.pk}/{page}/", f"/{key}/{page}/")
    assert world.client.post(path).status_code == 404


@pytest.mark.parametrize("page", sorted(manage.OF_NUMBERS))
def test_a_number_of_another_customer_is_not_found(world: World, page: str) -> None:
    other = make_connection()
    response = world.client.post(world.url(page, number=other), {"seen": ""})
    assert response.status_code == 404
    assert "no longer does" in response.content.decode()
    other.refresh_from_db()
    assert other.is_connected
    assert kinds() == []


@pytest.mark.parametrize("page", ["health", "disconnect", "reconnect"])
def test_a_number_that_has_moved_to_another_customer_is_left_alone(world: World, page: str) -> None:
    seen = {} if page == "health" else world.seen(page)
    world.number.customer = make_customer()
    world.number.save()
    assert world.client.post(world.url(page), seen).status_code == 404
    assert (world.asked("DELETE", "phone_numbers"), world.asked("POST", "setup_links")) == (0, 1)


@pytest.mark.parametrize("page", PAGES)
def test_who_was_never_invited_gets_a_message(world: World, page: str) -> None:
    nobody = Bakery.objects.create(title="New")
    response = world.client.post(world.url(page, of=nobody))
    assert response["Location"] == reverse("admin:host_site_bakery_change", args=[nobody.pk])
    assert said(response) == "This customer was not invited yet."
    assert Customer.objects.count() == 1


def test_keys_that_the_admin_quotes_are_found(world: World) -> None:
    branch = Branch.objects.create(code="north/1_2")
    world.customer.owner = branch
    world.customer.save()
    path = reverse("admin:host_site_branch_whatsapp_qr", args=["north_2F1_5F2"])
    assert world.client.post(path).status_code == 302
    assert LogEntry.objects.filter(object_id=branch.pk).exists()
    page = world.client.get(path).content.decode()
    assert "/host_site/branch/north_2F1_5F2/change/" in page


CONFIRMED = ["email", "revoke", "extend", "reconnect", "disconnect"]


@pytest.mark.parametrize("page", CONFIRMED)
def test_a_form_that_is_sent_twice_acts_once(world: World, page: str) -> None:
    data = {**world.seen(page), **GOOD.get(page, {})}
    events = TimelineEvent.objects.count()
    first, second = (world.client.post(world.url(page), data) for _ in range(2))
    assert "Nothing more was done" not in said(first)
    assert said(second), "the second one is told"
    # A new link ends the one before, and a number's end is the end of the customer's link.
    assert TimelineEvent.objects.count() == events + 1 + (page in {"reconnect", "disconnect"})
    assert len(outbox_of.outbox) == (page == "email")


@pytest.mark.parametrize("page", CONFIRMED)
@pytest.mark.parametrize("seen", [None, "", "x", "1", "x" * 10_000, "\0", "2026-01-01 1 active"])
def test_a_form_that_nobody_saw_does_nothing(world: World, page: str, seen: str | None) -> None:
    data = dict(GOOD.get(page, {})) | ({} if seen is None else {"seen": seen})
    response = world.client.post(world.url(page), data)
    assert response["Location"] == world.url(page)
    assert "Nothing more was done" in said(response)
    assert kinds() == []
    assert outbox_of.outbox == []


@pytest.mark.parametrize("page", CONFIRMED)
def test_of_two_members_of_staff_the_second_looks_again(world: World, page: str) -> None:
    hers = {**world.seen(page), **GOOD.get(page, {})}
    other = Client()
    other.force_login(User.objects.create_superuser("bob"))
    onboarding.create_setup_link(world.customer)  # by the other one, meanwhile
    if page == "disconnect":
        Connection.objects.update(connected_at=timezone.now())
    before = kinds()
    response = world.client.post(world.url(page), hers)
    assert "Nothing more was done" in said(response)
    assert kinds() == before
    assert outbox_of.outbox == []


@pytest.mark.parametrize("page", CONFIRMED)
def test_two_at_the_very_same_moment_act_once(
    world: World, page: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have read the customer before either takes the turn."""
    data = {**world.seen(page), **GOOD.get(page, {})}
    touch_if_unchanged = customers.touch_if_unchanged

    def beaten(customer: Customer) -> bool:
        assert touch_if_unchanged(Customer.objects.get(pk=customer.pk))
        return touch_if_unchanged(customer)

    monkeypatch.setattr(onboarding, "take_turn", beaten)
    assert "Nothing more was done" in said(world.client.post(world.url(page), data))
    assert kinds() == []
    assert outbox_of.outbox == []


@pytest.mark.parametrize("page", CONFIRMED)
def test_a_customer_that_was_deleted_meanwhile_is_said_to_be(
    world: World, page: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = {**world.seen(page), **GOOD.get(page, {})}

    def taken(customer: Customer) -> bool:
        Customer.objects.filter(pk=customer.pk).delete()
        return True

    monkeypatch.setattr(onboarding, "take_turn", taken)
    response = world.client.post(world.url(page), data)
    assert response.status_code == 302
    assert said(response)
    assert not Customer.objects.exists()
    assert not TimelineEvent.objects.exists()


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"kind": "status", "status": 503}, "Kapso did not answer"),
        ({"kind": "status", "status": 401}, "refused this site's API key"),
        ({"kind": "status", "status": 429, "retry_after": 600}, "Wait a minute"),
        ({"kind": "html", "status": 200}, "could not be understood"),
    ],
    ids=["away", "key", "too often", "nonsense"],
)
@pytest.mark.parametrize("page", ["revoke", "extend", "reconnect", "health", "disconnect"])
def test_what_kapso_refuses_is_explained_and_changes_nothing(
    world: World, page: str, fault: dict[str, Any], words: str
) -> None:
    data = {} if page == "health" else {**world.seen(page), **GOOD.get(page, {})}
    world.sandbox.faults(api=[fault])
    response = world.client.post(world.url(page), data)
    assert response.status_code == 302
    assert words in said(response)
    assert (kinds(), LogEntry.objects.count()) == ([], 0)
    world.link.refresh_from_db()
    world.number.refresh_from_db()
    assert (world.link.status, world.number.status) == ("active", "connected")
    world.sandbox.clear_faults()
    assert "Nothing more was done" not in said(world.post(page, GOOD.get(page)))


# Delivering


def test_the_page_shows_what_will_be_sent_and_sends_it(world: World) -> None:
    page = world.client.get(world.url("email")).content.decode()
    url = connect_urls.connect_url(world.customer)
    for shown in ("ada@example.com", "Spanish", url, "Send the e-mail"):
        assert shown in page
    response = world.post("email")
    assert said(response) == "The link was e-mailed to ada@example.com."
    (message,) = outbox_of.outbox
    assert (message.to, url in message.body) == (["ada@example.com"], True)
    again = world.client.get(world.url("email")).content.decode()
    assert "This link was e-mailed before" in again
    assert "Send again" in again
    world.post("email")
    assert len(outbox_of.outbox) == 2


def test_the_address_is_hidden_from_those_who_may_not_create_links(world: World) -> None:
    world.user.is_superuser = False
    world.user.save()
    world.allow(*VIEWS, "send_setup_link")
    page = world.client.get(world.url("email")).content.decode()
    assert connect_urls.connect_url(world.customer) not in page
    assert "[the customer&#x27;s own address]" in page
    world.post("email")
    assert connect_urls.connect_url(world.customer) in outbox_of.outbox[0].body


def test_the_hosts_own_address_of_today_is_written_to(world: World) -> None:
    Bakery.objects.update(contact="new@example.com", locale="ar")
    page = world.client.get(world.url("email")).content.decode()
    assert "new@example.com" in page
    world.post("email")
    assert outbox_of.outbox[0].to == ["new@example.com"]


def test_an_external_id_that_is_taken_stops_no_email(world: World) -> None:
    make_customer(external_customer_id="taken")
    Bakery.objects.update(reference="taken")
    Customer.objects.filter(pk=world.customer.pk).update(kapso_id=None)
    world.post("email")
    assert len(outbox_of.outbox) == 1


@pytest.mark.parametrize("email", ["", "nobody", "a@b.example\nBcc: c@d.example"])
def test_who_has_no_email_is_told_of_instead_of_a_form(world: World, email: str) -> None:
    Bakery.objects.update(contact=email)
    Customer.objects.update(email=email)
    page = world.client.get(world.url("email")).content.decode()
    assert "has no valid e-mail address" in page
    assert 'name="seen"' not in page
    assert reverse("admin:host_site_bakery_change", args=[world.bakery.pk]) in page
    world.customer.refresh_from_db()
    target = manage.Target(world.bakery, world.customer, world.link)
    response = world.client.post(world.url("email"), {"seen": target.seen})
    assert "has no valid e-mail address" in said(response)
    assert outbox_of.outbox == []


ENDS: dict[str, dict[str, Any]] = {
    "expired": {"expires_at": datetime(2020, 1, 1, tzinfo=timezone.get_default_timezone())},
    "marked expired": {"status": "expired"},
    "used": {"status": "used", "setup_status": "completed"},
    "revoked": {"status": "revoked"},
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
@pytest.mark.parametrize("page", ["email", "qr", "share", "copied", "extend"])
def test_a_link_that_has_ended_is_not_given_out(
    world: World, page: str, end: dict[str, Any]
) -> None:
    SetupLink.objects.update(**end)
    response = world.client.post(world.url(page), {**UNTIL, "seen": ""})
    assert response.status_code in (302, 204)
    if page not in ("copied", "email"):
        assert said(response) == "There is no link that works. Create a new one first."
    assert kinds() == []
    assert outbox_of.outbox == []


def test_the_email_page_offers_a_new_link_when_the_last_has_ended(world: World) -> None:
    SetupLink.objects.update(status="expired")
    page = world.client.get(world.url("email")).content.decode()
    assert "does not work any more" in page
    assert reverse("admin:host_site_bakery_whatsapp_invite") in page
    assert f'name="ids" value="{world.bakery.pk}"' in page


@pytest.mark.parametrize(
    "error",
    [
        smtplib.SMTPRecipientsRefused({"ada@example.com": (550, b"No such user")}),
        ConnectionRefusedError("nobody listens"),
        RuntimeError("a backend's own"),
    ],
    ids=["refused", "away", "other"],
)
def test_an_email_that_cannot_be_sent_is_explained_and_not_noted(
    world: World, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any) -> int:
        raise error

    monkeypatch.setattr(EmailBackend, "send_messages", refuse)
    response = world.post("email")
    assert response["Location"] == world.url("email")
    assert "The mail server did not take the e-mail" in said(response)
    assert kinds() == []
    monkeypatch.undo()
    assert "was e-mailed" in said(world.post("email"))


@pytest.mark.parametrize("channel", ["qr", "share", "copied"])
def test_a_double_click_is_noted_once_and_a_later_one_again(world: World, channel: str) -> None:
    for _ in range(3):
        world.client.post(world.url(channel))
    assert kinds() == ["setup_link_sent"]
    then = timezone.now() - manage.DOUBLE_CLICK * 2
    TimelineEvent.objects.filter(kind="setup_link_sent").update(occurred_at=then)
    world.client.post(world.url(channel))
    assert kinds() == ["setup_link_sent"] * 2


@pytest.mark.parametrize("channel", ["qr", "share"])
def test_looking_at_the_page_again_notes_nothing(world: World, channel: str) -> None:
    response = world.client.get(world.url(channel))
    assert response.status_code == 200
    assert kinds() == []


@pytest.mark.parametrize("page", sorted(manage.POST_ONLY))
def test_what_only_acts_is_not_for_looking_at(world: World, page: str) -> None:
    assert world.client.get(world.url(page)).status_code == 405
    assert kinds() == []


def test_the_qr_code_has_a_name_and_leads_to_the_customers_address(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = world.client.get(world.url("qr")).content.decode()
    assert '<svg viewBox="' in page
    assert 'role="img" aria-label="QR code with the WhatsApp setup link of Süß"' in page
    assert connect_urls.connect_url(world.customer) in page
    assert world.link.url not in page
    assert "style=" not in page.partition("<main")[2].partition("</main>")[0]


def test_without_segno_the_page_says_what_to_install(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "segno", None)
    response = world.client.get(world.url("qr"))
    assert response.status_code == 200
    assert "django-kapso-connect[qr]" in response.content.decode()


def test_the_text_to_share_is_the_customers_and_whatsapp_gets_it_whole(world: World) -> None:
    Customer.objects.update(name='Ada & "Söhne" 🥐 #1?\n')
    page = world.client.get(world.url("share")).content.decode()
    assert 'lang="es"' in page
    link = re.search(r'href="https://wa\.me/\?text=([^"&#]*)"[^>]*>', page)
    assert link
    assert 'rel="noopener noreferrer"' in link[0]
    text = unquote(link[1])
    assert 'Ada & "Söhne" 🥐 #1?' in text
    assert connect_urls.connect_url(world.customer) in text


# Managing the link


def test_revoking_ends_the_link_and_the_customers_address(world: World) -> None:
    address = connect_urls.connect_url(world.customer)
    page = world.client.get(world.url("revoke")).content.decode()
    assert "What will happen" in page
    assert kinds() == []
    world.post("revoke")
    world.link.refresh_from_db()
    assert world.link.status == "revoked"
    assert Client().get(address.removeprefix("https://site.example")).status_code == 410
    assert [row["status"] for row in world.sandbox.state()["setup_links"]] == ["revoked"]


def test_a_link_that_was_used_meanwhile_is_not_revoked(world: World) -> None:
    data = world.seen("revoke")
    world.sandbox.patch_setup_link(world.link.kapso_id, status="used")
    response = world.client.post(world.url("revoke"), data)
    assert said(response).startswith("Nothing was revoked")
    world.link.refresh_from_db()
    assert world.link.status == "used"
    assert kinds() == []


@pytest.mark.parametrize("page", ["revoke", "extend"])
def test_a_link_that_was_revoked_at_kapso_meanwhile_ends_here(world: World, page: str) -> None:
    data = {**world.seen(page), **GOOD.get(page, {})}
    world.sandbox.patch_setup_link(world.link.kapso_id, status="revoked")
    response = world.client.post(world.url(page), data)
    world.link.refresh_from_db()
    assert world.link.status == "revoked"
    assert kinds() == ["setup_link_revoked"]
    assert ("ended meanwhile" in said(response)) == (page == "extend")


@pytest.mark.parametrize("days", [60, extend.MAX_DAYS, 30])
def test_extending_asks_kapso_for_the_end_of_that_day(world: World, days: int) -> None:
    day = extend.today() + timedelta(days=days)
    world.post("extend", {"until": day.isoformat()})
    world.link.refresh_from_db()
    assert world.link.expires_at == extend.end_of(day)
    (remote,) = world.sandbox.state()["setup_links"]
    assert parse_datetime(remote["expires_at"]) == extend.end_of(day)


def test_the_buttons_extend_by_days_whatever_the_field_says(world: World) -> None:
    page = world.client.get(world.url("extend")).content.decode()
    assert world.link.expires_at
    for days in manage.STEPS:
        day = extend.local(world.link.expires_at).date() + timedelta(days=days)
        assert f'name="until" value="{day.isoformat()}"' in page
    data = world.seen("extend")
    world.client.post(world.url("extend"), {**data, "until": ["2020-01-01", day.isoformat()]})
    world.link.refresh_from_db()
    assert world.link.expires_at == extend.end_of(day)


@pytest.mark.parametrize(
    "until",
    [
        "",
        "x",
        "2020-01-01",
        "0001-01-01",
        "9999-12-31",
        "2026-02-30",
        "١٢-١٢-٢٠٢٦",
        "\0",
        "9" * 999,
    ],
)
def test_a_day_that_makes_no_sense_is_refused_before_kapso_is_asked(
    world: World, until: str
) -> None:
    response = world.post("extend", {"until": until})
    assert response.status_code == 200
    assert 'class="errorlist"' in response.content.decode()
    assert world.asked("PATCH", "setup_links") == 0


def test_today_and_more_than_a_year_are_refused(world: World) -> None:
    for day in (TOMORROW, extend.today() + timedelta(days=extend.MAX_DAYS + 1)):
        assert world.post("extend", {"until": day.isoformat()}).status_code == 200
    assert kinds() == []


def test_a_link_without_an_end_needs_no_extension(world: World) -> None:
    SetupLink.objects.update(expires_at=None)
    response = world.client.get(world.url("extend"))
    assert said(response) == "This link works without an end."


@pytest.mark.parametrize("language", ["en", "ar", "hi"])
def test_dates_are_read_the_same_in_every_language(world: World, language: str) -> None:
    data = {**world.seen("extend"), **UNTIL}
    world.client.post(world.url("extend"), data, headers={"accept-language": language})
    assert kinds() == ["setup_link_extended"]


# Looking after a number


def test_reconnecting_makes_a_link_for_this_number_alone(world: World) -> None:
    address = connect_urls.connect_url(world.customer)
    world.post("reconnect")
    link = SetupLink.objects.get(is_latest=True)
    assert link != world.link
    assert link.options["reconnect_phone_number"] == NUMBER
    assert link.created_by == world.user
    world.customer.refresh_from_db()
    assert connect_urls.connect_url(world.customer) == address


def test_reconnecting_wins_over_the_sites_default_connection_types(
    world: World, settings: Any
) -> None:
    settings.KAPSO_CONNECT = {
        **settings.KAPSO_CONNECT,
        "SETUP_LINK_DEFAULTS": {"allowed_connection_types": ["dedicated"]},
    }
    response = world.post("reconnect")
    assert "was created" in said(response)
    assert "allowed_connection_types" not in SetupLink.objects.get(is_latest=True).options


def test_a_number_that_nobody_knows_cannot_be_reconnected(world: World) -> None:
    Connection.objects.update(display_phone_number="")
    response = world.client.post(world.url("reconnect"), {"seen": ""})
    assert "Kapso has not told what number this is" in said(response)
    assert SetupLink.objects.count() == 1


@pytest.mark.parametrize("display", ["12", "+1 (abc)", "9" * 60])
def test_a_number_that_is_none_is_refused_with_words(world: World, display: str) -> None:
    Connection.objects.update(display_phone_number=display)
    response = world.post("reconnect")
    assert "Must be a phone number" in said(response)
    assert SetupLink.objects.count() == 1


def test_an_unhealthy_number_says_what_is_wrong(world: World) -> None:
    world.sandbox.patch_number(world.number.phone_number_id, status="BANNED")
    response = world.post("health")
    assert said(response).startswith("+1 415-555-0123: Unhealthy. ")
    assert "BANNED" in said(response)
    world.number.refresh_from_db()
    assert world.number.health_status == "unhealthy"


def test_a_double_click_asks_about_health_once(world: World) -> None:
    for _ in range(2):
        assert "Healthy" in said(world.post("health"))
    assert world.asked("GET", "/health") == 1
    assert kinds() == ["health_checked"]


def test_a_number_that_kapso_no_longer_has_counts_as_disconnected(world: World) -> None:
    Connection.objects.update(phone_number_id="404")
    response = world.post("health")
    assert "counts as disconnected now" in said(response)
    assert kinds() == ["disconnected"]


def test_disconnecting_says_first_what_it_will_do(world: World) -> None:
    page = world.client.get(world.url("disconnect")).content.decode()
    assert "What will happen" in page
    assert "+1 415-555-0123" in page
    assert kinds() == []
    response = world.post("disconnect")
    assert said(response) == "+1 415-555-0123 was disconnected and removed from Kapso."
    assert world.asked("DELETE", "phone_numbers") == 1
    world.number.refresh_from_db()
    assert (world.number.status, world.number.disconnect_reason) == ("disconnected", "staff")


@pytest.mark.parametrize("method", ["get", "post"])
def test_a_number_that_is_disconnected_already_stays_so(world: World, method: str) -> None:
    Connection.objects.update(status="disconnected")
    response = getattr(world.client, method)(world.url("disconnect"))
    assert said(response) == "This number is not connected any more."
    assert world.asked("DELETE", "phone_numbers") == 0


def test_a_number_that_connects_anew_while_it_is_disconnected_is_looked_at_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = world.seen("disconnect")

    def too_late(*args: Any, **kwargs: Any) -> None:
        raise exceptions.TryLater

    monkeypatch.setattr(onboarding, "disconnect_number", too_late)
    response = world.client.post(world.url("disconnect"), data)
    assert "changed meanwhile" in said(response)


# Names, and other sites


@pytest.mark.parametrize(
    "name", ["x" * 255, "مخبز \u202eمقلوب", "🥐🥖", "<script>alert(1)</script>"]
)
@pytest.mark.parametrize("page", [*CONFIRMED, "qr", "share"])
def test_any_name_is_a_name(world: World, name: str, page: str) -> None:
    Bakery.objects.update(title=name)
    Customer.objects.update(name=name)
    response = world.client.get(world.url(page))
    assert response.status_code == 200
    assert "<script>alert" not in response.content.decode()
    assert world.post(page, GOOD.get(page)).status_code == 302


def test_it_works_in_an_admin_site_of_the_hosts_own(world: World) -> None:
    path = reverse("other:host_site_bakery_whatsapp_revoke", args=[world.bakery.pk])
    page = world.client.get(path).content.decode()
    back = reverse("other:host_site_bakery_change", args=[world.bakery.pk])
    assert back in page
    seen = re.search(r'name="seen" value="([^"]*)"', page)
    assert seen
    assert world.client.post(path, {"seen": seen[1]})["Location"] == back


@pytest.mark.parametrize("page", PAGES)
def test_it_works_under_atomic_requests(
    world: World, page: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from django.db import connections

    monkeypatch.setitem(connections["default"].settings_dict, "ATOMIC_REQUESTS", True)
    assert world.post(page, GOOD.get(page)).status_code in (204, 302)


def test_it_works_without_time_zones(world: World, settings: Any) -> None:
    settings.USE_TZ = False
    world.sandbox.patch_setup_link(world.link.kapso_id, status="active")
    link = make_link(
        world.customer,
        kapso_id=world.link.kapso_id + "x",
        created_at=datetime.now(),
        expires_at=datetime.now() + timedelta(days=3),
    )
    form = extend.ExtendForm(None, expires_at=link.expires_at)  # type: ignore[arg-type]
    assert form.day_after(7) == (datetime.now() + timedelta(days=10)).date()
    assert extend.end_of(form.day_after(7)).tzinfo is None
