"""Six languages, complete: English is in the code, the others are in ``locale``."""

from __future__ import annotations

import gettext
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import polib
import pytest

from kapso_connect.kapso.languages import Language
from tests import ROOT

PACKAGE = ROOT / "kapso_connect"
LOCALE = PACKAGE / "locale"
TRANSLATED = [language for language in Language.values if language != "en"]
FIELD = re.compile(r"%\(\w+\)[sd]|%[sd%]|\{\w*\}|</?\w+[^>]*>")


def catalog(language: str, locale: Path = LOCALE) -> polib.POFile:
    return polib.pofile(str(locale / language / "LC_MESSAGES" / "django.po"))


@pytest.fixture(scope="module")
def extracted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The catalogs as they would be if they were brought up to date with the code now."""
    if shutil.which("xgettext") is None:
        if os.environ.get("KAPSO_TEST_REQUIRE_GETTEXT") == "1":
            pytest.fail("GNU gettext is not installed.")
        pytest.skip("GNU gettext is not installed.")
    package = tmp_path_factory.mktemp("extracted") / "kapso_connect"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("*.mo", "__pycache__"))
    languages = [f"--locale={language}" for language in TRANSLATED]
    done = subprocess.run(
        [sys.executable, "-m", "django", "makemessages", "--no-location", *languages],
        cwd=package,
        env={**os.environ, "DJANGO_SETTINGS_MODULE": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return package / "locale"


@pytest.mark.parametrize("language", TRANSLATED)
def test_every_string_is_translated(extracted: Path, language: str) -> None:
    po = catalog(language, extracted)
    missing = [entry.msgid for entry in po.untranslated_entries()]
    unsure = [entry.msgid for entry in po.fuzzy_entries()]
    assert (missing, unsure) == ([], [])
    assert len(po.translated_entries()) > 100


@pytest.mark.parametrize("language", TRANSLATED)
def test_no_translation_is_left_of_a_string_that_is_gone(extracted: Path, language: str) -> None:
    assert [entry.msgid for entry in catalog(language, extracted).obsolete_entries()] == []


@pytest.mark.parametrize("language", TRANSLATED)
def test_what_is_compiled_is_what_is_written(language: str) -> None:
    with (LOCALE / language / "LC_MESSAGES" / "django.mo").open("rb") as compiled:
        found = gettext.GNUTranslations(compiled)
    assert len(catalog(language)) > 100
    for entry in catalog(language):
        if entry.msgid_plural:
            compiled_forms = [
                found._catalog[(entry.msgid, form)]  # type: ignore[attr-defined]
                for form in sorted(entry.msgstr_plural)
            ]
            assert compiled_forms == list(entry.msgstr_plural.values())
        else:
            assert (
                found.pgettext(entry.msgctxt, entry.msgid) == entry.msgstr
                if (entry.msgctxt)
                else found.gettext(entry.msgid) == entry.msgstr
            )


@pytest.mark.parametrize("language", TRANSLATED)
def test_translations_have_the_same_fields_and_every_plural(language: str) -> None:
    po = catalog(language)
    forms = int(po.metadata["Plural-Forms"].removeprefix("nplurals=").partition(";")[0])
    for entry in po:
        if not entry.msgid_plural:
            assert fields(entry.msgstr) == fields(entry.msgid), entry.msgstr
            continue
        assert len(entry.msgstr_plural) == forms, entry.msgid
        for form in entry.msgstr_plural.values():
            # "One customer" needs no number; what is named besides must be there.
            assert fields(form) <= fields(entry.msgid_plural), form


def fields(text: str) -> set[str]:
    return set(FIELD.findall(text))
