"""The e-mail that gives a customer their own address."""

from __future__ import annotations

import smtplib
from email import message_from_bytes, policy
from typing import Any

import pytest
from django.core import mail as outbox_of
from django.core.mail.backends.locmem import EmailBackend
from django.db import connection
from django.utils import translation

from kapso_connect import exceptions
from kapso_connect.models import Customer, SetupLink, TimelineEvent, new_connect_key
from kapso_connect.onboarding import connect_urls, emails

from ..factories import make_customer, make_link

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
