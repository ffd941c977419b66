"""A site like a host's own, for the tests of races, crashes, load and fuzzing."""

from __future__ import annotations

import environ

from tests.settings import *  # noqa: F403
from tests.settings import DATABASES, INSTALLED_APPS, KAPSO_CONNECT

env = environ.Env()

ROOT_URLCONF = "tests.sites.proof_site.urls"
INSTALLED_APPS = [*INSTALLED_APPS, "tests.sites.proof_site.apps.ProofSite"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
DATABASES["default"]["CONN_MAX_AGE"] = env.int("KAPSO_PROOF_CONN_MAX_AGE", default=0)
if DATABASES["default"]["ENGINE"] == "django.db.backends.sqlite3":
    # As the documentation asks for, so that requests that write wait for each other.
    options = {"timeout": 20, "transaction_mode": "IMMEDIATE"}
    if env.bool("KAPSO_PROOF_FAST_SQLITE", default=False):
        # Unlike a power cut, a killed process loses nothing that it has written.
        options["init_command"] = "PRAGMA synchronous=OFF"
    DATABASES["default"]["OPTIONS"] = options
KAPSO_CONNECT = {
    **KAPSO_CONNECT,
    "API_BASE_URL": env("KAPSO_PROOF_API_URL", default="http://127.0.0.1:9"),
    "WEBHOOK_SECRET": env.list("KAPSO_PROOF_SECRETS", default=[KAPSO_CONNECT["WEBHOOK_SECRET"]]),
    "PUBLIC_URL": env("KAPSO_PROOF_PUBLIC_URL", default=KAPSO_CONNECT["PUBLIC_URL"]),
    "LEASE_SECONDS": env.float("KAPSO_PROOF_LEASE", default=300.0),
    "REQUEST_BUDGET": env.float("KAPSO_PROOF_REQUEST_BUDGET", default=2.0),
}
REST_FRAMEWORK = {"DEFAULT_AUTHENTICATION_CLASSES": ["tests.sites.proof_site.staff.TheStaff"]}
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"stderr": {"class": "logging.StreamHandler"}},
    "root": {"handlers": ["stderr"], "level": "WARNING"},
}
