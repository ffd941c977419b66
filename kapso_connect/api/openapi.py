"""The OpenAPI schema of this API by drf-spectacular, on its own or within the site's schema.

The site's SPECTACULAR_SETTINGS are never changed, not even for a moment: another thread may be
building the site's own schema. Of these settings, the ones about authentication apply here, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.urls import URLPattern
from django.utils import translation
from drf_spectacular.drainage import reset_generator_stats
from drf_spectacular.extensions import OpenApiSerializerFieldExtension
from drf_spectacular.generators import SchemaGenerator
from drf_spectacular.openapi import AutoSchema
from drf_spectacular.plumbing import (
    ResolvedComponent,
    build_mock_request,
    normalize_result_object,
)
from drf_spectacular.settings import spectacular_settings
from drf_spectacular.utils import OpenApiParameter
from inflection import underscore

from .. import __version__
from .fields import MAX_ID, ChoiceField, IdField, NameField, StrictCharField, UtcDateTimeField
from .request_ids import REQUEST_ID_HEADER
from .throttling import LIMIT_HEADER, REMAINING_HEADER, RESET_HEADER

Spec = dict[str, Any]

SCHEMA_TITLE = "WhatsApp onboarding"
SCHEMA_DESCRIPTION = """\
Customers of this site connect their own WhatsApp numbers through Kapso.

Create a customer, create a setup link for it, give the customer the link's `connect_url`, and poll
the customer's status until it is `connected`.

`id`, `customer`, `setup_link` and `connection` are this site's ids. What begins with `kapso_` is
Kapso's. `phone_number_id` and `business_account_id` are Meta's, and `external_customer_id` is the
id that the site gave the customer.

A missing value is null, never an empty string. Bodies are JSON in UTF-8, up to 64 KiB.
Times are in UTC, such as 2026-01-31T12:00:00Z. Unknown fields and unknown query parameters are
rejected.

Every error has the same body: a `code` that does not change, a `message` for people, and `fields`
with the errors of each value.

Later versions may add fields to responses, operations, error codes, and values where
`x-extensible-enum` lists the present ones: clients ignore what they do not know. Anything else
would be another version, with another number in the URL.

Clients that authenticate with this site's session cookie must send the header `X-CSRFToken` with
every request that changes something.
"""
TAGS = {
    "Kapso": "The URLs of this API.",
    "Kapso customers": "Customers and their onboarding status.",
    "Kapso setup links": "Invitations to connect a number.",
    "Kapso batches": "Invitations or reminders of many customers at once.",
    "Kapso connections": "Numbers that are or were connected.",
    "Kapso timeline": "What happened.",
}

COMPONENT_PREFIX = "Kapso"
"""Before the names of components, so that they do not clash with the site's own. The operations and
tags begin with it, too; generators make names of "WhatsApp" that nobody would write."""

YEAR_PATTERN = r"^(19(?!00)|[2-8]\d)\d\d-"
"""The years that ``UtcDateTimeField`` accepts: 1901 to 8999."""
NOT_BLANK_PATTERN = r"[^\s\u001c-\u001f\u0085]"
"""Something is left after Python's ``str.strip()``, which strips more than ``\\s`` matches."""
VISIBLE_PATTERN = (
    r"[^\s\u0000-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    r"\ufff9-\ufffb]"
)
"""Something is left after ``one_line()``."""

ID_PARAMETERS = [
    OpenApiParameter(
        name,
        {"type": "integer", "minimum": 1, "maximum": MAX_ID},
        OpenApiParameter.PATH,
        description="The id of the object.",
    )
    for name in ("id", "pk")
]
"""The site's SCHEMA_COERCE_PATH_PK decides on the name."""
COMMON_HEADERS = [
    OpenApiParameter(
        "WWW-Authenticate",
        str,
        OpenApiParameter.HEADER,
        response=[401],
        description="How to authenticate.",
    ),
    OpenApiParameter(
        "Retry-After",
        {"type": "integer", "minimum": 1},
        OpenApiParameter.HEADER,
        response=[409, 429, 503],
        description="Seconds to wait before a retry.",
    ),
    OpenApiParameter(
        REQUEST_ID_HEADER,
        str,
        OpenApiParameter.HEADER,
        description="An id for this request, of 1 to 128 letters, digits, dots, hyphens and "
        "underscores. Without a valid one, the request gets a new id.",
    ),
    OpenApiParameter(
        REQUEST_ID_HEADER,
        str,
        OpenApiParameter.HEADER,
        response=True,
        description="The id of the request, which is in the site's log, too.",
    ),
    *(
        OpenApiParameter(
            name,
            {"type": "integer", "minimum": 0},
            OpenApiParameter.HEADER,
            response=True,
            description=f"{text} Not sent if there is no limit.",
        )
        for name, text in (
            (LIMIT_HEADER, "How many requests of this kind are allowed within the period."),
            (REMAINING_HEADER, "How many of them are left now."),
            (RESET_HEADER, "Seconds until one more is allowed; 0 if none was counted."),
        )
    ),
]


class ApiSchema(AutoSchema):
    """Describes the methods of this API's views; ``schema.extend_schema`` adds to it."""

    view: Any

    def get_operation(
        self, path: str, path_regex: str, path_prefix: str, method: str, registry: Any
    ) -> Spec | None:
        known = set(registry.build({}).get("schemas", {}))
        operation = super().get_operation(path, path_regex, path_prefix, method, registry)
        for name, component in registry.build({}).get("schemas", {}).items():
            if name not in known and name.startswith(COMPONENT_PREFIX):
                _complete(component, is_request=name.endswith("Request"))
        if operation:
            self._correct_examples(operation)
        return operation

    def _correct_examples(self, operation: Spec) -> None:
        """Take what a tenant cannot send out of the examples of requests."""
        if self.view.sets_external_ids:
            return
        for content in operation.get("requestBody", {}).get("content", {}).values():
            for example in content.get("examples", {}).values():
                value = example["value"]
                example["value"] = {n: value[n] for n in value if n != "external_customer_id"}

    def get_operation_id(self) -> str:
        return f"{self.view.schema_name}_{underscore(type(self.view).__name__)}_{self.view.action}"

    def get_summary(self) -> str | None:
        return super().get_summary() or self.view.get_view_name()

    def get_tags(self) -> list[str]:
        return [self.view.tag]

    def get_filter_backends(self) -> list[Any]:
        return []  # the parameters of the views have the filters

    def get_override_parameters(self) -> list[Any]:
        ids = [one for one in ID_PARAMETERS if f"{{{one.name}}}" in self.path]
        return [*ids, *COMMON_HEADERS]

    def get_request_serializer(self) -> Any:
        if self.method != "PATCH":
            return super().get_request_serializer()
        # The fields of its serializer are optional by themselves. Without read_only,
        # drf-spectacular would make all of them optional, and call the component "Patched…".
        context = self.view.get_serializer_context()
        return self.view.get_serializer_class()(read_only=True, context=context)

    def map_parsers(self) -> list[str]:
        return ["application/json"]

    def get_paginated_name(self, serializer_name: str) -> str:
        return f"{serializer_name}Page"

    def get_serializer_name(self, serializer: Any, direction: str) -> str:
        name = type(serializer).__name__.removesuffix("Serializer")
        if not type(serializer).__module__.startswith("kapso_connect."):
            return name
        if direction == "request":
            if name in ("Customer", "CustomerPatch") and not self.view.sets_external_ids:
                name = f"{name}OfTenant"
            name = name.removesuffix("Request")
            if not spectacular_settings.COMPONENT_SPLIT_REQUEST:  # which adds it itself
                name = f"{name}Request"
        return COMPONENT_PREFIX + name


def _complete(component: Spec, *, is_request: bool) -> None:
    """Say of a component what the serializers do: requests have no other properties, and responses
    have all of them."""
    properties = component.get("properties", {})
    for name, value in list(properties.items()):
        if value.pop("readOnly", False) and is_request:
            del properties[name]
    if not properties:
        return
    if is_request:
        component["additionalProperties"] = False
        component["required"] = [n for n in component.get("required", []) if n in properties]
    else:
        component["required"] = list(properties)
    if not component["required"]:
        del component["required"]


class ChoiceExtension(OpenApiSerializerFieldExtension):
    """Refers to the choices of a field as a component of its own."""

    target_class = ChoiceField
    match_subclasses = True

    def map_serializer_field(self, auto_schema: Any, direction: str) -> Spec:
        field = self.target
        choices = {value: str(label) for value, label in field.choices.items()}
        if field.is_open and direction == "response":
            return {"type": "string", "x-extensible-enum": list(choices)}
        schema: Spec = {"type": "string", "enum": list(choices)}
        if any(label != value for value, label in choices.items()):
            schema["description"] = "\n".join(f"* `{v}` - {label}" for v, label in choices.items())
        name = COMPONENT_PREFIX + field.component
        component = ResolvedComponent(name, ResolvedComponent.SCHEMA, schema=schema, object=name)
        auto_schema.registry.register_on_missing(component)
        return component.ref


class IdExtension(OpenApiSerializerFieldExtension):
    target_class = IdField
    match_subclasses = True

    def map_serializer_field(self, auto_schema: Any, direction: str) -> Spec:
        # Without a format: not every client has a type of its own for 64 bits.
        field = self.target
        return {"type": "integer", "minimum": field.min_value, "maximum": field.max_value}


class CharExtension(OpenApiSerializerFieldExtension):
    target_class = StrictCharField
    match_subclasses = True

    def map_serializer_field(self, auto_schema: Any, direction: str) -> Spec:
        field = self.target
        if direction == "response" or field.allow_blank:
            return {"type": "string"}
        if field.pattern:
            return {"type": "string", "pattern": f"^{field.pattern}$"}
        if isinstance(field, NameField):
            return {"type": "string", "minLength": 1, "pattern": VISIBLE_PATTERN}
        if field.trim_whitespace:
            return {"type": "string", "minLength": 1, "pattern": NOT_BLANK_PATTERN}
        return {"type": "string", "minLength": 1}


class TimeExtension(OpenApiSerializerFieldExtension):
    target_class = UtcDateTimeField

    def map_serializer_field(self, auto_schema: Any, direction: str) -> Spec:
        pattern = {"pattern": YEAR_PATTERN} if direction == "request" else {}
        return {"type": "string", "format": "date-time", **pattern}


# The whole document


def build_document(patterns: Sequence[URLPattern], url: str) -> Spec:
    """Return the OpenAPI document of an API of ``patterns`` that is mounted at ``url``.

    It is always the same for the same site, and in English.
    """
    reset_generator_stats()
    generator = SchemaGenerator(patterns=list(patterns))
    with translation.override("en"):
        paths = {_path(pattern): _operations(generator, pattern) for pattern in patterns}
        document = {
            "openapi": "3.1.0",
            "info": {
                "title": SCHEMA_TITLE,
                "version": __version__,
                "description": SCHEMA_DESCRIPTION,
            },
            "servers": [{"url": url.rstrip("/") or "/"}],
            "tags": [{"name": name, "description": text} for name, text in TAGS.items()],
            "paths": paths,
            "components": generator.registry.build({}),
        }
        return _as_openapi_3_1(normalize_result_object(document))  # type: ignore[no-any-return]


def _path(pattern: URLPattern) -> str:
    return f"/{str(pattern.pattern).replace('<str:pk>', '{id}')}"


def _operations(generator: SchemaGenerator, pattern: URLPattern) -> Spec:
    path = _path(pattern)
    callback: Any = pattern.callback
    found = {}
    for method in callback.actions:
        if method == "head":  # Django REST framework adds it when a view is first used
            continue
        view = generator.create_view(callback, method.upper())
        view.request = build_mock_request(method.upper(), path, view, None)
        schema_class = view.schema.__class__
        if not issubclass(schema_class, AutoSchema):  # a mixin of the site overrides the method
            schema_class = ApiSchema
        schema = schema_class()
        schema.view = view
        operation = schema.get_operation(
            path, str(pattern.pattern), "/", method.upper(), generator.registry
        )
        if operation:  # None where a mixin of the site excludes it
            found[method] = operation
    return found


def _as_openapi_3_1(node: Any) -> Any:
    """Return a part of an OpenAPI 3.0 document as OpenAPI 3.1, where null is a type."""
    if isinstance(node, list):
        return [_as_openapi_3_1(item) for item in node]
    if not isinstance(node, dict):
        return node
    node = {name: _as_openapi_3_1(value) for name, value in node.items()}
    if len(node.get("allOf", [])) == 1:
        node |= node.pop("allOf")[0]
    if node.get("nullable") is True:
        del node["nullable"]
        if isinstance(node.get("type"), str):
            node["type"] = [node["type"], "null"]
        else:
            texts = {name: node.pop(name) for name in ("description", "title") if name in node}
            node = {"oneOf": [*node.get("oneOf", [node]), {"type": "null"}], **texts}
    return node
