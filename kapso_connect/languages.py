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


def page_languages() -> list[str]:
    """Return the codes of the languages that the customers' pages are translated into."""
    return [*Language.values, *get_conf().extra_languages]


def language_choices() -> list[tuple[str, Any]]:
    """Return ``page_languages`` with their names, for a form."""
    try:
        extra = get_conf().extra_languages
    except ImproperlyConfigured:  # reported by a check, which the check of a model must not prevent
        extra = ()
    return [*Language.choices, *((code, _name(code)) for code in extra)]


def _name(code: str) -> str:
    try:
        return str(get_language_info(code)["name_translated"])
    except KeyError:  # Django does not know the site's own language
        return code


def find_page_language(code: str | None) -> str:
    """Return the one of ``page_languages`` for a language code, such as "es" for "es-MX"; "" if
    there is none."""
    wanted, languages = (code or "").lower().replace("_", "-"), page_languages()
    while wanted:
        if wanted in languages:
            return wanted
        wanted = wanted.rpartition("-")[0]
    return ""


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
    try:
        return "rtl" if get_language_info(code)["bidi"] else "ltr"
    except KeyError:  # Django does not know the site's own language
        return "ltr"
