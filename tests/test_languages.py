from __future__ import annotations

from typing import Any

import pytest
from django.utils import translation

from kapso_connect import languages
from kapso_connect.admin.customer_data import clean_customer_data
from kapso_connect.conf import MAX_LANGUAGE_CODE, get_conf
from kapso_connect.exceptions import InvalidOptions
from kapso_connect.kapso.languages import Language
from kapso_connect.kapso.setup_link_options import SetupLinkOptions
from kapso_connect.models import Customer
from kapso_connect.onboarding.emails import invitation_language

from .factories import make_customer, make_link, new_link
from .sites.host_site.models import Branch

SIX = ["en", "es", "pt", "hi", "id", "ar"]


def test_pages_are_in_the_languages_of_kapso_and_those_that_the_site_adds(configure: Any) -> None:
    assert languages.page_languages() == SIX
    configure(EXTRA_LANGUAGES=["DE", "es", "zh-hant"])
    assert languages.page_languages() == [*SIX, "de", "zh-hant"]
    with translation.override("en"):
        names = {code: str(name) for code, name in languages.language_choices()}
    assert list(names) == languages.page_languages()
    assert (names["pt"], names["de"]) == ("Portuguese (Brazil)", "German")
    configure(EXTRA_LANGUAGES="de")
    assert languages.page_languages() == SIX
    assert [code for code, _name in languages.language_choices()] == SIX


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("es", "es"),
        (" ES_mx ", "es"),
        ("pt-PT", "pt"),
        ("pt-br", "pt"),
        ("de-AT", "de"),
        ("zh-Hant-TW", "zh-hant"),
        ("zh", ""),
        ("en-us", "en"),
        ("ur", ""),
        ("*", ""),
        ("-", ""),
        ("", ""),
        (None, ""),
        ("-" * 9000, ""),
    ],
)
def test_language_for_a_code(configure: Any, code: str | None, expected: str) -> None:
    configure(EXTRA_LANGUAGES=["de", "zh-hant"])
    assert languages.find_page_language(code) == expected


def test_language_that_pages_are_not_in_is_an_error_that_names_them(configure: Any) -> None:
    configure(EXTRA_LANGUAGES=["de"])
    assert [languages.validate_language(code) for code in (None, "", " ", "de_CH")] == [
        *("", "", ""),
        "de",
    ]
    with pytest.raises(ValueError, match="no language 'ur', but: en, es, pt, hi, id, ar, de"):
        languages.validate_language("ur")


def test_tags_directions_and_names_of_html(configure: Any, settings: Any) -> None:
    configure(EXTRA_LANGUAGES=["de", "he", "tlh", "ps"])
    settings.LANGUAGES_BIDI = [*settings.LANGUAGES_BIDI, "ps"]
    assert {
        code: (languages.html_language(code), languages.direction(code))
        for code in languages.page_languages()
    } == {
        **{code: (code, "ltr") for code in ("en", "es", "hi", "id", "de", "tlh")},
        "pt": ("pt-BR", "ltr"),
        **{code: (code, "rtl") for code in ("ar", "he", "ps")},
    }
    names = [languages.native_name(code) for code in languages.page_languages()]
    assert names == [
        *("English", "Español", "Português (Brasil)", "हिन्दी", "Bahasa Indonesia", "العربية"),
        *("Deutsch", "עברית", "Tlh", "Ps"),
    ]
    assert list(languages.NATIVE_NAMES) == Language.values


@pytest.mark.parametrize(
    ("active", "expected"), [("es-mx", "es"), ("ur", "en"), ("pt-pt", "pt"), (None, "en")]
)
def test_language_of_the_texts_now(active: str | None, expected: str) -> None:
    with translation.override(active):
        assert languages.current_language() == expected


def test_without_translations_everything_is_in_english(settings: Any) -> None:
    settings.USE_I18N, settings.LANGUAGE_CODE = False, "ar"
    assert (languages.current_language(), languages.default_language()) == ("en", "en")
    customer = Customer(language="es")
    assert invitation_language(customer, new_link(customer, options={"language": "hi"})) == "en"


@pytest.mark.parametrize(("site", "expected"), [("es-ar", "es"), ("ur", "en"), ("de", "de")])
def test_language_of_the_site(settings: Any, configure: Any, site: str, expected: str) -> None:
    configure(EXTRA_LANGUAGES=["de"])
    settings.LANGUAGE_CODE = site
    assert languages.default_language() == expected


@pytest.mark.parametrize("codes", [["d"], ["de_at"], ["x" * (MAX_LANGUAGE_CODE + 1)], [7], "de"])
def test_wrong_codes_are_an_error(configure: Any, codes: Any) -> None:
    configure(EXTRA_LANGUAGES=codes)
    with pytest.raises(Exception, match="EXTRA_LANGUAGES"):
        get_conf()
    longest = "de-" + "x" * 8 + "-abcd"
    configure(EXTRA_LANGUAGES=[longest])
    assert get_conf().extra_languages == (longest,)
    assert len(longest) == MAX_LANGUAGE_CODE


# Where a customer is written


@pytest.mark.django_db
def test_customers_can_have_a_language_that_the_site_adds(configure: Any) -> None:
    configure(EXTRA_LANGUAGES=["de"])
    assert make_customer(language="de-AT").language == "de"
    owner = Branch.objects.create(code="a")
    assert Customer.objects.for_owner(owner, language="de_CH").language == "de"
    assert clean_customer_data({"language": "de-LI"}) == {"language": "de"}
    assert clean_customer_data({"language": "fr"}) == {"language": ""}
    customer = Customer(name="Ada", language="de")
    customer.full_clean()
    assert customer.get_language_display() == "German"


def test_links_can_not() -> None:
    with pytest.raises(InvalidOptions, match="Must be one of: en, es, pt, hi, id, ar"):
        SetupLinkOptions.build({"language": "de"})


@pytest.mark.django_db
def test_language_that_the_site_had_once_prevents_nothing(configure: Any) -> None:
    configure(EXTRA_LANGUAGES=["de"])
    link = make_link(make_customer(language="de"))
    configure(EXTRA_LANGUAGES=[])
    customer = Customer.objects.get()
    customer.name = "New"
    customer.save()
    customer.refresh_from_db()
    assert (customer.name, customer.language) == ("New", "de")
    assert invitation_language(customer, link) == "en"
    customer.language = "fr"
    with pytest.raises(ValueError, match="no language 'fr'"):
        customer.save()
