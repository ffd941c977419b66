"""Mount with ``path("whatsapp/", include("kapso_connect.urls"))``."""

from __future__ import annotations

from django.urls import path

from .views import FailedView, SuccessView
from .webhooks.views import webhook

app_name = "kapso_connect"

urlpatterns = [
    path("webhook/", webhook, name="webhook"),
    path("success/", SuccessView.as_view(), name="success"),
    path("failed/", FailedView.as_view(), name="failed"),
]
