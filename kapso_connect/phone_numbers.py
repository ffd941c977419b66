"""Phone numbers as people write them."""

from __future__ import annotations

import re
import unicodedata

TEST_NUMBER_DIGITS = "1555"
"""How Meta's display-name-only test numbers begin, "+1 555-…"."""

MIN_SEARCHED_DIGITS = 5

MOBILE_DIGITS = {"52": "1", "54": "9"}
"""The digit that may follow the country code in mobile numbers, in Mexico and in Argentina."""


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


def searched_digits(text: str) -> set[str]:
    """Return the digits of which a number must contain some to be found by ``text``, written as
    people write phone numbers, in the digits of any script. Empty if ``text`` is no phone number:
    it has letters, or fewer than ``MIN_SEARCHED_DIGITS`` digits.

    Without the zeros at its beginning, a national number is the end of the international one. A
    number in Mexico or Argentina is searched for with and without its 1 or 9: see
    ``comparable_digits``.
    """
    if any(map(str.isalpha, text)):
        return set()
    written = "".join(str(unicodedata.decimal(c)) if c.isdecimal() else c for c in text)
    digits = only_digits(re.sub(r"\(\s*0\s*\)", "", written)).lstrip("0")
    spellings = {digits}
    for country, mobile in MOBILE_DIGITS.items():
        if digits.startswith(country + mobile):
            spellings.add(country + digits.removeprefix(country + mobile))
        elif digits.startswith(country):
            spellings.add(country + mobile + digits.removeprefix(country))
    return {found for found in spellings if len(found) >= MIN_SEARCHED_DIGITS}


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
