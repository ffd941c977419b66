"""The languages of the customers' pages and e-mails: Kapso's, and those that the site adds."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.utils.translation import get_language, get_language_info

from .conf import get_conf
from .kapso.languages import Language

HTML_LANGUAGES = {Language.PORTUGUESE.value: "pt-BR"}
"""The language tags of translations that are for one country."""

NATIVE_NAMES = {
    Language.ENGLISH.value: "English",
    Language.SPANISH.value: "Español",
    Language.PORTUGUESE.value: "Português (Brasil)",
    Language.HINDI.value: "हिन्दी",
    Language.INDONESIAN.value: "Bahasa Indonesia",
    Language.ARABIC.value: "العربية",
}


NAMES: dict[str, Any] = dict(Language.choices)
"""The names of Kapso's languages, each in the current language when it is shown."""


def page_languages() -> list[str]:
    """Return the codes of the languages that the customers' pages are translated into."""
    try:
        extra = get_conf().extra_languages
    except ImproperlyConfigured:  # a check reports it, and pages say that something is wrong
        extra = ()
    return list(dict.fromkeys([*NATIVE_NAMES, *extra]))


def language_choices() -> list[tuple[str, Any]]:
    """Return ``page_languages`` with their names, for a form."""
    return [(code, NAMES.get(code) or _name(code, "name_translated")) for code in page_languages()]


def native_name(code: str) -> str:
    """Return what those who speak one of ``page_languages`` call it."""
    name = NATIVE_NAMES.get(code) or _name(code, "name_local")
    return name[:1].upper() + name[1:]


def _name(code: str, key: str) -> str:
    try:
        return str(get_language_info(code)[key])
    except KeyError:  # Django does not know the site's own language
        return code


def find_page_language(code: str | None) -> str:
    """Return the one of ``page_languages`` for a language code, such as "es" for "es-MX"; "" if
    there is none."""
    wanted, languages = (code or "").strip().lower().replace("_", "-"), page_languages()
    while wanted:
        if wanted in languages:
            return wanted
        wanted = wanted.rpartition("-")[0]
    return ""


def validate_language(code: str | None) -> str:
    """Return the one of ``page_languages`` for a language code, as ``find_page_language``; "" for
    an empty one. Raise ValueError if there is none."""
    found = find_page_language(code)
    if not found and (code or "").strip():
        raise ValueError(
            f"The customers' pages have no language {code!r}, but: {', '.join(page_languages())}. "
            "KAPSO_CONNECT['EXTRA_LANGUAGES'] adds others."
        )
    return found


def default_language() -> str:
    """Return the language for somebody whose language is not known: that of LANGUAGE_CODE, or
    English if pages are not in that language, or with USE_I18N off."""
    default = find_page_language(settings.LANGUAGE_CODE) if settings.USE_I18N else ""
    return default or Language.ENGLISH.value


def current_language() -> str:
    """Return the code of the language that this package's texts are in now.

    With another language active, or with USE_I18N off, they are in English.
    """
    active = find_page_language(get_language()) if settings.USE_I18N else ""
    return active or Language.ENGLISH.value


def html_language(code: str) -> str:
    """Return the value of ``lang`` and ``Content-Language`` for one of ``page_languages``."""
    return HTML_LANGUAGES.get(code, code)


def direction(code: str) -> str:
    """Return the value of ``dir`` for one of ``page_languages``: "rtl" or "ltr"."""
    return "rtl" if code.partition("-")[0] in settings.LANGUAGES_BIDI else "ltr"
