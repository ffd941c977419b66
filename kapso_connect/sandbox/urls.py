from __future__ import annotations

from django.urls import include, path

from . import api, control, hosted, pages
from .web import methods

platform = [
    path("customers", methods(GET=api.list_customers, POST=api.create_customer)),
    path(
        "customers/<str:customer_id>",
        methods(GET=api.get_customer, PATCH=api.update_customer, DELETE=api.delete_customer),
    ),
    path(
        "customers/<str:customer_id>/setup_links",
        methods(GET=api.list_links, POST=api.create_link),
    ),
    path(
        "customers/<str:customer_id>/setup_links/<str:setup_link_id>",
        methods(PATCH=api.update_link),
    ),
    path("whatsapp/phone_numbers", methods(GET=api.list_numbers)),
    path(
        "whatsapp/phone_numbers/<str:phone_number_id>",
        methods(GET=api.get_number, DELETE=api.delete_number),
    ),
    path("whatsapp/phone_numbers/<str:phone_number_id>/health", methods(GET=api.number_health)),
    path("whatsapp/webhooks", methods(GET=api.list_webhooks, POST=api.create_webhook)),
    path(
        "whatsapp/webhooks/<str:webhook_id>",
        methods(GET=api.get_webhook, PATCH=api.update_webhook, DELETE=api.delete_webhook),
    ),
    path("whatsapp/webhooks/<str:webhook_id>/test", methods(POST=api.test_webhook)),
]
controls = [
    path("ready", methods(GET=control.ready)),
    path("reset", methods(POST=control.reset)),
    path(
        "faults",
        methods(GET=control.get_faults, POST=control.set_faults, DELETE=control.clear_faults),
    ),
    path("webhook", methods(POST=control.set_webhook)),
    path("seed", methods(POST=control.seed)),
    path("numbers", methods(POST=control.add_number)),
    path("numbers/<str:phone_number_id>", methods(PATCH=control.patch_number)),
    path("setup_links/<str:setup_link_id>", methods(PATCH=control.patch_link)),
    path("events", methods(POST=control.send_event)),
    path("state", methods(GET=control.state)),
    path("requests", methods(GET=control.requests)),
]
urlpatterns = [
    path("", methods(GET=pages.index)),
    path("sandbox.css", methods(GET=pages.stylesheet)),
    path("deliveries", methods(GET=pages.deliveries)),
    path("deliveries.json", methods(GET=control.deliveries)),
    path("deliveries/<str:delivery_id>/resend", methods(POST=pages.resend)),
    path("setup/<str:token>", methods(GET=hosted.show, POST=hosted.submit)),
    path(
        "elsewhere", methods(**dict.fromkeys(("GET", "POST", "PATCH", "DELETE"), pages.elsewhere))
    ),
    path("sandbox/", include(controls)),
    path("platform/v1/", include(platform)),
]
handler404 = pages.not_found
