"""The guide to own models: what happens to a customer without its owner."""

from __future__ import annotations

import pytest

from .support import NewSite

pytestmark = pytest.mark.docs


def test_the_customer_goes_with_its_company(companies: NewSite) -> None:
    own = companies.branch("deletion")
    own.execute("how-to/own-model.md", first="When the owner is deleted")
    assert own.shell(DELETE).split() == ["False", "None", "True", "revoked"]


DELETE = """
from crm.models import Company
from kapso_connect.models import Customer
from kapso_connect.onboarding import create_setup_link

company = Company.objects.create(legal_name="Cleo's Cakes")
customer = Customer.objects.for_owner(company)
link = create_setup_link(customer)
company.delete()
customer.refresh_from_db()
link.refresh_from_db()
print(Company.objects.filter(legal_name="Cleo's Cakes").exists(), customer.get_owner())
print(customer.erased_at is not None, link.status)
"""


def test_a_customer_is_given_its_company(companies: NewSite) -> None:
    own = companies.branch("assigned")
    own.execute(
        "how-to/own-model.md", first="Customers without an owner", last="Customers without an owner"
    )
    shown = own.shell(ADOPT).splitlines()
    assert shown == ["True", "False", "Bob's Bikes"]


ADOPT = """
from crm.adoption import adopt
from crm.models import Company
from kapso_connect.models import Customer

company = Company.objects.create(legal_name="Bob's Bikes")
customer = Customer.objects.create(name="Bob", external_customer_id="bob")
print(adopt(company, "bob"))
print(adopt(company, "bob"))
customer.refresh_from_db()
print(customer.get_owner())
"""
