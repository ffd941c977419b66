"""The reference in the documentation agrees with the code, and describes all of it."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest
from django.core.management import get_commands

from kapso_connect import conf, dispatch, signals
from kapso_connect.kapso.setup_link_options import SetupLinkOptions
from kapso_connect.sandbox import faults
from kapso_connect.sync import Report

from . import ROOT, reference

PAGES = [
    page
    for page in sorted((ROOT / "docs").rglob("*.md"))
    if reference.MARK.search(page.read_text(encoding="utf-8"))
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_page_has_what_the_code_says(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text == reference.generated(text), "Run: python -m tests.reference"


def test_every_generated_part_is_on_a_page() -> None:
    used = {
        name
        for page in PAGES
        for _begin, name, _end in reference.MARK.findall(page.read_text(encoding="utf-8"))
    }
    assert set(reference.PARTS) <= used


def test_a_signature_is_spelled_as_in_the_code() -> None:
    text = reference.described("kapso_connect.onboarding.create_setup_link")
    assert text.startswith(
        "### create_setup_link\n\n"
        "    create_setup_link(customer: Customer, *,\n"
        '        options: Mapping[str, Any] | None = None, next_url: str = "",\n'
    )
    assert ") -> SetupLink\n\nCreate a setup link for ``customer``" in text


def test_every_setting_is_described_with_its_default() -> None:
    parts = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", reference.settings(), re.M | re.S))
    assert set(parts) == set(conf.READERS)
    assert all(len(text.split("\n*")[0].strip()) > 20 for text in parts.values())
    assert "default: `300.0`" in parts["LEASE_SECONDS"]
    assert "default: none" in parts["API_KEY"]
    assert "*True or False; default: `False`*" in parts["SHOW_INVITER"]
    assert "*a list of language codes; default: none*" in parts["EXTRA_LANGUAGES"]
    assert "*a whole number; default: none*" in parts["EMAIL_REMINDER_DAYS"]


def test_every_option_of_a_link_is_described_with_its_values() -> None:
    text = reference.options()
    assert [one.name for one in fields(SetupLinkOptions) if f"`{one.name}`" not in text] == []
    assert "| One of `customer_managed`, `partner_managed`: who pays Meta." in text


def test_every_figure_of_a_report_is_described() -> None:
    text = reference.report()
    assert [one.name for one in fields(Report) if f"`{one.name}`" not in text] == []


def test_every_fault_is_described() -> None:
    text = reference.faults()
    named = set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE))
    assert named == {*faults.FAULTS_SPEC, *faults.RULE_SPEC}
    assert [kind for kind in faults.RULE_KINDS if f"``{kind}``" not in text] == []


def test_every_signal_is_described() -> None:
    public = [name for name, it in vars(signals).items() if isinstance(it, dispatch.ConnectSignal)]
    assert "whatsapp_connected" in public
    text = reference.signals()
    assert re.findall(r"^### (\w+)$", text, re.MULTILINE) == public
    assert text.count("Arguments: ") == len(public)


def test_every_model_is_described_with_its_fields() -> None:
    text = reference.models()
    for name in ("Customer", "SetupLink", "Connection", "WebhookEvent", "TimelineEvent"):
        assert f"## {name}\n" in text
    assert "| `language` | text, up to 16 | Language of the customer's pages and e-mails." in text
    assert "### objects.for_owner(owner, \\*\\*defaults)" in text
    assert "`kapso_connect.create_setup_link`" in text


def test_every_command_is_described_with_its_options() -> None:
    text = reference.commands()
    names = [name for name, app in get_commands().items() if app == "kapso_connect"]
    assert "kapso_sync" in names
    assert [name for name in names if f"## manage.py {name}\n" not in text] == []
    assert "| `--inbox-days INBOX_DAYS` | Days to keep webhooks (default: 90). |" in text
    assert "| `--port PORT` | 0 picks a free one (default: 8900) |" in text
    assert "--verbosity" not in text


def test_every_check_is_described() -> None:
    text = reference.checks()
    described = re.findall(r"^### kapso_connect\.(\S+)$", text, re.MULTILINE)
    files = (ROOT / "kapso_connect" / name for name in ("checks.py", "admin/mixin.py"))
    source = "".join(path.read_text() for path in files)
    assert sorted(described) == sorted(re.findall(r'id="kapso_connect\.(\w+)"', source))
    assert "E001" in described
    assert "is not set: setup links cannot be created.\n" in text
    assert "*What to do:* Give a path, such as /welcome/." in text
    deployment = text.partition("## Warnings of ``manage.py check --deploy``\n")[2]
    assert "### kapso_connect.W005\n" in deployment
