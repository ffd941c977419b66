from __future__ import annotations

from django.urls import include, path

from ...benchmarks.measuring import is_installed
from . import views

urlpatterns = [
    path("whatsapp/", include("kapso_connect.urls")),
    path("shortest/", views.shortest),
    path("fewest-statements/", views.fewest_statements),
]
if is_installed("djstripe"):
    urlpatterns.append(path("stripe/", include("djstripe.urls", namespace="djstripe")))
if is_installed("anymail"):
    urlpatterns.append(path("anymail/", include("anymail.urls")))
