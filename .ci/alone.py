"""Runs in a new project where the wheel is installed with what it requires, but with no extra."""

from __future__ import annotations

import importlib
import pkgutil
import sys

import django
from django.core.management import call_command
from mysite import settings

# uritemplate comes with drf-spectacular.
EXTRAS = {
    *("drf_spectacular", "uritemplate"),
    *("health_check", "prometheus_client", "pytest", "segno", "tqdm"),
}

settings.INSTALLED_APPS += ["kapso_connect"]
django.setup()
if "kapso_connect.api" in sys.modules:
    sys.exit("The REST API is loaded where nobody mounts it.")

import kapso_connect  # noqa: E402

lacking = []
for module in pkgutil.walk_packages(kapso_connect.__path__, "kapso_connect."):
    if ".sandbox" in module.name:
        continue  # a site of its own, with settings of its own
    try:
        importlib.import_module(module.name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in EXTRAS:
            raise
        lacking.append(f"{module.name} (needs {error.name})")
call_command("check")
call_command("migrate", verbosity=0)
print("Imported without extras. Left out:", ", ".join(lacking) or "nothing")
