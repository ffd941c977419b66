"""Phone numbers the way people write them."""

from __future__ import annotations

import phonenumbers


def pretty(number: str) -> str:
    """Return ``number`` in international form, "+1 555-123-4567"; as it is where it is none."""
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
    return "".join(c for c in number if c.isdigit()).startswith("1555")
