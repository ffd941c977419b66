from __future__ import annotations

from django.contrib import admin
from django.urls import include, path

from .sites.host_site.admin import other_site

urlpatterns = [
    path("admin/", admin.site.urls),
    path("other-admin/", other_site.urls),
    path("whatsapp/", include("kapso_connect.urls")),
    path("api/whatsapp/", include("kapso_connect.api.urls")),
]
