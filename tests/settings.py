"""Settings of the test run: SQLite unless KAPSO_TEST_DATABASE_URL names another database."""

from __future__ import annotations

import atexit
import shutil
import tempfile

import django
import environ

env = environ.Env()

SECRET_KEY = "tests-only, and as long as what signs tokens should be"
DEBUG = False
ALLOWED_HOSTS = ["*"]
USE_TZ = True
ROOT_URLCONF = "tests.urls"
STATIC_URL = "static/"
DATABASES = {"default": env.db("KAPSO_TEST_DATABASE_URL", default="sqlite://:memory:")}
if DATABASES["default"]["NAME"] == ":memory:":
    # A file that is not waited for: in memory, the threads of a live server would share the one
    # connection of the test with it, and its transactions.
    folder = tempfile.mkdtemp(prefix="kapso-connect-tests-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    DATABASES["default"]["TEST"] = {"NAME": f"{folder}/test.sqlite3"}
    DATABASES["default"]["OPTIONS"] = {
        "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=OFF"
    }
INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
    "rest_framework",
    "kapso_connect",
    "tests.sites.host_site",
]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.locale.LocaleMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.auth.middleware.LoginRequiredMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
KAPSO_CONNECT = {
    "API_KEY": "test-api-key",
    "API_BASE_URL": "http://127.0.0.1:9",
    "WEBHOOK_SECRET": "test-webhook-secret",
    "PUBLIC_URL": "https://site.example",
    "OBSERVERS": ["tests.log_events.check"],
}
if django.VERSION >= (6, 1):
    MAILERS = {"default": {"BACKEND": "django.core.mail.backends.locmem.EmailBackend"}}
