"""A site that describes all of its APIs with drf-spectacular."""

from __future__ import annotations

from tests.settings import *  # noqa: F403

REST_FRAMEWORK = {"DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema"}
INSTALLED_APPS = [*INSTALLED_APPS, "drf_spectacular"]  # noqa: F405
ROOT_URLCONF = "tests.sites.spectacular_urls"
