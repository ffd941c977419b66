from __future__ import annotations

from django.contrib import admin
from django.urls import include, path

from .crm.views import home, welcome

urlpatterns = [
    path("", home, name="home"),
    path("welcome/", welcome, name="welcome"),
    path("admin/", admin.site.urls),
    path("whatsapp/", include("kapso_connect.urls")),
]
