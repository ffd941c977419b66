"""Mount with ``path("whatsapp/", include("kapso_connect.urls"))``."""

from __future__ import annotations

from django.urls import path, re_path

from .pages.views import (
    ConnectQRView,
    ConnectView,
    FailedView,
    MistypedView,
    SuccessView,
    theme_css,
)
from .webhooks.views import webhook

app_name = "kapso_connect"

urlpatterns = [
    path("webhook/", webhook, name="webhook"),
    path("connect/<str:token>/", ConnectView.as_view(), name="connect"),
    path("connect/<str:token>/qr.svg", ConnectQRView.as_view(), name="connect_qr"),
    path("success/", SuccessView.as_view(), name="success"),
    path("failed/", FailedView.as_view(), name="failed"),
    path("failed/<str:token>/", FailedView.as_view(), name="failed"),
    re_path(r"^theme/((?:[0-9a-f]{6})?(?:-(?:[0-9a-f]{6})?){11})\.css\Z", theme_css, name="theme"),
    re_path(r"^(?P<page>success|failed)\Z", MistypedView.as_view()),
    re_path(r"^(?P<page>failed)/(?P<token>[^/]+)\Z", MistypedView.as_view()),
    re_path(r"^(?:connect|success|failed)(?P<token>(?:/[\s\S]*)?)\Z", MistypedView.as_view()),
]
