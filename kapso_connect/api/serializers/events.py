"""The timeline."""

from __future__ import annotations

from rest_framework import serializers

from ...models import Source, TimelineEvent
from .. import examples
from ..fields import ChoiceField, IdField, UtcDateTimeField
from ..schema import OpenApiExample, extend_schema_serializer
from .base import CUSTOMER_HELP, ID_HELP, USER_HELP, visible_user


@extend_schema_serializer(examples=[OpenApiExample("example", examples.EVENT)])
class EventSerializer(serializers.Serializer[TimelineEvent]):
    """An event of the timeline."""

    id = IdField(help_text=ID_HELP)
    kind = ChoiceField(
        "EventKind", TimelineEvent.Kind.choices, is_open=True, help_text="What happened."
    )
    customer = IdField(source="customer_id", allow_null=True, help_text=CUSTOMER_HELP)
    connection = IdField(
        source="connection_id", allow_null=True, help_text="The id of a connection."
    )
    setup_link = IdField(
        source="setup_link_id", allow_null=True, help_text="The id of a setup link."
    )
    source = ChoiceField(  # type: ignore[assignment]
        "Source", Source.choices, is_open=True, help_text="Where the information came from."
    )
    actor = serializers.SerializerMethodField(help_text=USER_HELP)
    data = serializers.DictField(  # type: ignore[assignment]
        help_text="Details, which depend on the kind."
    )
    occurred_at = UtcDateTimeField(help_text="When it happened.")

    def get_actor(self, event: TimelineEvent) -> str | None:
        return visible_user(event.actor_id, self.context)
