"""The language of a customers' page: what the visitor chose on it, else that of the link, of the
customer, of the browser, of the site."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlencode

from django.conf import settings
from django.core.exceptions import SuspiciousOperation
from django.http import HttpRequest, QueryDict
from django.utils import translation
from django.utils.translation.trans_real import parse_accept_lang_header

from .. import languages
from ..kapso.languages import Language
from ..models import Customer, SetupLink

LANGUAGE_PARAMETER = "language"
"""The query parameter with the language that the visitor chose on the page."""

KEPT = re.compile(r"[0-9A-Za-z_.:+ -]{1,200}")
"""The names and values of other parameters that the links of the page to itself keep."""


def language_links(request: HttpRequest) -> list[dict[str, Any]]:
    """Return the links of the page to itself in each language: ``url``, ``language`` (a tag of
    HTML), ``direction``, ``name`` and ``is_current``. The list is empty with USE_I18N off.

    The URLs keep the other parameters of the page, except malformed ones.
    """
    if not settings.USE_I18N:
        return []
    kept = [
        (name, value)
        for name, values in _parameters(request).lists()
        for value in values
        if name != LANGUAGE_PARAMETER and KEPT.fullmatch(name) and KEPT.fullmatch(value)
    ]
    return [
        {
            "url": f"?{urlencode([*kept, (LANGUAGE_PARAMETER, code)])}",
            "language": languages.html_language(code),
            "direction": languages.direction(code),
            "name": languages.native_name(code),
            "is_current": code == languages.current_language(),
        }
        for code in languages.page_languages()
    ]


def _parameters(request: HttpRequest) -> QueryDict:
    try:
        return request.GET
    except SuspiciousOperation:  # too many: the page says that its URL is invalid
        return QueryDict()


def chosen_language(request: HttpRequest) -> str:
    """Return the language that the visitor chose by one of ``language_links``, or ""."""
    if not settings.USE_I18N:
        return ""
    return languages.find_page_language(_parameters(request).get(LANGUAGE_PARAMETER))


def with_chosen_language(request: HttpRequest, path: str) -> str:
    """Return the path of a page with the language that the visitor chose."""
    language = chosen_language(request)
    return f"{path}?{urlencode({LANGUAGE_PARAMETER: language})}" if language else path


def visitor_language(request: HttpRequest) -> str:
    """Return the language for a visitor who is not known as a customer yet: the one that was chosen
    on the page, else of the browser, else of the site."""
    if not settings.USE_I18N:
        return Language.ENGLISH.value
    wanted = parse_accept_lang_header(request.headers.get("Accept-Language", ""))
    codes = [
        _parameters(request).get(LANGUAGE_PARAMETER),
        *(code for code, weight in wanted if weight),
    ]
    codes.append(translation.get_language())
    known = (found for code in codes if (found := languages.find_page_language(code)))
    return next(known, languages.default_language())


def activate_language(request: HttpRequest, customer: Customer, link: SetupLink | None) -> None:
    """Switch to the language of the link, or else the customer's, unless the visitor chose one.
    ``PageView.dispatch`` switches back."""
    language = customer.find_language(link)
    if language and not chosen_language(request):
        translation.activate(language)
