"""Whether Kapso pays Meta for a number, as links with ``partner_managed`` billing ask for.

A completed setup does not say that it does.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from django.utils import timezone

from ..db import retry_on_conflict
from ..exceptions import KapsoError
from ..kapso.client import KapsoClient
from ..models import Connection, Funding


def refresh_funding(connection: Connection, client: KapsoClient) -> bool:
    """Ask Kapso whether it pays Meta for the account of ``connection``, if it shall, and record it.

    Return whether the status has changed. If Kapso does not say, what is recorded stays.
    """
    account = connection.business_account_id
    if not account or not connection.is_partner_managed:
        return False
    changes: dict[str, Any] = {"funding_checked_at": timezone.now()}
    try:
        status = client.get_funding(account).status
        changes["funding_status"] = status if status in Funding.values else Funding.UNKNOWN.value
    except KapsoError:
        pass
    rows = Connection.objects.filter(pk=connection.pk, business_account_id=account)
    retry_on_conflict(partial(rows.update, **changes))
    was = connection.funding_status
    for name, value in changes.items():
        setattr(connection, name, value)
    return connection.funding_status != was
