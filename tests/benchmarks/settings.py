"""The example site on two databases of the benchmark's own, "small" and "large"."""

from __future__ import annotations

import os

import environ

os.environ.setdefault("SECRET_KEY", "benchmarks-only")

from example_project.settings import *  # noqa: F403
from example_project.settings import KAPSO_CONNECT

DEBUG = False
ALLOWED_HOSTS = ["testserver"]
SECURE_SSL_REDIRECT = False
DATABASES = {
    "default": {},
    **{
        size: environ.Env.db_url_config(url)
        for size, url in (
            ("small", os.environ.get("KAPSO_BENCH_SMALL", "sqlite://:memory:")),
            ("large", os.environ.get("KAPSO_BENCH_LARGE", "sqlite://:memory:")),
        )
    },
}
DATABASE_ROUTERS = ["tests.benchmarks.routing.Router"]
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
LOGGING: dict[str, object] = {}
KAPSO_CONNECT = {
    **KAPSO_CONNECT,
    "API_KEY": "benchmark",
    "API_BASE_URL": os.environ.get("KAPSO_BENCH_API", "http://127.0.0.1:9"),
    "WEBHOOK_SECRET": "benchmark",
    "PUBLIC_URL": "https://testserver",
}
