"""Read replicas: what was just written is found, although the replica does not have it yet."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from django.apps import apps
from django.db import connections
from django.test import Client
from django.urls import reverse

from kapso_connect import onboarding
from kapso_connect.models import Connection, Customer, SetupLink, TimelineEvent
from kapso_connect.testing import Sandbox

from .api.support import Caller
from .factories import (
    DELETED,
    listening,
    make_connection,
    make_customer,
    make_link,
    make_user,
    payload_for,
    post,
)
from .management.conftest import run_command
from .onboarding.test_accounts import account
from .sites.host_site.models import Bakery

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "replica"])

MODELS = list(apps.get_app_config("kapso_connect").get_models())


class PrimaryReplicaRouter:
    """The router of Django's documentation, with one replica."""

    def db_for_read(self, model: Any, **hints: Any) -> str:
        return "replica"

    def db_for_write(self, model: Any, **hints: Any) -> str:
        return "default"

    def allow_relation(self, obj1: Any, obj2: Any, **hints: Any) -> bool:
        return True


@pytest.fixture(scope="module", autouse=True)
def replica_database(
    django_db_setup: None, django_db_blocker: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """A database with all tables, which stay empty."""
    connections.databases["replica"] = {
        **connections.databases["default"],
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": str(tmp_path_factory.mktemp("replica") / "replica.sqlite3"),
        "OPTIONS": {},
    }
    with django_db_blocker.unblock(), connections["replica"].schema_editor() as editor:
        for model in apps.get_models():
            if not model._meta.proxy:
                editor.create_model(model)
    yield
    with django_db_blocker.unblock():
        connections["replica"].close()
    del connections["replica"]
    del connections.databases["replica"]


@pytest.fixture
def replica(settings: Any) -> None:
    """Read from the replica, which has none of the rows that are written from now on."""
    settings.DATABASE_ROUTERS = [PrimaryReplicaRouter()]
    # Sessions in the database would be read from the replica, too.
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.signed_cookies"


@pytest.fixture
def staff(replica: None) -> Any:
    """A member of staff, whom the replica knows."""
    user = make_user("staff", "superuser")
    user.save(using="replica")
    return user


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_every_table_is_read_where_it_is_written(model: Any, replica: None) -> None:
    for manager in (model._default_manager, model._base_manager):
        assert manager.all().db == "default"
        assert manager.using("replica").db == "replica"
        assert manager.db_manager("replica").all().db == "replica"


def test_related_rows_are_read_where_they_were_written(replica: None) -> None:
    link = make_link(make_customer())
    connection = make_connection(link.customer, setup_link=link)
    event = TimelineEvent.objects.create(
        kind="connected", source="sync", customer=link.customer, connection=connection
    )
    assert link.customer.setup_links.get() == link
    assert connection.events.get() == event
    assert TimelineEvent.objects.get().connection == connection
    found = Connection.objects.select_related("customer", "setup_link").get()
    assert (found.customer, found.setup_link) == (link.customer, link)
    (customer,) = Customer.objects.prefetch_related("setup_links", "connections__events")
    assert list(customer.setup_links.all()) == [link]
    assert list(customer.connections.all()[0].events.all()) == [event]
    deferred = Customer.objects.only("pk").get()
    assert deferred.name == link.customer.name
    deferred.refresh_from_db()


def test_the_sites_own_queries_stay_where_its_router_says(replica: None) -> None:
    bakery = Bakery.objects.create(title="A")
    customer = Customer.objects.for_owner(bakery)
    assert Customer.objects.get().owner == bakery
    assert bakery.whatsapp.get() == customer
    assert bakery.whatsapp.filter(status="not_invited").exists()
    assert Customer.objects.for_owners(Bakery.objects.using("default")).get() == customer
    # Both tables are read from the replica here, which has neither row.
    customers = Customer.objects.values("owner_id")
    assert list(Bakery.objects.filter(pk__in=customers)) == []
    assert list(Bakery.objects.filter(whatsapp__status="not_invited")) == []


def test_number_is_disconnected_within_the_lag(
    sandbox: Sandbox, replica: None, client: Client
) -> None:
    customer = make_customer(kapso_id=None)
    link = onboarding.create_setup_link(customer)
    assert client.get(reverse("kapso_connect:success"), {"setup_link_id": link.kapso_id})
    remote = sandbox.add_number(customer_id=link.customer.kapso_id)
    number = remote["phone_number_id"]
    with listening() as heard:
        post(payload_for(link.customer, number))
        connection = Connection.objects.get(phone_number_id=number)
        assert (connection.setup_link, connection.is_connected) == (link, True)
        onboarding.disconnect_number(connection)
        post(payload_for(link.customer, number), event=DELETED)
        run_command("kapso_sync")
    assert heard.names() == ["whatsapp_connected", "whatsapp_disconnected"]
    assert Customer.objects.get().status == "disconnected"
    assert SetupLink.objects.get().setup_status == "completed"


def test_account_event_is_announced_once_within_the_lag(replica: None) -> None:
    connection = make_connection(business_account_id="waba")
    payload = account("disabled", connection)
    with listening() as heard:
        for key in ("first", "first", "second"):
            assert post(payload, event=payload["event"], key=key).status_code == 200
    assert heard.names() == ["whatsapp_account_updated"]


def test_rest_api_finds_what_it_has_just_created(sandbox: Sandbox, staff: Any) -> None:
    caller = Caller(staff)
    customer = caller.post("customers/", {"name": "A"}).json()
    body = {"customer": customer["id"]}
    headers = {"Idempotency-Key": str(uuid.uuid4())}
    first, again = [caller.post("setup-links/", body, headers=headers) for _attempt in range(2)]
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.json()["id"] == first.json()["id"]
    assert caller.get(f"setup-links/{first.json()['id']}/").status_code == 200
    (listed,) = caller.get("customers/").json()["results"]
    assert listed["status"] == "invited"


def test_admin_shows_what_was_just_written(staff: Any, client: Client) -> None:
    client.force_login(staff)
    make_connection(make_customer(name="Ada's Bakery"))
    for model in ("customer", "connection"):
        page = client.get(reverse(f"admin:kapso_connect_{model}_changelist"))
        assert "Ada&#x27;s Bakery" in page.content.decode()
