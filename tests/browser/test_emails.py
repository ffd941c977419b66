"""The e-mails as a mail program shows them: in every language, two widths, light and dark."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.core.mail import EmailMultiAlternatives
from playwright.sync_api import Page, expect

from kapso_connect.kapso.languages import Language
from kapso_connect.models import Customer, SetupLink, new_connect_key
from kapso_connect.onboarding import emails

from ..factories import make_connection, make_customer, make_link, make_user
from .support import Visitor, assert_accessible
from .test_states import TOO_WIDE, expected_tags

pytestmark = pytest.mark.django_db(transaction=True)

LONG = "Bäckereigenossenschaft-Süßwarenmanufaktur-Großhandelsgesellschaft"
SETTINGS = {
    "SITE_NAME": "Crumb & Co.",
    "CONTACT_URL": "mailto:help@crumb.example",
    "PRIVACY_URL": "/privacy/",
    "TERMS_URL": "https://crumb.example/terms/",
    "LOGO_URL": "kapso_connect/share.png",
    "SHOW_INVITER": True,
    "INVITATION_TEXT": "Your orders then arrive in one inbox.",
    "COST_TEXT": "It is free for our customers.",
    "NEXT_TEXT": "Ida calls you tomorrow.",
    "NEXT_URL": "/welcome/",
}
CRUEL_THEME = {
    "card_color": "#777777",
    "text_color": "#808080",
    "muted_text_color": "#7a7a7a",
    "primary_color": "#787878",
    "primary_foreground_color": "#707070",
    "background_color": "#ffff00",
    "border_color": "#777777",
}


def invited(language: str, **options: Any) -> tuple[Customer, SetupLink]:
    customer = make_customer(
        name=LONG, email="ada@example.com", language=language, connect_key=new_connect_key()
    )
    user = make_user(f"inviter-{customer.pk}", first_name="Ida", last_name="Kim")
    fields: dict[str, Any] = {"options": options, "created_by": user}
    return customer, make_link(customer, last_error_code="phone_verification_failed", **fields)


def connected(language: str, **options: Any) -> EmailMultiAlternatives:
    customer, link = invited(language, **options)
    shown = {"display_phone_number": "+1 415-555-0123", "verified_name": "Ada's Bakery"}
    return emails.connected_message(make_connection(customer, setup_link=link, **shown))


MESSAGES: dict[str, Callable[..., EmailMultiAlternatives]] = {
    "invitation": lambda *args, **options: emails.invitation_message(*invited(*args, **options)),
    "reminder": lambda *args, **options: emails.reminder_message(*invited(*args, **options)),
    "failed": lambda *args, **options: emails.failed_message(*invited(*args, **options)),
    "connected": connected,
}


def see(visitor: Visitor, page: Page, message: EmailMultiAlternatives, name: str) -> None:
    page.set_content(str(message.alternatives[0][0]), wait_until="networkidle")
    expect(page.get_by_role("heading", level=1)).to_have_count(1)
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        for width in (320, 600):
            page.set_viewport_size({"width": width, "height": 800})
            visitor.shoot(page, f"email-{name}-{scheme}-{width}")
            assert page.evaluate(TOO_WIDE) == []
            assert_accessible(page)


@pytest.mark.parametrize("language", Language.values)
@pytest.mark.parametrize("name", MESSAGES)
def test_every_email_is_readable_on_a_phone(
    site: str, visitor: Visitor, configure: Any, name: str, language: str
) -> None:
    configure(**SETTINGS)
    page = visitor.window(locale=language)
    see(visitor, page, MESSAGES[name](language), f"{name}-{language}")
    for attribute, value in expected_tags(language).items():
        expect(page.locator("html")).to_have_attribute(attribute, value)
    assert page.evaluate("document.querySelector('img').naturalWidth") > 0


@pytest.mark.parametrize("name", MESSAGES)
def test_no_theme_makes_an_email_unreadable(
    site: str, visitor: Visitor, configure: Any, name: str
) -> None:
    configure(**SETTINGS)
    page = visitor.window()
    message = MESSAGES[name]("en", theme_config=CRUEL_THEME)
    see(visitor, page, message, f"{name}-cruel")


def test_dark_logo_replaces_the_other_in_dark_mode(
    site: str, visitor: Visitor, configure: Any
) -> None:
    configure(**SETTINGS, LOGO_DARK_URL=SETTINGS["LOGO_URL"])
    page = visitor.window()
    page.set_content(str(MESSAGES["invitation"]("en").alternatives[0][0]))
    light, dark = page.locator("img").all()
    for scheme, shown, hidden in (("light", light, dark), ("dark", dark, light)):
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        expect(shown).to_be_visible()
        expect(hidden).to_be_hidden()
