"""Schemathesis at the sandbox: whatever it sends, the answers are those of Kapso's contract.

It runs in a process of its own, with all of its checks and phases, and knows the ids of objects
that are there, so that no operation is only ever asked for what does not exist. With
KAPSO_TEST_FUZZ=200 it sends that many examples of each request: some minutes.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kapso_connect.testing import Sandbox
from tests import ROOT
from tests.contract import CONTRACT, META_PATH, PLATFORM_PATH, find_path

if TYPE_CHECKING:
    from tests.sandbox.support import Api

pytestmark = pytest.mark.slow
pytest_plugins = ("tests.sandbox.support",)

SANDBOX_EXAMPLES = int(os.environ.get("KAPSO_TEST_FUZZ", 10))
SEND_MESSAGE = "sendWhatsappMessage"
NUMBER, DELETED_NUMBER, RENAMED_NUMBER = "100000000000001", "100000000000002", "100000000000003"
ACCOUNT = "200000000000001"

CONFIG = """\
[generation]
deterministic = true
database = "none"
max-examples = {examples}

[checks]
# No schema can say what is there, what belongs together and what the person last wrote.
positive_data_acceptance.expected-statuses = ["2xx", "400", "404", "409", "422", "429"]

[phases.stateful]
max-steps = 12
inference.algorithms = []  # only the links below

[parameters]
{parameters}
"""
# What one operation deletes or renames is not there for the others.
OWN_PARAMETERS = """
[[operations]]
include-operation-id = "{operation}"
parameters = {{ {parameters} }}
"""


def make_things(box: Sandbox, api: Api) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """Return ids for the path parameters, and those for the operations that change or delete."""
    customer, other = api.customer(), api.customer("Other")
    link = api.link(customer)
    for number in (NUMBER, DELETED_NUMBER, RENAMED_NUMBER):
        box.add_number(
            customer_id=customer["id"], phone_number_id=number, business_account_id=ACCOUNT
        )

    def webhook(**fields: Any) -> str:
        body = {"url": "https://site.example/hook", "secret_key": "s", **fields}
        answer = api("POST", "/whatsapp/webhooks", {"whatsapp_webhook": body})
        return answer.json()["data"]["id"]  # type: ignore[no-any-return]

    def of_number() -> str:
        return webhook(phone_number_id=NUMBER, events=["whatsapp.message.received"])

    kept = {
        "path.customer_id": customer["id"],
        "path.setup_link_id": link["id"],
        "path.phone_number_id": NUMBER,
        "path.business_account_id": ACCOUNT,
        "path.webhook_id": of_number(),
    }
    changed = {
        "deleteCustomer": {"path.customer_id": other["id"]},
        "updateWhatsappPhoneNumber": {"path.phone_number_id": RENAMED_NUMBER},
        "deleteWhatsappPhoneNumber": {"path.phone_number_id": DELETED_NUMBER},
        "deleteWhatsappPhoneNumberWebhook": {"path.webhook_id": of_number()},
        "deleteWhatsappProjectWebhook": {"path.webhook_id": webhook()},
    }
    return kept, changed


# Where the parameters of an operation come from, by what creates an object.
CUSTOMER_OPERATIONS = (
    "getCustomer",
    "updateCustomer",
    "deleteCustomer",
    "listCustomerSetupLinks",
    "createCustomerSetupLink",
    "createCustomerWhatsappPhoneNumber",
)
NUMBER_OPERATIONS = (
    "getWhatsappPhoneNumber",
    "updateWhatsappPhoneNumber",
    "deleteWhatsappPhoneNumber",
    "getWhatsappPhoneNumberHealth",
    "listWhatsappPhoneNumberWebhooks",
    "createWhatsappPhoneNumberWebhook",
)
WEBHOOK_OPERATIONS = (
    "getWhatsappProjectWebhook",
    "updateWhatsappProjectWebhook",
    "deleteWhatsappProjectWebhook",
    "testWhatsappProjectWebhook",
)
NUMBER_WEBHOOK_OPERATIONS = (
    "getWhatsappPhoneNumberWebhook",
    "updateWhatsappPhoneNumberWebhook",
    "deleteWhatsappPhoneNumberWebhook",
)
ID = "$response.body#/data/id"
LINKS: list[tuple[str, tuple[str, ...], dict[str, str]]] = [
    ("/customers", CUSTOMER_OPERATIONS, {"customer_id": ID}),
    (
        "/customers/{customer_id}/setup_links",
        ("updateCustomerSetupLink",),
        {"customer_id": "$request.path.customer_id", "setup_link_id": ID},
    ),
    (
        "/customers/{customer_id}/whatsapp/phone_numbers",
        NUMBER_OPERATIONS,
        {"phone_number_id": ID},
    ),
    (
        "/customers/{customer_id}/whatsapp/phone_numbers",
        ("getWhatsappAccountFunding",),
        {"business_account_id": "$response.body#/data/business_account_id"},
    ),
    ("/whatsapp/webhooks", WEBHOOK_OPERATIONS, {"webhook_id": ID}),
    (
        "/whatsapp/phone_numbers/{phone_number_id}/webhooks",
        NUMBER_WEBHOOK_OPERATIONS,
        {"phone_number_id": "$request.path.phone_number_id", "webhook_id": ID},
    ),
]


def with_links() -> dict[str, Any]:
    """Return the contract with links from what is created, and less that is refused by chance."""
    contract = copy.deepcopy(CONTRACT)
    for path, names, parameters in LINKS:
        created = contract["paths"][path]["post"]["responses"]["201"]
        links = {name: {"operationId": name, "parameters": parameters} for name in names}
        created.setdefault("links", {}).update(links)
    schemas = contract["components"]["schemas"]
    # It takes this for the id of another object, which has to be created before the customer.
    customer = schemas["CustomerWrite"]["properties"]["customer"]
    del customer["properties"]["external_customer_id"]
    # Of numbers that say "sandbox" here and not there, nearly all are refused.
    schemas["MetaId"]["pattern"] = "^[0-9]{1,32}$"
    number = schemas["PhoneNumberWrite"]["properties"]["whatsapp_phone_number"]
    del number["properties"]["kind"]
    return contract


def toml(values: dict[str, str], separator: str) -> str:
    return separator.join(f'"{name}" = "{value}"' for name, value in values.items())


@pytest.fixture
def box() -> Iterator[Sandbox]:
    """A sandbox in which a deleted number is gone at once, as schemathesis expects."""
    with Sandbox(teardown_seconds=0) as sandbox:
        yield sandbox


@pytest.fixture
def attack(box: Sandbox, tmp_path: Path) -> Any:
    """Run Schemathesis at the sandbox; return the operations that were answered with success."""
    (tmp_path / "schema.json").write_text(json.dumps(with_links()))

    def run(config: str, *options: str, mount: str = PLATFORM_PATH) -> set[tuple[str | None, str]]:
        box.faults(drop=True)  # no webhook goes to a URL that schemathesis made up
        before = len(box.requests())
        (tmp_path / "config.toml").write_text(config)
        words = ["--config-file", "config.toml", "run", "schema.json", "--no-color"]
        words += ["--url", box.url + mount, "--header", f"X-API-Key: {box.api_key}"]
        done = subprocess.run(
            [sys.executable, "-m", "schemathesis.cli", *words, "--continue-on-failure", *options],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return {
            (find_path(row["path"]), row["method"].lower())
            for row in box.requests()[before:]
            if 200 <= row["status"] < 300
        }

    return run


def operations() -> set[tuple[str, str]]:
    return {
        (path, method)
        for path, methods in CONTRACT["paths"].items()
        for method in methods
        if method in ("get", "post", "patch", "delete")
    }


def test_each_operation_keeps_to_the_contract(box: Sandbox, box_api: Api, attack: Any) -> None:
    kept, changed = make_things(box, box_api)
    config = CONFIG.format(examples=SANDBOX_EXAMPLES, parameters=toml(kept, "\n"))
    for operation, values in changed.items():
        config += OWN_PARAMETERS.format(operation=operation, parameters=toml(values, ", "))
    phases = "--phases", "examples,coverage,fuzzing"
    reached = attack(config, *phases, "--exclude-operation-id", SEND_MESSAGE)
    reached |= attack(config, *phases, "--include-operation-id", SEND_MESSAGE, mount=META_PATH)
    assert operations() - reached == set()


def test_sequences_of_operations_keep_to_the_contract(attack: Any) -> None:
    config = CONFIG.format(examples=10 * SANDBOX_EXAMPLES, parameters="")
    phases = "--phases", "stateful"
    reached = attack(config, *phases, "--exclude-operation-id", SEND_MESSAGE)
    number = "/whatsapp/phone_numbers/{phone_number_id}"
    assert reached >= {
        ("/customers/{customer_id}/setup_links/{setup_link_id}", "patch"),
        (number, "patch"),
        (f"{number}/health", "get"),
        (f"{number}/webhooks/{{webhook_id}}", "get"),
        ("/whatsapp/webhooks/{webhook_id}", "patch"),
        ("/whatsapp/accounts/{business_account_id}/funding", "get"),
    }
