"""Options are validated before they are sent to Kapso, and all problems are reported at once."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from kapso_connect.exceptions import InvalidOptions
from kapso_connect.kapso import setup_link_options
from kapso_connect.kapso.error_codes import SETUP_ERRORS
from kapso_connect.kapso.languages import Language
from kapso_connect.kapso.setup_link_options import SetupLinkOptions
from kapso_connect.kapso.types import ConnectionType
from tests.kapso.test_client import CONTRACT

SCHEMA = {
    **CONTRACT["components"]["schemas"]["SetupLinkWrite"]["properties"]["setup_link"],
    "additionalProperties": False,
    "components": CONTRACT["components"],
}
FULL = {
    "success_redirect_url": "https://site.example/ok?x=1",
    "failure_redirect_url": "http://localhost:8000/no",
    "allowed_origins": ["https://site.example", "https://[::1]:8000"],
    "allowed_connection_types": ["dedicated"],
    "language": "pt",
    "theme_config": dict.fromkeys(setup_link_options.THEME_COLORS, "#00Ff00"),
    "provision_phone_number": True,
    "phone_number_country_isos": ["CA", "US"],
    "phone_number_area_code": "415",
    "meta_billing_mode": "partner_managed",
}
PROVISIONED = {"provision_phone_number": True}
ORIGINS = {"allowed_origins": ["https://site.example"]}
RECONNECT = {"reconnect_phone_number": "+15551234567"}


def problems(*sources: Any) -> dict[str, str]:
    with pytest.raises(InvalidOptions) as caught:
        SetupLinkOptions.build(*sources)
    return caught.value.errors


def test_constants_match_the_contract() -> None:
    schemas = CONTRACT["components"]["schemas"]
    assert schemas["ConnectionTypes"]["items"]["enum"] == ConnectionType.values
    assert schemas["Language"]["enum"] == [*Language.values, None]
    assert schemas["BillingMode"]["enum"] == list(setup_link_options.BILLING_MODES)
    assert set(schemas["Theme"]["properties"]) == set(setup_link_options.THEME_COLORS)
    assert set(SCHEMA["properties"]) == set(SetupLinkOptions.__dataclass_fields__)
    assert len(SETUP_ERRORS) == 6


def test_what_is_set_is_sent_and_nothing_else() -> None:
    assert SetupLinkOptions.build(FULL).payload() == FULL
    assert SetupLinkOptions.build(RECONNECT).payload() == RECONNECT
    assert SetupLinkOptions.build(None, {}).payload() == {}
    assert SetupLinkOptions().payload() == {}


def test_later_source_overrides_and_none_removes() -> None:
    defaults = {"language": "es", "meta_billing_mode": "customer_managed"}
    built = SetupLinkOptions.build(defaults, None, {"language": "hi", "meta_billing_mode": None})
    assert built.payload() == {"language": "hi"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("success_redirect_url", 7),
        ("success_redirect_url", ""),
        ("success_redirect_url", "/ok"),
        ("success_redirect_url", "javascript:alert(1)"),
        ("success_redirect_url", "ftp://site.example"),
        ("success_redirect_url", "https://"),
        ("success_redirect_url", "https://[::1"),
        ("success_redirect_url", "https://site.example:port/"),
        ("success_redirect_url", "https://site.example/a b"),
        ("failure_redirect_url", "https://site.example/\n"),
        ("failure_redirect_url", "\thttps://site.example/"),
        ("failure_redirect_url", "https://site.example/" + "x" * 2000),
        ("allowed_origins", "https://site.example"),
        ("allowed_origins", []),
        ("allowed_origins", ["https://site.example/"]),
        ("allowed_origins", ["https://site.example?x"]),
        ("allowed_origins", ["https://me@site.example"]),
        ("allowed_origins", ["*"]),
        ("allowed_origins", ["http://site.example"]),
        ("allowed_origins", ["HTTPS://site.example"]),
        ("allowed_origins", ["https://site.example "]),
        ("allowed_connection_types", ["both"]),
        ("allowed_connection_types", [["dedicated"]]),
        ("allowed_connection_types", "dedicated"),
        ("language", "de"),
        ("language", 1),
        ("language", ["en"]),
        ("theme_config", "#000000"),
        ("theme_config", {"colour": "#000000"}),
        ("theme_config", {7: "#000000"}),
        ("theme_config", {"text_color": "red"}),
        ("theme_config", {"text_color": "#000"}),
        ("theme_config", {"text_color": "#000000\n"}),
        ("theme_config", {"text_color": None}),
        ("provision_phone_number", "true"),
        ("provision_phone_number", 1),
        ("phone_number_country_isos", ["us"]),
        ("phone_number_country_isos", ["USA"]),
        ("phone_number_country_isos", ["US\n"]),
        ("phone_number_country_isos", [1]),
        ("phone_number_area_code", "41"),
        ("phone_number_area_code", "4155"),
        ("phone_number_area_code", "٤١٥"),
        ("phone_number_area_code", 415),
        ("meta_billing_mode", "mine"),
        ("reconnect_phone_number", 15551234567),
        ("reconnect_phone_number", "5551234567"),
        ("reconnect_phone_number", "+1555"),
        ("reconnect_phone_number", "+1555123456789012"),
        ("reconnect_phone_number", "+05551234567"),
        ("reconnect_phone_number", "+15551234567;ext=5"),
        ("redirect_url", "https://site.example"),
    ],
)
def test_a_wrong_value_is_named(name: str, value: Any) -> None:
    errors = problems({name: value})
    assert list(errors) == [name]
    assert errors[name].endswith(".")


def test_all_problems_come_at_once() -> None:
    wrong = {"language": "de", "provision_phone_number": 7, "color": "red", 5: 5}
    with pytest.raises(ValueError, match=r"language: Must be one of: en, es.* color: Unknown"):
        SetupLinkOptions.build(wrong)
    assert set(problems(wrong)) == {"language", "provision_phone_number", "color", "5"}
    assert set(problems(["language"])) == {"options"}


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ("+1 (555) 123-4567", "+15551234567"),
        # Forms that numbering plans no longer have, but WhatsApp does.
        ("+52 1 55 1234 5678", "+5215512345678"),
        ("+54 9 11 2345-6789", "+5491123456789"),
    ],
)
def test_a_number_is_sent_as_e164(given: str, sent: str) -> None:
    built = SetupLinkOptions.build({"reconnect_phone_number": given})
    assert built.payload() == {"reconnect_phone_number": sent}


@pytest.mark.parametrize(
    ("asked", "wrong"),
    [
        ({"phone_number_area_code": "415"}, "phone_number_area_code"),
        (
            {"phone_number_area_code": "415", "provision_phone_number": False},
            "phone_number_area_code",
        ),
        (
            {**PROVISIONED, "phone_number_area_code": "415", "phone_number_country_isos": ["BR"]},
            "phone_number_area_code",
        ),
        (
            {**RECONNECT, "allowed_connection_types": ["dedicated", "coexistence"]},
            "allowed_connection_types",
        ),
        (ORIGINS, "allowed_origins"),
        (
            {**ORIGINS, "allowed_connection_types": ["dedicated", "coexistence"]},
            "allowed_origins",
        ),
        ({**RECONNECT, **PROVISIONED}, "provision_phone_number"),
    ],
)
def test_options_that_exclude_each_other(asked: dict[str, Any], wrong: str) -> None:
    assert set(problems(asked)) == {wrong}


def test_sdk_needs_one_connection_type() -> None:
    message = problems(ORIGINS)["allowed_origins"]
    for need in ("@kapso/sdk", "exactly one", "allowed_connection_types", "Multi-partner Solution"):
        assert need in message
    assert "@kapso/sdk" in problems({"allowed_origins": ["http://a.example"]})["allowed_origins"]
    one = {"allowed_connection_types": ["dedicated"]}
    assert SetupLinkOptions.build(ORIGINS, one).payload() == {**ORIGINS, **one}
    # Kapso sets the number's own.
    assert SetupLinkOptions.build(ORIGINS, RECONNECT).payload() == {**ORIGINS, **RECONNECT}
    assert SetupLinkOptions.build({**RECONNECT, **one}).payload() == {**RECONNECT, **one}


def test_what_a_later_source_contradicts_is_dropped() -> None:
    assert SetupLinkOptions.build(FULL, RECONNECT).payload() == {
        **{
            name: value
            for name, value in FULL.items()
            if name != "allowed_connection_types"
            and name not in setup_link_options.PROVISIONING_OPTIONS
        },
        **RECONNECT,
    }
    without = SetupLinkOptions.build(FULL, {"provision_phone_number": False})
    assert without.phone_number_area_code is None
    brazil = SetupLinkOptions.build(FULL, {"phone_number_country_isos": ["BR"]})
    assert (brazil.phone_number_area_code, brazil.provision_phone_number) == (None, True)


def test_an_earlier_source_does_not_overrule_a_later_one() -> None:
    asked = {"allowed_connection_types": ["dedicated", "coexistence"]}
    assert set(problems(RECONNECT, asked)) == set(asked)
    assert set(problems(RECONNECT, PROVISIONED)) == set(PROVISIONED)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=4,
)
VALUES = st.sampled_from([*FULL.values(), *RECONNECT.values(), *Language.values]) | JSON
NAMES = st.sampled_from([*SCHEMA["properties"]]) | st.text()


@given(st.lists(st.none() | st.dictionaries(NAMES, VALUES, max_size=5), max_size=3))
def test_any_mapping_is_options_or_invalid_options(sources: Any) -> None:
    try:
        built = SetupLinkOptions.build(*sources)
    except InvalidOptions as invalid:
        names = {name for source in sources if source for name in source}
        assert set(invalid.errors) <= names  # noqa: PT017
        return
    Draft202012Validator(SCHEMA).validate(built.payload())
    assert SetupLinkOptions.build(built.payload()) == built


@given(st.fixed_dictionaries({}, optional={n: st.just(v) for n, v in FULL.items()}))
def test_what_is_valid_keeps_to_the_contract(source: dict[str, Any]) -> None:
    try:
        payload = SetupLinkOptions.build(source).payload()
    except InvalidOptions as invalid:
        assert set(invalid.errors) <= {"phone_number_area_code", "allowed_origins"}  # noqa: PT017
    else:
        Draft202012Validator(SCHEMA).validate(payload)
