"""The languages of Kapso's hosted page, which are those of this package's pages and e-mails.

A new one is a line here, and a catalogue in ``locale``.
"""

from __future__ import annotations

from django.db import models

from ..translation import gettext_lazy as _


class Language(models.TextChoices):
    """A language of the hosted page, by its code at Kapso."""

    ENGLISH = "en", _("English")
    SPANISH = "es", _("Spanish")
    PORTUGUESE = "pt", _("Portuguese")
    HINDI = "hi", _("Hindi")
    INDONESIAN = "id", _("Indonesian")
    ARABIC = "ar", _("Arabic")


def find_language(code: str) -> str:
    """Return the code of Kapso's language for ``code``, such as "es" for "es-MX"; "" for "".

    Raise ValueError for a language that Kapso does not have.
    """
    language = str(code).strip().lower().replace("_", "-").partition("-")[0]
    if language and language not in Language.values:
        known = ", ".join(Language.values)
        raise ValueError(f"Kapso does not have the language {code!r}. Its languages: {known}.")
    return language
