from __future__ import annotations

from django.contrib import admin
from django.urls import include, path

from kapso_connect.api.urls import urls_for

from .crm.api import CompanyApi
from .crm.messages import receive_messages
from .crm.views import CompanyWhatsAppView, account, home, welcome

urlpatterns = [
    path("", home, name="home"),
    path("welcome/", welcome, name="welcome"),
    path("account/", account, name="account"),
    path("account/<int:pk>/whatsapp/", CompanyWhatsAppView.as_view(), name="company_whatsapp"),
    path("accounts/", include("django.contrib.auth.urls")),
    path("admin/", admin.site.urls),
    path("whatsapp-messages/", receive_messages, name="receive_messages"),
    path("whatsapp/", include("kapso_connect.urls")),
    path("api/whatsapp/", include("kapso_connect.api.urls")),
    path("api/company/", include(urls_for(CompanyApi), namespace="company_api")),
]
