from __future__ import annotations

from django.urls import include, path
from django.views.static import serve

from . import (
    accounts,
    api,
    control,
    health,
    hosted,
    messages,
    middleware,
    numbers,
    pages,
    subscriptions,
    webhook_deliveries,
)
from .server import HERE

platform = [
    path("customers", api.CustomersView.as_view()),
    path("customers/<customer_id>", api.CustomerView.as_view()),
    path("customers/<customer_id>/setup_links", api.SetupLinksView.as_view()),
    path("customers/<customer_id>/setup_links/<setup_link_id>", api.SetupLinkView.as_view()),
    path("customers/<customer_id>/whatsapp/phone_numbers", numbers.CustomerNumbersView.as_view()),
    path("whatsapp/phone_numbers", numbers.PhoneNumbersView.as_view()),
    path("whatsapp/phone_numbers/<phone_number_id>", numbers.PhoneNumberView.as_view()),
    path("whatsapp/phone_numbers/<phone_number_id>/health", health.HealthView.as_view()),
    path(
        "whatsapp/phone_numbers/<phone_number_id>/webhooks",
        subscriptions.NumberWebhooksView.as_view(),
    ),
    path(
        "whatsapp/phone_numbers/<phone_number_id>/webhooks/<webhook_id>",
        subscriptions.WebhookView.as_view(),
    ),
    path("whatsapp/accounts/<business_account_id>/funding", accounts.FundingView.as_view()),
    path("whatsapp/webhooks", subscriptions.WebhooksView.as_view()),
    path("whatsapp/webhooks/<webhook_id>", subscriptions.WebhookView.as_view()),
    path("whatsapp/webhooks/<webhook_id>/test", subscriptions.WebhookTestView.as_view()),
    path("webhook_deliveries", webhook_deliveries.WebhookDeliveriesView.as_view()),
]
meta = [path("<phone_number_id>/messages", messages.MessagesView.as_view())]
controls = [
    path("ready", control.ReadyView.as_view()),
    path("reset", control.ResetView.as_view()),
    path("faults", control.FaultsView.as_view()),
    path("rate_limit", control.RateLimitView.as_view()),
    path("webhook", control.DefaultWebhookView.as_view()),
    path("seed", control.SeedView.as_view()),
    path("numbers", control.NumbersView.as_view()),
    path("numbers/<phone_number_id>", control.NumberView.as_view()),
    path("numbers/<phone_number_id>/device_change", control.DeviceChangeView.as_view()),
    path("webhooks/<webhook_id>/test", control.WebhookTestView.as_view()),
    path("numbers/<phone_number_id>/messages", control.MessagesView.as_view()),
    path("accounts/<business_account_id>", control.AccountView.as_view()),
    path("setup_links/<setup_link_id>", control.SetupLinkView.as_view()),
    path("events", control.EventsView.as_view()),
    path("deliveries/<delivery_id>/resend", control.ResendView.as_view()),
    path("state", control.StateView.as_view()),
    path("requests", control.RequestsView.as_view()),
]
urlpatterns = [
    path("", pages.IndexView.as_view()),
    path("sandbox.css", serve, {"path": "sandbox.css", "document_root": HERE / "static"}),
    path("numbers/<phone_number_id>", pages.NumberPageView.as_view()),
    path("faults", pages.FaultsPageView.as_view()),
    path("press/<name>", pages.PressView.as_view()),
    path("deliveries", pages.DeliveriesView.as_view()),
    path("deliveries.json", control.DeliveriesView.as_view()),
    path("s/<token>", hosted.SetupPageView.as_view()),
    path("elsewhere", pages.elsewhere),
    path("sandbox/", include(controls)),
    path("platform/v1/", include(platform)),
    path("meta/whatsapp/v24.0/", include(meta)),
]
handler400 = middleware.bad_request
handler404 = middleware.not_found
handler500 = middleware.server_error
