"""Whether Kapso pays for a WhatsApp Business account."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kapso_connect.testing import Sandbox, SandboxError

if TYPE_CHECKING:
    from tests.sandbox.support import Api

pytest_plugins = ("tests.sandbox.support",)


def funding(api: Api, business_account_id: str) -> str:
    answer = api("GET", f"/whatsapp/accounts/{business_account_id}/funding").json()
    status: str = answer["data"]["status"]
    return status


def account_of(box: Sandbox) -> str:
    account: str = box.state()["phone_numbers"][-1]["business_account_id"]
    return account


def test_accounts_are_funded_by_links_that_kapso_pays_for(box: Sandbox, box_api: Api) -> None:
    box.complete(box_api.link(box_api.customer())["url"])
    assert funding(box_api, account_of(box)) == "not_funded"
    link = box_api.link(box_api.customer("Globex"), meta_billing_mode="partner_managed")
    box.complete(link["url"])
    assert funding(box_api, account_of(box)) == "funded"
    box.set_funding(account_of(box), "revoked")
    assert funding(box_api, account_of(box)) == "revoked"


def test_funding_that_was_set_before_stays(box: Sandbox, box_api: Api) -> None:
    customer = box_api.customer()
    link = box_api.link(customer, meta_billing_mode="partner_managed")
    account = box.add_number(customer_id=customer["id"])["business_account_id"]
    box.set_funding(account, "pending")
    with pytest.raises(SandboxError, match="not included"):
        box.set_funding(account, "perhaps")
    box.complete(link["url"])
    assert funding(box_api, account) == "pending"


def test_an_unknown_account_is_404(box: Sandbox, box_api: Api) -> None:
    assert box_api("GET", "/whatsapp/accounts/42/funding").status_code == 404
    with pytest.raises(SandboxError, match="404"):
        box.set_funding("42", "funded")
