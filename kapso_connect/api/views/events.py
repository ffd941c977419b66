"""The timeline."""

from __future__ import annotations

from ...models import TimelineEvent
from .. import serializers
from ..filters import EventFilters
from ..operations import describe_reads
from ..pagination import TimelinePagination
from ..permissions import required
from .base import Api


@describe_reads
class Events(Api):
    """What happened to customers, links and numbers, newest first. Follow next: pages do not shift
    when new events arrive."""

    rows = TimelineEvent.objects.all()
    tag = "Kapso timeline"
    filters = EventFilters
    pagination_class = TimelinePagination
    serializer_class = serializers.EventSerializer
    required_permissions = {"list": required("view_timelineevent")}
