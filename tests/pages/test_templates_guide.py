"""The lists of "Customize pages and e-mails" have what the templates and the stylesheet have."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.cache import caches
from django.db import OperationalError
from django.http import HttpRequest
from django.template import Context, Template, engines
from django.template.loader import get_template
from django.template.loader_tags import BlockNode
from django.test import Client
from django.test.signals import template_rendered
from django.utils import timezone

from kapso_connect import onboarding
from kapso_connect.models import Customer, SetupLink
from kapso_connect.onboarding.connect_urls import connect_path
from kapso_connect.pages import rate_limit
from kapso_connect.testing import Sandbox

from .. import ROOT
from ..factories import failing_queries, make_connection, make_customer, make_link
from .test_views import failed, success

PACKAGE = ROOT / "kapso_connect"
TEMPLATES = PACKAGE / "templates" / "kapso_connect"
TEXT = (ROOT / "docs" / "how-to" / "templates.md").read_text(encoding="utf-8")
GUIDE = re.sub(r"^```.*?^```$", "", TEXT, flags=re.MULTILINE | re.DOTALL)
NO_PAGES = {"base.html", "connection.html"}
PAGES = sorted({path.name for path in TEMPLATES.glob("[a-z]*.html")} - NO_PAGES)


def section(title: str, level: int = 2) -> str:
    """The text below a heading of the guide, with the headings below it."""
    found = re.search(
        rf"^#{{{level}}} {re.escape(title)}\n(.*?)(?=^#{{1,{level}}} |\Z)", GUIDE, re.M | re.S
    )
    assert found, title
    return found[1]


def listed(text: str) -> list[str]:
    """The names in the first column of tables, in backticks."""
    rows = re.findall(r"^\| (`.*?) \|", text, re.MULTILINE)
    return [name for row in rows for name in re.findall(r"`([^`]+)`", row)]


def test_every_class_of_the_stylesheet_is_in_the_list_and_back() -> None:
    css = Path(PACKAGE / "static" / "kapso_connect" / "pages.css").read_text(encoding="utf-8")
    classes = re.findall(r"\.(kapso[\w-]*)", re.sub(r"/\*.*?\*/", "", css, flags=re.DOTALL))
    names = listed(section("CSS classes"))
    assert sorted(names) == sorted(set(classes))


def test_every_block_is_in_the_list_and_back() -> None:
    """Those of base.html are in the sentence above the table."""
    texts = section("Texts and layout")
    table: dict[str, set[str]] = {name: set() for name in PAGES}
    for templates, blocks in re.findall(r"^\| (`.*?html`) \| (`.*?) \|", texts, re.MULTILINE):
        for name in re.findall(r"`([^`]+)`", templates):
            table[name] |= set(re.findall(r"`([^`]+)`", blocks))
    in_base = blocks_of("base.html")
    assert {name: blocks_of(name) - in_base for name in PAGES} == table
    sentence = re.search(
        r"^Every page has the blocks (.*?)`base.html`", texts, re.MULTILINE | re.DOTALL
    )
    assert sentence
    assert set(re.findall(r"`(\w+)`", sentence[1])) == in_base


def blocks_of(name: str) -> set[str]:
    template: Any = get_template(f"kapso_connect/{name}")
    return {node.name for node in template.template.nodelist.get_nodes_by_type(BlockNode)}


@contextmanager
def variables() -> Iterator[dict[str, set[str]]]:
    """Collect the variables that each page is given, without those of context processors."""
    found: dict[str, set[str]] = defaultdict(set)
    processors = engines["django"].engine.template_context_processors
    usual = {name for processor in processors for name in processor(HttpRequest())}
    usual |= {"True", "False", "None"}

    def collect(template: Template, context: Context, **kwargs: Any) -> None:
        folder, _, name = str(template.name).rpartition("/")
        if folder == "kapso_connect" and name in PAGES:
            found[name] |= {str(key) for key in context.flatten()} - usual

    template_rendered.connect(collect)
    try:
        yield found
    finally:
        template_rendered.disconnect(collect)


@pytest.mark.django_db(transaction=True)
def test_every_variable_of_a_page_is_in_its_table_and_back(
    sandbox: Sandbox, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    caches["default"].clear()
    monkeypatch.setattr(rate_limit, "CONNECT_RATE_LIMIT", 2)
    with variables() as found:
        visit_every_page(sandbox, client)
    assert sorted(found) == PAGES
    everywhere = set.intersection(*found.values())
    guide = section("Template variables")
    assert sorted(listed(section("Every page", 3))) == sorted(everywhere)
    tables = {name: sorted(listed(section(f"`{name}`", 3))) for name in PAGES}
    assert tables == {name: sorted(names - everywhere) for name, names in found.items()}
    assert len(re.findall(r"^### ", guide, re.MULTILINE)) == len(PAGES) + 1


def visit_every_page(sandbox: Sandbox, client: Client) -> None:
    connection = make_connection(display_phone_number="+442071838750")
    client.get(success(make_link(connection.customer), connection.phone_number_id))
    link = onboarding.create_setup_link(make_customer(kapso_id=None))
    invitation = connect_path(link.customer)
    client.get(invitation)
    client.get(failed(link, "link_expired"))
    client.get("/whatsapp/connect/x/")
    client.get(connect_path(Customer(connect_key="gone")))
    with failing_queries(OperationalError("away"), "SELECT", Customer):
        client.get(invitation)
    client.post(invitation)
    sandbox.faults(api=[{"match": ".*", "kind": "status", "status": 503}])
    SetupLink.objects.update(status="expired", expires_at=timezone.now() - timedelta(seconds=1))
    client.post(invitation)
    client.post(invitation)
    client.get(success(make_link(make_customer()), "1234"))
