"""Phone numbers as people write them."""

from __future__ import annotations

import re

TEST_NUMBER_DIGITS = "1555"
"""How Meta's display-name-only test numbers begin, "+1 555-…"."""

MIN_SEARCHED_DIGITS = 5


def only_digits(number: str) -> str:
    """Return the digits of ``number``, with its country code but without "+"."""
    return re.sub(r"[^0-9]", "", number)


def comparable_digits(number: str) -> str:
    """Return the digits of ``number`` in the one form that numbers are compared in: of mobile
    numbers in Mexico and Argentina without the 1 or 9 that may follow the country code."""
    digits = only_digits(number)
    if re.fullmatch("(521|549)[0-9]{10}", digits):
        return digits[:2] + digits[3:]
    return digits


def searched_digits(text: str) -> str:
    """Return the digits that a number must contain to be found by ``text``; "" if ``text`` is no
    phone number: it has letters, or fewer than ``MIN_SEARCHED_DIGITS`` digits.

    Without the zeros at its beginning, a national number is the end of the international one.
    """
    if any(map(str.isalpha, text)):
        return ""
    digits = only_digits(text.replace("(0)", "")).lstrip("0")
    return digits if len(digits) >= MIN_SEARCHED_DIGITS else ""


def format_phone_number(number: str) -> str:
    """Return ``number`` in international form, "+1 555-123-4567", or unchanged if it is
    not a phone number."""
    import phonenumbers  # its metadata takes long to load

    if re.fullmatch("521[0-9]{10}", only_digits(number)):
        # WhatsApp still has the 1 of mobile numbers in Mexico, which numbering plans dropped.
        return format_phone_number(comparable_digits(number)).replace("+52 ", "+52 1 ", 1)
    digits = number.strip()
    if digits and not digits.startswith("+"):
        digits = f"+{digits}"
    try:
        parsed = phonenumbers.parse(digits)
    except phonenumbers.NumberParseException:
        return number
    return phonenumbers.format_number(parsed, phonenumbers.PhoneNumberFormat.INTERNATIONAL)


def is_test_number(number: str) -> bool:
    """Return whether it is one of Meta's display-name-only test numbers, not a customer's own."""
    return only_digits(number).startswith(TEST_NUMBER_DIGITS)
