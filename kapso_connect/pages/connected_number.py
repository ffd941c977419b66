"""What the success page shows of a connected number."""

from __future__ import annotations

from dataclasses import dataclass

from ..models import Connection
from ..phone_numbers import format_phone_number


@dataclass(frozen=True)
class ConnectedNumber:
    """A number on the success page."""

    phone_number: str
    """In international form; empty if it is not known yet."""
    verified_name: str
    chat_url: str
    """WhatsApp's URL that opens a chat with the number; empty for one that cannot be used."""
    problem: str
    """Why the number cannot be used as it should: "test", "restricted", "name" or "declined"."""

    @classmethod
    def of(cls, connection: Connection, *, is_named: bool) -> ConnectedNumber:
        """Return the number; unless ``is_named``, without what tells which one it is."""
        problem = ""
        if connection.is_test_number:
            problem = "test"
        elif connection.is_restricted:
            problem = "restricted"
        elif not connection.is_name_approved:
            problem = "name" if connection.name_status == "PENDING_REVIEW" else "declined"
        if not is_named:
            return cls("", "", "", problem)
        digits = connection.phone_digits
        can_chat = digits and connection.is_usable
        return cls(
            format_phone_number(connection.display_phone_number),
            connection.verified_name,
            f"https://wa.me/{digits}" if can_chat else "",
            problem,
        )
