"""The site of the tests with a popular theme of the admin in place of Django's own look."""

from __future__ import annotations

from tests.settings import *  # noqa: F403
from tests.settings import INSTALLED_APPS

INSTALLED_APPS = ["jazzmin", *INSTALLED_APPS]
JAZZMIN_SETTINGS = {"use_google_fonts_cdn": False}
