"""The site of the tests with an admin theme in place of Django's own look: ``KAPSO_TEST_THEME``."""

from __future__ import annotations

import os

from tests.settings import *  # noqa: F403
from tests.settings import INSTALLED_APPS

THEME = os.environ["KAPSO_TEST_THEME"]

if THEME == "jazzmin":
    INSTALLED_APPS = ["jazzmin", *INSTALLED_APPS]
elif THEME == "unfold":
    INSTALLED_APPS = ["unfold", *INSTALLED_APPS]
else:  # "unfold-base"
    INSTALLED_APPS = ["unfold", *INSTALLED_APPS, "tests.sites.unfold_site"]

JAZZMIN_SETTINGS = {"use_google_fonts_cdn": False}
