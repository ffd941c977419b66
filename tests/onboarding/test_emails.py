"""The e-mails to customers: what is in them, their headers, their languages."""

from __future__ import annotations

import re
import smtplib
from collections.abc import Callable
from email import message_from_bytes, policy
from email.message import EmailMessage as Message
from html import unescape
from typing import Any

import pytest
from django.core import mail as outbox_of
from django.core.mail import EmailMultiAlternatives
from django.core.mail.backends.locmem import EmailBackend
from django.db import connection
from django.utils import translation
from django.utils.html import escape
from django.utils.translation import gettext_lazy

from kapso_connect import exceptions
from kapso_connect.kapso.error_codes import SETUP_ERRORS, UNKNOWN_ERROR
from kapso_connect.models import Customer, SetupLink, TimelineEvent, new_connect_key
from kapso_connect.onboarding import connect_urls, emails

from ..factories import make_connection, make_customer, make_link, make_user

pytestmark = pytest.mark.django_db


def invited(**fields: Any) -> tuple[Customer, SetupLink]:
    options = fields.pop("options", {})
    customer = make_customer(
        **{"email": "ada@example.com", "connect_key": new_connect_key(), **fields}
    )
    return customer, make_link(customer, options=options, is_latest=True)


def parts(customer: Customer, link: SetupLink) -> tuple[str, str, str]:
    """The subject, text and HTML as they arrive."""
    message = emails.invitation_message(customer, link)
    arrived = message_from_bytes(message.message().as_bytes(), policy=policy.default)
    text, html = (arrived.get_body([kind]) for kind in ("plain", "html"))
    assert text is not None
    assert html is not None
    return str(arrived["Subject"]), text.get_content(), html.get_content()


def test_email_contains_the_connect_url_and_not_kapsos() -> None:
    customer, link = invited()
    _subject, text, html = parts(customer, link)
    for body in (text, html):
        assert connect_urls.connect_url(customer) in body
        assert link.url not in body


def test_sending_is_recorded_with_actor_and_recipient(admin_user: Any) -> None:
    customer, link = invited()
    emails.send_invitation(customer, link, actor=admin_user)
    (message,) = outbox_of.outbox
    assert message.to == ["ada@example.com"]
    event = TimelineEvent.objects.get()
    assert (event.kind, event.setup_link, event.actor, event.data) == (
        "setup_link_sent",
        link,
        admin_user,
        {"channel": "email", "to": "ada@example.com"},
    )


def test_error_of_the_mail_server_is_raised_and_nothing_is_recorded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*args: Any) -> int:
        raise smtplib.SMTPRecipientsRefused({})

    monkeypatch.setattr(EmailBackend, "send_messages", refuse)
    with pytest.raises(smtplib.SMTPRecipientsRefused):
        emails.send_invitation(*invited())
    assert not TimelineEvent.objects.exists()


@pytest.mark.parametrize(
    "email",
    ["", "nobody", "a@example.com\nBcc: b@example.com", "a@example.com, b@example.com", "@"],
)
def test_customer_without_a_valid_address_raises_an_error(email: str) -> None:
    with pytest.raises(exceptions.NoEmailAddress, match="Bäckerei"):
        emails.send_invitation(*invited(email=email))
    assert outbox_of.outbox == []


def test_withdrawn_invitation_is_not_sent() -> None:
    with pytest.raises(exceptions.NoConnectUrl):
        emails.send_invitation(*invited(connect_key=None))
    assert outbox_of.outbox == []


NAMES = {
    "long": "x" * 255,
    "right to left": "مخبز \u202eمقلوب",
    "emoji": "🥐 Ada's 🥖",
    "header": "Ada\r\nBcc: thief@example.com",
    "markup": "<script>alert(1)</script> & {{ url }} {% now 'Y' %}",
    "nul": "A\x00B",
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_any_name_can_be_sent(name: str, configure: Any) -> None:
    configure(SITE_NAME=name)
    customer, link = invited()
    customer.name = name
    message = emails.invitation_message(customer, link)
    arrived = message_from_bytes(message.message().as_bytes(), policy=policy.default)
    assert "Bcc" not in arrived
    assert "\n" not in message.subject
    assert "<script>" not in str(message.alternatives[0][0])


def test_subject_contains_the_name_of_the_site(configure: Any) -> None:
    assert parts(*invited())[0].endswith("site.example")
    configure(SITE_NAME="Ada's CRM & more")
    subject, text, html = parts(*invited())
    assert subject == "Connect your WhatsApp number to Ada's CRM & more"
    assert "Ada's CRM & more invites" in text
    assert "<bdi>Ada&#x27;s CRM &amp; more</bdi> invites" in html


@pytest.mark.parametrize(
    ("options", "own", "site", "expected"),
    [
        ({"language": "ar"}, "es", "pt", "ar"),
        ({}, "es", "pt", "es"),
        ({}, "", "pt", "pt-BR"),
        ({}, "", "pt-pt", "pt-BR"),
        ({}, "", "ur", "en"),
        ({"language": "gone"}, "", "hi", "hi"),
    ],
)
def test_language_is_that_of_the_link_then_the_customer_then_the_site(
    options: dict[str, str], own: str, site: str, expected: str, settings: Any
) -> None:
    settings.LANGUAGE_CODE = site
    customer, link = invited(language=own, options=options)
    with translation.override("hi"):
        html = parts(customer, link)[2]
        assert translation.get_language() == "hi"
    direction = "rtl" if expected == "ar" else "ltr"
    assert f'<html lang="{expected}" dir="{direction}">' in html


def test_site_can_override_the_templates(settings: Any, tmp_path: Any) -> None:
    folder = tmp_path / "kapso_connect" / "email"
    folder.mkdir(parents=True)
    (folder / "invitation_subject.txt").write_text("{{ customer.name }}\n: hello\n")
    (folder / "invitation.txt").write_text("Go to {{ url }}")
    (folder / "invitation.html").write_text("<p>{{ url }}</p>")
    settings.TEMPLATES = [{**settings.TEMPLATES[0], "DIRS": [tmp_path]}]
    customer, link = invited(name="Ada\nX: y")
    url = connect_urls.connect_url(customer)
    subject, body, html = parts(customer, link)
    assert (subject, body, html.strip()) == ("Ada X: y : hello", f"Go to {url}\n", f"<p>{url}</p>")


def test_email_is_sent_without_the_database() -> None:
    message = emails.invitation_message(*invited())

    def refuse(*args: Any) -> None:
        raise AssertionError("The database was asked.")

    with connection.execute_wrapper(refuse):
        message.send()
    assert len(outbox_of.outbox) == 1


def arrived(message: EmailMultiAlternatives) -> tuple[Message, str, str]:
    """The e-mail as it arrives, its text and its HTML."""
    found = message_from_bytes(message.message().as_bytes(), policy=policy.default)
    text, html = (found.get_body([kind]) for kind in ("plain", "html"))
    assert text is not None
    assert html is not None
    return found, text.get_content(), html.get_content()


def connected(**fields: Any) -> EmailMultiAlternatives:
    customer, link = invited(options=fields.pop("options", {}), language=fields.pop("language", ""))
    shown = {"display_phone_number": "+14155550123", "verified_name": "Ada's Bakery", **fields}
    return emails.connected_message(make_connection(customer, setup_link=link, **shown))


MESSAGES: dict[str, Callable[..., EmailMultiAlternatives]] = {
    "invitation": lambda **fields: emails.invitation_message(*invited(**fields)),
    "reminder": lambda **fields: emails.reminder_message(*invited(**fields)),
    "failed": lambda **fields: emails.failed_message(*invited(**fields)),
    "connected": connected,
}


def plain(html: str) -> str:
    """The words of an HTML e-mail, as a person reads them."""
    body = html[html.index("</style>") :]
    body = re.sub(r"</?(a|bdi|strong)\b[^>]*>", "", body)
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", body)).split())


@pytest.mark.parametrize("name", MESSAGES)
def test_html_and_text_have_the_same_facts(name: str, configure: Any) -> None:
    configure(
        SITE_NAME="Crumb & Co.",
        CONTACT_URL="mailto:help@crumb.example",
        PRIVACY_URL="/privacy/",
        TERMS_URL="https://crumb.example/terms/",
        COST_TEXT="It is free.",
        NEXT_TEXT="Ida calls you tomorrow.",
    )
    message, text, html = arrived(MESSAGES[name]())
    words = plain(html)
    ignored = {
        "--",
        "Open this link to begin:",
        "Privacy",
        "Terms",
        "Do you need help? Contact us:",
    }
    for line in text.splitlines():
        fact = re.sub(r"^(- |[0-9]\. )", "", line).strip()
        for part in re.split(r": (?=https?:|help@)|: (?=You )", fact):
            assert part in words or part in html or part in ignored, part
    assert "\n\n\n" not in text
    assert "Co.." not in text + words
    assert "https://site.example/privacy/" in html
    assert message["Subject"]


@pytest.mark.parametrize("name", MESSAGES)
def test_headers_say_who_answers_and_that_nobody_wrote_it(name: str, configure: Any) -> None:
    message = arrived(MESSAGES[name]())[0]
    assert message["Auto-Submitted"] == "auto-generated"
    assert message["Reply-To"] is None
    configure(CONTACT_URL="mailto:help%2Bcrumb@example.com?subject=WhatsApp")
    message, text, html = arrived(MESSAGES[name]())
    assert message["Reply-To"] == "help+crumb@example.com"
    assert "Contact us: help+crumb@example.com" in text
    assert 'href="mailto:help%2Bcrumb@example.com?subject=WhatsApp"' in html
    configure(CONTACT_URL="/contact/", EMAIL_REPLY_TO="crm@example.com")
    message, text, html = arrived(MESSAGES[name]())
    assert message["Reply-To"] == "crm@example.com"
    assert "Contact us: https://site.example/contact/" in text
    assert 'href="https://site.example/contact/"' in html
    configure(CONTACT_URL="")
    _message, text, html = arrived(MESSAGES[name]())
    assert "Reply to this e-mail." in text
    assert "Reply to this e-mail." in html


def test_invitation_says_who_invites_if_the_site_shows_it(configure: Any) -> None:
    customer, link = invited()
    link.created_by = make_user("ida", first_name="Ida", last_name="Kim")
    assert "Ida" not in str(arrived(emails.invitation_message(customer, link)))
    configure(SHOW_INVITER=True, SITE_NAME="Crumb")
    _message, text, html = arrived(emails.invitation_message(customer, link))
    assert "Ida Kim (Crumb) invites you" in text
    assert "<bdi>Ida Kim</bdi> (<bdi>Crumb</bdi>) invites you" in html


def test_inviter_whose_user_model_has_no_name_is_not_named(configure: Any) -> None:
    user: Any = make_user("ida")
    user.get_full_name = lambda: None
    configure(SHOW_INVITER=True, SITE_NAME="Crumb")
    customer, link = invited()
    link.created_by = user
    _message, text, _html = arrived(emails.invitation_message(customer, link))
    assert "Crumb invites you" in text
    assert "None" not in text


@pytest.mark.parametrize("name", ["invitation", "reminder"])
def test_sites_own_sentences_are_in_the_language_of_the_email(name: str, configure: Any) -> None:
    configure(INVITATION_TEXT=gettext_lazy("Yes"), COST_TEXT="Free of charge.")
    for part in arrived(MESSAGES[name](language="es"))[1:]:
        assert "Sí" in part
        assert "Free of charge." in part


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, "Keep your WhatsApp Business app"),
        ({"allowed_connection_types": ["coexistence"]}, "You keep your WhatsApp Business app"),
        ({"allowed_connection_types": ["dedicated"]}, "This number leaves the app"),
        ({"provision_phone_number": True}, "You get a new number"),
        ({"reconnect_phone_number": "+14155550123"}, "The same number again"),
    ],
)
def test_invitation_says_what_happens_to_the_number(options: dict[str, Any], told: str) -> None:
    message, text, html = arrived(MESSAGES["invitation"](options=options))
    assert told in text
    assert told in html
    is_again = "reconnect_phone_number" in options
    assert ("again" in message["Subject"]) == is_again
    assert ("+1 415-555-0123" in text) == is_again
    assert ("+1 415-555-0123" in html) == is_again


@pytest.mark.parametrize("name", MESSAGES)
def test_names_are_isolated_where_they_could_reorder_the_text(name: str, configure: Any) -> None:
    configure(SITE_NAME="Crumb!")
    message, text, _html = arrived(MESSAGES[name](language="ar"))
    assert "\u2068Crumb!\u2069" in text
    assert "\u2068Crumb!\u2069" in message["Subject"]
    message, text, _html = arrived(MESSAGES[name]())
    assert "\u2068" not in text + message["Subject"]
    configure(SITE_NAME="مخبز!")
    message, text, html = arrived(MESSAGES[name]())
    assert "\u2068مخبز!\u2069" in text
    assert "\u2068مخبز!\u2069" in message["Subject"]
    assert "<bdi>مخبز!</bdi>" in html


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        ("invitation", ["INVITATION_TEXT", "COST_TEXT"]),
        ("reminder", ["INVITATION_TEXT", "COST_TEXT"]),
        ("connected", ["NEXT_TEXT"]),
    ],
)
def test_sites_own_sentences_are_isolated(name: str, texts: list[str], configure: Any) -> None:
    configure(**dict.fromkeys(texts, "One inbox."))
    _message, text, html = arrived(MESSAGES[name](language="ar"))
    assert text.count("\u2068One inbox.\u2069") == len(texts)
    body = html[html.index("<h1") :]
    assert body.count("<bdi>One inbox.</bdi>") == len(texts)


@pytest.mark.parametrize("name", MESSAGES)
def test_language_without_translation_gives_english_that_says_so(name: str, settings: Any) -> None:
    settings.LANGUAGE_CODE = "ur"
    html = arrived(MESSAGES[name]())[2]
    assert '<html lang="en" dir="ltr">' in html


@pytest.mark.parametrize(
    ("logo", "shown"),
    [
        ("/media/logo.png", 'src="https://site.example/media/logo.png"'),
        ("/media/logo.svg", ""),
        ("/media/logo.SVG?v=2", ""),
        ("no/such/file.png", ""),
    ],
)
def test_logo_is_one_that_mail_programs_show(
    logo: str, shown: str, configure: Any, settings: Any
) -> None:
    settings.STORAGES = {
        **settings.STORAGES,
        "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.ManifestStaticFilesStorage"},
    }
    configure(LOGO_URL=logo, LOGO_HAS_NAME=True, SITE_NAME="Crumb")
    html = arrived(MESSAGES["invitation"]())[2]
    assert ("<img" in html) == bool(shown)
    assert shown in html
    header = html[html.index("kapso-name", html.index("<body")) :].partition("</td>")[0]
    assert "Crumb" in header  # as the picture's text, or in its place


def test_failed_says_why_and_what_to_do() -> None:
    customer, link = invited()
    link.last_error_code = "phone_verification_failed"
    known = SETUP_ERRORS["phone_verification_failed"]
    for part in arrived(emails.failed_message(customer, link))[1:]:
        assert escape(str(known.cause)) in part or str(known.cause) in part
        assert escape(str(known.advice)) in part or str(known.advice) in part
        assert connect_urls.connect_url(customer) in part
    link.last_error_code = "meta_on_strike"
    for part in arrived(emails.failed_message(customer, link))[1:]:
        assert str(UNKNOWN_ERROR.cause) in part
        assert link.reference in part
        # The button below says so, too.
        assert "Please try again." in part
        assert str(UNKNOWN_ERROR.advice) not in part


def test_connected_has_the_number_and_no_url_that_identifies_the_customer(configure: Any) -> None:
    configure(NEXT_TEXT="Ida calls you tomorrow.", NEXT_URL="/welcome/")
    message = connected()
    customer = Customer.objects.get()
    for part in arrived(message)[1:]:
        assert "+1 415-555-0123" in part
        assert "Ada's Bakery" in part or "Ada&#x27;s Bakery" in part
        assert "Ida calls you tomorrow." in part
        assert "https://site.example/welcome/" in part
        assert str(customer.connect_key) not in part
        assert connect_urls.CUSTOMER_PARAMETER + "=" not in part


@pytest.mark.parametrize(("kind", "keeps_app"), [("coexistence", True), ("dedicated", False)])
def test_connected_says_how_to_end_it_in_the_app(kind: str, keeps_app: bool) -> None:
    for part in arrived(connected(connection_type=kind))[1:]:
        assert "remove Kapso in Meta Business Suite" in part
        assert ("In the WhatsApp Business app: Settings" in part) == keeps_app


def test_connected_with_a_restricted_account_promises_nothing() -> None:
    for part in arrived(connected(account_status="restricted"))[1:]:
        assert "Meta has restricted" in part
        assert "can now send" not in part


def test_connected_without_a_link_or_a_name() -> None:
    connection = make_connection(invited(name="Ada")[0])
    for part in arrived(emails.connected_message(connection))[1:]:
        assert "WhatsApp is connected" in part
        assert "Reference" not in part


def test_reminder_is_recorded_with_actor_and_time(admin_user: Any) -> None:
    customer, link = invited()
    emails.send_reminder(customer, link, actor=admin_user)
    (message,) = outbox_of.outbox
    assert message.subject.startswith("Reminder:")
    event = TimelineEvent.objects.get()
    assert (event.kind, event.source, event.actor, event.data) == (
        "setup_link_sent",
        "manual",
        admin_user,
        {"channel": "email", "to": "ada@example.com", "message": "reminder"},
    )
    assert link.reminded_at is not None
    assert SetupLink.objects.get().reminded_at == link.reminded_at


def test_reminder_that_was_not_sent_is_not_recorded() -> None:
    customer, link = invited(email="nobody")
    with pytest.raises(exceptions.NoEmailAddress):
        emails.send_reminder(customer, link)
    assert SetupLink.objects.get().reminded_at is None
    assert not TimelineEvent.objects.exists()


@pytest.mark.parametrize("send", [emails.send_invitation, emails.send_reminder])
@pytest.mark.parametrize(
    "end", [{"status": "expired"}, {"status": "used", "setup_status": "completed"}]
)
def test_personal_link_is_sent_after_the_setup_link_has_ended(
    send: Any, end: dict[str, str]
) -> None:
    """It is renewed when the customer comes: the link expired, or its number was disconnected."""
    customer = make_customer(email="ada@example.com", connect_key="key")
    link = make_link(customer, **end)
    send(customer, link)
    (message,) = outbox_of.outbox
    assert connect_urls.connect_url(customer) in message.body
    assert link.events.get().data["channel"] == "email"
