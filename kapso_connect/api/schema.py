"""The API's description in OpenAPI, by drf-spectacular: for this API alone, or in a site's own.

Imported only where drf-spectacular is installed and somebody asks. It changes none of the site's
SPECTACULAR_SETTINGS, not for a moment: a site's own schema may be made at the same time. Of these,
what is said of authentication holds here, too; a site that splits its components finds a minLength
beside some patterns.
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
    safe_ref,
)
from drf_spectacular.settings import spectacular_settings
from drf_spectacular.utils import OpenApiExample, OpenApiParameter, OpenApiResponse
from inflection import underscore
from rest_framework import serializers as drf

from .. import __version__
from ..kapso.error_codes import FAILURES, Action
from ..kapso.setup_link_options import BILLING_MODES
from ..kapso.types import ConnectionType, Language
from ..models import AccountStatus, Connection, Health, SetupLink, Source, TimelineEvent
from ..onboarding.status import OnboardingStatus
from . import idempotency, serializers
from .descriptions import EXAMPLES, FIELDS, WRONG
from .fields import MAX_ID, MomentField
from .inspection import making
from .operations import COMMON, MESSAGES, Operation, together

Spec = dict[str, Any]

TITLE = "WhatsApp onboarding"
DESCRIPTION = """\
Customers of this site connect their own WhatsApp numbers through Kapso.

Create a customer, create a setup link for it, give the customer the link's `connect_url`, and ask
for the customer's status until it is `connected`.

Every error has the same body: a `code` that stays as it is from release to release, a `message` for
people, and `fields`, which says what is wrong where. Unknown fields and unknown query parameters
are refused. Bodies are JSON in UTF-8, of 64 KiB at most. Times are in UTC, as 2026-01-31T12:00:00Z.

Who logs in with this site's session cookie sends the header `X-CSRFToken` with whatever changes
something.
"""
TAGS = {
    "WhatsApp": "Where everything is.",
    "WhatsApp customers": "Who connects a number, and where they stand.",
    "WhatsApp setup links": "Invitations to connect a number.",
    "WhatsApp connections": "Numbers that are connected or were once.",
    "WhatsApp timeline": "What happened.",
}

PREFIX = "Kapso"
"""Before the names of components, so that they are not taken for the site's own."""

ENUMS: dict[str, Sequence[Any]] = {
    "Standing": OnboardingStatus.choices,
    "Language": Language.choices,
    "ConnectionType": ConnectionType.choices,
    "SetupLinkStatus": SetupLink.Status.choices,
    "SetupStatus": SetupLink.SetupStatus.choices,
    "ConnectionStatus": Connection.Status.choices,
    "AccountStatus": AccountStatus.choices,
    "Health": Health.choices,
    "EventKind": TimelineEvent.Kind.choices,
    "Source": Source.choices,
    "FailureCode": [(code, failure.title) for code, failure in FAILURES.items()]
    + [("unknown", "Something else")],
    "FailureAction": Action.choices,
    "BillingMode": [(mode, mode) for mode in BILLING_MODES],
    "Country": [(code, code) for code in sorted(phonenumbers.SUPPORTED_REGIONS)],
}

CHOICES_OF_METHODS = {
    "CustomerSerializer.standing": drf.ChoiceField(OnboardingStatus.choices),
    "SetupLinkSerializer.status": drf.ChoiceField(SetupLink.Status.choices),
    "NewSetupLinkSerializer.status": drf.ChoiceField(SetupLink.Status.choices),
    "StatusLinkSerializer.status": drf.ChoiceField(SetupLink.Status.choices),
}

MOMENT_PATTERN = r"^(19(?!00)|[2-8]\d)\d\d-"
"""The years that ``MomentField`` takes: 1901 to 8999."""
NOT_BLANK = r"[^\s\u001c-\u001f\u0085]"
"""Something is left when Python has stripped the text; what it strips besides is named."""

COLOR_PATTERN = "^#[0-9A-Fa-f]{6}$"
PATTERNS_OF_OPTIONS = {
    "phone_number_area_code": "^[0-9]{3}$",
    "reconnect_phone_number": r"^\+[0-9 ().-]{5,30}$",
}
"""What ``options.SetupLinkOptions`` takes."""


class ApiSchema(AutoSchema):
    """Describes one view of the API by its serializers, filters and ``operations``."""

    view: Any

    @property
    def operation(self) -> Operation | None:
        """None for an action that a site's mixin adds."""
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
        return []  # what ``filters`` of the view say

    def _get_pagination_parameters(self) -> list[Spec]:
        return []

    def _get_format_parameters(self) -> list[Spec]:
        return [
            {**parameter, "description": "As what it is answered, whatever Accept says."}
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
        return PREFIX + name

    # Parameters and headers

    def get_override_parameters(self) -> list[Any]:
        if self.operation is None:
            return super().get_override_parameters()
        return [*self._in_path(), *self._in_query(), *self._headers(), *self._answered_headers()]

    def _in_path(self) -> Iterator[OpenApiParameter]:
        schema = {"type": "integer", "minimum": 1, "maximum": MAX_ID, "format": "int64"}
        for name in uritemplate.variables(self.path):
            yield OpenApiParameter(name, schema, OpenApiParameter.PATH, description="Its id.")

    def _in_query(self) -> Iterator[OpenApiParameter]:
        if self.view.action != "list" or not getattr(self.view, "filters", None):
            return
        for name, field in self.view.filters().fields.items():
            schema = self._map_serializer_field(field, "request")
            self._insert_field_validators(field, schema)
            told = str(field.help_text or FIELDS[name])
            schema.pop("description", None)
            yield OpenApiParameter(name, schema, OpenApiParameter.QUERY, description=told)

    def _headers(self) -> Iterator[OpenApiParameter]:
        if self.view.action == "create":
            yield OpenApiParameter(
                idempotency.HEADER,
                {"type": "string", "maxLength": idempotency.MAX_LENGTH, "pattern": "^[ -~]+$"},
                OpenApiParameter.HEADER,
                description="Any text that is new for what is to be made, such as a UUID. What is "
                "sent again with the same key is made once.",
            )
        if self.view.action == "status":
            yield OpenApiParameter(
                "If-None-Match",
                str,
                OpenApiParameter.HEADER,
                description="The ETag of an earlier answer.",
            )
            yield OpenApiParameter(
                "Accept-Language",
                str,
                OpenApiParameter.HEADER,
                description="In which language a failure is explained.",
            )

    def _answered_headers(self) -> Iterator[OpenApiParameter]:
        def answered(name: str, codes: list[int], description: str, kind: Any = str) -> Any:
            return OpenApiParameter(
                name, kind, OpenApiParameter.HEADER, response=codes, description=description
            )

        yield answered("WWW-Authenticate", [401], "How to authenticate.")
        seconds = {"type": "integer", "minimum": 1}
        yield answered(
            "Retry-After", [409, 429, 503], "After how many seconds to try again.", seconds
        )
        if self.view.action == "create":
            url = {"type": "string", "format": "uri"}
            yield answered("Location", [201], "Where it is.", url)
            yield answered(
                idempotency.REPLAYED,
                [201],
                '"true" where it was made by an earlier request with the same Idempotency-Key.',
            )
        if self.view.action == "status":
            yield answered("ETag", [200, 304], "What this answer is known by.")

    # Bodies

    def get_request_serializer(self) -> Any:
        return self.view.get_serializer_class()

    def get_response_serializers(self) -> Any:
        if self.operation is None:
            return super().get_response_serializers()
        errors = together(COMMON, self.operation.codes)
        return {
            **self._successes(),
            **{status: _error(errors[status]) for status in errors},
        }

    def _successes(self) -> Mapping[int, OpenApiResponse]:
        action, kind = self.view.action, self.view.serializer_class
        if kind is serializers.Nothing:
            schema = self.view.answer_schema
            return {200: OpenApiResponse(schema, description=self.get_summary() or "")}
        if action == "status":
            kind = serializers.StatusSerializer
        status, description = 200, "It is this."
        if action == "create":
            status, description = 201, "It was made, now or by the same request before."
            if kind is serializers.SetupLinkSerializer:
                kind = serializers.NewSetupLinkSerializer
        elif action == "list":
            description = "A page of them."
        found = EXAMPLES.get(kind.__name__)
        examples = [OpenApiExample("example", found)] if found else []
        response = kind(many=True) if action == "list" else kind
        answers = {status: OpenApiResponse(response, description=description, examples=examples)}
        if action == "status":
            answers[304] = OpenApiResponse(
                description="It is still what the answer with this ETag said."
            )
        return answers

    def get_examples(self) -> list[OpenApiExample]:
        if self.operation is None or self.operation.example is None:
            return []
        return [OpenApiExample("example", self.operation.example, request_only=True)]

    def _map_serializer(self, serializer: Any, direction: Any, *args: Any) -> Spec:
        serializer = force_instance(serializer)
        schema: Spec = super()._map_serializer(serializer, direction, *args)
        properties = schema.get("properties", {})
        for name, value in properties.items():
            # A blank is none of a format, but not every validator looks at formats.
            if {"type": "string", "maxLength": 0} in value.get("oneOf", []):
                value["anyOf"] = value.pop("oneOf")
            told = _description(serializer, name)
            if told and "description" not in value:
                properties[name] = safe_ref({**value, "description": told})
        if direction == "request" and isinstance(serializer, serializers.Body):
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
            schema |= _limits(field)
        return schema

    def _enum(self, field: Any) -> Spec | None:
        """Return how a choice is described, None for what is none of ``ENUMS``."""
        if isinstance(field, drf.SerializerMethodField):
            field = CHOICES_OF_METHODS.get(f"{type(field.parent).__name__}.{field.field_name}")
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
            f"{PREFIX}{name}", ResolvedComponent.SCHEMA, schema=schema, object=f"{PREFIX}{name}"
        )
        self.registry.register_on_missing(component)
        if "" not in field.choices and not field.allow_blank:
            return component.ref
        return {"oneOf": [component.ref, {"type": "string", "enum": [""]}]}


def _description(serializer: Any, name: str) -> str:
    kinds = (f"{kind.__name__}.{name}" for kind in type(serializer).__mro__)
    return next((FIELDS[kind] for kind in kinds if kind in FIELDS), FIELDS.get(name, ""))


def _limits(field: Any) -> Spec:
    """Return what a field refuses that drf-spectacular does not say."""
    kind = type(field.parent)
    if kind is serializers.ThemeSerializer:
        return {"pattern": COLOR_PATTERN}
    if kind is serializers.OptionsSerializer and field.field_name in PATTERNS_OF_OPTIONS:
        return {"pattern": PATTERNS_OF_OPTIONS[field.field_name]}
    if isinstance(field, MomentField):
        return {"pattern": MOMENT_PATTERN}
    if isinstance(field, drf.CharField) and not field.allow_blank:
        return {"minLength": 1} | ({"pattern": NOT_BLANK} if field.trim_whitespace else {})
    if isinstance(field, drf.ListField) and not field.allow_empty:
        return {"minItems": 1}
    return {}


def _error(codes: Sequence[str]) -> OpenApiResponse:
    return OpenApiResponse(
        serializers.ErrorSerializer,
        description=" ".join(f"`{code}`: {MESSAGES[code]}" for code in codes),
        examples=[OpenApiExample("example", WRONG[code]) for code in codes if code in WRONG],
    )


# The whole document


def make(patterns: Sequence[URLPattern], url: str) -> Spec:
    """Return the OpenAPI document of the API whose views are in ``patterns`` and which is mounted
    at ``url``; always the same for the same site."""
    reset_generator_stats()
    generator = SchemaGenerator(patterns=list(patterns))
    token = making.set(True)
    try:
        with translation.override("en"):
            paths = {
                f"/{str(pattern.pattern).replace('<str:pk>', '{id}')}": dict(
                    _operations(generator, pattern)
                )
                for pattern in patterns
            }
            document = {
                "openapi": "3.1.0",
                "info": {"title": TITLE, "version": __version__, "description": DESCRIPTION},
                "servers": [{"url": url.rstrip("/") or "/"}],
                "tags": [{"name": name, "description": told} for name, told in TAGS.items()],
                "paths": paths,
                "components": generator.registry.build({}),
            }
            return _modern(normalize_result_object(document))  # type: ignore[no-any-return]
    finally:
        making.reset(token)


def _operations(generator: Any, pattern: URLPattern) -> Iterator[tuple[str, Spec]]:
    route = str(pattern.pattern)
    path = f"/{route.replace('<str:pk>', '{id}')}"
    callback: Any = pattern.callback
    for method in callback.actions:
        if method == "head":  # which Django REST framework adds when it is first used
            continue
        view = generator.create_view(callback, method.upper())
        view.request = build_mock_request(method.upper(), path, view, None)
        operation = view.schema.get_operation(path, route, "/", method.upper(), generator.registry)
        if operation:  # one that a site's mixin excludes has none
            yield method, operation


def _modern(node: Any) -> Any:
    """Return a part of the document as OpenAPI 3.1 writes it: null is a type."""
    if isinstance(node, list):
        return [_modern(item) for item in node]
    if not isinstance(node, dict):
        return node
    node = {name: _modern(value) for name, value in node.items()}
    if len(node.get("allOf", [])) == 1:
        node |= node.pop("allOf")[0]
    if node.get("nullable") is True:
        del node["nullable"]
        if isinstance(node.get("type"), str):
            node["type"] = [node["type"], "null"]
        else:
            told = {name: node.pop(name) for name in ("description", "title") if name in node}
            node = {"oneOf": [*node.get("oneOf", [node]), {"type": "null"}], **told}
    return node
