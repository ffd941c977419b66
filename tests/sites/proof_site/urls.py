from __future__ import annotations

from django.urls import include, path

from . import views

urlpatterns = [
    path("whatsapp/", include("kapso_connect.urls")),
    path("api/whatsapp/", include("kapso_connect.api.urls")),
    path("proof/rows/", views.rows),
    path("proof/reset/", views.reset),
    path("proof/invite/", views.invite),
    path("proof/sync/", views.sync),
]
