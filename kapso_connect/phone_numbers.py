"""Phone numbers as people write them."""

from __future__ import annotations

import re

TEST_NUMBER = r"^[^0-9]*1[^0-9]*5[^0-9]*5[^0-9]*5"
"""A regular expression for Meta's display-name-only test numbers, "+1 555-…" in any notation; as
databases and Python understand it."""


def format_phone_number(number: str) -> str:
    """Return ``number`` in international form, "+1 555-123-4567"; as it is where it is none."""
    import phonenumbers  # its metadata takes long to load

    digits = number.strip()
    if digits and not digits.startswith("+"):
        digits = f"+{digits}"
    try:
        parsed = phonenumbers.parse(digits)
    except phonenumbers.NumberParseException:
        return number
    return phonenumbers.format_number(parsed, phonenumbers.PhoneNumberFormat.INTERNATIONAL)


def is_test_number(number: str) -> bool:
    """True for Meta's display-name-only test numbers, which are no customer's real ones."""
    return re.match(TEST_NUMBER, number) is not None
