from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SERVER = {
    "SECRET_KEY": "k9" + "abcdefghijklmnopqrstuvwxyz" * 2,
    "ALLOWED_HOSTS": "crm.example.com",
    "KAPSO_API_KEY": "key",
    "KAPSO_WEBHOOK_SECRET": "a secret that is long enough",
    "KAPSO_PUBLIC_URL": "https://crm.example.com",
}
ALL = [
    *SERVER,
    "DEBUG",
    "CACHE_URL",
    "DATABASE_URL",
    "EMAIL_URL",
    "KAPSO_API_BASE_URL",
    "DJANGO_SETTINGS_MODULE",
]

RECEIVERS = """
from django.core import mail
from django.core.management import call_command
from django.test.utils import setup_test_environment
from example_project.crm import receivers
from example_project.crm.models import Company
from kapso_connect.models import Connection, ConnectionEvent

setup_test_environment()
call_command("migrate", verbosity=0)
company = Company.objects.create(name="Ada's Bakery", email="ada@example.com")
customer = company.customer
connection = Connection.objects.create(
    phone_number_id="1", customer=customer, display_phone_number="+1 415-555-0100"
)


def tell(status, kind, *heard):
    connection.status = status
    connection.save()
    event = ConnectionEvent.objects.create(
        kind=kind, source="webhook", customer=customer, connection=connection
    )
    for receiver in heard * 2:
        customer.refresh_from_db()
        receiver(customer=customer, connection=connection, event=event)
    company.refresh_from_db()
    print(company.whatsapp_number or "none", len(mail.outbox))


tell("connected", "connected", receivers.note_connection, receivers.send_welcome)
tell("disconnected", "disconnected", receivers.note_connection)
tell("connected", "reconnected", receivers.note_connection)
tell("connected", "disconnected", receivers.note_connection)
"""

NEXT_STEP = """
from django.core.management import call_command
from django.test import Client
from django.test.utils import setup_test_environment
from django.utils import timezone
from example_project.crm.models import Company
from kapso_connect.addresses import connect_path
from kapso_connect.models import Connection, SetupLink, new_connect_key

setup_test_environment()
call_command("migrate", verbosity=0)
company = Company.objects.create(name="Ada's Bakery", email="ada@example.com")
customer = company.customer
customer.connect_key = new_connect_key()
customer.save()
SetupLink.objects.create(
    customer=customer, kapso_id="1", url="https://x.example", is_latest=True,
    status="used", setup_status="completed",
)
Connection.objects.create(phone_number_id="1", customer=customer, status="connected")
client = Client()
print(client.get("/welcome/").status_code)
url = client.get(connect_path(customer)).context["next_url"]
print(url.partition("=")[0])
page = client.get(url, follow=True)
print(page.redirect_chain, page.context["company"])
client.post("/welcome/", {"opening_hours": "9 to 5"})
company.refresh_from_db()
print(company.opening_hours)
"""


def manage(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    return python("manage.py", *arguments, **settings)


def python(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if name not in ALL}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**inherited, "DATABASE_URL": "sqlite://:memory:", **settings},
        capture_output=True,
        text=True,
    )


def test_a_server_passes_the_deployment_checks() -> None:
    done = manage("check", "--deploy", "--fail-level", "WARNING", **SERVER)
    assert done.returncode == 0, done.stderr


def test_a_server_has_no_default_for_what_it_must_know() -> None:
    done = manage("check", "--fail-level", "WARNING", SECRET_KEY="x")
    assert done.returncode == 1
    for name in ("API_KEY", "WEBHOOK_SECRET", "PUBLIC_URL"):
        assert f"KAPSO_CONNECT['{name}'] is not set" in done.stderr


def test_a_server_needs_a_secret_key() -> None:
    done = python("-c", "import example_project.settings", DEBUG="False")
    assert done.returncode != 0
    assert "SECRET_KEY is not set, and DEBUG is off." in done.stderr


@pytest.mark.parametrize(
    ("given", "debug"), [({}, "True"), (SERVER, "False"), ({**SERVER, "DEBUG": "on"}, "True")]
)
def test_a_secret_key_turns_debug_off_unless_asked(given: dict[str, str], debug: str) -> None:
    source = "from example_project import settings; print(settings.DEBUG)"
    assert python("-c", source, **given).stdout.strip() == debug


def test_with_nothing_set_it_is_a_site_in_development() -> None:
    done = manage("check", "--fail-level", "WARNING")
    assert done.returncode == 0, done.stderr


def test_its_migrations_are_complete() -> None:
    done = manage("makemigrations", "--check", "--dry-run")
    assert done.returncode == 0, done.stdout


def test_receivers_do_each_thing_once_and_in_any_order() -> None:
    done = manage("shell", "-v", "0", "-c", RECEIVERS)
    assert done.stdout.splitlines() == [
        "+1 415-555-0100 1",
        "none 1",
        "+1 415-555-0100 1",
        # A late word: the number has been connected again meanwhile.
        "+1 415-555-0100 1",
    ], done.stderr


def test_every_variable_it_reads_is_in_the_example_file() -> None:
    example = (ROOT / ".env.example").read_text()
    source = (ROOT / "example_project" / "settings.py").read_text()
    read = {part.split('"')[1] for part in source.split("env.")[1:] if '("' in part[:12]}
    assert {"KAPSO_API_KEY", "SECRET_KEY", "DATABASE_URL"} <= read
    assert [name for name in read if f"{name}=" not in example] == []


def test_the_success_page_leads_to_a_question_of_the_sites_own() -> None:
    done = python("manage.py", "shell", "-c", NEXT_STEP)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-4:] == [
        "403",
        "/welcome/?kapso_connect",
        "[('/welcome/', 302)] Ada's Bakery",
        "9 to 5",
    ]
