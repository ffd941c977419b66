from __future__ import annotations

from datetime import timedelta

import pytest
from django.contrib.auth.models import User
from django.utils import timezone

from kapso_connect import onboarding
from kapso_connect.models import Connection, SetupLink
from kapso_connect.testing import Sandbox

from ..factories import make_connection, make_customer, remote_customer


@pytest.fixture
def actor() -> User:
    return User.objects.create_user("ada")


@pytest.fixture
def link(sandbox: Sandbox) -> SetupLink:
    """A link of a customer whom Kapso did not know before."""
    return onboarding.create_setup_link(make_customer(kapso_id=None))


@pytest.fixture
def connection(sandbox: Sandbox) -> Connection:
    """A number that has long been connected, both here and at Kapso."""
    customer = remote_customer(sandbox)
    (number,) = sandbox.state()["phone_numbers"]
    sandbox.patch_number(number["phone_number_id"], created_at="2026-01-01T00:00:00Z")
    return make_connection(
        customer,
        phone_number_id=number["phone_number_id"],
        business_account_id=number["business_account_id"],
        connected_at=timezone.now() - timedelta(hours=1),
    )
