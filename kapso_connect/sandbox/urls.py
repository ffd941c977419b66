from __future__ import annotations

from django.urls import include, path
from django.views.static import serve

from . import api, control, health, hosted, middleware, pages, subscriptions
from .server import HERE

platform = [
    path("customers", api.CustomersView.as_view()),
    path("customers/<customer_id>", api.CustomerView.as_view()),
    path("customers/<customer_id>/setup_links", api.SetupLinksView.as_view()),
    path("customers/<customer_id>/setup_links/<setup_link_id>", api.SetupLinkView.as_view()),
    path("whatsapp/phone_numbers", api.PhoneNumbersView.as_view()),
    path("whatsapp/phone_numbers/<phone_number_id>", api.PhoneNumberView.as_view()),
    path("whatsapp/phone_numbers/<phone_number_id>/health", health.HealthView.as_view()),
    path("whatsapp/webhooks", subscriptions.WebhooksView.as_view()),
    path("whatsapp/webhooks/<webhook_id>", subscriptions.WebhookView.as_view()),
    path("whatsapp/webhooks/<webhook_id>/test", subscriptions.WebhookTestView.as_view()),
]
controls = [
    path("ready", control.ReadyView.as_view()),
    path("reset", control.ResetView.as_view()),
    path("faults", control.FaultsView.as_view()),
    path("rate_limit", control.RateLimitView.as_view()),
    path("webhook", control.DefaultWebhookView.as_view()),
    path("seed", control.SeedView.as_view()),
    path("numbers", control.NumbersView.as_view()),
    path("numbers/<phone_number_id>", control.NumberView.as_view()),
    path("setup_links/<setup_link_id>", control.SetupLinkView.as_view()),
    path("events", control.EventsView.as_view()),
    path("deliveries/<delivery_id>/resend", control.ResendView.as_view()),
    path("state", control.StateView.as_view()),
    path("requests", control.RequestsView.as_view()),
]
urlpatterns = [
    path("", pages.IndexView.as_view()),
    path("sandbox.css", serve, {"path": "sandbox.css", "document_root": HERE / "static"}),
    path("deliveries", pages.DeliveriesView.as_view()),
    path("deliveries.json", control.DeliveriesView.as_view()),
    path("deliveries/<delivery_id>/resend", pages.ResendView.as_view()),
    path("s/<token>", hosted.SetupPageView.as_view()),
    path("elsewhere", pages.elsewhere),
    path("sandbox/", include(controls)),
    path("platform/v1/", include(platform)),
]
handler400 = middleware.bad_request
handler404 = middleware.not_found
handler500 = middleware.server_error
