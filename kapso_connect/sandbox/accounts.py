"""WhatsApp Business accounts, and whether Kapso pays Meta for them."""

from __future__ import annotations

from django.http import HttpRequest

from .fields import ApiError
from .state import store
from .web import SandboxView

FUNDING_STATUSES = ("funded", "pending", "unknown", "not_funded", "revoked")


def check_account(business_account_id: str) -> None:
    """Refuse with 404 an account that neither a number nor a customer has."""
    known = {number.business_account_id for number in store.numbers().values()}
    known |= {customer.business_account_id for customer in store.customers.values()}
    if business_account_id not in known:
        raise ApiError(404, "WhatsApp Business account not found")


class FundingView(SandboxView):
    def get(self, request: HttpRequest, business_account_id: str) -> object:
        check_account(business_account_id)
        return {"data": {"status": store.funding.get(business_account_id, "not_funded")}}
