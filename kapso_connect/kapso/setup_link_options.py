"""The options of a setup link, with Kapso's names, validated before they are sent to Kapso."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from ..exceptions import InvalidOptions
from ..phone_numbers import only_digits
from ..translation import gettext as _
from ..utils import MAX_URL_LENGTH, host_of
from .languages import Language
from .types import ConnectionType

PARTNER_MANAGED = "partner_managed"
"""Kapso pays Meta, from the credits of the Kapso project."""

BILLING_MODES = ("customer_managed", PARTNER_MANAGED)
THEME_COLORS = (
    "primary_color",
    "primary_foreground_color",
    "background_color",
    "text_color",
    "muted_text_color",
    "card_color",
    "muted_color",
    "border_color",
    "secondary_color",
    "secondary_foreground_color",
    "destructive_color",
    "destructive_foreground_color",
)

COLOR_PATTERN = "#[0-9A-Fa-f]{6}"
AREA_CODE_PATTERN = "[0-9]{3}"
PHONE_NUMBER_PATTERN = r"\+[0-9 ().-]{5,30}"
E164 = "[1-9][0-9]{6,14}"

DEFAULT_COUNTRY = "US"
"""Where Kapso provides a number if no country is named."""

PROVISIONING_OPTIONS = (
    "provision_phone_number",
    "phone_number_country_isos",
    "phone_number_area_code",
)


@dataclass(frozen=True)
class SetupLinkOptions:
    """The options of a setup link, with the names of Kapso's ``SetupLinkWrite``.

    An option that is None is not sent; Kapso's default then applies.

    ``success_redirect_url``, ``failure_redirect_url``
        Where Kapso sends the customer's browser afterwards; absolute http(s) URLs.
    ``allowed_origins``
        Origins of https (``https://crm.example.com``) whose pages may use the link with
        ``@kapso/sdk``; who may embed the hosted page is not said by this. The SDK also needs an
        active Multi-partner Solution, and exactly one connection type.
    ``allowed_connection_types``
        A list of values of ``ConnectionType``; a single one is preselected.
    ``language``
        A value of ``Language``; without it, the page is in the browser's language.
    ``theme_config``
        Colours as ``#rrggbb``, by the names ``THEME_COLORS``.
    ``provision_phone_number``, ``phone_number_country_isos``, ``phone_number_area_code``
        Have Kapso provide a number, in one of these countries (ISO 3166, default ``["US"]``) and
        with this area code (three digits, United States only).
    ``meta_billing_mode``
        One of ``BILLING_MODES``: who pays Meta. It cannot be changed after the link is created. A
        completed setup does not say that Kapso pays: ``Connection.funding_status`` does.
    ``reconnect_phone_number``
        The number to connect again, one of the customer's, as ``+15551234567``. It keeps its
        connection type: leave ``allowed_connection_types`` out, or give that one. Kapso provides
        no other number with the same link.
    """

    success_redirect_url: str | None = None
    failure_redirect_url: str | None = None
    allowed_origins: Sequence[str] | None = None
    allowed_connection_types: Sequence[str] | None = None
    language: str | None = None
    theme_config: Mapping[str, str] | None = None
    provision_phone_number: bool | None = None
    phone_number_country_isos: Sequence[str] | None = None
    phone_number_area_code: str | None = None
    meta_billing_mode: str | None = None
    reconnect_phone_number: str | None = None

    @classmethod
    def build(cls, *sources: Mapping[str, Any] | None) -> SetupLinkOptions:
        """Return the options of all ``sources``; a later source overrides an earlier one.

        Pass the defaults of the site first, and the options of this link last. The value None
        removes an option of an earlier source. If an option of a later source excludes one of an
        earlier source (``reconnect_phone_number`` excludes connection types), the earlier one is
        dropped; within one source it is an error.

        Raise InvalidOptions with all problems at once.
        """
        values: dict[str, Any] = {}
        errors: dict[str, str] = {}
        for source in sources:
            if source is None:
                continue
            if not isinstance(source, Mapping):
                errors["options"] = _("Must be a mapping of option names to values.")
                continue
            for name in _excluded_by(source):
                values.pop(name, None)
            values.update(source)
        checked = {}
        for name, value in values.items():
            check = _CHECKS.get(name)
            if check is None:
                errors[str(name)] = _("Unknown option.")
            elif value is not None:
                try:
                    checked[name] = check(value)
                except _InvalidValueError as problem:
                    errors[name] = str(problem)
        _check_combinations(checked, errors)
        if errors:
            raise InvalidOptions(errors)
        return cls(**checked)

    def payload(self) -> dict[str, Any]:
        """Return the options that are set, as the JSON that is sent to Kapso."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def _excluded_by(source: Mapping[str, Any]) -> Sequence[str]:
    """Return which options of earlier sources make no sense with those of ``source``."""
    if source.get("reconnect_phone_number") is not None:
        return ("allowed_connection_types", *PROVISIONING_OPTIONS)
    countries = source.get("phone_number_country_isos")
    elsewhere = isinstance(countries, (list, tuple)) and DEFAULT_COUNTRY not in countries
    if source.get("provision_phone_number") is False or elsewhere:
        return ("phone_number_area_code",)
    return ()


def _check_combinations(values: Mapping[str, Any], errors: dict[str, str]) -> None:
    if "reconnect_phone_number" in values:
        if _type_count(values) > 1:
            errors["allowed_connection_types"] = _(
                "Leave this out when a number is reconnected, or give the connection type that it "
                "has: Kapso keeps it."
            )
        if values.get("provision_phone_number"):
            errors["provision_phone_number"] = _(
                "A number cannot be provided and another one reconnected with the same link."
            )
    elif "allowed_origins" in values and _type_count(values) != 1:
        errors["allowed_origins"] = _(
            "Pages of allowed_origins use the link with @kapso/sdk, which needs exactly one "
            "connection type (allowed_connection_types), and an active Multi-partner Solution at "
            "Kapso. Leave allowed_origins out to use Kapso's hosted page only."
        )
    if "phone_number_area_code" in values:
        if not values.get("provision_phone_number"):
            errors["phone_number_area_code"] = _(
                "An area code needs provision_phone_number to be true."
            )
        elif DEFAULT_COUNTRY not in values.get("phone_number_country_isos", [DEFAULT_COUNTRY]):
            errors["phone_number_area_code"] = _(
                "Kapso supports area codes only in the United States."
            )


def _type_count(values: Mapping[str, Any]) -> int:
    return len(set(values.get("allowed_connection_types", ())))


def provisioning_problem(options: Mapping[str, Any]) -> str:
    """Return why Kapso cannot provide a number with these connection types, or "".

    Only for people who fill in a form: Kapso documents no such rule, so ``build`` does not refuse
    it in the settings or in code.
    """
    types = options.get("allowed_connection_types")
    if options.get("provision_phone_number") and types and ConnectionType.DEDICATED not in types:
        return _(
            "A new number is not in any WhatsApp Business app yet, so “Dedicated” must be allowed."
        )
    return ""


class _InvalidValueError(Exception):
    """One value is invalid; the message says why."""


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise _InvalidValueError(_("Must be text."))
    return value


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise _InvalidValueError(_("Must be true or false."))
    return value


def _one_of(choices: Sequence[str], value: object) -> str:
    if value not in choices:
        raise _InvalidValueError(
            _("Must be one of: %(choices)s.") % {"choices": ", ".join(choices)}
        )
    return _text(value)


def _list_of(check: Callable[[object], str], value: object) -> list[str]:
    if not isinstance(value, (list, tuple)) or not value:
        raise _InvalidValueError(_("Must be a list with at least one entry."))
    return [check(entry) for entry in value]


def _connection_type(value: object) -> str:
    return _one_of(ConnectionType.values, value)


def _country(value: object) -> str:
    if not re.fullmatch("[A-Z]{2}", _text(value)):
        raise _InvalidValueError(_("Must be country codes of two capital letters, such as US."))
    return _text(value)


def _area_code(value: object) -> str:
    if not re.fullmatch(AREA_CODE_PATTERN, _text(value)):
        raise _InvalidValueError(_("Must be three digits, such as 415."))
    return _text(value)


def _url(value: object) -> str:
    url = _text(value)
    if len(url) > MAX_URL_LENGTH:
        raise _InvalidValueError(
            _("Must not be longer than %(max)s characters.") % {"max": MAX_URL_LENGTH}
        )
    is_absolute = url.lower().startswith(("http://", "https://")) and host_of(url)
    # The host is found without tabs and line breaks, so the text itself is checked.
    if not is_absolute or not url.isprintable() or " " in url:
        raise _InvalidValueError(
            _("Must be a full web address that starts with https:// or http://.")
        )
    return url


def _origin(value: object) -> str:
    url = _url(value)
    parts = urlsplit(url)
    if url != f"https://{parts.netloc}" or "@" in parts.netloc:
        raise _InvalidValueError(
            _(
                "Must be the https origin, without a path, of pages that use the link with "
                "@kapso/sdk, such as https://crm.example.com."
            )
        )
    return url


def _theme(value: object) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise _InvalidValueError(_("Must be a mapping of colour names to colours."))
    unknown = [str(name) for name in value if name not in THEME_COLORS]
    if unknown:
        raise _InvalidValueError(
            _("Unknown colour names: %(names)s.") % {"names": ", ".join(unknown)}
        )
    wrong = [name for name, color in value.items() if not is_color(color)]
    if wrong:
        raise _InvalidValueError(
            _("Not a colour such as #1a2b3c: %(names)s.") % {"names": ", ".join(wrong)}
        )
    return dict(value)


def is_color(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(COLOR_PATTERN, value) is not None


def _phone_number(value: object) -> str:
    # No stricter: numbering plans change, and Kapso knows numbers in forms that are out of use.
    digits = only_digits(_text(value))
    if not re.fullmatch(PHONE_NUMBER_PATTERN, _text(value)) or not re.fullmatch(E164, digits):
        raise _InvalidValueError(
            _("Must be a phone number with its country code, such as +15551234567.")
        )
    return f"+{digits}"


_CHECKS: dict[str, Callable[[object], Any]] = {
    "success_redirect_url": _url,
    "failure_redirect_url": _url,
    "allowed_origins": partial(_list_of, _origin),
    "allowed_connection_types": partial(_list_of, _connection_type),
    "language": partial(_one_of, Language.values),
    "theme_config": _theme,
    "provision_phone_number": _flag,
    "phone_number_country_isos": partial(_list_of, _country),
    "phone_number_area_code": _area_code,
    "meta_billing_mode": partial(_one_of, BILLING_MODES),
    "reconnect_phone_number": _phone_number,
}
