"""A site that takes all of the package's URLs but the one of the QR code."""

from __future__ import annotations

from django.urls import include, path

from kapso_connect import urls

ours = [pattern for pattern in urls.urlpatterns[:-2] if pattern.name != "connect_qr"]

urlpatterns = [path("whatsapp/", include((ours, urls.app_name)))]
