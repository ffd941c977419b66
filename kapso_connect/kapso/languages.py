"""The languages of Kapso's hosted page. This package's pages and e-mails come in the same ones.

A new one is a line here, and a catalogue in ``locale``.
"""

from __future__ import annotations

from django.db import models

from ..translation import gettext_lazy as _


class Language(models.TextChoices):
    """A language of the hosted page, by its code at Kapso."""

    ENGLISH = "en", _("English")
    SPANISH = "es", _("Spanish")
    PORTUGUESE = "pt", _("Portuguese (Brazil)")
    HINDI = "hi", _("Hindi")
    INDONESIAN = "id", _("Indonesian")
    ARABIC = "ar", _("Arabic")
