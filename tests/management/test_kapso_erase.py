"""manage.py kapso_erase, against a running sandbox."""

from __future__ import annotations

from typing import Any

import pytest
from django.core.management import CommandError
from django.utils import timezone

from kapso_connect import onboarding
from kapso_connect.management.commands import kapso_erase
from kapso_connect.models import Customer
from kapso_connect.testing import Sandbox

from ..factories import make_connection, make_customer, remote_customer
from ..sites.host_site.models import Bakery
from .conftest import run_command

pytestmark = pytest.mark.django_db(transaction=True)


def run(*arguments: object) -> str:
    return run_command("kapso_erase", *arguments)


def fails(*arguments: object, status: int = 1) -> str:
    with pytest.raises(CommandError) as caught:
        run(*arguments)
    assert caught.value.returncode == status
    return str(caught.value)


def names() -> list[str]:
    return list(Customer.objects.order_by("pk").values_list("name", flat=True))


def test_customers_are_erased_by_id_once(sandbox: Sandbox) -> None:
    one, other, _third = (make_customer(kapso_id=None, name=name) for name in "abc")
    assert run(one.pk, other.pk, one.pk, "--yes") == "kapso_erase: erased 2 of 2 customers\n"
    assert names() == [f"#{one.pk}", f"#{other.pk}", "c"]


def test_customers_are_found_by_their_objects_and_by_external_id(sandbox: Sandbox) -> None:
    bakery = Bakery.objects.create(title="Süß")
    Customer.objects.for_owner(bakery)
    make_customer(kapso_id=None, external_customer_id="acme")
    run("--model", "host_site.Bakery", bakery.pk, "--yes")
    run("--external-id", "acme", "--yes")
    assert not Customer.objects.filter(erased_at=None).exists()


def test_numbers_are_disconnected_at_kapso(sandbox: Sandbox) -> None:
    customer = remote_customer(sandbox)
    run(customer.pk, "--yes")
    assert not customer.connections.get().is_connected
    assert sandbox.state()["customers"] == []


def test_dry_run_says_whose_data_would_be_erased(sandbox: Sandbox) -> None:
    customer = make_customer(name="Süß")
    make_connection(customer, display_phone_number="+49 30 1234")
    assert run(customer.pk, "--dry-run") == (
        "kapso_erase: would erase 1 customer\n"
        f"kapso_erase: Süß ({customer.pk}), connected: +49 30 1234\n"
    )
    assert names() == ["Süß"]
    assert sandbox.requests() == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["0"], "There is no customer with the id 0."),
        (["x", "99"], "There is no customer with the id x, 99."),
        (["9" * 40], "There is no customer with the id 9999"),
        (["--external-id", "x"], "There is no customer of the external id x."),
        (["--model", "nothing", "1"], "There is no model nothing. Write it as app.Model."),
        (["--model", "host_site.Bakery", "77"], "There is no bakery with the id 77."),
    ],
)
def test_unknown_ids_are_named_and_nothing_is_erased(arguments: list[str], words: str) -> None:
    customer = make_customer(name="Süß")
    known = [] if arguments[0].startswith("--") else [customer.pk]
    assert words in fails(*arguments, *known, "--yes")
    assert names() == ["Süß"]


def test_object_without_a_customer_is_named() -> None:
    bakery = Bakery.objects.create(title="Süß")
    assert "There is no customer of the host_site.Bakery with the id" in fails(
        "--model", "host_site.Bakery", bakery.pk, "--yes"
    )


def test_without_a_terminal_it_needs_yes() -> None:
    customer = make_customer(name="Süß")
    assert "add --yes" in fails(customer.pk)
    assert names() == ["Süß"]


@pytest.mark.parametrize(("answer", "is_erased"), [("yes", True), ("no", False), ("", False)])
def test_it_asks_on_a_terminal(
    monkeypatch: Any, sandbox: Sandbox, answer: str, is_erased: bool
) -> None:
    customer = make_customer(kapso_id=None, name="Süß")
    monkeypatch.setattr(kapso_erase, "is_terminal", lambda stream: True)
    monkeypatch.setattr("builtins.input", lambda question: answer)
    if is_erased:
        assert "Süß" in run(customer.pk)
    else:
        assert fails(customer.pk) == "Nothing was erased."
    assert bool(Customer.objects.get().erased_at) == is_erased


def test_what_could_not_be_erased_is_told_and_the_others_are(
    sandbox: Sandbox, configure: Any
) -> None:
    configure(API_BUDGET=1.0)
    bad, good = remote_customer(sandbox), make_customer(kapso_id=None)
    sandbox.faults(api=[{"match": "^DELETE .*/phone_numbers", "kind": "status", "status": 503}])
    text = fails(bad.pk, good.pk, "--yes")
    assert f"Bäckerei Süß ({bad.pk}) was not erased: Kapso did not respond." in text
    assert names() == ["Bäckerei Süß", f"#{good.pk}"]
    sandbox.clear_faults()
    run(bad.pk, "--yes")
    assert names()[0] == f"#{bad.pk}"


def test_what_kapso_keeps_is_told(sandbox: Sandbox) -> None:
    customer = make_customer(kapso_id=None)
    onboarding.create_setup_link(customer)
    sandbox.faults(api=[{"match": "^DELETE .*/customers", "kind": "status", "status": 401}])
    text = fails(customer.pk, "--yes")
    assert f"Erased customer {customer.pk}: Kapso still has its own record" in text
    assert names() == [f"#{customer.pk}"]


def test_erased_customer_is_not_invited_with_the_others(sandbox: Sandbox) -> None:
    make_customer(kapso_id=None, erased_at=timezone.now())
    text = run_command("kapso_invite", "--all-missing")
    assert text == "kapso_invite: no customers to invite\n"
