"""The REST API's description in OpenAPI: whole, valid, always the same, and no burden to a site."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from django.core.management import CommandError, call_command
from django.test import Client, override_settings
from django.urls import include, path, resolve
from drf_spectacular.drainage import GENERATOR_STATS
from drf_spectacular.management.commands.spectacular import Command as Spectacular
from drf_spectacular.settings import spectacular_settings
from drf_spectacular.utils import extend_schema
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator, validate
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012
from rest_framework import serializers, viewsets
from rest_framework.schemas.openapi import AutoSchema as RestFrameworkSchema

import kapso_connect
from kapso_connect.api import openapi, urls
from kapso_connect.api.tenants import TenantMixin
from tests import ROOT

from .support import API, Caller, code, make_user, staff

SCHEMA = f"{API}schema/"
METHODS = ["get", "put", "post", "delete", "options", "head", "patch", "trace"]


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return openapi.build_document(urls.versioned_patterns(), API)


def operations(document: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    for at, methods in document["paths"].items():
        for method, operation in methods.items():
            assert method in METHODS
            yield f"{method} {at}", operation


# Whole and right


def test_schema_is_valid(document: Any) -> None:
    assert document["openapi"] == "3.1.0"
    validate(document, cls=OpenAPIV31SpecValidator)


def test_building_causes_no_warnings(capfd: pytest.CaptureFixture[str]) -> None:
    openapi.build_document(urls.versioned_patterns(), API)
    assert not GENERATOR_STATS
    assert capfd.readouterr() == ("", "")


def test_schema_has_every_route_and_method(document: Any) -> None:
    expected = {
        f"{method} /{route.replace('<str:pk>', '{id}')}"
        for route, _view, actions, *_names in urls.ROUTES
        for method in actions
    }
    assert {name for name, _operation in operations(document)} == expected
    assert document["servers"] == [{"url": "/api/whatsapp/v1"}]
    assert document["info"]["version"] == kapso_connect.__version__


def test_operation_ids_do_not_change(document: Any) -> None:
    assert {operation["operationId"] for _name, operation in operations(document)} == {
        "kapso_root_list",
        "kapso_schema_describe",
        "kapso_customers_list",
        "kapso_customers_create",
        "kapso_customers_retrieve",
        "kapso_customers_partial_update",
        "kapso_customers_status",
        "kapso_setup_links_list",
        "kapso_setup_links_create",
        "kapso_setup_links_retrieve",
        "kapso_setup_links_revoke",
        "kapso_customers_send_invitation",
        "kapso_customers_send_reminder",
        "kapso_batches_list",
        "kapso_batches_create",
        "kapso_batches_retrieve",
        "kapso_batches_work",
        "kapso_batches_resume",
        "kapso_batches_send_again",
        "kapso_batches_give_up",
        "kapso_batch_invitations_list",
        "kapso_connections_list",
        "kapso_connections_retrieve",
        "kapso_connections_refresh",
        "kapso_connections_disconnect",
        "kapso_events_list",
    }


def test_everything_is_described(document: Any) -> None:
    tags = {tag["name"] for tag in document["tags"] if tag["description"]}
    bare = []
    for name, operation in operations(document):
        assert operation["summary"], name
        assert operation["description"], name
        assert set(operation["tags"]) <= tags, name
        assert operation["security"] == [{"cookieAuth": []}, {"basicAuth": []}]
        parameters = operation.get("parameters", [])
        bare += [f"{name} {p['name']}" for p in parameters if not p["description"]]
        for status, answer in operation["responses"].items():
            bare += [f"{name} {status}"] * (not answer["description"])
            headers = answer.get("headers", {}).items()
            bare += [f"{name} {status} {key}" for key, value in headers if not value["description"]]
    for name, component in document["components"]["schemas"].items():
        assert "description" in component or "enum" in component or name.endswith("Page"), name
        for key, value in component.get("properties", {}).items():
            is_described = value.get("description") or key == "results"
            bare += [f"{name}.{key}"] * (not is_described)
    assert bare == []


def test_choices_are_named_components(document: Any) -> None:
    inline = []
    for name, component in document["components"]["schemas"].items():
        for key, value in component.get("properties", {}).items():
            inline += [f"{name}.{key}"] * ("enum" in value)
    assert inline == []
    known = document["components"]["schemas"]
    assert known["KapsoCustomer"]["properties"]["status"]["$ref"].endswith("/KapsoOnboardingStatus")
    assert "confirming" in known["KapsoOnboardingStatus"]["enum"]
    assert all(name.startswith("Kapso") for name in known)


def examples(document: Any) -> Iterator[tuple[str, Any, Any]]:
    for name, operation in operations(document):
        parts = [("body", operation.get("requestBody", {}))]
        parts += list(operation["responses"].items())
        for part, part_schema in parts:
            for content in part_schema.get("content", {}).values():
                for example in content.get("examples", {}).values():
                    yield f"{name} {part}", content["schema"], example["value"]


@pytest.mark.parametrize("mixins", [(), (TenantMixin,)])
def test_examples_match_the_schema(mixins: Any) -> None:
    document = openapi.build_document(urls.versioned_patterns(*mixins), API)
    registry: Any = Registry().with_resource(
        "urn:it", Resource(contents=document, specification=DRAFT202012)
    )
    found = list(examples(document))
    assert len({name.split()[2] for name, _schema, _value in found}) == 4  # body, 200, 201, 400
    for name, schema, value in found:
        absolute = json.loads(json.dumps(schema).replace('"#/', '"urn:it#/'))
        validator = Draft202012Validator(absolute, registry=registry)
        assert list(validator.iter_errors(value)) == [], name


def test_examples_of_invalid_values_are_of_the_operation(document: Any) -> None:
    """An example does not call a filter unknown that there is, nor complain of another's field."""
    seen = set()
    for name, operation in operations(document):
        answer = operation["responses"]["400"]["content"]["application/json"]
        for example in answer.get("examples", {}).values():
            seen.add(name)
            known = {one["name"] for one in operation.get("parameters", [])}
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
            reference = body.get("schema", {}).get("$ref", "").rpartition("/")[2]
            known |= set(document["components"]["schemas"].get(reference, {}).get("properties", []))
            for field, problems in example["value"]["fields"].items():
                is_unknown = problems[0]["code"].startswith("unknown_")
                assert (field.partition(".")[0] in known) != is_unknown, (name, field)
    expected = {name for name, _operation in operations(document)}
    single = {name for name in expected if name.startswith("get ") and "{id}" in name}
    single -= {"get /batches/{id}/invitations/"}
    assert seen == expected - single - {"get /", "get /schema/"}


@pytest.mark.parametrize("mixins", [(), (TenantMixin,)])
def test_generators_can_use_it(mixins: Any) -> None:
    """What clients that others' generators make have stumbled on."""

    def parts(node: Any) -> Iterator[dict[str, Any]]:
        if isinstance(node, dict):
            yield node
        for inner in node.values() if isinstance(node, dict) else node:
            if isinstance(inner, (dict, list)):
                yield from parts(inner)

    whole = openapi.build_document(urls.versioned_patterns(*mixins), API)
    for part in parts({name: whole[name] for name in ("paths", "components")}):
        assert part.get("format") != "int64"
        assert "default" not in part or "type" not in part
        assert part.get("enum") != [""]
        assert "" not in part.get("enum", [])
        if part.get("type") == "integer" and part.get("maximum", 0) > 2**31:
            assert part["maximum"] == 2**53 - 1
        for option in part.get("oneOf", []):
            assert set(option) == {"$ref"} or option == {"type": "null"}
    for _name, operation in operations(whole):
        assert operation["operationId"].startswith("kapso_")
        assert all(tag == "Kapso" or tag.startswith("Kapso ") for tag in operation["tags"])
    assert all(name.startswith("Kapso") for name in whole["components"]["schemas"])


def test_lists_of_values_that_grow_are_open(document: Any) -> None:
    known = document["components"]["schemas"]
    kind = known["KapsoEvent"]["properties"]["kind"]
    assert kind["type"] == "string"
    assert "enum" not in kind
    assert kind["x-extensible-enum"] == known["KapsoEventKind"]["enum"]
    assert "Later versions may add values" in kind["description"]
    assert known["KapsoConnection"]["properties"]["health_status"]["type"] == ["string", "null"]
    assert known["KapsoCustomer"]["properties"]["status"]["$ref"].endswith("OnboardingStatus")


def test_request_bodies_are_strict(document: Any) -> None:
    known = document["components"]["schemas"]
    assert known["KapsoCustomerRequest"]["required"] == ["name"]
    assert "required" not in known["KapsoCustomerPatchRequest"]
    assert "id" not in known["KapsoCustomerRequest"]["properties"]
    for name in ("KapsoCustomerRequest", "KapsoSetupLinkRequest", "KapsoOptionsRequest"):
        assert known[name]["additionalProperties"] is False
    assert set(known["KapsoCustomer"]["required"]) == set(known["KapsoCustomer"]["properties"])
    assert known["KapsoOptionsRequest"]["properties"]["language"]["oneOf"] == [
        {"$ref": "#/components/schemas/KapsoLanguage"},
        {"type": "null"},
    ]
    assert known["KapsoOptionsRequest"]["properties"]["allowed_connection_types"]["minItems"] == 1


@pytest.mark.parametrize(
    ("component", "body", "is_right"),
    [
        ("Customer", {"name": "A", "email": None}, True),
        ("Customer", {"name": "A", "email": "nobody"}, False),
        ("Customer", {"name": "A", "language": None}, True),
        ("Customer", {"name": "A", "external_customer_id": None}, True),
        ("Customer", {"name": " \u001d"}, False),
        ("Customer", {"email": "a@example.com"}, False),
        ("Theme", {"text_color": "#aabbcc"}, True),
        ("Theme", {"text_color": "red"}, False),
        ("Options", {"phone_number_area_code": "415", "reconnect_phone_number": None}, True),
        ("Options", {"phone_number_area_code": "41"}, False),
        ("Options", {"reconnect_phone_number": "15551234567"}, False),
    ],
)
def test_schema_accepts_and_rejects_bodies(
    document: Any, component: str, body: Any, is_right: bool
) -> None:
    whole = {"$ref": f"#/components/schemas/Kapso{component}Request", **document}
    checker = Draft202012Validator.FORMAT_CHECKER
    assert Draft202012Validator(whole, format_checker=checker).is_valid(body) == is_right


def test_schema_rejects_times_that_no_database_stores(document: Any) -> None:
    parameters = document["paths"]["/events/"]["get"]["parameters"]
    (since,) = [one["schema"] for one in parameters if one["name"] == "since"]
    years = {"1900": False, "1901": True, "2026": True, "8999": True, "9000": False, "0001": False}
    for year, is_right in years.items():
        found = Draft202012Validator(since).is_valid(f"{year}-01-31T12:00:00Z")
        assert found == is_right, year


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PARSER_WHITELIST", []),
        ("TITLE", "The site's"),
        ("SCHEMA_PATH_PREFIX_INSERT", "/elsewhere"),
        ("POSTPROCESSING_HOOKS", [lambda **given: {}]),
        ("PREPROCESSING_HOOKS", [lambda endpoints: []]),
        ("ENUM_SUFFIX", "Choice"),
        ("SERVERS", [{"url": "/elsewhere"}]),
        ("APPEND_PATHS", {"/more/": {}}),
    ],
)
def test_spectacular_settings_of_the_site_do_not_change_it(
    document: Any, monkeypatch: Any, name: str, value: Any
) -> None:
    monkeypatch.setattr(spectacular_settings, name, value)
    assert openapi.build_document(urls.versioned_patterns(), API) == document


ON_EVERY_ANSWER = {"X-Request-ID", "RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset"}


def test_headers(document: Any) -> None:
    create = document["paths"]["/customers/"]["post"]
    assert "Idempotency-Key" in [p["name"] for p in create["parameters"]]
    assert {"Location", "Idempotent-Replayed"} < set(create["responses"]["201"]["headers"])
    status = document["paths"]["/customers/{id}/status/"]["get"]
    assert {p["name"] for p in status["parameters"]} == {
        *("If-None-Match", "Accept-Language", "X-Request-ID", "id")
    }
    assert "content" not in status["responses"]["304"]
    assert set(status["responses"]["304"]["headers"]) == {"ETag", *ON_EVERY_ANSWER}
    for name, operation in operations(document):
        for answer in operation["responses"].values():
            assert set(answer["headers"]) >= ON_EVERY_ANSWER, name
        assert "X-Request-ID" in [p["name"] for p in operation["parameters"]], name
        assert "Retry-After" in operation["responses"]["429"]["headers"]
        assert "Retry-After" in operation["responses"]["503"]["headers"]


def test_schema_is_the_same_after_requests(db: None, document: Any) -> None:
    caller = staff()
    for route, _view, actions, *_names in urls.ROUTES:
        if "get" in actions:
            caller.get(route.replace("<str:pk>", "1"))
    assert openapi.build_document(urls.versioned_patterns(), API) == document


@pytest.mark.slow
def test_schema_is_the_same_in_another_process(document: Any) -> None:
    written = manage("kapso_openapi", "--format", "json", PYTHONHASHSEED="7")
    assert json.loads(written) == json.loads(json.dumps(document))


# Served


def test_schema_is_json_unless_yaml_is_requested(caller: Caller, document: Any) -> None:
    answer = caller.get("schema/")
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.json() == json.loads(json.dumps(document))
    answers = []
    for options in (
        {"headers": {"Accept": "application/yaml"}},
        {"headers": {"Accept": "application/vnd.oai.openapi"}},
        {"data": {"format": "yaml"}},
    ):
        answer = caller.get("schema/", **options)
        assert "json" not in answer.headers["Content-Type"]
        answers.append(answer.content)
    assert yaml.safe_load(answers[0]) == document
    assert answers == [answers[0]] * 3
    assert code(caller.get("schema/", headers={"Accept": "image/png"}), 406) == "not_acceptable"


def test_schema_requires_staff(db: None) -> None:
    assert code(Client().get(SCHEMA), 403) == "not_authenticated"
    assert code(Caller(make_user("guest", is_staff=False)).get("schema/"), 403)


def test_schema_is_in_english(caller: Caller, document: Any) -> None:
    answer = caller.get("schema/", headers={"Accept-Language": "es"})
    assert answer.json() == json.loads(json.dumps(document))


@pytest.mark.urls("tests.sites.tenant_api")
def test_schema_for_tenants(db: None) -> None:
    tenant = Caller(make_user("ada", is_staff=False), at="/tenant/v1/")
    answer = tenant.get("schema/").json()
    validate(answer, cls=OpenAPIV31SpecValidator)
    assert answer["servers"] == [{"url": "/tenant/v1"}]
    create = answer["paths"]["/customers/"]["post"]
    assert create["operationId"] == "kapso_tenant_customers_create"
    reference = create["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    known = answer["components"]["schemas"]
    assert "external_customer_id" not in known[reference.rpartition("/")[2]]["properties"]
    assert "external_customer_id" in known["KapsoCustomer"]["properties"]
    patch = "KapsoCustomerPatchOfTenantRequest"
    assert "external_customer_id" not in known[patch]["properties"]


def test_schemas_of_two_mounts_do_not_mix() -> None:
    tenants = openapi.build_document(urls.versioned_patterns(TenantMixin), API)
    staffs = openapi.build_document(urls.versioned_patterns(), API)
    again = openapi.build_document(urls.versioned_patterns(TenantMixin), API)
    assert again == tenants
    patch = staffs["components"]["schemas"]["KapsoCustomerPatchRequest"]
    assert "external_customer_id" in patch["properties"]


def test_error_without_drf_spectacular(caller: Caller, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "drf_spectacular", None)
    assert code(caller.get("schema/"), 501) == "openapi_not_installed"
    with pytest.raises(CommandError, match="drf-spectacular"):
        call_command("kapso_openapi")


@pytest.mark.slow
def test_api_works_without_drf_spectacular() -> None:
    program = (
        "import sys; sys.modules['drf_spectacular'] = None; import django; django.setup();"
        "from django.test import Client; from django.urls import reverse;"
        "answer = Client().get(reverse('kapso_connect_api:customers'));"
        "assert answer.status_code == 403, answer.content;"
        "assert answer.json()['code'] == 'not_authenticated'"
    )
    run("-c", program)


# Written


def run(*words: str, **variables: str) -> str:
    environment = {**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings", **variables}
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def manage(*words: str, **variables: str) -> str:
    return run("-W", "ignore", "-m", "django", *words, **variables)


def test_command_writes_a_file(document: Any, tmp_path: Path) -> None:
    for kind, read in {"yaml": yaml.safe_load, "json": json.loads}.items():
        file = tmp_path / f"schema.{kind}"
        call_command("kapso_openapi", file=file, format=kind)
        assert read(file.read_text()) == json.loads(json.dumps(document))


def test_command_writes_yaml_to_standard_output(
    document: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    call_command("kapso_openapi")
    written = capsys.readouterr().out
    assert written.startswith("openapi: 3.1.0\n")
    assert yaml.safe_load(written) == document


@pytest.mark.urls("tests.sites.tenant_api")
def test_command_for_another_mount(capsys: pytest.CaptureFixture[str]) -> None:
    call_command("kapso_openapi", namespace="tenant", format="json")
    assert json.loads(capsys.readouterr().out)["servers"] == [{"url": "/tenant/v1"}]


@pytest.mark.urls("tests.sites.bare_urls")
def test_command_fails_if_the_api_is_not_mounted() -> None:
    with pytest.raises(CommandError, match="is not mounted as kapso_connect_api"):
        call_command("kapso_openapi")


def test_command_fails_if_the_file_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="Could not write"):
        call_command("kapso_openapi", file=tmp_path / "missing" / "schema.yaml")


# In a site's own schema


class CustomerSerializer(serializers.Serializer[Any]):
    """The site's own, with a name and a choice that ours have, too."""

    status = serializers.ChoiceField(choices=["gold", "silver"])


class SitesCustomers(viewsets.GenericViewSet[Any]):
    serializer_class = CustomerSerializer

    def retrieve(self, request: Any, pk: str) -> None: ...


own = [path("api/customers/<int:pk>/", SitesCustomers.as_view({"get": "retrieve"}))]
OF_SPECTACULAR = {"DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema"}


def sites_schema(*patterns: Any, version: str, tmp_path: Path) -> dict[str, Any]:
    """The schema that drf-spectacular's own command writes of a site; a warning ends it."""
    module = SimpleNamespace(urlpatterns=patterns)
    file = tmp_path / "site.yaml"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spectacular_settings, "OAS_VERSION", version)
        patch.setattr(spectacular_settings, "SCHEMA_PATH_PREFIX", "/api")
        patch.setitem(sys.modules, "sites_urls", module)
        with override_settings(REST_FRAMEWORK=OF_SPECTACULAR):
            call_command(
                Spectacular(),
                urlconf="sites_urls",
                file=str(file),
                fail_on_warn=True,
                validate=True,
            )
    return yaml.safe_load(file.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("version", ["3.0.3", "3.1.0"])
def test_schema_within_the_sites_schema(version: str, tmp_path: Path, document: Any) -> None:
    ours = path("api/whatsapp/", include(urls.urls_for(), namespace="one"))
    tenants = path("api/mine/", include(urls.urls_for(TenantMixin), namespace="two"))
    alone = sites_schema(*own, version=version, tmp_path=tmp_path)
    both = sites_schema(*own, ours, tenants, version=version, tmp_path=tmp_path)
    validate(both)
    assert both["info"] == alone["info"]
    assert both["paths"]["/api/customers/{id}/"] == alone["paths"]["/api/customers/{id}/"]
    for name, component in alone["components"]["schemas"].items():
        assert both["components"]["schemas"][name] == component
    shown = {name for name, _operation in operations(both)}
    expected = {
        name.replace(" /", " /api/whatsapp/v1/") for name, _operation in operations(document)
    }
    assert expected <= shown
    known = both["components"]["schemas"]
    assert known["KapsoCustomerRequest"]["required"] == ["name"]
    assert "external_customer_id" in known["KapsoCustomerRequest"]["properties"]
    assert "external_customer_id" not in known["KapsoCustomerOfTenantRequest"]["properties"]


@override_settings(REST_FRAMEWORK=OF_SPECTACULAR)
def test_mixin_can_use_extend_schema() -> None:
    class Decorated(TenantMixin):
        @extend_schema(summary="Whom we serve")
        def list(self, request: Any) -> Any: ...

        @extend_schema(exclude=True)
        def create(self, request: Any) -> Any: ...

    patterns = urls.versioned_patterns(Decorated)
    document = openapi.build_document(patterns, "/")
    assert document["servers"] == [{"url": "/"}]
    assert document["paths"]["/customers/"]["get"]["summary"] == "Whom we serve"
    assert "post" not in document["paths"]["/customers/"]


def test_mixin_can_override_methods() -> None:
    class Overriding(TenantMixin):
        def list(self, request: Any) -> Any: ...

    patterns = urls.versioned_patterns(Overriding)
    document = openapi.build_document(patterns, "/")
    listing = document["paths"]["/customers/"]["get"]
    assert listing["operationId"] == "kapso_tenant_customers_list"
    assert "KapsoCustomerPage" in json.dumps(listing["responses"]["200"])
    assert "Retry-After" in document["paths"]["/customers/"]["post"]["responses"]["429"]["headers"]


@pytest.mark.slow
def test_overridden_methods_within_the_sites_schema(tmp_path: Path) -> None:
    options = ("--fail-on-warn", "--validate", "--format", "openapi-json")
    written = manage(
        "spectacular", *options, DJANGO_SETTINGS_MODULE="tests.sites.spectacular_settings"
    )
    document = json.loads(written)
    paths = document["paths"]
    listing = paths["/mine/{team}/v1/customers/"]["get"]
    assert listing["operationId"] == "kapso_tenant_customers_list"
    assert listing["summary"] == "Whom we serve"
    one = paths["/mine/{team}/v1/customers/{id}/"]["get"]
    assert one["operationId"] == "kapso_tenant_customers_retrieve"
    kinds = {parameter["name"]: parameter["schema"]["type"] for parameter in one["parameters"]}
    assert kinds == {"id": "integer", "team": "string", "X-Request-ID": "string"}
    assert "404" in paths["/api/whatsapp/v1/customers/{id}/"]["get"]["responses"]
    known = document["components"]["schemas"]
    assert all(name.startswith("Kapso") for name in known)


def test_other_schema_classes_of_the_site_are_kept() -> None:
    view: Any = resolve(f"{API}customers/").func.cls()
    assert isinstance(view.schema, RestFrameworkSchema)
