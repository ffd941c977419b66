"""This package's admin with the base of django-unfold, as docs/how-to/production.md shows it."""

from __future__ import annotations

from django.contrib import admin
from unfold.admin import ModelAdmin

from kapso_connect.admin import (
    ConnectionAdmin,
    CustomerAdmin,
    InvitationBatchAdmin,
    SetupLinkAdmin,
    TimelineEventAdmin,
    WebhookEventAdmin,
)
from kapso_connect.models import (
    Connection,
    Customer,
    InvitationBatch,
    SetupLink,
    TimelineEvent,
    WebhookEvent,
)
from tests.sites.host_site.admin import ShopAdmin
from tests.sites.host_site.models import Shop

admin.site.unregister(
    [Connection, Customer, InvitationBatch, SetupLink, TimelineEvent, WebhookEvent, Shop]
)


@admin.register(Customer)
class UnfoldCustomerAdmin(CustomerAdmin, ModelAdmin):
    pass


@admin.register(SetupLink)
class UnfoldSetupLinkAdmin(SetupLinkAdmin, ModelAdmin):
    pass


@admin.register(Connection)
class UnfoldConnectionAdmin(ConnectionAdmin, ModelAdmin):
    pass


@admin.register(InvitationBatch)
class UnfoldInvitationBatchAdmin(InvitationBatchAdmin, ModelAdmin):
    pass


@admin.register(TimelineEvent)
class UnfoldTimelineEventAdmin(TimelineEventAdmin, ModelAdmin):
    pass


@admin.register(WebhookEvent)
class UnfoldWebhookEventAdmin(WebhookEventAdmin, ModelAdmin):
    pass


@admin.register(Shop)
class UnfoldShopAdmin(ShopAdmin, ModelAdmin):
    pass
