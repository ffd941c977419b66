"""The README, and the pages of the documentation that are executed: in a new project, each
continuing the page that it names."""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path
from urllib.parse import unquote

import pytest
import requests

from example_project.demo.browser import Browser
from example_project.demo.processes import HOST

from .support import DOCS, README, ROOT, NewSite, blocks_of

# The tutorial


def test_the_tutorial_leads_to_a_working_connection(site: NewSite) -> None:
    connect_url = site.output.strip()
    with Browser() as customer:
        page = customer.get(connect_url)
        page = customer.submit(page, page.forms[0])
        page = customer.submit(page, page.form("outcome"), ("outcome", "connect"))
    assert (page.status, "Ada's Bakery" in page.text) == (200, True), page.text
    assert page.url.startswith(f"http://{HOST}:{site.port}/whatsapp/success/")
    deadline = time.monotonic() + 10
    while (lines := printed(site.log.read_text())) == [] and time.monotonic() < deadline:
        time.sleep(0.05)
    assert lines == ["Ada's Bakery connected number N (event N)"]
    # The redirect is enough for that: check that the webhook was accepted, too.
    done = requests.get(f"{site.sandbox}/deliveries.json?settled=1&timeout=10", timeout=20)
    assert {delivery["state"] for delivery in done.json()["data"]} == {"delivered"}


def printed(output: str) -> list[str]:
    lines = [line for line in output.splitlines() if "connected number" in line]
    return [re.sub(r"\d+", "N", line) for line in lines]


def test_the_sandbox_prints_what_the_tutorial_says(site: NewSite) -> None:
    (printed_line,) = re.findall(r"It prints `(.+?)`", (DOCS / "tutorial.md").read_text())
    log = site.sandbox_log.read_text()
    assert printed_line.replace(":8900", f":{site.sandbox_port}") in log
    assert requests.get(site.sandbox, timeout=10).status_code == 200


def test_the_code_is_the_installed_one(site: NewSite) -> None:
    where = site.run(site.python, "-c", "import kapso_connect; print(kapso_connect.__file__)")
    assert Path(where.strip()).is_relative_to(site.folder)


def test_static_files_are_installed(site: NewSite) -> None:
    with Browser() as customer:
        page = customer.get(f"http://{HOST}:{site.port}/static/kapso_connect/pages.css")
    assert page.status == 200


def test_models_and_migrations_agree_where_it_is_installed(site: NewSite) -> None:
    site.run(site.python, "manage.py", "makemigrations", "--check", "--dry-run")


def test_the_new_site_passes_its_checks(site: NewSite) -> None:
    assert "System check identified no issues" in site.log.read_text()


# How-to guides


def test_an_own_model(companies: NewSite) -> None:
    own = companies.branch("own-model")
    own.execute("how-to/own-model.md", first="In the admin")
    shown = own.shell(SHOW_COMPANIES).splitlines()
    assert shown == ["200", "True", "Bob's Bikes company-2 bob@example.com pt"]


SHOW_COMPANIES = """
from django.contrib import admin
from django.contrib.auth import get_user_model
from django.test import Client
from crm.models import Company

client = Client()
client.force_login(get_user_model().objects.get(username="staff"))
answer = client.get("/admin/crm/company/", headers={"host": "127.0.0.1"})
print(answer.status_code)
print("Invited" in answer.content.decode())
company = Company.objects.create(
    legal_name="Bob's Bikes", contact_email="bob@example.com", language="pt-BR"
)
customer = admin.site.get_model_admin(Company).make_customer(company)
print(customer.name, customer.external_customer_id, customer.email, customer.language)
"""


def test_asking_for_more_after_connecting(companies: NewSite) -> None:
    wizard = companies.branch("wizard")
    wizard.execute("how-to/wizard.md")
    shown = wizard.shell(ASK).splitlines()
    assert [line for line in shown if not line.startswith("Forbidden:")] == [
        *("403", "302 /welcome/1/", "200 /welcome/2/", "200 Thank you! That is all."),
        "9 to 5 30",
        "/welcome/1/",
    ]


ASK = """
from django.test import Client
from django.test.utils import setup_test_environment
from crm.models import Company
from kapso_connect.onboarding.connect_urls import with_customer_token
from kapso_connect.models import Connection, Customer
from kapso_connect.pages.views import PageView

setup_test_environment()
client = Client()
company = Company.objects.get()
customer = Customer.objects.for_owner(company)
print(client.get("/welcome/1/").status_code)
answer = client.get(with_customer_token("/welcome/1/", customer))
print(answer.status_code, answer["Location"])
page = client.get("/welcome/1/").content.decode()
assert "Welcome, " in page
assert "/static/kapso_connect/pages.css" in page
answer = client.post("/welcome/1/", {"opening_hours": "9 to 5"}, follow=True)
print(answer.status_code, answer.request["PATH_INFO"])
answer = client.post("/welcome/2/", {"messages_a_day": "30"}, follow=True)
print(answer.status_code, answer.content.decode())
company.refresh_from_db()
print(company.opening_hours, company.messages_a_day)
print(PageView().get_next_url(Connection(customer=customer), None))
"""


def test_pages_of_its_own(site: NewSite) -> None:
    own = site.branch("templates")
    own.execute("how-to/templates.md")
    assert own.shell(SHOW_PAGES).splitlines() == [
        "OurConnectView",
        "+1 415-555-0100",
        "Example CRM",
        "True",
        "#5b2a86",
        "Example CRM: one step to WhatsApp, Ada's Bakery",
        *("Example CRM True", "Example CRM True"),
    ]


SHOW_PAGES = """
from django.template.loader import render_to_string
from django.test import Client
from django.test.utils import setup_test_environment
from kapso_connect.onboarding.connect_urls import connect_path
from kapso_connect.onboarding.emails import invitation_message
from kapso_connect.models import Customer
from kapso_connect.onboarding import create_setup_link

setup_test_environment()
client = Client()
customer = Customer.objects.create(name="Ada's Bakery", email="ada@example.com")
link = create_setup_link(customer)
answer = client.get(connect_path(customer))
print(answer.resolver_match.func.view_class.__name__)
print(answer.context["hotline"])
print(answer.context["site_name"])
success = render_to_string("kapso_connect/success.html", {"next_url": "/next/", "is_usable": True})
print("tomorrow morning" in success and "/next/" in success)
print(link.options["theme_config"]["primary_color"])
print(invitation_message(customer, link).subject)
for path in ("/thanks/", "/thanks/again/"):
    answer = client.get(path)
    print(answer.context["site_name"], "We call you on Monday." in answer.content.decode())
"""


def test_a_seventh_language(site: NewSite) -> None:
    if shutil.which("msgfmt") is None:
        pytest.skip("GNU gettext is not installed.")
    german = site.branch("languages")
    page = "how-to/languages.md"
    german.execute(page, last="Get the texts")
    count, *_ = german.shell(TRANSLATE).splitlines()
    assert int(count) > 50
    german.execute_block(blocks_of(DOCS / page)[1])  # as after an upgrade
    german.execute(page, first="Use it")
    assert "no issues" in german.output
    assert german.shell(SHOW_GERMAN).splitlines() == [
        "de",
        "True",
        "[Connect WhatsApp] True",
        "de ['de']",
        "True",
    ]


TRANSLATE = """
import polib
catalog = polib.pofile("locale/de/LC_MESSAGES/django.po")
for entry in catalog:
    assert not entry.msgstr and entry.msgctxt == "WhatsApp"
    if entry.msgid_plural:
        entry.msgstr_plural = {0: f"[{entry.msgid}]", 1: f"[{entry.msgid_plural}]"}
    else:
        entry.msgstr = f"[{entry.msgid}]"
catalog.save()
print(len(catalog))
"""

SHOW_GERMAN = """
import re
from django.test import Client
from django.test.utils import setup_test_environment
from kapso_connect.models import Customer
from kapso_connect.onboarding import create_setup_link
from kapso_connect.onboarding.connect_urls import connect_path
from kapso_connect.onboarding.emails import invitation_message

setup_test_environment()
customer = Customer.objects.create(name="Bäckerei", email="ada@example.com", language="de-AT")
link = create_setup_link(customer)
page = Client().get(connect_path(customer))
text = page.content.decode()
print(page["Content-Language"])
print('<html lang="de" dir="ltr">' in text)
button = re.search(r"<button[^>]*>(.*?)</button>", text, re.DOTALL)[1].strip()
print(button, ' lang="de" hreflang="de" dir="ltr" aria-current="true">Deutsch</a>' in text)
print(customer.language, re.findall('<html lang="(.*?)"', text))
message = invitation_message(customer, link)
print(message.subject.startswith("[") and '<html lang="de"' in message.alternatives[0][0])
"""


def test_moving_from_an_own_webhook_announces_nothing_again(companies: NewSite) -> None:
    moving = companies.branch("migrating")
    page = "how-to/migrating.md"
    known = [number_at_kapso(moving, "ada"), number_at_kapso(moving, "somebody-else")]
    moving.execute(page, last="1. Write receivers that may overlap")
    kapso_id = known[0]["customer_id"]
    moving.shell(
        "from crm.models import Company\nfrom kapso_connect.models import Customer\n"
        "Customer.objects.all().delete()\n"
        f"Company.objects.update(kapso_customer_id='{kapso_id}')"
    )
    moving.execute(page, first="2. Create your customers", last="3. Adopt the numbers")
    assert printed(moving.output) == []
    assert moving.shell(SHOW_NUMBERS.format([n["phone_number_id"] for n in known])).split("\n") == [
        "Ada's Bakery Ltd connected",
        "None connected",
        "",
    ]
    moving.execute(page, first="4. Register the new webhook", last="4. Register the new webhook")
    # A later number is announced once.
    number_at_kapso(moving, "ada")
    for expected in (["Ada's Bakery Ltd connected number N"], []):
        assert printed(moving.command("python manage.py kapso_sync")) == expected


SHOW_NUMBERS = """
from kapso_connect.models import Connection
for number in {}:
    connection = Connection.objects.get(phone_number_id=number)
    print(connection.customer.owner, connection.status)
"""


def number_at_kapso(site: NewSite, external_customer_id: str) -> dict[str, str]:
    """Connect a number at Kapso without a webhook to this package."""
    body = {"external_customer_id": external_customer_id, "webhook": False}
    answer = requests.post(f"{site.sandbox}/sandbox/numbers", json=body, timeout=10)
    answer.raise_for_status()
    number: dict[str, str] = answer.json()["data"]
    return number


# The README


def test_the_two_commands_come_first() -> None:
    assert [block.text.strip() for block in blocks_of(README)][:2] == [
        'python -m pip install -e ".[example]" && python manage.py demo',
        'python -m pip install -e ".[dev]" && python -m pytest',
    ]


def test_its_python_is_that_of_the_tutorial() -> None:
    followed = {block.text for block in blocks_of(DOCS / "tutorial.md")}
    shown = {block.text for block in blocks_of(README) if block.language == "python"}
    assert shown
    assert shown <= followed


def test_it_is_installed_as_in_the_tutorial() -> None:
    followed = {line for block in blocks_of(DOCS / "tutorial.md") for line in block.lines}
    (install,) = (
        block
        for block in blocks_of(README)
        if block.heading == "Add it to your site" and block.language == "console"
    )
    assert set(install.lines) <= followed


def test_every_link_has_a_target() -> None:
    links = re.findall(r"!?\[[^\]]*\]\(([^)]*)\)", README.read_text())
    local = [link for link in links if not link.startswith("https://")]
    assert "docs/screenshots/together.png" in local
    assert "docs/tutorial.md" in local
    assert [link for link in local if not target_exists(link)] == []


def target_exists(link: str) -> bool:
    path, _, anchor = link.partition("#")
    target = ROOT / unquote(path) if path else README
    return target.exists() and (not anchor or anchor in anchors(target))


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings
    }


def test_it_is_short() -> None:
    assert len(README.read_text().splitlines()) < 150
