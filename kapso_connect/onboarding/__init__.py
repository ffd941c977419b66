"""Every change of state: a customer is invited, connects a number, fails to, or disconnects it.

A function makes its requests to Kapso's API first, outside of any transaction, and then changes
rows and adds to the timeline in one short transaction. All of them are safe to repeat, and safe to
run at the same time.

These functions are for a site's own code. What else the modules contain is internal, unless the
reference documents it.
"""

from __future__ import annotations

from .connect_urls import connect_path, connect_url
from .disconnections import disconnect
from .emails import send_invitation, send_reminder
from .erasure import erase_customer
from .health import check_health
from .numbers import connect
from .owners import assign_owner
from .removal import disconnect_number
from .setup_links import create_setup_link, extend_setup_link, revoke_setup_link

__all__ = [
    "assign_owner",
    "check_health",
    "connect",
    "connect_path",
    "connect_url",
    "create_setup_link",
    "disconnect",
    "disconnect_number",
    "erase_customer",
    "extend_setup_link",
    "revoke_setup_link",
    "send_invitation",
    "send_reminder",
]
