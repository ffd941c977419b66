"""Every change of state, and nothing else: invite, claim, connect, disconnect, fail.

Each function asks the API first and outside any transaction, then changes rows and writes the
timeline in one short transaction. All are safe to repeat and safe to run at the same time.

``customers`` says who somebody is, ``links`` invites, ``numbers`` connects and disconnects,
``renewal`` lets an invitation outlive its links.
"""

from __future__ import annotations

from .customers import (
    add_customer_from_api,
    customer_from_api,
    find_or_add_customer,
    take_turn,
)
from .links import (
    MAX_FAILURES,
    create_setup_link,
    creating_setup_link,
    expire_links,
    extend_setup_link,
    follow_link,
    is_revocable,
    link_options,
    note_opened,
    note_sent,
    open_links,
    record_failure,
    revoke_setup_link,
)
from .numbers import (
    TEARDOWN,
    ClaimRefused,
    NeedsConfirmation,
    Newcomer,
    Number,
    TryLater,
    check_health,
    claim,
    connect,
    disconnect,
    disconnect_number,
    follow,
    follow_api,
    is_closed,
    update_account,
)
from .renewal import (
    AlreadyConnected,
    BeingRenewed,
    Withdrawn,
    is_finished,
    link_of_the_day,
    newest_link,
)
from .steps import Steps, Writing, run

__all__ = [
    "MAX_FAILURES",
    "TEARDOWN",
    "AlreadyConnected",
    "BeingRenewed",
    "ClaimRefused",
    "NeedsConfirmation",
    "Newcomer",
    "Number",
    "Steps",
    "TryLater",
    "Withdrawn",
    "Writing",
    "add_customer_from_api",
    "check_health",
    "claim",
    "connect",
    "create_setup_link",
    "creating_setup_link",
    "customer_from_api",
    "disconnect",
    "disconnect_number",
    "expire_links",
    "extend_setup_link",
    "find_or_add_customer",
    "follow",
    "follow_api",
    "follow_link",
    "is_closed",
    "is_finished",
    "is_revocable",
    "link_of_the_day",
    "link_options",
    "newest_link",
    "note_opened",
    "note_sent",
    "open_links",
    "record_failure",
    "revoke_setup_link",
    "run",
    "take_turn",
    "update_account",
]
