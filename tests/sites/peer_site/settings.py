"""A new project of Django's, with this package and its peers in it."""

from __future__ import annotations

import os

import environ

from ...benchmarks.measuring import is_installed
from . import WEBHOOK_SECRET

SECRET_KEY = "benchmarks-only"
DEBUG = False
ALLOWED_HOSTS = ["testserver", "127.0.0.1"]
USE_TZ = True
ROOT_URLCONF = "tests.sites.peer_site.urls"
WSGI_APPLICATION = "tests.sites.peer_site.wsgi.application"
STATIC_URL = "static/"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
DATABASES = {
    "default": {
        **environ.Env.db_url_config(os.environ.get("KAPSO_BENCH_DATABASE", "sqlite://:memory:")),
        "CONN_MAX_AGE": None,
    }
}
INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "rest_framework",
    "kapso_connect",
    "tests.sites.peer_site",
    *(app for app in ("djstripe", "anymail") if is_installed(app)),
]
# The tables as the models are, without the way there: dj-stripe's takes a minute and a half.
MIGRATION_MODULES = {app.rpartition(".")[2]: None for app in INSTALLED_APPS}
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}]
# All log records are discarded.
LOGGING = {"version": 1, "disable_existing_loggers": False, "root": {"level": "CRITICAL"}}

KAPSO_CONNECT = {
    "API_KEY": "benchmark",
    "API_BASE_URL": "http://127.0.0.1:9",
    "WEBHOOK_SECRET": WEBHOOK_SECRET,
    "PUBLIC_URL": "https://testserver",
}
STRIPE_TEST_SECRET_KEY = "sk_test_" + 24 * "x"
STRIPE_LIVE_MODE = False
DJSTRIPE_FOREIGN_KEY_TO_FIELD = "id"
ANYMAIL = {"MAILGUN_API_KEY": "benchmark", "MAILGUN_WEBHOOK_SIGNING_KEY": WEBHOOK_SECRET}
