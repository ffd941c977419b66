"""What the serializers of several resources share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from rest_framework import serializers

from ..schema import OpenApiExample, extend_schema_serializer

ID_HELP = "The id of this object."
CUSTOMER_HELP = "The id of a customer."
USER_HELP = "The primary key of a user of this site."
CREATED_AT_HELP = "When it was created."
UPDATED_AT_HELP = "When it was last changed."

UNKNOWN_FIELD = serializers.ErrorDetail("Unknown field.", code="unknown_field")
READ_ONLY = serializers.ErrorDetail("This field cannot be changed.", code="read_only")


class StrictSerializer(serializers.Serializer[Any]):
    """Rejects unknown and read-only fields, so that nothing that was sent is silently ignored."""

    def to_internal_value(self, data: Any) -> Any:
        refused = self.refused_fields(data) if isinstance(data, Mapping) else {}
        try:
            values = super().to_internal_value(data)
        except serializers.ValidationError as error:
            raise serializers.ValidationError({**cast(Any, error.detail), **refused}) from None
        if refused:
            raise serializers.ValidationError(refused)
        return values

    def refused_fields(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Return the errors of fields that must not be sent, whatever their values are."""
        refused = [name for name in data if name not in self.writable_names][:20]
        return {name: [READ_ONLY if name in self.fields else UNKNOWN_FIELD] for name in refused}

    @property
    def writable_names(self) -> set[str]:
        return {name for name, field in self.fields.items() if not field.read_only}


@extend_schema_serializer(examples=[OpenApiExample("example", {})])
class EmptySerializer(StrictSerializer):
    """An empty object, or no body at all."""


class ErrorFieldSerializer(serializers.Serializer[Any]):
    """An error of one value."""

    code = serializers.CharField(help_text="Does not change between releases.")
    message = serializers.CharField(help_text="For people; compare with code instead.")


@extend_schema_serializer(many=False)
class ErrorSerializer(ErrorFieldSerializer):
    """The body of every error."""

    fields = serializers.DictField(  # type: ignore[assignment]
        child=ErrorFieldSerializer(many=True),
        help_text="The errors of each invalid value, by its path.",
    )


@extend_schema_serializer(many=False)
class RootSerializer(serializers.Serializer[Any]):
    """The URLs of this API."""

    customers = serializers.URLField(help_text="Customers.")
    setup_links = serializers.URLField(help_text="Setup links.")
    batches = serializers.URLField(help_text="Batches of invitations and reminders.")
    connections = serializers.URLField(help_text="Connections.")
    events = serializers.URLField(help_text="The timeline.")
    schema = serializers.URLField(help_text="This schema.")


def visible_user(key: Any, context: Mapping[str, Any]) -> str | None:
    """Return a user's primary key if the requesting user is staff or that user, else None."""
    if key is None:
        return None
    own = getattr(context["request"].user, "pk", None)
    return str(key) if context["view"].shows_details or key == own else None
