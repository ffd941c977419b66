"""Bring the catalogs of translations up to date with the code: ``python -m tests.translations``.

GNU gettext finds the texts of Python files without the context that ``kapso_connect.translation``
gives them, so it is added here.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import polib

from kapso_connect.kapso.languages import Language
from kapso_connect.translation import CONTEXT
from tests import ROOT

TRANSLATED = [language for language in Language.values if language != "en"]


def update(package: Path, *options: str) -> None:
    """Extract the texts of ``package``, a folder with a folder ``locale``, into its catalogs.

    ``options`` are those of makemessages. What has no translation yet is left empty.
    """
    known = {language: polib.pofile(str(catalog(package, language))) for language in TRANSLATED}
    languages = [f"--locale={language}" for language in TRANSLATED]
    subprocess.run(
        [sys.executable, "-m", "django", "makemessages", "--no-obsolete", *languages, *options],
        cwd=package,
        env={**os.environ, "DJANGO_SETTINGS_MODULE": ""},
        check=True,
        capture_output=True,
    )
    for language in TRANSLATED:
        add_context(polib.pofile(str(catalog(package, language))), known[language])


def catalog(package: Path, language: str) -> Path:
    return package / "locale" / language / "LC_MESSAGES" / "django.po"


def add_context(found: polib.POFile, known: polib.POFile) -> None:
    """Give each text the context, and the translation that it had before; save the catalog."""
    translations = {entry.msgid: entry for entry in known if "fuzzy" not in entry.flags}
    entries: dict[str, polib.POEntry] = {}
    for entry in found:
        # A text may stand in Python and in templates.
        same = entries.setdefault(entry.msgid, entry)
        if same is not entry:
            same.occurrences = sorted({*same.occurrences, *entry.occurrences})
        same.msgctxt = CONTEXT
    found.clear()
    for entry in entries.values():
        before = translations.get(entry.msgid)
        entry.msgstr = before.msgstr if before else ""
        entry.msgstr_plural = {
            form: before.msgstr_plural.get(form, "") if before else ""
            for form in entry.msgstr_plural
        }
        entry.flags = [flag for flag in entry.flags if flag != "fuzzy"]
        entry.previous_msgid = entry.previous_msgctxt = entry.previous_msgid_plural = None
        found.append(entry)
    found.save()


if __name__ == "__main__":
    update(ROOT / "kapso_connect", "--add-location=file")
