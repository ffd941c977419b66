"""Six languages, complete: English is in the code, the others are in ``locale``."""

from __future__ import annotations

import gettext
import os
import re
import shutil
from pathlib import Path
from typing import Any

import polib
import pytest
from django.template.loader import render_to_string
from django.utils.translation import override

from kapso_connect.models import OnboardingStatus
from tests import ROOT, translations

from .translations import TRANSLATED

PACKAGE = ROOT / "kapso_connect"
LOCALE = PACKAGE / "locale"
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
    translations.update(package, "--no-location")
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
            key = f"{entry.msgctxt}\x04{entry.msgid}"
            compiled_forms = [
                found._catalog[(key, form)]  # type: ignore[attr-defined]
                for form in sorted(entry.msgstr_plural)
            ]
            assert compiled_forms == list(entry.msgstr_plural.values())
        else:
            assert found.pgettext(entry.msgctxt, entry.msgid) == entry.msgstr


# A site's own translations


@pytest.mark.parametrize("language", ["en", "es"])
def test_translations_of_the_site_do_not_replace_ours(
    settings: Any, tmp_path: Path, language: str
) -> None:
    po = polib.POFile()
    po.metadata = {"Content-Type": "text/plain; charset=utf-8", "Language": language}
    texts = [entry.msgid for entry in catalog("es") if not entry.msgid_plural]
    po.extend(polib.POEntry(msgid=text, msgstr=f"SITE {text}") for text in texts)
    po.append(polib.POEntry(msgid="Invited", msgctxt="WhatsApp", msgstr="On purpose"))
    folder = tmp_path / language / "LC_MESSAGES"
    folder.mkdir(parents=True)
    po.save_as_mofile(str(folder / "django.mo"))
    settings.LOCALE_PATHS = [str(tmp_path)]
    with override(language):
        assert "SITE" not in str(OnboardingStatus.CONNECTED.label)
        assert str(OnboardingStatus.INVITED.label) == "On purpose"
        page = render_to_string("kapso_connect/connect.html", {"site_name": "Here"})
        assert "SITE" not in page
    assert ("Conect" if language == "es" else "Connect") in page


def test_every_text_has_the_context_in_its_source() -> None:
    imports = re.compile(r"django.utils.translation import .*gettext")
    found = [
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if imports.search(path.read_text())
    ]
    assert found == ["translation.py"]
    tags = re.compile(r"{% *(?:block)?trans(?:late)? [^%]*%}")
    for path in (PACKAGE / "templates").rglob("*.*"):
        for tag in tags.findall(path.read_text()):
            assert 'context "WhatsApp"' in tag, (path, tag)


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
