"""Staff search for customers by what these tell them on the phone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.admin import AdminSite, ModelAdmin
from django.db.models import Model
from django.test import Client
from django.urls import reverse

from kapso_connect.admin import SetupLinkAdminMixin
from kapso_connect.models import Connection, Customer, SetupLink
from kapso_connect.onboarding.numbers import Number, connect, connect_new

from ..factories import make_connection, make_customer, make_link
from ..sites.host_site.models import Bakery, Franchise, Shop

pytestmark = pytest.mark.django_db


@pytest.fixture
def find(admin_client: Client) -> Callable[..., list[Any]]:
    """Return a function that searches a list of the admin, and returns the rows it shows."""

    def search(text: str, model: type[Model] = Customer, **query: str) -> list[Any]:
        name = f"admin:{model._meta.app_label}_{model._meta.model_name}_changelist"
        response = admin_client.get(reverse(name), {"q": text, **query})
        assert response.status_code == 200
        return list(response.context_data["cl"].result_list)  # type: ignore[attr-defined]

    return search


@pytest.fixture
def berlin() -> Customer:
    """A customer with two numbers, beside one whose number is similar."""
    ids = {"external_customer_id": "crm-7", "kapso_id": "berlin"}
    customer = make_customer(name="Bäckerei", email="b@example.com", **ids)
    make_connection(customer, display_phone_number="+49 30 5432134")
    make_connection(customer, display_phone_number="+49 30 5432199", status="disconnected")
    other = make_customer(name="Other", external_customer_id="other", kapso_id="other")
    make_connection(other, display_phone_number="+49 30 5432100")
    return customer


def test_customer_is_found_once(find: Any, berlin: Customer) -> None:
    for text in (
        "bäcker",
        "b@example",
        "crm-7",
        "+49305432134",
        "0049 30 5432134",
        "030 5432134",
        "+49 30 5432134",
        "+49 (0)30 / 543-21-34",
        "5432134",
        "32134",
        "030 5432199",
    ):
        assert find(text) == [berlin], text


NOTATIONS = [
    "+49305432134",
    "030 5432134",
    "+49 30 5432134",
    "0049305432134",
    "49305432134",
    "030/54.32.1-34",
    "+49 ( 0 ) 30 5432134",
    "(030) 5432134",
    "+49\N{NO-BREAK SPACE}30\N{NARROW NO-BREAK SPACE}5432134",
    "\N{LEFT-TO-RIGHT EMBEDDING}+49 30 5432134\N{POP DIRECTIONAL FORMATTING}",
    "  030 5432134 ",
    "+٤٩ ٣٠ ٥٤٣٢١٣٤",
    "०३० ५४३२१३४",
]


@pytest.fixture(params=[Customer, Bakery, Shop], ids=lambda model: model.__name__)
def searched(request: pytest.FixtureRequest) -> tuple[type[Model], Any, Customer]:
    """A model whose list is searched, a row of it, and the row's customer; beside others."""
    model: Any = request.param
    if model is Customer:
        other, sought = (make_customer(name=name) for name in ("Other", "Café Süß"))
        customers = [other, sought]
    else:
        field = "title" if model is Bakery else "name"
        other, sought = (model.objects.create(**{field: name}) for name in "ab")
        customers = [Customer.objects.for_owner(row, name="x") for row in (other, sought)]
    make_connection(customers[0], display_phone_number="+49 30 5432100")
    make_link(customers[0])
    values = {"name": "Café Süß", "email": "sol@example.com", "external_customer_id": "crm-7"}
    Customer.objects.filter(pk=customers[1].pk).update(**values)
    return model, sought, customers[1]


@pytest.mark.parametrize("text", NOTATIONS)
def test_number_is_found_in_any_notation(
    find: Any, searched: tuple[type[Model], Any, Customer], text: str
) -> None:
    model, sought, customer = searched
    make_connection(customer, display_phone_number="+49 30 5432134")
    assert find(text, model) == [sought]


@pytest.mark.parametrize(
    ("stored", "texts"),
    [
        ("+52 1 55 1234 5678", ["+52 55 1234 5678", "+52 1 55 1234 5678", "0052 55 1234"]),
        ("+52 55 1234 5678", ["+52 1 55 1234 5678", "5215512345678", "+52 1 55 123"]),
        ("+54 9 11 2345-6789", ["+54 11 2345-6789", "+54 9 11 2345 6789", "11 2345 6789"]),
        ("+54 11 2345-6789", ["+54 9 11 2345-6789", "00549112345"]),
    ],
)
def test_number_is_found_with_and_without_the_digit_of_mobile_numbers(
    find: Any, searched: tuple[type[Model], Any, Customer], stored: str, texts: list[str]
) -> None:
    model, sought, customer = searched
    make_connection(customer, display_phone_number=stored)
    for text in texts:
        assert find(text, model) == [sought], text


@pytest.mark.parametrize("text", ["Süß", "Café Süß ", " SOL@example.com", "crm-7", "CAF"])
def test_name_email_and_external_id_are_found(
    find: Any, searched: tuple[type[Model], Any, Customer], text: str
) -> None:
    model, sought, _customer = searched
    assert find(text, model) == [sought]


def test_reference_is_found_as_it_is_read_out(
    find: Any, searched: tuple[type[Model], Any, Customer]
) -> None:
    model, sought, customer = searched
    reference = make_link(customer).reference
    make_link(customer)  # the reference of a former link is found, too
    for text in (reference, reference.upper(), f"\N{NO-BREAK SPACE}{reference} ", f" {reference}"):
        assert find(text, model) == [sought], text


@pytest.mark.parametrize("text", ["2134", "00000", "+49 30 99999", "x5432134"])
def test_other_texts_find_nobody(find: Any, berlin: Customer, text: str) -> None:
    assert find(text) == []


def test_a_part_of_several_numbers_finds_all(find: Any, berlin: Customer) -> None:
    assert len(find("030 54321")) == 2


def test_customer_is_found_by_the_reference_of_a_link(find: Any) -> None:
    customer = make_customer()
    former = make_link(customer)
    make_link(customer)
    make_link()
    assert find(former.reference) == [customer]
    assert find(f" {former.reference.upper()} ") == [customer]
    assert find(former.reference[:5]) == []


def test_search_and_filter_go_together(find: Any, berlin: Customer) -> None:
    assert find("030 5432134", whatsapp_status="connected") == [berlin]
    assert find("030 5432134", whatsapp_status="invited") == []


def test_connections_are_found_by_number(find: Any, berlin: Customer) -> None:
    [found] = find("030 5432134", Connection)
    assert found.display_phone_number == "+49 30 5432134"


@pytest.mark.parametrize(("model", "field"), [(Bakery, "title"), (Shop, "name")])
def test_a_sites_objects_are_found_by_their_customers(
    find: Any, model: type[Model], field: str
) -> None:
    sought, other = (model._default_manager.create(**{field: name}) for name in "ab")
    customer = Customer.objects.for_owner(sought, name="Sought", external_customer_id="crm-7")
    make_connection(customer, display_phone_number="+49 30 5432134")
    link = make_link(customer)
    make_connection(Customer.objects.for_owner(other), display_phone_number="+49 30 5432199")
    # A customer of another model's object with the same key.
    make_customer(owner_type=None, owner_id=str(sought.pk), name="Sought")
    for text in ("030 5432134", link.reference, "sought", "crm-7"):
        assert find(text, model) == [sought], text
    assert find("nobody", model) == []


def test_connections_and_links_are_found_by_their_customer(find: Any, berlin: Customer) -> None:
    link, other = make_link(berlin), make_link()
    make_connection(other.customer)
    for text in ("b@example", "crm-7", "030 5432134", link.reference.upper()):
        assert find(text, SetupLink) == [link], text
    numbers = set(berlin.connections.all())
    for text in ("b@example", "crm-7", f" {link.reference.upper()}"):
        assert set(find(text, Connection)) == numbers, text


def test_site_without_a_search_has_no_search_box(admin_client: Client) -> None:
    Franchise.objects.create(title="a")
    for model, expected in ((Franchise, False), (Shop, True)):
        name = f"admin:host_site_{model._meta.model_name}_changelist"
        page = admin_client.get(reverse(name)).content.decode()
        assert ('id="searchbar"' in page) == expected
        assert ("phone number, or reference" in page) == expected


def test_numbers_are_found_however_they_were_written(find: Any) -> None:
    several = [make_customer(name=name) for name in "ab"]
    numbers = [
        Number(phone_number_id=str(pk), display_phone_number=f"+49 30 543213{pk}") for pk in (1, 2)
    ]
    connect_new(list(zip(several, numbers, strict=True)), source="sync")
    late = make_customer(name="c")
    connect(late, Number(phone_number_id="3"), source="webhook")
    assert find("030 5432133") == []
    told = Number(phone_number_id="3", display_phone_number="+49 30 5432133")
    connect(late, told, source="webhook")
    assert find("030 5432131") == several[:1]
    assert find("030 5432133") == [late]


def test_search_of_another_base_may_be_distinct(rf: Any) -> None:
    class Distinct(ModelAdmin):  # type: ignore[type-arg]
        search_fields = ("title",)

        def get_search_results(self, *args: Any) -> Any:
            found, may_have_duplicates = super().get_search_results(*args)
            return found.distinct(), may_have_duplicates

    class OwnAdmin(SetupLinkAdminMixin, Distinct):
        pass

    bakery = Bakery.objects.create(title="Own")
    Customer.objects.for_owner(bakery, name="Ada's", email="ada@example.com")
    model_admin = OwnAdmin(Bakery, AdminSite())
    for text in ("Own", "Ada's"):
        found, _ = model_admin.get_search_results(rf.get("/"), Bakery.objects.all(), text)
        assert list(found) == [bakery]
