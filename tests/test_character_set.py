"""Emoji in names, in a database of MariaDB whose character set is utf8mb3."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from django.apps import apps
from django.core.checks import run_checks
from django.db import connections
from django.test import Client

from kapso_connect import onboarding
from kapso_connect.kapso.client import KapsoClient
from kapso_connect.models import Connection, Customer, WebhookEvent
from kapso_connect.testing import Sandbox

from .factories import make_customer, payload_for, post
from .management.conftest import run_command
from .proofs.support import empty_database, execute

pytestmark = [
    pytest.mark.slow,
    pytest.mark.django_db(transaction=True, databases=["default", "narrow"]),
]

CHECK = "kapso_connect.W032"
EMOJI = "Ada's 🥐 Bakery"
REPLACED = "Ada's \ufffd Bakery"


class NarrowRouter:
    def db_for_read(self, model: Any, **hints: Any) -> str:
        return "narrow"

    db_for_write = db_for_read


@pytest.fixture(scope="module", autouse=True)
def narrow_database(
    django_db_setup: None, django_db_blocker: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    with empty_database("mariadb", tmp_path_factory.mktemp("mariadb")) as url:
        server = urlsplit(url)
        name = server.path.strip("/")
        execute("mariadb", f"ALTER DATABASE {name} CHARACTER SET utf8mb3")
        connections.databases["narrow"] = {
            **connections.databases["default"],
            "ENGINE": "django.db.backends.mysql",
            "NAME": name,
            "HOST": server.hostname,
            "PORT": server.port,
            "USER": server.username,
            "PASSWORD": server.password or "",
            "OPTIONS": {},
        }
        with django_db_blocker.unblock(), connections["narrow"].schema_editor() as editor:
            for model in apps.get_models():
                if not model._meta.proxy:
                    editor.create_model(model)
        yield
        with django_db_blocker.unblock():
            connections["narrow"].close()
        del connections["narrow"]
        del connections.databases["narrow"]


@pytest.fixture(autouse=True)
def _routed(narrow_database: None, settings: Any) -> None:
    settings.DATABASE_ROUTERS = [NarrowRouter()]


def test_webhook_page_and_sync_replace_what_cannot_be_stored(
    sandbox: Sandbox, client: Client
) -> None:
    customer = make_customer(kapso_id=None)
    link = onboarding.create_setup_link(customer)
    add = {"verified_name": EMOJI, "customer_id": link.customer.kapso_id}
    first = sandbox.add_number(**add)["phone_number_id"]
    page = client.get(
        "/whatsapp/success/",
        {"setup_link_id": link.kapso_id, "status": "completed", "phone_number_id": first},
    )
    assert page.status_code == 200
    second = sandbox.add_number(**add)["phone_number_id"]
    response = post(payload_for(link.customer, second, note=EMOJI))
    assert response.status_code == 200
    stored = WebhookEvent.objects.get()
    assert (stored.status, stored.payload["note"]) == ("processed", EMOJI)  # JSON escapes it
    sandbox.add_number(**add)
    assert "connected 1" in run_command("kapso_sync")
    names = Connection.objects.exclude(phone_number_id=second).values_list(
        "verified_name", flat=True
    )
    assert list(names) == [REPLACED, REPLACED]


def test_name_of_a_customer_that_sync_adds_is_replaced(sandbox: Sandbox) -> None:
    remote = KapsoClient.from_settings().create_customer(name=EMOJI)
    sandbox.add_number(customer_id=remote.id)
    assert "connected 1" in run_command("kapso_sync")
    assert Customer.objects.get().name == REPLACED


def found_ids(**options: Any) -> set[str]:
    return {str(found.id) for found in run_checks(**options)}


def test_tables_that_cannot_store_emoji_are_reported() -> None:
    (warning,) = [found for found in run_checks(databases=["narrow"]) if found.id == CHECK]
    assert "kapso_connect_connection, kapso_connect_customer" in warning.msg
    assert CHECK not in found_ids()
    tables = [model._meta.db_table for model in apps.get_app_config("kapso_connect").get_models()]
    with connections["narrow"].cursor() as cursor:
        cursor.execute("SET FOREIGN_KEY_CHECKS = 0")
        for table in tables:
            cursor.execute(f"ALTER TABLE {table} CONVERT TO CHARACTER SET utf8mb4")
    assert CHECK not in found_ids(databases=["narrow"])
