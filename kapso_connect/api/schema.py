"""The OpenAPI schema of this API by drf-spectacular, on its own or within the site's schema.

Imported only where drf-spectacular is installed and a schema is requested. The site's
SPECTACULAR_SETTINGS are never changed, not even for a moment: another thread may be building the
site's own schema. Of these settings, the ones about authentication apply here, too; with
COMPONENT_SPLIT_REQUEST, some patterns come with a minLength.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import phonenumbers
import uritemplate
from django.urls import URLPattern
from django.utils import translation
from drf_spectacular.drainage import reset_generator_stats
from drf_spectacular.generators import SchemaGenerator
from drf_spectacular.openapi import AutoSchema
from drf_spectacular.plumbing import (
    ResolvedComponent,
    append_meta,
    build_mock_request,
    force_instance,
    is_list_serializer,
    normalize_result_object,
)
from drf_spectacular.settings import spectacular_settings
from drf_spectacular.utils import OpenApiExample, OpenApiParameter, OpenApiResponse
from inflection import underscore
from rest_framework import serializers as drf
from rest_framework.schemas.generators import BaseSchemaGenerator

from .. import __version__
from ..kapso.error_codes import SETUP_ERRORS, Action
from ..kapso.languages import Language
from ..kapso.setup_link_options import (
    AREA_CODE_PATTERN,
    BILLING_MODES,
    COLOR_PATTERN,
    PHONE_NUMBER_PATTERN,
)
from ..kapso.types import ConnectionType
from ..models import AccountStatus, Connection, Health, SetupLink, Source, TimelineEvent
from ..onboarding.status import OnboardingStatus
from . import idempotency, serializers
from .examples import ERROR_EXAMPLES, RESPONSE_EXAMPLES
from .fields import MAX_ID, UtcDateTimeField
from .operations import COMMON_CODES, MESSAGES, Operation, merge_codes

Spec = dict[str, Any]

SCHEMA_TITLE = "WhatsApp onboarding"
SCHEMA_DESCRIPTION = """\
Customers of this site connect their own WhatsApp numbers through Kapso.

Create a customer, create a setup link for it, give the customer the link's `connect_url`, and poll
the customer's status until it is `connected`.

Every error has the same body: a `code` that does not change between releases, a `message` for
people, and `fields` with the errors of each value. Unknown fields and unknown query parameters are
rejected. Bodies are JSON in UTF-8, up to 64 KiB. Times are in UTC, such as 2026-01-31T12:00:00Z.

Clients that authenticate with this site's session cookie must send the header `X-CSRFToken` with
every request that changes something.
"""
TAGS = {
    "WhatsApp": "The URLs of this API.",
    "WhatsApp customers": "Customers and their onboarding status.",
    "WhatsApp setup links": "Invitations to connect a number.",
    "WhatsApp connections": "Numbers that are or were connected.",
    "WhatsApp timeline": "What happened.",
}

COMPONENT_PREFIX = "Kapso"
"""Before the names of components, so that they do not clash with the site's own."""

ENUMS: dict[str, Sequence[Any]] = {
    "OnboardingStatus": OnboardingStatus.choices,
    "Language": Language.choices,
    "ConnectionType": ConnectionType.choices,
    "SetupLinkStatus": SetupLink.Status.choices,
    "SetupStatus": SetupLink.SetupStatus.choices,
    "ConnectionStatus": Connection.Status.choices,
    "AccountStatus": AccountStatus.choices,
    "Health": Health.choices,
    "EventKind": TimelineEvent.Kind.choices,
    "Source": Source.choices,
    "FailureCode": [(code, failure.title) for code, failure in SETUP_ERRORS.items()]
    + [("unknown", "Something else")],
    "FailureAction": Action.choices,
    "BillingMode": [(mode, mode) for mode in BILLING_MODES],
    "Country": [(code, code) for code in sorted(phonenumbers.SUPPORTED_REGIONS)],
}

METHOD_FIELD_CHOICES = {
    "CustomerSerializer.status": drf.ChoiceField(OnboardingStatus.choices),
    "SetupLinkSerializer.status": drf.ChoiceField(SetupLink.Status.choices),
    "NewSetupLinkSerializer.status": drf.ChoiceField(SetupLink.Status.choices),
    "StatusLinkSerializer.status": drf.ChoiceField(SetupLink.Status.choices),
}

YEAR_PATTERN = r"^(19(?!00)|[2-8]\d)\d\d-"
"""The years that ``UtcDateTimeField`` accepts: 1901 to 8999."""
NOT_BLANK_PATTERN = r"[^\s\u001c-\u001f\u0085]"
"""Something is left after Python's ``str.strip()``, which strips more than ``\\s`` matches."""
OPTION_PATTERNS = {
    "phone_number_area_code": AREA_CODE_PATTERN,
    "reconnect_phone_number": PHONE_NUMBER_PATTERN,
}


class ApiSchema(AutoSchema):
    """Describes a view of this API by its serializers, filters and ``operations``."""

    view: Any

    @property
    def operation(self) -> Operation | None:
        """The current operation; None for an action that a mixin of the site adds."""
        known: Mapping[str, Operation] = self.view.operations
        return known.get(self.view.action)

    def get_operation_id(self) -> str:
        if self.operation is None:
            return super().get_operation_id()
        return f"{self.view.schema_name}_{underscore(type(self.view).__name__)}_{self.view.action}"

    def get_summary(self) -> str | None:
        return self.operation.title if self.operation else super().get_summary()

    def get_description(self) -> str:  # type: ignore[override]
        return self.operation.description if self.operation else super().get_description()

    def get_tags(self) -> list[str]:
        return [self.view.tag]

    def map_parsers(self) -> list[str]:
        return ["application/json"]

    def _get_filter_parameters(self) -> list[Spec]:
        return []  # see _query_parameters

    def _get_pagination_parameters(self) -> list[Spec]:
        return []

    def _get_format_parameters(self) -> list[Spec]:
        return [
            {
                **parameter,
                "description": "The format of the response; takes precedence over Accept.",
            }
            for parameter in super()._get_format_parameters()
        ]

    def _is_list_view(self, serializer: Any = None) -> bool:
        return is_list_serializer(serializer)

    def get_paginated_name(self, serializer_name: str) -> str:
        return f"{serializer_name}Page"

    def get_serializer_name(self, serializer: Any, direction: str) -> str:
        kind = type(serializer)
        name = kind.__name__.removesuffix("Serializer")
        if not kind.__module__.startswith("kapso_connect."):
            return name
        if kind is serializers.CustomerSerializer and not self.view.sets_external_ids:
            name = f"{name}OfTenant" if direction == "request" else name
        is_split = spectacular_settings.COMPONENT_SPLIT_REQUEST
        if direction == "request":
            name = name.removesuffix("Request") + ("" if is_split else "Request")
        return COMPONENT_PREFIX + name

    # Parameters and headers

    def get_override_parameters(self) -> list[Any]:
        if self.operation is None:
            return super().get_override_parameters()
        return [
            *self._path_parameters(),
            *self._query_parameters(),
            *self._request_headers(),
            *self._response_headers(),
        ]

    def _path_parameters(self) -> Iterator[OpenApiParameter]:
        schema = {"type": "integer", "minimum": 1, "maximum": MAX_ID, "format": "int64"}
        for name in uritemplate.variables(self.path):
            yield OpenApiParameter(
                name, schema, OpenApiParameter.PATH, description="The id of the object."
            )

    def _query_parameters(self) -> Iterator[OpenApiParameter]:
        if self.view.action != "list" or not getattr(self.view, "filters", None):
            return
        for name, field in self.view.filters().fields.items():
            schema = self._map_serializer_field(field, "request")
            self._insert_field_validators(field, schema)
            schema.pop("description", None)
            yield OpenApiParameter(
                name, schema, OpenApiParameter.QUERY, description=str(field.help_text)
            )

    def _request_headers(self) -> Iterator[OpenApiParameter]:
        if self.view.action == "create":
            yield OpenApiParameter(
                idempotency.IDEMPOTENCY_KEY_HEADER,
                {
                    "type": "string",
                    "maxLength": idempotency.MAX_IDEMPOTENCY_KEY_LENGTH,
                    "pattern": "^[ -~]+$",
                },
                OpenApiParameter.HEADER,
                description="A text that is unique to the object to create, such as a UUID. A "
                "request repeated with the same key creates it only once.",
            )
        if self.view.action == "status":
            yield OpenApiParameter(
                "If-None-Match",
                str,
                OpenApiParameter.HEADER,
                description="The ETag of an earlier response.",
            )
            yield OpenApiParameter(
                "Accept-Language",
                str,
                OpenApiParameter.HEADER,
                description="The language of the texts in failure.",
            )

    def _response_headers(self) -> Iterator[OpenApiParameter]:
        def header(name: str, statuses: list[int], description: str, kind: Any = str) -> Any:
            return OpenApiParameter(
                name, kind, OpenApiParameter.HEADER, response=statuses, description=description
            )

        yield header("WWW-Authenticate", [401], "How to authenticate.")
        seconds = {"type": "integer", "minimum": 1}
        yield header("Retry-After", [409, 429, 503], "Seconds to wait before a retry.", seconds)
        if self.view.action == "create":
            url = {"type": "string", "format": "uri"}
            yield header("Location", [201], "The URL of the new object.", url)
            yield header(
                idempotency.REPLAYED_HEADER,
                [201],
                '"true" if an earlier request with the same Idempotency-Key created it.',
            )
        if self.view.action == "status":
            yield header("ETag", [200, 304], "Identifies this response.")

    # Bodies

    def get_request_serializer(self) -> Any:
        return self.view.get_serializer_class()

    def get_response_serializers(self) -> Any:
        if self.operation is None:
            return super().get_response_serializers()
        errors = merge_codes(COMMON_CODES, self.operation.codes)
        return {
            **self._successes(),
            **{status: _error_response(errors[status]) for status in errors},
        }

    def _successes(self) -> Mapping[int, OpenApiResponse]:
        action, kind = self.view.action, self.view.serializer_class
        if kind is serializers.EmptySerializer:
            schema = self.view.response_schema
            return {200: OpenApiResponse(schema, description=self.get_summary() or "")}
        if action == "status":
            kind = serializers.StatusSerializer
        status, description = 200, "The object."
        if action == "create":
            status, description = 201, "The new object."
            if kind is serializers.SetupLinkSerializer:
                kind = serializers.NewSetupLinkSerializer
        elif action == "list":
            description = "A page of the list."
        example = RESPONSE_EXAMPLES.get(kind.__name__)
        examples = [OpenApiExample("example", example)] if example else []
        response = kind(many=True) if action == "list" else kind
        responses = {status: OpenApiResponse(response, description=description, examples=examples)}
        if action == "status":
            responses[304] = OpenApiResponse(
                description="Nothing has changed since the response with this ETag."
            )
        return responses

    def get_examples(self) -> list[OpenApiExample]:
        if self.operation is None or self.operation.example is None:
            return []
        return [OpenApiExample("example", self.operation.example, request_only=True)]

    def _map_serializer(self, serializer: Any, direction: Any, *args: Any) -> Spec:
        serializer = force_instance(serializer)
        schema: Spec = super()._map_serializer(serializer, direction, *args)
        properties = schema.get("properties", {})
        for value in properties.values():
            # A validator that ignores formats accepts "" as either, and oneOf would fail.
            if {"type": "string", "maxLength": 0} in value.get("oneOf", []):
                value["anyOf"] = value.pop("oneOf")
        if direction == "request" and isinstance(serializer, serializers.StrictSerializer):
            fields = serializer.fields
            schema["properties"] = {n: v for n, v in properties.items() if not fields[n].read_only}
            schema["required"] = [
                n for n in schema.get("required", []) if n in schema["properties"]
            ]
            schema["additionalProperties"] = False
        if direction == "response":
            for value in properties.values():
                value.pop("readOnly", None)
            schema["required"] = list(properties)
        if not schema.get("required"):
            schema.pop("required", None)
        return schema

    def _map_serializer_field(self, field: Any, direction: Any, *args: Any) -> Any:
        enum = self._enum(field)
        if enum is not None:
            return append_meta(enum, self._get_serializer_field_meta(field, direction))
        schema = super()._map_serializer_field(field, direction, *args)
        if direction == "request" and schema:
            schema |= _constraints(field)
        return schema

    def _enum(self, field: Any) -> Spec | None:
        """Return a reference to the one of ``ENUMS`` that ``field`` chooses from, or None."""
        if isinstance(field, drf.SerializerMethodField):
            field = METHOD_FIELD_CHOICES.get(f"{type(field.parent).__name__}.{field.field_name}")
        if not isinstance(field, drf.ChoiceField):
            return None
        values = [value for value in field.choices if value not in ("", None)]
        found = (n for n, choices in ENUMS.items() if [value for value, _ in choices] == values)
        name = next(found, None)
        if name is None:
            return None
        choices = ENUMS[name]
        schema: Spec = {"type": "string", "enum": values}
        if any(label != value for value, label in choices):
            schema["description"] = "\n".join(f"* `{value}` - {label}" for value, label in choices)
        component = ResolvedComponent(
            f"{COMPONENT_PREFIX}{name}",
            ResolvedComponent.SCHEMA,
            schema=schema,
            object=f"{COMPONENT_PREFIX}{name}",
        )
        self.registry.register_on_missing(component)
        if "" not in field.choices and not field.allow_blank:
            return component.ref
        return {"oneOf": [component.ref, {"type": "string", "enum": [""]}]}


def _constraints(field: Any) -> Spec:
    """Return the constraints of a field that drf-spectacular does not know of."""
    parent = type(field.parent)
    if parent is serializers.ThemeSerializer:
        return {"pattern": f"^{COLOR_PATTERN}$"}
    if parent is serializers.OptionsSerializer and field.field_name in OPTION_PATTERNS:
        return {"pattern": f"^{OPTION_PATTERNS[field.field_name]}$"}
    if isinstance(field, UtcDateTimeField):
        return {"pattern": YEAR_PATTERN}
    if isinstance(field, drf.CharField) and not field.allow_blank:
        return {"minLength": 1} | ({"pattern": NOT_BLANK_PATTERN} if field.trim_whitespace else {})
    if isinstance(field, drf.ListField) and not field.allow_empty:
        return {"minItems": 1}
    return {}


def _error_response(codes: Sequence[str]) -> OpenApiResponse:
    return OpenApiResponse(
        serializers.ErrorSerializer,
        description=" ".join(f"`{code}`: {MESSAGES[code]}" for code in codes),
        examples=[
            OpenApiExample("example", ERROR_EXAMPLES[code])
            for code in codes
            if code in ERROR_EXAMPLES
        ],
    )


# The whole document


class _WithApiSchema(BaseSchemaGenerator):
    def create_view(self, callback: Any, method: str, request: Any = None) -> Any:
        view = super().create_view(callback, method, request)
        view.schema = ApiSchema()
        return view


class ApiSchemaGenerator(SchemaGenerator, _WithApiSchema):
    """Describes every view by ``ApiSchema``, whatever the site's DEFAULT_SCHEMA_CLASS is.

    drf-spectacular's own ``create_view`` calls that of ``_WithApiSchema`` before it applies
    ``extend_schema``.
    """


def build_document(patterns: Sequence[URLPattern], url: str) -> Spec:
    """Return the OpenAPI document of an API of ``patterns`` that is mounted at ``url``.

    It is always the same for the same site, and in English.
    """
    reset_generator_stats()
    generator = ApiSchemaGenerator(patterns=list(patterns))
    with translation.override("en"):
        paths = {
            _openapi_path(pattern): dict(_path_operations(generator, pattern))
            for pattern in patterns
        }
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


def _openapi_path(pattern: URLPattern) -> str:
    return f"/{str(pattern.pattern).replace('<str:pk>', '{id}')}"


def _path_operations(generator: Any, pattern: URLPattern) -> Iterator[tuple[str, Spec]]:
    path = _openapi_path(pattern)
    callback: Any = pattern.callback
    for method in callback.actions:
        if method == "head":  # Django REST framework adds it when a view is first used
            continue
        view = generator.create_view(callback, method.upper())
        view.request = build_mock_request(method.upper(), path, view, None)
        operation = view.schema.get_operation(
            path, str(pattern.pattern), "/", method.upper(), generator.registry
        )
        if operation:  # None where a mixin of the site excludes it
            yield method, operation


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
