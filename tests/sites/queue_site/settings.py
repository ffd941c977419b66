"""A small site with a queue, set up as docs/how-to/queues.md says.

Two variables differ by test: ``QUEUE_SITE_SETUP`` is the Python block of that page, and
``QUEUE_SITE_FOLDER`` holds the receiver's mode and its calls.
"""

from __future__ import annotations

import django
import environ

env = environ.Env()

SECRET_KEY = "tests-only"
DEBUG = False
ALLOWED_HOSTS = ["127.0.0.1"]
USE_TZ = True
ROOT_URLCONF = "tests.sites.queue_site.urls"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
DATABASES = {"default": env.db("DATABASE_URL")}
if DATABASES["default"]["ENGINE"] == "django.db.backends.sqlite3":
    DATABASES["default"]["OPTIONS"] = {"transaction_mode": "IMMEDIATE", "timeout": 20}
INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "kapso_connect",
    "tests.sites.queue_site.apps.QueueSiteConfig",
]
TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}]
FOLDER = env.path("QUEUE_SITE_FOLDER")
MAIL = {"file_path": f"{FOLDER}/mail"}
if django.VERSION >= (6, 1):
    MAILERS = {
        "default": {"BACKEND": "django.core.mail.backends.filebased.EmailBackend", "OPTIONS": MAIL}
    }
else:
    EMAIL_BACKEND = "django.core.mail.backends.filebased.EmailBackend"
    EMAIL_FILE_PATH = MAIL["file_path"]
KAPSO_CONNECT = {
    "API_KEY": "test-api-key",
    "API_BASE_URL": env.str("KAPSO_API_BASE_URL"),
    "WEBHOOK_SECRET": "test-webhook-secret",
    "PUBLIC_URL": "https://site.example",
    "LEASE_SECONDS": 3,
}
exec(env.str("QUEUE_SITE_SETUP"))
